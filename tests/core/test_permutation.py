"""Channel permutations against brute force and integer programming."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from figs_jax.core import NM, nm_mask, permute
from figs_jax.core.permutation import _Search
from figs_jax.core.permutation_methods import partitions
from figs_jax.core.permutation_moves import (
  Partitions,
  Swaps,
  gains_of,
  neighbourhood,
)


def kept(scores, pattern):
  """The sum that nm_mask keeps of scores [channels, rows]."""
  return float(
    np.sum(scores, where=np.asarray(nm_mask(scores, pattern)), dtype=np.float64)
  )


def best_value(scores, pattern):
  """The largest sum over partitions into groups, by set partitioning."""
  pattern = NM.parse(pattern)
  channels = len(scores)
  groups = list(itertools.combinations(range(channels), pattern.m))
  value = [
    np.sort(scores[list(g)], 0)[-pattern.n :].sum(dtype=np.float64)
    for g in groups
  ]
  cover = np.array([[c in g for g in groups] for c in range(channels)], float)
  result = milp(
    -np.array(value),
    constraints=LinearConstraint(cover, 1, 1),
    integrality=np.ones(len(groups)),
    bounds=Bounds(0, 1),
  )
  return -result.fun


def draw(seed, shape, heavy=False):
  rng = np.random.default_rng(seed)
  x = rng.standard_t(3, size=shape) if heavy else rng.normal(size=shape)
  return np.abs(x).astype(np.float32)


@pytest.mark.parametrize(
  "pattern, channels",
  [("2:4", 12), ("1:4", 12), ("3:4", 8), ("1:2", 8), ("2:3", 9), ("2:5", 10)],
)
def test_exhaustive_is_the_optimum_of_set_partitioning(pattern, channels):
  x = draw(channels, (channels, 5))
  order = permute(x, pattern, method="exhaustive")
  np.testing.assert_allclose(
    kept(x[order], pattern), best_value(x, pattern), rtol=1e-6
  )


@pytest.mark.parametrize("heavy", [False, True])
def test_greedy_meets_the_optimum_of_three_stripes(heavy):
  """benchmarks/permutation.py has 200 of each."""
  missed = 0
  for seed in range(5):
    x = draw(seed, (12, 64), heavy)
    best = kept(x[permute(x, method="exhaustive")], "2:4")
    got = kept(x[permute(x, escapes=15, seed=seed)], "2:4")
    assert got <= best * (1 + 1e-6)
    missed += got < best * (1 - 1e-6)
  assert missed <= 1


def test_escapes_leave_local_optima():
  shape = (24, 16)
  gains = [
    kept(x[permute(x, escapes=15)], "2:4")
    - kept(x[permute(x, escapes=0)], "2:4")
    for x in (draw(seed, shape) for seed in range(2))
  ]
  assert min(gains) >= 0 and max(gains) > 0


@pytest.mark.parametrize(
  "moves",
  [Partitions(2, 4), Partitions(1, 4), Partitions(3, 4), Partitions(1, 2)]
  + [Partitions(2, 3), Swaps(1, 8), Swaps(3, 5), Swaps(2, 4)],
  ids=str,
)
def test_gains_are_those_of_exchanged_stripes(moves):
  n, m = moves.n, moves.m
  x = np.round(draw(1, (150, 3 * m)), 1)  # with ties, and two blocks of rows

  def value(y):
    return np.sort(y, 1)[:, -n:].sum(dtype=np.float64)

  prepared = moves.prepare(x)
  for s, t in itertools.permutations(range(3), 2):
    both = np.concatenate([x[:, m * i : m * i + m] for i in (s, t)], 1)
    before = value(both[:, :m]) + value(both[:, m:])
    if isinstance(moves, Partitions):
      ways = [
        [*g, *(c for c in range(2 * m) if c not in g)]
        for g in itertools.combinations(range(2 * m), m)
        if g != tuple(range(m)) and g != tuple(range(m, 2 * m))
      ]
    else:
      ways = [moves.channels(move) for move in range(m * m)]
    best = max(value(both[:, w[:m]]) + value(both[:, w[m:]]) for w in ways)
    gains = moves.gains(prepared, prepared, s)
    np.testing.assert_allclose(gains.gain[t], best - before, atol=2e-3)
    w = moves.channels(int(gains.move[t]))
    assert sorted(w) == list(range(2 * m))
    reached = value(both[:, w[:m]]) + value(both[:, w[m:]]) - before
    np.testing.assert_allclose(reached, best - before, atol=2e-3)


@pytest.mark.parametrize("pattern, stripes", [((1, 2), 150), ((1, 8), 70)])
def test_each_pair_of_many_stripes_is_listed_once(pattern, stripes):
  search = _Search(draw(2, (5, pattern[1] * stripes)), *pattern)
  everything = gains_of(
    search.moves,
    search.prepared,
    search.prepared,
    np.arange(stripes),
    stripes,
  )
  pairs = np.isfinite(search.gain) | np.isfinite(search.gain.T)
  assert (pairs == ~np.eye(stripes, dtype=bool)).all()
  np.testing.assert_allclose(
    np.maximum(search.gain, search.gain.T)[pairs],
    np.maximum(everything.gain, everything.gain.T)[pairs],
    atol=1e-5,
  )


def test_numbers_of_partitions():
  assert [partitions(4 * s, 4) for s in (2, 3, 4)] == [35, 5775, 2627625]
  assert len(Partitions(2, 4)._ways) == 34  # and the one that changes nothing
  assert isinstance(neighbourhood(1, 8), Swaps)


@pytest.mark.parametrize(
  "method, pattern",
  [
    ("greedy", "2:4"),
    ("greedy", "1:8"),
    ("anneal", "2:4"),
    ("sinkhorn", "1:8"),
  ],
)
def test_every_method_keeps_more(method, pattern):
  x = draw(3, (32, 16), heavy=True)
  order = permute(x, pattern, method=method, escapes=3)
  assert sorted(order) == list(range(32))
  assert kept(x[order], pattern) > 1.015 * kept(x, pattern)


def test_what_moves_the_order_and_what_does_not():
  x = draw(5, (8, 3, 24))
  order = permute(x, "1:4", axis=-1, escapes=2)
  for same in (
    permute(x * np.float32(2.0**-120), "1:4", axis=-1, escapes=2),
    permute(np.moveaxis(x, -1, 0), "1:4", axis=0, escapes=2),
    permute(jnp.asarray(x), NM(1, 4), axis=2, escapes=2),
  ):
    np.testing.assert_array_equal(order, same)


@pytest.mark.parametrize("method", ["greedy", "exhaustive"])
def test_equal_scores_keep_their_order(method):
  order = permute(np.ones((12, 4), np.float32), method=method, escapes=2)
  np.testing.assert_array_equal(order, np.arange(12))


def test_sums_of_large_scores_do_not_overflow():
  x = draw(6, (8, 16)) * np.float32(1e38 / 4)
  assert kept(x[permute(x)] / 1e38, "2:4") >= kept(x / 1e38, "2:4")


@pytest.mark.parametrize(
  "scores, options, message",
  [
    (np.ones((6, 2)), {}, "length 6, not a multiple of m=4"),
    (-np.ones((8, 2)), {}, "scores of at least 0, such as abs"),
    (np.full((8, 2), np.nan), {}, "Expected finite scores"),
    (np.ones((8, 2)), {"method": "best"}, "among greedy, exhaustive, anneal"),
    (np.ones((32, 2)), {"method": "exhaustive"}, 'use method="greedy"'),
    (np.ones((8, 2)), {"escapes": -1}, "escapes"),
  ],
)
def test_wrong_arguments(scores, options, message):
  with pytest.raises(ValueError, match=message):
    permute(scores, **options)
