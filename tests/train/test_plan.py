"""A plan's bytes are those of a state that lives; nothing is allocated."""

import json
import math

import jax
import pytest

from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import build
from figs_jax.train.plan import chip_of, plan_step
from figs_jax.train.sharding import make_mesh, state_shardings
from tests.programs import REPO, assert_one_clear_line, in_one_process

from .test_mesh import config_of

pytestmark = pytest.mark.standard_promotion
SIZES = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.scan": True}


def live(tree):
  """Bytes of a tree on the first device."""
  return sum(
    leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
  )


def test_the_bytes_are_those_of_a_live_state(data_dir):
  config = config_of("vit", **SIZES, **{"data.data_dir": data_dir})
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
  config = config_of("vit", **{"data.data_dir": data_dir, "model.scan": True})
  plan = plan_step(config, 1, "gpu:h100")
  assert plan.fits and not plan.collectives
  full = plan.__class__(**{**vars(plan), "memory_bytes": 1000})
  assert full.verdict.startswith("does not fit, because")
  assert "--config.mesh.fsdp" in full.verdict
  big = plan.__class__(
    **{**vars(full), "temp_bytes": 10**12, "memory_bytes": 10**9}
  )
  assert "--config.model.remat" in big.verdict
  assert big.as_dict()["fits"] is False and big.as_dict()["temp_is_estimate"]


@pytest.mark.parametrize(
  ("devices", "chip", "fields", "words"),
  [
    (9, "tpu:v5e", {}, "expected at most 8"),
    (8, "tpu:v5f", {}, "did you mean 'tpu:v5"),
    (8, "v5e", {}, "--chip: unknown chip 'v5e'"),
    (8, "gpu:h100", {"mesh.fsdp": 3}, "mesh.tensor"),
    (8, "gpu:h100", {"mesh.data": 4}, "mesh.data=-1"),
    (8, "gpu:h100", {"seeds": 2}, "--config.seeds: expected 0"),
    (8, "gpu:h100", {"batch_size": 12}, "expected a multiple of 8"),
  ],
)
def test_mistakes(devices, chip, fields, words):
  with pytest.raises(ConfigError) as error:
    plan_step(config_of("vit", **fields), devices, chip)
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
  assert plan["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2}
  names = "params_bytes masks_bytes moments_bytes temp_bytes fits collectives"
  assert set(names.split()) <= set(plan)
  assert {"kind", "axis", "bytes", "count"} <= set(plan["collectives"][0])
  assert text[0] == 0 and "compiled for: cpu" in text[1]
  assert "temporary (estimate)" in text[1] and "fits: " in text[1]
  words = ("--devices is missing", "--chip is missing", "abacus", "mesh.fsdp")
  for each, word in zip(wrong, words):
    assert_one_clear_line(each, word)
