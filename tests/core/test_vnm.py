"""V:N:M masks against loops, and what they are made of."""

import jax.numpy as jnp
import numpy as np
import pytest

import figs_jax as figs
from figs_jax.core import NM, VNM, Rules, is_nm, nm_mask, permute, vnm_mask
from figs_jax.core.pattern import parse_pattern


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
    np.testing.assert_array_equal(
      vnm_mask(jnp.asarray(scores), vnm), nm_mask(scores, vnm.pattern)
    )


def test_mistakes():
  for text in ("2:4", "0:2:8", "64:3:4", "a:2:8"):
    with pytest.raises(ValueError, match="Invalid V:N:M pattern.*'64:2:8'"):
      VNM.parse(text)
  scores = jnp.ones((8, 6))
  with pytest.raises(ValueError, match="axis -2 .*has length 8.*m=16"):
    vnm_mask(scores, "2:2:16")
  with pytest.raises(ValueError, match="axis -1 .*has length 6.*v=4"):
    vnm_mask(scores, "4:2:8")


def test_nm_mask_and_is_nm_take_it_along_any_axis():
  scores = np.random.default_rng(2).random((3, 8, 16)).astype(np.float32)
  wanted = np.stack([by_loops(each, 4, 2, 8) for each in scores])
  np.testing.assert_array_equal(nm_mask(scores, "4:2:8"), wanted)
  turned = nm_mask(scores.swapaxes(1, 2), "4:2:8", -1)  # [out, in], as in torch
  np.testing.assert_array_equal(turned.swapaxes(1, 2), wanted)
  conv = scores.reshape(1, 3, 8, 16)
  np.testing.assert_array_equal(nm_mask(conv, "4:2:8", -2)[0], wanted)
  assert is_nm(wanted, "4:2:8") and is_nm(scores * wanted, VNM(4, 2, 8))
  alone = np.asarray(nm_mask(scores, "2:8"))  # each output by itself
  assert is_nm(alone, "2:8") and not is_nm(alone, "4:2:8")
  assert not is_nm(scores * alone, "4:2:8")


def test_it_is_a_pattern_like_others():
  vnm = parse_pattern("64:2:8")
  assert isinstance(vnm, NM) and vnm.density == 0.25 and vnm != NM(2, 8)
  assert hash(vnm) != hash(VNM(32, 2, 8)) and VNM.parse(vnm) is vnm
  rules = Rules.parse("head: dense, ff: 64:2:8, qk: 2:4")
  assert rules.rules[1] == ("ff", vnm)
  assert Rules.parse(str(rules)) == rules
  assert Rules.parse("64:2:8").single == vnm


def test_what_has_groups_of_one_output_refuses_it():
  scores = jnp.ones((8, 4))
  for options in ({"n": 1}, {"stride": 2}, {"inside": scores > 0}):
    with pytest.raises(ValueError, match="without n, stride and inside"):
      nm_mask(scores, "4:2:8", **options)
  with pytest.raises(ValueError, match="N:M pattern, got 4:2:8"):
    permute(scores, VNM(4, 2, 8))
  rules = Rules.parse("w: 3:2:8")
  with pytest.raises(ValueError, match="w: axis -1 has length 4.*v=3.*3:2:8"):
    rules.resolve({"w": ((8, 4), -2)}, {"w": "w"})
  moment = jnp.eye(8)
  for method in ("sparsegpt", "alps", "sparseswaps"):
    with pytest.raises(ValueError, match=f"{method}: expected an N:M.*magnit"):
      figs.pruning.prune_kernel(scores, moment, "4:2:8", method)
  mask = figs.pruning.prune_kernel(scores, moment, "4:2:8", "wanda")[1]
  assert is_nm(mask, "4:2:8")
