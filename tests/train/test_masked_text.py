"""Training a BERT on masked tokens and labels, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import models
from figs_jax.data import masked_text
from figs_jax.models import pretrained
from figs_jax.train import loop
from figs_jax.train._evaluate import evaluate
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.experiment import build
from figs_jax.train.losses import TextLabels, masked_tokens
from figs_jax.train.text_scores import (
  MaskedAccuracy,
  TextLabelScore,
  scores_of,
)

pytestmark = pytest.mark.standard_promotion
WORDS = ["good", "nice", "fine", "bad", "poor", "sad", "day", "film"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A table whose labels follow from a word, with its vocabulary."""
  path = tmp_path_factory.mktemp("masked")
  rows = [
    {"text": f"{end} {word} {end}", "label": "np"[i < 3]}
    for end in WORDS[6:]
    for i, word in enumerate(WORDS[:6])
    for _ in range(5)
  ]
  table = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "table.jsonl").write_text(table)
  (path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  return path


def config_of(folder, recipe="figs", **data):
  config = default_config(recipe, "bert")
  config.variant = "custom"
  config.model.update({"width": 16, "depth": 1, "heads": 2, "length": 8})
  config.pattern = "ff: 1:4"
  config.total_steps, config.batch_size = 12, 8
  config.optimizer.learning_rate = 1e-2
  config.log_every, config.checkpoint_every = 3, 12
  config.progress = False
  config.data.update(
    {
      "name": f"text:{folder / 'table.jsonl'}",
      "vocabulary": f"wordpiece:{folder / 'vocab.txt'}",
      "data_dir": str(folder / "tfds"),
      "input_length": 8,
      "eval_batch_size": 8,
    }
    | data
  )
  return config


def test_the_data_decide_what_is_learned(folder):
  experiment = build(config_of(folder))
  assert experiment.task.model_options == {
    "vocab": 13,
    "input_length": 8,
    "output": "classes",
    "num_classes": 2,
  }
  assert isinstance(experiment.task.measure, TextLabelScore)
  experiment = build(config_of(folder, objective="masked"))
  assert experiment.task.model_options["output"] == "tokens"
  assert isinstance(experiment.task.measure, MaskedAccuracy)
  experiment = build(config_of(folder, vocabulary="bytes"))
  assert experiment.task.model_options["vocab"] == 384


@pytest.mark.slow
def test_labels_are_learned_and_start_a_run_on_masked_tokens(folder, tmp_path):
  config = config_of(folder, "dense")
  config.total_steps, config.checkpoint_every = 60, 60
  loop.train(config, tmp_path / "dense")
  result = evaluate(tmp_path / "dense", per_example=True)
  assert result["accuracy"] == 1
  assert result["examples"]["correct"].shape == (1, 12)
  # Its body starts a run on masked tokens, with a new head.
  other = config_of(folder, "figs", objective="masked")
  other.init_from, other.init_head = str(tmp_path / "dense"), "fresh"
  loop.train(other, tmp_path / "masked")
  result = evaluate(tmp_path / "masked")
  assert 0 < result["accuracy"] <= 1 and result["exact_nm"]
  other.init_head = "strict"
  with pytest.raises(ValueError, match="init_head=fresh") as error:
    loop.train(other, tmp_path / "refused")
  assert "\n" not in str(error.value)


def test_published_weights_of_another_vocabulary_are_refused(folder, tmp_path):
  model = models.create(
    "bert", "custom", width=16, depth=1, heads=2, length=8, vocab=20
  )
  made = pretrained.config.for_transformers(model)
  pretrained.save(model, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(made.config))
  config = config_of(folder)
  config.variant = ""
  config.model.update(dict.fromkeys(("width", "depth", "heads", "length")))
  config.init_from, config.init_head = str(tmp_path), "fresh"
  with pytest.raises(
    ValueError, match=r"vocab=20 .*, got 13; set --config.data.vocabulary="
  ) as error:
    loop.train(config, tmp_path / "run")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda c: c.data.update({"input_length": 9}),
      "input_length of at most length=8, the number of positions, got 9",
    ),
    (lambda c: c.data.update({"input_length": 4}), r"expected an integer in"),
    (
      lambda c: c.data.update({"objective": "label"}),
      "objective: expected .*did you mean 'labels'",
    ),
    (lambda c: c.update({"variant": "bas"}), "did you mean 'base'"),
  ],
)
def test_wrong_fields_are_one_line(folder, change, message):
  config = config_of(folder)
  change(config)
  with pytest.raises(ConfigError, match=message) as error:
    build(config)
  assert "\n" not in str(error.value)


def test_a_family_without_labels_says_so(folder):
  """A table of targets has no labels for a BERT."""
  path = folder / "pairs.csv"
  path.write_text("text,target\n" + "good day,bad day\n" * 5)
  config = config_of(folder, name=f"text:{path}", objective="labels")
  with pytest.raises(masked_text.sources.DataError, match="got target, text"):
    build(config)


def batch():
  return {
    "inputs": jnp.array([[2, 5, 6, 3], [2, 7, 3, 0]]),
    "types": jnp.zeros((2, 4), jnp.int32),
    "targets": jnp.array([[0, 5, 0, 0], [0, 9, -100, 0]]),
    "label": jnp.array([1, -100]),
  }


def tiny(**options):
  return models.create(
    "bert", "custom", width=8, depth=1, heads=2, vocab=13, **options
  )


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_the_masked_loss_is_over_the_masked_tokens():
  model, given = tiny(), batch()
  loss, metrics = masked_tokens(model, given, jax.random.key(0))
  logs = log_softmax(model(given["inputs"], given["types"]))
  want = [-logs[0, 1, 5], -logs[1, 1, 9]]
  np.testing.assert_allclose(loss.total, sum(want), rtol=1e-5)
  hits = [logs[0, 1].argmax() == 5, logs[1, 1].argmax() == 9]
  assert (loss.weight, metrics["accuracy"].total) == (2, sum(hits))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_labels_ignores_those_to_ignore(smoothing):
  model, given = tiny(output="classes", num_classes=3), batch()
  loss, _ = TextLabels(smoothing)(model, given, jax.random.key(0))
  logs = log_softmax(model(given["inputs"], given["types"]))[0]
  want = -((1 - smoothing) * logs[1] + smoothing * logs.mean())
  np.testing.assert_allclose(loss.total, want, rtol=1e-5)
  assert loss.weight == 1


def test_scores_of_glue_are_those_of_the_table():
  """Against closed forms: Matthews' phi and F1 of a 2 x 2 table."""
  measure = TextLabelScore(2, "cola")
  given = np.array([0, 0, 1, 1, 1, 0, 1])
  label = np.array([0, 1, 1, 1, 0, 0, 1])
  each = {
    "given": given, "label": label, "seen": np.array([1.0] * 6 + [0]),
    "hits": (given == label) * 1.0, "losses": np.ones(7),
  }  # fmt: skip
  sums = {k: np.asarray(v, np.float64) for k, v in measure.count(each).items()}
  values = dict(measure.values(sums))
  table = [[2, 1], [1, 2]]  # given by wanted, without the padding
  np.testing.assert_array_equal(sums["confusion"], table)
  phi = (2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3)
  np.testing.assert_allclose(values["matthews/cola"], phi)
  np.testing.assert_allclose(values["glue_score"], phi)
  scores = scores_of("mrpc", np.array([table]))
  np.testing.assert_allclose(scores["f1"], [2 * 2 / (2 * 2 + 1 + 1)])
  np.testing.assert_allclose(scores["accuracy"], [4 / 6])
  assert measure.headline == "glue_score"
  assert TextLabelScore(2).headline == "accuracy"
