"""A mask of sharded scores is computed without a collective."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from figs_jax.core import NM, nm_mask

COLLECTIVE = r" (all-|collective-|reduce-scatter)[a-z-]*\("
# (pattern, dtype, whether n is traced): every way of ranking in core.top_n.
WAYS = (
  ("2:4", jnp.float32, False),  # comparison
  ("1:16", jnp.float32, False),  # maximum
  ("8:32", jnp.bfloat16, False),  # network
  ("4:128", jnp.float32, False),
  ("3:200", jnp.float32, False),  # search
  ("2:4", jnp.float32, True),  # network
  ("4:128", jnp.float16, True),  # search
)


def check(function, scores, spec, expected, kind=AxisType.Auto):
  """Asserts that the sharded result is local, in place and as expected."""
  mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
  with jax.set_mesh(mesh):
    scores = jax.device_put(scores, NamedSharding(mesh, spec))
    program = jax.jit(function).lower(scores).compile()
    mask = program(scores)
  assert not re.search(COLLECTIVE, program.as_text())
  assert mask.sharding.is_equivalent_to(scores.sharding, scores.ndim)
  np.testing.assert_array_equal(mask, expected)


def brute(scores, pattern, axis, inside=None):
  """The mask of finite scores by NumPy's stable sort."""
  nm, x = NM.parse(pattern), np.asarray(scores, np.float64)
  if inside is not None:
    x = np.where(inside, x, -np.inf)
  axes = (axis,) if isinstance(axis, int) else axis
  last = tuple(range(-len(axes), 0))
  turned = np.moveaxis(x, axes, last)
  groups = turned.reshape(-1, nm.m)
  kept = np.zeros(groups.shape, bool)
  order = np.argsort(-groups, axis=-1, kind="stable")[:, : nm.n]
  np.put_along_axis(kept, order, True, axis=-1)
  kept = np.moveaxis(kept.reshape(turned.shape), last, axes)
  return kept if inside is None else kept & inside


def masker(pattern, axis, traced=False, **options):
  nm = NM.parse(pattern)
  if not traced:
    return lambda s: nm_mask(s, nm, axis, **options)
  dense = NM(nm.m, nm.m)
  # A count that the compiler cannot know, as a schedule's.
  count = jnp.arange(nm.m)
  return lambda s: nm_mask(s, dense, axis, n=count[nm.n], **options)


def normal(shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(0), shape).round(1).astype(dtype)


@pytest.mark.parametrize("pattern, dtype, traced", WAYS)
@pytest.mark.parametrize("sharded", [0, 1])
def test_every_way_of_ranking_is_local(pattern, dtype, traced, sharded):
  spec = PartitionSpec(*("x" if d == sharded else None for d in range(2)))
  scores = normal((8 * NM.parse(pattern).m, 16), dtype)
  expected = brute(scores, pattern, 0)
  check(masker(pattern, -2, traced), scores, spec, expected)
  spec = PartitionSpec(*spec[::-1])
  check(masker(pattern, -1, traced), scores.T, spec, expected.T)


@pytest.mark.parametrize("pattern", ["2:4", "8:32", "4:160"])
@pytest.mark.parametrize("sharded", [0, 1])
def test_explicit_sharding_is_local(pattern, sharded):
  spec = PartitionSpec(*("x" if d == sharded else None for d in range(2)))
  scores = normal((8 * NM.parse(pattern).m, 16))
  expected = brute(scores, pattern, 0)
  check(masker(pattern, -2), scores, spec, expected, AxisType.Explicit)


@pytest.mark.parametrize("pattern", ["2:4", "4:16", "3:160"])
@pytest.mark.parametrize("sharded", [0, 1])
def test_strided_and_nested_masks_are_local(pattern, sharded):
  spec = PartitionSpec(*("x" if d == sharded else None for d in range(2)))
  m = NM.parse(pattern).m
  scores = normal((16 * m, 16))
  strided = np.asarray(scores).reshape(8, m, 2, 16)
  expected = brute(strided, pattern, 1).reshape(scores.shape)
  check(masker(pattern, -2, stride=2), scores, spec, expected)
  expected = brute(scores, pattern, 0, np.asarray(scores) > 0)
  check(lambda s: nm_mask(s, pattern, inside=s > 0), scores, spec, expected)


@pytest.mark.parametrize("pattern", ["2:4", "4:16", "3:160"])
@pytest.mark.parametrize("sharded", range(4))
def test_stacked_and_convolution_kernels_are_local(pattern, sharded):
  """Over [kh, kw, in, out] a group along `in` is local however it is cut."""
  m = NM.parse(pattern).m
  spec = PartitionSpec(*("x" if d == sharded else None for d in range(4)))
  shape = tuple(
    (8 if d == sharded else 1) * size for d, size in enumerate((2, 1, m, 2))
  )
  scores = normal(shape)
  for axis in (-2, (0, 1, 2)):
    expected = brute(scores, pattern, axis)
    check(masker(pattern, axis), scores, spec, expected)


def test_groups_across_shards_do_communicate():
  """The check above can fail: four groups of 32 on eight devices."""
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  scores = jax.ShapeDtypeStruct(
    (128, 16),
    jnp.float32,
    sharding=NamedSharding(mesh, PartitionSpec("x")),
  )
  text = jax.jit(lambda s: nm_mask(s, "8:32")).lower(scores).compile().as_text()
  assert re.search(COLLECTIVE, text)
