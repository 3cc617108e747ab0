"""Writers of finished weights: dense, packed, or for 2:4 tensor cores.

Every writer refuses kernels that are not N:M, reads back the file, and gives it
its name only if all bits agree.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.diagnostics import check_nm, first_bad_group
from figs_jax.core.groups import normalized
from figs_jax.core.packing import Layout, pack, unpack
from figs_jax.core.pattern import NM
from figs_jax.core.rank_packing import pack_ranks, unpack_ranks
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.core.types import Shaped
from figs_jax.export import files, reader, semi_structured
from figs_jax.export.atomic_write import ExportError, line, replacing
from figs_jax.export.manifest import (
  AT_POINT,
  MOST_M,
  PARTS,
  Record,
  digest,
  written,
)

MODEL, CONFIG = "model.safetensors", "config.json"
DENSE = (MODEL, CONFIG)
DTYPES = ("float32", "bfloat16", "float16")
_OF_FOUR = NM(2, 4)


def cast(tree: Any, dtype: str) -> dict[str, Shaped[np.ndarray, "*shape"]]:
  """The leaves by path, with floats rounded to nearest in this dtype.

  Floats of 64 bits are rounded to 32 bits on the way to 16.

  Args:
    tree: Tree of arrays.
    dtype: One of `DTYPES`.

  Raises:
    ExportError: If the dtype is not in `DTYPES`, or a number exceeds its range.

  >>> cast({"a": np.float32([1.001]), "b": np.array([3])}, "bfloat16")
  {'a': array([1], dtype=bfloat16), 'b': array([3])}
  """
  if dtype not in DTYPES:
    raise ExportError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)}")
  kind, arrays = jnp.dtype(dtype), {}
  for path, array in _arrays(tree).items():
    if jnp.issubdtype(array.dtype, jnp.floating):
      with np.errstate(over="ignore"):
        rounded = array.astype(kind)
      if (np.isfinite(array) & ~np.isfinite(rounded)).any():
        raise ExportError(f"{path}: holds numbers beyond the range of {dtype}")
      array = rounded
    arrays[path] = array
  return arrays


def write_dense(
  directory: str | Path,
  tensors: Any,
  leaves: Mapping[str, MaskedKernel],
  config: Mapping[str, Any],
  *,
  overwrite: bool = False,
) -> None:
  """Writes a directory with `model.safetensors` and `config.json`.

  Args:
    directory: Path of the directory, which is created.
    tensors: Arrays by the names that readers expect, zeros included.
    leaves: Pattern and axis of the N:M tensors, by the same names.
    config: Content of the JSON file.
    overwrite: Whether to replace a directory that holds only these two files.

  Raises:
    ExportError: If a tensor is not N:M, or the path cannot be written.

  >>> import os, tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write_dense(
  ...     f"{folder}/run", {"w": np.eye(4, dtype=np.float32)},
  ...     {"w": MaskedKernel((4, 4), NM(1, 4), axis=-1)}, {"width": 4})
  ...   sorted(os.listdir(f"{folder}/run"))
  ['config.json', 'model.safetensors']
  """
  arrays = _checked(tensors, leaves)
  with replacing(directory, overwrite=overwrite, own=DENSE) as part:
    # Other readers expect this format name for [out, in] kernels.
    files.write_verified(part / MODEL, arrays, {"format": "pt"})
    try:
      text = json.dumps(dict(config), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
      raise ExportError(f"{directory}: config: {line(error)}") from error
    (part / CONFIG).write_text(text)
    if (part / CONFIG).read_text() != text:
      raise ExportError(f"{directory}: {CONFIG} is not what was written")


def write_packed(
  path: str | Path,
  tree: Any,
  leaves: Mapping[str, MaskedKernel],
  *,
  layout: Layout = "indices",
  overwrite: bool = False,
) -> None:
  """Writes masked kernels packed, and all other tensors whole.

  Signed zeros and NaN are kept: a -0.0 takes the place of an entry. `read` is
  the inverse.

  Args:
    path: Path of a .safetensors file.
    tree: Finished parameters.
    leaves: Path -> `MaskedKernel`, as from `nn.masked_leaves`.
    layout: "indices" or "bitmask", see `core.packing`.
    overwrite: Whether to replace an existing file.

  Raises:
    ExportError: If a kernel is not N:M, a group has more than n entries with
      its -0.0, m exceeds 1024, or the path cannot be written.

  >>> import tempfile
  >>> kernel = np.eye(4, dtype=np.float32)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = f"{folder}/a.safetensors"
  ...   write_packed(file, {"k": kernel}, {"k": MaskedKernel((4, 4), NM(1, 4))})
  ...   bool((reader.read(file)["k"] == kernel).all())
  True
  """
  arrays = _checked(tree, leaves)
  tensors, records = {}, {}
  for name, array in arrays.items():
    leaf = leaves.get(name)
    if leaf is None:
      tensors[name], records[name] = array, Record.of(name, array)
      continue
    nm = leaf.pattern
    if nm.m > MOST_M:
      raise ExportError(f"{name}: m={nm.m} is beyond {MOST_M}; keep it dense")
    try:
      packed = pack(array, nm, leaf.axis, layout=layout, name=name)
    except (TypeError, ValueError) as error:
      raise ExportError(str(error)) from error
    negative = np.signbit(array) & (array == 0)
    if negative.any() and np.any(
      np.signbit(unpack(packed)) != np.signbit(array)
    ):
      raise ExportError(
        f"{name}: expected at most {nm.n} entries other than 0.0 in each group"
        f" of {nm.m}, got more with those of -0.0; add 0.0 to the kernel, which"
        " makes them 0.0"
      )
    parts = (np.asarray(packed.values), np.asarray(packed.metadata))
    tensors |= {name + end: each for end, each in zip(PARTS[layout], parts)}
    records[name] = Record.of(name, array, layout, leaf)
  _write(path, arrays, tensors, records, overwrite)


def write_nested(
  path: str | Path,
  tree: Any,
  leaves: Mapping[str, MaskedKernel],
  points: Sequence[NM | str],
  *,
  at: Mapping[NM, Mapping[str, Any]] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes masked kernels in the order of their ranks, and others whole.

  The prefix of a kernel is the kernel cut to a sparser point, which `read` with
  `point` reads alone.

  Args:
    path: Path of a .safetensors file.
    tree: Finished parameters at the densest point.
    leaves: Path -> `MaskedKernel`; of each pattern only m is used.
    points: Patterns in ascending order of n, with the m of every kernel.
    at: Tensors by name at points before the last, in place of those of `tree`,
      as batch statistics of each point.
    overwrite: Whether to replace an existing file.

  Raises:
    ExportError: If no kernel is masked, a point does not fit, a kernel has more
      entries than the densest point or a -0.0 without a place, m exceeds 1024,
      or the path cannot be written.

  >>> import tempfile
  >>> kernel = np.float32([[1], [4], [-3], [0]])
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = f"{folder}/a.safetensors"
  ...   leaves = {"k": MaskedKernel((4, 1), NM(1, 4))}
  ...   write_nested(file, {"k": kernel}, leaves, ["1:4", "3:4"])
  ...   reader.read(file, point="1:4")["k"].ravel().tolist()
  [0.0, 4.0, 0.0, 0.0]
  """
  patterns = _points(leaves, points)
  last = patterns[-1]
  leaves = {
    name: dataclasses.replace(leaf, pattern=last)
    for name, leaf in leaves.items()
  }
  arrays = _checked(tree, leaves)
  tensors, records = {}, {}
  for name, array in arrays.items():
    leaf = leaves.get(name)
    if leaf is None:
      tensors[name], records[name] = array, Record.of(name, array)
      continue
    try:
      packed = pack_ranks(array, last, leaf.axis, name=name)
    except (TypeError, ValueError) as error:
      raise ExportError(str(error)) from error
    if unpack_ranks(packed).tobytes() != array.tobytes():
      raise ExportError(
        f"{name}: expected a place for each -0.0, got more entries than"
        f" {last}; add 0.0 to the kernel, which makes them 0.0"
      )
    parts = (np.asarray(packed.values), np.asarray(packed.metadata))
    tensors |= {name + end: each for end, each in zip(PARTS["ranks"], parts)}
    cuts = [(nm, unpack_ranks(packed.prefix(nm.n))) for nm in patterns]
    records[name] = dataclasses.replace(
      Record.of(name, array, "ranks", leaf),
      points=tuple((nm, digest(cut)) for nm, cut in cuts),
    )
  for nm, others in (at or {}).items():
    for name, array in _arrays(others).items():
      own = f"{name}{AT_POINT}{nm}"
      if nm not in patterns or name in leaves or name not in arrays:
        raise ExportError(
          f"at: expected tensors without masks at some of {points}, got {own}"
        )
      tensors[own], records[own] = array, Record.of(own, array)
  _write(path, arrays, tensors, records, overwrite)


def _points(
  leaves: Mapping[str, MaskedKernel], points: Sequence[NM | str]
) -> list[NM]:
  """The points, checked against the kernels."""
  if not leaves:
    raise ExportError("expected masked kernels to store by rank, got none")
  try:
    patterns = [NM.parse(point) for point in points]
  except ValueError as error:
    raise ExportError(f"points: {error}") from error
  text = ", ".join(map(str, patterns)) or "none"
  counts = [nm.n for nm in patterns]
  if not counts or counts != sorted(set(counts)):
    raise ExportError(f"points: expected n to ascend, got {text}")
  for name, leaf in leaves.items():
    if {nm.m for nm in patterns} != {leaf.pattern.m}:
      raise ExportError(
        f"points: expected the m of {name}, which is {leaf.pattern}, got {text}"
      )
    if not 2 <= leaf.pattern.m <= MOST_M:
      raise ExportError(
        f"{name}: expected m from 2 to {MOST_M}, got {leaf.pattern}"
      )
  return patterns


def write_semi_structured(
  path: str | Path,
  tensors: Any,
  leaves: Mapping[str, MaskedKernel],
  *,
  overwrite: bool = False,
) -> dict[str, str]:
  """Writes 2:4 weights in PyTorch's CUTLASS layout, and the others whole.

  Args:
    path: Path of a .safetensors file.
    tensors: Weights [out, in] by name. -0.0 is written as 0.0.
    leaves: Pattern and axis of the N:M weights, by the same names.
    overwrite: Whether to replace an existing file.

  Returns:
    Name -> reason, for the N:M weights that the layout cannot hold.

  Raises:
    ExportError: If a kernel is not N:M or not of 16 bits, no weight fits the
      layout, or the path cannot be written.

  >>> import tempfile
  >>> weight = np.tile(np.float16([1, 0, 2, 0]), (32, 16))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write_semi_structured(
  ...     f"{folder}/a.safetensors", {"w": weight},
  ...     {"w": MaskedKernel((32, 64), NM(2, 4), axis=-1)})
  {}
  """
  arrays = _checked(tensors, leaves)
  parts, records, left = {}, {}, {}
  for name, array in arrays.items():
    leaf = leaves.get(name)
    why = "" if leaf is None else _unfit(array, leaf)
    if leaf is None or why:
      parts[name], records[name] = array, Record.of(name, array)
      left |= {name: why} if why else {}
      continue
    packed = semi_structured.compress(array, name)
    parts |= dict(zip(_named(name), packed))
    arrays[name] = np.where(array == 0, np.zeros((), array.dtype), array)
    of_four = MaskedKernel(array.shape, _OF_FOUR, 1)
    records[name] = Record.of(name, arrays[name], "torch-2:4", of_four)
  if not leaves.keys() - left.keys():
    some = next(iter(left.items()), ("nothing", "no tensor of it is sparse"))
    raise ExportError(
      f"{path}: no weight fits PyTorch's 2:4 layout ({': '.join(some)}); write"
      " another format"
    )
  _write(path, arrays, parts, records, overwrite)
  return left


def _named(name: str) -> list[str]:
  return [name + end for end in PARTS["torch-2:4"]]


def _unfit(array: np.ndarray, leaf: MaskedKernel) -> str:
  """The reason why the layout cannot hold a weight, or an empty text."""
  shape = array.shape
  if len(shape) != 2 or normalized(shape, leaf.axis) != (1,):
    return "not a matrix with groups along the inputs"
  if not semi_structured.fits(shape):
    rows, columns = semi_structured.ROWS, semi_structured.COLUMNS
    return f"{list(shape)} is not a multiple of [{rows}, {columns}]"
  # 2:4 itself was checked already.
  is_other = (leaf.pattern.n, leaf.pattern.m) != (_OF_FOUR.n, _OF_FOUR.m)
  if is_other and first_bad_group(array, _OF_FOUR, 1) is not None:
    return f"{leaf.pattern} leaves more than 2 of 4 in a row"
  return ""


def _arrays(tree: Any) -> dict[str, np.ndarray]:
  arrays = {
    path: np.asarray(leaf)
    for path, leaf in flatten(tree).items()
    if leaf is not None
  }
  if len(arrays) < len(jax.tree.leaves(tree)):
    raise ExportError("two leaves of the tree have the same path; rename one")
  return arrays


def _checked(
  tree: Any, leaves: Mapping[str, MaskedKernel]
) -> dict[str, np.ndarray]:
  """The arrays by path, after a check that the listed ones are N:M."""
  arrays = _arrays(tree)
  try:
    check_nm(arrays, leaves)
  except ValueError as error:
    raise ExportError(str(error)) from error
  return arrays


def _write(
  path: str | Path,
  arrays: Mapping[str, np.ndarray],
  tensors: Mapping[str, np.ndarray],
  records: Mapping[str, Record],
  overwrite: bool,
) -> None:
  """Writes a file with a manifest, and checks that it holds these arrays."""
  if sum(len(PARTS[r.layout]) for r in records.values()) != len(tensors):
    raise ExportError(f"{path}: two tensors have the same name; rename one")
  files.check_suffix(path)
  with replacing(path, overwrite=overwrite) as part:
    files.write_verified(part, tensors, written(records))
    for weight in reader.weights(part):
      if weight.read().tobytes() != arrays[weight.name].tobytes():
        raise ExportError(f"{path}: {weight.name} is not what was written")
