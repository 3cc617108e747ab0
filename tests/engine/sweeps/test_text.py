"""The language of sweeps: what dots stand for, quantities and conditions."""

import operator

import pytest

from figs_jax.engine.sweeps.text import (
  read_axes,
  read_conditions,
  read_quantity,
)


@pytest.mark.parametrize(
  ("text", "values"),
  [
    # Two numbers go on in equal steps.
    ("8,16,...,64", [8, 16, 24, 32, 40, 48, 56, 64]),
    ("0,1,...,4", [0, 1, 2, 3, 4]),
    ("64,48,...,16", [64, 48, 32, 16]),
    ("8,16,...,24", [8, 16, 24]),
    ("1,2,3,...,6", [1, 2, 3, 4, 5, 6]),
    # Three may multiply.
    ("8,16,32,…,256", [8, 16, 32, 64, 128, 256]),
    ("1,3,9,...,81,5", [1, 3, 9, 27, 81, 5]),
    ("4,8,16,...,32", [4, 8, 16, 32]),
    # What follows dots goes on from their end.
    ("1,2,...,4,8,...,16", [1, 2, 3, 4, 8, 12, 16]),
    ("1,2,...,4,8,16,...,64", [1, 2, 3, 4, 8, 16, 32, 64]),
    # Patterns multiply m.
    ("1:2,1:4,...,1:128", [f"1:{2**i}" for i in range(1, 8)]),
    ("1:2,...,1:16", ["1:2", "1:4", "1:8", "1:16"]),
    ("dense,1:2,...,1:8", ["dense", "1:2", "1:4", "1:8"]),
    ("2:4,2:12,...,2:108,dense", ["2:4", "2:12", "2:36", "2:108", "dense"]),
    ("none,full", ["none", "full"]),
    ("-1,1.5", [-1, "1.5"]),
  ],
)
def test_dots(text, values):
  assert read_axes(f"x={text}") == {"x": tuple(values)}


def test_equal_steps_give_as_many_values_as_they_say():
  assert len(read_axes("rows=8,16,...,256")["rows"]) == 32
  assert len(read_axes("rows=8,16,32,...,256")["rows"]) == 6
  assert len(read_axes("rows=1,2,...,1000000")["rows"]) == 10**6


def test_several_axes_in_one_text_or_in_many():
  want = {"rows": (8, 16), "pattern": ("1:2",)}
  assert read_axes("rows=8,16; pattern=1:2;") == want
  assert read_axes(["rows = 8, 16", "pattern=1:2"]) == want
  assert read_axes("") == {}
  assert read_axes("rows,cols=8x4, 4x8") == {"rows,cols": ((8, 4), (4, 8))}


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("rows", "expected name=value"),
    ("rows=", "expected name=value"),
    ("=8", "expected name=value"),
    ("rows=8;rows=16", "'rows' is given twice"),
    ("rows=8,,16", "a value is missing"),
    ("rows=8,8", "a value is given twice"),
    ("rows=8,16,...,32,24", "a value is given twice"),
    ("rows=...,8", "before and after the dots"),
    ("rows=8,...", "before and after the dots"),
    ("rows=8,16,...,...,64", "before and after the dots"),
    ("rows=8,...,64", r"two for equal steps \(8,16,...,64\) or three"),
    ("rows=8,16,...,50", "steps of 8 do not lead from 16 to 50; end at 48"),
    ("rows=8,16,...,16", "steps of 8 do not lead from 16 to 16"),
    ("rows=8,16,...,8", "steps of 8 do not lead from 16 to 8; end at 24"),
    ("rows=8,8,...,8", "8,8 go on neither in equal steps nor by a whole"),
    ("rows=8,12,24,...,96", "8,12,24 go on neither"),
    ("rows=64,32,16,...,2", "64,32,16 go on neither"),
    ("rows=0,0,1,...,9", "0,0,1 go on neither"),
    ("rows=8,16,32,...,200", "multiplying by 2 .* from 32 to 200; end at 128"),
    ("rows=1,2,...,9999999999", "stand for 9,999,999,996 values; expected at"),
    ("p=1:2,2:4,...,1:8", "keep n; 1:2, 2:4, 1:8 do not"),
    ("p=1:2,1:3,...,1:8", "multiply m by a whole number"),
    ("p=1:2,1:2,...,1:8", "multiplying by 1 does not lead"),
    ("p=1:2,...,1:9", "multiplying by 2 does not lead from 2 to 9; end at 8"),
    ("p=full,...,none", "whole numbers or patterns n:m, got 'full'"),
    ("p=1:2,...,8", "patterns n:m, got 8"),
    ("rows,cols=8x8,...,16x16", "whole numbers or patterns"),
    ("x" * 10**6, "expected name=value"),
  ],
)
def test_bad_axes(text, words):
  with pytest.raises(ValueError, match=words) as caught:
    read_axes(text)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_quantities():
  assert read_quantity("cycles") == (1, ("cycles",))
  assert read_quantity(" -rows * cols*.5 ") == (-0.5, ("rows", "cols"))
  assert read_quantity("1e-3*M*2") == (2e-3, ("M",))


def test_conditions():
  (first, second) = read_conditions("rows*cols <= 1024; n=1;")
  assert first == ("rows*cols", operator.le, "1024")
  assert second == ("n", operator.eq, "1")


@pytest.mark.parametrize(
  "text",
  ["", "a b", "a**b", "a+b", "a/b", "f(a)", "__import__('os')", "a.b", "--a"],
)
def test_bad_quantities(text):
  with pytest.raises(ValueError, match="expected a product of fields") as error:
    read_quantity(text)
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError):
    read_conditions(f"{text}<=1")


@pytest.mark.parametrize("text", ["a", "a<b<c", "a=<b", "a<>b", "<1", ";", ""])
def test_bad_conditions(text):
  with pytest.raises(
    ValueError, match="sweep condition.*expected one"
  ) as error:
    read_conditions(text)
  assert "\n" not in str(error.value)
