"""Survey of the N:M patterns in the tensors of any safetensors file.

For every floating or int8 tensor of two axes or more, and every axis, the
largest count of entries in a group of m = 2, 4, 8, 16 or 32 is computed. The
reported pattern has the smallest n / m, and of several the smallest m. Zeros of
either sign do not count as entries, NaN does.

Tensors of dtypes that NumPy lacks are not examined. A note says so, and names
the parts of compressed-tensors' bitmask layouts: NAME.compressed, the kept
values, NAME.bitmask, a bit per weight, and NAME.shape; without
NAME.row_offsets, two of every four weights along the last axis are kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from figs_jax.core.groups import normalized
from figs_jax.core.pattern import NM
from figs_jax.core.types import Bool
from figs_jax.export.atomic_write import ExportError, unreadable
from figs_jax.export.files import DTYPES, SUFFIX, weight_map
from figs_jax.export.reader import Weight, weights

SIZES = (2, 4, 8, 16, 32)
_INT8 = "a zero is a pruned weight if the quantization is symmetric"
_NOT_EXAMINED = {
  "F8_E8M0": "powers of two, the scales of a block format; not examined",
  "F4": "4-bit floats, two per byte; not examined",
}
_MOST_BYTES = 16 << 20
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
  """Survey of one tensor.

  Attributes:
    name: Name of the tensor.
    shape: Shape of the tensor.
    kind: Dtype as named by safetensors.
    stored: Number of bytes in the file.
    sparsity: Share of zeros, or None for a tensor that was not examined.
    patterns: Axes -> tightest pattern; axes without one are left out. Several
      axes are one group axis, flattened in that order (a convolution).
    declared: Pattern declared by the file, for a packed tensor.
    note: What a reader of the numbers should know, or "".
    path: Path of the file.
  """

  name: str
  shape: tuple[int, ...]
  kind: str
  stored: int
  sparsity: float | None
  patterns: dict[Axes, NM]
  declared: NM | None = None
  note: str = ""
  path: Path = Path()


def survey(path: str | Path) -> Iterator[Finding]:
  """Surveys every tensor of a file, with a few megabytes in memory at a time.

  Packed tensors are unpacked one by one and compared with their hashes.

  Args:
    path: A .safetensors file, or a directory of such files.

  Raises:
    ExportError: If a file is missing, damaged or contradicts itself, or a
      directory lacks a file that its index names.

  >>> import tempfile
  >>> from figs_jax.export import write
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write(f"{folder}/a.safetensors", {"w": np.eye(4, dtype=np.float32)})
  ...   [w] = survey(folder)
  >>> {axes: str(nm) for axes, nm in w.patterns.items()}, w.sparsity
  ({(0,): '1:4', (1,): '1:4'}, 0.75)
  """
  path = Path(path)
  try:
    files = _files_of(path) if path.is_dir() else [path]
  except OSError as error:
    raise unreadable(path, error) from error
  for file in files:
    try:
      tensors = weights(file)
    except ExportError as error:
      missing = isinstance(error.__cause__, FileNotFoundError)
      if file.suffix == SUFFIX or not (missing or file.is_file()):
        raise
      got = "no such file" if missing else "another file"
      raise ExportError(
        f"{file}: expected a {SUFFIX} file or a directory of them, got {got}"
      ) from error
    parts = _bitmask_parts({weight.name for weight in tensors})
    for weight in tensors:
      notes = parts.get(weight.name, ""), _note(weight)
      note = "; ".join(filter(None, notes))
      yield dataclasses.replace(_finding(weight), note=note, path=file)


def _bitmask_parts(names: set[str]) -> dict[str, str]:
  """Tensor -> its part in a bitmask layout of compressed-tensors."""
  notes = {}
  for name in names:
    stem = name.removesuffix(".bitmask")
    if stem == name or f"{stem}.compressed" not in names:
      continue
    unstructured = f"{stem}.row_offsets" in names
    layout = "sparse-bitmask" if unstructured else "sparse-24-bitmask (2:4)"
    for part in ("bitmask", "compressed", "shape", "row_offsets"):
      text = f"{part} of {stem} in compressed-tensors' {layout}"
      notes[f"{stem}.{part}"] = text
  return notes


def _note(weight: Weight) -> str:
  if weight.kind == "I8":
    return _INT8 if len(weight.shape) > 1 else ""
  if weight.kind in DTYPES:
    return ""
  return _NOT_EXAMINED.get(weight.kind, "not examined")


def _files_of(directory: Path) -> list[Path]:
  """The files of a directory, which must include all that its index names."""
  names = {each.name for each in directory.iterdir()}
  files = {name for name in names if name.endswith(SUFFIX)}
  for index in sorted(n for n in names if n.endswith(f"{SUFFIX}.index.json")):
    for part in sorted(set(weight_map(directory / index).values())):
      if part not in files:
        raise ExportError(
          f"{directory}: {index} names {part!r}, which is not there; fetch it"
        )
  if not files:
    raise ExportError(f"{directory}: this directory holds no {SUFFIX} file")
  return [directory / name for name in sorted(files)]


def _finding(weight: Weight) -> Finding:
  size = math.prod(weight.shape)
  dtype = DTYPES.get(weight.kind)
  declared = weight.leaf.pattern if weight.leaf else None
  same = (weight.name, weight.shape, weight.kind, weight.stored)
  is_weight = dtype is not None and (
    dtype == np.int8 or jnp.issubdtype(dtype, jnp.floating)
  )
  if len(weight.shape) < 2 or not size or not is_weight:
    if weight.rows is None:
      weight.read()  # for its hash
    return Finding(*same, None, {}, declared)
  axes: list[Axes] = [(axis,) for axis in range(len(weight.shape))]
  if len(weight.shape) == 4:
    axes.append((2, 3, 1))  # [out, in, height, width]
  if weight.leaf is not None:
    axis = normalized(weight.shape, weight.leaf.axis)
    axes += [] if axis in axes else [axis]
  entries, most = 0, {each: dict[int, int]() for each in axes}
  for part in _parts(weight):
    used = _used(part)
    entries += int(np.count_nonzero(used))
    for each in axes:
      for m, n in _counts(used, each, weight.shape[0]).items():
        most[each][m] = max(n, most[each].get(m, 0))
  patterns = {}
  for each in axes:
    fitting = [NM(max(n, 1), m) for m, n in most[each].items()]
    fitting = [nm for nm in fitting if not nm.is_dense]
    if fitting:
      patterns[each] = min(fitting, key=lambda nm: (nm.density, nm.m))
  return Finding(*same, 1 - entries / size, patterns, declared)


def _parts(weight: Weight) -> Iterator[np.ndarray]:
  """The tensor in parts of axis 0, with all groups whole."""
  rows, length = weight.rows, weight.shape[0]
  each = math.prod(weight.shape[1:]) * DTYPES[weight.kind].itemsize
  step = max(_MOST_BYTES // (each * SIZES[-1]), 1) * SIZES[-1]
  if rows is None:
    yield weight.read()
    return
  for begin in range(0, length, step):
    yield rows(begin, min(begin + step, length))


def _used(part: np.ndarray) -> Bool[np.ndarray, "*shape"]:
  """True at non-zero numbers, of floats read from the bits for any format."""
  if part.dtype == np.int8:
    return part != 0
  words = np.ascontiguousarray(part).view(_WORDS[part.dtype.itemsize])
  return (words << 1) != 0


def _counts(
  used: Bool[np.ndarray, "*shape"], axes: Axes, whole: int
) -> dict[int, int]:
  """m -> the largest count of a group, for every m that divides the axes.

  Args:
    used: Non-zeros of a part of the tensor.
    axes: Group axes.
    whole: Length of axis 0 of the whole tensor.
  """
  length = math.prod(used.shape[axis] for axis in axes)
  total = length if 0 not in axes else length // used.shape[0] * whole
  rest = [axis for axis in range(used.ndim) if axis not in axes]
  counts = used.transpose(*rest, *axes).astype(np.uint8).reshape(-1, length)
  most = {}
  for m in SIZES:
    if total % m:
      break
    counts = counts[:, 0::2] + counts[:, 1::2]
    most[m] = int(counts.max())
  return most
