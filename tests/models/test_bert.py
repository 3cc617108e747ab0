"""BERT: published sizes, its outputs, padding, and errors in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.models import pretrained
from figs_jax.models.bert import OUTPUTS, _ids
from figs_jax.models.pretrained import PretrainedError
from figs_jax.models.shapes import shape_of

from .families import create


def count(model):
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


# Counts of the published checkpoints with their pooler (`BertModel`).
@pytest.mark.parametrize(
  ("variant", "parameters"),
  [
    ("tiny", 4_385_920),
    ("mini", 11_170_560),
    ("small", 28_763_648),
    ("medium", 41_373_184),
    ("base", 109_482_240),
    ("large", 335_141_888),
    ("minilm-l6", 22_713_216),
    ("minilm-l12", 33_360_000),
  ],
)
def test_parameters_are_the_published_ones(variant, parameters):
  assert count(models.abstract("bert", variant, output="pooled")) == parameters


# Millions in table 1 of arXiv 1908.08962, which counts both heads of
# pre-training: of masked tokens, and of the next sentence behind the pooler.
@pytest.mark.parametrize(
  ("variant", "millions"),
  [("tiny", 4.4), ("mini", 11.3), ("small", 29.1), ("medium", 41.7)]
  + [("base", 110.1)],
)
def test_parameters_of_pre_training_are_the_published_ones(variant, millions):
  model = models.abstract("bert", variant)
  width = model.width
  whole = count(model) + width**2 + width + 2 * width + 2
  assert round(whole / 1e6, 1) == millions


@pytest.mark.parametrize("variant", ["base", "large"])
@pytest.mark.parametrize("scan", [False, True])
def test_a_pooled_model_has_the_rows_of_the_shape(variant, scan):
  model = models.abstract("bert", variant, output="pooled", scan=scan)
  shape = shape_of("bert", variant, scan=scan)
  for make in (models.gemms_of, models.non_gemms_of):
    rows, want = make(model, 2, seq=9), make(shape, 2, seq=9)
    order = [sorted(each, key=lambda row: row["name"]) for each in (rows, want)]
    for row, other in zip(*order, strict=True):
      # The shape's names of norms differ: it has one before the blocks.
      if "norm" not in row["name"]:
        assert row == other


@pytest.mark.parametrize("output", OUTPUTS)
def test_padding_changes_nothing(output):
  model = create("bert", output=output)
  ids = jnp.array([[5, 6, 7, 1]])
  whole = model(ids)
  longer = model(jnp.pad(ids, ((0, 0), (0, 5))))
  longer = longer[:, :4] if output == "tokens" else longer
  np.testing.assert_allclose(whole, longer, atol=1e-5)
  empty = model(jnp.zeros((1, 4), jnp.int32))  # as in the last batch
  assert np.isfinite(empty).all()


def test_token_types_default_to_the_first():
  model, ids = create("bert"), jnp.array([[5, 6, 7, 1]])
  np.testing.assert_array_equal(model(ids), model(ids, 0 * ids))
  assert not np.allclose(model(ids), model(ids, 0 * ids + 1), atol=1e-3)


def test_an_embedding_is_the_mean_of_the_tokens_of_length_1():
  model = create("bert", output="embedding")
  ids = jnp.array([[5, 6, 7, 1, 0, 0], [5, 1, 0, 0, 0, 0]])
  x, is_token = model.encode(ids)
  for row, tokens, seen in zip(model(ids), np.asarray(x), is_token):
    mean = tokens[np.asarray(seen)].mean(0)
    np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
  assert jnp.allclose(jnp.linalg.norm(model(ids), axis=1), 1)

  def loss(model):
    return model(jnp.zeros((1, 3), jnp.int32)).sum()

  gradient = nnx.grad(loss)(model)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda m: m(jnp.ones((1, 11), jnp.int32)), "at most 10 tokens.*got 11"),
    (lambda m: m(jnp.full((1, 3), 24)), "inputs from 0 to 23, got 24"),
    (lambda m: m(jnp.full((1, 3), -1)), "inputs from 0 to 23, got -1"),
    (lambda m: _ids("inputs", jnp.ones((1, 3)), 3, "vocab"), "float32"),
    (lambda m: _ids("inputs", jnp.ones(3, int), 3, "vocab"), r"\(3,\)"),
    (
      lambda m: m(*jnp.full((2, 1, 3), 2)),
      "types from 0 to 1, got 2.*token_types=",
    ),
  ],
)
def test_bad_inputs_are_one_line(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call(create("bert"))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"output": "token"}, "unknown output='token'.*did you mean 'tokens'"),
    ({"gelu": "relu"}, "unknown gelu='relu'"),
    ({"heads": 3}, "3 heads do not divide width 8"),
    ({"length": 4}, "input_length of at most length=4.*got 9"),
    ({"vocab": 0}, "vocab of 1 or more"),
  ],
)
def test_bad_options_are_one_line(options, message):
  with pytest.raises(ValueError, match=message) as error:
    create("bert", **options)
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match="needs depth=.*tiny, mini"):
    models.create("bert", "custom", width=8)
  with pytest.raises(ValueError, match="'bas'.*did you mean 'base'"):
    models.create("bert", "bas")


def weights_of(output):
  return pretrained.published(create("bert", output=output, num_classes=5))


def load(folder, weights, output, **options):
  from safetensors.numpy import save_file

  whole = {name: np.ascontiguousarray(x) for name, x in weights.items()}
  save_file(whole, folder / "model.safetensors")
  model = create("bert", output=output, num_classes=5)
  return pretrained.load(model, folder, **options)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_every_spelling_is_read(output, bare, old, tmp_path):
  weights = weights_of(output)
  ids = np.array([[5, 6, 7, 1, 0]])
  want = load(tmp_path, weights, output)(ids)
  spelled = {}
  for name, value in weights.items():
    name = name.removeprefix("bert.") if bare else name
    if old:
      name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
      name = name.replace("LayerNorm.bias", "LayerNorm.beta")
    spelled[name] = value
  spelled["embeddings.position_ids"] = np.arange(10)[None]
  spelled |= (
    {f"pooler.dense.{x}": np.ones(8) for x in ("weight", "bias")}
    if (output in ("tokens", "embedding"))
    else {}
  )
  np.testing.assert_array_equal(load(tmp_path, spelled, output)(ids), want)


def test_copies_of_a_tied_head_must_be_copies(tmp_path):
  weights = weights_of("tokens")
  copies = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
  }
  whole = weights | {name: weights[of] for name, of in copies.items()}
  load(tmp_path, whole, "tokens")
  for name in copies:
    with pytest.raises(PretrainedError, match=f"value of {name}.*differs from"):
      load(tmp_path, whole | {name: whole[name] + 1}, "tokens")


@pytest.mark.parametrize("held", OUTPUTS)
@pytest.mark.parametrize("wanted", OUTPUTS)
def test_a_fresh_head_takes_the_body_of_any_file(held, wanted, tmp_path):
  weights = weights_of(held)
  loaded = load(tmp_path, weights, wanted, head="fresh")
  path = "bert.encoder.layer.1.output.dense.weight"
  assert np.array_equal(pretrained.published(loaded)[path], weights[path])
  names = pretrained.published(create("bert", output=wanted)).keys()
  missing = {n for n in names - weights.keys() if "pooler" not in n}
  head = {n for n in weights.keys() - names if "pooler" not in n}
  if missing or head or names - weights.keys():
    with pytest.raises(PretrainedError, match="head='fresh'"):
      load(tmp_path, weights, wanted)
  else:
    load(tmp_path, weights, wanted)


def test_sizes_that_differ_name_their_option(tmp_path):
  pretrained.save(create("bert"), tmp_path / "model.safetensors")
  for option, path in (("vocab", "token"), ("length", "position")):
    model = create("bert", **{option: 20})
    with pytest.raises(PretrainedError, match=f"{path}_embed.*set {option}="):
      pretrained.load(model, tmp_path)


def test_masks_reach_every_kernel():
  model = nn.sparsify(
    create("bert"), "ff: 1:4, qk: 2:4, v: 1:2, o: 1:2, head: 1:8"
  )
  assert len(nn.masked_leaves(model)) == 2 * 6 + 1
