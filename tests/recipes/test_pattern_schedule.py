"""The patterns of the stages: published ones, and laws."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.recipes.pattern_schedule import Direct, Geometric, Never, Stepwise

patterns = st.integers(1, 300).flatmap(
  lambda m: st.integers(1, m).map(lambda n: NM(n, m))
)


@pytest.mark.parametrize(
  "target,counts",
  [
    ("1:16", [15, 8, 4, 2, 1]),
    ("2:4", [3, 2]),
    ("1:4", [3, 2, 1]),
    ("3:16", [15, 8, 4, 3]),
    ("1:2", [1]),
    ("3:4", [3]),
    ("4:4", [4]),
    ("1:9", [8, 4, 2, 1]),
    ("1:128", [127, 64, 32, 16, 8, 4, 2, 1]),
  ],
)
def test_stepwise(target, counts):
  target = NM.parse(target)
  assert Stepwise()(target) == tuple(NM(n, target.m) for n in counts)


@settings(deadline=None)
@given(patterns)
def test_stepwise_thins_out_to_the_target(target):
  stages = Stepwise()(target)
  counts = [nm.n for nm in stages]
  assert stages[-1] == target
  assert all(a > b for a, b in zip(counts, counts[1:]))
  assert {nm.m for nm in stages} == {target.m}


def test_figs():
  stages = Geometric(8)(NM(1, 4))
  assert " ".join(map(str, stages)) == "8:32 4:16 2:8 1:4"


@settings(deadline=None)
@given(patterns, st.integers(0, 6), st.integers(1, 4096))
def test_geometric_keeps_the_density_and_fits_its_leaf(target, log_k, groups):
  k, length = 1 << log_k, groups * target.m
  stages = Geometric(k)(target, length)
  assert stages[-1] == target
  assert {nm.density for nm in stages} == {target.density}
  first = stages[0].m // target.m
  assert first <= k and length % stages[0].m == 0
  assert first == k or length % (2 * stages[0].m), "k is the largest that fits"


def test_direct_and_never():
  assert Direct()(NM(1, 4)) == (NM(1, 4),)
  assert Never()(NM(1, 4)) == ()


@pytest.mark.parametrize("k", [0, 3, -2, 6, True])
def test_k_must_be_a_power_of_two(k):
  with pytest.raises(ValueError, match="power of two"):
    Geometric(k)
