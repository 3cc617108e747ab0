"""Weights of a DINOv2 from the graph of ONNX that torch exported.

An exporter keeps the names of most tensors. It transposes the kernels of linear
layers and renames them to numbers, so that only the node that multiplies by a
kernel says whose it is; and it splits the positions into those of the class
token and of the patches.

The file is a message of protocol buffers, of which the initializers, and the
names and inputs of the nodes are read here. Nothing in it is run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from figs_jax.models.pretrained.files import PretrainedError, write_weights

_FLOAT = 1  # TensorProto.DataType
_MOST_BYTES = 2**31  # of a message of protocol buffers
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


class Node(NamedTuple):
  """A node of the graph: its name, its operator and its inputs' names."""

  name: str
  operator: str
  inputs: tuple[str, ...]


def convert(
  path: str | Path, folder: str | Path, *, heads: int | None = None
) -> Path:
  """Writes a DINOv2 as `models.from_pretrained` and transformers read it.

  Args:
    path: File of ONNX with float32 weights, exported by torch from a DINOv2 of
      transformers, alone or with layers behind it, which are left out.
    folder: Directory to make, for model.safetensors and config.json.
    heads: Number of heads, which the weights do not say. Defaults to width /
      64, that of all published ones.

  Returns:
    The directory.

  Raises:
    PretrainedError: If the file is damaged or holds no such DINOv2, or the
      directory has weights already.
  """
  path, folder = Path(path), Path(folder)
  written = [folder / "model.safetensors", folder / "config.json"]
  for place in written:
    if place.exists():
      raise PretrainedError(f"{place}: it exists; remove it, or give another")
  try:
    nodes, arrays = _graph(path)
  except (IndexError, ValueError, OverflowError, TypeError) as error:
    if isinstance(error, PretrainedError):
      raise
    raise PretrainedError(
      f"{path}: damaged file of ONNX; fetch it again"
    ) from (error)
  tensors = _backbone(path, nodes, arrays)
  config = _config(path, tensors, heads)
  folder.mkdir(parents=True, exist_ok=True)
  write_weights(written[0], tensors)
  written[1].write_text(json.dumps(config, indent=2) + "\n")
  return folder


def _backbone(
  path: Path, nodes: list[Node], arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The tensors of the encoder under the library's names."""
  token = "embeddings.cls_token"
  starts = [name.removesuffix(token) for name in arrays if name.endswith(token)]
  if len(starts) != 1:
    raise PretrainedError(
      f"{path}: expected a DINOv2 of transformers, got no tensor {token}"
    )
  prefix = starts[0]
  tensors = {
    name.removeprefix(prefix): value
    for name, value in arrays.items()
    if name.startswith(prefix) and not name.startswith("onnx::")
  }
  tensors = {
    name: value
    for name, value in tensors.items()
    if name.startswith(("embeddings.", "encoder.", "layernorm."))
  }
  positions = {}
  for node in nodes:
    name = node.name.lstrip("/").replace("/", ".").removeprefix(prefix)
    if name == node.name:
      continue
    for each in node.inputs:
      value = arrays.get(each)
      if value is None or not each.startswith("onnx::"):
        continue
      if node.operator == "MatMul" and name.startswith("encoder."):
        tensors[f"{name.removesuffix('.MatMul')}.weight"] = value.T
      elif name.startswith("embeddings.") and value.ndim == 3:
        positions[value.shape[1] > 1] = value
  if len(positions) == 2:
    whole = np.concatenate([positions[False], positions[True]], axis=1)
    tensors["embeddings.position_embeddings"] = whole
  return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _config(
  path: Path, tensors: dict[str, np.ndarray], heads: int | None
) -> dict[str, Any]:
  """The fields of config.json that follow from the shapes."""
  try:
    width, channels, patch, _ = tensors[
      "embeddings.patch_embeddings.projection.weight"
    ].shape
    hidden = tensors["encoder.layer.0.mlp.fc1.weight"].shape[0]
    count = tensors["embeddings.position_embeddings"].shape[1] - 1
  except (KeyError, ValueError) as error:
    raise PretrainedError(
      f"{path}: expected a DINOv2 of transformers with a feed-forward layer"
      f" fc1, got no such tensors ({error})"
    ) from error
  layers = {int(m[1]) for m in map(_LAYER.match, tensors) if m}
  return {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": width,
    "num_hidden_layers": len(layers),
    "num_attention_heads": heads or max(width // 64, 1),
    "mlp_ratio": hidden // width,
    "num_channels": channels,
    "patch_size": patch,
    "image_size": math.isqrt(count) * patch,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in tensors,
    "use_swiglu_ffn": False,
    "use_mask_token": False,
  }


def _graph(path: Path) -> tuple[list[Node], dict[str, np.ndarray]]:
  """The nodes and the float32 initializers (ModelProto, GraphProto)."""
  if not path.is_file():
    raise PretrainedError(f"{path}: file not found; expected a file of ONNX")
  if path.stat().st_size > _MOST_BYTES:
    raise PretrainedError(f"{path}: expected at most {_MOST_BYTES} bytes")
  nodes, arrays = [], {}
  graphs = [v for field, v in _fields(path.read_bytes()) if field == 7]
  if len(graphs) != 1 or isinstance(graphs[0], int):
    raise ValueError("no graph")
  for field, value in _fields(graphs[0]):
    if field == 1:
      nodes.append(_node(value))
    elif field == 5:
      name, array = _tensor(value)
      if array is not None:
        arrays[name] = array
  return nodes, arrays


def _node(message: Any) -> Node:
  inputs, name, operator = [], "", ""
  for field, value in _fields(message):
    if field == 1:
      inputs.append(str(value, "utf8"))
    elif field == 3:
      name = str(value, "utf8")
    elif field == 4:
      operator = str(value, "utf8")
  return Node(name, operator, tuple(inputs))


def _tensor(message: Any) -> tuple[str, np.ndarray | None]:
  """Name and values of a TensorProto; None if they are not float32."""
  shape: list[int] = []
  name, kind, raw = "", 0, None
  for field, value in _fields(message):
    if field == 1:  # dims, packed or not
      shape += [value] if isinstance(value, int) else list(_varints(value))
    elif field == 2:
      kind = value
    elif field in (4, 9):  # float_data, raw_data
      raw = value
    elif field == 8:
      name = str(value, "utf8")
  if kind != _FLOAT or raw is None:
    return name, None
  return name, np.frombuffer(raw, "<f4").reshape(shape)


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
  """(number, value) of the fields of a message: an integer or a view."""
  view, place = memoryview(message), 0
  while place < len(view):
    key, place = _varint(view, place)
    kind = key & 7
    if kind == 0:
      value, place = _varint(view, place)
    else:
      size = {1: 8, 5: 4}.get(kind)
      if kind == 2:
        size, place = _varint(view, place)
      if size is None or place + size > len(view):
        raise ValueError("a field leads beyond its message")
      value, place = view[place : place + size], place + size
    yield key >> 3, value


def _varint(view: memoryview, place: int) -> tuple[int, int]:
  value = 0
  for shift in range(0, 70, 7):
    byte = view[place]
    place += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, place
  raise ValueError("an integer of more than ten bytes")


def _varints(view: memoryview) -> Iterator[int]:
  place = 0
  while place < len(view):
    value, place = _varint(view, place)
    yield value
