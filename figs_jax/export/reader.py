"""Reader of the tensors of a file, packed or not."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from figs_jax.core.packing import Packed, unpack
from figs_jax.core.pattern import NM
from figs_jax.core.rank_packing import RankPacked, unpack_ranks
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Shaped
from figs_jax.export.atomic_write import ExportError
from figs_jax.export.files import Entry, opened
from figs_jax.export.manifest import (
  AT_POINT,
  KEY,
  PARTS,
  Record,
  digest,
  parsed,
)
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


def weights(
  path: str | Path, *, strict: bool = True, point: NM | str | None = None
) -> list[Weight]:
  """The unpacked tensors of a .safetensors file, sorted by name.

  Args:
    path: Path of a file from any of the writers.
    strict: Whether to refuse a file that has packed tensors or hashes, but not
      the mark of its manifest.
    point: Pattern, such as "1:8", at which to read tensors that are packed by
      rank; only that prefix of them is read. Defaults to the densest.

  Raises:
    ExportError: If the file is damaged, contradicts itself, lost its mark, or
      lacks the point.

  >>> import tempfile
  >>> from figs_jax.export import write
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write(f"{folder}/a.safetensors", {"w": np.zeros((2, 4), np.float32)})
  ...   [one] = weights(f"{folder}/a.safetensors")
  >>> one.name
  'w'
  """
  path, nm = Path(path), _parsed_point(point)
  entries, metadata = opened(path)
  if KEY not in metadata:
    if strict:
      _check_unmarked(path, entries, metadata)
    if nm is not None:
      raise _no_point(path, nm, ())
    return [
      Weight(name, e.shape, e.kind, e.nbytes, e.read, rows=e.rows)
      for name, e in sorted(entries.items())
    ]
  tensors = []
  records = parsed(path, metadata, entries)
  if nm is not None and not any(r.points for r in records.values()):
    raise _no_point(path, nm, ())
  for name, stored_name in _names(records, nm):
    record = records[stored_name]
    parts = [entries[stored_name + end] for end in PARTS[record.layout]]
    if nm is not None and record.points:
      record, parts = _at_point(path, record, parts, nm)
    leaf = None
    if record.pattern is not None:
      leaf = MaskedKernel(record.shape, record.pattern, record.axis)

    def read(name=name, record=record, parts=parts) -> np.ndarray:
      return _unpacked(path, name, record, parts)

    stored = sum(part.nbytes for part in parts)
    kind = parts[0].kind
    tensors.append(Weight(name, record.shape, kind, stored, read, leaf))
  return tensors


def _names(
  records: Mapping[str, Record], nm: NM | None
) -> list[tuple[str, str]]:
  """(name, name in the file) of the tensors at a point, sorted."""
  if not any(record.points for record in records.values()):
    return [(name, name) for name in sorted(records)]
  names = {n for n in records if n.rpartition(AT_POINT)[0] not in records}
  own = {name: f"{name}{AT_POINT}{nm}" for name in names}
  return [(n, own[n] if own[n] in records else n) for n in sorted(names)]


def _parsed_point(point: NM | str | None) -> NM | None:
  try:
    return None if point is None else NM.parse(point)
  except ValueError as error:
    raise ExportError(f"point: {error}") from error


def _no_point(path: Path, nm: NM, known: Iterable[NM]) -> ExportError:
  got = ", ".join(map(str, known)) or "no tensor that is packed by rank"
  return ExportError(f"{path}: expected the point {nm}, got {got}")


def _at_point(
  path: Path, record: Record, parts: list[Entry], nm: NM
) -> tuple[Record, list[Entry]]:
  """A tensor in layout `ranks` as if it ended at a point."""
  hashes = dict(record.points)
  if nm not in hashes:
    raise _no_point(path, nm, hashes)
  points = tuple(point for point in record.points if point[0].n <= nm.n)
  record = dataclasses.replace(
    record, pattern=nm, sha256=hashes[nm], points=points
  )
  return record, [part.head(nm.n) for part in parts]


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
  path: str | Path, *, strict: bool = True, point: NM | str | None = None
) -> dict[str, Shaped[np.ndarray, "*shape"]]:
  """The arrays of a .safetensors file by name, unpacked, bit for bit.

  Args:
    path: Path of a file from any of the writers.
    strict, point: Same as in `weights`.

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
  tensors = weights(path, strict=strict, point=point)
  return {weight.name: weight.read() for weight in tensors}


def _unpacked(
  path: Path, name: str, record: Record, parts: list[Entry]
) -> np.ndarray:
  size = math.prod(record.shape) * record.dtype.itemsize
  if size > machine_memory():
    raise ExportError(
      f"{path}: {name} unpacks to {size} bytes, more than this machine has"
    )
  values, *rest = (part.read() for part in parts)
  try:
    if record.pattern is None:
      array = values
    elif record.layout == "torch-2:4":
      array = decompress(values, rest[0], name)
    elif record.layout == "ranks":
      nm, axis = record.pattern, record.axis
      packed = RankPacked(values, rest[0], record.shape, nm, axis, name)
      array = unpack_ranks(packed)
      for at, sha256 in record.points[:-1]:
        if digest(unpack_ranks(packed.prefix(at.n))) != sha256:
          raise _wrong_hash(path, f"{name} at {at}")
    else:
      layout = "bitmask" if record.layout == "bitmask" else "indices"
      shape, nm, axis = record.shape, record.pattern, record.axis
      array = unpack(Packed(values, rest[0], shape, nm, axis, layout, name))
  except ExportError:
    raise
  except ValueError as error:
    raise ExportError(f"{path}: {error}") from error
  except MemoryError as error:
    raise ExportError(
      f"{path}: {name} unpacks to {size} bytes, more than is free"
    ) from error
  if digest(array) != record.sha256:
    raise _wrong_hash(path, name)
  return array


def _wrong_hash(path: Path, what: str) -> ExportError:
  return ExportError(
    f"{path}: the SHA-256 of {what} differs from the manifest; fetch it again"
  )


def machine_memory() -> int:
  """Bytes of memory of this machine, or the largest int if unknown.

  >>> machine_memory() > 2**20
  True
  """
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, OSError, ValueError):  # not on every system
    return sys.maxsize
