"""V:N:M masks against loops, and what they are made of."""

import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core import VNM, is_nm, vnm_mask


def by_loops(scores, v, n, m):
  """Inputs by their sums, then entries: stable sorts of plain lists."""
  inputs, outputs = scores.shape
  mask = np.zeros(scores.shape, bool)
  for i in range(0, inputs, m):
    for j in range(0, outputs, v):
      block = scores[i : i + m, j : j + v]
      rows = sorted(range(m), key=lambda r: -block[r].sum())[: 2 * n]
      for column in range(v):
        best = sorted(sorted(rows), key=lambda r: -block[r, column])[:n]
        mask[[i + r for r in best], j + column] = True
  return mask


@pytest.mark.parametrize("text", ["4:2:8", "8:2:4", "2:1:8", "1:2:16"])
def test_masks_are_those_of_loops(text):
  vnm = VNM.parse(text)
  scores = np.random.default_rng(0).random((32, 16)).astype(np.float32)
  mask = np.asarray(vnm_mask(jnp.asarray(scores), text))
  np.testing.assert_array_equal(mask, by_loops(scores, vnm.v, vnm.n, vnm.m))
  assert is_nm(mask, vnm.pattern)
  blocks = mask.reshape(-1, vnm.m, 16 // vnm.v, vnm.v)
  assert (blocks.any(-1).sum(1) <= vnm.columns).all()


def test_one_output_or_all_columns_is_plain_nm():
  """v = 1 chooses the best n of its best 2n; m = 2n leaves no choice."""
  scores = np.random.default_rng(1).random((16, 8)).astype(np.float32)
  for text in ("1:2:8", "8:4:8"):
    vnm = VNM.parse(text)
    from figs_jax.core import nm_mask

    np.testing.assert_array_equal(
      vnm_mask(jnp.asarray(scores), vnm), nm_mask(scores, vnm.pattern)
    )


def test_mistakes():
  for text in ("2:4", "0:2:8", "64:3:4", "a:2:8"):
    with pytest.raises(ValueError, match="Invalid V:N:M pattern.*'64:2:8'"):
      VNM.parse(text)
  scores = jnp.ones((8, 6))
  with pytest.raises(ValueError, match="axis -2 has length 8.*m=16"):
    vnm_mask(scores, "2:2:16")
  with pytest.raises(ValueError, match="axis -1 has length 6.*v=4"):
    vnm_mask(scores, "4:2:8")
