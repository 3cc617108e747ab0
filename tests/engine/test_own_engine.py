"""colabs/own_engine.py: a kind of engine from outside goes where ours go."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax import engine
from figs_jax.engine import plots, spec_text
from figs_jax.engine.timing import PARTS

PATH = pathlib.Path(__file__).parents[2] / "colabs" / "own_engine.py"
ROWS = [
  {"name": "qk", "M": 9, "N": 20, "K": 32},
  {"name": "ff", "M": 9, "N": 20, "K": 32, "pattern": "1:4", "count": 2},
]
sizes = st.integers(1, 40)


def load():
  spec = importlib.util.spec_from_file_location("own_engine", PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module", autouse=True)
def own():
  """The module; its engine is known inside, and unknown again to others."""
  yield load()
  del spec_text._CLASSES["vector"]


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, sizes, sizes, sizes, st.sampled_from([1, 2, 4]))
def test_it_walks_the_lanes(M, N, K, R, C, n):
  unit = engine.parse(f"vector:{R}x{C}:latency=2")
  got = unit.counts(engine.Gemm(M, N, K, n, 4))
  kept = np.count_nonzero(np.arange(K) % 4 < n)
  clock = 0
  for _ in range(0, N, R):
    clock += sum(1 for _ in range(M) for _ in range(0, kept, C)) + 2
  assert got["cycles"] == clock == sum(got[part] for part in PARTS)
  useful = M * N * kept / (clock * R * C)
  np.testing.assert_allclose(got["utilisation"], useful, rtol=1e-12)


def test_it_is_read_and_printed_like_our_own(own):
  unit = engine.parse("vector:16x2:latency=0")
  assert unit == own.Vector(16, 2, 0, name="vector:16x2:latency=0")
  assert str(own.Vector(16, 2, 0)) == "vector:16x2:latency=0"
  assert str(own.Vector()) == "vector:8x4"
  assert engine.parse("vector") == own.Vector(name="vector")
  assert (unit.unit, unit.is_array, unit.leaves[:3]) == (
    "cycles",
    True,
    (16, 2, 0),
  )
  for spec, message in (
    ("vector:8x", "expected a size ROWSxCOLS, as in 'vector:32x16'"),
    ("vector:8x4:rows=0", "rows: expected integers from 1"),
    ("vector:8x4:latncy=1", "unknown key 'latncy', did you mean 'latency'"),
    ("vectr:8x4", "unknown kind 'vectr', did you mean 'vector:8x4'"),
  ):
    with pytest.raises(ValueError, match=message):
      engine.parse(spec)


def test_it_goes_through_cost_under_transforms_too():
  table = engine.Layers.of(ROWS)
  alone = [engine.cost(table, f"vector:{r}x4").cycles for r in (4, 8)]
  unit = dataclasses.replace(
    engine.parse("vector"), name="", rows=np.array([[4], [8]])
  )
  both = engine.cost(table, unit)
  np.testing.assert_array_equal(both.cycles, alone)
  assert str(unit) == "vector:*x4"
  with jax.enable_x64(True):
    traced = jax.jit(engine.cost)(table, unit)
    mapped = jax.vmap(
      lambda rows: engine.cost(table, dataclasses.replace(unit, rows=rows))
    )(jnp.array([4, 8]))
  for got in (traced, mapped):
    np.testing.assert_array_equal(jax.device_get(got.cycles), both.cycles)
  with pytest.raises(ValueError, match="^layer 'huge': .*int64"):
    side = 2**50
    engine.cost([{"name": "huge", "M": side, "N": side, "K": side}], unit)


def test_it_goes_through_report_and_plots():
  passes = (engine.NonGemm("norm", "norm", 288, 288),)
  table = engine.Layers.of(ROWS, engine.Forward(passes, seq=9))
  report = engine.report(table, ["vector:8x4", "ws:8x4"])
  first = report.totals[0]
  assert (first.engine, first.unit, first.pattern) == (
    "vector:8x4",
    "cycles",
    "1:4",
  )
  assert first.cycles == engine.cost(ROWS, "vector:8x4").total("cycles")
  assert first.whole_cycles == first.cycles + 576 // 8  # a value per lane
  assert "vector:8x4 gathers activations without a conflict." in str(report)
  for draw in plots.PLOTS.values():
    assert draw(report).axes


def test_it_goes_through_sweep_training_and_attention():
  gemm = {"M": [9], "N": [20], "K": [32], "pattern": ["1:4", "dense"]}
  designs = engine.sweep("vector", gemm | {"rows": [4, 8], "latency": [0, 3]})
  assert len(designs) == 8
  best = designs.smallest("cycles")
  row = ROWS[1] | {"count": 1}
  cycles = engine.cost([row], "vector:8x4:latency=0").cycles
  assert (best["rows"], best["latency"], best["cycles"]) == (8, 0, cycles)
  assert engine.step_cost(ROWS, "vector").cycles.total > 0
  attention = engine.AttentionShape(1, 2, 16, 16, 8)
  memory = engine.Memory(buffer=2**12)
  assert engine.attention_cost(attention, "vector", memory).cycles > 0


def test_registering_again_is_for_the_same_class():
  assert load().Vector is type(engine.parse("vector"))
  with pytest.raises(ValueError, match="'ws' is registered already"):

    @engine.register
    class Other(engine.Engine):
      KINDS = ("ws",)

  with pytest.raises(ValueError, match="Nameless: expected KINDS"):

    @engine.register
    class Nameless(engine.Engine):
      rows: int = 1
