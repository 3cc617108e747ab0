"""Fits 2:4 tensor cores to measured calls and writes what comes out.

    python benchmarks/fit_sparse24.py           # the constants, and candidates
    python benchmarks/fit_sparse24.py --write   # docs/why_no_speedup.md as well

The constants stand in `figs_jax.engine.TensorCore`, each with the range of the
fits that leave a source out; put new ones there when you add pairs to
tests/engine/data/sparse24_measured.csv.
"""

import argparse
import csv
import functools
import pathlib

import numpy as np

from figs_jax.engine import Gemm, TensorCore, parse
from figs_jax.engine.reports.text import markdown
from figs_jax.engine.studies.sparse24 import (
  FITTED,
  MeasuredPair,
  fit_sparse24,
  geometric_error,
  left_one_out,
  modelled,
)

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "why_no_speedup.md"
DATA = ROOT / "tests" / "engine" / "data" / "sparse24_measured.csv"
CHIPS = ("a100", "h100", "h200")
# Name, N, K, bytes per value.
SHAPES = (
  ("ViT-B fc1", 3072, 768, 2),
  ("ViT-B fc2", 768, 3072, 2),
  ("ViT-L fc1", 4096, 1024, 2),
  ("ViT-L fc2", 1024, 4096, 2),
  ("4096 × 4096", 4096, 4096, 2),
  ("8192 × 8192", 8192, 8192, 2),
  ("8192 × 8192, 8 bits", 8192, 8192, 1),
)
RATES = ("dense_rate", "sparse_rate")
OFF = {"ramp": 0, "latency": 0, "lag": 0, "stream": 2**31 - 1}


def without(*names: str) -> dict[str, int]:
  return {name: OFF[name] for name in names}


# What is tried: name, fitted fields, all others.
CANDIDATES = (
  ("the silicon", (), {"ideal": True}),
  ("the silicon, 177 µs per 2:4 call", (), {
    "ideal": True, "sparse_overhead": 176_601}),
  ("two rates", RATES, OFF),
  ("two rates, a cost per 2:4 call", (*RATES, "sparse_overhead"), OFF),
  ("two rates, ramp", (*RATES, "ramp"), without("latency", "lag", "stream")),
  ("two rates, latency", RATES, without("ramp", "lag", "stream")),
  ("two rates, ramp, latency", (*RATES, "ramp"), without("lag", "stream")),
  ("two rates, ramp, stream", FITTED, without("latency")),
  ("two rates, latency, stream", (*RATES, "stream"), without("ramp")),
  ("two rates, ramp, latency, stream", FITTED, {}),
  ("the same, lag fitted too", (*FITTED, "lag"), {}),
)  # fmt: skip
CHOSEN = "two rates, ramp, latency, stream"


@functools.cache
def pairs() -> list[MeasuredPair]:
  with open(DATA) as file:
    return [MeasuredPair.of(row) for row in csv.DictReader(file)]


@functools.cache
def left_out():
  """The pairs' times by fits without their source, and those fits."""
  return left_one_out(pairs())


def speedups() -> np.ndarray:
  return np.array([pair.speedup for pair in pairs()])


def judged(times: np.ndarray) -> list[object]:
  """Factors by which speed-ups and 2:4 times are off; wrong sides of 1."""
  made, truth = times[0] / times[1], speedups()
  sparse = np.array([pair.sparse_us for pair in pairs()])
  wrong = (truth < 1) & (made >= 1) | (truth > 1.2) & (made < 1)
  return [
    geometric_error(made, truth),
    geometric_error(times[1], sparse),
    int(wrong.sum()),
  ]


def constant() -> list[object]:
  """The best constant speed-up, the median, as fitted and left out."""
  truth = speedups()
  sources = np.array([pair.source.split()[0] for pair in pairs()])
  left = np.array([np.median(truth[sources != s]) for s in sources])
  every = np.full(len(truth), np.median(truth))
  errors = [geometric_error(x, truth) for x in (every, left)]
  wrong = [int((truth < 1).sum())] * 2
  return ["a constant", 1, errors[0], None, wrong[0], errors[1], None, wrong[1]]


def candidate(name: str, fitted: tuple, fixed: dict) -> list[object]:
  def fit(some):
    return fit_sparse24(some, fitted, **fixed) if fitted else fixed

  every = judged(modelled(pairs(), **fit(pairs()))[:, 0])
  return [name, len(fitted), *every, *judged(left_one_out(pairs(), fit)[0])]


def candidates() -> str:
  header = ["model", "fitted", "speed-up", "2:4 time", "wrong side"]
  header += [f"{x}, left out" for x in header[2:]]
  rows = [constant(), *(candidate(*each) for each in CANDIDATES)]
  return markdown(header, rows)


def constants() -> str:
  fields = fit_sparse24(pairs())
  _, folds = left_out()
  rows = [
    [f"`{x}`", fields[x], f"{min(f[x] for f in folds)} to"
     f" {max(f[x] for f in folds)}"]
    for x in (*FITTED, "latency")
  ]  # fmt: skip
  return markdown(["field", "fitted", "with a source left out"], rows)


def measured() -> str:
  """Each pair: measured, expected, expected by a fit without its source."""
  now, ideal = (
    modelled(pairs(), **fields)[:, 0] for fields in ({}, {"ideal": True})
  )
  left, _ = left_out()
  rows = [
    [pair.source, pair.chip, pair.M, pair.N, pair.K, 8 * pair.itemsize,
     pair.speedup, *(float(t[0, i] / t[1, i]) for t in (now, left, ideal))]
    for i, pair in enumerate(pairs())
  ]  # fmt: skip
  header = ["source", "chip", "M", "N", "K", "bits"]
  header += ["measured", "expected", "left out", "ideal"]
  return markdown(header, rows)


def gain(chip: str, M: np.ndarray, N: int, K: int, itemsize: int) -> np.ndarray:
  engine = parse(f"tensorcore:{chip}")
  dense, sparse = (
    engine.counts(Gemm(M, N, K, n, 4), itemsize)["cycles"] for n in (4, 2)
  )
  return dense / sparse


def threshold(gains: np.ndarray, M: np.ndarray, least: float) -> str:
  """The rows from which on all gains are at least so large."""
  low = np.flatnonzero(gains < least)
  if not len(low):
    return f"{M[0]}"
  return "never" if low[-1] == len(M) - 1 else f"{M[low[-1] + 1]}"


def gains() -> str:
  M = np.r_[1:64, 64 : 2**16 + 1 : 64]
  rows = []
  for name, N, K, itemsize in SHAPES:
    row: list[object] = [name, N, K]
    for chip in CHIPS:
      if chip == "a100" and itemsize == 1:
        row.append("-")  # no fp8; int8 has other kernels
        continue
      made = gain(chip, M, N, K, itemsize)
      first, more = (threshold(made, M, least) for least in (1, 1.2))
      row.append(f"{first}, {more}, {made[-1]:.2f}×")
    rows.append(row)
  header = ["layer", "N", "K", *(chip.upper() for chip in CHIPS)]
  return markdown(header, rows)


BLOCKS = {
  "gains": gains,
  "measured": measured,
  "constants": constants,
  "candidates": candidates,
}


def written(text: str, names: tuple[str, ...] = tuple(BLOCKS)) -> str:
  """The page with its generated blocks made anew."""
  for name in names:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    text = f"{before}{begin}\n\n{BLOCKS[name]()}\n\n{end}{after}"
  return text


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "--write", action="store_true", help="write the tables into the page"
  )
  options = parser.parse_args()
  print(constants(), candidates(), sep="\n\n")
  preset = {x: getattr(TensorCore("x", 1, 1), x) for x in (*FITTED, "latency")}
  if preset != fit_sparse24(pairs()):
    print(f"\nThe preset has other constants: {preset}")
  if options.write:
    PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
  main()
