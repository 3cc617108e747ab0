"""The fit of 2:4 tensor cores: it finds what made the calls, and the preset."""

import csv
import importlib.util
import pathlib

import numpy as np
import pytest

from figs_jax.engine import parse
from figs_jax.engine.studies.sparse24 import (
  FITTED,
  MeasuredPair,
  fit_sparse24,
  geometric_error,
  left_one_out,
  modelled,
)

DATA = pathlib.Path(__file__).parents[1] / "data" / "sparse24_measured.csv"


@pytest.fixture(scope="module")
def pairs():
  with open(DATA) as file:
    return [MeasuredPair.of(row) for row in csv.DictReader(file)]


def errors(pairs, times):
  dense, sparse = np.array([pair[6:] for pair in pairs]).T
  return tuple(
    geometric_error(a, b)
    for a, b in ((times[0] / times[1], dense / sparse), (times[1], sparse))
  )


def test_the_fit_gives_the_presets_constants(pairs):
  fields = fit_sparse24(pairs)
  engine = parse("tensorcore:a100")
  assert fields == {name: getattr(engine, name) for name in fields}
  assert set(fields) == {*FITTED, "latency"}
  # The same engine, whether its fields are given or not.
  np.testing.assert_array_equal(modelled(pairs, **fields), modelled(pairs))


def test_sources_that_were_left_out_beat_a_constant(pairs):
  times, fits = left_one_out(pairs)
  gain, sparse = errors(pairs, times)
  speedups = np.array([pair.speedup for pair in pairs])
  sources = np.array([pair.source.split()[0] for pair in pairs])
  # The constant with the least geometric error is the median.
  constant = np.array(
    [np.median(speedups[sources != source]) for source in sources]
  )
  assert gain <= 0.9 * geometric_error(constant, speedups)
  assert sparse <= 1.5
  expected = times[0] / times[1]
  assert ((expected < 1) == (speedups < 1)).all()
  np.testing.assert_allclose((gain, sparse), (1.225, 1.214), atol=2e-3)
  # The ranges that stand behind the constants.
  ranges = [(min(f[x] for f in fits), max(f[x] for f in fits)) for x in FITTED]
  assert ranges == [(693, 711), (572, 622), (208, 303), (1119, 1524)]


def test_a_fit_finds_the_fields_that_made_the_calls(pairs):
  truth = {"dense_rate": 820, "sparse_rate": 510, "ramp": 700, "stream": 900}
  truth = {**truth, "latency": 3000}
  times = modelled(pairs, **truth)[:, 0]
  made = [
    pair._replace(dense_us=d, sparse_us=s) for pair, d, s in zip(pairs, *times)
  ]
  fields = fit_sparse24(made, latency=3000)
  assert errors(made, modelled(pairs, **fields)[:, 0]) < (1.01, 1.01)
  for name in FITTED:
    np.testing.assert_allclose(fields[name], truth[name], rtol=0.02)


def test_many_designs_are_modelled_at_once(pairs):
  rates = np.array([400, 700])
  both = modelled(pairs, sparse_rate=rates)
  assert both.shape == (2, 2, len(pairs))
  for place, rate in enumerate(rates):
    alone = modelled(pairs, sparse_rate=int(rate))[:, 0]
    np.testing.assert_array_equal(both[:, place], alone)


def test_too_few_calls_or_sources_are_refused(pairs):
  with pytest.raises(ValueError, match="expected at least 4 calls, got 2"):
    fit_sparse24(pairs[:1])
  with pytest.raises(ValueError, match="expected two sources or more, got"):
    left_one_out(pairs[:3])


def test_the_page_is_what_the_code_gives():
  path = pathlib.Path(__file__).parents[3] / "benchmarks" / "fit_sparse24.py"
  spec = importlib.util.spec_from_file_location("fit_sparse24", path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  text = script.PAGE.read_text()
  # The candidates take many fits; one of them is the preset's.
  blocks = tuple(name for name in script.BLOCKS if name != "candidates")
  assert script.written(text, blocks) == text, (
    "out of date: python benchmarks/fit_sparse24.py --write"
  )
