"""Sweeps as text: what dots stand for, and which engines they give."""

import pytest

from figs_jax.engine import Layers, parse, report
from figs_jax.engine.sweeps.text import designs, read_axes, swept


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("1:2,1:4,...,1:128", "1:2 1:4 1:8 1:16 1:32 1:64 1:128"),
    ("1:2,...,1:16", "1:2 1:4 1:8 1:16"),
    ("dense,1:2,...,1:16", "dense 1:2 1:4 1:8 1:16"),
    ("8,16,…,64", "8 16 32 64"),
    ("1,3,...,27,5", "1 3 9 27 5"),
    ("2:4,2:8,...,2:16,dense", "2:4 2:8 2:16 dense"),
    ("4,...,8", "4 8"),
    ("none,full", "none full"),
  ],
)
def test_dots(text, values):
  assert read_axes(f"x={text}") == {"x": tuple(values.split())}


def test_several_axes_in_one_text_or_in_many():
  want = {"rows": ("8", "16"), "pattern": ("1:2",)}
  assert read_axes("rows=8,16; pattern=1:2;") == want
  assert read_axes(["rows = 8, 16", "pattern=1:2"]) == want
  assert read_axes("") == {}


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("rows", "write name=value"),
    ("rows=", "write name=value"),
    ("=8", "write name=value"),
    ("rows=8;rows=16", "'rows' is given twice"),
    ("rows=8,,16", "a value is missing"),
    ("rows=8,8", "a value is given twice"),
    ("rows=...,8", "before and after the dots"),
    ("rows=8,...", "before and after the dots"),
    ("rows=8,...,...,64", "before and after the dots"),
    ("rows=8,...,50", "do not lead from 8 to 50"),
    ("rows=8,...,8", "do not lead from 8 to 8"),
    ("rows=8,12,...,64", "do not lead from 12 to 64"),
    ("rows=64,32,...,8", "do not lead from 32 to 8"),
    ("rows=0,...,8", "whole numbers from 1, not '0'"),
    ("p=1:2,2:4,...,1:8", "do not lead from 2:4 to 1:8"),
    ("p=full,...,none", "whole numbers from 1, not 'full'"),
  ],
)
def test_bad_axes(text, words):
  with pytest.raises(ValueError, match=words) as caught:
    read_axes(text)
  assert "\n" not in str(caught.value)


def test_designs_are_the_product_of_the_axes_an_engine_has():
  engines = [parse("ws:8x8:overlap=full"), parse("figs:8x4"), parse("tpu:v5e")]
  axes = {"rows": ("8", "16"), "alpha": ("1", "3"), "overlap": ("none",)}
  found = designs(engines, axes)
  assert list(map(str, found)) == [
    "ws:8x8",
    "ws:16x8",
    "figs:8x4:alpha=1",
    "figs:8x4:alpha=3",
    "figs:16x4:alpha=1",
    "figs:16x4:alpha=3",
    "tpu:v5e",
  ]
  assert [each.rows for each in found[:-1]] == [8, 16, 8, 8, 16, 16]
  assert found[-1] is engines[-1]
  # A name reads back; one of the user's own gives way to it.
  assert [parse(str(each)) for each in found[:-1]] == found[:-1]
  own = designs([parse("ws:8x8:name=mine")], {"rows": ("8", "16")})
  assert list(map(str, own)) == ["ws:8x8", "ws:16x8"]


def test_designs_that_a_spec_cannot_tell_apart_say_what_they_are():
  found = designs([parse("tpu:v5e")], {"hbm": ("820", "1640")})
  assert list(map(str, found)) == ["tpu:v5e", "tpu:v5e:hbm=1640"]


def test_swept_is_a_report_per_workload_and_pattern():
  dense = [
    {"name": n, "M": 8, "N": 8, "K": 32, "count": 3} for n in ("qk", "ff")
  ]
  table = Layers.of([dense[0], dense[1] | {"pattern": "1:2"}])
  axes = read_axes("pattern=dense,1:4;rows=8,16")
  made = swept({"a": table, "b": table}, [parse("ws")], axes, itemsize=4)
  assert [(t.workload, t.pattern, t.engine) for t in made.totals] == [
    (label, pattern, f"ws:{rows}x16")
    for label in "ab"
    for pattern in ("dense", "1:4")
    for rows in (8, 16)
  ]
  assert [row.pattern for row in made.rows[4:8]] == ["dense", "1:4"] * 2
  alone = report(table.with_pattern("1:4"), ["ws:16x16"], itemsize=4)
  assert made.rows[6:8] == alone.rows
  with pytest.raises(ValueError, match="pattern: Invalid N:M pattern .4."):
    swept({"a": table}, [parse("ws")], {"pattern": ("4",)})
  many = tuple(map(str, range(1, 1001)))
  axes = {"pattern": ("1:2",) * 1001, "rows": many}
  with pytest.raises(ValueError, match="are more than 2000000 rows"):
    swept({"a": table}, [parse("ws")], axes)


def test_bad_designs():
  engines = [parse("ws"), parse("figs")]
  with pytest.raises(ValueError, match="none of the engines has it, did you"):
    designs(engines, {"row": ("8",)})
  with pytest.raises(ValueError, match="sweep ws:rows=x: .* no whole number"):
    designs(engines, {"rows": ("x",)})
  with pytest.raises(ValueError, match=r"got '16'; give a list.*\['16'\]"):
    designs(engines, {"rows": "16"})
  with pytest.raises(ValueError, match="sweep figs:block=16: .* set alpha=15"):
    designs(engines, {"block": ("16",)})
  many = tuple(map(str, range(1, 1001)))
  with pytest.raises(ValueError, match="1000000 designs"):
    designs(engines, {"rows": many, "cols": many})
