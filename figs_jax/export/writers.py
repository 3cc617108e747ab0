"""Trees of finished weights to files: dense, packed, for 2:4 tensor cores.

Every writer refuses kernels that are not N:M, reads back what it wrote, and
names the file only if all bits are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.diagnostics import check_nm, first_bad_group
from figs_jax.core.groups import normalized
from figs_jax.core.packing import Layout, pack
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.core.types import Shaped
from figs_jax.export import files, reader, semi_structured
from figs_jax.export.atomic_write import ExportError, line, replacing
from figs_jax.export.manifest import MOST_M, PARTS, Record, written

MODEL, CONFIG = "model.safetensors", "config.json"
DENSE = (MODEL, CONFIG)
DTYPES = ("float32", "bfloat16", "float16")
_OF_FOUR = NM(2, 4)


def cast(tree: Any, dtype: str) -> dict[str, Shaped[np.ndarray, "*shape"]]:
  """The tree by path, its floating leaves rounded to nearest in this dtype.

  Those of 64 bits are rounded to 32 on the way to 16.

  Args:
    tree: of arrays.
    dtype: one of `DTYPES`.

  Raises:
    ExportError: another dtype than `DTYPES`, or a number beyond its range.

  >>> cast({"a": np.float32([1.001]), "b": np.array([3])}, "bfloat16")
  {'a': array([1], dtype=bfloat16), 'b': array([3])}
  """
  if dtype not in DTYPES:
    raise ExportError(f"dtype {dtype!r}: give one of {', '.join(DTYPES)}")
  kind, found = jnp.dtype(dtype), {}
  for path, array in _arrays(tree).items():
    if jnp.issubdtype(array.dtype, jnp.floating):
      with np.errstate(over="ignore"):
        rounded = array.astype(kind)
      if (np.isfinite(array) & ~np.isfinite(rounded)).any():
        raise ExportError(f"{path}: holds numbers beyond the range of {dtype}")
      array = rounded
    found[path] = array
  return found


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
    directory: is made; one that holds nothing else can be overwritten.
    tensors: by the names that its readers ask for, zeros included.
    leaves: pattern and axis of those that are N:M, by the same names.
    config: JSON.
    overwrite: replaces a directory with these two files.

  Raises:
    ExportError: a tensor that is not N:M, or a place that cannot be written.

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
    # The format's name for [out, in] kernels, which other readers ask for.
    files.save(part / MODEL, arrays, {"format": "pt"})
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
  """Writes kept values and their places, and all other tensors whole.

  Signed zeros and NaN are kept. `read` is the inverse.

  Args:
    path: a .safetensors file.
    tree: finished parameters.
    leaves: Path -> `MaskedKernel`, as from `nn.masked_leaves`.
    layout: "indices" or "bitmask", see `core.packing`.
    overwrite: replaces a file of that name.

  Raises:
    ExportError: a kernel that is not N:M (-0.0 counts as an entry here), a
      pattern with m beyond 1024, or a place that cannot be written.

  >>> import tempfile
  >>> kernel = np.eye(4, dtype=np.float32)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = f"{folder}/a.safetensors"
  ...   write_packed(file, {"k": kernel}, {"k": MaskedKernel((4, 4), NM(1, 4))})
  ...   bool((contents.read(file)["k"] == kernel).all())
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
    parts = (np.asarray(packed.values), np.asarray(packed.metadata))
    tensors |= {name + end: each for end, each in zip(PARTS[layout], parts)}
    records[name] = Record.of(name, array, layout, leaf)
  _write(path, arrays, tensors, records, overwrite)


def write_semi_structured(
  path: str | Path,
  tensors: Any,
  leaves: Mapping[str, MaskedKernel],
  *,
  overwrite: bool = False,
) -> dict[str, str]:
  """Writes the 2:4 weights in PyTorch's CUTLASS layout, the others whole.

  Args:
    path: a .safetensors file.
    tensors: by name, weights [out, in]. -0.0 is written as 0.0.
    leaves: pattern and axis of those that are N:M, by the same names.
    overwrite: replaces a file of that name.

  Returns:
    Name -> why it is whole, of the N:M weights that the layout cannot hold.

  Raises:
    ExportError: a kernel that is not 2:4, or not of 16 bits, none that fits, or
      a place that cannot be written.

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
  """Why the layout cannot hold a weight; empty where it can."""
  shape = array.shape
  if len(shape) != 2 or normalized(shape, leaf.axis) != (1,):
    return "no matrix with its groups along the inputs"
  if not semi_structured.fits(shape):
    rows, columns = semi_structured.ROWS, semi_structured.COLUMNS
    return f"{list(shape)} is not a multiple of [{rows}, {columns}]"
  # Of 2:4 itself that was looked at already.
  is_other = leaf.pattern != _OF_FOUR
  if is_other and first_bad_group(array, _OF_FOUR, 1) is not None:
    return f"{leaf.pattern} leaves more than 2 of 4 in a row"
  return ""


def _arrays(tree: Any) -> dict[str, np.ndarray]:
  found = {
    path: np.asarray(leaf)
    for path, leaf in flatten(tree).items()
    if leaf is not None
  }
  if len(found) < len(jax.tree.leaves(tree)):
    raise ExportError("two leaves of the tree have one path; rename one")
  return found


def _checked(
  tree: Any, leaves: Mapping[str, MaskedKernel]
) -> dict[str, np.ndarray]:
  """The arrays by path, if those listed are N:M."""
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
  """A file with a manifest, if it stands for exactly these arrays."""
  if sum(len(PARTS[r.layout]) for r in records.values()) != len(tensors):
    raise ExportError(f"{path}: two tensors would have one name; rename one")
  files.check_suffix(path)
  with replacing(path, overwrite=overwrite) as part:
    files.save(part, tensors, written(records))
    for weight in reader.weights(part):
      if weight.read().tobytes() != arrays[weight.name].tobytes():
        raise ExportError(f"{path}: {weight.name} is not what was written")
