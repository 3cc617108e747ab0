"""Regrowth of masks against a loop over groups in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core.masks import is_nm, nm_mask
from figs_jax.core.regrow import regrow_mask

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


def test_scope_leaf_drops_the_smallest_of_the_kernel():
  w, growth, mask = setup((16, 30), "2:4", 0)
  growth = jnp.where(mask, 0.0, growth)
  new = regrow_mask(KEY, w, growth, mask, 0.2, "2:4", 0, scope="leaf")
  magnitudes = np.sort(np.abs(np.asarray(w))[np.asarray(mask)])
  count = round(0.2 * len(magnitudes))
  wanted = np.asarray(mask) & (np.abs(np.asarray(w)) < magnitudes[count])
  np.testing.assert_array_equal(np.asarray(mask & ~new), wanted)
  assert is_nm(new, "2:4", 0)


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
