"""What a sweep's axes may be, and which of their points are possible."""

import inspect
import itertools

import numpy as np
import pytest

from figs_jax.core.pattern import NM
from figs_jax.engine import cost, parse
from figs_jax.engine.sweeps._sweep import sweep
from figs_jax.engine.sweeps.axes import as_axes, read_axis

SIZE = {"M": [4], "N": [8], "K": [24]}


@pytest.mark.parametrize("name", ["M", "rows", "pattern", "rows,cols"])
@pytest.mark.parametrize("values", ["196", "1:2", "", 196, None, np.array(8)])
def test_an_axis_is_a_list(name, values):
  # Past the tests' own hook, which would refuse other types.
  read = inspect.unwrap(read_axis)
  with pytest.raises(ValueError, match="give a list of values, as in") as error:
    read(parse("ws"), name, values, ())
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "values, got",
  [
    (["196"], "'196'"),
    ([None], "None"),
    ([1.5], "1.5"),
    ([True], "True"),
    ([3, 0, -1], "0"),
    ([[1, 2]], "[1, 2]"),
    ([2**31], str(2**31)),
  ],
)
def test_a_value_that_is_no_size_is_named(values, got):
  with pytest.raises(ValueError) as error:
    read_axis(parse("ws"), "rows", values, ())
  message = f"sweep axis 'rows': got {got}; give integers from 1 to"
  assert str(error.value).startswith(message)


def test_no_pattern_is_dense():
  values = [None, "dense", "4:4", NM(1, 2)]
  found = read_axis(parse("ws"), "pattern", values, ())
  assert (found["n"] == found["m"]).tolist() == [True, True, True, False]


@pytest.mark.parametrize("steps", [0, -1])
def test_blocks_are_visited(steps):
  designs = sweep("ws", SIZE | {"rows": [4, 8]})
  for ask in (
    lambda: designs.smallest("cycles", steps=steps),
    lambda: designs.pareto("cycles", "energy_pj", steps=steps),
    lambda: designs.summary("cycles", steps=steps),
  ):
    with pytest.raises(ValueError, match=f"steps={steps}: give 1 or more"):
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
