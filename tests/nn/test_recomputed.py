"""Kernels that a model recomputes in its call are refused."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import nn
from figs_jax.train.state import update


class Net(nnx.Module):
  def __init__(self, wrap, rngs):
    self.fc = nnx.Linear(8, 8, rngs=rngs)
    self.normed = wrap(nnx.Linear(8, 4, rngs=rngs), rngs=rngs)

  def __call__(self, x):
    return self.normed(self.fc(x))


class Doubling(nnx.Module):
  """Overwrites the kernel of its layer, as Flax's wrappers do."""

  def __init__(self, layer, *, rngs):
    self.layer = layer

  def __call__(self, x):
    self.layer.kernel[...] = 2 * self.layer.kernel[...]
    return self.layer(x)


class Rematerialized(nnx.Module):
  """Calls its layer inside of transforms, which write variables back."""

  def __init__(self, layer, *, rngs):
    self.layer = layer

  def __call__(self, x):
    call = nnx.jit(nnx.remat(lambda layer, x: layer(x)))
    return call(self.layer, x)


def started(model):
  recipe = figs.recipes.create("ste", "2:4", total_steps=9, dense=0.0)
  return figs.TrainState.create(
    model,
    recipe,
    recipe.transform(optax.sgd(0.0)),
    loss=lambda model, x, key: ((model(x) ** 2).mean(), {}),
  )


@pytest.mark.parametrize("wrap", [nnx.WeightNorm, nnx.SpectralNorm])
def test_norms_of_a_masked_kernel_are_refused(wrap):
  model = Net(wrap, nnx.Rngs(0))
  with pytest.raises(
    ValueError, match=f"^normed/layer_instance/kernel: {wrap.__name__} "
  ):
    figs.sparsify(model, "2:4")
  sparse = figs.sparsify(
    model,
    figs.Rules((("normed/.*", None), (".*", figs.NM(2, 4)))),
  )
  assert list(nn.masked_leaves(sparse)) == ["fc/kernel"]
  # What is left is right: the finished model is the trained one.
  x = jnp.arange(16.0).reshape(2, 8)
  state = started(sparse)
  state, metrics = update(state, x)
  finished = state.finished()
  if wrap is nnx.WeightNorm:
    loss = (finished(x) ** 2).mean()
    assert jnp.allclose(loss, metrics["loss"], rtol=1e-5)


def test_a_model_that_overwrites_a_masked_kernel_is_refused():
  state = started(figs.sparsify(Net(Doubling, nnx.Rngs(0)), "2:4"))
  with pytest.raises(ValueError, match="^normed/layer/kernel: the model recom"):
    jax.eval_shape(update, state, jnp.ones((2, 8)))


def test_transforms_inside_of_a_model_overwrite_nothing():
  state = started(figs.sparsify(Net(Rematerialized, nnx.Rngs(0)), "2:4"))
  jax.eval_shape(update, state, jnp.ones((2, 8)))
