"""Groups longer than a part of the rows cost no collectives over `tensor`."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from figs_jax import nn, recipes
from figs_jax.models import stack
from figs_jax.train import TrainState
from figs_jax.train.collectives import collectives
from figs_jax.train.compilation import _on_mesh
from figs_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from figs_jax.train.state import update

pytestmark = pytest.mark.standard_promotion
WIDTH, HIDDEN = 64, 512
SIZES = (1, 4, 2)  # 16 rows of `wi_0` on each device


class Gated(nnx.Module):
  """x + wo(gelu(wi_0(x)) * wi_1(x))."""

  def __init__(self, rngs):
    linear = partial(nnx.Linear, use_bias=False, rngs=rngs)
    self.wi_0, self.wi_1 = linear(WIDTH, HIDDEN), linear(WIDTH, HIDDEN)
    self.wo = linear(HIDDEN, WIDTH)

  def __call__(self, x):
    return x + self.wo(jax.nn.gelu(self.wi_0(x)) * self.wi_1(x))


class Net(nnx.Module):
  """Two scanned blocks, each recomputed in the backward pass."""

  def __init__(self):
    self.blocks = stack.build_blocks(
      Gated, 2, scan=True, rngs=nnx.Rngs(params=0)
    )

  def __call__(self, x):
    return stack.run_blocks(self.blocks, x, remat=True)[0]


def loss(model, x, key):
  return jnp.mean(model(x) ** 2), {}


def compiled(name, pattern):
  """Places of the kernels, and collectives of one step."""
  recipe = recipes.create(name, pattern, total_steps=100)
  model = nn.sparsify(Net(), recipe.pattern)
  tx = recipe.transform(optax.adam(1e-3))
  state = TrainState.create(model, recipe, tx, loss=loss)
  mesh = make_mesh(*SIZES)
  places = state_shardings(state, mesh, state.bound)
  step = jax.jit(
    _on_mesh(lambda state, x, constants: update(state, x), mesh),
    in_shardings=(places, batch_sharding(mesh), None),
    out_shardings=(places, None),
  )
  x = jax.ShapeDtypeStruct((16, 8, WIDTH), jnp.float32)
  text = step.lower(state, x, None).compile().as_text()
  specs = jax.tree.map(lambda place: place.spec, places.params["blocks"])
  return specs, collectives(text, dict(mesh.shape))


def over_tensor(each):
  """(kind, axis, bytes, count), without the sums of single numbers."""
  kept = [one for one in each if "tensor" in one.axis and one.bytes > 1024]
  return sorted((one.kind, one.axis, one.bytes, one.count) for one in kept)


def test_figs_sends_over_tensor_what_sr_ste_does():
  rows, short = compiled("sr_ste", "ff: 1:4")
  columns, long = compiled("figs", "ff: 1:4")
  assert rows["wi_0"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
  split = PartitionSpec(None, None, ("tensor", "fsdp"))
  assert columns["wi_0"]["kernel"] == split
  assert {kind for kind, *_ in over_tensor(short)} == {"all-reduce"}
  assert over_tensor(long) == over_tensor(short)
