"""Regrowth of masks against a loop over groups in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core.masks import is_nm, nm_mask
from figs_jax.core.regrow import regrow_mask
from figs_jax.core.scores import random_order

KEY = jax.random.key(3)


def setup(shape, pattern, axis, seed=0):
  w, g = jax.random.normal(jax.random.key(seed), (2, *shape))
  mask = nm_mask(jnp.abs(w), pattern, axis)
  return w, jnp.abs(g), mask


def by_hand(w, growth, mask, drops, n):
  """Groups are columns; `drops[c]` of column c's kept give way."""
  new = np.zeros_like(mask)
  for c in range(w.shape[1]):
    kept = [i for i in range(len(w)) if mask[i, c]]
    kept.sort(key=lambda i: (-abs(w[i, c]), i))
    kept = kept[: max(n - drops[c], 0)]
    rest = [i for i in range(len(w)) if i not in kept]
    rest.sort(key=lambda i: (-growth[i, c], i))
    new[kept + rest[: n - len(kept)], c] = True
  return new


@pytest.mark.parametrize("n,m,share", [(2, 8, 0.5), (4, 16, 0.25), (3, 6, 1.0)])
def test_whole_shares_drop_the_smallest_and_grow_the_largest(n, m, share):
  w, growth, mask = setup((m, 40), f"{n}:{m}", 0)
  got = regrow_mask(KEY, w, growth, mask, share, f"{n}:{m}", 0)
  drops = np.full(40, int(share * n))
  wanted = by_hand(*map(np.asarray, (w, growth, mask)), drops, n)
  np.testing.assert_array_equal(got, wanted)


def test_a_fraction_is_rounded_at_random_with_the_right_mean():
  w, _, mask = setup((8, 20_000), "2:8", 0)
  growth = jnp.where(mask, 0.0, 1.0)  # what is dropped does not return
  new = regrow_mask(KEY, w, growth, mask, 0.35, "2:8", 0)
  dropped = np.asarray(jnp.sum(mask & ~new, 0))
  assert set(dropped) == {0, 1}
  error = np.sqrt(0.7 * 0.3 / 20_000)
  assert abs(dropped.mean() - 0.7) < 4 * error
  again = regrow_mask(jax.random.key(4), w, growth, mask, 0.35, "2:8", 0)
  assert (again != new).any()


def test_set_grows_any_entry_of_a_group_alike():
  """1:8 at share .35: of eight entries one grows where one was dropped."""
  groups = 20_000
  w, _, mask = setup((8, groups), "1:8", 0)
  growth = random_order(KEY, (8, groups), 8, 0)
  new = regrow_mask(KEY, w, growth, mask, 0.35, "1:8", 0)
  old, grown = (np.argmax(m, 0) for m in (mask, new))
  # An entry that was just dropped may return.
  moved, share = (old != grown).mean(), 0.35 * 7 / 8
  assert abs(moved - share) < 4.5 * np.sqrt(share * (1 - share) / groups)
  counts = np.bincount((grown - old)[old != grown] % 8, minlength=8)[1:]
  expected = counts.sum() / 7
  assert ((counts - expected) ** 2 / expected).sum() < 6 + 4.5 * np.sqrt(12)


def test_scope_leaf_drops_the_smallest_of_the_kernel():
  w, growth, mask = setup((16, 30), "2:4", 0)
  growth = jnp.where(mask, 0.0, growth)
  new = regrow_mask(KEY, w, growth, mask, 0.2, "2:4", 0, scope="leaf")
  magnitudes = np.sort(np.abs(np.asarray(w))[np.asarray(mask)])
  count = int(0.2 * len(magnitudes))
  wanted = np.asarray(mask) & (np.abs(np.asarray(w)) < magnitudes[count])
  np.testing.assert_array_equal(np.asarray(mask & ~new), wanted)
  assert is_nm(new, "2:4", 0)


@pytest.mark.parametrize(("columns", "count"), [(3, 1), (5, 3), (9, 5)])
def test_scope_leaf_truncates_the_count_as_rigl_does(columns, count):
  # .3 of 6, 10 and 18 kept is 1.8, 3 and 5.4; int(float32) as in RigL's code,
  # in which .3 of 10 is 3.0000001.
  w, growth, mask = setup((4, columns), "2:4", 0)
  assert count == int(np.float32(2 * columns) * np.float32(0.3))
  growth = jnp.where(mask, 0.0, growth)
  new = regrow_mask(KEY, w, growth, mask, 0.3, "2:4", 0, scope="leaf")
  assert int((mask & ~new).sum()) == count


@pytest.mark.parametrize("scope", ["group", "leaf"])
def test_finite_sentinels_change_no_mask(scope):
  """Remaining first, then growth, by numpy, with ties, zeros and infinities."""
  rng = np.random.default_rng(0)
  w = rng.integers(-2, 3, (8, 200)).astype(np.float32)
  growth = rng.choice(
    np.float32([0.0, -0.0, 1.0, 2.0, 3e38, np.inf, np.nan]), w.shape
  )
  mask = np.asarray(nm_mask(rng.random(w.shape), "4:8", 0))
  arrays = map(jnp.asarray, (w, growth, mask))
  new = regrow_mask(KEY, *arrays, 0.5, "4:8", 0, scope=scope)
  strength = np.where(mask, np.abs(w), -1)
  if scope == "group":
    remain = mask & np.asarray(nm_mask(strength, "2:8", 0))
  else:
    best = np.argsort(-strength, axis=None, kind="stable")[: mask.sum() // 2]
    remain = np.isin(np.arange(w.size), best).reshape(w.shape) & mask
  rank = np.nan_to_num(growth, nan=-1.0, posinf=np.finfo(np.float32).max)
  rank = np.where(remain, np.inf, rank)
  order = np.argsort(-rank, axis=0, kind="stable")[:4]
  wanted = np.zeros_like(mask)
  np.put_along_axis(wanted, order, True, 0)
  np.testing.assert_array_equal(new, wanted)


@pytest.mark.parametrize("axis", [0, 1, -3, (0, 2)])
@pytest.mark.parametrize("scope", ["group", "leaf"])
def test_always_exactly_n(axis, scope):
  w, growth, mask = setup((8, 4, 8), "3:4", axis)
  w = w.at[0, 0].set(jnp.nan).at[1].set(0.0).at[2, 1].set(jnp.inf)
  growth = growth.at[0, 1].set(jnp.nan).at[3].set(jnp.inf).at[4].set(1.0)
  for share in (0.0, 0.3, 0.5, 1.0):
    new = jax.jit(regrow_mask, static_argnames=("pattern", "axis", "scope"))(
      KEY, w, growth, mask, share, pattern="3:4", axis=axis, scope=scope
    )
    assert is_nm(new, "3:4", axis)
  np.testing.assert_array_equal(
    regrow_mask(KEY, jnp.ones_like(w), growth, mask, 0.0, "3:4", axis), mask
  )


def test_a_dense_mask_becomes_that_of_the_weights():
  w, growth, mask = setup((8, 10), "1:4", 0)
  everything = jnp.ones_like(mask)
  new = regrow_mask(KEY, w, growth, everything, 0.5, "1:4", 0)
  np.testing.assert_array_equal(new, mask)


def test_unknown_scope():
  w, growth, mask = setup((8, 2), "1:4", 0)
  with pytest.raises(ValueError, match="Unknown scope 'layer'"):
    regrow_mask(KEY, w, growth, mask, 0.5, "1:4", 0, scope="layer")
