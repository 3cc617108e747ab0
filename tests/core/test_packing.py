"""Packing: a round trip bit for bit, its size, its layout, what it refuses."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core import NM, MaskedKernel, nm_mask
from figs_jax.core.packing import (
  LAYOUTS,
  Packed,
  pack,
  pack_tree,
  unpack,
  unpack_tree,
)
from figs_jax.engine import packed_bytes

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NUMPY = "float64 float32 float16 bool complex64"
INTEGERS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64"
SMALL = "bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz int4 uint4"
DTYPES = [np.dtype(name) for name in (NUMPY + " " + INTEGERS).split()]
DTYPES += [np.dtype(getattr(ml_dtypes, name)) for name in SMALL.split()]
PATTERNS = ("2:4", "1:4", "1:2", "4:4", "1:1", "3:5", "1:3", "2:6", "7:300")


def bits_of(x):
  return np.asarray(x).view(WORDS[np.asarray(x).dtype.itemsize])


def random_bits(rng, shape, dtype):
  """Any bit pattern the dtype has: NaN payloads, -0.0, denormals."""
  words = WORDS[dtype.itemsize]
  if dtype.kind == "b":
    return rng.random(shape) < 0.5
  if dtype.name in ("int4", "uint4"):
    low = -8 if dtype.name == "int4" else 0
    return rng.integers(low, low + 16, shape).astype(np.int8).astype(dtype)
  top = np.iinfo(words).max
  x = rng.integers(0, top, shape, words, endpoint=True)
  sign = words(1 << (8 * dtype.itemsize - 1))
  x[rng.random(shape) < 0.2] = sign  # -0.0
  return x.view(dtype)


def brute_prune(x, nm, axes, rng):
  """At most n entries per group, the others all zero bits, by loops."""
  bits = bits_of(x).copy()
  rest = [a for a in range(x.ndim) if a not in axes]
  turned = bits.transpose(*rest, *axes)
  shape, rows = turned.shape, turned.reshape(-1, nm.m).copy()
  for row in rows:
    keep = rng.permutation(nm.m)[: rng.integers(0, nm.n, endpoint=True)]
    row[[i for i in range(nm.m) if i not in keep]] = 0
  out = rows.reshape(shape).transpose(np.argsort([*rest, *axes]))
  return np.ascontiguousarray(out).view(x.dtype)


def finished(rng, shape, dtype, nm, axes):
  return brute_prune(random_bits(rng, shape, dtype), nm, axes, rng)


@settings(deadline=None, max_examples=150)
@given(
  dtype=st.sampled_from(DTYPES),
  pattern=st.sampled_from(PATTERNS),
  layout=st.sampled_from(LAYOUTS),
  lead=st.lists(st.integers(1, 3), max_size=2),
  groups=st.integers(0, 3),
  tail=st.lists(st.integers(1, 3), max_size=2),
  negative=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_unpack_inverts_pack(
  dtype, pattern, layout, lead, groups, tail, negative, seed
):
  nm, rng = NM.parse(pattern), np.random.default_rng(seed)
  shape = (*lead, groups * nm.m, *tail)
  axis = len(lead) - (len(shape) if negative else 0)
  x = finished(rng, shape, dtype, nm, (len(lead),))
  packed = pack(x, nm, axis, layout=layout)
  back = unpack(packed)
  assert back.dtype == dtype and back.shape == shape
  np.testing.assert_array_equal(bits_of(back), bits_of(x))
  assert packed.layout == layout and packed.pattern == nm
  kept = x.size // nm.m * nm.n
  assert packed.values.size == kept and packed.values.dtype == dtype
  assert packed.nbytes == packed.values.nbytes + packed.metadata.nbytes
  if layout == "indices":
    assert packed.nbytes == packed_bytes(x.size, nm, dtype.itemsize)
  elif not nm.is_dense:
    assert packed.nbytes == kept * dtype.itemsize + -(-x.size // 8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
  "shape, axis", [((4, 3, 2, 5), (0, 1, 2)), ((4, 3, 6), (2, 0)), ((12,), 0)]
)
def test_convolutions_and_other_tuples(shape, axis, layout):
  axes = axis if isinstance(axis, tuple) else (axis,)
  nm, rng = NM(2, 6), np.random.default_rng(0)
  x = finished(rng, shape, np.dtype(np.float32), nm, axes)
  packed = pack(x, nm, axis, layout=layout)
  np.testing.assert_array_equal(bits_of(unpack(packed)), bits_of(x))
  negative = tuple(a - len(shape) for a in axes)
  assert jax.tree.structure(packed) == jax.tree.structure(
    pack(x, nm, negative, layout=layout)
  )


def brute_layout(x, nm, layout):
  """(values, bytes) of [rows, length], by the words of the module."""
  values, stream = [], []
  width = int(np.ceil(np.log2(nm.m)))
  for row in x.reshape(-1, nm.m).tolist():
    kept = [i for i, v in enumerate(row) if v]
    kept += [i for i, v in enumerate(row) if not v][: nm.n - len(kept)]
    for i in sorted(kept):
      values.append(row[i])
      if layout == "indices":
        stream += [i >> k & 1 for k in range(width)]
    if layout == "bitmask":
      stream += [int(i in kept) for i in range(nm.m)]
  stream += [0] * (-len(stream) % 8)
  octets = [
    sum(bit << k for k, bit in enumerate(stream[at : at + 8]))
    for at in range(0, len(stream), 8)
  ]
  return values, octets


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
  "pattern", ["1:2", "2:4", "3:8", "1:16", "2:5", "4:300"]
)
def test_the_bits_lie_where_the_page_says(pattern, layout):
  nm, rng = NM.parse(pattern), np.random.default_rng(1)
  x = finished(rng, (3, 3 * nm.m), np.dtype(np.int32), nm, (1,))
  packed = pack(x, nm, 1, layout=layout)
  values, octets = brute_layout(x, nm, layout)
  assert packed.values.shape == (3, 3, nm.n)
  assert packed.values.reshape(-1).tolist() == values
  assert packed.metadata.tolist() == octets
  # Groups along the first axis are those of the transpose.
  turned = pack(np.ascontiguousarray(x.T), nm, 0, layout=layout)
  np.testing.assert_array_equal(turned.values, packed.values)
  np.testing.assert_array_equal(turned.metadata, packed.metadata)


@pytest.mark.parametrize(
  "dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn]
)
def test_arrays_of_jax(dtype):
  w = jax.random.normal(jax.random.key(0), (2, 64, 8))
  w = jnp.where(nm_mask(jnp.abs(w), "2:4"), w, 0.0).astype(dtype)
  packed = pack(w, "2:4")
  np.testing.assert_array_equal(bits_of(unpack(packed)), bits_of(w))
  with jax.enable_x64(True):
    wide = jnp.asarray(np.diag(np.arange(1.0, 9)) + 2.0**-40 * np.eye(8))
    assert wide.dtype == jnp.float64
    np.testing.assert_array_equal(unpack(pack(wide, "1:8")), wide)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_negative_zeros_of_a_product_with_a_mask_are_zeros(layout, dtype):
  weight = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
  mask = np.asarray(nm_mask(np.abs(weight), "2:4"))
  product = (mask * weight).astype(dtype)
  assert (np.signbit(product) & (product == 0)).sum() > 8
  packed = pack(product, "2:4", layout=layout)
  assert packed.values.size == mask.sum()
  np.testing.assert_array_equal(
    unpack(packed).astype(np.float32), product.astype(np.float32)
  )


def test_refusals_name_the_leaf_and_the_first_bad_group(unchecked):
  x = np.zeros((8, 3), np.float32)
  x[4:8, 1] = 1, -0.0, 1e-40, np.nan
  message = (
    r"blocks/0/kernel: the group of 4 along axis -2 that starts at entry"
    r" \(4, 1\) holds 3 entries, expected at most 2 \(2:4\)"
  )
  for layout in LAYOUTS:
    with pytest.raises(ValueError, match=message):
      pack(x, "2:4", layout=layout, name="blocks/0/kernel")
  assert unpack(pack(x, "3:4")).shape == x.shape
  with pytest.raises(ValueError, match="k: axis -2 of shape .* m=5"):
    pack(x, "2:5", name="k")
  with pytest.raises(ValueError, match="unknown layout 'index', did you mean"):
    pack(x, "2:4", layout="index")
  with pytest.raises(TypeError, match="of 1, 2, 4 or 8 bytes, got complex128"):
    pack(x.astype(np.complex128), "4:4")


def test_damage_is_noticed():
  x = np.zeros((12, 2), np.float32)
  x[::3] = 1
  good = {layout: pack(x, "1:3", layout=layout) for layout in LAYOUTS}
  for packed in good.values():
    for broken in (
      {"metadata": packed.metadata | np.uint8(255)},
      {"metadata": packed.metadata[:-1]},
      {"values": packed.values[:1]},
      {"pattern": NM(1, 2)},
    ):
      parts = vars(packed) | broken
      with pytest.raises(ValueError, match="array: .*; read it again"):
        unpack(Packed(**parts))


def tree_and_leaves():
  rng = np.random.default_rng(0)
  kernel = finished(rng, (2, 8, 4), np.dtype(np.float32), NM(1, 4), (1,))
  conv = finished(
    rng, (2, 2, 3, 5), np.dtype(ml_dtypes.bfloat16), NM(2, 4), (0, 1, 2)
  )
  tree = {"a": [{"kernel": kernel, "bias": np.ones(4)}, None], "conv": conv}
  leaves = {
    "a/0/kernel": MaskedKernel((2, 8, 4), NM(1, 4)),
    "conv": MaskedKernel((2, 2, 3, 5), NM(2, 4), (-4, -3, -2)),
  }
  return tree, leaves


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trees(layout):
  tree, leaves = tree_and_leaves()
  packed = pack_tree(tree, leaves, layout=layout)
  assert packed["a"][0]["bias"] is tree["a"][0]["bias"]
  assert packed["a"][0]["kernel"].name == "a/0/kernel"
  moved = jax.tree.map(np.copy, packed)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(bits_of(a), bits_of(b)),
    unpack_tree(moved),
    tree,
  )
  with pytest.raises(ValueError, match="a/kernel: no such array, did you mean"):
    pack_tree(tree, {"a/kernel": leaves["conv"]})
  with pytest.raises(ValueError, match=r"conv: expected shape \(8, 4\)"):
    pack_tree(tree, {"conv": MaskedKernel((8, 4), NM(1, 4))})
  tree["conv"] = random_bits(
    np.random.default_rng(1), (2, 2, 3, 5), np.dtype(np.float32)
  )
  with pytest.raises(ValueError, match="conv: the group of 4 along axis .-4"):
    pack_tree(tree, leaves)


@pytest.mark.standard_promotion
def test_orbax_saves_and_restores_it(tmp_path):
  tree, leaves = tree_and_leaves()
  tree["a"] = tree["a"][:1]
  packed = pack_tree(tree, leaves)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "packed", packed)
    checkpointer.wait_until_finished()
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), packed
    )
    assert target["conv"].nbytes == packed["conv"].nbytes
    back = checkpointer.restore(tmp_path / "packed", target)
  assert jax.tree.structure(back) == jax.tree.structure(packed)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(bits_of(a), bits_of(b)),
    unpack_tree(back)["conv"],
    tree["conv"],
  )
