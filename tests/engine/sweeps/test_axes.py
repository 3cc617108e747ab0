"""What an axis may be, and the designs that axes make."""

import inspect

import numpy as np
import pytest

from figs_jax.core.pattern import NM
from figs_jax.engine import parse, sweep
from figs_jax.engine.sweeps.axes import as_axes, designs, read_axis


@pytest.mark.parametrize("name", ["M", "rows", "pattern", "rows,cols"])
@pytest.mark.parametrize("values", [196, None, 8.5, np.array(8), {8: 9}])
def test_an_axis_is_a_list_or_text(name, values):
  # Past the tests' own hook, which would refuse other types.
  read = inspect.unwrap(as_axes)
  with pytest.raises(ValueError, match="expected a list of values") as error:
    read({name: values})
  assert "\n" not in str(error.value)


def test_axes_as_text_are_axes_as_lists():
  want = {"rows": (8, 16, 24), "pattern": ("1:2", "1:4")}
  for axes in (
    "rows=8,16,...,24; pattern=1:2,1:4",
    ["rows=8,16,24", "pattern=1:2,1:4"],
    {"rows": "8,16,...,24", "pattern": ("1:2", "1:4")},
  ):
    assert as_axes(axes) == want
  for none in ("", [], {}):
    with pytest.raises(ValueError, match="no axes; give at least one"):
      as_axes(none)
  with pytest.raises(ValueError, match="axis 'rows': no values"):
    as_axes({"rows": []})


@pytest.mark.parametrize(
  "values, got",
  [
    (["196"], "'196'"),
    ([None], "None"),
    ([1.5], "1.5"),
    ([8, 1.5], "1.5"),
    ([True], "True"),
    ([3, 0, -1], "0"),
    ([[1, 2]], "[1, 2]"),
    ([2**31], str(2**31)),
    ([8, 2**70], str(2**70)),
  ],
)
def test_a_value_that_is_not_a_size_is_named(values, got):
  with pytest.raises(ValueError) as error:
    read_axis(parse("ws"), "rows", values)
  message = f"sweep axis 'rows': got {got}; expected integers from 1 to"
  assert str(error.value).startswith(message)


def test_no_pattern_is_dense():
  values = [None, "dense", "4:4", NM(1, 2)]
  columns = read_axis(parse("ws"), "pattern", values)
  assert (columns["n"] == columns["m"]).tolist() == [True, True, True, False]


def test_designs_are_the_product_of_the_axes_an_engine_has():
  engines = [parse("ws:8x8:overlap=full"), parse("figs:8x4"), parse("tpu:v5e")]
  axes = {"rows": (8, 16), "alpha": (1, 3), "overlap": ("none",)}
  made = designs(engines, axes)
  assert list(map(str, made)) == [
    "ws:8x8:overlap=none",
    "ws:16x8:overlap=none",
    "figs:8x4:alpha=1:overlap=none",
    "figs:8x4:alpha=3:overlap=none",
    "figs:16x4:alpha=1:overlap=none",
    "figs:16x4:alpha=3:overlap=none",
    "tpu:v5e",
  ]
  assert [each.rows for each in made[:-1]] == [8, 16, 8, 8, 16, 16]
  assert made[-1] is engines[-1]
  # A name reads back; one of the user's own gives way to it.
  assert [parse(str(each)) for each in made[:-1]] == made[:-1]
  own = designs([parse("ws:8x8:name=mine")], {"rows": (8, 16)})
  assert list(map(str, own)) == ["ws:8x8", "ws:16x8"]
  pairs = designs([parse("ws:8x8")], {"rows,cols": ((8, 4), (4, 8))})
  assert list(map(str, pairs)) == ["ws:8x4", "ws:4x8"]


def test_designs_name_what_is_swept():
  made = designs([parse("tpu:v5e")], {"hbm": (819, 1640)})
  assert list(map(str, made)) == ["tpu:v5e:hbm=819", "tpu:v5e:hbm=1640"]


@pytest.mark.parametrize(
  ("axes", "words"),
  [
    ({"row": (8,)}, "axis 'row' of the engines: did you mean 'rows'"),
    ({"rows": ("x",)}, "sweep ws:rows=x: "),
    ({"block": (16,)}, "sweep figs:block=16: .* set alpha=15"),
    ({"M": (8,)}, "axis 'M': the layers have it"),
    ({"batch": (8,)}, "axis 'batch' is of models"),
    ({"rows": range(1, 1001), "cols": range(1, 1001)}, "2,000,000 designs"),
  ],
)
def test_bad_designs(axes, words):
  with pytest.raises(ValueError, match=words) as error:
    designs([parse("ws"), parse("figs")], axes)
  assert "\n" not in str(error.value)


def test_selected_points_name_choices_at_their_defaults():
  gemm = {"M": [8], "N": [8], "K": [8], "overlap": ["none", "full"]}
  every = sweep("figs", gemm | {"alpha": [7, 15]}).smallest("cycles", 4)
  assert set(every["design"].tolist()) == {
    f"figs:32x16:alpha={alpha}:overlap={overlap}"
    for alpha in (7, 15) for overlap in ("none", "full")
  }  # fmt: skip
