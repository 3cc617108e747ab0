"""Reader of the tensors of a file, packed or not."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from figs_jax.core.packing import Packed, unpack
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Shaped
from figs_jax.export.atomic_write import ExportError
from figs_jax.export.files import Entry, opened
from figs_jax.export.manifest import KEY, PARTS, Record, digest, parsed
from figs_jax.export.semi_structured import decompress


@dataclasses.dataclass(frozen=True)
class Weight:
  """An unpacked tensor of a file, not yet in memory.

  Attributes:
    name: Name of the tensor.
    shape: Shape of the tensor.
    kind: Dtype as named by safetensors.
    stored: Number of bytes in the file.
    read: Function that returns the array, after a check of its hash if the file
      has one.
    leaf: Pattern and axis of a packed tensor, as declared by the file.
    rows: Function of (begin, end) that returns a part of axis 0, for a file
      without hashes.
  """

  name: str
  shape: tuple[int, ...]
  kind: str
  stored: int
  read: Callable[[], np.ndarray]
  leaf: MaskedKernel | None = None
  rows: Callable[[int, int], np.ndarray] | None = None


def weights(path: str | Path, *, strict: bool = True) -> list[Weight]:
  """The unpacked tensors of a .safetensors file, sorted by name.

  Args:
    path: Path of a file from any of the writers.
    strict: Whether to refuse a file that has packed tensors or hashes, but not
      the mark of its manifest.

  Raises:
    ExportError: If the file is damaged, contradicts itself or lost its mark.

  >>> import tempfile
  >>> from figs_jax.export import write
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write(f"{folder}/a.safetensors", {"w": np.zeros((2, 4), np.float32)})
  ...   [one] = weights(f"{folder}/a.safetensors")
  >>> one.name
  'w'
  """
  path = Path(path)
  entries, metadata = opened(path)
  if KEY not in metadata:
    if strict:
      _check_unmarked(path, entries, metadata)
    return [
      Weight(name, e.shape, e.kind, e.nbytes, e.read, rows=e.rows)
      for name, e in sorted(entries.items())
    ]
  tensors = []
  for name, record in sorted(parsed(path, metadata, entries).items()):
    parts = [entries[name + end] for end in PARTS[record.layout]]
    leaf = None
    if record.pattern is not None:
      leaf = MaskedKernel(record.shape, record.pattern, record.axis)

    def read(name=name, record=record, parts=parts) -> np.ndarray:
      return _unpacked(path, name, record, parts)

    stored = sum(part.nbytes for part in parts)
    kind = parts[0].kind
    tensors.append(Weight(name, record.shape, kind, stored, read, leaf))
  return tensors


def _check_unmarked(
  path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> None:
  """Raises if a file without a manifest seems to have lost it."""
  names = [name for name, text in metadata.items() if '"sha256"' in text]
  pairs = {ends for ends in PARTS.values() if len(ends) == 2}
  for first, second in sorted(pairs):
    stems = (n.removesuffix(first) for n in entries if n.endswith(first))
    names += [stem + first for stem in stems if stem + second in entries]
  if names:
    raise ExportError(
      f"{path}: expected a manifest {KEY!r} for {names[0]!r}, got none, so its"
      " hashes cannot be checked; fetch it again, or read it with strict=False"
    )


def read(
  path: str | Path, *, strict: bool = True
) -> dict[str, Shaped[np.ndarray, "*shape"]]:
  """The arrays of a .safetensors file by name, unpacked, bit for bit.

  Args:
    path: Path of a file from any of the writers.
    strict: Same as in `weights`.

  Raises:
    ExportError: If the file is damaged, contradicts itself, lost its mark, or
      differs from its hashes.

  >>> import tempfile
  >>> from figs_jax.core.pattern import NM
  >>> from figs_jax.export import write_packed
  >>> kernel = np.eye(4, dtype=np.float32)
  >>> leaves = {"kernel": MaskedKernel((4, 4), NM(1, 4))}
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = f"{folder}/a.safetensors"
  ...   write_packed(file, {"kernel": kernel}, leaves)
  ...   bool((read(file)["kernel"] == kernel).all())
  True
  """
  return {weight.name: weight.read() for weight in weights(path, strict=strict)}


def _unpacked(
  path: Path, name: str, record: Record, parts: list[Entry]
) -> np.ndarray:
  size = math.prod(record.shape) * record.dtype.itemsize
  if size > _memory():
    raise ExportError(
      f"{path}: {name} unpacks to {size} bytes, more than this machine has"
    )
  values, *rest = (part.read() for part in parts)
  try:
    if record.pattern is None:
      array = values
    elif record.layout == "torch-2:4":
      array = decompress(values, rest[0], name)
    else:
      layout = "bitmask" if record.layout == "bitmask" else "indices"
      shape, nm, axis = record.shape, record.pattern, record.axis
      array = unpack(Packed(values, rest[0], shape, nm, axis, layout, name))
  except ValueError as error:
    raise ExportError(f"{path}: {error}") from error
  except MemoryError as error:
    raise ExportError(
      f"{path}: {name} unpacks to {size} bytes, more than is free"
    ) from error
  if digest(array) != record.sha256:
    raise ExportError(
      f"{path}: the SHA-256 of {name} differs from the manifest; fetch it again"
    )
  return array


def _memory() -> int:
  """Bytes of memory of this machine, if known."""
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, OSError, ValueError):  # not on every system
    return sys.maxsize
