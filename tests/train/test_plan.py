"""A plan's bytes are those of a state that lives; nothing is allocated."""

import dataclasses
import importlib.util
import json
import math
import os
import signal

import jax
import pytest

from figs_jax.train import plan as plan_module
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.experiment import build
from figs_jax.train.plan import (
  chip_of,
  plan_step,
  plan_with_fix,
  planned_experiment,
)
from figs_jax.train.sharding import make_mesh, state_shardings
from figs_jax.train.targets import Ended, in_child, target_of
from tests.programs import REPO, assert_one_clear_line, in_one_process

from .test_mask_storage import config_of as storage_config

pytestmark = pytest.mark.standard_promotion
SHAPE = {"width": 64, "depth": 2, "heads": 4, "mlp_dim": 128}
SIZES = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.scan": True}


def config_of(**fields):
  config = default_config("figs")
  config.variant = "custom/4"
  config.model.update(SHAPE)
  config.pattern = "ff: 1:4, o: 2:4"
  config.batch_size, config.total_steps = 8, 8
  config.recipe.dense, config.recipe.finetune = 0.0, 0.25
  config.recipe.k = 2
  config.optimizer.warmup_steps = 0
  config.update_from_flattened_dict(fields)
  return config


def live(tree):
  """Bytes of a tree on the first device."""
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )


def test_the_bytes_are_those_of_a_live_state(data_dir):
  config = config_of(**SIZES, **{"data.data_dir": data_dir})
  plan = plan_step(config, 8, "tpu:v5e")
  experiment = build(config)
  mesh = make_mesh(2, 2, 2)
  abstract = experiment.abstract_state
  shardings = state_shardings(abstract, mesh, abstract.bound)
  state = experiment.placed_state(shardings)
  assert plan.params_bytes == live(state.params)
  assert plan.masks_bytes == live(state.masks)
  assert plan.moments_bytes == live(state.opt_state)
  assert plan.state_bytes == live(state)
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert whole / 4 <= plan.params_bytes < whole / 3
  assert plan.parameters == whole // 4
  # 8 images of 8 x 8 float32 and int32 labels, over data * fsdp
  assert plan.batch_bytes == 2 * (64 * 4 + 4)
  assert plan.fits and plan.temp_bytes > 0 and plan.compiled_for == "cpu"
  check_collectives(plan, state.params)


def check_collectives(plan, params):
  """Kernels are gathered over fsdp, activations summed over tensor."""
  kinds = {(one.kind, one.axis) for one in plan.collectives}
  assert {("all-gather", "fsdp"), ("all-reduce", "tensor")} <= kinds
  gather = plan.largest_all_gather
  kernel = params["blocks"]["mlp"]["fc1"]["kernel"]
  assert gather.bytes == math.prod(kernel.shape[1:]) * 4 // 2  # over tensor


def test_a_step_that_does_not_fit(data_dir):
  config = config_of(**{"data.data_dir": data_dir, "model.scan": True})
  plan = plan_step(config, 1, "gpu:h100")
  assert plan.fits and not plan.collectives
  full = plan.__class__(**{**vars(plan), "memory_bytes": 1000})
  assert full.verdict.startswith("does not fit, because")
  refused = dataclasses.replace(plan, refused="Ran out of memory on HBM")
  assert "(XLA: Ran out of memory on HBM)" in refused.verdict
  both = refused.as_dict()
  assert both["fits"] is False and both["temp_is_estimate"]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "sizes", "fields"),
  [
    ("step", (1, 8, 1), {}),
    ("rigl", (4, 1, 2), {"mask_storage": "bits"}),
    ("transposable", (2, 2, 2), {"ema_decay": 0.9}),
    ("figs", (1, 2, 2), {"seeds": 2}),
    ("figs", (2, 1, 2), {"seeds": 2, "seeds_mode": "map", "data.order": "own"}),
  ],
  ids=str,
)
def test_bytes_of_other_recipes_and_meshes(name, sizes, fields, data_dir):
  """Within 5 % of what lives on the first device; here, the same bytes."""
  axes = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes))
  config = storage_config(
    name, "bool", **axes, **fields, **{"data.data_dir": data_dir}
  )
  plan = plan_step(config, math.prod(sizes), "gpu:h100")
  experiment = build(config)
  abstract = experiment.abstract_state
  shardings = state_shardings(
    abstract, make_mesh(*sizes), abstract.bound, bool(config.seeds)
  )
  state = experiment.placed_state(shardings)
  jax.block_until_ready(state)
  first = jax.devices()[0]
  pointers = {
    shard.data.unsafe_buffer_pointer(): shard.data.nbytes
    for leaf in jax.tree.leaves(state)
    for shard in leaf.addressable_shards
    if shard.device == first
  }
  assert plan.state_bytes == live(state)
  assert sum(pointers.values()) == pytest.approx(plan.state_bytes, rel=0.05)
  assert plan.masks_bytes == live(state.masks)


def test_t5_xxl_by_hand():
  """Bytes per device of 11 G parameters over fsdp = 32 and tensor = 8."""
  width, ff, vocab, depth, heads = 4096, 10240, 32128, 24, 64
  attention, feed_forward = 4 * width * width, 3 * width * ff
  split = depth * (3 * attention + 2 * feed_forward) + 2 * vocab * width
  norms = width * (2 * depth + 3 * depth + 2)
  biases = 2 * 32 * heads  # of relative positions
  assert split + norms + biases == 11_135_332_352
  config = default_config("figs", "t5")
  config.variant, config.model.scan, config.pattern = (
    "v1_1-xxl",
    True,
    "ff: 1:32",
  )
  abstract = planned_experiment(config, 32100).abstract_state
  mesh = jax.sharding.AbstractMesh((1, 32, 8), ("data", "fsdp", "tensor"))
  shardings = state_shardings(abstract, mesh, abstract.bound)

  def held(tree, places):
    return sum(
      math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
      for x, place in zip(jax.tree.leaves(tree), jax.tree.leaves(places))
    )

  params = held(abstract.params, shardings.params)
  # Kernels over both axes; biases and the blocks' norms, which are stacked,
  # over fsdp; the last norms whole.
  last = 2 * width
  assert params == 4 * (split // 256 + (norms - last + biases) // 32 + last)
  assert (
    held(abstract.masks, shardings.masks) == 2 * depth * feed_forward // 256
  )
  moments = held(abstract.opt_state, shardings.opt_state)
  assert 0 <= moments - 2 * params < 64  # and counters


@pytest.mark.slow
def test_a_fix_is_planned(data_dir, monkeypatch):
  """What the verdict says to try fits when it is planned by itself."""
  config = config_of(**{"data.data_dir": data_dir, "model.scan": True})
  base = plan_step(config, 8, "tpu:v5e")
  name, sheet = chip_of("tpu:v5e")
  small = sheet._replace(memory=base.total_bytes - base.state_bytes // 2)
  monkeypatch.setattr("figs_jax.train.plan.chip_of", lambda _: (name, small))
  plan = plan_with_fix(config, 8, "tpu:v5e")
  assert not plan.fits and plan.fixed.fits and plan.fix
  assert "and it fits (planned)" in plan.verdict
  for field, value in plan.fix.items():
    assert f"--config.{field}={value}" in plan.verdict
  config.update_from_flattened_dict(plan.fix)
  assert plan_step(config, 8, "tpu:v5e").total_bytes == plan.fixed.total_bytes
  none = small._replace(memory=1000)
  monkeypatch.setattr("figs_jax.train.plan.chip_of", lambda _: (name, none))
  monkeypatch.setattr("figs_jax.train.plan._TRIES", 1)
  hopeless = plan_with_fix(config, 8, "tpu:v5e")
  assert "try more --devices" in hopeless.verdict
  assert hopeless.as_dict()["fits"] is False


def test_the_modelled_step(data_dir):
  """The engine's estimate holds the weights of the plan, in 16 or 32 bits."""
  fields = {"data.data_dir": data_dir, "model.scan": True}
  plan = plan_step(config_of(**fields), 1, "gpu:h100")
  assert plan.modelled.ns > 0 and plan.modelled.parallel.devices == 1
  held = plan.modelled.bytes
  assert held["masks"] == plan.masks_bytes
  assert held["weights"] <= plan.params_bytes  # no norms, biases, positions
  assert held["weights"] == pytest.approx(plan.params_bytes, rel=0.1)


def test_targets(monkeypatch):
  known = importlib.util.find_spec
  monkeypatch.setattr(
    "importlib.util.find_spec",
    lambda name: None if name == "libtpu" else known(name),
  )
  target = target_of("tpu:v5e", 8)
  assert (target.platform, target.count, target.sides) == ("cpu", 8, ())
  assert "libtpu is not installed" in target.reason
  with pytest.raises(ConfigError, match="expected at most 8"):
    target_of("gpu:h100", 16)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
  assert "no slice of v4" in target_of("tpu:v4", 8).reason
  assert "power of 2" in target_of("tpu:v5e", 6).reason
  target = target_of("tpu:v5e", 128)
  assert (target.platform, target.sides) == ("tpu v5e", (8, 16))


def ends(*_):
  """Stands in for a libtpu that ends the process."""
  os.kill(os.getpid(), signal.SIGSEGV)


def refuses(*_):
  raise ConfigError("expected another field")


def test_libtpu_ends_the_process(data_dir, monkeypatch):
  """One line says so, and the plan is that for virtual devices."""
  config = config_of(**SIZES, **{"data.data_dir": data_dir})
  plain = plan_step(config, 8, "tpu:v5e")
  monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
  monkeypatch.setattr("figs_jax.train.plan._of_chip", ends)
  plan = plan_step(config, 8, "tpu:v5e")
  monkeypatch.undo()
  assert (plan.compiled_for, plan.reason) == (
    "cpu",
    "libtpu ended with signal 11",
  )
  assert plan.is_estimate and not plan.refused
  assert dataclasses.replace(plan, reason=plain.reason) == plain


def test_a_child_answers():
  with pytest.raises(Ended, match="^code 3$"):
    in_child(os._exit, 3)
  with pytest.raises(ConfigError, match="^expected another field$"):
    in_child(refuses)


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)
def test_a_plan_for_tpus(data_dir):
  fields = {"data.data_dir": data_dir, "model.scan": True, "mesh.tensor": 2}
  plan = plan_step(config_of(**fields), 16, "tpu:v5e")
  assert plan.compiled_for == "tpu v5e" and not plan.is_estimate
  assert plan.temp_bytes > 0 and plan.collectives
  assert plan.mask_update_bytes == 0


@pytest.mark.parametrize(
  ("devices", "chip", "fields", "words"),
  [
    (9, "tpu:v5e", {}, "expected at most 8"),
    (8, "tpu:v5f", {}, "did you mean 'tpu:v5"),
    (8, "v5e", {}, "--chip: unknown chip 'v5e'"),
    (8, "gpu:h100", {"mesh.fsdp": 3}, "mesh.tensor"),
    (8, "gpu:h100", {"mesh.data": 4}, "mesh.data=-1"),
    (8, "gpu:h100", {"teacher": "runs/x"}, "--config.teacher: expected ''"),
    (8, "gpu:h100", {"batch_size": 12}, "expected a multiple of 8"),
  ],
)
def test_mistakes(devices, chip, fields, words):
  with pytest.raises(ConfigError) as error:
    plan_step(config_of(**fields), devices, chip)
  assert words in str(error.value) and "\n" not in str(error.value)


def test_chips():
  assert chip_of("gpu:h100")[1].memory == 80 * 10**9


@pytest.mark.slow
def test_the_program(data_dir):
  small = [
    "--config.variant=custom/4", "--config.model.width=32",
    "--config.model.depth=2", "--config.model.heads=2", 
    "--config.model.mlp_dim=64",
    "--config.recipe.k=1", "--config.model.scan=True", "--config.mesh.tensor=2",
    f"--config.data.data_dir={data_dir}",
  ]  # fmt: skip
  vit = f"--config={REPO}/configs/digits_vit.py:figs"
  path = REPO / "launch" / "plan.py"
  whole = [vit, "--chip=tpu:v5e", "--devices=4", *small]
  done, text, *wrong = in_one_process(
    path,
    [*whole, "--format=json"],
    whole,
    [vit, "--chip=tpu:v5e"],
    [vit, "--devices=4"],
    [vit, "--chip=abacus", "--devices=4"],
    [*whole, "--config.mesh.fsdp=3"],
  )
  assert done[0] == 0, done[2]
  plan = json.loads(done[1])
  assert plan["mesh"] == {"seed": 1, "data": 2, "fsdp": 1, "tensor": 2}
  names = "params_bytes masks_bytes moments_bytes temp_bytes fits collectives"
  assert set(names.split()) <= set(plan)
  assert {"kind", "axis", "bytes", "count"} <= set(plan["collectives"][0])
  assert text[0] == 0 and "compiled for: cpu" in text[1]
  assert "temporary (estimate)" in text[1] and "fits: " in text[1]
  words = ("--devices is missing", "--chip is missing", "abacus", "mesh.fsdp")
  for each, word in zip(wrong, words):
    assert_one_clear_line(each, word)


@pytest.mark.parametrize("order", ["own", "shared"])
def test_a_planned_batch_of_texts_has_the_shape_of_a_real_one(order, tmp_path):
  lines = [json.dumps({"text": f"some words, {i} times"}) for i in range(8)]
  (tmp_path / "train.jsonl").write_text("\n".join(lines))
  config = default_config("figs", "gpt2")
  config.variant, config.pattern = "custom", "ff: 1:4"
  config.model.update({"width": 8, "depth": 1, "heads": 2})
  config.batch_size, config.seeds, config.data.order = 4, 2, order
  config.data.name, config.data.stream = f"text:{tmp_path}", True
  config.data.eval_split = "train"
  experiment = build(config)
  batches = experiment.task.train_batches(4)
  real = {name: array.shape for name, array in next(batches).items()}
  batches.close()
  assert {k: v.shape for k, v in plan_module._batch(experiment).items()} == real
