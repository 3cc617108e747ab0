"""The manifest of a packed file, which is checked against its tensors.

The manifest is JSON in the header of a .safetensors file, under `figs_jax`:
{"version": 1, "tensors": {NAME: {"layout", "dtype", "shape", "sha256"}}}, and
"pattern" and "axis" for a packed tensor. The hash is that of the bytes of the
unpacked tensor in C order. A tensor is stored as the parts of its layout:

* `dense`: NAME itself;
* `indices`, `bitmask`: NAME.values and NAME.metadata, see `core.packing`;
* `torch-2:4`: NAME.packed and NAME.meta, see `export.semi_structured`;
* `ranks`: NAME.values and NAME.metadata, see `core.rank_packing`. Its record
  has "points" as well: {"1:8": {"values", "metadata", "sha256"}}, the lengths
  in bytes of the prefixes of both parts, and the hash of the tensor that they
  unpack to. The last point is the pattern.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from figs_jax.core.groups import Groups, axis_length, normalized
from figs_jax.core.pattern import NM
from figs_jax.core.rank_packing import rank_bytes, ranked_shape
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Shaped
from figs_jax.export.atomic_write import ExportError, line
from figs_jax.export.files import DTYPES, Entry, are_sizes, unique

KEY = "figs_jax"
PARTS = {
  "dense": ("",),
  "indices": (".values", ".metadata"),
  "bitmask": (".values", ".metadata"),
  "torch-2:4": (".packed", ".meta"),
  "ranks": (".values", ".metadata"),
}
# NAME@1:8 takes the place of NAME where a nested file is read at 1:8.
AT_POINT = "@"
# A file unpacks to m / n times its length, which must fit into memory.
MOST_M = 1024
_WORDS = {dtype: word for word, dtype in DTYPES.items()}
_ALWAYS = {"layout", "dtype", "shape", "sha256"}


@dataclasses.dataclass(frozen=True)
class Record:
  """One tensor of a manifest.

  Attributes:
    layout: Key of `PARTS`.
    shape: Shape of the unpacked tensor.
    dtype: Dtype of the unpacked tensor.
    sha256: Hash of the bytes, as 64 hexadecimal digits.
    pattern: Pattern of a packed tensor.
    axis: Group axes of a packed tensor.
    points: Patterns of layout `ranks`, n ascending, and the hash at each.
  """

  layout: str
  shape: tuple[int, ...]
  dtype: np.dtype
  sha256: str
  pattern: NM | None = None
  axis: tuple[int, ...] = ()
  points: tuple[tuple[NM, str], ...] = ()

  @classmethod
  def of(
    cls,
    name: str,
    array: np.ndarray,
    layout: str = "dense",
    leaf: MaskedKernel | None = None,
  ) -> Record:
    """The record of an array stored in this layout."""
    if array.dtype not in _WORDS:
      raise ExportError(
        f"{name}: safetensors files do not support dtype {array.dtype}; cast it"
        " to another"
      )
    pattern, axis = None, ()
    if leaf is not None:
      # Of V:N:M, the pattern of each output.
      pattern = NM(leaf.pattern.n, leaf.pattern.m)
      axis = normalized(array.shape, leaf.axis)
    return cls(
      layout, array.shape, array.dtype, digest(array), pattern, tuple(axis)
    )


def digest(array: Shaped[np.ndarray, "*shape"]) -> str:
  """SHA-256 of the array's bytes in C order.

  >>> digest(np.zeros(0, np.float32))[:8]
  'e3b0c442'
  """
  whole = np.ascontiguousarray(array).reshape(-1)
  return hashlib.sha256(whole.view(np.uint8).data).hexdigest()


def written(records: Mapping[str, Record]) -> dict[str, str]:
  """The metadata of a file with these tensors."""
  tensors: dict[str, dict[str, Any]] = {}
  for name, record in records.items():
    tensors[name] = {
      "layout": record.layout,
      "dtype": _WORDS[record.dtype],
      "shape": list(record.shape),
      "sha256": record.sha256,
    }
    if record.pattern is not None:
      tensors[name] |= {
        "pattern": str(record.pattern),
        "axis": list(record.axis),
      }
    if record.points:
      tensors[name]["points"] = {
        str(nm): {**_prefix(record, nm), "sha256": sha256}
        for nm, sha256 in record.points
      }
  return {KEY: json.dumps({"version": 1, "tensors": tensors})}


def _prefix(record: Record, nm: NM) -> dict[str, int]:
  """Bytes of the parts of a tensor in layout `ranks` up to a pattern."""
  groups = math.prod(record.shape) // nm.m
  return {
    "values": groups * nm.n * record.dtype.itemsize,
    "metadata": rank_bytes(groups, nm) * nm.n,
  }


def parsed(
  path: Path, metadata: Mapping[str, str], entries: Mapping[str, Entry]
) -> dict[str, Record]:
  """The manifest of a file, checked against its tensors.

  Raises:
    ExportError: If the manifest is invalid or contradicts the tensors.
  """
  try:
    whole = json.loads(metadata[KEY], object_pairs_hook=unique)
    if not isinstance(whole, dict) or repr(whole.get("version")) != "1":
      raise ValueError("its version is not 1")
    if whole.keys() != {"version", "tensors"}:
      raise ValueError(f"it holds {sorted(whole)}")
    if not isinstance(whole["tensors"], dict):
      raise ValueError("its tensors are not an object")
    records = {
      name: _record(name, fields) for name, fields in whole["tensors"].items()
    }
    _check_parts(records, entries)
  except (ValueError, RecursionError) as error:
    raise ExportError(
      f"{path}: its manifest cannot be true ({line(error)}); fetch it again"
    ) from error
  return records


def _record(name: str, fields: Any) -> Record:
  """A record from JSON.

  Raises:
    ValueError: If a field is missing, unknown or invalid.
  """
  # A list of keys, since `in` a dictionary raises for unhashable values.
  if not isinstance(fields, dict) or fields.get("layout") not in [*PARTS]:
    raise ValueError(f"{name!r} has an unknown layout")
  layout = fields["layout"]
  is_packed = layout != "dense"
  own = {"pattern", "axis"} if is_packed else set()
  if layout == "ranks":
    own |= {"points"}
  if fields.keys() != _ALWAYS | own:
    raise ValueError(f"{name!r} has the fields {sorted(fields)}")
  shape, kind, sha256 = fields["shape"], fields["dtype"], fields["sha256"]
  if not isinstance(kind, str) or kind not in DTYPES:
    raise ValueError(f"{name!r} has an unknown dtype")
  if not (_are_places(shape) and len(shape) <= 32):
    raise ValueError(f"{name!r} has the shape {str(shape)[:80]!r}")
  if not _is_sha256(sha256):
    raise ValueError(f"{name!r} has no SHA-256")
  record = Record(layout, tuple(shape), DTYPES[kind], sha256)
  if not is_packed:
    return record
  if not (_are_places(fields["axis"]) and isinstance(fields["pattern"], str)):
    raise ValueError(f"{name!r} has no pattern along axes")
  axis, pattern = tuple(fields["axis"]), NM.parse(fields["pattern"][:32])
  if str(pattern) != fields["pattern"]:
    raise ValueError(f"{name!r} has the pattern {fields['pattern'][:32]!r}")
  if pattern.m > MOST_M:
    raise ValueError(f"{name!r} has m={pattern.m}, beyond {MOST_M}")
  Groups.of(record.shape, pattern.m, axis)
  record = dataclasses.replace(record, pattern=pattern, axis=axis)
  if layout != "ranks":
    return record
  return dataclasses.replace(
    record, points=_points(name, record, fields["points"])
  )


def _points(name: str, record: Record, fields: Any) -> tuple[Any, ...]:
  """The points of layout `ranks`, checked.

  Raises:
    ValueError: If they are invalid or contradict the pattern and the shape.
  """
  nm = record.pattern
  if nm is None or nm.m < 2 or not isinstance(fields, dict) or not fields:
    raise ValueError(f"{name!r} has no points")
  points = []
  for text, point in fields.items():
    at = NM.parse(text[:32])
    if str(at) != text or at.m != nm.m:
      raise ValueError(f"{name!r} has the point {text[:32]!r}")
    if not isinstance(point, dict) or not _is_sha256(point.get("sha256")):
      raise ValueError(f"{name!r} has no SHA-256 at {text}")
    whole = {**_prefix(record, at), "sha256": point["sha256"]}
    kinds = {key: type(value) for key, value in point.items()}
    if point != whole or kinds != {key: type(whole[key]) for key in whole}:
      raise ValueError(f"{name!r} has other offsets at {text}")
    points.append((at, point["sha256"]))
  counts = [at.n for at, _ in points]
  if counts != sorted(set(counts)) or points[-1] != (nm, record.sha256):
    raise ValueError(f"{name!r} has points that do not end at {nm}")
  return tuple(points)


def _is_sha256(text: Any) -> bool:
  return isinstance(text, str) and bool(re.fullmatch("[0-9a-f]{64}", text))


def _are_places(numbers: Any) -> bool:
  return are_sizes(numbers) and max(numbers, default=0) < 2**59


def _check_parts(
  records: Mapping[str, Record], entries: Mapping[str, Entry]
) -> None:
  """Raises unless the file has exactly the parts of every record."""
  wanted: dict[str, str] = {}
  for name, record in records.items():
    for end in PARTS[record.layout]:
      if name + end in wanted:
        raise ValueError(f"{name + end!r} belongs to two tensors")
      wanted[name + end] = name
  for part in sorted(wanted.keys() ^ entries.keys()):
    side = "is missing" if part in wanted else "is not in it"
    raise ValueError(f"{part!r} {side}")
  for name, record in records.items():
    for end in PARTS[record.layout][1:]:
      rank = 1 if record.layout in ("indices", "bitmask") else 2
      if len(entries[name + end].shape) != rank:
        raise ValueError(f"{name + end!r} does not have {rank} axes")
    values = entries[name + PARTS[record.layout][0]]
    if values.kind != _WORDS[record.dtype]:
      raise ValueError(f"{name!r} is stored as {values.kind}")
    if values.shape != _stored_shape(name, record):
      raise ValueError(f"{name!r} is stored in the shape {values.shape}")
    for end in PARTS[record.layout][1:]:
      kind = "I16" if record.layout == "torch-2:4" else "U8"
      if entries[name + end].kind != kind:
        raise ValueError(f"{name + end!r} is not {kind}")


def _stored_shape(name: str, record: Record) -> tuple[int, ...]:
  """The shape of the first part: the kept values, or all values."""
  shape, nm = record.shape, record.pattern
  if nm is None:
    return shape
  if record.layout == "torch-2:4":
    if len(shape) != 2 or nm != NM(2, 4) or record.axis != (1,):
      raise ValueError(f"{name!r} is not a 2:4 matrix along axis 1")
    return shape[0], shape[1] // 2
  if record.layout == "ranks":
    return ranked_shape(shape, nm, record.axis)
  rest = (n for axis, n in enumerate(shape) if axis not in record.axis)
  return (*rest, axis_length(shape, record.axis) // nm.m, nm.n)
