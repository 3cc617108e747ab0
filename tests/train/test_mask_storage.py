"""Packed masks train as Boolean masks do, in an eighth of the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core.mask_bits import unpack_masks
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.compilation import compiled_step
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.experiment import build
from figs_jax.train.schema import check
from figs_jax.train.seeds import create_states, step_seeds
from figs_jax.train.sharding import make_mesh, state_shardings

from .meshes import module as meshes

pytestmark = pytest.mark.standard_promotion
STEPS = 4
RECIPES = ("figs", "step", "rigl", "s_ste", "sr_ste", "transposable")


def config_of(name, storage, **fields):
  config = default_config(name, "vit")
  config.variant = "custom/4"
  config.model.update({"width": 64, "depth": 2, "heads": 4, "mlp_dim": 128})
  config.model.scan = True
  config.pattern = "ff: 2:4, o: 2:4"
  config.batch_size, config.total_steps = 8, 8
  config.optimizer.warmup_steps, config.optimizer.learning_rate = 0, 1e-2
  config.diagnose_every = 2
  if "dense" in config.recipe:
    config.recipe.dense = 0.0
  config.mask_storage = storage
  config.update_from_flattened_dict(fields)
  return config


def placed(experiment, sizes=(1, 1, 1)):
  mesh, abstract = make_mesh(*sizes), experiment.abstract_state
  shardings = state_shardings(abstract, mesh, abstract.bound)
  return experiment.placed_state(shardings), shardings, mesh


def trained(config, sizes=(1, 1, 1)):
  """(losses, state, experiment, shardings) after a few steps."""
  experiment = build(config)
  state, shardings, mesh = placed(experiment, sizes)
  step = compiled_step(experiment, shardings, mesh)
  rows = []
  for batch in meshes.batches("vit", STEPS):
    state, metrics = step(state, batch)
    rows.append(metrics)
  return rows, state, experiment, shardings


def assert_same(one, two):
  for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_training_is_bit_equal(name, data_dir, tmp_path):
  own = {"data.data_dir": data_dir}
  rows, state, *_ = trained(config_of(name, "bool", **own))
  packed_rows, packed, experiment, shardings = trained(
    config_of(name, "bits", **own)
  )
  assert_same(rows, packed_rows)  # with statistics of masks
  assert_same(state.params, packed.params)
  assert_same(state.opt_state, packed.opt_state)
  bools, bits = flatten(state.masks), flatten(packed.masks)
  for path, mask in bools.items():
    if mask is not None:
      assert bits[path].dtype == jnp.uint8
      assert bits[path].nbytes * 8 == mask.nbytes
  assert_same(state.masks, unpack_masks(packed.masks, packed.params))
  check_restored(tmp_path, packed, shardings)


def check_restored(path, state, shardings):
  target = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    state,
    shardings,
  )
  with Checkpointer(path) as checkpoints:
    checkpoints.save(STEPS, state, {}, {}, None)
  with Checkpointer(path) as checkpoints:
    restored, _, _ = checkpoints.restore(target)
  assert_same(restored, state)


@pytest.mark.slow
def test_finished_models_and_meshes(data_dir):
  """A byte never spans devices; exports and evaluation see Boolean masks."""
  own = {"data.data_dir": data_dir}
  _, state, *_ = trained(config_of("figs", "bool", **own), (2, 2, 2))
  _, packed, *_ = trained(config_of("figs", "bits", **own), (2, 2, 2))
  assert_same(state.params, packed.params)
  for path, mask in flatten(packed.masks).items():
    if mask is not None:
      kernel = flatten(packed.params)[path]
      assert mask.sharding.spec == kernel.sharding.spec
      part = mask.addressable_shards[0].data
      assert part.size * 8 == kernel.addressable_shards[0].data.size
  images = next(meshes.batches("vit", 1))["image"]
  models = [x.finished() for x in (state, packed)]
  assert models[1].blocks.mlp.fc1.kernel_mask[...].dtype == bool
  np.testing.assert_array_equal(*(model(images) for model in models))


@pytest.mark.slow
def test_seeds(data_dir):
  losses = {}
  for storage in ("bool", "bits"):
    own = config_of("figs", storage, **{"data.data_dir": data_dir})
    experiment = build(own)
    state = create_states(experiment.lone_state, [0, 1])
    step = jax.jit(step_seeds)
    for batch in meshes.batches("vit", STEPS):
      state, metrics = step(state, batch)
    losses[storage] = metrics["loss"]
    dtype = jnp.uint8 if storage == "bits" else bool
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(state.masks))
  np.testing.assert_array_equal(losses["bool"], losses["bits"])


def test_odd_kernels_keep_bytes():
  leaves = {
    "a": MaskedKernel((12, 8), NM(2, 4)),
    "b": MaskedKernel((3, 3, 16, 5), NM(2, 4), (-4, -3, -2)),
  }
  bound = recipes.create("ste", "2:4", total_steps=9, dense=0.0).bind(
    leaves, "bits"
  )
  assert bound.mask_shapes == {"a": (12, 8), "b": (3, 3, 2, 5)}
  params = {
    k: jnp.arange(np.prod(v.shape)).reshape(v.shape) * 1.0
    for k, v in leaves.items()
  }
  masks = bound.masks(5, params)
  assert (masks["a"].dtype, masks["b"].dtype) == (bool, jnp.uint8)
  plain = recipes.create("ste", "2:4", total_steps=9, dense=0.0).bind(leaves)
  assert_same(plain.masks(5, params), unpack_masks(masks, params))
  assert bound.shard_units["b"][-2] == 8
  with pytest.raises(ValueError, match="mask_storage: expected one of"):
    recipes.create("ste", "2:4", total_steps=9).bind(leaves, "nibbles")


def test_the_field_is_checked():
  config = config_of("figs", "bits")
  check(config)
  config.mask_storage = "nibbles"
  with pytest.raises(ConfigError, match="mask_storage"):
    check(config)
