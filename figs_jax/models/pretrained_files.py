"""Files of weights: named tensors, checked before one is read.

A file from a stranger is data. Sizes, dtypes and places in the file are
compared with one another and with the file's length before memory is
allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MOST_INDEX_BYTES = 64 << 20
_DTYPES = {
  "F64": np.dtype("float64"),
  "F32": np.dtype("float32"),
  "F16": np.dtype("float16"),
  "BF16": jnp.dtype("bfloat16"),
  "I64": np.dtype("int64"),
  "I32": np.dtype("int32"),
}


class PretrainedError(ValueError):
  """Weights that cannot be read, or that do not fit the model."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """An entry of a file: shape and dtype are known, `read()` gives the array."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[dict[str, Tensor]]:
  """The tensors of a file or directory by name, readable inside the context.

  Args:
    path: a .safetensors file; the .json index of several; a directory with
      `model.safetensors` or `model.safetensors.index.json`, as published
      models have; or an .npz file.

  Raises:
    PretrainedError: no such file, one of another kind, or one that is
      truncated or contradicts itself.
  """
  with contextlib.ExitStack() as stack:
    place = _place(Path(path))
    if place.suffix == ".npz":
      yield _npz(place, stack)
    elif place.suffix == ".json":
      yield _sharded(place, stack)
    else:
      yield _safetensors(place, stack)


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file, whole or not at all.

  Raises:
    PretrainedError: another suffix, or no such directory.
  """
  from safetensors.numpy import save_file

  path = Path(path)
  if path.suffix != ".safetensors" or path.is_dir():
    raise PretrainedError(f"{path}: name a file that ends in .safetensors")
  if not path.parent.is_dir():
    raise PretrainedError(f"{path}: there is no such directory; make it first")
  part = path.with_name(f".part-{os.getpid()}")
  whole = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  try:
    # The format's name for [out, in] kernels, which other readers ask for.
    save_file(whole, part, metadata={"format": "pt"})
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _place(path: Path) -> Path:
  """The file to begin with."""
  if path.is_dir():
    for name in (_INDEX, _SINGLE):
      if (path / name).is_file():
        return path / name
    raise PretrainedError(
      f"{path}: this directory holds neither {_SINGLE} nor {_INDEX}; name the"
      " file itself"
    )
  if not path.is_file():
    raise PretrainedError(f"{path}: there is no such file or directory")
  if path.suffix not in (".safetensors", ".npz", ".json"):
    raise PretrainedError(
      f"{path}: only .safetensors, its .json index and .npz are read; files"
      " that hold pickles could run code, convert them with their own library"
    )
  return path


def _safetensors(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
  from safetensors import SafetensorError, safe_open

  try:
    # Checks the header: its length, every dtype, shape and offset, and that
    # they cover the file exactly. The data stay where they are.
    file = stack.enter_context(safe_open(path, framework="numpy"))
    found = {}
    for name in file.keys():  # noqa: SIM118, no mapping
      entry = file.get_slice(name)
      kind = entry.get_dtype()
      if kind not in _DTYPES:
        raise PretrainedError(
          f"{path}: {name} has dtype {kind}; known are {', '.join(_DTYPES)}"
        )
      found[name] = Tensor(
        tuple(entry.get_shape()),
        _DTYPES[kind],
        functools.partial(file.get_tensor, name),
      )
  except (SafetensorError, OSError) as error:
    raise PretrainedError(
      f"{path}: no whole safetensors file ({_line(error)}); fetch it again"
    ) from error
  return found


def _sharded(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
  """The tensors of several files, each where the index says."""
  if path.stat().st_size > _MOST_INDEX_BYTES:
    raise PretrainedError(f"{path}: too long for an index of weights")
  try:
    index = json.loads(path.read_text())
    places = dict(index["weight_map"])
    names = set(places.values())
    # A name, not a path that leads elsewhere.
    wrong = [name for name in names if Path(name).name != name]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise PretrainedError(
      f"{path}: no index of weights, with a weight_map of tensors to files"
      f" ({_line(error)})"
    ) from error
  if wrong:
    raise PretrainedError(
      f"{path}: {wrong[0]!r} is no file beside the index, as its parts must be"
    )
  for name in sorted(names):
    if not (path.parent / name).is_file():
      raise PretrainedError(f"{path}: its part {name} is missing")
  found: dict[str, Tensor] = {}
  for name in sorted(names):
    part = _safetensors(path.parent / name, stack)
    here = {tensor for tensor, file in places.items() if file == name}
    for tensor in sorted(here ^ part.keys()):
      side = "lacks" if tensor in here else "holds"
      raise PretrainedError(
        f"{path.parent / name}: {side} {tensor}, unlike the index {path.name}"
      )
    found |= part
  return found


def _npz(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
  try:
    archive = stack.enter_context(zipfile.ZipFile(path))
    found = {}
    for info in archive.infolist():
      name = info.filename.removesuffix(".npy")
      if name in found or not info.filename.endswith(".npy"):
        raise ValueError(f"{info.filename} is there twice, or is no array")
      shape, dtype = _header(archive, info)
      read = functools.partial(_array, path, archive, info, dtype)
      found[name] = Tensor(shape, dtype, read)
  except _BROKEN as error:
    raise _no_npz(path, error) from error
  return found


# Whatever a damaged archive makes zipfile and numpy raise.
_BROKEN = (
  ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error,
  NotImplementedError, RuntimeError, SyntaxError, KeyError, TypeError,
)  # fmt: skip


def _header(
  archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of a member, which its length has to bear out."""
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
    dtype = jnp.dtype("bfloat16")  # as numpy stores what it does not know
  if dtype not in _DTYPES.values():
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
    raise _no_npz(path, error) from error
  return array.view(dtype)


def _no_npz(path: Path, error: Exception) -> PretrainedError:
  return PretrainedError(
    f"{path}: no whole .npz file of weights ({_line(error)}); fetch it again"
  )


def _line(error: Exception) -> str:
  text = str(error).strip().splitlines() or [type(error).__name__]
  return text[0].removeprefix("Error while deserializing header: ")[:160]
