"""ResNet against another library: stored numbers always, live where it is."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import pretrained
from figs_jax.models.pretrained.config import for_transformers
from figs_jax.models.pretrained.files import write_weights

from . import resnet_oracle as oracle
from .parity import ATOL, check_gradient, under

# Name of a convolution in the block, by its place: of basic blocks and of
# bottlenecks.
CONVS = {
  "basic": ("conv3x3_1", "conv3x3_2"),
  "bottleneck": ("conv1x1_1", "conv3x3_2", "conv1x1_3"),
}


def create(kind, **options):
  options = {**oracle.options(kind), **options}
  return models.create("resnet", "custom", rngs=nnx.Rngs(3), **options)


def stored(kind=""):
  with np.load(oracle.TARGET) as data:
    return under(f"{kind}/" if kind else "", dict(data))


def loaded(folder, weights, model):
  write_weights(folder / "model.safetensors", weights)
  return pretrained.load(model, folder)


def torchvision_names(weights):
  """The same tensors under the names of torchvision and timm."""
  short = {
    "resnet.embedder.embedder.convolution": "conv1",
    "resnet.embedder.embedder.normalization": "bn1",
    "classifier.1": "fc",
  }

  def name(full):
    stem, _, end = full.rpartition(".")
    if stem in short:
      return f"{short[stem]}.{end}"
    _, _, _, stage, _, layer, *inner, part = stem.split(".")
    place = f"layer{int(stage) + 1}.{layer}"
    if inner == ["shortcut"]:
      number = {"convolution": 0, "normalization": 1}[part]
      return f"{place}.downsample.{number}.{end}"
    word = {"convolution": "conv", "normalization": "bn"}[part]
    return f"{place}.{word}{int(inner[1]) + 1}.{end}"

  return {name(full): value for full, value in weights.items()}


def slope(model, images, cotangent):
  """(logits, gradients, statistics after the call) of a model."""
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def fn(params):
    net = nn.merge(graphdef, params, masks, 0.0, rest)
    logits = net(images)
    return (logits * cotangent).sum(), (logits, nn.split(net)[3])

  with jax.default_matmul_precision("highest"):
    (_, (logits, after)), grads = fn(params)
  return logits, grads, after


def compare(folder, kind, expected, common, **options):
  """Logits, gradients and running statistics, in evaluation and training."""
  weights = under("weights/", expected)
  model = loaded(folder, weights, create(kind, **options))
  for mode in ("eval", "train"):
    getattr(model, mode)()
    logits, grads, after = slope(model, common["images"], common["cotangent"])
    np.testing.assert_allclose(
      logits, expected[f"{mode}/logits"], atol=ATOL, rtol=0
    )
    # Gradients and statistics are files of the same names.
    theirs = weights | under(f"{mode}/grads/", expected)
    theirs = nn.split(loaded(folder, theirs, model))[1]
    theirs = tree.flatten(theirs)
    for path, got in tree.flatten(grads).items():
      check_gradient(path, got, theirs[path])
  theirs = weights | under("after/", expected)
  theirs = tree.flatten(nn.split(loaded(folder, theirs, model))[3])
  for path, got in tree.flatten(after).items():
    np.testing.assert_allclose(got, theirs[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "scan", "remat"), [
  ("basic", False, False), ("basic", True, True), ("bottleneck", True, False),
])  # fmt: skip
def test_logits_gradients_and_statistics_equal_the_stored_ones(
  tmp_path, kind, scan, remat
):
  compare(tmp_path, kind, stored(kind), stored(), scan=scan, remat=remat)


def test_logits_and_gradients_equal_those_computed_now(tmp_path, monkeypatch):
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  random_model = oracle.random_model
  monkeypatch.setattr(
    oracle, "random_model", lambda kind, seed: random_model(kind, 7)
  )
  arrays = oracle.fixture()
  for kind in oracle.KINDS:
    compare(tmp_path, kind, under(f"{kind}/", arrays), arrays)


@pytest.mark.parametrize("kind", list(oracle.KINDS))
def test_torchvisions_names_are_read(tmp_path, kind):
  weights = under("weights/", stored(kind))
  theirs = torchvision_names(weights)
  assert {"layer2.0.downsample.1.running_var", "bn1.running_mean"} <= set(
    theirs
  )
  assert f"layer1.0.conv{len(CONVS[kind])}.weight" in theirs
  a = loaded(tmp_path, weights, create(kind))
  b = loaded(tmp_path, theirs, create(kind))
  for ours, other in zip(nn.split(a)[1::2], nn.split(b)[1::2]):
    jax.tree.map(np.testing.assert_array_equal, ours, other)


@pytest.mark.parametrize("scan", [False, True])
def test_a_round_trip_keeps_every_bit(tmp_path, scan):
  """With running statistics, which are weights of a file."""
  weights = under("weights/", stored("basic"))
  model = loaded(tmp_path, weights, create("basic", scan=scan))
  pretrained.save(model, tmp_path / "model.safetensors")
  again = pretrained.load(create("basic", scan=not scan), tmp_path)
  written, read = pretrained.published(model), pretrained.published(again)
  for name, value in read.items():
    np.testing.assert_array_equal(value, weights[name], err_msg=name)
    np.testing.assert_array_equal(value, written[name], err_msg=name)
  assert read.keys() == weights.keys()


def test_missing_and_unexpected_statistics_are_refused(tmp_path):
  weights = under("weights/", stored("basic"))
  name = "resnet.encoder.stages.1.layers.2.layer.0.normalization.running_var"
  lacking = {key: value for key, value in weights.items() if key != name}
  with pytest.raises(pretrained.PretrainedError, match=f"{name} is missing"):
    loaded(tmp_path, lacking, create("basic"))
  more = weights | {name.replace("running_var", "running_std"): np.ones(8)}
  with pytest.raises(pretrained.PretrainedError, match="running_std"):
    loaded(tmp_path, more, create("basic"))


def test_the_stem_is_converted_to_gray_images_if_asked(tmp_path):
  weights = under("weights/", stored("basic"))
  write_weights(tmp_path / "model.safetensors", weights)
  gray = create("basic", in_channels=1)
  with pytest.raises(pretrained.PretrainedError, match="convert_channels=True"):
    pretrained.load(gray, tmp_path)
  model = pretrained.load(gray, tmp_path, convert_channels=True)
  full = pretrained.load(create("basic"), tmp_path)
  image = stored()["images"][..., :1]
  model.eval(), full.eval()
  np.testing.assert_allclose(
    model(image), full(np.repeat(image, 3, axis=-1)), atol=1e-4
  )


# What transformers 5.24 writes, but for the class names.
SAVED = {
  "architectures": ["ResNetForImageClassification"],
  "downsample_in_bottleneck": False,
  "downsample_in_first_stage": False,
  "dtype": "float32",
  "hidden_act": "relu",
  "model_type": "resnet",
  "num_channels": 3,
  "out_features": ["stage2"],
  "out_indices": [2],
  "stage_names": ["stem", "stage1", "stage2"],
  "transformers_version": "5.24.0",
}


def directory(folder, kind, **changes):
  """A directory of the library, with keys of its config.json changed."""
  labels = {str(i): f"LABEL_{i}" for i in range(oracle.CLASSES)}
  config = SAVED | oracle.arguments(kind) | {"id2label": labels} | changes
  del config["num_labels"]
  (folder / "config.json").write_text(json.dumps(config))
  write_weights(folder / "model.safetensors", under("weights/", stored(kind)))


@pytest.mark.parametrize("kind", list(oracle.KINDS))
def test_from_pretrained_takes_the_sizes_of_the_file(tmp_path, kind):
  directory(tmp_path, kind)
  model = models.from_pretrained(tmp_path, image_size=oracle.IMAGE)
  assert (model.block, model.width) == (kind, 4)
  with jax.default_matmul_precision("highest"):
    logits = model(stored()["images"])
  want = stored(kind)["eval/logits"]
  np.testing.assert_allclose(logits, want, atol=ATOL, rtol=0)
  # Written again, with the same keys for the same function.
  made = for_transformers(model)
  config = json.loads((tmp_path / "config.json").read_text())
  config["label2id"] = made.config["label2id"]
  assert made.config == {key: config[key] for key in made.config}
  for name, value in under("weights/", stored(kind)).items():
    np.testing.assert_array_equal(made.tensors[name], value, err_msg=name)


@pytest.mark.parametrize(("changes", "message"), [
  ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck: expected"),
  ({"downsample_in_first_stage": True}, "downsample_in_first_stage: expected"),
  ({"hidden_act": "gelu"}, 'hidden_act: expected "relu"'),
  ({"layer_type": "wide"}, "layer_type: expected one of basic, bottleneck"),
  ({"hidden_sizes": [16, 48]}, r"hidden_sizes: expected \[16, 32\], which"),
  ({"embedding_size": 8}, r"hidden_sizes: expected \[32, 64\], which"),
  ({"norm": "group"}, 'unknown key "norm"'),
])  # fmt: skip
def test_another_function_is_refused_by_its_key(tmp_path, changes, message):
  directory(tmp_path, "bottleneck", **changes)
  with pytest.raises(pretrained.PretrainedError, match=message) as error:
    models.from_pretrained(tmp_path, image_size=oracle.IMAGE)
  assert "\n" not in str(error.value)
