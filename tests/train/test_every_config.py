"""Every file in configs/: its full size as shapes, and a step when reduced.

The data sets of most are not here, so the task is what it would be for them:
sizes from the configuration, and batches of noise.
"""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import data, models
from figs_jax.core.masks import is_nm
from figs_jax.core.tree import flatten
from figs_jax.data.masked_text import LabelledTexts, MaskedTokens
from figs_jax.train import experiment as experiments
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.state import finish, update
from figs_jax.train.tasks import TASKS, ImageClassification, MaskedText

from .test_config import NAMES, load

pytestmark = pytest.mark.standard_promotion  # optax mixes dtypes
each = pytest.mark.parametrize("name", NAMES)
# Millions of parameters: ViT-B/16 and Swin-V2-B as timm counts them, T5 1.1 as
# google/t5-v1_1-base, the Transformer "big" of arXiv 1706.03762 (213) with this
# vocabulary in place of 37,000.
PUBLISHED = {
  "imagenet_vit_b16": 86.6,
  "imagenet_swin_v2_b": 87.9,
  "glue_t5_base": 247.6,
  "wmt_transformer": 208,
}
VOCABULARIES = {
  "glue": 32_100,
  "wmt14_translate/de-en": 32_000,
  "stdlib_text": 259,
}
# What a step costs little with; the rest is the experiment's own.
SMALL = {
  "resnet": {"block": "basic", "depths": (1, 1), "width": 16},
  "bert": {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64, "length": 8},
  "vit": {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64},
  "swin_v2": {"width": 32, "depths": (1, 1), "heads": 2, "window": 2},
  "t5": {"width": 32, "depth": 1, "heads": 2, "head_dim": 16, "mlp_dim": 64},
  "gpt2": {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64},
}
VARIANTS = {"vit": "custom/4", "swin_v2": "custom/2"}


def task(config, vocabulary=None):
  """The task of a configuration, without looking its data up."""
  options = config.data
  if models.task_of(config.family) == "images":
    gray = options.name in ("digits", "fashion_mnist")
    classes, channels = (10, 1) if gray else (1000, 3)
    size = options.image_size
    shape = (size, size, channels)
    info = data.Description(options.name, classes, shape, {})
    return ImageClassification(config, info)
  if models.task_of(config.family) == "masked_text":
    return masked(config, vocabulary or 300)
  texts = SimpleNamespace(
    vocabulary=SimpleNamespace(size=vocabulary or VOCABULARIES[options.name]),
    input_length=options.input_length,
    target_length=options.get("target_length") or options.input_length,
  )
  kind = TASKS[models.task_of(config.family)]
  made = object.__new__(kind)  # without texts to read
  object.__setattr__(made, "config", config)
  object.__setattr__(made, "texts", texts)
  return made


def masked(config, vocabulary):
  """The task of a BERT: two labels, or masked tokens."""
  labels = SimpleNamespace(names=("negative", "positive"))
  features = {"label": labels} if ":" in config.data.name else {}
  builder = SimpleNamespace(info=SimpleNamespace(features=features), name="")
  codec = SimpleNamespace(size=vocabulary, codec=None)
  texts = object.__new__(LabelledTexts if features else MaskedTokens)
  for name, value in (
    ("builder", builder),
    ("vocabulary", codec),
    ("input_length", config.data.input_length),
  ):
    object.__setattr__(texts, name, value)
  return MaskedText(config, texts)


def built(config, monkeypatch, **options):
  monkeypatch.setattr(experiments, "task_of", lambda c, _: task(c, **options))
  return experiments.build(config)


@each
def test_it_builds_at_full_size(name, monkeypatch):
  experiment = built(load(name).get_config(), monkeypatch)
  state = experiment.abstract_state
  arrays = jax.tree.leaves(state)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in arrays)
  assert bool(state.bound.leaves) == state.recipe.sparse
  assert state.recipe is experiment.recipe
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  if name in PUBLISHED:
    assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=0.02)
  moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
  if not load(name).get_config().train_only:
    assert moments >= 2 * count  # Adam's two


def reduced(config):
  config.variant = VARIANTS.get(config.family, "custom")
  config.model.update(SMALL[config.family])
  config.batch_size = 4
  config.optimizer.warmup_steps = 0  # so that the first step moves weights
  side = "image_size" if "image_size" in config.data else "input_length"
  config.data[side] = 8
  if "target_length" in config.data:
    config.data.target_length = 8
  return config


def noise(config, options):
  rng = np.random.default_rng(0)
  if models.task_of(config.family) != "images":
    ids = rng.integers(1, options["vocab"], (2, 4, 8)).astype(np.int32)
    if models.task_of(config.family) != "masked_text":
      return {"inputs": ids[0], "targets": ids[1]}
    label = np.arange(4, dtype=np.int32) % 2
    return {
      "inputs": ids[0], "types": 0 * ids[0], "targets": ids[1], "label": label,
    }  # fmt: skip
  shape = (4, 8, 8, options["in_channels"])
  labels = rng.integers(0, options["num_classes"], 4).astype(np.int32)
  return {"image": rng.random(shape, np.float32), "label": labels}


@pytest.mark.slow
@each
def test_it_takes_a_step_at_reduced_size(name, monkeypatch):
  config = reduced(load(name).get_config())
  experiment = built(config, monkeypatch, vocabulary=100)
  batch = noise(config, experiment.task.model_options)

  @jax.jit  # one program compiles faster than three
  def step(batch):
    before = experiment.state()
    after, metrics = update(before, batch)
    net, _ = finish(after)
    return flatten(before.params), after, flatten(net), metrics["loss"]

  old, after, net, loss = step(batch)
  assert int(after.step) == 1 and jnp.isfinite(loss)
  new = flatten(after.params)
  assert all(jnp.isfinite(leaf).all() for leaf in new.values())
  for path, leaf in after.bound.leaves.items():
    assert (old[path] != new[path]).any()
    assert is_nm(net[path], leaf.pattern, axis=leaf.axis)


def test_a_run_can_be_repeated_from_its_config_json(tmp_path):
  again = load("../launch/again")
  for name in NAMES:
    config = load(name).get_config()
    config.optimizer.b1 = 0.123
    config.allow_change = ("recipe",)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(config.to_dict()))
    repeated = again.get_config(str(path))
    assert repeated.to_dict() == config.to_dict()
    repeated.data.data_dir = "elsewhere"  # a field may still be overridden


def test_a_config_json_of_others_chooses_no_path(tmp_path, capsys):
  again = load("../launch/again").get_config
  path, config = tmp_path / "config.json", default_config("ste", "t5")

  def repeated(mode):
    path.write_text(json.dumps(config.to_dict()))
    path.chmod(mode)
    return again(str(path))

  config.data.data_dir, config.data.download = "/elsewhere", True
  assert repeated(0o644).data == config.data
  assert not capsys.readouterr().err
  data = repeated(0o666).data
  assert (data.data_dir, data.download) == (None, False)
  (line,) = capsys.readouterr().err.splitlines()
  assert "'/elsewhere'" in line and "--config.data.data_dir=" in line
  config.init_from = "/elsewhere"
  with pytest.raises(ConfigError, match="init_from '/elsewhere' is not used"):
    repeated(0o666)
  config.init_from, config.data.vocabulary = "", "/elsewhere"
  with pytest.raises(ConfigError, match="vocabulary ./elsewhere. is not used"):
    repeated(0o666)
  assert repeated(0o644).data == config.data


def test_a_config_json_without_a_batch_size_is_refused(tmp_path):
  path, config = tmp_path / "config.json", default_config("ste")
  path.write_text(json.dumps(config.to_dict() | {"batch_size": None}))
  repeated = load("../launch/again").get_config(str(path))
  with pytest.raises(ConfigError, match="batch_size: expected.*got None"):
    experiments.build(repeated)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (None, "No such file"),
    ("{", "JSONDecodeError"),
    ("[]", "expected the config.json of a run"),
    ('{"recipe": {"name": "ste"}}', "family"),
    ('{"family": "vit", "recipe": {"name": "fig"}}', "did you mean 'figs'"),
    ('{"family": "vit", "recipe": {"name": "ste"}, "sed": 1}', "sed"),
    ('{"family": "vit", "recipe": {"name": "ste"}, "seed": "x"}', "seed"),
  ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, words):
  path = tmp_path / "config.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(ConfigError, match=words) as error:
    load("../launch/again").get_config(str(path))
  assert "\n" not in str(error.value)
