"""Eight devices give what one gives, and groups never straddle them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from figs_jax import recipes
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.train import seeds
from figs_jax.train.compilation import compiled_step
from figs_jax.train.experiment import build
from figs_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from tests.compilations import compilations

pytestmark = pytest.mark.standard_promotion


def losses(config, steps=20):
  experiment = build(config)
  mesh = make_mesh(**config.mesh.to_dict())
  abstract = experiment.abstract_state
  shardings = state_shardings(
    abstract, mesh, abstract.bound, bool(experiment.seeds)
  )
  state = experiment.placed_state(shardings)
  step = compiled_step(experiment, shardings)
  turns = isinstance(step, seeds.InTurn)
  if turns:
    state = seeds.apart(state)
  sharding = batch_sharding(mesh, experiment.batch_axis == 0)
  lead = (len(experiment.seeds), 16) if experiment.batch_axis == 0 else (16,)
  labels = np.broadcast_to(np.arange(16, dtype=np.int32) % 10, lead)
  out = []
  name = "step_seeds" if experiment.seeds and not turns else "update"
  with compilations(name) as compiled:
    for i in range(steps):
      image = jax.random.normal(jax.random.key(i), (*lead, 8, 8, 1))
      batch = {"image": np.asarray(image), "label": labels}
      batch = jax.device_put(batch, sharding)
      state, metrics = step(state, batch)
      each = metrics if turns else [metrics]
      out.append(np.squeeze([one["loss"] for one in each]))
  assert len(compiled) == 1
  if turns:
    state = seeds.together(state, shardings)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings)):
      assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  return np.stack(out), state


BASE = {"total_steps": 24, "optimizer.learning_rate": 1e-3}


@pytest.fixture(scope="module")
def one_device(tiny_config):
  with jax.numpy_rank_promotion("raise"):
    return losses(tiny_config("figs", **BASE))[0]


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4), (1, 8)])
def test_eight_devices_give_the_same_losses(
  tiny_config, one_device, data, fsdp
):
  one = one_device
  eight, state = losses(
    tiny_config("figs", **BASE, **{"mesh.data": data, "mesh.fsdp": fsdp})
  )
  np.testing.assert_allclose(eight, one, atol=1e-5)
  kernel = state.params["blocks"][0]["mlp"]["fc1"]["kernel"]
  assert len(kernel.sharding.device_set) == 8
  expected = kernel.shape[1] // fsdp
  assert kernel.addressable_shards[0].data.shape == (32, expected)


@pytest.mark.slow
@pytest.mark.parametrize("order, mode", [("own", "map"), ("shared", "vmap")])
def test_seeds_on_a_mesh(tiny_config, order, mode):
  base = {"total_steps": 24, "seeds": 2, "seeds_mode": mode}
  base["data.order"] = order
  one, _ = losses(tiny_config("figs", **base), steps=6)
  many, _ = losses(
    tiny_config("figs", **base, **{"mesh.data": 2, "mesh.fsdp": 2}), steps=6
  )
  assert one.shape == (6, 2)
  np.testing.assert_allclose(many, one, atol=1e-5)


@pytest.mark.slow
def test_accumulation_divides_the_work_of_each_device(tiny_config):
  base = {"total_steps": 24, "grad_accum_steps": 2, "recipe.dense": 0.0}
  one, _ = losses(tiny_config("ste", **base), steps=3)
  two, _ = losses(tiny_config("ste", **base, **{"mesh.data": 2}), steps=3)
  np.testing.assert_allclose(two, one, atol=1e-5)


def test_micro_batches_take_their_part_of_every_device():
  mesh = make_mesh(4, 1)
  batch = jax.device_put(jnp.arange(16.0), batch_sharding(mesh))
  micro = jax.jit(lambda x: x.reshape(-1, 2).swapaxes(0, 1))(batch)
  assert {s.data.shape for s in micro.addressable_shards} == {(2, 2)}


def test_kernels_are_split_beside_their_groups():
  mesh = make_mesh(1, 4)
  state = {
    "params": {
      "fc": {"kernel": jnp.zeros((64, 8)), "bias": jnp.zeros(8)},
      "out": {"kernel": jnp.zeros((4, 16, 8))},
      "odd": {"kernel": jnp.zeros((7, 9))},
    }
  }
  leaves = {
    "fc/kernel": MaskedKernel((64, 8), NM(1, 4), -2),
    "out/kernel": MaskedKernel((4, 16, 8), NM(1, 4), (-3, -2)),
  }
  bound = recipes.create("ste", "1:4", total_steps=10).bind(leaves)
  placed = state_shardings(state, mesh, bound)["params"]
  assert placed["fc"]["kernel"].spec == PartitionSpec(None, "fsdp")
  assert placed["out"]["kernel"].spec == PartitionSpec(None, None, "fsdp")
  assert placed["fc"]["bias"].spec == PartitionSpec()
  assert placed["odd"]["kernel"].spec == PartitionSpec()


def test_mesh_sizes():
  assert dict(make_mesh(-1, 2).shape) == {
    "seed": 1,
    "data": 4,
    "fsdp": 2,
    "tensor": 1,
  }
  for data, fsdp in [(16, 1), (0, 1), (-1, -1), (-2, 1), (-1, 9)]:
    with pytest.raises(ValueError, match=f"data={data}, fsdp={fsdp}"):
      make_mesh(data, fsdp)
