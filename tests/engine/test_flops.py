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
  flops,
  packed_bytes,
  step_cost,
)
from figs_jax.engine.blocks import index_bits
from figs_jax.engine.spec import check_itemsize

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


def multiplied(*shapes):
  """Multiplications of products of these factors, zeros left out."""
  return sum(int((np.ones(a) @ b).sum()) for a, b in shapes)


@pytest.mark.parametrize("leak", [False, True])
def test_training_flops_count_the_products_of_a_step(leak):
  M, N, K = 5, 12, 16
  weight = (np.arange(K) % 8 < 3)[:, None] * np.ones(N)  # 3:8
  forward = np.ones((K, N)) if leak else weight
  step = multiplied(
    ((M, K), forward),  # y = x w
    ((M, N), np.ones((N, K))),  # dx = dy w^T, whose groups lie across
    ((K, M), np.ones((M, N))),  # dw = x^T dy
  )
  row = {"name": "a", "M": M, "N": N, "K": K, "pattern": "3:8", "count": 2}
  counted = step_cost([row], "ws", forward=not leak).flops
  assert counted.total == 2 * 2 * step


@pytest.mark.parametrize("pattern", ["1:4", "3:4", "5:8", "4:4", "1:32"])
def test_flops_of_a_depth_that_m_does_not_divide(pattern):
  nm = NM.parse(pattern)
  for K in (1, 2, 9, 33, 38):
    mask = (np.arange(K) % nm.m < nm.n)[:, None] * np.ones(6)
    counted = multiplied(((5, K), mask))
    row = {"name": "a", "M": 5, "N": 6, "K": K, "pattern": nm, "count": 3}
    assert flops([row]).tolist() == [2 * 3 * counted]
    assert step_cost([row], "csr:h200").flops.forward == 2 * 3 * counted
    assert cost([row], "csr:h200").metadata_bytes == 6 * (
      4 * mask[:, 0].sum() + 4
    )


def test_flops_do_not_wrap():
  row = {"name": "a", "M": 2**40, "N": 2**40, "K": 2**40}
  assert flops([row]).tolist() == [2.0**121]


@settings(deadline=None)
@given(st.integers(2, 300), st.data(), st.integers(1, 50), st.integers(1, 8))
def test_packed_bytes_by_writing_every_bit(m, data, groups, itemsize):
  n = data.draw(st.integers(1, m - 1))
  rng = np.random.default_rng(groups)
  places = rng.random((groups, m)).argsort(1)[:, :n].ravel()
  # As long as the longest index, read back as it was written.
  width = len(f"{m - 1:b}")
  text = "".join(f"{place:0{width}b}" for place in places)
  written = np.packbits([int(bit) for bit in text])
  bits = np.unpackbits(written)[: len(text)].reshape(-1, width)
  np.testing.assert_array_equal(bits @ 2 ** np.arange(width)[::-1], places)
  values = np.empty(places.size, f"V{itemsize}")
  packed = packed_bytes(groups * m, f"{n}:{m}", itemsize)
  assert packed == values.nbytes + written.nbytes
  assert int(index_bits(n, m)) == width == math.ceil(math.log2(m))
  assert NM(n, m).metadata_bits == width
  assert packed_bytes(groups * m, f"{m}:{m}", itemsize) == groups * m * itemsize
  assert index_bits(m, m) == 0


def test_metadata_is_the_known_share_at_2_4():
  for itemsize, share in ((2, 0.125), (1, 0.25)):
    kept = 2048 * itemsize
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


@pytest.mark.parametrize(
  "itemsize", [0, -1, 2.5, math.nan, math.inf, "2", None]
)
def test_an_itemsize_is_a_whole_number_of_bytes(itemsize):
  with pytest.raises(
    ValueError, match=f"itemsize: expected bytes .*got .*{itemsize}"
  ):
    check_itemsize(itemsize)


@pytest.mark.parametrize(
  "spec", ["ws", "vegeta", "figs", "tensorcore:h200", "csr:h200"]
)
def test_every_engine_refuses_values_without_bytes(spec):
  row = {"name": "ff", "M": 8, "N": 8, "K": 8, "pattern": "1:4"}
  check_itemsize(np.int64(1))
  assert cost([row], spec, itemsize=1).cycles[0] > 0
  for itemsize in (0, -1):
    with pytest.raises(
      ValueError, match=f"itemsize: .*got {itemsize}$"
    ) as error:
      cost([row], spec, itemsize=itemsize)
    assert "\n" not in str(error.value)
