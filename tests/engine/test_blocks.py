"""What blocks hold and how long they swap, against graphs drawn by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import cost
from figs_jax.engine.blocks import (
  block_counts,
  check_shared_masks,
  exchanges,
  fit,
  worst_exchange,
)
from figs_jax.engine.simulator.figs import matchings

laws = settings(deadline=None, max_examples=60)


def random_mask(rng, K, N, n, m):
  """n of every m rows, at most n of a last part."""
  mask = np.zeros((K, N), bool)
  for top, column in itertools.product(range(0, K, m), range(N)):
    size = min(m, K - top)
    mask[top + rng.permutation(size)[:n], column] = True
  return mask


def degree(outputs, run):
  """Largest degree of one block's wants; outputs[slot][lane] are indices."""
  edges = {
    (slot * run + place, index)
    for slot, lanes in enumerate(outputs)
    for indices in lanes
    for place, index in enumerate(sorted(indices))
  }
  pes, values = ([edge[i] for edge in edges] for i in (0, 1))
  return max([1, *(pes.count(x) for x in pes), *map(values.count, values)])


def by_blocks(mask, block, run, rows, cols, beta):
  """kappa of each fold, one block after the other."""
  used, s = rows // block * block, block // run
  K, N = mask.shape
  tops, lefts = range(0, K, used), range(0, N, cols * s * beta)
  kappa = np.ones((len(tops), len(lefts)), int)
  for (i, top), (j, left) in itertools.product(
    enumerate(tops), enumerate(lefts)
  ):
    for first, column in itertools.product(
      range(top, min(top + used, K), block), range(cols)
    ):
      start = left + column * s * beta
      outputs = [
        [
          np.flatnonzero(mask[first : first + block, o])
          for o in range(start + slot * beta, start + (slot + 1) * beta)
          if o < N
        ]
        for slot in range(s)
      ]
      kappa[i, j] = max(kappa[i, j], degree(outputs, run))
  return kappa


@laws
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30),
       st.sampled_from([1, 2, 4, 8]), st.data())  # fmt: skip
def test_exchanges_are_the_largest_degree_of_a_folds_blocks(
  seed, K, N, block, data
):
  n = data.draw(st.integers(1, block))
  beta, cols = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
  rows = block * data.draw(st.integers(1, 3))
  mask = random_mask(np.random.default_rng(seed), K, N, n, block)
  sizes = {"block": block, "run": n, "rows": rows, "cols": cols, "beta": beta}
  got = exchanges(mask, **sizes, mask_group=1)
  np.testing.assert_array_equal(got, by_blocks(mask, **sizes))
  assert got.max() <= worst_exchange(n, block, beta)
  shared = mask[:, ::beta].repeat(beta, 1)[:, :N]
  got = exchanges(shared, **sizes, mask_group=beta)
  np.testing.assert_array_equal(got, by_blocks(shared, **sizes))
  assert got.max() <= worst_exchange(n, block, 1) == block // n


@pytest.mark.parametrize(
  "block, n, lanes",
  [
    *((4, n, 1) for n in (1, 2, 3, 4)),
    *((2, n, lanes) for n in (1, 2) for lanes in (1, 2, 3)),
    *((4, n, lanes) for n, lanes in [(2, 2), (3, 2), (3, 3), (4, 2)]),
  ],
)
def test_the_worst_exchange_is_reached_by_some_mask(block, n, lanes):
  s = block // n
  kept = list(itertools.combinations(range(block), n))
  most = max(
    degree([flat[i * lanes : (i + 1) * lanes] for i in range(s)], n)
    for flat in itertools.product(kept, repeat=s * lanes)
  )
  assert worst_exchange(n, block, lanes) == most


@laws
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 2)))
def test_matchings_hold_all_edges_in_as_many_as_the_largest_degree(edges):
  matched = matchings(np.array(edges, int).reshape(-1, 2), 5)
  wants = set(edges)
  ends = [[edge[i] for edge in wants] for i in (0, 1)]
  most = max([0, *(x.count(i) for x in ends for i in x)])
  assert len(matched) == most
  kept = [(u, v) for match in matched for u, v in enumerate(match) if v >= 0]
  assert len(kept) == len(wants) and set(kept) == wants
  for match in matched:
    values = match[match >= 0]
    assert len(set(values)) == len(values)


def test_balanced_columns_never_wait():
  # Every value of a block is kept by exactly one of the outputs of a column.
  rng = np.random.default_rng(0)
  tiles = [rng.permutation(np.eye(8, dtype=bool)) for _ in range(12)]
  mask = np.block([tiles[i : i + 3] for i in range(0, 12, 3)])
  sizes = {"block": 8, "run": 1, "rows": 16, "cols": 2}
  assert (exchanges(mask, **sizes, beta=1, mask_group=1) == 1).all()
  shared = mask.repeat(4, 1)
  assert (exchanges(shared, **sizes, beta=4, mask_group=4) == 1).all()
  two = mask | np.roll(mask, 1, 0)
  assert exchanges(two, **sizes | {"run": 2}, beta=1, mask_group=1).max() == 2


@laws
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_fit_is_the_fullest_block_and_never_above_the_worst(seed, block, times):
  m = 4 * times
  rng = np.random.default_rng(seed)
  n = int(rng.integers(1, m + 1))
  mask = random_mask(rng, 24, 5, n, m)
  got = int(fit(np.array([n]), np.array([m]), block, [mask])[0])
  worst = int(fit(n, m, block))
  assert got <= worst
  if n < m:
    fullest = max(
      mask[top : top + block].sum(0).max() for top in range(0, 24, block)
    )
    assert got == max(fullest, 1) == max(block_counts(mask, block).max(), 1)
  else:
    assert got == worst == block


def test_a_mask_that_is_not_shared_is_refused():
  mask = np.eye(4, dtype=bool)
  check_shared_masks(mask, 1)
  check_shared_masks(mask.repeat(3, 1)[:, :11], 3)  # a last group of two
  with pytest.raises(ValueError, match="output 1 has another mask than output"):
    check_shared_masks(mask, 2)


@pytest.mark.parametrize(
  "spec",
  [
    "ws:8x8",
    "os:8x8",
    "is:8x8",
    "ws:8x8:sparse=false",
    "vegeta-s-2-2:8x4",
    "vegeta-s-1-1:1x1:overlap=full:interleave=2",
    "vegeta-d-1-2:8x4",
    "figs:8x4",
    "figs:8x4:exchange=swap:beta=2",
    "tensorcore:h200",
    "tensorcore:h200:fallback=true",
    "gpu:h200",
    "tpu:v5e",
    "csr:h200",
  ],
)
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:8"])
def test_a_mask_that_keeps_nothing_runs_as_one_of_a_block(spec, pattern):
  size = {"name": "ff", "M": 9, "N": 10, "K": 32, "pattern": pattern}
  empty, sparse = np.zeros((32, 10), bool), np.zeros((32, 10), bool)
  sparse[::8] = True  # one of every 8
  none, one = (cost([size | {"mask": mask}], spec) for mask in (empty, sparse))
  fields = {field.name for field in dataclasses.fields(none)}
  for name in fields:
    assert np.isfinite(getattr(none, name)).all(), name
  # Its stored zeros are multiplied like other weights.
  assert 0 < none.utilisation[0] <= 1
  assert 0 < none.cycles[0] <= one.cycles[0]
  for name in fields - {"stall_exchange", "cycles", "utilisation"}:
    if "swap" not in spec:
      assert getattr(none, name) == getattr(one, name), name
