"""Trainium: patterns by enumeration, and rates as AWS states them."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.engine import cost, parse, report
from figs_jax.engine.trainium import PATTERNS
from tests.engine.counting import counts

# NeuronCore-v3 Architecture: "including 4:16, 4:12, 4:8, 2:8, 2:4, 1:4, 1:2".
STATED = {(4, 16), (4, 12), (4, 8), (2, 8), (2, 4), (1, 4), (1, 2)}
SIDE = 128


def always_fits(n, m, kept, group):
  """Whether no mask of n:m puts more than `kept` into a group."""
  masks = itertools.combinations(range(m), n)
  each = [np.isin(np.arange(m), mask) for mask in masks]
  length = math.lcm(m, group)
  for parts in itertools.product(each, repeat=min(length // m, 2)):
    row = np.resize(np.concatenate(parts), length)
    if row.reshape(-1, group).sum(1).max() > kept:
      return False
  return True


def test_the_patterns_are_those_of_aws_the_fastest_first():
  assert set(PATTERNS) == STATED and len(PATTERNS) == len(STATED)
  densities = [Fraction(n, m) for n, m in PATTERNS]
  assert densities == sorted(densities)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6, 8, 12])
def test_a_pattern_runs_as_the_fastest_into_which_it_always_fits(m):
  for n in range(1, m + 1):
    runs = [
      Fraction(a, b)
      for a, b in STATED
      if (b % m == 0 or m % b == 0) and n < m and always_fits(n, m, a, b)
    ]
    density = min(runs, default=Fraction(1))
    deep = 3 * 2 * 128  # whole groups of all patterns
    got = counts(1, 1, deep, parse("trainium2"), n, m)
    assert got["flops"] == 2 * SIDE**2 * deep * density, (n, m)


def by_hand(M, N, K, a, b, dense, sparse, hbm, itemsize=2):
  """ns and bytes of a call that runs a:b."""
  rows, cols, deep = (-(-x // SIDE) * SIDE for x in (M, N, K))

  def kept(size):
    return sum(i % b < a for i in range(size))

  bits = math.ceil(math.log2(b)) if a < b else 0
  moved = itemsize * (M * K + kept(K) * N + M * N)
  moved += math.ceil(kept(K) * N * bits / 8)
  times = [Fraction(2 * rows * cols * kept(deep), dense), Fraction(moved, hbm)]
  if a < b:
    times.append(Fraction(2 * rows * cols * deep, sparse))
  return math.ceil(max(times)), moved


@pytest.mark.parametrize("a, b", [*PATTERNS, (1, 1)])
@pytest.mark.parametrize("M, N, K", [(5, 7, 33), (4096, 300, 8192), (1, 1, 1)])
def test_a_call_takes_its_kept_rows_at_most_at_the_sparse_peak(M, N, K, a, b):
  # Trainium2 and Trainium3 Architecture: TFLOP/s in bf16, and TB/s.
  for spec, sheet in (
    ("trainium2", (667_000, 2_563_000, 2900)),
    ("trainium3", (671_000, 2_517_000, 4900)),
  ):
    got = counts(M, N, K, parse(spec), a, b)
    cycles, moved = by_hand(M, N, K, a, b, *sheet)
    assert (got["cycles"], got["dram_bytes"]) == (cycles, moved)
    assert 0 < got["utilisation"] <= 1


def test_types_without_a_sparse_peak_run_dense():
  cube = {"name": "cube", "M": 8192, "N": 8192, "K": 8192}
  rows = [cube, cube | {"pattern": "1:4"}]

  def times(spec, dtype):
    return cost(rows, spec, dtype=dtype).cycles.tolist()

  # Sparse bf16 on a Trainium3 takes what dense fp8 takes.
  dense, sparse = times("trainium3", "bf16")
  assert sparse < dense and times("trainium3", "fp8") == [sparse] * 2
  assert len(set(times("trainium3", "float32"))) == 1
  # Trainium2: 2563 over 1299 TFLOP/s in fp8, whatever the pattern.
  dense, sparse = times("trainium2", "fp8")
  np.testing.assert_allclose(dense / sparse, 2563 / 1299, rtol=1e-5)
  with pytest.raises(ValueError, match="trainium2 has no int8; choose one of"):
    times("trainium2", "int8")


def test_the_report_says_what_is_stated_and_that_nothing_is_measured():
  row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  text = report([row], ["trainium3"]).caption
  assert "2,517 TFLOP/s in bf16, as much as its dense fp8" in text
  assert "1.97 times its dense fp8" in report([row], ["trainium2"]).caption
  assert "fp8" not in report([row | {"pattern": "4:4"}], ["trainium3"]).caption
  dense = "runs patterns dense in fp8."
  assert dense in report([row], ["trainium3"], dtype="fp8").caption
  assert dense in report([row], ["trainium3:dtype=fp8"]).caption
  assert dense not in report([row], ["trainium2"], dtype="fp8").caption


@pytest.mark.parametrize("spec", ["trainium2", "nm-spmm:a100"])
def test_traced_sizes_and_patterns_agree_with_concrete_ones(spec):
  engine = parse(spec)
  sizes = np.array([33, 400]), np.array([2, 129]), np.array([99, 256])
  pattern = np.array([1, 4]), np.array([16, 12])
  want = counts(*sizes, engine, *pattern)
  got = jax.jit(lambda *x: counts(*x[:3], engine, *x[3:]))(
    *map(jnp.asarray, (*sizes, *pattern))
  )
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize(
  "spec, message",
  [
    ("trainium2:a", "expected no size, as in 'trainium2', got 'a'"),
    ("trainium", "unknown kind 'trainium', did you mean 'trainium"),
    ("nm-spmm", "expected a chip, as in 'nm-spmm:a100'"),
    ("nm-spmm:v5e", "unknown chip 'v5e', did you mean 'tpu:v5e'"),
  ],
)
def test_a_bad_spec_is_one_line_with_the_fix(spec, message):
  with pytest.raises(ValueError, match=message):
    parse(spec)
