"""Files of weights: named tensors, checked before one is read.

A file from a stranger is data. Sizes, dtypes and places in the file are
compared with one another and with the file's length before memory is
allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
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
      yield _sharded(place)
    else:
      yield _safetensors(place)


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file, whole or not at all, over what is there.

  Raises:
    PretrainedError: another suffix, no such directory, or no room.
  """
  try:
    # The format's name for [out, in] kernels, which other readers ask for.
    files.write(path, tensors, metadata={"format": "pt"}, overwrite=True)
  except files.ExportError as error:
    raise PretrainedError(str(error)) from error


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


def _safetensors(path: Path) -> dict[str, Tensor]:
  try:
    entries, _ = files.opened(path)
  except files.ExportError as error:
    raise PretrainedError(str(error)) from error
  found = {}
  for name, entry in entries.items():
    if entry.kind not in _KINDS:
      raise PretrainedError(
        f"{path}: {name} has dtype {entry.kind}; known are {', '.join(_KINDS)}"
      )
    found[name] = Tensor(entry.shape, entry.dtype, entry.read)
  return found


def _sharded(path: Path) -> dict[str, Tensor]:
  """The tensors of several files, each where the index says."""
  try:
    places = files.weight_map(path)
  except files.ExportError as error:
    raise PretrainedError(str(error)) from error
  names = set(places.values())
  # A name, not a path that leads elsewhere.
  wrong = [name for name in names if Path(name).name != name]
  if wrong:
    raise PretrainedError(
      f"{path}: {wrong[0]!r} is no file beside the index, as its parts must be"
    )
  for name in sorted(names):
    if not (path.parent / name).is_file():
      raise PretrainedError(f"{path}: its part {name} is missing")
  found: dict[str, Tensor] = {}
  for name in sorted(names):
    part = _safetensors(path.parent / name)
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
  MemoryError,
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
    raise _no_npz(path, error) from error
  return array.view(dtype)


def _no_npz(path: Path, error: Exception) -> PretrainedError:
  return PretrainedError(
    f"{path}: no whole .npz file of weights ({files.line(error)}); fetch it"
    " again"
  )
