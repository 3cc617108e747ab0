"""Which recipes update their masks without a collective, on 3-D meshes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from figs_jax import recipes
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.recipes.bound_recipe import MASK_UPDATE
from figs_jax.train.collectives import collectives
from figs_jax.train.plan import plan_step
from figs_jax.train.sharding import make_mesh, state_shardings

from .test_mask_storage import config_of as storage_config

pytestmark = pytest.mark.standard_promotion
# Groups along the split axis too, a stack, and lengths that 8 * 4 divides.
LEAVES = {
  "attn/q/kernel": MaskedKernel((128, 64), NM(2, 4)),
  "attn/o/kernel": MaskedKernel((256, 64), NM(2, 4)),
  "mlp/fc1/kernel": MaskedKernel((3, 128, 256), NM(2, 4)),
  "mlp/fc2/kernel": MaskedKernel((3, 256, 128), NM(2, 4)),
}
NAMES = tuple(name for name in recipes.names() if name != "dense")
MESHES = ((2, 2, 2), (1, 2, 4))


class Kernels(NamedTuple):
  """The part of a state that a mask update reads."""

  params: Any
  masks: Any


def update_collectives(name, sizes, storage="bool", **options):
  """The collectives of the mask update of a recipe, alone."""
  mesh = make_mesh(*sizes)
  recipe = recipes.create(name, "2:4", total_steps=100, **options)
  bound = recipe.bind(LEAVES, storage)
  params = {k: jnp.zeros(leaf.shape) for k, leaf in LEAVES.items()}
  masks = bound.first_masks(params)
  places, mask_places = state_shardings(Kernels(params, masks), mesh, bound)
  for path, place in places.items():
    assert {"fsdp", "tensor"} <= set(jax.tree.leaves(tuple(place.spec)))
    assert mask_places[path].spec == place.spec
  scalar = NamedSharding(mesh, PartitionSpec())
  program = jax.jit(
    lambda step, w, masks, grads, flag: bound.masks(
      step, w, masks, flag, flag, grads=grads
    ),
    in_shardings=(scalar, places, mask_places, places, scalar),
    out_shardings=mask_places,
  )
  lowered = program.lower(jnp.int32(3), params, masks, params, jnp.bool_(True))
  return collectives(lowered.compile().as_text(), dict(mesh.shape))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_no_collective_in_the_update(name, sizes):
  assert update_collectives(name, sizes) == []


@pytest.mark.parametrize("name", ["figs", "transposable", "rigl"])
def test_no_collective_with_packed_masks(name):
  assert update_collectives(name, (2, 2, 2), "bits") == []


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_leaf_wide_criteria_send_counts_alone(name):
  """Numbers per pass of a search and per column, whatever the kernel's size."""
  sent = update_collectives(name, (2, 2, 2), scope="leaf")
  assert sent and {one.kind for one in sent} <= {"all-reduce", "all-gather"}
  columns = max(leaf.shape[-1] for leaf in LEAVES.values())
  assert max(one.bytes for one in sent) <= 4 * (columns + 1)
  assert sum(one.total for one in sent) <= 4 * 1024 * len(LEAVES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["figs", "transposable", "step"])
def test_no_collective_of_the_update_in_the_step(name, data_dir):
  """Operations of the update have its name in the compiled step."""
  sizes = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
  config = storage_config(name, "bool", **sizes, **{"data.data_dir": data_dir})
  plan = plan_step(config, 8, "gpu:h100")
  assert plan.collectives and plan.mask_update_bytes == 0
  assert not any(MASK_UPDATE in one.operation for one in plan.collectives)
