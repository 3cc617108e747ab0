"""Which points of a sweep are possible, and how many blocks hold them."""

import itertools

import pytest

from figs_jax.engine import cost
from figs_jax.engine.sweeps._sweep import sweep

SIZE = {"M": [4], "N": [8], "K": [24]}


@pytest.mark.parametrize("steps", [0, -1])
def test_blocks_are_visited(steps):
  designs = sweep("ws", SIZE | {"rows": [4, 8]})
  for ask in (
    lambda: designs.smallest("cycles", steps=steps),
    lambda: designs.pareto("cycles", "energy_pj", steps=steps),
    lambda: designs.summary("cycles", steps=steps),
  ):
    with pytest.raises(ValueError, match=f"steps={steps}: expected an integer"):
      ask()


@pytest.mark.parametrize(
  "spec",
  ["tensorcore:h200", "gpu:h200", "vegeta-s-2-2", "vegeta-d-1-2", "figs:8x4"],
)
def test_what_is_possible_is_what_the_engine_runs(spec):
  patterns = [f"{n}:{m}" for n, m in itertools.product((1, 2), range(2, 13))]

  def runs(pattern):
    row = {"name": "ff", **{key: size[0] for key, size in SIZE.items()}}
    try:
      return bool(cost([row | {"pattern": pattern}], spec).cycles[0])
    except ValueError:
      return False

  able = [pattern for pattern in patterns if runs(pattern)]
  if len(able) < len(patterns):
    with pytest.raises(ValueError, match="possible with no value"):
      sweep(spec, SIZE | {"pattern": patterns})
  assert len(sweep(spec, SIZE | {"pattern": able})) == len(able)
