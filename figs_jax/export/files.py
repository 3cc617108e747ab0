"""Safetensors files: checked before a tensor is read, written atomically.

Files are not trusted. Every length, dtype, shape and offset is compared with
the others and with the length of the file before memory is allocated, and
nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.core.types import Shaped
from figs_jax.export.atomic_write import (
  ExportError,
  line,
  replacing,
  unreadable,
)

SUFFIX = ".safetensors"
DTYPES = {
  "F64": np.dtype("float64"),
  "F32": np.dtype("float32"),
  "F16": np.dtype("float16"),
  "BF16": jnp.dtype("bfloat16"),
  "F8_E4M3": jnp.dtype("float8_e4m3fn"),
  "F8_E5M2": jnp.dtype("float8_e5m2"),
  "I64": np.dtype("int64"),
  "I32": np.dtype("int32"),
  "I16": np.dtype("int16"),
  "I8": np.dtype("int8"),
  "U64": np.dtype("uint64"),
  "U32": np.dtype("uint32"),
  "U16": np.dtype("uint16"),
  "U8": np.dtype("uint8"),
  "BOOL": np.dtype("bool"),
}
# Bits of an element, also of the dtypes that NumPy lacks.
_BITS = {kind: 8 * dtype.itemsize for kind, dtype in DTYPES.items()} | {
  "C64": 64,
  "F8_E8M0": 8,
  "F8_E4M3FNUZ": 8,
  "F8_E5M2FNUZ": 8,
  "F6_E2M3": 6,
  "F6_E3M2": 6,
  "F4": 4,
}
_MOST_HEADER = 16 << 20
_MOST_INDEX = 64 << 20
_FIELDS = {"dtype", "shape", "data_offsets"}
# Suffixes of other formats.
_OTHERS = {
  ".bin": "a pickle",
  ".pt": "a pickle",
  ".pth": "a pickle",
  ".ckpt": "a pickle",
  ".pkl": "a pickle",
  ".npz": "a NumPy archive",
  ".json": "JSON",
}
_MOST_RANK = 32


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor of a file, not yet in memory.

  Attributes:
    path: Path of the file.
    name: Name of the tensor.
    shape: Shape of the tensor.
    kind: Dtype as named in the file.
    offset: First byte of the tensor in the file.
    nbytes: Number of bytes.
  """

  path: Path
  name: str
  shape: tuple[int, ...]
  kind: str
  offset: int
  nbytes: int

  @property
  def dtype(self) -> np.dtype:
    """The NumPy dtype.

    Raises:
      ExportError: If NumPy has no such dtype.
    """
    if self.kind not in DTYPES:
      raise ExportError(
        f"{self.path}: {self.name} has unknown dtype {self.kind}. Known:"
        f" {', '.join(DTYPES)}"
      )
    return DTYPES[self.kind]

  def read(self) -> Shaped[np.ndarray, "*shape"]:
    """Reads the tensor.

    Raises:
      ExportError: If the file became shorter.
    """
    return self._part(0, self.shape)

  def rows(self, begin: int, end: int) -> Shaped[np.ndarray, "*shape"]:
    """Reads only the part begin <= i < end of axis 0.

    Raises:
      ExportError: If the file became shorter.
    """
    each = math.prod(self.shape[1:]) * self.dtype.itemsize
    return self._part(begin * each, (end - begin, *self.shape[1:]))

  def head(self, count: int) -> Entry:
    """The tensor that the first `count` entries of axis 0 are."""
    each = self.nbytes // self.shape[0]
    return dataclasses.replace(
      self, shape=(count, *self.shape[1:]), nbytes=count * each
    )

  def _part(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
    want = math.prod(shape) * self.dtype.itemsize
    offset = self.offset + start
    try:
      octets = np.fromfile(self.path, np.uint8, want, offset=offset)
    except OSError as error:
      raise unreadable(self.path, error) from error
    if octets.size != want:
      raise ExportError(f"{self.path}: it became shorter while it was read")
    return octets.view(self.dtype).reshape(shape)


def opened(path: str | Path) -> tuple[dict[str, Entry], dict[str, str]]:
  """The tensors of a .safetensors file by name, and its metadata.

  Args:
    path: Path of the file.

  Returns:
    Entries, which read their arrays on request, and the metadata of the header.

  Raises:
    ExportError: If the file is missing or not a whole safetensors file. The
      message names the contradiction.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = f"{folder}/a.safetensors"
  ...   write(file, {"w": np.zeros((2, 4), np.float32)}, metadata={"by": "us"})
  ...   entries, metadata = opened(file)
  >>> entries["w"].shape, metadata
  ((2, 4), {'by': 'us'})
  """
  path = Path(path)
  header, start, size = _header(path)
  metadata = header.pop("__metadata__", {})
  if not _is_text(metadata):
    raise damaged(path, "its metadata are not text")
  entries = {
    name: _entry(path, name, entry, start) for name, entry in header.items()
  }
  # Without gaps or overlaps, to the end of the file.
  place = start
  for entry in sorted(entries.values(), key=lambda e: (e.offset, e.nbytes)):
    if entry.offset != place or entry.nbytes < 0:
      raise damaged(
        path, f"{entry.name[:80]!r} is not where the one before ends"
      )
    place += entry.nbytes
  if place != size:
    raise damaged(path, f"its tensors end at {place} of {size} bytes")
  return entries, metadata


def write(
  path: str | Path,
  tensors: Mapping[str, np.ndarray],
  *,
  metadata: Mapping[str, str] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a .safetensors file, and reads it back before it gets its name.

  Args:
    path: Path with the suffix .safetensors.
    tensors: Arrays by name.
    metadata: Metadata for the header of the file.
    overwrite: Whether to replace an existing file.

  Raises:
    ExportError: If the path is invalid or exists, the format lacks a dtype, or
      the file does not hold what was written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write(f"{folder}/a.safetensors", {"w": np.zeros(3)})
  ...   Path(f"{folder}/a.safetensors").exists()
  True
  """
  check_suffix(path)
  with replacing(path, overwrite=overwrite) as part:
    write_verified(part, tensors, metadata)


def check_suffix(path: str | Path) -> None:
  """Raises unless a path ends in .safetensors.

  Args:
    path: Path, which need not exist.

  Raises:
    ExportError: If the suffix differs.

  >>> check_suffix("model.safetensors")
  """
  if Path(path).suffix != SUFFIX:
    raise ExportError(f"{path}: name a file that ends in {SUFFIX}")


def write_verified(
  path: Path,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors to a new file and compares it with them bit by bit.

  Raises:
    ExportError: If the file cannot be written or differs, see `write`.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  whole = {}
  for name, value in tensors.items():
    array = np.asarray(value)
    if array.dtype not in DTYPES.values():
      raise ExportError(
        f"{name}: safetensors files do not support dtype {array.dtype}; cast it"
        " to another"
      )
    # Not for arrays without axes, to which NumPy would add one.
    whole[name] = array if array.ndim == 0 else np.ascontiguousarray(array)
  try:
    save_file(whole, path, metadata=dict(metadata) if metadata else None)
  except (SafetensorError, ValueError, TypeError) as error:
    raise ExportError(
      f"{path}: cannot be written ({line(error)}); check the disk space, and"
      " that all names are text"
    ) from error
  entries, header = opened(path)
  if entries.keys() != whole.keys() or header != dict(metadata or {}):
    raise ExportError(f"{path}: the file's header is not what was written")
  for name, entry in entries.items():
    same = entry.dtype == whole[name].dtype and entry.shape == whole[name].shape
    if not (same and entry.read().tobytes() == whole[name].tobytes()):
      raise ExportError(
        f"{path}: {name} is not what was written; check the disk"
      )


def damaged(path: Path, why: str) -> ExportError:
  """The error for a damaged file."""
  return ExportError(
    f"{path}: not a whole safetensors file ({why}); fetch it again"
  )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Hook of `json.loads` that refuses an object with a duplicate name.

  Raises:
    ValueError: If a name occurs twice, where readers differ in their choice.

  >>> json.loads('{"a": 1, "b": 2}', object_pairs_hook=unique)
  {'a': 1, 'b': 2}
  """
  values: dict[str, Any] = {}
  for name, value in pairs:
    if name in values:
      raise ValueError(f"the name {name[:80]!r} is there twice")
    values[name] = value
  return values


def weight_map(index: Path) -> dict[str, str]:
  """Tensor -> file, from the index of a model in several files.

  Args:
    index: Path of the JSON file with a `weight_map`.

  Raises:
    ExportError: If the file is missing or not an index.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   index = Path(folder, "model.safetensors.index.json")
  ...   _ = index.write_text('{"weight_map": {"w": "part.safetensors"}}')
  ...   weight_map(index)
  {'w': 'part.safetensors'}
  """
  check_readable(index)
  if index.stat().st_size > _MOST_INDEX:
    raise ExportError(f"{index}: too long for an index of tensors")
  try:
    content = json.loads(index.read_bytes(), object_pairs_hook=unique)
    places = dict(content["weight_map"])
    if not all(isinstance(name, str) for name in places.values()):
      raise ValueError("a file name is not text")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ExportError(
      f"{index}: not an index of tensors with a weight_map to files"
      f" ({line(error)})"
    ) from error
  return places


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
  """The header, the offset of the first tensor, and the length of the file."""
  check_readable(path)
  if path.suffix in _OTHERS:
    raise ExportError(
      f"{path}: expected a safetensors file, got {_OTHERS[path.suffix]}; name a"
      f" file that ends in {SUFFIX}, or a directory of them"
    )
  try:
    size = path.stat().st_size
    with path.open("rb") as file:
      first = file.read(8)
      length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
      if not 2 <= length <= size - 8:
        raise damaged(path, f"{length} bytes of header in {size} of file")
      if length > _MOST_HEADER:
        raise damaged(path, f"a header of {length} bytes")
      text = file.read(length)
    header = json.loads(text.decode(), object_pairs_hook=unique)
  except OSError as error:
    raise unreadable(path, error) from error
  except (ValueError, RecursionError) as error:
    if isinstance(error, ExportError):
      raise
    raise damaged(path, line(error)) from error
  if not isinstance(header, dict):
    raise damaged(path, "its header is not an object")
  return header, 8 + length, size


def _is_text(metadata: Any) -> bool:
  """Whether it maps names to texts that UTF-8 can hold."""
  if not isinstance(metadata, dict):
    return False
  texts = (*metadata, *metadata.values())
  # Not a lone surrogate, which JSON can spell.
  return all(
    isinstance(text, str) and not re.search("[\ud800-\udfff]", text)
    for text in texts
  )


def check_readable(path: Path) -> None:
  """Raises unless a path is a regular file.

  Args:
    path: Path of the file.

  Raises:
    ExportError: If the file is missing, not a regular file, or not accessible.

  >>> check_readable(Path("nowhere"))
  Traceback (most recent call last):
  figs_jax.export.atomic_write.ExportError: nowhere: no such file
  """
  try:
    kind = path.stat().st_mode
  except FileNotFoundError as error:
    raise ExportError(f"{path}: no such file") from error
  except (OSError, ValueError) as error:
    raise unreadable(path, error) from error
  if not stat.S_ISREG(kind):
    raise ExportError(f"{path}: not a regular file")


def _entry(path: Path, name: str, entry: Any, start: int) -> Entry:
  """A tensor of the header, whose length is that of its dtype and shape."""
  if not (isinstance(entry, dict) and entry.keys() == _FIELDS):
    raise damaged(path, f"{name[:80]!r} has not just dtype, shape and offsets")
  kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  numbers = [shape, offsets]
  if not isinstance(kind, str) or not all(map(are_sizes, numbers)):
    raise damaged(path, f"{name[:80]!r} has an unexpected form")
  # Limits of NumPy arrays, even of empty ones.
  span = math.prod(max(length, 1) for length in shape)
  if not name.isprintable() or len(shape) > _MOST_RANK or span >= 2**59:
    raise damaged(path, f"a tensor {name[:80]!r} of shape {str(shape)[:80]}")
  if kind not in _BITS:
    raise damaged(path, f"{name[:80]!r} has the unknown dtype {kind[:20]!r}")
  if len(offsets) != 2 or (offsets[1] - offsets[0]) * 8 != (
    math.prod(shape) * _BITS[kind]
  ):
    raise damaged(path, f"{name[:80]!r} is not as long as its dtype and shape")
  begin, end = offsets
  return Entry(path, name, tuple(shape), kind, start + begin, end - begin)


def are_sizes(numbers: Any) -> bool:
  """Whether a JSON value is a list of non-negative integers.

  >>> are_sizes([2, 0]), are_sizes([True]), are_sizes("2")
  (True, False, False)
  """
  return isinstance(numbers, list) and all(
    type(number) is int and number >= 0 for number in numbers
  )
