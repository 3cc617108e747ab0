"""A state is never whole on one device: created, restored, or given weights."""

import gc
import math
import re
import weakref

import jax
import numpy as np
import pytest

from figs_jax.core.tree import flatten
from figs_jax.models import pretrained
from figs_jax.train import _run_once
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import plain
from figs_jax.train.initial_values import check_finite
from figs_jax.train.sharding import make_mesh, replicated, state_shardings
from figs_jax.train.workdir import initial_weights

from .meshes import module as meshes

pytestmark = pytest.mark.standard_promotion
MESHES = ((1, 8, 1), (2, 2, 2))
SIZES = {"model.width": 128, "model.mlp_dim": 512, "model.scan": True}
# Vectors, counters and keys are whole everywhere, and small.
SLACK = 2**16


@pytest.fixture(scope="module")
def experiment():
  return meshes.experiment_of("vit", **SIZES)


def placement(experiment, sizes):
  abstract = experiment.abstract_state
  return state_shardings(abstract, make_mesh(*sizes), abstract.bound)


def part_bytes(tree, shardings):
  """Bytes of one device's parts, and of the largest of them."""
  sizes = [
    math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, place in zip(*map(jax.tree.leaves, (tree, shardings)))
  ]
  return sum(sizes), max(sizes)


def live(before=()):
  """Bytes of all arrays on the device that holds most of them."""
  gc.collect()
  known, on = {id(array) for array in before}, {}
  for array in jax.live_arrays():
    if id(array) not in known:
      for shard in array.addressable_shards:  # whose data are arrays as well
        buffers = on.setdefault(shard.device, {})
        buffers[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
  return max((sum(buffers.values()) for buffers in on.values()), default=0)


def largest(program):
  """Bytes of the largest array in a compiled program."""
  width = {"pred": 1, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4}
  arrays = re.findall(r"\b(\w+)\[([\d,]+)\]", program.as_text())
  return max(
    width[kind] * math.prod(map(int, shape.split(",")))
    for kind, shape in arrays
    if kind in width
  )


@pytest.mark.parametrize("sizes", MESHES)
def test_creation(experiment, sizes):
  abstract = experiment.abstract_state
  shardings = placement(experiment, sizes)
  whole = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract)
  )
  total, most = part_bytes(abstract, shardings)
  assert total < whole / (3 if sizes[0] > 1 else 6)

  def compiled(places):
    jaxpr = experiment._traced.jaxpr
    return _run_once.compiled_once(jaxpr, jax.tree.leaves(places))

  program = compiled(shardings)
  memory = program.memory_analysis()
  assert abs(memory.output_size_in_bytes - total) < SLACK
  assert memory.temp_size_in_bytes < total
  assert largest(program) <= most
  # The bounds see a state that is created whole.
  everywhere = jax.tree.map(lambda _: replicated(make_mesh(*sizes)), shardings)
  assert largest(compiled(everywhere)) > most


def test_what_lives_after_creation_and_restoration(experiment, tmp_path):
  abstract = experiment.abstract_state
  shardings = placement(experiment, (2, 2, 2))
  total, _ = part_bytes(abstract, shardings)
  before = jax.live_arrays()
  state = experiment.placed_state(shardings)
  assert abs(live(before) - total) < SLACK
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(0, state, {}, {}, None)
  del state
  assert live(before) < SLACK
  other = placement(experiment, (1, 8, 1))
  target = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    abstract,
    other,
  )
  with Checkpointer(tmp_path) as checkpoints:
    restored, _, _ = checkpoints.restore(target)
  assert abs(live(before) - part_bytes(abstract, other)[0]) < SLACK
  del restored


def test_given_weights(experiment, tmp_path):
  path = tmp_path / "model.safetensors"
  pretrained.save(experiment.model(0), path)
  config = meshes.experiment_of("vit", **SIZES, init_from=str(path))
  shardings = placement(config, (1, 8, 1))
  abstract = config.abstract_state
  params, _ = part_bytes(abstract.params, shardings.params)
  arrays, place = [], config.weight_placer(shardings)

  def keep(name, array):
    gc.collect()
    assert all(earlier() is None for earlier in arrays), name
    arrays.append(weakref.ref(array))
    return place(name, np.array(array))

  before = jax.live_arrays()
  weights = initial_weights(config, keep)
  assert len(arrays) == len(weights) > 5
  assert abs(live(before) - params) < SLACK
  state = config.placed_state(shardings, weights)
  total, _ = part_bytes(abstract, shardings)
  assert abs(live(before) - params - total) < SLACK
  want = initial_weights(config)
  for name, array in want.items():
    np.testing.assert_array_equal(weights[name], array)
  # Arrays of a host go the same way.
  again = config.placed_state(shardings, want)
  for a, b in zip(*map(jax.tree.leaves, (state, again))):
    np.testing.assert_array_equal(a, b)


def test_weights_of_a_dense_run(tmp_path):
  """Its state is split too, and one array at a time is whole on the host."""
  fields = SIZES | {"param_dtype": "bfloat16"}
  source = meshes.experiment_of("vit", "dense", **fields)
  with Checkpointer(tmp_path) as checkpoints:
    state, config = source.state(), plain(source.config)
    checkpoints.save(1, state, {}, config)
    want = flatten(state.weights)
    del state
  config = meshes.experiment_of("vit", **SIZES, init_from=str(tmp_path))
  mesh, data = make_mesh(1, 8, 1), meshes.data_of("vit")
  shardings = config.shardings(mesh)
  params, _ = part_bytes(config.abstract_state.params, shardings.params)
  place, peaks, arrays = config.weight_placer(shardings), [], []

  def keep(name, array):
    gc.collect()
    assert all(earlier() is None for earlier in arrays), name
    arrays.append(weakref.ref(array))
    peaks.append(live(before))
    return place(name, np.array(array))

  before = jax.live_arrays()
  weights = initial_weights(config, keep, mesh, data)
  assert abs(live(before) - params) < SLACK
  # The masters beside what has been placed.
  largest = max(array.nbytes for array in want.values())
  assert params - SLACK < peaks[0] < params + SLACK
  assert max(peaks) < 2 * params + SLACK < largest
  for name, array in want.items():
    np.testing.assert_array_equal(weights[name], array)


def test_values_are_checked_part_by_part(experiment, monkeypatch):
  place = placement(experiment, (1, 8, 1)).params
  kernel = place["blocks"]["mlp"]["fc1"]["kernel"]
  values = np.zeros((2, 128, 512), np.float32)
  part = math.prod(kernel.shard_shape(values.shape))
  checked = []
  isfinite = np.isfinite
  monkeypatch.setattr(
    np, "isfinite", lambda x: checked.append(x.size) or isfinite(x)
  )
  check_finite({"kernel": jax.device_put(values, kernel)})
  assert checked == [part] * 8
  values[1, 127, 511] = np.nan
  with pytest.raises(ValueError, match="kernel: expected finite"):
    check_finite({"kernel": jax.device_put(values, kernel)})
