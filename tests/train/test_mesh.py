"""A model split three ways gives what one device gives, and splits no group."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.collectives import collectives
from figs_jax.train.compilation import compiled_step
from figs_jax.train.config import default_config, plain
from figs_jax.train.sharding import (
  batch_sharding,
  make_mesh,
  state_shardings,
)

from .meshes import module as meshes

pytestmark = pytest.mark.standard_promotion


def check_differences(one, many):
  """Equal losses, and equal masks but where two scores are nearly one."""
  differs = meshes.difference(one, many)
  assert differs.loss < 1e-5
  assert differs.compared and differs.gap < 1e-6
  # Masks that are not all True have been compared.
  assert not all(mask.all() for mask in one.masks[-1].values())
  for path in many.state.bound.leaves:
    weights = flatten(many.state.params)[path]
    mask = flatten(many.state.masks)[path]
    assert mask.sharding.is_equivalent_to(weights.sharding, weights.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(meshes.MODELS))
def test_meshes_give_what_one_device_gives(family, tmp_path):
  experiment = meshes.experiment_of(family)
  one = meshes.trained(experiment, family, (1, 1, 1), 20)
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(20, one.state, {}, {}, None)
  for sizes in meshes.MESHES:
    many = meshes.trained(experiment, family, sizes, 20)
    check_differences(one, many)
    assert meshes.is_restored(tmp_path, one.state, many)


def test_a_mesh_gives_what_one_device_gives(tmp_path):
  experiment = meshes.experiment_of("vit", **{"model.depth": 1})
  one, many = (
    meshes.trained(experiment, "vit", sizes, 5)
    for sizes in ((1, 1, 1), (2, 2, 2))
  )
  check_differences(one, many)
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(5, many.state, {}, {}, None)
  assert meshes.is_restored(tmp_path, many.state, one)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["block", "dots"])
def test_accumulation_and_recomputation_on_a_mesh(policy):
  fields = {"model.scan": policy == "block", "model.dropout": 0.1}
  plain = meshes.experiment_of("vit", **fields, grad_accum_steps=2)
  again = {"model.remat": True, "model.remat_policy": policy}
  saving = meshes.experiment_of("vit", **fields, **again, grad_accum_steps=2)
  one = meshes.trained(plain, "vit", (1, 1, 1), 5)
  for sizes in ((2, 2, 2), (1, 1, 8)):
    check_differences(one, meshes.trained(saving, "vit", sizes, 5))


def test_a_difference_is_seen():
  """Of a group whose scores are not near, and of a loss."""
  leaf = MaskedKernel((8, 1), NM(2, 4))
  state = SimpleNamespace(bound=SimpleNamespace(leaves={"a": leaf}))
  masks = [np.arange(8)[:, None] < 4, np.arange(8)[:, None] > 3]
  scores = [{"a": np.linspace(1, 2, 8)[:, None]}]
  one, two = (
    meshes.Trained(np.array([loss]), [{"a": mask}], scores, state, None)
    for loss, mask in zip((1.0, 1.5), masks)
  )
  assert meshes.difference(one, two) == meshes.Difference(0.5, 1, 1, 0.5)
  assert meshes.difference(one, one) == meshes.Difference(0, 0, 1, 0)


def test_what_a_block_sends_over_tensor():
  """Heads and hidden activations stay apart: six sums of tokens per block.

  They are the outputs of o and fc2, and the input gradients of q, k, v and fc1.
  """
  sizes, fields = (2, 2, 2), {"model.scan": True, "diagnose_every": 0}
  experiment = meshes.experiment_of("vit", "dense", **fields)
  mesh, state = make_mesh(*sizes), experiment.abstract_state
  shardings = state_shardings(state, mesh)

  def placed(leaf, place):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

  batch = next(meshes.batches("vit", 1))
  batch = jax.tree.map(lambda x: placed(x, batch_sharding(mesh)), batch)
  step = compiled_step(experiment, shardings, mesh)
  lowered = step.lower(jax.tree.map(placed, state, shardings), batch)
  tokens, width, depth = 8 // 4 * 5, 64, 2
  one = tokens * width * 4
  large = [
    each
    for each in collectives(lowered.compile().as_text(), dict(mesh.shape))
    if "tensor" in each.axis and each.bytes >= one
  ]
  assert {each.kind for each in large} == {"all-reduce"}
  assert sum(each.total for each in large) == 6 * depth * one


LEAVES = {
  "attn/q/kernel": MaskedKernel((128, 64), NM(1, 4)),
  "attn/o/kernel": MaskedKernel((128, 64), NM(1, 4)),
  "mlp/fc1/kernel": MaskedKernel((3, 128, 256), NM(1, 4)),
  "mlp/fc2/kernel": MaskedKernel((3, 256, 128), NM(1, 4)),
}


def bind(name, leaves):
  pattern = str(next(iter(leaves.values())).pattern)
  return recipes.create(name, pattern, total_steps=100).bind(leaves)


def specs(shapes, leaves, sizes, name="ste"):
  bound = bind(name, leaves)
  arrays = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()}
  places = state_shardings(arrays, make_mesh(*sizes), bound)
  return {k: tuple(place.spec) for k, place in places.items()}


def test_placement_of_a_block():
  shapes = {k: leaf.shape for k, leaf in LEAVES.items()}
  assert specs(shapes, LEAVES, (1, 2, 4)) == {
    "attn/q/kernel": ("fsdp", "tensor"),
    "attn/o/kernel": ("tensor", "fsdp"),
    "mlp/fc1/kernel": (None, "fsdp", "tensor"),
    "mlp/fc2/kernel": (None, "tensor", "fsdp"),
  }
  assert specs(shapes, LEAVES, (1, 8, 1))["attn/q/kernel"] == (None, "fsdp")
  # Groups of 4 do not fit into 12 / 2 rows: both lie on the other axis.
  tall = {"fc1/kernel": MaskedKernel((12, 128), NM(1, 4))}
  assert specs({"fc1/kernel": (12, 128)}, tall, (1, 2, 4)) == {
    "fc1/kernel": (None, ("tensor", "fsdp"))
  }


def test_words_without_masks():
  shapes = {
    "shared/embedding": (256, 32),
    "head/kernel": (32, 10),
    "norm/scale": (32,),
  }
  assert specs(shapes, LEAVES, (1, 2, 4)) == {
    "shared/embedding": ("tensor", "fsdp"),
    "head/kernel": ("fsdp", None),  # 4 does not divide 10 classes
    "norm/scale": (),
  }


@pytest.mark.parametrize(
  ("name", "pattern"), [("ste", "1:16"), ("figs", "1:4")]
)
def test_a_split_group_is_refused(name, pattern):
  leaves = {"blocks/mlp/fc2/kernel": MaskedKernel((64, 32), NM.parse(pattern))}
  with pytest.raises(ValueError) as error:
    specs({"blocks/mlp/fc2/kernel": (64, 32)}, leaves, (1, 1, 8), name)
  text = str(error.value)
  assert "\n" not in text and "blocks/mlp/fc2/kernel: axis -2 (ff)" in text
  if name == "ste":
    assert "--config.mesh.tensor" in text and "a divisor of 4," in text


def test_the_batch_is_whole_over_tensor():
  batch = jax.device_put(jnp.arange(8.0), batch_sharding(make_mesh(2, 2, 2)))
  assert {shard.data.shape for shard in batch.addressable_shards} == {(2,)}
  assert plain(default_config("figs"))["mesh"]["tensor"] == 1
