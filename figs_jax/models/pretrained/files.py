"""Weight files: named tensors, checked before any of them is read.

Files are untrusted. Sizes, dtypes and offsets are checked against each other
and against the file's length before memory is allocated, and nothing is ever
unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.export import files

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32")
_DTYPES = {files.DTYPES[kind] for kind in _KINDS}


class PretrainedError(ValueError):
  """Raised for weights that cannot be read or do not fit the model."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """An entry of a file: its shape and dtype; `read()` returns the array."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]


@contextlib.contextmanager
def opened_weights(path: str | Path) -> Iterator[dict[str, Tensor]]:
  """Opens the tensors of a file or directory by name, inside a context.

  Args:
    path: A .safetensors file, the .json index of several, an .npz file, or a
      directory with `model.safetensors` or `model.safetensors.index.json`, as
      published models have.

  Raises:
    PretrainedError: If the file is missing, of another kind, truncated or
      inconsistent.
  """
  with contextlib.ExitStack() as stack:
    place = _place(Path(path))
    if place.suffix == ".npz":
      yield _npz(place, stack)
    elif place.suffix == ".json":
      yield _sharded(place)
    else:
      yield _safetensors(place)


def write_weights(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file atomically; replaces an existing one.

  Raises:
    PretrainedError: If the suffix is wrong, or the directory is missing or
      full.
  """
  try:
    # The format's name for [out, in] kernels, which other readers expect.
    files.write(path, tensors, metadata={"format": "pt"}, overwrite=True)
  except files.ExportError as error:
    raise PretrainedError(str(error)) from error


# How to convert other files, by suffix. They are not read: a pickle can run
# code.
_TORCH = (
  "pickled by torch; convert it with torch and safetensors:"
  " safetensors.torch.save_file({{k: v.clone() for k, v in"
  " torch.load({path!r}, weights_only=True).items()}}, 'model.safetensors')"
)
_OTHERS = {
  **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _TORCH),
  ".onnx": (
    "a graph of ONNX, whose weights may be folded and renamed; load the model"
    " that it was made from, or convert a DINOv2 of transformers with"
    " figs_jax.models.pretrained.onnx_dinov2.convert({path!r}, FOLDER)"
  ),
  ".h5": (
    "weights of TensorFlow; load them with transformers 4 (from_tf=True) and"
    " save them with save_pretrained"
  ),
  ".msgpack": (
    "weights of Flax; load them with transformers 4 (from_flax=True) and save"
    " them with save_pretrained"
  ),
  ".gguf": (
    "quantized weights; load them with transformers (gguf_file=) and save them"
    " with save_pretrained"
  ),
}


def _place(path: Path) -> Path:
  """The file that a path stands for."""
  if path.is_dir():
    index, single = path / _INDEX, path / _SINGLE
    if index.is_file() and single.is_file():
      _check_equal(index, single)
    for place in (index, single):
      if place.is_file():
        return place
    others = sorted(x for x in path.iterdir() if x.suffix in _OTHERS)
    if others:
      raise PretrainedError(_conversion(others[0]))
    raise PretrainedError(
      f"{path}: expected {_SINGLE} or {_INDEX} in this directory; give the path"
      " of the file itself"
    )
  if not path.is_file():
    raise PretrainedError(
      f"{path}: file or directory not found; expected .safetensors, its .json"
      " index, .npz or a directory with them"
    )
  if path.suffix in _OTHERS:
    raise PretrainedError(_conversion(path))
  if path.suffix not in (".safetensors", ".npz", ".json"):
    raise PretrainedError(
      f"{path}: expected .safetensors, its .json index or .npz; other files may"
      " hold pickles, which can run code: convert them with their own library"
    )
  return path


def _conversion(path: Path) -> str:
  how = _OTHERS[path.suffix].format(path=str(path))
  return f"{path}: expected .safetensors or .npz, got {how}"


def _check_equal(index: Path, single: Path) -> None:
  """Raises unless a file and the parts of an index hold the same tensors."""
  whole, parts = _safetensors(single), _sharded(index)
  for name in sorted(whole.keys() | parts.keys()):
    one, other = whole.get(name), parts.get(name)
    if one and other and one.shape == other.shape and one.dtype == other.dtype:
      a, b = (tensor.read() for tensor in (one, other))
      if a.tobytes() == b.tobytes():
        continue
    raise PretrainedError(
      f"{single.parent}: expected {index.name} and {single.name} to hold the"
      f" same tensors, but {name} differs; remove the one that is out of date"
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
  try:
    entries, _ = files.opened(path)
  except files.ExportError as error:
    raise PretrainedError(str(error)) from error
  tensors = {}
  for name, entry in entries.items():
    if entry.kind not in _KINDS:
      raise PretrainedError(
        f"{path}: {name} has dtype {entry.kind}; expected one of"
        f" {', '.join(_KINDS)}"
      )
    tensors[name] = Tensor(entry.shape, entry.dtype, entry.read)
  return tensors


def _sharded(path: Path) -> dict[str, Tensor]:
  """The tensors of several files, as listed in their index."""
  try:
    places = files.weight_map(path)
  except files.ExportError as error:
    raise PretrainedError(str(error)) from error
  names = set(places.values())
  # A name, not a path that leads elsewhere.
  wrong = [name for name in names if Path(name).name != name]
  if wrong:
    raise PretrainedError(
      f"{path}: expected parts beside the index, got the path {wrong[0]!r}"
    )
  for name in sorted(names):
    try:
      files.check_readable(path.parent / name)
    except files.ExportError as error:
      raise PretrainedError(
        f"{path}: its part {name[:80]!r} is missing"
      ) from error
  tensors: dict[str, Tensor] = {}
  for name in sorted(names):
    part = _safetensors(path.parent / name)
    here = {tensor for tensor, file in places.items() if file == name}
    for tensor in sorted(here ^ part.keys()):
      side = "lacks" if tensor in here else "holds"
      raise PretrainedError(
        f"{path.parent / name}: {side} {tensor}, unlike the index {path.name}"
      )
    tensors |= part
  return tensors


def _npz(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
  try:
    archive = stack.enter_context(zipfile.ZipFile(path))
    tensors = {}
    for info in archive.infolist():
      name = info.filename.removesuffix(".npy")
      if name in tensors or not info.filename.endswith(".npy"):
        raise ValueError(f"{info.filename} is a duplicate or not an array")
      shape, dtype = _header(archive, info)
      read = functools.partial(_array, path, archive, info, dtype)
      tensors[name] = Tensor(shape, dtype, read)
  except _BROKEN as error:
    raise _invalid_npz(path, error) from error
  return tensors


# Errors that zipfile and numpy raise for damaged archives.
_BROKEN = (
  ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error,
  NotImplementedError, RuntimeError, SyntaxError, KeyError, TypeError,
  MemoryError, tokenize.TokenError,
)  # fmt: skip


def _header(
  archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of a member, checked against its length."""
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
      header = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
      header = np.lib.format.read_array_header_2_0(file)
    else:
      raise ValueError(f"{info.filename}: unknown version {version}")
    shape, _, dtype = header
    size = info.file_size - file.tell()
  if dtype == np.dtype("V2"):
    dtype = jnp.dtype("bfloat16")  # which numpy stores as void bytes
  if dtype not in _DTYPES:
    raise ValueError(f"{info.filename} has dtype {dtype}")
  if math.prod(shape) * dtype.itemsize != size:
    raise ValueError(f"{info.filename}: {size} bytes for shape {shape}")
  return shape, dtype


def _array(
  path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: np.dtype
) -> np.ndarray:
  try:
    with archive.open(info) as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
  except _BROKEN as error:
    raise _invalid_npz(path, error) from error
  return array.view(dtype)


def _invalid_npz(path: Path, error: Exception) -> PretrainedError:
  return PretrainedError(
    f"{path}: damaged .npz file of weights ({files.line(error)}); download it"
    " again"
  )
