"""Parameters in bfloat16 follow the trajectory of their float32 masters."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

import figs_jax as figs
from figs_jax import nn, recipes
from figs_jax.core.masks import nm_mask
from figs_jax.core.tree import flatten
from figs_jax.models import pretrained
from figs_jax.optim import keep_masters
from figs_jax.train.loop import train
from figs_jax.train.sharding import make_mesh, state_shardings
from figs_jax.train.state import TrainState, finish, gradients, update
from figs_jax.train.workdir import finished_model, restore

from .meshes import module as meshes

pytestmark = pytest.mark.standard_promotion


def half(tree):
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def net():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.fc1 = nnx.Linear(8, 16, rngs=rngs)
      self.fc2 = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
      return self.fc2(jax.nn.gelu(self.fc1(x)))

  return figs.sparsify(Net(nnx.Rngs(0)), "2:4")


def loss(model, batch, key):
  x, y = batch
  return jnp.mean((model(x) - y) ** 2), {}


def state_of(accum=1, ema=0.0, param_dtype="bfloat16", rate=3e-3):
  recipe = recipes.create("sr_ste", "2:4", 30, dense=0.0)
  tx = recipe.transform(optax.adamw(rate))
  return TrainState.create(
    net(), recipe, tx, loss=loss, grad_accum_steps=accum, ema_decay=ema,
    param_dtype=param_dtype,
  )  # fmt: skip


def batches(count):
  keys = jax.random.split(jax.random.key(1), count)
  for key in keys:
    x = jax.random.normal(key, (8, 8))
    yield x, jnp.tanh(x[:, :4] * 2)


@pytest.mark.parametrize("accum", [1, 2])
def test_the_trajectory_of_a_float32_run_with_a_rounded_forward_pass(accum):
  state = state_of(accum)
  graphdef, weights, masks, rest = nn.split(
    nn.with_flow(net(), state.recipe.flow)
  )
  tx = state.recipe.transform(optax.adamw(3e-3))
  opt_state = tx.init(weights)

  @jax.jit
  def plain(step, weights, masks, opt_state, batch):
    """The step of a float32 run whose loss sees rounded weights."""

    def of_part(weights, part):
      model = nn.merge(graphdef, half(weights), masks, 0.0, rest)
      return loss(model, part, None)[0]

    parts = jax.tree.map(lambda x: x.reshape(-1, accum, x.shape[-1]), batch)
    grads = [
      jax.grad(of_part)(weights, jax.tree.map(lambda x, i=i: x[:, i], parts))
      for i in range(accum)
    ]
    grads = jax.tree.map(lambda *g: sum(g) / accum, *grads)
    moved, opt_state = tx.update(grads, opt_state, weights, masks=masks)
    weights = optax.apply_updates(weights, moved)
    masks = state.bound.masks(step + 1, weights, masks)
    return weights, masks, opt_state

  flips, start = 0, flatten(masks)
  for step, batch in enumerate(batches(30)):
    weights, masks, opt_state = plain(step, weights, masks, opt_state, batch)
    state, _ = jax.jit(update)(state, batch)
    for a, b in zip(*map(jax.tree.leaves, (weights, state.weights))):
      np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (half(weights), state.params))):
      assert b.dtype == jnp.bfloat16
      np.testing.assert_array_equal(a, b)
    for path, mask in flatten(masks).items():
      if mask is not None:
        np.testing.assert_array_equal(mask, flatten(state.masks)[path])
  flips = sum(
    int((mask != start[path]).sum())
    for path, mask in flatten(masks).items()
    if mask is not None
  )
  assert flips > 0  # masks have moved with the masters


def test_steps_that_bfloat16_rounds_away_add_up():
  def moved(state):
    first = state.params["fc1"]["kernel"]
    step = jax.jit(update)
    for batch in batches(30):
      state, _ = step(state, batch)
    return float((state.params["fc1"]["kernel"] != first).mean())

  # Without masters, parameters drawn in bfloat16.
  lost = state_of(param_dtype=None, rate=1e-5)
  lost = dataclasses.replace(lost, params=half(lost.params))
  assert moved(lost) < 0.1 < moved(state_of(rate=1e-4))


def test_masks_are_of_masters_where_rounded_weights_are_equal():
  state = state_of()
  tied = jnp.tile(jnp.array([1.0, 1.001, 1.002, 1.003])[:, None], (2, 16))
  assert len(np.unique(np.asarray(half(tied)))) == 1
  masters = state.weights | {"fc1": state.weights["fc1"] | {"kernel": tied}}
  opt_state = state.opt_state._replace(masters=masters)
  state = dataclasses.replace(
    state, params=half(masters), opt_state=opt_state, step=jnp.int32(1)
  )
  # Of a group of equal weights, the first ones would be kept.
  want = nm_mask(tied, "2:4", -2)
  assert not bool(want[:2].any())
  fresh = figs.train.state.with_fresh_masks(state)
  np.testing.assert_array_equal(fresh.masks["fc1"]["kernel"], want)
  params, masks = finish(dataclasses.replace(fresh, ema=masters), ema=True)
  np.testing.assert_array_equal(masks["fc1"]["kernel"], want)
  assert params["fc1"]["kernel"].dtype == jnp.bfloat16


def test_averages_are_of_masters_and_models_have_the_rounded_weights():
  state, average = state_of(ema=0.5), None
  for batch in batches(3):
    average = state.weights if average is None else average
    state, _ = jax.jit(update)(state, batch)
    average = jax.tree.map(
      lambda old, new: old + 0.5 * (new - old), average, state.weights
    )
  for a, b in zip(*map(jax.tree.leaves, (average, state.ema))):
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=1e-6)
  kernel = state.finished().fc1.kernel[...]
  mask = state.masks["fc1"]["kernel"]
  assert kernel.dtype == jnp.bfloat16
  np.testing.assert_array_equal(kernel, state.params["fc1"]["kernel"] * mask)
  grads = gradients(state, next(batches(1)), jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {
    jnp.dtype("float32")
  }


def test_update_without_params_is_refused():
  tx = keep_masters(optax.sgd(0.1))
  params = {"w": jnp.ones(2)}
  with pytest.raises(ValueError, match="expected the parameters; call"):
    tx.update(params, tx.init(params))


def test_a_configuration_has_masters_that_lie_as_their_kernels():
  state = meshes.experiment_of("vit", param_dtype="bfloat16").abstract_state
  places = state_shardings(state, make_mesh(2, 2, 2), state.bound)
  params, masters, at, above = map(
    flatten, (state.params, state.weights, places.params, places.weights)
  )
  assert any("tensor" in place.spec for place in at.values())
  for path, leaf in params.items():
    assert (leaf.dtype, masters[path].dtype) == (jnp.bfloat16, jnp.float32)
    assert at[path] == above[path], path


@pytest.mark.slow
def test_a_run_is_saved_with_masters_and_goes_on(tiny_config, tmp_path):
  fields = {"total_steps": 8, "checkpoint_every": 4, "ema_decay": 0.5}
  fields |= {"param_dtype": "bfloat16", "mesh.fsdp": 2, "mesh.tensor": 2}
  config = tiny_config("figs", **fields)
  whole = train(config, tmp_path / "whole")
  shutil.copytree(tmp_path / "whole", tmp_path / "half")
  shutil.rmtree(tmp_path / "half" / "checkpoints" / "8")
  assert train(config, tmp_path / "half") == whole
  states = [restore(tmp_path / name)[1] for name in ("whole", "half")]
  for a, b in zip(*map(jax.tree.leaves, states)):
    np.testing.assert_array_equal(a, b)
  model = finished_model(tmp_path / "half")
  assert model.head.kernel[...].dtype == jnp.bfloat16
  path = tmp_path / "model.safetensors"
  pretrained.save(model, path)
  dtypes = {array.dtype for array in load_file(path).values()}
  assert dtypes == {jnp.dtype("bfloat16")}
