"""Training and evaluation on text, and errors in its configurations."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import config_dict

from figs_jax import data, models
from figs_jax.analysis import compare, comparison_table
from figs_jax.train import loop
from figs_jax.train._evaluate import Evaluator, evaluate
from figs_jax.train.config import (
  ConfigError,
  completed,
  default_config,
  differences,
)
from figs_jax.train.experiment import build
from figs_jax.train.log_writer import read_log
from figs_jax.train.losses import TeacherForcing, teacher_forcing
from figs_jax.train.optimizer import learning_rate

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("text"))
  data.load("stdlib_text", "train", data_dir=path)
  return path


@pytest.fixture(scope="session")
def text_config(text_dir):
  """A factory: recipe, overrides -> a configuration that trains in seconds."""

  def make(recipe="figs", **overrides):
    config = default_config(recipe, "t5")
    config.variant = "custom"
    config.model.update(
      {"width": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 32}
    )
    config.pattern = "ff: 1:4"
    config.total_steps = 12
    config.batch_size = 8
    config.data.update(
      {
        "data_dir": text_dir,
        "input_length": 20,
        "train_split": "train[:20]",
        "eval_split": "test[:2]",
        "eval_batch_size": 64,
      }
    )
    config.optimizer.learning_rate = 1e-2
    config.log_every = 3
    config.diagnose_every = 0
    config.checkpoint_every = 6
    config.progress = False
    config.update_from_flattened_dict(overrides)
    return config

  return make


class Bigrams(nnx.Module):
  """Stands in for a model: logits of a token depend on the one before."""

  def __init__(self, vocab=20):
    key = jax.random.key(0)
    self.table = nnx.Param(jax.random.normal(key, (vocab, vocab)))

  def __call__(self, inputs, targets):
    before = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return self.table[...][before]


def by_hand(logits, targets, smoothing=0.0):
  """(nats, hits) of every token except padding, in NumPy."""
  logits = np.asarray(logits, np.float64)
  logits -= logits.max(-1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  keep = targets != 0
  label = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  nats = -(1 - smoothing) * label - smoothing * log_p.mean(-1)
  return nats[keep], (log_p.argmax(-1) == targets)[keep]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_tokens(smoothing):
  targets = np.array([[5, 6, 7, 1], [9, 1, 0, 0], [0, 0, 0, 0]], np.int32)
  batch = {"inputs": targets, "targets": targets}
  model = Bigrams()
  loss, metrics = TeacherForcing(smoothing)(model, batch, jax.random.key(0))
  nats, hits = by_hand(model(targets, targets), targets, smoothing)
  assert len(nats) == 6
  assert float(loss.value) == pytest.approx(nats.mean(), rel=1e-5)
  assert float(metrics["accuracy"].value) == pytest.approx(hits.mean())
  alone = teacher_forcing(model, batch, jax.random.key(1))[0]
  assert (alone.value == loss.value) == (not smoothing)


@pytest.mark.parametrize("seeds", [0, 2])
def test_bits_per_byte_by_hand(text_config, seeds):
  experiment = build(text_config("ste", seeds=seeds))
  state = experiment.state()
  batches = list(experiment.task.eval_batches())
  values = dict(
    Evaluator(experiment.task.measure, batches, bool(seeds)).run(state)
  )
  if seeds:
    assert len(set(values["bits_per_byte"])) == seeds
    values = {name: value[0] for name, value in values.items()}
    state = experiment.lone_state(experiment.seeds[0])
  model = state.finished()
  forward = jax.jit(lambda inputs, targets: model(inputs, targets))
  nats, hits, count = [], [], 0
  for batch in batches:
    targets = batch["targets"][batch["valid"]]
    logits = forward(batch["inputs"], batch["targets"])[batch["valid"]]
    for total, each in zip((nats, hits), by_hand(logits, targets)):
      total += each.tolist()
    # Bytes are ids 3 to 258; ends and sentinels stand for none.
    count += ((targets >= 3) & (targets < 259)).sum()
  assert not all(batch["valid"].all() for batch in batches)
  assert values["accuracy"] == pytest.approx(np.mean(hits), abs=1e-5)
  assert values["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
  bits = sum(nats) / math.log(2) / count
  assert values["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
  # So many bytes are masked: 15 % of the split.
  source = data.load(
    "stdlib_text", "test[:2]", data_dir=experiment.config.data.data_dir
  )
  raw = sum(len(source[i]["text"]) for i in range(2))
  assert count / raw == pytest.approx(0.15, abs=0.03)


def rows(workdir):
  return [
    {k: v for k, v in row.items() if not k.startswith("time/")}
    for row in read_log(workdir)
  ]


@pytest.mark.slow
def test_training_learns_resumes_bit_equal_and_is_compared(
  text_config, tmp_path, monkeypatch
):
  def config_of(recipe):
    config = text_config(recipe, total_steps=30, checkpoint_every=15)
    config.optimizer.schedule = "rsqrt"
    return config

  (row,) = compare(config_of, [("figs", None)], tmp_path, engine_spec="ws:8x8")
  whole, parts = tmp_path / "figs", tmp_path / "parts"

  class Killed(Exception):
    pass

  save = loop._save

  def save_once(run, step, metrics):
    save(run, step, metrics)
    run.checkpoints.wait()
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(loop, "_save", save_once)
    with pytest.raises(Killed):
      loop.train(config_of("figs"), parts)
  result = loop.train(config_of("figs"), parts)
  assert rows(parts) == rows(whole)
  losses = [row["loss"] for row in rows(whole) if "loss" in row]
  assert losses[-1] < 0.85 * losses[0]

  measured = evaluate(parts, per_example=True)
  each = measured.pop("examples")
  for name in ("loss", "accuracy"):
    average = np.average(each[name][0], weights=each["weight"])
    assert measured[name] == pytest.approx(average, rel=1e-6)
  assert (each["correct"] == (each["accuracy"] == 1)).all()
  assert measured["exact_nm"] and measured["layers"]
  assert measured["accuracy"] == row.accuracy
  bits = pytest.approx(result["eval/bits_per_byte"], rel=1e-6)
  assert measured["bits_per_byte"] == row.bits_per_byte == bits
  assert measured["bits_per_byte_se"] is row.bits_per_byte_se is None
  assert measured["bits_per_byte_seeds"] == [measured["bits_per_byte"]]
  json.dumps(measured)
  assert row.ideal_speedup > 1
  head, _, line = comparison_table([row]).splitlines()
  assert "bits per byte" in head and f"| {row.bits_per_byte:.3f} |" in line


def test_rates_are_those_of_the_table():
  config = default_config("dense")
  config.total_steps = 50
  optimizer = config.optimizer
  rate = optimizer.learning_rate
  steps = np.arange(51)
  for warmup in (0, 10):
    optimizer.warmup_steps = warmup
    later = np.maximum(steps, warmup)
    share = (later - warmup) / (50 - warmup)
    for name, after in (
      ("cosine", (1 + np.cos(np.pi * share)) / 2),
      ("linear", 1 - share),
      ("rsqrt", np.sqrt(max(warmup, 1) / np.maximum(later, max(warmup, 1)))),
      ("constant", np.ones(51)),
    ):
      optimizer.schedule = name
      wanted = rate * np.where(steps < warmup, steps / (warmup or 1), after)
      schedule = learning_rate(config)
      values = [float(schedule(jnp.int32(step))) for step in steps]
      np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-9)


def test_configurations_share_nothing():
  changed = default_config("figs", "t5")
  changed.data.target_length = 7
  changed.data.data_dir = "elsewhere"
  changed.model.width = 4
  fresh = default_config("figs", "t5")
  assert fresh.data.target_length is None and fresh.data.data_dir is None
  assert fresh.model.width is None


def test_published_sizes_are_not_undone_by_defaults():
  config = default_config("dense", "t5")
  config.variant = "v1_1-small"
  given = {k: v for k, v in config.model.items() if v is not None}
  model = models.abstract("t5", "v1_1-small", depth=1, **given)
  assert model.head is not None
  assert hasattr(model.encoder.blocks[0].mlp, "wi_1")


def test_the_vocabulary_is_rounded_up_as_in_t5(text_config):
  task = build(text_config()).task
  assert task.model_options == {
    "vocab": 384, "input_length": 20, "target_length": 5,
  }  # fmt: skip
  lengths = task.measure.byte_lengths
  assert lengths.shape == (384,) and lengths.sum() == 256


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (
      {"optimizer.schedule": "cosin"},
      "optimizer.schedule: expected one of .* got 'cosin'",
    ),
    ({"family": "vit"}, r"fields for images.* default_config\(recipe, 'vit'"),
    ({"data.name": "digits"}, "expected a 'text'"),
    ({"data.name": "glue/sst2"}, "config.data.target_length"),
    ({"data.beams": 0}, "data.beams: expected an integer in .*, got 0"),
    ({"data.vocabulary": "byte"}, "vocabulary 'byte'"),
    ({"data.density": 1.5}, "density: .*1.5"),
    ({"pattern": "ff: 1:3"}, "not a multiple of m=3"),
    ({"pattern": "conv: 1:4"}, "conv"),
  ],
)
def test_mistakes_are_one_line(text_config, overrides, message):
  with pytest.raises((ValueError, data.DataError), match=message) as error:
    build(text_config("figs", **overrides))
  assert "\n" not in str(error.value)


def test_images_do_not_make_text(tiny_config):
  with pytest.raises(ConfigError, match="'t5': expected data fields for text"):
    build(tiny_config("figs", family="t5"))


def test_older_runs_have_the_defaults_of_newer_fields(text_config):
  now = json.loads(json.dumps(text_config("figs").to_dict()))
  old = json.loads(json.dumps(now))
  del old["optimizer"]["schedule"], old["data"]["vocabulary"]
  old["batch_size"] = 4
  assert completed(old)["optimizer"]["schedule"] == "cosine"
  assert differences(completed(old), now) == ["batch_size"]
  assert build(config_dict.ConfigDict(completed(old))).task.texts
