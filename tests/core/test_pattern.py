"""NM: what is legal, what it says of itself."""

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from figs_jax.core import NM

counts = st.integers(1, 4096)


@given(counts, counts)
def test_text_and_pattern_are_the_same_thing(n, m):
  n, m = min(n, m), max(n, m)
  nm = NM(n, m)
  assert NM.parse(str(nm)) == nm == NM.parse(f" {n} : {m} ") == NM.parse(nm)
  assert hash(NM.parse(str(nm))) == hash(nm)
  assert nm.density == n / m and nm.is_dense == (n == m)
  assert nm.metadata_bits == math.ceil(math.log2(m))


@pytest.mark.parametrize(
  "n, m",
  [(0, 4), (5, 4), (-1, 4), (1, 0), (1.0, 4), ("1", "4"), (True, 4), (1, True)]
  + [(None, 4), (2, -4), (np.float32(1), 4)],
)
def test_illegal_counts_say_what_is_legal(n, m, unchecked):
  with pytest.raises(ValueError, match=r"NM\(.*1 <= n <= m.*NM\(2, 4\)"):
    NM(n, m)


@pytest.mark.parametrize(
  "text", ["1:", ":4", "", "1", "4", "a:b", "1:2:4", "-1:4", "1.5:4", "2/4"]
)
def test_illegal_text_is_quoted(text):
  message = f"Invalid N:M pattern {text!r}: expected 'n:m', for example '2:4'."
  with pytest.raises(ValueError, match=re.escape(message)):
    NM.parse(text)


@pytest.mark.parametrize("text", ["0:4", "5:4"])
def test_text_with_illegal_counts(text):
  message = f"Invalid N:M pattern {text!r}: expected 1 <= n <= m, for example"
  with pytest.raises(ValueError, match=re.escape(message)):
    NM.parse(text)


def test_numpy_integers_become_plain_ones(unchecked):
  nm = NM(np.int64(2), np.int32(4))
  assert type(nm.n) is type(nm.m) is int and nm == NM(2, 4)


def test_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    NM(2, 4).n = 1


@pytest.mark.parametrize(
  "text, bits", [("1:1", 0), ("1:2", 1), ("2:4", 2), ("1:5", 3), ("1:128", 7)]
)
def test_metadata_bits_published_for_n_m(text, bits):
  assert NM.parse(text).metadata_bits == bits
