"""Bytes by brute force, FLOPs against the published ViT-Base table."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.engine import (
  Layers,
  cost,
  dense_bytes,
  flops,
  packed_bytes,
  train_flops,
)
from figs_jax.engine.storage import index_bits

# GFLOPs, arXiv 2402.04744, appendix D: patterns on the feed-forward layers.
PUBLISHED = {
  None: 34.71, "2:4": 23.61, "1:4": 18.06, "1:8": 15.29, "1:16": 13.90,
  "1:32": 13.20, "1:128": 12.69,
}  # fmt: skip


def vit_base(pattern):
  """Twelve blocks, width 768, 196 tokens; the products of all heads as one."""
  s, d = 196, 768
  size = {"M": s, "count": 12}
  return [
    {"name": "qkvo", "M": s, "N": d, "K": d, "count": 48},
    {"name": "logits", "N": s, "K": d, **size},
    {"name": "attend", "N": d, "K": s, **size},
    {"name": "fc1", "N": 4 * d, "K": d, "pattern": pattern, **size},
    {"name": "fc2", "N": d, "K": 4 * d, "pattern": pattern, **size},
  ]


@pytest.mark.parametrize("pattern, published", PUBLISHED.items())
def test_flops_reproduce_the_published_table(pattern, published):
  total = flops(vit_base(pattern)).sum() / 1e9
  assert total == pytest.approx(published, abs=0.01)


def test_attention_and_feed_forward_are_the_published_parts():
  parts = flops(vit_base(None)) / 1e9
  assert parts[:3].sum() == pytest.approx(12.51, abs=0.01)
  assert parts[3:].sum() == pytest.approx(22.19, abs=0.01)


def test_training_flops_are_s_plus_two():
  rows = vit_base("1:8")
  dense, sparse = flops(vit_base(None)), flops(rows)
  np.testing.assert_allclose(train_flops(rows), sparse + 2 * dense)
  leaking = train_flops(rows, leak_positive=True)
  np.testing.assert_array_equal(leaking, 3 * dense)


def test_flops_do_not_wrap():
  row = {"name": "a", "M": 2**40, "N": 2**40, "K": 2**40}
  assert flops([row]).tolist() == [2.0**121]


@settings(deadline=None)
@given(st.integers(1, 300), st.data(), st.integers(1, 50), st.integers(1, 8))
def test_packed_bytes_by_writing_every_bit(m, data, groups, itemsize):
  n = data.draw(st.integers(1, m))
  kept = groups * n
  bits = "0" * (kept * math.ceil(math.log2(m))) if n < m else ""
  written = kept * itemsize + -(-len(bits) // 8)
  assert packed_bytes(groups * m, f"{n}:{m}", itemsize) == written
  assert int(index_bits(n, m)) == (NM(n, m).metadata_bits if n < m else 0)


def test_metadata_is_the_known_share_at_2_4():
  for itemsize, share in ((2, 0.125), (1, 0.25)):
    kept = dense_bytes(2048, itemsize)
    assert packed_bytes(4096, "2:4", itemsize) == kept * (1 + share)


def test_packed_bytes_refuse_a_part_of_a_group():
  with pytest.raises(ValueError, match="size 10 is not a multiple of m=4"):
    packed_bytes(10, "2:4", 2)


def test_the_engine_moves_the_packed_weight():
  rows = vit_base("1:8")
  table = Layers.of(rows)
  moved = cost(table, "ws", itemsize=4).dram_bytes
  for i, row in enumerate(rows):
    packed = packed_bytes(row["N"] * row["K"], row.get("pattern"), 4)
    rest = 4 * row["M"] * (row["K"] + row["N"])
    assert moved[i] == packed + rest
