"""launch/prune.py on a tiny model of the digits."""

import json

import jax
import numpy as np
import pytest

from figs_jax import models, nn
from figs_jax.cli.export import export_model
from figs_jax.core.masks import is_nm
from figs_jax.train.config import default_config
from figs_jax.train.experiment import build
from figs_jax.train.workdir import initial_weights

from .programs import assert_one_clear_line, in_one_process

SIZES = {"width": 8, "depth": 1, "heads": 2, "image_size": 8, "in_channels": 1}
RULES = "ff: 2:4, qkv: 1:4"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  model = models.create("vit", "custom/2", num_classes=10, **SIZES)
  folder = tmp_path_factory.mktemp("dense") / "vit"
  export_model(model, folder, "dense")
  return folder


def words(weights, out, **options):
  flags = {
    "weights": weights,
    "calibration": "digits",
    "pattern": RULES,
    "examples": 16,
    "batch_size": 16,
    "eval_examples": 16,
    "out": out,
  } | options
  return [f"--{name}={v}" for name, v in flags.items() if v is not None]


def test_a_pruned_model_and_what_is_refused(weights, tmp_path):
  other = tmp_path / "colour"
  colour = models.create(
    "vit", "custom/2", num_classes=10, **SIZES | {"in_channels": 3}
  )
  export_model(colour, other, "dense")
  broken = models.create("vit", "custom/2", num_classes=10, **SIZES)
  broken.pos_embed.set_value(broken.pos_embed[...] * np.nan)
  export_model(broken, tmp_path / "nan", "dense")
  out = tmp_path / "pruned"
  refused = {
    "--pattern is missing": words(weights, tmp_path / "a", pattern=None),
    "--calibration is missing": words(weights, "a", calibration=None),
    "--weights or --workdir": words(weights, "a", workdir="runs/a"),
    "expected a new directory": words(weights, out),
    "expected images with 3 channels": words(other, tmp_path / "a"),
    "not a multiple of m=5": words(weights, tmp_path / "a", pattern="ff: 2:5"),
    "got NaN or infinity": words(tmp_path / "nan", tmp_path / "a"),
    "a positive multiple of --batch_size": words(
      weights, tmp_path / "a", examples=17
    ),
    "no option 'damping'": words(
      weights, tmp_path / "a", method="wanda", damping=0.1
    ),
    "digit": words(weights, tmp_path / "a", calibration="digit"),
  }
  good = words(weights, out, method="sparsegpt", permute=True, format="json")
  first, *rest = in_one_process("launch/prune.py", good, *refused.values())
  code, printed, problem = first
  assert code == 0, problem
  report = json.loads(printed)
  assert report == json.loads((out / "pruning.json").read_text())
  assert {"loss", "accuracy"} == set(report["before"]) == set(report["after"])
  assert len(report["layers"]) == 5
  assert all(0 < layer["error"] < 1 for layer in report["layers"])
  for message, done in zip(refused, rest, strict=True):
    assert_one_clear_line(done, message)
  assert not (tmp_path / "a").exists()
  pruned = models.from_pretrained(out)
  kernel = pruned.blocks[0].mlp.fc1.kernel[...]
  assert is_nm(kernel, "2:4", axis=-2)
  # Fine-tuning starts from the same masks.
  config = default_config("asp", "vit")
  config.variant, config.pattern = "custom/2", RULES
  config.data.name, config.data.image_size = "digits", 8
  for name in ("width", "depth", "heads"):
    config.model[name] = SIZES[name]
  config.init_from = str(out)
  experiment = build(config)
  model = experiment.model(0, initial_weights(experiment))
  for path in nn.masked_leaves(model):
    assert path in {layer["path"] for layer in report["layers"]}
  layer = model.blocks[0].mlp.fc1
  assert np.array_equal(layer.kernel_mask[...], np.asarray(kernel) != 0)
  assert jax.numpy.array_equal(layer.kernel[...], kernel)
