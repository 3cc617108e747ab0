"""launch/prune.py on a tiny model of the digits."""

import json
import math

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from figs_jax import models, nn
from figs_jax.cli import pruning
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
  config.recipe.dense = 0.0
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


WORDS = ["good", "bad", "day", "film", "was", "a"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXT = {
  "calibration": None,  # of each test
  "pattern": "ff: 2:4, qkv: 2:4",
  "method": "wanda",
  "eval_examples": 100,
  "format": "json",
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A labelled table of texts of 1 to 4 words, and models that read it."""
  folder = tmp_path_factory.mktemp("texts")
  rng = np.random.default_rng(0)
  rows = []
  for i in range(60):
    words = [WORDS[i % 2], *rng.choice(WORDS[2:], i % 4)]
    rows.append({"text": " ".join(words), "label": "np"[i % 2]})
  (folder / "table.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  sizes = {"width": 8, "depth": 1, "heads": 2, "length": 8}
  for output in ("classes", "tokens", "embedding"):
    model = models.create(
      "bert", "custom", vocab=len(PIECES), output=output, **sizes
    )
    export_model(model, folder / output, "dense")
    (folder / output / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  for family in ("gpt2", "llama"):
    model = models.create(family, "custom", vocab=384, **sizes | {"length": 16})
    export_model(model, folder / family, "dense")
  return folder


def test_texts_with_labels_or_masks_and_the_next_token(texts, tmp_path):
  table = f"text:{texts / 'table.jsonl'}"
  names = ("classes", "tokens", "embedding", "gpt2", "llama")
  given = [
    words(
      texts / name,
      tmp_path / name,
      **TEXT | {"calibration": table},
      input_length=None if name == "classes" else 8,
      objective="masked" if name == "tokens" else None,
    )
    for name in names
  ]
  long = words(
    texts / "tokens", "a", **TEXT | {"calibration": table}, input_length=9
  )
  other = words(
    texts / "tokens",
    "a",
    **TEXT | {"calibration": table},
    vocabulary="bytes",
  )
  *done, longer, another = in_one_process(
    "launch/prune.py", *given, long, other
  )
  for name, (code, printed, problem) in zip(names, done, strict=True):
    assert code == 0, problem
    report = json.loads(printed)
    measured = set() if name == "embedding" else {"loss", "accuracy"}
    assert set(report["before"]) == set(report["after"]) == measured
    assert all(0 < each["error"] < 1 for each in report["layers"])
    # Padding is not counted.
    source = pruning.source_of(
      TEXT["pattern"],
      weights=str(texts / name),
      data={"name": table, "input_length": 8}
      | ({"objective": "masked"} if name == "tokens" else {}),
    )
    (batch,) = pruning.calibration_batches(source, 16, 16)
    tokens = int((batch["inputs"] != 0).sum())
    assert {each["rows"] for each in report["layers"]} == {tokens}
    assert name == "tokens" or tokens < 16 * 8
    assert models.from_pretrained(tmp_path / name).width == 8
  assert_one_clear_line(longer, "at most 8 tokens")
  assert_one_clear_line(another, "name it with --vocabulary")


@pytest.mark.parametrize("batch_size", [5, 16])
def test_the_loss_is_that_of_all_valid_texts(texts, batch_size):
  """Against NumPy on the texts one by one; the last batch is not full."""
  source = pruning.source_of(
    "ff: 2:4",
    weights=str(texts / "classes"),
    data={"name": f"text:{texts / 'table.jsonl'}", "input_length": 8},
  )
  got = pruning.measured(source, source.model, 1000, batch_size)
  losses, hits = [], []
  for batch in source.task.eval_batches(1):
    if batch["valid"][0]:
      logits = np.asarray(source.model(batch["inputs"], batch["types"]))[0]
      losses.append(-log_softmax(logits)[batch["label"][0]])
      hits.append(logits.argmax() == batch["label"][0])
  assert len(losses) % batch_size
  assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
  assert math.isclose(got["accuracy"], np.mean(hits), rel_tol=1e-6)
