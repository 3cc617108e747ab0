"""The largest scores of an array or a tree, against a stable sort."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from figs_jax.core.unstructured import global_masks, top_mask
from tests.compilations import compilations

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
INTEGERS = (jnp.int8, jnp.int32, jnp.uint32)
COLLECTIVE = r"= \(?([a-z0-9\[\],{} ()]*) (all-[a-z]*|collective-[a-z]*)\("


def brute(arrays, count):
  """Python's stable sort is the judge; an earlier array wins a tie."""
  arrays = [np.asarray(a) for a in arrays]
  flat = [v.item() for a in arrays for v in a.astype(np.float64).ravel()]
  nan = [i for i in range(len(flat)) if flat[i] != flat[i]]
  numbers = [i for i in range(len(flat)) if flat[i] == flat[i]]
  best = sorted(numbers, key=lambda i: -flat[i]) + nan
  kept = np.zeros(len(flat), bool)
  kept[best[: max(count, 0)]] = True
  masks, start = [], 0
  for a in arrays:
    masks.append(kept[start : start + a.size].reshape(a.shape))
    start += a.size
  return masks


def planted(rng, shape, dtype):
  """Few distinct values, so that the threshold is a tie; specials in floats."""
  x = np.asarray(np.round(rng.normal(size=shape) * 2))
  if not jnp.issubdtype(dtype, jnp.floating):
    return jnp.asarray(np.abs(x).astype(dtype))
  for value in (np.nan, np.inf, -np.inf, -0.0, 0.0):
    x[rng.random(shape) < rng.choice([0, 0.1])] = value
  return jnp.asarray(np.asarray(x).astype(dtype))


@settings(deadline=None, max_examples=40)
@given(
  shape=st.sampled_from([(), (0, 3), (1,), (17,), (3, 5), (2, 3, 4)]),
  dtype=st.sampled_from(FLOATS + INTEGERS),
  share=st.floats(-0.2, 1.2),
  traced=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_equals_a_stable_sort(shape, dtype, share, traced, seed):
  scores = planted(np.random.default_rng(seed), shape, dtype)
  count = round(share * scores.size)
  if not traced:
    count = min(max(count, 0), scores.size)
  mask = top_mask(scores, jnp.int32(count) if traced else count)
  assert mask.dtype == bool and mask.shape == shape
  np.testing.assert_array_equal(mask, brute([scores], count)[0])


@settings(deadline=None, max_examples=20)
@given(count=st.integers(0, 34), seed=st.integers(0, 2**32 - 1))
def test_a_tree_has_one_threshold(count, seed):
  rng = np.random.default_rng(seed)
  a = planted(rng, (3, 4), jnp.float32)
  b, c = planted(rng, (17,), jnp.bfloat16), planted(rng, (5,), jnp.float16)
  masks = global_masks({"a": a, "b": {"b": b, "x": None}, "c": c}, count=count)
  assert masks["b"]["x"] is None
  leaves = [masks["a"], masks["b"]["b"], masks["c"]]
  for mask, expected in zip(leaves, brute([a, b, c], count)):
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
def test_64_bits_are_ranked_exactly(dtype):
  values = 2**60 + np.random.default_rng(0).permutation(30) * 1024
  values = values.astype(dtype).reshape(5, 6)
  with jax.enable_x64(True):
    mask = top_mask(jnp.asarray(values), 7)
    both = global_masks([jnp.asarray(values), jnp.asarray(values)], 0.5)
  np.testing.assert_array_equal(mask, values >= np.sort(values.ravel())[-7])
  middle = values >= np.sort(values.ravel())[15]
  np.testing.assert_array_equal(both, [middle, middle])


@pytest.mark.parametrize("density", [0, 0.1, 0.3, 0.5, 1])
def test_density_is_a_rounded_count(density):
  scores = jax.random.normal(jax.random.key(0), (7, 9))
  count = round(density * 63)
  assert top_mask(scores, density=density).sum() == count
  traced = jax.jit(lambda s, d: top_mask(s, density=d))
  assert traced(scores, jnp.float32(density)).sum() == count
  halves = global_masks([scores, scores], density)
  assert sum(mask.sum() for mask in halves) == round(density * 126)


def test_traced_counts_compile_once():
  scores = jax.random.normal(jax.random.key(0), (9, 5))
  step = jax.jit(partial(top_mask))
  with compilations("top_mask") as compiled:
    for count in (0, 3, 45):
      assert step(scores, jnp.int32(count)).sum() == count
  assert len(compiled) == 1
  text = str(jax.make_jaxpr(top_mask)(scores, jnp.int32(3)))
  assert not any(word in text for word in ("sort", "top_k", "cond["))


def test_vmap_scan_and_grad():
  rng = np.random.default_rng(3)
  stack = jnp.stack([planted(rng, (4, 6), jnp.float32) for _ in range(3)])
  counts = jnp.array([0, 7, 24], jnp.int32)
  batched = jax.vmap(top_mask)(stack, counts)
  _, scanned = jax.lax.scan(
    lambda c, args: (c, top_mask(*args)), 0, (stack, counts)
  )
  for s, count, one, two in zip(stack, counts, batched, scanned):
    expected = brute([s], int(count))[0]
    np.testing.assert_array_equal(one, expected)
    np.testing.assert_array_equal(two, expected)
  w = jnp.nan_to_num(stack[0], posinf=9.0, neginf=-9.0)
  grad = jax.grad(lambda w: jnp.where(top_mask(w, 5), w, 0.0).sum())(w)
  np.testing.assert_array_equal(grad, top_mask(w, 5).astype(w.dtype))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_shards_exchange_counts_and_not_scores(kind):
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
  scores = planted(np.random.default_rng(4), (64, 32), jnp.float32)
  expected = brute([scores], 700)[0]
  with jax.set_mesh(mesh):
    spec = NamedSharding(mesh, PartitionSpec("x", "y"))
    placed = jax.device_put(scores, spec)
    step = jax.jit(lambda s: top_mask(s, 700))
    text = step.lower(placed).compile().as_text()
    mask = step(placed)
  assert mask.sharding.is_equivalent_to(placed.sharding, 2)
  np.testing.assert_array_equal(mask, expected)
  moved = [match[0] for match in re.findall(COLLECTIVE, text)]
  assert moved
  for shapes in moved:  # nothing larger than one count per row of a shard
    for dims in re.findall(r"\[([0-9,]*)\]", shapes):
      assert np.prod([int(d) for d in dims.split(",") if d]) <= 64


def test_numpy_arrays_are_taken():
  scores = np.arange(6.0, dtype=np.float32).reshape(2, 3)
  np.testing.assert_array_equal(
    top_mask(scores, 2), [[False] * 3, [False, True, True]]
  )
  assert global_masks([scores], 0.5)[0].sum() == 3


def test_bad_arguments(unchecked):
  ones = jnp.ones((2, 3))
  for arguments in ({}, {"count": 1, "density": 0.5}):
    with pytest.raises(ValueError, match="one of count and density"):
      top_mask(ones, **arguments)
  with pytest.raises(ValueError, match="within 0..6, got 7"):
    top_mask(ones, 7)
  with pytest.raises(ValueError, match="within 0..1, got 1.5"):
    global_masks([ones], 1.5)
  with pytest.raises(TypeError, match="count as an integer scalar"):
    top_mask(ones, jnp.float32(2))
  with pytest.raises(TypeError, match="Expected real scores"):
    top_mask(ones > 0, 2)
  with pytest.raises(TypeError, match="of floats, got float32, int32"):
    global_masks([ones, jnp.ones(2, jnp.int32)], 0.5)
  with pytest.raises(ValueError, match="a tree with scores"):
    global_masks({"a": None}, 0.5)
  huge = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)
  with pytest.raises(ValueError, match="than int32 can count"):
    jax.eval_shape(lambda s: top_mask(s, 5), huge)


def test_normalized_leaves_share_a_threshold_as_in_jaxpruner():
  """Densities .48 / .52 for N(0, 1) and N(0, 25), where |w| gives .21 / .79."""
  rng = np.random.default_rng(0)
  scores = {
    "a": np.abs(rng.normal(size=(50, 40))).astype(np.float32),
    "b": np.abs(5 * rng.normal(size=(50, 40))).astype(np.float32),
  }
  given = jax.tree.map(jnp.asarray, scores)
  plain = global_masks(given, 0.5)
  masks = global_masks(given, 0.5, normalize=True)
  parts = [x.ravel() / (np.linalg.norm(x) + 1e-8) for x in scores.values()]
  order = np.argsort(-np.concatenate(parts), kind="stable")[:2000]
  wanted = np.isin(np.arange(4000), order).reshape(2, 50, 40)
  np.testing.assert_array_equal(masks["a"], wanted[0])
  np.testing.assert_array_equal(masks["b"], wanted[1])
  assert abs(float(masks["a"].mean()) - 0.5) < 0.03
  assert abs(float(plain["a"].mean()) - 0.21) < 0.03
  with pytest.raises(TypeError, match="real scores, got dtype bool"):
    global_masks({"a": jnp.ones(2, bool)}, 0.5, normalize=True)
