"""Transposable masks: always valid, exact where promised, near elsewhere."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog

from figs_jax.core import NM, is_nm, nm_mask
from figs_jax.core.transport import transport_masks
from figs_jax.core.transposable import transposable_nm_mask

COLLECTIVE = r" (all-|collective-|reduce-scatter)[a-z-]*\("
EXACT = ("1:1", "1:2", "1:3", "2:3", "1:4", "2:4", "3:4", "1:5", "4:5")
NEAR = ("2:5", "5:7", "2:8", "4:16")
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int8)


def grid(array, m):
  """[..., blocks, blocks, m, m] of an array that ends in two kernel axes."""
  array = np.asarray(array)
  *lead, rows, columns = array.shape
  split = array.reshape(*lead, rows // m, m, columns // m, m)
  return np.swapaxes(split, -3, -2)


def all_masks(n, m):
  """[masks, m, m] by brute force over the rows' choices."""
  rows = [np.isin(range(m), c) for c in itertools.combinations(range(m), n)]
  masks = [[]]
  for _ in range(m):
    masks = [f + [r] for f in masks for r in rows]
    masks = [f for f in masks if np.sum(f, 0).max() <= n]
  return np.array(masks)


def best_sum(block, n):
  """The linear program of the b-matching; its vertices are integral."""
  m = len(block)
  a = sparse.vstack(
    [
      sparse.kron(sparse.eye(m), np.ones((1, m))),
      sparse.kron(np.ones((1, m)), sparse.eye(m)),
    ]
  )
  b = np.full(2 * m, n)
  solution = linprog(-block.ravel(), A_eq=a, b_eq=b, bounds=(0, 1))
  return -solution.fun


def assert_valid(mask, nm):
  blocks = grid(mask, nm.m)
  assert np.all(blocks.sum(-1) == nm.n) and np.all(blocks.sum(-2) == nm.n)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
  pattern=st.sampled_from(("1:2", "2:4", "4:5", "1:8") + NEAR),
  dtype=st.sampled_from(DTYPES),
  kind=st.sampled_from(["few", "constant", "specials", "huge", "tiny"]),
  seed=st.integers(0, 2**32 - 1),
)
def test_valid_whatever_the_scores_are(pattern, dtype, kind, seed):
  nm = NM.parse(pattern)
  rng = np.random.default_rng(seed)
  x = np.round(rng.normal(size=(nm.m, 4 * nm.m)))
  if jnp.issubdtype(dtype, jnp.floating):
    info = jnp.finfo(dtype)
    x = x * float({"huge": info.max, "tiny": info.tiny}.get(kind, 1)) / 4
  if kind == "constant":
    x[:] = rng.choice([0, 1, 100])
  if kind == "specials" and jnp.issubdtype(dtype, jnp.floating):
    for value in (np.nan, np.inf, -np.inf, -0.0, float(info.max)):
      x[rng.random(x.shape) < rng.choice([0, 0.2, 0.7])] = value
  if not jnp.issubdtype(dtype, jnp.floating):
    x = np.abs(x)
  mask = transposable_nm_mask(jnp.asarray(x.astype(dtype)), nm)
  assert mask.dtype == bool
  assert_valid(mask, nm)
  assert is_nm(mask, nm) and is_nm(mask, nm, -1)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("pattern", ["2:4", "1:8", "3:6"])
def test_a_block_of_one_special_value_is_valid(pattern, special):
  nm = NM.parse(pattern)
  mask = transposable_nm_mask(jnp.full((2 * nm.m, nm.m), special), nm)
  assert_valid(mask, nm)


@pytest.mark.parametrize("pattern", EXACT)
@pytest.mark.parametrize("signed", [False, True])
def test_the_best_of_all_masks(pattern, signed):
  nm = NM.parse(pattern)
  masks = all_masks(nm.n, nm.m).astype(float)
  scores = np.random.default_rng(nm.m).normal(size=(3, 4 * nm.m, 5 * nm.m))
  scores = (scores if signed else abs(scores)).astype(np.float32)
  mask = transposable_nm_mask(scores, nm)
  blocks = grid(scores, nm.m).astype(float)
  best = np.einsum("...ab,pab->...p", blocks, masks).max(-1)
  kept = (blocks * grid(mask, nm.m)).sum((-1, -2))
  assert_valid(mask, nm)
  np.testing.assert_allclose(kept, best, rtol=1e-6, atol=1e-6)


def assignment_sums(scores):
  """The largest sums of one entry per row and column."""
  blocks = np.asarray(scores).astype(float).reshape(-1, 8, 8)
  best = []
  for block in blocks:
    rows, columns = linear_sum_assignment(block, maximize=True)
    best.append(block[rows, columns].sum())
  return np.array(best)


@pytest.mark.parametrize("kind", ["normal", "signed", "heavy", "few", "equal"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_the_best_permutation_of_1_8(kind, dtype):
  """Scipy's assignment; sums of small integers, with many ties, are exact."""
  rng = np.random.default_rng(3)
  shape = (3, 32, 40)
  scores = {
    "normal": lambda: abs(rng.normal(size=shape)) * 50,
    "signed": lambda: rng.normal(size=shape) * 50,
    "heavy": lambda: np.clip(rng.standard_t(1, size=shape), -120, 120),
    "few": lambda: rng.integers(-1, 2, shape).astype(float),
    "equal": lambda: np.full(shape, 3.0),
  }[kind]()
  scores = jnp.asarray(scores).astype(dtype)
  mask = transposable_nm_mask(scores, "1:8")
  assert_valid(mask, NM(1, 8))
  blocks = grid(np.asarray(scores).astype(float), 8)
  kept = (blocks * grid(mask, 8)).sum((-1, -2)).ravel()
  rtol = 2e-6 if kind in ("normal", "signed", "heavy") else 0
  atol = rtol * abs(blocks).max((-1, -2)).ravel()
  assert np.all(kept >= assignment_sums(blocks) - atol)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e38])
def test_the_best_permutation_at_the_ends_of_float32(scale):
  """Denormal scores count as 0, so that a block of them has some mask."""
  scores = (np.random.default_rng(0).random((8, 80)) * 3 * scale).astype("f4")
  mask = transposable_nm_mask(scores, "1:8")
  assert_valid(mask, NM(1, 8))
  blocks = grid(np.where(scores < 1.2e-38, 0, scores), 8)[0].astype(float)
  kept = (blocks * grid(mask, 8)[0]).sum((-1, -2))
  np.testing.assert_allclose(kept, assignment_sums(blocks), rtol=1e-6)


def test_the_best_permutation_of_float64():
  with jax.enable_x64(True):
    scores = 1 + 1e-12 * np.random.default_rng(0).normal(size=(8, 160))
    mask = transposable_nm_mask(scores, "1:8")
  blocks = grid(scores - 1, 8)[0]
  kept = (blocks * grid(mask, 8)[0]).sum((-1, -2))
  np.testing.assert_allclose(kept, assignment_sums(blocks), atol=1e-15)


def test_infinities_come_first_and_nan_last_in_1_8():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(8, 8 * 60)).astype(np.float32)
  for value in (np.inf, -np.inf, np.nan):
    x[rng.random(x.shape) < 0.2] = value
  mask = grid(transposable_nm_mask(x, "1:8"), 8)[0]
  assert_valid(mask.swapaxes(0, 1).reshape(8, -1), NM(1, 8))
  # One NaN weighs more than all infinities, and one of them than all numbers.
  weights = np.nan_to_num(x.astype(float), nan=-1e8, posinf=1e4, neginf=-1e4)
  blocks = grid(weights, 8)[0]
  kept = (blocks * mask).sum((-1, -2))
  np.testing.assert_allclose(kept, assignment_sums(blocks), atol=2e-3)


def test_published_numbers_of_masks():
  assert len(all_masks(2, 4)) == 90  # arXiv 2404.01847
  assert [len(all_masks(1, m)) for m in (3, 4, 5)] == [6, 24, 120]


@pytest.mark.parametrize(
  "pattern, mean, worst",
  [
    ("2:8", 2e-3, 0.05),
    ("4:8", 1e-3, 0.03),
    ("4:16", 2e-3, 0.02),
    ("8:16", 1e-3, 0.01),
    ("8:64", 2e-3, 0.01),
    ("32:64", 1e-3, 0.01),
  ],
)
@pytest.mark.parametrize("draw", ["normal", "student"])
def test_gap_to_the_optimum(pattern, mean, worst, draw):
  nm = NM.parse(pattern)
  count = 25 if nm.m < 64 else 4
  rng = np.random.default_rng(5)
  scores = (
    rng.normal if draw == "normal" else lambda size: rng.standard_t(3, size)
  )
  scores = np.abs(scores(size=(nm.m, count * nm.m))).astype(np.float32)
  mask = transposable_nm_mask(scores, nm)
  assert_valid(mask, nm)
  blocks = grid(scores, nm.m)[0].astype(float)
  best = np.array([best_sum(block, nm.n) for block in blocks])
  gap = 1 - (blocks * grid(mask, nm.m)[0]).sum((1, 2)) / best
  assert gap.min() > -1e-6 and gap.mean() < mean and gap.max() < worst


@pytest.mark.parametrize("pattern", ["1:4", "5:8", "1:48", "7:48"])
@pytest.mark.parametrize("kind", ["normal", "few", "constant", "specials"])
def test_transport_is_valid_and_close_for_every_block(pattern, kind):
  """The method of wide blocks; narrow ones make its rounding work harder."""
  nm, rng = NM.parse(pattern), np.random.default_rng(0)
  x = np.abs(rng.normal(size=(192 // nm.m, nm.m, nm.m))).astype(np.float32)
  x = x / 2  # scaled as `transposable_nm_mask` does
  if kind == "few":
    x = np.round(4 * x) / 4
  elif kind == "constant":
    x = np.ones_like(x)
  elif kind == "specials":  # as infinities are replaced
    x[rng.random(x.shape) < 0.2] = 1e5
  mask = np.asarray(transport_masks(jnp.asarray(x), nm.n))
  assert np.all(mask.sum(1) == nm.n) and np.all(mask.sum(2) == nm.n)
  best = np.array([best_sum(block.astype(float), nm.n) for block in x])
  gap = 1 - (x * mask).sum((1, 2)) / best
  assert gap.min() > -1e-5
  assert gap.mean() < (0.02 if kind == "specials" else 0.01)


def test_infinities_come_first_and_nan_last():
  """As many +inf, as few -inf and NaN as any mask can; then the sum."""
  masks = all_masks(2, 4)
  rng = np.random.default_rng(1)
  x = rng.normal(size=(4, 4 * 60)).astype(np.float32)
  for value in (np.inf, -np.inf, np.nan):
    x[rng.random(x.shape) < 0.12] = value
  chosen = grid(transposable_nm_mask(x, "2:4"), 4)[0]
  for block, mask in zip(grid(x, 4)[0], chosen):

    def rank(kept, block=block):
      values = block[kept]
      infinities = (values == np.inf).sum() - (values == -np.inf).sum()
      return (
        -np.isnan(values).sum(),
        infinities,
        values[np.isfinite(values)].sum(dtype=float),
      )

    best = max(rank(kept) for kept in masks)
    ours = rank(mask)
    assert ours[:2] == best[:2]
    assert ours[2] == pytest.approx(best[2], abs=0.02)


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "4:8"])
@pytest.mark.parametrize("scale", [2.0**-100, 0.5, 2.0**100])
def test_scaling_by_a_power_of_two_changes_nothing(pattern, scale):
  scores = jax.random.normal(jax.random.key(0), (32, 16))
  np.testing.assert_array_equal(
    transposable_nm_mask(scores, pattern),
    transposable_nm_mask(scores * scale, pattern),
  )


@pytest.mark.parametrize("pattern", ["1:3", "2:4"])
def test_the_transpose_has_the_transposed_mask(pattern):
  nm = NM.parse(pattern)
  scores = jax.random.normal(jax.random.key(0), (5 * nm.m, 4 * nm.m))
  np.testing.assert_array_equal(
    transposable_nm_mask(scores, nm).T, transposable_nm_mask(scores.T, nm)
  )


# Every one is [3, 12, 24] when flattened by hand.
@pytest.mark.parametrize(
  "pattern, shape, axis, other, order",
  [
    ("2:4", (3, 12, 24), -2, -1, (0, 1, 2)),
    ("2:4", (12, 3, 24), 0, 2, (1, 0, 2)),
    ("2:4", (24, 3, 12), -1, 0, (1, 2, 0)),
    ("2:4", (3, 1, 12, 24), -2, -1, (0, 1, 2, 3)),
    ("2:4", (3, 3, 4, 24), (1, 2), 3, (0, 1, 2, 3)),
    ("2:4", (12, 8, 3, 3), 0, (3, 1), (2, 0, 3, 1)),
    ("2:4", (4, 3, 3, 24), (1, 0), (3,), (2, 1, 0, 3)),
    ("1:8", (16, 3, 24), 0, 2, (1, 0, 2)),
    ("2:6", (24, 3, 12), -1, 0, (1, 2, 0)),
    ("2:6", (4, 3, 3, 24), (1, 0), (3,), (2, 1, 0, 3)),
  ],
)
def test_any_axes(pattern, shape, axis, other, order):
  """Equal to the two axes flattened by hand and put last."""
  nm = NM.parse(pattern)
  scores = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  mask = transposable_nm_mask(scores, nm, axis, other=other)
  length = np.prod([shape[a] for a in np.atleast_1d(axis)])
  width = np.prod([shape[a] for a in np.atleast_1d(other)])
  flat = scores.transpose(order).reshape(-1, length, width)
  expected = transposable_nm_mask(flat, nm)
  turned = np.asarray(mask).transpose(order).reshape(flat.shape)
  np.testing.assert_array_equal(turned, expected)
  assert is_nm(mask, nm, axis) and is_nm(mask, nm, other)


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "2:8"])
def test_vmap_scan_jit_and_grad(pattern):
  stack = jax.random.normal(jax.random.key(2), (3, 16, 8))
  each = jnp.stack([transposable_nm_mask(s, pattern) for s in stack])
  batched = jax.vmap(lambda s: transposable_nm_mask(s, pattern))(stack)
  scan = jax.lax.scan(
    lambda c, s: (c, transposable_nm_mask(s, pattern)), 0, stack
  )
  for mask in (batched, scan[1], transposable_nm_mask(stack, pattern)):
    np.testing.assert_array_equal(mask, each)

  def loss(w):
    return jnp.where(transposable_nm_mask(w, pattern), w, 0.0).sum()

  np.testing.assert_array_equal(
    jax.grad(loss)(stack[0]), each[0].astype(jnp.float32)
  )


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "2:8"])
@pytest.mark.parametrize(
  "kind, spec",
  [
    (AxisType.Auto, ("x", "y")),
    (AxisType.Auto, (("x", "y"),)),
    (AxisType.Explicit, ("x", "y")),
    (AxisType.Explicit, (None, "y")),
  ],
)
def test_no_collective_where_blocks_lie_within_shards(pattern, kind, spec):
  nm = NM.parse(pattern)
  scores = jax.random.normal(jax.random.key(0), (8 * nm.m, 8 * nm.m))
  expected = transposable_nm_mask(scores, nm)
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
  with jax.set_mesh(mesh):
    placed = jax.device_put(scores, NamedSharding(mesh, PartitionSpec(*spec)))
    step = jax.jit(lambda s: transposable_nm_mask(s, nm))
    text = step.lower(placed).compile().as_text()
    mask = step(placed)
  assert not re.search(COLLECTIVE, text)
  assert mask.sharding.is_equivalent_to(placed.sharding, 2)
  np.testing.assert_array_equal(mask, expected)


def test_blocks_across_shards_do_communicate():
  """The check above can fail: two blocks of 8 rows on four devices."""
  mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec("x"))
  scores = jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=sharding)
  step = jax.jit(lambda s: transposable_nm_mask(s, "2:8"))
  assert re.search(COLLECTIVE, step.lower(scores).compile().as_text())


def test_dense_empty_and_wide():
  assert transposable_nm_mask(jnp.full((8, 4), jnp.nan), "4:4").all()
  assert transposable_nm_mask(jnp.ones((0, 4)), "2:4").shape == (0, 4)
  scores = jax.random.normal(jax.random.key(0), (64, 64))
  assert_valid(transposable_nm_mask(scores, "3:32"), NM(3, 32))
  assert_valid(transposable_nm_mask(scores, "3:64"), NM(3, 64))
  with jax.enable_x64(True):
    wide = 1 + 1e-12 * np.random.default_rng(0).normal(size=(4, 8))
    mask = transposable_nm_mask(wide, "2:4")
    blocks = grid(wide - 1, 4)
    best = np.einsum("xyab,pab->xyp", blocks, all_masks(2, 4)).max(-1)
    kept = (blocks * grid(mask, 4)).sum((-1, -2))
  np.testing.assert_allclose(kept, best, atol=1e-14)


def test_a_mask_along_one_axis_keeps_no_less():
  scores = jnp.abs(jax.random.normal(jax.random.key(0), (64, 64)))
  both = jnp.where(transposable_nm_mask(scores, "2:4"), scores, 0).sum()
  assert both <= jnp.where(nm_mask(scores, "2:4"), scores, 0).sum()


@pytest.mark.parametrize(
  "shape, axis, other, message",
  [
    ((6, 4), 0, 1, r"axis 0 of shape \(6, 4\) has length 6, .* m=4; choose"),
    ((4, 6), 0, 1, r"other 1 of shape \(4, 6\) has length 6"),
    ((8, 8), 0, -2, "axis 0 and other -2 .* share an axis"),
    ((8, 8), (0, 1), 1, "share an axis"),
    ((8,), -2, -1, r"axis -2 of shape \(8,\)"),
    ((8, 8), 0, 2, "within -2..1"),
  ],
)
def test_bad_axes_are_named(shape, axis, other, message):
  with pytest.raises(ValueError, match=message):
    transposable_nm_mask(jnp.ones(shape), "2:4", axis, other=other)


def test_scores_without_an_order():
  for scores in (jnp.ones((4, 4)) > 0, jnp.ones((4, 4), jnp.complex64)):
    with pytest.raises(TypeError, match="Expected real scores"):
      transposable_nm_mask(scores, "2:4")
