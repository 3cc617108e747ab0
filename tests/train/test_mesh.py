"""A model split three ways gives what one device gives, and splits no group."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from figs_jax import recipes
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.compilation import compiled_step
from figs_jax.train.config import default_config, plain
from figs_jax.train.sharding import (
  batch_sharding,
  make_mesh,
  state_shardings,
)

from .test_every_config import built

pytestmark = pytest.mark.standard_promotion
COLLECTIVE = re.compile(
  r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
  r"|collective-broadcast"
)
MODELS = {
  "vit": ("custom/4", {"width": 64, "depth": 2, "heads": 4, "mlp_dim": 128}),
  "swin_v2": (
    "custom/2",
    {"width": 64, "depths": (1, 1), "heads": 4, "window": 2},
  ),
  "t5": (
    "custom",
    {"width": 64, "depth": 2, "heads": 4, "head_dim": 16, "mlp_dim": 128},
  ),
}
STEPS = 4


def config_of(family, **fields):
  config = default_config("figs", family)
  config.variant, sizes = MODELS[family]
  config.model.update(sizes)
  config.pattern = "ff: 1:4, o: 2:4"
  config.batch_size, config.total_steps = 8, 8
  config.recipe.dense, config.recipe.finetune = 0.0, 0.25
  config.recipe.k = 2
  config.optimizer.warmup_steps = 0
  config.optimizer.learning_rate = 1e-3
  if family == "t5":
    config.data.name = "stdlib_text"
    config.data.input_length = config.data.target_length = 8
  config.update_from_flattened_dict(fields)
  return config


def batches(family):
  rng = np.random.default_rng(0)
  for _ in range(STEPS):
    if family == "t5":
      ids = rng.integers(1, 200, (2, 8, 8)).astype(np.int32)
      yield {"inputs": ids[0], "targets": ids[1]}
    else:
      images = rng.random((8, 8, 8, 1), np.float32)
      labels = rng.integers(0, 10, 8).astype(np.int32)
      yield {"image": images, "label": labels}


def trained(family, sizes, monkeypatch, **fields):
  """(losses, state, shardings) after a few steps on a mesh."""
  experiment = built(config_of(family, **fields), monkeypatch)
  mesh = make_mesh(*sizes)
  abstract = experiment.abstract_state
  shardings = state_shardings(abstract, mesh, abstract.bound)
  state = experiment.placed_state(shardings)
  step = compiled_step(experiment, shardings, mesh)
  losses = []
  for batch in batches(family):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return losses, state, shardings


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(MODELS))
def test_meshes_give_what_one_device_gives(family, monkeypatch, tmp_path):
  losses, state, _ = trained(family, (1, 1, 1), monkeypatch)
  kernel = "encoder/blocks/0/mlp/wo" if family == "t5" else "blocks/0/mlp/fc2"
  kernel = "stages/0/" + kernel if family == "swin_v2" else kernel
  saved = None
  for sizes in ((1, 8, 1), (2, 2, 2), (1, 1, 8), (4, 1, 2)):
    each, many, shardings = trained(family, sizes, monkeypatch)
    np.testing.assert_allclose(each, losses, rtol=1e-5)
    weights = flatten(many.params)[f"{kernel}/kernel"]
    mask = flatten(many.masks)[f"{kernel}/kernel"]
    assert mask.sharding.is_equivalent_to(weights.sharding, 2)
    parts = sizes[1] * sizes[2]
    assert weights.addressable_shards[0].data.size == weights.size // parts
    for path, leaf in many.bound.leaves.items():
      check_masks(state, many, path, leaf)
    if saved is None:
      saved = many
      with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(STEPS, many, {}, {}, None)
    else:
      check_restored(tmp_path, saved, many, shardings)


def check_masks(state, other, path, leaf):
  """Masks are equal but in groups where scores lie within 1e-6."""
  one, two = (
    np.asarray(flatten(x.masks)[path]).swapaxes(leaf.axis, -1)
    for x in (state, other)
  )
  weights = np.abs(np.asarray(flatten(state.params)[path]))
  weights = weights.swapaxes(leaf.axis, -1)
  length = 2 * leaf.pattern.m  # of the longest groups, k = 2
  groups = (one != two).reshape(-1, length).any(axis=-1)
  for group in weights.reshape(-1, length)[groups]:
    near = np.sort(group)
    gaps = np.diff(near) / near[1:]
    assert gaps.min() < 1e-4, (path, gaps.min())
  assert groups.mean() < 0.01


def check_restored(path, saved, like, shardings):
  """Restored on another mesh bit for bit, and where it belongs."""
  target = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    like,
    shardings,
  )
  with Checkpointer(path) as checkpoints:
    state, _, _ = checkpoints.restore(target)
  rows = zip(*map(jax.tree.leaves, (saved, state, shardings)))
  for old, new, place in rows:
    np.testing.assert_array_equal(old, new)
    assert new.sharding.is_equivalent_to(place, new.ndim)


LEAVES = {
  "attn/q/kernel": MaskedKernel((128, 64), NM(1, 4)),
  "attn/o/kernel": MaskedKernel((128, 64), NM(1, 4)),
  "mlp/fc1/kernel": MaskedKernel((3, 128, 256), NM(1, 4)),
  "mlp/fc2/kernel": MaskedKernel((3, 256, 128), NM(1, 4)),
}


def bind(name, leaves):
  pattern = str(next(iter(leaves.values())).pattern)
  return recipes.create(name, pattern, total_steps=100).bind(leaves)


NAMES = ("figs", "sr_ste", "step", "transposable", "ste")


@pytest.mark.parametrize("name", NAMES)
def test_mask_update_without_collectives(name):
  mesh = make_mesh(2, 2, 2)
  bound = bind(name, LEAVES)
  params = {k: jnp.zeros(leaf.shape) for k, leaf in LEAVES.items()}
  masks = {k: jnp.ones(leaf.shape, bool) for k, leaf in LEAVES.items()}
  places = state_shardings(params, mesh, bound)
  assert {axis for place in places.values() for axis in place.spec} >= {
    "fsdp",
    "tensor",
  }
  scalar = NamedSharding(mesh, PartitionSpec())
  program = jax.jit(
    lambda step, w, masks, grads, switched: bound.masks(
      step, w, masks, switched, switched, grads=grads
    ),
    in_shardings=(scalar, places, places, places, scalar),
    out_shardings=places,
  )
  flag = jnp.bool_(True)
  text = program.lower(jnp.int32(3), params, masks, params, flag).compile()
  assert not COLLECTIVE.search(text.as_text())


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
