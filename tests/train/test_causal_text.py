"""Training and evaluation of causal language models."""

import json
import math
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from figs_jax import data, models
from figs_jax.train import loop, losses
from figs_jax.train._evaluate import evaluate
from figs_jax.train.config import default_config
from figs_jax.train.workdir import finished_model

pytestmark = pytest.mark.standard_promotion
CONFIGS = Path(__file__).parents[2] / "configs"


def tiny(config):
  config.model.update({"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32})
  config.pattern = "ff: 1:4"
  config.total_steps = config.checkpoint_every = 4
  config.batch_size = 8
  config.data.input_length = 20
  config.data.eval_batch_size = 64
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup_steps = 0.0
  config.log_every = 2
  config.diagnose_every = 0
  config.progress = False
  return config


def test_the_config_trains_and_bits_per_byte_are_right(tmp_path):
  config = runpy.run_path(str(CONFIGS / "stdlib_gpt2.py"))["get_config"]("figs")
  config = tiny(config)
  config.data.data_dir = str(tmp_path / "data")
  config.data.train_split, config.data.eval_split = "train[:20]", "test[:2]"
  data.load("stdlib_text", "train", data_dir=config.data.data_dir)
  loop.train(config, tmp_path / "run")
  result = evaluate(tmp_path / "run")
  assert result["exact_nm"] and result["step"] == 4
  # Every target of these rows, by hand.
  texts = data.find_causal_text(
    "stdlib_text", input_length=20, data_dir=config.data.data_dir
  )
  model = finished_model(tmp_path / "run")
  nats = count = size = 0.0
  for row in texts.examples("test[:2]", ordered=True):
    inputs, targets = np.zeros((2, 1, 20), np.int32)
    inputs[0, : len(row) - 1], targets[0, : len(row) - 1] = row[:-1], row[1:]
    logits = np.asarray(model(inputs), np.float64)[0, : len(row) - 1]
    losses = (
      np.log(np.exp(logits).sum(-1)) - logits[range(len(logits)), row[1:]]
    )
    nats, count = nats + losses.sum(), count + len(losses)
    size += ((row[1:] >= 3) & (row[1:] < 259)).sum()
  assert result["loss"] == pytest.approx(nats / count, rel=1e-5)
  bits = nats / math.log(2) / size
  assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_a_table_of_labels_trains_a_llama(tmp_path):
  rows = [
    {"text": text, "label": label}
    for text, label in (("so good", "yes"), ("so bad", "no")) * 12
  ]
  file = tmp_path / "reviews.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  config = tiny(default_config("sr_ste", "llama"))
  config.variant = "custom"
  config.data.name = f"text:{file}"
  config.model.kv_heads = 1
  loop.train(config, tmp_path / "run")
  result = evaluate(tmp_path / "run")
  # Targets: the letters of the label and its end.
  assert result["exact_nm"] and 0 < result["loss"] < 6


def test_a_causal_teacher_sees_the_inputs_alone():
  model = models.create("gpt2", "custom", width=8, depth=1, heads=2, vocab=9)
  row = np.array([[3, 4, 5, 6]], np.int32)
  batch = {"inputs": row[:, :-1], "targets": row[:, 1:]}
  loss = losses.distill(model, loss=losses.next_token)
  _, metrics = loss(model, batch, jax.random.key(0))
  assert float(metrics["teacher_loss"].value) == pytest.approx(0, abs=1e-6)
