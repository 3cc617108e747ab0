"""Safetensors files: checked before a tensor is read, written whole or not.

A file from a stranger is data. Every length, dtype, shape and place in it is
compared with the others and with the file's own length before memory is
allocated, and nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import math
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
_MOST_HEADER = 16 << 20
_MOST_INDEX = 64 << 20
_FIELDS = {"dtype", "shape", "data_offsets"}
# Of other programs' files, which would have a header by chance at best.
_OTHERS = {
  ".bin": "a pickle",
  ".pt": "a pickle",
  ".pth": "a pickle",
  ".ckpt": "a pickle",
  ".pkl": "a pickle",
  ".npz": "numpy's",
  ".json": "no weights",
}
_MOST_RANK = 32


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor of a file; nothing of it is in memory.

  Attributes:
    path: of the file.
    name, shape: of the tensor.
    kind: its dtype, in the file's words.
    offset, nbytes: its place in the file.
  """

  path: Path
  name: str
  shape: tuple[int, ...]
  kind: str
  offset: int
  nbytes: int

  @property
  def dtype(self) -> np.dtype:
    """The dtype.

    Raises:
      ExportError: numpy has none of that kind.
    """
    if self.kind not in DTYPES:
      raise ExportError(
        f"{self.path}: {self.name} has dtype {self.kind}; known are"
        f" {', '.join(DTYPES)}"
      )
    return DTYPES[self.kind]

  def read(self) -> Shaped[np.ndarray, "*shape"]:
    """The tensor.

    Raises:
      ExportError: the file became shorter.
    """
    return self._part(0, self.shape)

  def rows(self, begin: int, end: int) -> Shaped[np.ndarray, "*shape"]:
    """The part begin <= i < end of axis 0, without reading the rest.

    Raises:
      ExportError: the file became shorter.
    """
    each = math.prod(self.shape[1:]) * self.dtype.itemsize
    return self._part(begin * each, (end - begin, *self.shape[1:]))

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
    path: of the file.

  Returns:
    Entries, whose arrays are read when asked for, and the header's metadata.

  Raises:
    ExportError: no such file, or one that is no whole safetensors file: a line
      says in what it contradicts itself.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = f"{folder}/a.safetensors"
  ...   write(file, {"w": np.zeros((2, 4), np.float32)}, metadata={"by": "us"})
  ...   entries, metadata = opened(file)
  >>> entries["w"].shape, metadata
  ((2, 4), {'by': 'us'})
  """
  from safetensors import SafetensorError, safe_open

  path = Path(path)
  header, start = _header(path)
  try:
    # Every dtype, shape and offset, and that they cover the file exactly.
    with safe_open(path, framework="numpy") as file:
      metadata = dict(file.metadata() or {})
  except (SafetensorError, OSError, MemoryError) as error:
    raise damaged(path, line(error)) from error
  header.pop("__metadata__", None)
  found = {
    name: _entry(path, name, entry, start) for name, entry in header.items()
  }
  return found, metadata


def write(
  path: str | Path,
  tensors: Mapping[str, np.ndarray],
  *,
  metadata: Mapping[str, str] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a .safetensors file, reads it back, and only then names it so.

  Args:
    path: its suffix is .safetensors.
    tensors: by name.
    metadata: of the file's header.
    overwrite: replaces a file of that name.

  Raises:
    ExportError: a path that cannot be, a dtype that the format lacks, a file
      that exists, or one that does not hold what was written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write(f"{folder}/a.safetensors", {"w": np.zeros(3)})
  ...   Path(f"{folder}/a.safetensors").exists()
  True
  """
  check_suffix(path)
  with replacing(path, overwrite=overwrite) as part:
    save(part, tensors, metadata)


def check_suffix(path: str | Path) -> None:
  """Raises unless a path says that it is of a safetensors file.

  Args:
    path: need not exist.

  Raises:
    ExportError: it does not.

  >>> check_suffix("model.safetensors")
  """
  if Path(path).suffix != SUFFIX:
    raise ExportError(f"{path}: name a file that ends in {SUFFIX}")


def save(
  path: Path,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """The tensors in a new file, compared with it bit by bit.

  Raises:
    ExportError: as `write`.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  whole = {}
  for name, value in tensors.items():
    array = np.asarray(value)
    if array.dtype not in DTYPES.values():
      raise ExportError(
        f"{name}: dtype {array.dtype} has no place in a safetensors file; cast"
        " it to one that has"
      )
    # Not for arrays without axes, to which it would give one.
    whole[name] = array if array.ndim == 0 else np.ascontiguousarray(array)
  try:
    save_file(whole, path, metadata=dict(metadata) if metadata else None)
  except (SafetensorError, ValueError, TypeError) as error:
    raise ExportError(
      f"{path}: cannot be written ({line(error)}); is the disk full, or a name"
      " no text?"
    ) from error
  found, told = opened(path)
  if found.keys() != whole.keys() or told != dict(metadata or {}):
    raise ExportError(f"{path}: the file's header is not what was written")
  for name, entry in found.items():
    same = entry.dtype == whole[name].dtype and entry.shape == whole[name].shape
    if not (same and entry.read().tobytes() == whole[name].tobytes()):
      raise ExportError(f"{path}: {name} is not what was written; is the disk?")


def damaged(path: Path, why: str) -> ExportError:
  """The error of a file that lies."""
  return ExportError(
    f"{path}: no whole safetensors file ({why}); fetch it again"
  )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of JSON whose names differ, as `json.loads` takes it.

  Raises:
    ValueError: a name is there twice; readers differ in which one they take.

  >>> json.loads('{"a": 1, "a": 2}', object_pairs_hook=unique)
  Traceback (most recent call last):
  ValueError: the name 'a' is there twice
  """
  found: dict[str, Any] = {}
  for name, value in pairs:
    if name in found:
      raise ValueError(f"the name {name[:80]!r} is there twice")
    found[name] = value
  return found


def weight_map(index: Path) -> dict[str, str]:
  """Tensor -> file, as the index of a model in several files has it.

  Args:
    index: path of the JSON, whose `weight_map` it is.

  Raises:
    ExportError: no such file, or none that is an index.

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
    found = json.loads(index.read_bytes(), object_pairs_hook=unique)
    places = dict(found["weight_map"])
    if not all(isinstance(name, str) for name in places.values()):
      raise ValueError("its files are no names")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ExportError(
      f"{index}: no index of tensors, with a weight_map of them to files"
      f" ({line(error)})"
    ) from error
  return places


def _header(path: Path) -> tuple[dict[str, Any], int]:
  """The header's object, and where the tensors begin."""
  check_readable(path)
  if path.suffix in _OTHERS:
    raise ExportError(
      f"{path}: {_OTHERS[path.suffix]}, and no safetensors file; name one that"
      f" ends in {SUFFIX}, or a directory of them"
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
    raise damaged(path, "its header is no object")
  return header, 8 + length


def check_readable(path: Path) -> None:
  """Raises where there is no regular file to read.

  Args:
    path: of the file.

  Raises:
    ExportError: none is there, or something else is, or one may not look.

  >>> check_readable(Path("nowhere"))
  Traceback (most recent call last):
  figs_jax.export.atomic_write.ExportError: nowhere: there is no such file
  """
  try:
    kind = path.stat().st_mode
  except FileNotFoundError as error:
    raise ExportError(f"{path}: there is no such file") from error
  except (OSError, ValueError) as error:
    raise unreadable(path, error) from error
  if not stat.S_ISREG(kind):
    raise ExportError(f"{path}: this is no regular file; name one")


def _entry(path: Path, name: str, entry: Any, start: int) -> Entry:
  """What the header says of a tensor, its sums checked already.

  Its form is not: libraries take an array for an object.
  """
  if not (isinstance(entry, dict) and entry.keys() == _FIELDS):
    raise damaged(path, f"{name[:80]!r} has not just dtype, shape and offsets")
  kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  numbers = [shape, offsets]
  if not isinstance(kind, str) or not all(map(are_sizes, numbers)):
    raise damaged(path, f"{name[:80]!r} has another form than its library's")
  # No array has more axes or is longer, even one without entries.
  span = math.prod(max(length, 1) for length in shape)
  if not name.isprintable() or len(shape) > _MOST_RANK or span >= 2**59:
    raise damaged(path, f"a tensor {name[:80]!r} of shape {str(shape)[:80]}")
  begin, end = offsets
  return Entry(path, name, tuple(shape), kind, start + begin, end - begin)


def are_sizes(numbers: Any) -> bool:
  """Whether something from JSON is a list of whole numbers, none below 0.

  >>> are_sizes([2, 0]), are_sizes([True]), are_sizes("2")
  (True, False, False)
  """
  return isinstance(numbers, list) and all(
    type(number) is int and number >= 0 for number in numbers
  )
