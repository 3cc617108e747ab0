"""Masked layers: numpy oracles, gradients, and what stays upstream's."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax import nn
from figs_jax.nn.kernel_axes import einsum_axis, token_axes
from figs_jax.nn.layers import sparse_type


def brute_mask(kernel, n, m, axes):
  """n largest |w| per group along the flattened axes, lowest index first."""
  kernel = np.abs(np.asarray(kernel, np.float32))
  axes = tuple(a % kernel.ndim for a in axes)
  rest = tuple(a for a in range(kernel.ndim) if a not in axes)
  flat = kernel.transpose(rest + axes)
  shape = flat.shape
  groups = flat.reshape(-1, m)
  mask = np.zeros(groups.shape, bool)
  for row, keep in zip(groups, mask):
    keep[sorted(range(m), key=lambda i: (-row[i], i))[:n]] = True
  return mask.reshape(shape).transpose(np.argsort(rest + axes))


def rngs():
  return nnx.Rngs(0)


LAYERS = {
  "linear": lambda **o: nn.SparseLinear(8, 5, rngs=rngs(), **o),
  "no_bias": lambda **o: nn.SparseLinear(
    8, 5, use_bias=False, rngs=rngs(), **o
  ),
  "general": lambda **o: nn.SparseLinearGeneral(
    (2, 4), (3, 2), axis=(-2, -1), rngs=rngs(), **o
  ),
  "batched": lambda **o: nn.SparseLinearGeneral(
    4, 3, axis=-1, batch_axis={0: 2}, rngs=rngs(), **o
  ),
  "einsum": lambda **o: nn.SparseEinsum(
    "bthd,hdo->bto", (2, 4, 3), (3,), rngs=rngs(), **o
  ),
  "conv": lambda **o: nn.SparseConv(
    4, 3, (3, 3), strides=2, padding="CIRCULAR", rngs=rngs(), **o
  ),
  "grouped_conv": lambda **o: nn.SparseConv(
    8, 4, (3,), feature_group_count=2, rngs=rngs(), **o
  ),
}
INPUTS = {
  "linear": (3, 8),
  "no_bias": (8,),
  "general": (3, 2, 4),
  "batched": (2, 5, 4),
  "einsum": (2, 3, 2, 4),
  "conv": (2, 6, 6, 4),
  "grouped_conv": (2, 6, 8),
}
AXES = {
  "linear": (0,),
  "no_bias": (0,),
  "general": (0, 1),
  "batched": (1,),
  "einsum": (0, 1),
  "conv": (2,),
  "grouped_conv": (1,),
}


def inputs(name):
  return jax.random.normal(jax.random.key(7), INPUTS[name])


@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_the_dense_layer_with_a_masked_kernel(name):
  sparse, dense = LAYERS[name](pattern="1:4"), LAYERS[name]()
  kernel = np.asarray(dense.kernel[...])
  mask = brute_mask(kernel, 1, 4, AXES[name])
  np.testing.assert_array_equal(sparse.kernel_mask[...], mask)
  assert sparse.kernel_mask[...].dtype == bool
  x = inputs(name)
  for leak in (0.0, 0.25):
    sparse.leak[...] = jnp.float32(leak)
    dense.kernel[...] = jnp.asarray(np.where(mask, kernel, leak * kernel))
    assert jnp.array_equal(sparse(x), dense(x))


@pytest.mark.parametrize("name", LAYERS)
def test_without_a_pattern_it_is_the_upstream_layer(name):
  ours = LAYERS[name]()
  theirs = object.__new__(ours.dense_type)
  vars(theirs).update(vars(ours))
  for pattern in (None, "4:4"):
    layer = LAYERS[name](pattern=pattern)
    kinds = {
      type(v)
      for v in jax.tree.leaves(
        nnx.state(layer), is_leaf=lambda v: isinstance(v, nnx.Variable)
      )
    }
    assert kinds == {nnx.Param}
    assert layer.pattern is None
    assert jnp.array_equal(layer(inputs(name)), theirs(inputs(name)))


@pytest.mark.parametrize("mode", ["ste", "damped", "masked"])
@pytest.mark.parametrize("name", ["linear", "general", "conv"])
def test_gradients_of_pruned_weights(name, mode):
  layer = LAYERS[name](pattern="2:4", grad_mode=mode)
  graphdef, params, masks, rest = nn.split(layer)
  x = inputs(name)

  def loss(params, masks, leak):
    model = nn.merge(graphdef, params, masks, leak, rest)
    return (model(x) ** 2).sum()

  got = jax.grad(loss)(params, masks, 0.25)["kernel"]
  # g = dL/dw~ is the dense gradient at the effective kernel.
  mask = np.asarray(masks["kernel"])
  kernel = np.asarray(params["kernel"])
  effective = jnp.asarray(np.where(mask, kernel, 0.25 * kernel))
  everything = {**masks, "kernel": jnp.ones_like(masks["kernel"])}
  at = {**params, "kernel": effective}
  g = np.asarray(jax.grad(loss)(at, everything, 0.0)["kernel"])
  share = {"ste": 1.0, "damped": 0.25, "masked": 0.0}[mode]
  np.testing.assert_allclose(got, np.where(mask, g, share * g), rtol=1e-6)


def test_upstream_options_survive():
  options = {
    "dtype": jnp.float32,
    "precision": "highest",
    "preferred_element_type": jnp.float32,
    "dot_general": lambda *a, **k: 2 * jax.lax.dot_general(*a, **k),
    "kernel_init": nnx.initializers.ones,
    "bias_init": nnx.initializers.ones,
  }
  layer = nn.SparseLinear(4, 2, pattern="1:4", rngs=rngs(), **options)
  np.testing.assert_array_equal(layer(jnp.ones((1, 4))), [[3.0, 3.0]])
  own = jnp.zeros((3, 4, 2)).at[0].set(1.0)
  conv = nn.SparseConv(4, 2, (3,), mask=own, pattern="1:4", rngs=rngs())
  kernel = conv.kernel[...] * own * conv.kernel_mask[...].astype(jnp.float32)
  plain = nnx.Conv(4, 2, (3,), rngs=rngs())
  plain.kernel[...] = kernel
  x = jax.random.normal(jax.random.key(0), (1, 5, 4))
  assert jnp.array_equal(conv(x), plain(x))


def test_a_group_axis_of_ones_own():
  layer = nn.SparseConv(
    3, 2, (2, 2), pattern="1:4", group_axis=(0, 1, 2), rngs=rngs()
  )
  expected = brute_mask(layer.kernel[...], 1, 4, (0, 1, 2))
  np.testing.assert_array_equal(layer.kernel_mask[...], expected)
  assert layer.group_axis == (-4, -3, -2)


def test_stacked_layers_have_masks_and_leaks_of_their_own():
  @nnx.vmap
  def stack(key):
    return nn.SparseLinear(8, 8, pattern="1:4", rngs=nnx.Rngs(key))

  layers = stack(jax.random.split(jax.random.key(0), 3))
  assert layers.leak.shape == (3,)
  expected = np.stack(
    [brute_mask(kernel, 1, 4, (0,)) for kernel in layers.kernel[...]]
  )
  np.testing.assert_array_equal(layers.kernel_mask[...], expected)
  graphdef, params, masks, rest = nn.split(layers)
  merged = nn.merge(graphdef, params, masks, 0.5, rest)

  @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
  def run(x, layer):
    return layer(x)

  out = run(jnp.ones((1, 8)), merged)
  want = np.ones((1, 8), np.float32)
  for kernel, mask in zip(np.asarray(params["kernel"]), expected):
    want = want @ np.where(mask, kernel, 0.5 * kernel)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  assert nn.masked_leaves(layers)["kernel"].shape == (3, 8, 8)
  assert nn.masked_leaves(layers)["kernel"].axis == -2


def test_a_kernel_stacked_elsewhere_is_refused():
  stack = nnx.vmap(lambda key: nnx.Linear(8, 4, rngs=nnx.Rngs(key)), out_axes=1)
  layers = stack(jax.random.split(jax.random.key(0), 4))
  with pytest.raises(ValueError, match="stack layers along leading axes"):
    nn.sparsify(layers, "1:4")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_einsum_axes_are_the_summed_letters(data):
  kernel = data.draw(st.permutations(string.ascii_lowercase[:4]))
  kernel = "".join(kernel[: data.draw(st.integers(1, 4))])
  summed = {c for c in kernel if data.draw(st.booleans())}
  lead = data.draw(st.sampled_from(["...", "xy", ""]))
  inputs = lead + "".join(sorted(summed))
  output = lead + "".join(c for c in kernel if c not in summed)
  got = einsum_axis(f"{inputs}, {kernel} -> {output}", len(kernel))
  want = tuple(i - len(kernel) for i, c in enumerate(kernel) if c in summed)
  assert got == (want if len(want) > 1 else want[0] if want else None)


def test_einsum_with_an_ellipsis_in_the_kernel():
  # Two axes stand for the dots: the letters around them keep their places.
  assert einsum_axis("bi...,i...o->bo...", 4) == -4
  assert einsum_axis("b...i,o...i->b...o", 4) == -1


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (
      lambda: nn.SparseLinear(6, 4, pattern="1:4", rngs=rngs()),
      "SparseLinear.kernel: axis -2 has length 6, not a multiple of m=4",
    ),
    (lambda: nn.SparseLinear(8, 4, pattern="5:4", rngs=rngs()), "1 <= n <= m"),
    (
      lambda: nn.SparseEinsum(None, (8, 4), rngs=rngs()),
      "einsum_str in the constructor",
    ),
    (
      lambda: nn.SparseEinsum(
        "bij,ij->bij", (8, 4), pattern="1:4", rngs=rngs()
      ),
      "expected a contracted axis",
    ),
  ],
)
def test_errors_at_construction(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def test_sparse_types_are_made_once():
  class Doubled(nnx.Linear):
    def __call__(self, x):
      return 2 * super().__call__(x)

  kind = sparse_type(Doubled)
  assert kind is sparse_type(Doubled) and sparse_type(kind) is kind
  layer = nn.sparsify(Doubled(8, 4, rngs=rngs()), "1:4")
  assert isinstance(layer, Doubled) and isinstance(layer, nn.Masked)
  single = nn.SparseLinear(8, 4, pattern="1:4", rngs=rngs())
  assert jnp.array_equal(layer(jnp.ones(8)), 2 * single(jnp.ones(8)))


@pytest.mark.parametrize(
  ("equation", "shape", "ndim", "tokens"),
  [
    ("...hd,hdo->...o", (2, 4, 3), 4, (0, 1, 2)),
    ("ebi, eio -> ebo", (2, 4, 3), 3, (1,)),
    ("b...i,io->bo...", (4, 3), 4, (0, 2, 3)),
    ("bi...,i...o->bo...", (4, 2, 2, 3), 4, (0,)),
  ],
)
def test_the_tokens_of_an_einsum(equation, shape, ndim, tokens):
  layer = nnx.Einsum(equation, shape, rngs=rngs())
  assert token_axes(layer, ndim) == tokens


def test_the_gradient_multiplies_matrices_without_a_transposed_copy():
  layer = nn.SparseLinear(6, 4, pattern="1:2", rngs=nnx.Rngs(0))
  graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
  x = jax.random.normal(jax.random.key(1), (2, 3, 6))

  def loss(params, x):
    return (nnx.merge(graphdef, params, rest)(x) ** 2).sum()

  program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, x)
  products = [e for e in program.eqns if e.primitive.name == "dot_general"]
  assert len(products) == 3
  assert all(v.aval.ndim == 2 for e in products for v in e.invars)
  slope = jax.grad(loss)(params, x)["kernel"][...]
  out = np.asarray(layer(x))
  np.testing.assert_allclose(
    slope, np.einsum("bti,bto->io", np.asarray(x), 2 * out), rtol=1e-5
  )
