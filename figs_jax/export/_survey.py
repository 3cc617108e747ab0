"""Which N:M patterns the tensors of any safetensors file have.

Nothing is assumed of the file but its format. For every floating tensor of two
axes or more, and every axis, the most entries that a group of m = 2, 4, 8, 16
or 32 holds are counted; the pattern told is the one of least n / m, and of the
smallest m where several are. Zeros of either sign are no entries, NaN is one.
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
_MOST_BYTES = 16 << 20
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a tensor is.

  Attributes:
    name, shape, kind: of the tensor; kind in the words of safetensors.
    stored: bytes in the file.
    sparsity: share of zeros; None of a tensor that was not looked at.
    patterns: axes -> tightest pattern; those without one are left out. Several
      axes are one flattened group axis, in that order: a convolution's product.
    told: what the file itself says, where it is packed.
    path: of the file.
  """

  name: str
  shape: tuple[int, ...]
  kind: str
  stored: int
  sparsity: float | None
  patterns: dict[Axes, NM]
  told: NM | None = None
  path: Path = Path()


def survey(path: str | Path) -> Iterator[Finding]:
  """Every tensor of a file, a few megabytes of it in memory at a time.

  Packed tensors are unpacked one by one, and compared with their hashes.

  Args:
    path: a .safetensors file, or a directory that holds such files.

  Raises:
    ExportError: a file that is damaged or contradicts itself, or a directory
      without one that its index names.

  >>> import tempfile
  >>> from figs_jax.export import write
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write(f"{folder}/a.safetensors", {"w": np.eye(4, dtype=np.float32)})
  ...   [found] = survey(folder)
  >>> {axes: str(nm) for axes, nm in found.patterns.items()}, found.sparsity
  ({(0,): '1:4', (1,): '1:4'}, 0.75)
  """
  path = Path(path)
  try:
    files = _files_of(path) if path.is_dir() else [path]
  except OSError as error:
    raise unreadable(path, error) from error
  for file in files:
    for weight in weights(file):
      yield dataclasses.replace(_finding(weight), path=file)


def _files_of(directory: Path) -> list[Path]:
  """The files of a directory, all that its index names among them."""
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
  told = weight.leaf.pattern if weight.leaf else None
  same = (weight.name, weight.shape, weight.kind, weight.stored)
  is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
  if len(weight.shape) < 2 or not size or not is_float:
    if weight.rows is None:
      weight.read()  # for its hash
    return Finding(*same, None, {}, told)
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
    found = [NM(max(n, 1), m) for m, n in most[each].items()]
    found = [nm for nm in found if not nm.is_dense]
    if found:
      patterns[each] = min(found, key=lambda nm: (nm.density, nm.m))
  return Finding(*same, 1 - entries / size, patterns, told)


def _parts(weight: Weight) -> Iterator[np.ndarray]:
  """The tensor in parts of axis 0 that no group straddles."""
  rows, length = weight.rows, weight.shape[0]
  each = math.prod(weight.shape[1:]) * DTYPES[weight.kind].itemsize
  step = max(_MOST_BYTES // (each * SIZES[-1]), 1) * SIZES[-1]
  if rows is None:
    yield weight.read()
    return
  for begin in range(0, length, step):
    yield rows(begin, min(begin + step, length))


def _used(part: np.ndarray) -> Bool[np.ndarray, "*shape"]:
  """Where a float is no zero, read from its bits: any format has a sign."""
  words = np.ascontiguousarray(part).view(_WORDS[part.dtype.itemsize])
  return (words << 1) != 0


def _counts(
  used: Bool[np.ndarray, "*shape"], axes: Axes, whole: int
) -> dict[int, int]:
  """m -> the most entries of a group, for every m that divides the axes.

  Args:
    used: a part of the tensor.
    axes: the group axes.
    whole: length of the tensor's own axis 0.
  """
  length = math.prod(used.shape[axis] for axis in axes)
  total = length if 0 not in axes else length // used.shape[0] * whole
  rest = [axis for axis in range(used.ndim) if axis not in axes]
  counts = used.transpose(*rest, *axes).astype(np.uint8).reshape(-1, length)
  found = {}
  for m in SIZES:
    if total % m:
      break
    counts = counts[:, 0::2] + counts[:, 1::2]
    found[m] = int(counts.max())
  return found
