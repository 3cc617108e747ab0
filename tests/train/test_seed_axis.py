"""Seeds on devices of their own: what each gives alone, and no collective."""

import dataclasses
import functools
import math
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from figs_jax.core.tree import flatten
from figs_jax.models import own_model
from figs_jax.train import default_config, evaluate, seeds
from figs_jax.train.checkpoint import Checkpointer, named_leaves
from figs_jax.train.collectives import collectives
from figs_jax.train.compilation import check_mesh, compiled_step, in_turn
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import build
from figs_jax.train.log_writer import read_log
from figs_jax.train.loop import train
from figs_jax.train.plan import plan_step
from figs_jax.train.sharding import AXES, Share, make_mesh, process_share
from figs_jax.train.workdir import restore
from tests.programs import call

pytestmark = pytest.mark.standard_promotion
COUNT, STEPS, SIDE = 4, 6, 4
RNG = np.random.default_rng(0)
DATA = [
  {"image": RNG.integers(0, 256, (SIDE, SIDE), np.uint8), "label": i % 3}
  for i in range(48)
]


class Small(nnx.Module):
  """A layer of every kind: masked kernels, batch statistics, dropout."""

  def __init__(self, num_classes, in_channels, *, rngs):
    self.fc1 = nnx.Linear(SIDE**2 * in_channels, 32, rngs=rngs)
    self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
    self.fc2 = nnx.Linear(32, 16, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.head = nnx.Linear(16, num_classes, rngs=rngs)

  def __call__(self, images):
    x = self.norm(self.fc1(images.reshape(len(images), -1)))
    return self.head(self.dropout(nnx.relu(self.fc2(nnx.relu(x)))))


@pytest.fixture(autouse=True)
def no_trace_is_left():
  own_model.REGISTERED.clear()
  yield
  own_model.REGISTERED.clear()


def config_of(recipe="figs", **fields):
  config = default_config(recipe, Small)
  config.pattern = "fc1/kernel: 1:4, fc2/kernel: 2:4"
  config.total_steps, config.batch_size = 2 * STEPS, 8
  config.data.image_size, config.data.eval_batch_size = SIDE, 12
  config.data.augment, config.mixup = "none", 0.2  # drawn in a loop
  config.diagnose_every, config.ema_decay = 2, 0.5
  config.optimizer.warmup_steps = 0
  config.optimizer.learning_rate, config.optimizer.eps = 0.01, 1e-3
  config.seeds, config.recipe.dense = COUNT, 0.1
  config.update_from_flattened_dict(fields)
  return config


@dataclasses.dataclass
class Trained:
  losses: np.ndarray  # [step][seed]
  state: object
  collectives: list


def trained(recipe="figs", **fields):
  """A run in this process, with the collectives of its step."""
  config = config_of(recipe, **fields)
  experiment = build(config, (DATA, DATA))
  mesh = make_mesh(**config.mesh)
  check_mesh(config, mesh)
  shardings = experiment.shardings(mesh)
  state = experiment.placed_state(shardings)
  step = compiled_step(experiment, shardings, mesh)
  turns = in_turn(experiment, mesh)
  if turns:
    state = seeds.apart(state)
  sent, losses = [], []
  batches = experiment.task.train_batches(config.batch_size)
  for i, batch in zip(range(STEPS), batches):
    if i == 0 and not turns:
      program = step.lower(state, batch).compile()
      sent = collectives(program.as_text(), dict(mesh.shape))
      step = functools.partial(_with_constants, program)
    state, metrics = step(state, batch)
    each = metrics if turns else [metrics]
    losses.append(np.concatenate([np.atleast_1d(m["loss"]) for m in each]))
  batches.close()
  if turns:
    state = seeds.together(state, shardings)
  return Trained(np.stack(losses), state, sent)


def _with_constants(program, state, batch):
  return program(state, batch, None)


def assert_same(one, two, **tolerance):
  one, two = named_leaves(one), named_leaves(two)
  assert one.keys() == two.keys()
  for name, leaf in one.items():
    exact = not tolerance or name.startswith("masks")
    np.testing.assert_allclose(
      leaf, two[name], err_msg=name, **({"rtol": 0} if exact else tolerance)
    )


MESH = {"mesh.seed": 2, "mesh.data": 2, "mesh.fsdp": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("recipe", "order"), [("figs", "own"), ("step", "shared"), ("sr_ste", "own")]
)
def test_seeds_on_devices_of_their_own(recipe, order):
  """Losses and masks of one device, half of the bytes, nothing over `seed`."""
  fields = {"data.order": order, "seeds_mode": "vmap"}
  one = trained(recipe, **fields)
  many = trained(recipe, **fields, **MESH)
  np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5)
  assert_same(many.state, one.state, rtol=1e-4, atol=1e-5)
  axes = {each.axis for each in many.collectives}
  assert axes and not any("seed" in axis for axis in axes), axes
  masks = flatten(many.state.masks)
  assert not masks["fc1/kernel"].all()
  for name, leaf in named_leaves(many.state).items():
    if leaf.ndim:  # all but the step
      assert leaf.addressable_shards[0].data.shape[0] == COUNT // 2, name
  kernel = flatten(many.state.params)["fc1/kernel"]
  assert kernel.addressable_shards[0].data.nbytes * 4 == kernel.nbytes
  fresh = functools.partial(seeds.with_fresh_masks, mesh=kernel.sharding.mesh)
  assert_same(jax.jit(fresh)(many.state), many.state)


@pytest.mark.slow
def test_seeds_alone_on_their_devices_give_what_their_runs_give():
  """Each device then runs without a seed axis, and sends nothing."""
  turn = trained("step", seeds_mode="map")
  many = trained("step", **{"mesh.seed": COUNT})
  np.testing.assert_allclose(many.losses, turn.losses, rtol=1e-5)
  assert_same(many.state, turn.state, rtol=1e-4, atol=1e-5)
  assert many.collectives == []


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(tmp_path):
  """Saved bit for bit; evaluated, recalibrated and averaged there."""
  run, plain = tmp_path / "run", tmp_path / "plain"
  fields = {"total_steps": 4, "checkpoint_every": 2, "log_every": 1}
  sizes = {"mesh.seed": 4, "mesh.data": 2}
  train(config_of(**fields, seeds_mode="vmap"), plain, data=(DATA, DATA))
  train(config_of(**fields, **sizes), run, data=(DATA, DATA))
  rows, wanted = read_log(run), read_log(plain)
  assert [row.keys() for row in rows] == [row.keys() for row in wanted]
  for row, other in zip(rows, wanted):
    for name in row:
      if not name.startswith("time/"):
        assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5)
  experiment, state, _ = restore(run, data=(DATA, DATA))
  assert_same(state, restore(plain, data=(DATA, DATA))[1], rtol=1e-3, atol=1e-5)
  for sizes in ({"seed": 4, "data": 2}, {"seed": 2, "fsdp": 2}, {"data": 4}):
    mesh = make_mesh(**sizes)
    _, moved, _ = restore(run, data=(DATA, DATA), mesh=mesh)
    assert_same(moved, state)
    kernel = moved.params["fc1"]["kernel"]
    parts = kernel.shape[0] // kernel.sharding.shard_shape(kernel.shape)[0]
    assert parts == sizes.get("seed", 1)
  _, lone, _ = restore(run, data=(DATA, DATA), seed=2)
  assert_same(lone, seeds.take(state, 2))
  one = evaluate(run, data=(DATA, DATA))
  many = evaluate(run, data=(DATA, DATA), mesh=make_mesh(seed=4, data=2))
  assert many["accuracies"] == one["accuracies"] and len(one["layers"]) == 2
  assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)
  with pytest.raises(ValueError, match=r"mesh.seed: expected a divisor of"):
    evaluate(run, data=(DATA, DATA), mesh=make_mesh(seed=3))
  # From step 2 to the end on another mesh.
  with Checkpointer(run) as checkpoints:
    (run / "checkpoints" / "4").rename(tmp_path / "gone")
    assert checkpoints.steps() == [2]
  sizes = {"mesh.seed": 2, "mesh.data": 4}
  train(config_of(**fields, **sizes), run, data=(DATA, DATA))
  again = restore(run, data=(DATA, DATA))[1]
  assert_same(again, state, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (
      {"seeds": 6, "mesh.seed": 4},
      "a divisor of seeds=6, got 4; set it so, or",
    ),
    (
      {"seeds": 0, "mesh.seed": 2},
      "1 for a single run, got 2; .*multiple of 2",
    ),
    ({"seeds_mode": "map", "mesh.seed": 2}, "expected auto or vmap with mesh"),
  ],
)
def test_seeds_that_a_mesh_does_not_divide_are_refused(fields, words, tmp_path):
  with pytest.raises(ValueError, match=words) as error:
    train(config_of(**fields), tmp_path / "run", data=(DATA, DATA))
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@dataclasses.dataclass(frozen=True)
class Device:
  """A device of some process, as far as a mesh looks."""

  id: int
  process_index: int
  platform: str = "cpu"
  device_kind: str = "cpu"


@pytest.mark.parametrize(
  ("sizes", "each", "shares"),
  [
    ((1, 8, 1, 1), 4, [(0, 2, (0,)), (1, 2, (0,))]),
    ((2, 2, 2, 1), 4, [(0, 1, (0,)), (0, 1, (1,))]),
    ((4, 1, 1, 2), 4, [(0, 1, (0, 1)), (0, 1, (2, 3))]),
    ((2, 2, 1, 2), 2, [(i, 2, (part,)) for part in (0, 1) for i in (0, 1)]),
    ((3, 2, 1, 1), 3, None),
  ],
)
def test_what_a_process_reads(sizes, each, shares):
  """The examples of its devices, and the streams of their seeds alone."""
  count = math.prod(sizes)
  devices = [Device(i, i // each) for i in range(count)]
  mesh = Mesh(np.array(devices).reshape(sizes), AXES)
  if shares is None:
    with pytest.raises(
      ValueError, match="set --config.mesh.seed to a multiple"
    ):
      process_share(mesh)
    return
  got = [process_share(mesh, i) for i in range(count // each)]
  assert got == [Share(*share) for share in shares]
  numbers = list(range(10, 18))
  held = [share.of_seeds(numbers, mesh) for share in got if share.index == 0]
  assert sum(held, []) == numbers


def test_a_plan_knows_the_axis(tiny_config):
  fields = {"seeds": 4, "data.order": "own", "diagnose_every": 0}
  config = tiny_config("ste", **fields)
  bytes_of = {}
  for parts in (1, 2):
    config.mesh.seed = parts
    plan = plan_step(config, 4, "gpu:h100")
    assert plan.mesh == {
      "seed": parts,
      "data": 4 // parts,
      "fsdp": 1,
      "tensor": 1,
    }
    assert {each.axis for each in plan.collectives} == {"data"}
    bytes_of[parts] = plan
  one, two = bytes_of[1], bytes_of[2]
  for name in ("params_bytes", "masks_bytes"):
    assert getattr(one, name) == 2 * getattr(two, name)
  assert one.batch_bytes == two.batch_bytes  # half of the seeds, twice the rows
  with pytest.raises(ConfigError, match="multiple of mesh.seed"):
    config.mesh.seed = 3
    plan_step(config, 4, "gpu:h100")


@pytest.mark.slow
def test_two_processes_of_two_seeds_each(tmp_path, data_dir):
  """Each reads the data of its own seeds; the result is that of one process."""
  fields = {
    "seeds": 4, "mesh.seed": 2, "total_steps": 4, "checkpoint_every": 2,
    "batch_size": 16, "model.depth": 1, "model.width": 32,
    "model.mlp_dim": 64, "pattern": "ff: 1:4", "log_every": 1,
    "diagnose_every": 2, "progress": False, "data.data_dir": data_dir,
    "optimizer.eps": 1e-3,
  }  # fmt: skip
  words = ["--config=configs/digits_vit.py:step"]
  words += [f"--config.{name}={value}" for name, value in fields.items()]
  two, one = tmp_path / "two", tmp_path / "one"
  start = ["bash", "launch/local.sh", f"--python={sys.executable}"]
  done = call(*start, "--processes=2", *words, f"--workdir={two}")
  assert done.returncode == 0, done.stderr
  words = [word for word in words if "mesh.seed" not in word]
  words += ["--config.seeds_mode=vmap", f"--workdir={one}"]
  done = call("launch/train.py", *words)
  assert done.returncode == 0, done.stderr
  for row, wanted in zip(read_log(two), read_log(one), strict=True):
    for name in (name for name in wanted if "loss" in name):
      assert row[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6)
  assert_same(restore(two)[1], restore(one)[1], rtol=1e-3, atol=1e-4)
