"""nm_mask against a brute force, and what it may never do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core import (
  NM,
  density,
  flip_rate,
  is_nm,
  kept_magnitude,
  nm_mask,
)
from figs_jax.core.packing import pack
from tests.compilations import compilations

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
INTEGERS = (jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.uint32)
# One or two patterns for each way of ranking, odd sizes included.
COMPARED = ("1:1", "1:2", "2:4", "3:5", "1:8", "5:8")
NETWORKS = ("4:16", "15:16", "5:12", "1:32", "8:32", "3:33", "1:37", "60:64")
WIDE = ("1:13", "1:128", "16:128", "7:100", "126:128", "1:200", "9:256")
PATTERNS = COMPARED + NETWORKS + WIDE


def brute(scores, n, m, axes, stride=1, inside=None):
  """The definition, group by group, with Python's sort as the judge."""
  scores = np.asarray(scores)
  if scores.dtype.kind not in "iuf":
    scores = scores.astype(np.float64)
  may = np.ones(scores.shape, bool) if inside is None else np.asarray(inside)
  axes = tuple(a % scores.ndim for a in axes)
  order = [a for a in range(scores.ndim) if a not in axes] + list(axes)
  turned, may = scores.transpose(order), may.transpose(order).ravel()
  flat, kept = turned.ravel(), np.zeros(turned.size, bool)
  for g in range(turned.size // m):
    first = g // stride * m * stride + g % stride
    group = [i for i in range(first, first + m * stride, stride) if may[i]]
    group.sort(key=lambda i: (flat[i] != flat[i], -rank(flat[i]), i))
    kept[group[:n]] = True
  return kept.reshape(turned.shape).transpose(np.argsort(order))


def rank(value):
  value = value.item()
  return 0 if value != value else value


def planted(rng, shape, dtype):
  """Few distinct values, so that most groups have ties; specials in floats."""
  x = np.round(rng.normal(size=shape) * 2)
  if jnp.issubdtype(dtype, jnp.floating):
    tiny = float(jnp.finfo(dtype).smallest_subnormal)
    for value in (np.nan, np.inf, -np.inf, -0.0, 0.0, tiny, -tiny):
      x[rng.random(shape) < rng.choice([0, 0.1])] = value
    return jnp.asarray(np.asarray(x, np.float64).astype(dtype))
  info = jnp.iinfo(dtype)
  x = np.clip(x, info.min, info.max).astype(dtype)
  x[rng.random(shape) < 0.1] = info.min
  x[rng.random(shape) < 0.1] = info.max
  return jnp.asarray(x)


@settings(deadline=None, max_examples=25)
@given(
  pattern=st.sampled_from(PATTERNS),
  lead=st.lists(st.integers(1, 3), max_size=2),
  groups=st.integers(0, 3),
  stride=st.sampled_from([1, 1, 2, 3]),
  tail=st.lists(st.integers(1, 5), max_size=2),
  dtype=st.sampled_from(FLOATS + INTEGERS),
  share=st.sampled_from([None, 0.0, 0.2, 0.8]),
  negative=st.booleans(),
  traced=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(
  pattern, lead, groups, stride, tail, dtype, share, negative, traced, seed
):
  nm = NM.parse(pattern)
  shape = (*lead, groups * nm.m * stride, *tail)
  axis = len(lead) - (len(shape) if negative else 0)
  rng = np.random.default_rng(seed)
  scores = planted(rng, shape, dtype)
  inside = None if share is None else rng.random(shape) < share
  asked, n = (NM(nm.m, nm.m), jnp.int32(nm.n)) if traced else (nm, None)
  mask = nm_mask(scores, asked, axis, n, stride=stride, inside=inside)
  assert mask.dtype == bool
  expected = brute(scores, nm.n, nm.m, (axis,), stride, inside)
  np.testing.assert_array_equal(mask, expected)


@settings(deadline=None, max_examples=10)
@given(data=st.data(), m=st.integers(1, 256), seed=st.integers(0, 2**32 - 1))
def test_every_m_equals_the_definition(data, m, seed):
  n = data.draw(st.integers(1, m), label="n")
  dtype = data.draw(st.sampled_from(FLOATS + INTEGERS), label="dtype")
  scores = planted(np.random.default_rng(seed), (2, m), dtype)
  expected = brute(scores, n, m, (1,))
  np.testing.assert_array_equal(nm_mask(scores, NM(n, m), -1), expected)


@pytest.mark.parametrize("pattern", ["1:999", "7:300", "250:512", "40:4096"])
@pytest.mark.parametrize("axis", [0, 1])
def test_wide_groups_equal_the_definition(pattern, axis):
  nm = NM.parse(pattern)
  shape = (2 * nm.m, 2) if axis == 0 else (2, 2 * nm.m)
  scores = planted(np.random.default_rng(0), shape, jnp.float32)
  expected = brute(scores, nm.n, nm.m, (axis,))
  np.testing.assert_array_equal(nm_mask(scores, nm, axis), expected)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
  "axis, dtype", [(0, jnp.float32), (-1, jnp.bfloat16), (-1, jnp.int32)]
)
def test_every_way_of_ranking_equals_the_definition(pattern, axis, dtype):
  nm = NM.parse(pattern)
  shape = (2 * nm.m, 3) if axis == 0 else (3, 2 * nm.m)
  rng = np.random.default_rng(nm.m)
  scores = planted(rng, shape, dtype)
  expected = brute(scores, nm.n, nm.m, (axis,))
  np.testing.assert_array_equal(nm_mask(scores, nm, axis), expected)


@pytest.mark.parametrize("pattern", ["2:4", "4:16", "8:64", "9:128"])
@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
def test_64_bits_are_ranked_exactly(pattern, dtype):
  nm = NM.parse(pattern)
  rng = np.random.default_rng(0)
  # Equal in float32: only the last bits tell them apart.
  values = 2**60 + rng.integers(0, 6, (2 * nm.m, 3)) * 1024
  values = values.astype(dtype)
  with jax.enable_x64(True):
    mask = nm_mask(jnp.asarray(values), nm)
  np.testing.assert_array_equal(mask, brute(values, nm.n, nm.m, (0,)))


@pytest.mark.parametrize(
  "axes", [(0, 1), (1, 0), (0, 2), (2, 0), (-1, 0), (2, 1, 0), (1,)]
)
@pytest.mark.parametrize("m", [2, 3, 6, 12])
def test_a_tuple_of_axes_is_flattened_in_its_order(axes, m):
  shape = (4, 6, 3)
  length = np.prod([shape[a] for a in axes])
  scores = planted(np.random.default_rng(m), shape, jnp.float32)
  if length % m:
    with pytest.raises(ValueError, match=f"length {length}, .* m={m}"):
      nm_mask(scores, NM(1, m), axes)
    return
  mask = nm_mask(scores, NM(1, m), axes)
  np.testing.assert_array_equal(mask, brute(scores, 1, m, axes))
  assert is_nm(mask, NM(1, m), axes)


@pytest.mark.parametrize("axes", [0, -1, (0, 1, 2), (0, 2), (2, 0, 1)])
def test_the_kernel_is_not_transposed(axes):
  """Groups inside the last named axis, or axes side by side, need no copy."""
  kernel = jax.ShapeDtypeStruct((8, 8, 8), jnp.float32)
  jaxpr = jax.make_jaxpr(lambda s: nm_mask(s, "1:8", axes))(kernel)
  assert "transpose" not in str(jaxpr)


@pytest.mark.parametrize("m", [2, 8, 33, 128])
def test_traced_n_equals_static_n_in_one_compilation(m):
  scores = planted(np.random.default_rng(m), (2 * m, 5), jnp.float32)

  @jax.jit
  def traced(s, n):
    return nm_mask(s, NM(m, m), n=n)

  with compilations("traced") as compiled:
    for n in range(1, m + 1, max(1, m // 8)):
      expected = brute(scores, n, m, (0,))
      np.testing.assert_array_equal(traced(scores, jnp.int32(n)), expected)
    assert not traced(scores, jnp.int32(0)).any()
    assert traced(scores, jnp.int32(m + 3)).all()
  assert len(compiled) == 1


def test_n_of_m_is_static_and_dense():
  dense = jax.jit(lambda s: nm_mask(s, "4:4")).lower(jnp.ones((8, 2)))
  assert "reduce(" not in dense.compile().as_text()
  assert nm_mask(jnp.full((8, 2), jnp.nan), "4:4").all()
  assert nm_mask(jnp.ones((8, 2)), "1:4", n=3).sum() == 12


@pytest.mark.parametrize("pattern", PATTERNS)
def test_never_sorts_and_never_branches(pattern):
  nm = NM.parse(pattern)
  shape = jax.ShapeDtypeStruct((2 * nm.m, 4), jnp.float32)
  static = jax.make_jaxpr(lambda s: nm_mask(s, nm))(shape)
  traced = jax.make_jaxpr(lambda s, n: nm_mask(s, nm, n=n))(shape, jnp.int32(1))
  for text in (str(static), str(traced)):
    assert not any(word in text for word in ("sort", "top_k", "cond["))


@pytest.mark.parametrize("pattern", ["2:4", "4:16", "8:128"])
def test_vmap_scan_and_grad(pattern):
  nm = NM.parse(pattern)
  stack = planted(np.random.default_rng(1), (3, nm.m, 4), jnp.float32)
  each = jnp.stack([nm_mask(s, nm) for s in stack])
  batched = jax.vmap(lambda s: nm_mask(s, nm))(stack)
  _, scanned = jax.lax.scan(lambda c, s: (c, nm_mask(s, nm)), 0, stack)
  counts = jnp.array([1, nm.n, nm.m], jnp.int32)
  many = jax.vmap(lambda s, n: nm_mask(s, nm, n=n))(stack, counts)
  np.testing.assert_array_equal(batched, each)
  np.testing.assert_array_equal(scanned, each)
  for s, n, mask in zip(stack, counts, many):
    np.testing.assert_array_equal(mask, brute(s, int(n), nm.m, (0,)))
  w = jnp.nan_to_num(stack[0])
  grad = jax.grad(lambda w: jnp.where(nm_mask(jnp.abs(w), nm), w, 0.0).sum())(w)
  np.testing.assert_array_equal(grad, nm_mask(jnp.abs(w), nm).astype(w.dtype))


@pytest.mark.parametrize("shape", [(0, 3), (8, 0), (0,), (2, 0, 4)])
@pytest.mark.parametrize("pattern", ["2:4", "1:1", "1:4"])
def test_empty_arrays(shape, pattern):
  axis = 0 if len(shape) < 3 else 1
  mask = nm_mask(jnp.zeros(shape), pattern, axis)
  assert mask.shape == shape and mask.dtype == bool
  assert is_nm(mask, pattern, axis)
  assert density(mask) == 0 and flip_rate(mask, mask) == 0
  assert kept_magnitude(jnp.zeros(shape), mask) == 1


def test_numpy_arrays_are_taken():
  scores = np.arange(8.0, dtype=np.float32).reshape(8, 1)
  mask = nm_mask(scores, "1:4")
  np.testing.assert_array_equal(np.flatnonzero(mask), [3, 7])
  assert is_nm(np.asarray(mask), "1:4")
  assert is_nm(np.where(mask, scores, 0), "1:4") and not is_nm(scores, "1:4")


@pytest.mark.parametrize(
  "shape, axis, message",
  [
    ((6, 4), 0, r"axis 0 of shape \(6, 4\) has length 6, .* m=4; choose"),
    ((6, 3), (0, 1), "has length 18"),
    ((8,), -2, r"axis -2 of shape \(8,\)"),
    ((8, 4), 2, "within -2..1"),
    ((8, 4), (), "expected one or more"),
    ((8, 4), (0, -2), "twice"),
  ],
)
def test_bad_axes_are_named(shape, axis, message):
  for function in (nm_mask, is_nm):
    with pytest.raises(ValueError, match=message):
      function(jnp.ones(shape), "2:4", axis)


@pytest.mark.parametrize("function", [nm_mask, is_nm])
def test_bad_strides_are_named(function):
  ones = jnp.ones((24, 2))
  with pytest.raises(ValueError, match="m=4 at stride 5, which spans 20"):
    function(ones, "2:4", 0, stride=5)
  for stride in (0, -2):
    with pytest.raises(
      ValueError, match=f"positive integer stride, got {stride}"
    ):
      function(ones, "2:4", 0, stride=stride)


def test_inside_must_be_a_mask_of_the_same_shape(unchecked):
  ones = jnp.ones((8, 4))
  with pytest.raises(
    ValueError, match=r"equal shapes, got \(8, 4\) and \(4, 4\)"
  ):
    nm_mask(ones, "2:4", inside=ones[:4] > 0)
  with pytest.raises(TypeError, match="Boolean inside, got dtype float32"):
    nm_mask(ones, "2:4", inside=ones)


def test_scores_without_an_order_and_bad_counts(unchecked):
  ones = jnp.ones((8, 4))
  for scores in (ones > 0, ones.astype(jnp.complex64)):
    with pytest.raises(TypeError, match="Expected real scores, got dtype"):
      nm_mask(scores, "2:4")
  for n in (0, 5, True):
    with pytest.raises(ValueError, match="1 <= n <= m"):
      nm_mask(ones, "2:4", n=n)
  for n in (jnp.float32(2), jnp.array([2])):
    with pytest.raises(TypeError, match="n as an integer scalar"):
      nm_mask(ones, "2:4", n=n)


@pytest.mark.parametrize(
  "dtype",
  ["float16", "float32", "bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int8"],
)
def test_is_nm_agrees_with_packing_on_denormal_numbers(dtype):
  tiny = jnp.finfo(dtype).smallest_subnormal if "float" in dtype else 1
  for n in range(5):
    for sign in (1, -1):
      array = np.zeros(4, dtype)
      array[:n] = np.asarray(sign * tiny).astype(dtype)
      if n <= 2:
        pack(array, "2:4", axis=0)
      else:
        with pytest.raises(ValueError, match=f"holds {n} entries"):
          pack(array, "2:4", axis=0)
      for call in (is_nm, jax.jit(is_nm, static_argnums=(1, 2))):
        assert bool(call(array, "2:4", 0)) == (n <= 2)


def test_is_nm_is_exact_for_masks_and_at_most_for_arrays():
  mask = nm_mask(jax.random.normal(jax.random.key(0), (16, 4)), "2:8")
  assert is_nm(mask, "2:8") and not is_nm(mask, "3:8")
  assert is_nm(mask.astype(jnp.float32), "3:8")
  assert not is_nm(mask.astype(jnp.float32), "1:8")
  assert is_nm(mask, "2:8", (1, 0)) and is_nm(mask.T, "2:8", -1)
  assert not is_nm(jnp.array([jnp.nan, jnp.nan, 0.0, 0.0]), "1:4", axis=0)
  assert is_nm(jnp.array([-0.0, 3.0, 0.0, 0.0]), "1:4", axis=0)
  assert jax.jit(lambda m: is_nm(m, "2:8"))(mask)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_measures_equal_their_definitions(seed):
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(16, 5)).astype(np.float32)
  old, new = rng.random((2, 16, 5)) < 0.4
  arrays = [jnp.asarray(a) for a in (kernel, old, new)]
  assert float(flip_rate(*arrays[1:])) == pytest.approx(np.mean(old != new))
  assert float(density(arrays[1])) == pytest.approx(old.mean())
  share = np.abs(kernel)[old].sum() / np.abs(kernel).sum()
  assert float(kept_magnitude(*arrays[:2])) == pytest.approx(share, rel=1e-5)
  assert flip_rate(arrays[1], arrays[1]) == 0


def test_the_magnitude_mask_keeps_the_most_magnitude():
  kernel = jax.random.normal(jax.random.key(3), (4, 1))
  best = float(kept_magnitude(kernel, nm_mask(jnp.abs(kernel), "2:4")))
  for pair in itertools.combinations(range(4), 2):
    other = jnp.zeros((4, 1), bool).at[jnp.array(pair)].set(True)
    assert float(kept_magnitude(kernel, other)) <= best
  low = kept_magnitude(kernel.astype(jnp.bfloat16), jnp.ones((4, 1), bool))
  assert low == 1 and low.dtype == jnp.float32


def test_shapes_that_differ(unchecked):
  mask = jnp.ones((4, 2), bool)
  with pytest.raises(
    ValueError, match=r"equal shapes, got \(4, 2\) and \(2, 2\)"
  ):
    flip_rate(mask, mask[:2])
  with pytest.raises(ValueError, match="equal shapes"):
    kept_magnitude(jnp.ones((4, 2)), mask[:2])


def test_density_counts_beyond_the_precision_of_float32():
  mask = jnp.ones((2**24 + 2**22,), bool)
  assert density(mask) == 1 and flip_rate(mask, ~mask) == 1
