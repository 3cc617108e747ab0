"""Scores of texts: data, loss, correlations, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from figs_jax import models
from figs_jax.data import DataError
from figs_jax.models.pretrained.config import for_transformers
from figs_jax.train._evaluate import evaluate
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.score_loss import TextScores
from figs_jax.train.text_scores import ScoreCorrelation, correlation
from figs_jax.train.workdir import finished_model

pytestmark = pytest.mark.standard_promotion
WORDS = {"great": 3.5, "good": 2.25, "so": 0.0, "bad": -1.5, "awful": -3.25}


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  path = tmp_path_factory.mktemp("scores") / "table.jsonl"
  rows = [
    {"text": f"a {word} film {i}", "score": score, "label": "x"}
    for word, score in WORDS.items()
    for i in range(7)
  ]
  return write(path, rows)


def config_of(path, recipe="sr_ste", **data):
  config = default_config(recipe, "bert")
  config.variant, config.loss = "custom", "mse"
  config.model.update({"width": 16, "depth": 1, "heads": 2, "length": 24})
  config.pattern = "ff: 1:4"
  config.total_steps, config.batch_size, config.seeds = 4, 8, 2
  config.log_every, config.checkpoint_every = 2, 4
  config.progress = False
  own = {"name": f"text:{path}", "input_length": 24, "eval_batch_size": 5}
  config.data.update(own | data)
  return config


def test_a_run_has_the_correlations_of_scipy(table, tmp_path):
  config = config_of(table)
  train(config, tmp_path / "run")
  result = evaluate(tmp_path / "run")
  json.dumps(result)
  experiment = build(config)
  for seed in range(2):
    net = finished_model(tmp_path / "run", seed=seed)
    given, wanted = [], []
    for batch in experiment.task.eval_batches(3):
      out = np.asarray(net(batch["inputs"], batch["types"]))[:, 0]
      given += out[batch["valid"]].tolist()
      wanted += batch["score"][batch["valid"]].tolist()
    assert len(given) == 7  # every fifth of 35
    for name, by in (("pearson", "pearsonr"), ("spearman", "spearmanr")):
      right = getattr(stats, by)(given, wanted).statistic
      assert abs(result[f"{name}_seeds"][seed] - right) < 1e-5
    error = np.mean((np.array(given) - wanted) ** 2)
    near = np.mean(np.abs(np.array(given) - wanted) <= 0.5)
    assert abs(result["accuracies"][seed] - near) < 1e-6
  assert result["exact_nm"] and error > 0
  made = for_transformers(net)
  assert made.config["architectures"] == ["BertForSequenceClassification"]
  assert made.config["id2label"] == {"0": "LABEL_0"}


def test_the_loss_is_the_mean_squared_error():
  sizes = {"width": 8, "depth": 1, "heads": 2, "vocab": 9, "length": 4}
  model = models.create(
    "bert", "custom", output="classes", num_classes=1, **sizes
  )
  ids = jnp.array([[1, 2, 3], [4, 5, 0]])
  batch = {"inputs": ids, "types": 0 * ids, "score": jnp.array([1.0, -2.0])}
  loss, metrics = TextScores()(model, batch, None)
  out = np.asarray(model(ids, 0 * ids))[:, 0]
  wanted = np.mean((out - np.array([1.0, -2.0])) ** 2)
  np.testing.assert_allclose(loss.value, wanted, rtol=1e-6)
  assert float(metrics["accuracy"].value) in (0.0, 0.5, 1.0)
  with pytest.raises(ValueError, match="give the model num_classes=1"):
    two = models.create("bert", "custom", output="classes", **sizes)
    TextScores()(two, batch, None)


@pytest.mark.usefixtures("mocked")
def test_sts_b_is_a_pair_of_texts_with_a_score(mocked):
  config = config_of("", data_dir=mocked, name="glue/stsb")
  config.data.eval_split = "validation"
  task = build(config).task
  assert task.measure == ScoreCorrelation("stsb")
  assert task.model_options["num_classes"] == 1
  batch = next(iter(task.train_batches(4)))
  assert batch["score"].dtype == np.float32 and batch["types"].max() == 1


def test_constants_and_what_is_not_finite():
  one, two = np.arange(4.0), np.array([1.0, 4.0, 2.0, 8.0])
  assert correlation(one, np.ones(4), "pearson") == 0
  assert np.isnan(correlation(one, two * np.nan, "spearman"))
  assert round(correlation(one, two, "spearman"), 9) == 0.8
  measure = ScoreCorrelation("stsb")
  sums = {k: np.array(3.0) for k in ("hits", "losses", "seen")}
  lists = {
    "given": np.array([1.0, 2, 3, 9]),
    "wanted": np.array([1.0, 2, 4, 0]),
  }
  lists["valid"] = np.array([1.0, 1, 1, 0])  # the last row is padding
  values = dict(measure.values(sums | lists))
  assert values["spearman/stsb"] == 1 and values["pearson/stsb"] < 1
  assert values["glue_score"] == np.mean([1, values["pearson/stsb"]])


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ("much", "table.jsonl: line 3: score: expected a finite number .*'much'"),
    (float("nan"), "line 3: score: expected a finite number"),
    (True, "line 3: score: expected a finite number as the score, got True"),
  ],
)
def test_scores_that_are_none(tmp_path, value, words):
  rows = [{"text": "a", "score": 1.5} for _ in range(6)]
  rows[2]["score"] = value
  path = write(tmp_path / "table.jsonl", rows)
  with pytest.raises(DataError, match=words) as error:
    build(config_of(path)).task.model_options  # noqa: B018
  assert "\n" not in str(error.value)


@pytest.mark.usefixtures("mocked")
def test_what_does_not_fit_is_one_line(table, tmp_path, mocked):
  labels = write(
    tmp_path / "labels.jsonl",
    [{"text": "a", "label": "np"[i % 2]} for i in range(10)],
  )
  with pytest.raises(DataError, match="expected a column score, scores"):
    build(config_of(labels))
  with pytest.raises(DataError, match="line 1: label: expected a finite"):
    build(config_of(labels, label_column="label"))
  config = config_of("", data_dir=mocked, name="glue/sst2")
  with pytest.raises(DataError, match="expected texts with a float as score"):
    build(config)
  config = config_of("", data_dir=mocked, name="glue/stsb")
  config.loss = "softmax"
  with pytest.raises(DataError, match="set --config.loss=mse"):
    build(config)
  with pytest.raises(ConfigError, match="expected auto with loss=mse"):
    build(config_of(table, objective="masked"))
  config = config_of(table)
  config.teacher = "runs/other"
  with pytest.raises(ConfigError, match="expected softmax with a teacher.*mse"):
    build(config)
