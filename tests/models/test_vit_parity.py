"""ViT against other libraries: stored numbers always, live where they are."""

import functools

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import pretrained
from figs_jax.models.pretrained.files import write_weights

from . import vit_oracle as oracle
from .parity import ATOL, check_gradient, under


def create(**options):
  options = {**oracle.OPTIONS, **options}
  return models.create("vit", "custom/4", rngs=nnx.Rngs(3), **options)


def loaded(folder, weights, model=None):
  write_weights(folder / "model.safetensors", weights)
  return pretrained.load(model or create(), folder)


def compare(folder, weights, expected, **options):
  """Logits, and the direction and length of every tensor's gradient."""
  model = loaded(folder, weights, create(**options))
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slope(params):
    logits = nn.merge(graphdef, params, masks, 0.0, rest)(expected["images"])
    return (logits * expected["cotangent"]).sum(), logits

  with jax.default_matmul_precision("highest"):
    (_, logits), grads = slope(params)
  np.testing.assert_allclose(logits, expected["logits"], atol=ATOL, rtol=0)
  # The gradients are a file of the same names: they come in the same way.
  theirs = nn.split(loaded(folder, under("gradient/", expected), model))[1]
  theirs = tree.flatten(theirs)
  for path, got in tree.flatten(grads).items():
    if path.endswith("attn/k/bias"):
      # Adding one vector to all keys does not change a softmax.
      assert np.abs(got).max() < 1e-5
      continue
    check_gradient(path, got, theirs[path])


@pytest.mark.parametrize("scan", [False, True])
def test_logits_and_gradients_equal_the_stored_ones(tmp_path, scan):
  with np.load(oracle.TARGET) as data:
    stored = dict(data)
  compare(tmp_path, under("weight/", stored), stored, scan=scan)


@pytest.mark.parametrize("names", ["of files", "in memory"])
def test_logits_and_gradients_equal_those_computed_now(tmp_path, names):
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  model = oracle.random_model(7)
  weights = oracle.published(model)
  if names == "in memory":
    state = model.state_dict()
    assert state.keys() != weights.keys()
    weights = {k: v.numpy().copy() for k, v in state.items()}
  compare(tmp_path, weights, oracle.computed(model, 8))


class Linen(linen.Module):
  """The layers of big_vision's ViT, made of Flax's own."""

  pool: str

  @linen.compact
  def __call__(self, images):
    width = oracle.WIDTH
    patch = (oracle.PATCH, oracle.PATCH)
    x = linen.Conv(width, patch, patch, "VALID", name="embedding")(images)
    x = x.reshape(x.shape[0], -1, width)
    normal = linen.initializers.normal(1.0)
    x = x + self.param("pos_embedding", normal, (1, x.shape[1], width))
    if self.pool == "cls":
      first = self.param("cls", normal, (1, 1, width))
      first = jnp.broadcast_to(first, (x.shape[0], 1, width))
      x = jnp.concatenate([first, x], axis=1)
    x = Encoder(name="Transformer")(x)
    x = x[:, 0] if self.pool == "cls" else x.mean(axis=1)
    return linen.Dense(oracle.CLASSES, name="head")(x)


class Encoder(linen.Module):
  @linen.compact
  def __call__(self, x):
    for i in range(oracle.DEPTH):
      x = Layer(name=f"encoderblock_{i}")(x)
    return linen.LayerNorm(name="encoder_norm")(x)


class Layer(linen.Module):
  @linen.compact
  def __call__(self, x):
    y = linen.LayerNorm(use_fast_variance=False)(x)
    y = linen.MultiHeadDotProductAttention(
      oracle.HEADS, bias_init=linen.initializers.normal(0.2)
    )(y, y)
    x = x + y
    y = linen.LayerNorm(use_fast_variance=False)(x)
    return x + FeedForward(name="MlpBlock_0")(y)


class FeedForward(linen.Module):
  @linen.compact
  def __call__(self, x):
    hidden = linen.gelu(linen.Dense(oracle.MLP)(x))
    return linen.Dense(oracle.WIDTH)(hidden)


def flax_weights(pool, images):
  """(names with slashes -> arrays, logits) of the module above."""
  params = Linen(pool).init(jax.random.key(0), images)
  keys = jax.random.key(1)
  params = jax.tree.map(
    lambda p: p + 0.2 * jax.random.normal(keys, p.shape), params
  )
  logits = Linen(pool).apply(params, images)
  return {k: np.asarray(v) for k, v in tree.flatten(params).items()}, logits


OLD = (
  ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
  ("LayerNorm_1", "LayerNorm_2"),
  ("MlpBlock_0", "MlpBlock_3"),
)


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("age", ["new", "before 2022", "first"])
def test_flax_files_of_every_age_give_flax_logits(tmp_path, age, pool):
  images = jax.random.normal(jax.random.key(2), (2, *oracle.IMAGE, 3))
  with jax.default_matmul_precision("highest"):
    weights, logits = flax_weights(pool, images)
  assert all(name.startswith("params/") for name in weights)
  if age == "new":
    # The optimizer's state lies beside the weights in such a file.
    weights["opt/0/count"] = np.zeros((), np.int32)
  else:
    weights = under("params/", weights)
    place = "Transformer/pos_embedding"
    if age == "first":
      place = "Transformer/posembed_input/pos_embedding"
      for new, old in OLD:
        weights = {k.replace(new, old): v for k, v in weights.items()}
    positions = weights.pop("pos_embedding")
    if pool == "cls":  # their class token had a position, added to it
      shift = np.full_like(weights["cls"], 0.5)
      weights["cls"] = weights["cls"] - shift
      positions = np.concatenate([shift, positions], axis=1)
    weights[place] = positions
  path = tmp_path / "weights.npz"
  np.savez(path, **weights)
  model = create(pool=pool, gelu="tanh", norm_epsilon=1e-6)
  with jax.default_matmul_precision("highest"):
    got = nnx.jit(lambda m, x: m(x))(pretrained.load(model, path), images)
  np.testing.assert_allclose(got, logits, atol=1e-5, rtol=0)
