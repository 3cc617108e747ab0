"""Runs that start from the weights of a file or of a dense run."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.core.masks import nm_mask
from figs_jax.export import write_dense
from figs_jax.models import pretrained
from figs_jax.models.pretrained.config import for_transformers
from figs_jax.train import seeds
from figs_jax.train import workdir as workdirs
from figs_jax.train.config import default_config
from figs_jax.train.experiment import build
from figs_jax.train.log_writer import read_log
from figs_jax.train.loop import train
from figs_jax.train.workdir import restore
from tests.programs import assert_one_clear_line, call

pytestmark = pytest.mark.standard_promotion
TEXT = {"width": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 32}
STILL = {
  "total_steps": 1,
  "optimizer.learning_rate": 0.0,
  "checkpoint_every": 1,
  "diagnose_every": 0,
}


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory, tiny_config):
  """(workdir, accuracy, its model) of a short dense run."""
  workdir = tmp_path_factory.mktemp("dense")
  result = train(tiny_config("dense", total_steps=20), workdir)
  return workdir, result["eval/accuracy"], restore(workdir)[1].finished()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory, dense_run):
  path = tmp_path_factory.mktemp("weights") / "model.safetensors"
  pretrained.save(dense_run[2], path)
  return path


def start(tiny_config, path, recipe="dense", **overrides):
  return tiny_config(recipe, init_from=str(path), **(STILL | overrides))


@pytest.mark.slow
@pytest.mark.parametrize(
  "overrides",
  [
    {},
    {"model.scan": True, "seeds": 2},
    {"seeds": 2, "mesh.seed": 2, "mesh.data": 2},
    {"mesh.data": 2, "mesh.fsdp": 2, "model.remat": True},
  ],
)
def test_a_run_begins_at_exactly_the_accuracy_of_the_dense_one(
  dense_run, tiny_config, tmp_path, overrides
):
  workdir, accuracy, model = dense_run
  config = start(tiny_config, workdir, **overrides)
  # The learning rate is 0, so the first weights are evaluated.
  result = train(config, tmp_path)
  assert result["eval/accuracy"] == accuracy
  state = restore(tmp_path)[1]
  states = [state]
  if config.seeds:
    states = [seeds.take(state, i) for i in range(config.seeds)]
  for each in states:
    got, want = map(pretrained.published, (each.finished(), model))
    for name, value in want.items():
      assert np.array_equal(got[name], value), name


def test_a_file_and_its_run_give_the_same_weights(
  dense_run, weights_file, tiny_config
):
  a, b = (
    workdirs.initial_weights(build(start(tiny_config, path)))
    for path in (dense_run[0], weights_file)
  )
  assert a.keys() == b.keys()
  for path, value in a.items():
    assert np.array_equal(value, b[path]), path


def test_masks_are_those_of_the_loaded_weights(weights_file, tiny_config):
  experiment = build(start(tiny_config, weights_file, "ste"))
  weights = workdirs.initial_weights(experiment)
  state = jax.jit(experiment.state)(weights)
  masks = tree.flatten(state.masks)
  leaves = nn.masked_leaves(experiment.model(0))
  assert leaves
  for path, leaf in leaves.items():
    want = nm_mask(jnp.abs(weights[path]), leaf.pattern, leaf.axis)
    assert jnp.array_equal(masks[path], want), path


def test_a_start_that_is_not_finite_is_refused(weights_file, tiny_config):
  experiment = build(start(tiny_config, weights_file))
  weights = dict(workdirs.initial_weights(experiment))
  weights["head/kernel"] = np.full_like(weights["head/kernel"], np.inf)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shardings = jax.tree.map(lambda _: place, experiment.abstract_state)
  with pytest.raises(
    ValueError, match="head/kernel: expected finite .*float32"
  ):
    experiment.placed_state(shardings, weights)


def test_a_fresh_head_differs_by_seed_and_nothing_else_does(
  weights_file, tiny_config
):
  config = start(tiny_config, weights_file, seeds=2, init_head="fresh")
  experiment = build(config)
  state = jax.jit(experiment.state)(workdirs.initial_weights(experiment))
  for path, leaf in tree.flatten(state.params).items():
    same = bool((leaf[0] == leaf[1]).all())
    assert same == (path != "head/kernel"), path


@pytest.mark.slow
def test_resumption_does_not_read_the_file_and_a_sparse_run_is_none(
  weights_file, tiny_config, tmp_path
):
  copy = tmp_path / "copy.safetensors"
  copy.write_bytes(weights_file.read_bytes())
  config = start(tiny_config, copy, "figs", total_steps=2)
  first = tmp_path / "whole"
  train(config, first)
  config.allow_change = ("total_steps",)
  copy.unlink()
  config.total_steps = 3
  assert train(config, first)["step"] == 3
  assert {row["step"] for row in read_log(first)} >= {2, 3}
  with pytest.raises(
    ValueError, match="expected a dense run, got recipe 'figs'"
  ):
    workdirs.initial_weights(build(start(tiny_config, first)))


@pytest.mark.slow
def test_a_seed_of_a_run_with_several_is_taken(tiny_config, tmp_path):
  train(tiny_config("dense", seeds=2, total_steps=2), tmp_path)
  config = start(tiny_config, tmp_path, init_seed=1)
  weights = workdirs.initial_weights(build(config))
  state = restore(tmp_path)[1]
  for path, leaf in tree.flatten(state.params).items():
    assert np.array_equal(weights[path], leaf[1]), path
  assert not np.array_equal(
    weights["head/kernel"], state.params["head"]["kernel"][0]
  )
  config.init_seed = 2
  with pytest.raises(ValueError, match="expected 0 to 1, got seed=2"):
    workdirs.initial_weights(build(config))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [0, 2])
def test_masters_are_taken_instead_of_rounded_weights(
  seeds, tiny_config, tmp_path
):
  fields = {"param_dtype": "bfloat16", "total_steps": 2, "seeds": seeds}
  train(tiny_config("dense", **fields), tmp_path)
  state = restore(tmp_path, seed=1 if seeds else None)[1]
  config = start(tiny_config, tmp_path, init_seed=1 if seeds else 0)
  weights = workdirs.initial_weights(build(config))
  assert weights.keys() == tree.flatten(state.params).keys()
  for path, master in tree.flatten(state.weights).items():
    assert weights[path].dtype == np.float32
    assert np.array_equal(weights[path], master), path
  rounded = np.float32(state.params["head"]["kernel"])
  assert not np.array_equal(weights["head/kernel"], rounded)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("truncated", "not a whole safetensors file.*fetch it again"),
    ("missing tensor", "vit.layernorm.bias is missing"),
    ("other classes", "classifier.*needs.*--config.init_head=fresh"),
    ("other family", "expected weights of a T5, got those of a ViT"),
    (
      "other vocabulary",
      r"shared.weight has shape \[50, 16\].*--config.data.vocabulary=",
    ),
    ("absent", "file or directory not found"),
  ],
)
def test_weights_that_do_not_fit_are_one_clear_line(
  name, message, weights_file, tiny_config, tmp_path
):
  path = tmp_path / "model.safetensors"
  weights = load_file(weights_file)
  if name == "truncated":
    path.write_bytes(weights_file.read_bytes()[:-1])
  elif name == "missing tensor":
    del weights["vit.layernorm.bias"]
  elif name == "other classes":
    weights["classifier.weight"] = np.ones((7, 32), np.float32)
  elif name == "other vocabulary":
    text = models.create("t5", "custom", vocab=50, **TEXT)
    weights = pretrained.published(text)
  if name not in ("truncated", "absent"):
    save_file(weights, path)
  config = start(tiny_config, path)
  if name in ("other family", "other vocabulary"):
    config = default_config("dense", "t5")
    config.variant, config.init_from = "custom", str(path)
    config.model.update(TEXT)
  with pytest.raises(ValueError, match=message) as error:
    workdirs.initial_weights(build(config))
  assert "\n" not in str(error.value)


# A ViT as transformers saves it, for the digits (1 channel) and others.
OPTIONS = {"width": 16, "depth": 1, "heads": 4, "image_size": 8}


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
  """Directories of a ViT for gray images and of one for three channels."""
  folders = []
  for channels in (1, 3):
    model = models.create(
      "vit",
      "custom/2",
      num_classes=10,
      in_channels=channels,
      norm_epsilon=1e-12,
      gelu="tanh",
      **OPTIONS,
    )
    folders.append(tmp_path_factory.mktemp(f"hf{channels}"))
    made = for_transformers(model)
    write_dense(folders[-1] / "vit", made.tensors, made.leaves, made.config)
  return [folder / "vit" for folder in folders]


def bare(path, data_dir, **overrides):
  """A configuration that sets nothing of the model."""
  config = default_config("ste")
  config.init_from, config.pattern = str(path), "ff: 2:4"
  config.data.data_dir = data_dir
  config.update_from_flattened_dict(overrides)
  return config


def test_what_is_not_set_is_that_of_the_file(hugging_face, data_dir):
  config = workdirs.initial_config(bare(hugging_face[0], data_dir))
  assert (config.variant, config.data.image_size) == ("custom/2", 8)
  assert (config.model.heads, config.model.norm_epsilon) == (4, 1e-12)
  assert (config.model.gelu, config.model.pool) == ("tanh", "cls")
  experiment = build(config)
  weights = workdirs.initial_weights(experiment)
  model = experiment.model(0, weights)
  images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
  want = models.from_pretrained(hugging_face[0])
  want = nn.sparsify(want, "ff: 2:4")
  np.testing.assert_allclose(model(images), want(images), atol=1e-5)


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    (
      {"model.heads": 2, "model.gelu": "exact", "model.pool": "gap"},
      [
        "heads=4 (num_attention_heads=4), got 2; gelu='tanh'",
        "--config.model.heads=4 --config.model.gelu=tanh"
        " --config.model.pool=cls",
      ],
    ),
    ({"model.norm_epsilon": 1e-6}, ["--config.model.norm_epsilon=1e-12"]),
    (
      {"data.image_size": 16},
      ["image_size=(8, 8)", "--config.data.image_size=8"],
    ),
    ({"variant": "custom/4"}, ["--config.variant=custom/2"]),
    ({"variant": "S/2"}, ["width=16", "--config.model.width=16"]),
  ],
)
def test_a_set_field_that_differs_is_refused_with_its_flag(
  hugging_face, data_dir, overrides, words
):
  config = bare(hugging_face[0], data_dir, **overrides)
  experiment = build(workdirs.initial_config(config))
  with pytest.raises(ValueError, match="with another function") as error:
    workdirs.initial_weights(experiment)
  for each in words:
    assert each in str(error.value)
  assert "\n" not in str(error.value)


def test_a_gray_run_starts_from_three_channels(hugging_face, data_dir):
  config = bare(hugging_face[1], data_dir)
  with pytest.raises(ValueError, match="set --config.model.in_channels=1$"):
    workdirs.initial_weights(build(workdirs.initial_config(config)))
  config.model.in_channels = 1
  weights = workdirs.initial_weights(build(workdirs.initial_config(config)))
  want = models.from_pretrained(hugging_face[1]).patch_embed.kernel[...]
  got = weights["patch_embed/kernel"]
  np.testing.assert_allclose(got, want.sum(2, keepdims=True), atol=1e-6)
  config.model.in_channels = 3
  with pytest.raises(ValueError, match="in_channels: expected 1, the channels"):
    build(workdirs.initial_config(config))


def test_a_run_goes_on_without_the_file(hugging_face, data_dir, tmp_path):
  source = tmp_path / "source"
  shutil.copytree(hugging_face[0], source)
  config = bare(source, data_dir, total_steps=1, checkpoint_every=1)
  config.update_from_flattened_dict({"batch_size": 8, "progress": False})
  train(config, tmp_path / "run")
  shutil.rmtree(source)
  saved = restore(tmp_path / "run")[0].config
  assert (saved.variant, saved.model.heads) == ("custom/2", 4)
  config.update_from_flattened_dict(
    {"total_steps": 2, "allow_change": ("total_steps",)}
  )
  assert train(config, tmp_path / "run")["step"] == 2
  config.model.heads = 2
  with pytest.raises(ValueError, match="another model.heads"):
    train(config, tmp_path / "run")


def test_other_heads_than_those_of_a_dense_run_are_refused(
  dense_run, data_dir, tiny_config
):
  config = workdirs.initial_config(bare(dense_run[0], data_dir))
  assert (config.variant, config.model.heads) == ("custom/4", 2)
  workdirs.initial_weights(build(config))
  config = start(tiny_config, dense_run[0], **{"model.heads": 4})
  with pytest.raises(ValueError, match="heads=2, got 4; set --config.model"):
    workdirs.initial_weights(build(config))


def test_the_program_prints_one_line_and_exits_with_2(
  weights_file, data_dir, tmp_path
):
  path = tmp_path / "model.safetensors"
  path.write_bytes(weights_file.read_bytes()[:-1])
  done = call(
    "launch/train.py",
    "--config=configs/digits_vit.py:dense",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.data_dir={data_dir}",
    f"--config.init_from={path}",
  )
  assert_one_clear_line(done, f"{path}: not a whole safetensors file")
