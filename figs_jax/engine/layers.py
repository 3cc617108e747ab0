"""Layers as columns: one row per GEMM, ready for jit, vmap and broadcasting."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine.blocks import block_counts
from figs_jax.engine.description import nearest
from figs_jax.engine.int64 import array_dataclass, is_traced

# Sizes stay exact in float64, patterns and counts in int32.
LIMITS = {
  **dict.fromkeys(("M", "N", "K"), (1, 2**53)),
  **dict.fromkeys(("n", "m", "count"), (1, 2**31 - 1)),
}
_COLUMNS = ("name", "M", "N", "K", "pattern", "count", "mask")


@array_dataclass("names")
@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
  """A table of GEMMs, (M x K) times (K x N): columns of int64, one per layer.

  Attributes:
    names: the layers' names.
    M: rows of the activations (tokens, summed over the batch).
    N: columns of the weight (outputs).
    K: the contraction, along which N:M groups lie.
    n: weights kept of every m; n = m is dense.
    m: group length.
    count: how many such GEMMs the model runs.
    masks: the layers' real masks, Bool (K, N) or None each; None without any.

  >>> row = {"name": "ff", "M": 196, "N": 3072, "K": 768, "pattern": "1:8"}
  >>> Layers.of([row]).m.tolist()
  [8]
  """

  names: tuple[str, ...]
  M: Any
  N: Any
  K: Any
  n: Any
  m: Any
  count: Any
  masks: tuple[np.ndarray | None, ...] | None = None

  def __post_init__(self):
    columns = {name: getattr(self, name) for name in LIMITS}
    if is_traced(*columns.values()):
      return
    for name, column in columns.items():
      array = np.asarray(column)
      if array.dtype.kind not in "iu" or array.ndim == 0:
        raise ValueError(
          f"Layers {name}: got {array.dtype} of shape {array.shape}; give"
          " integers, one per layer"
        )
      object.__setattr__(self, name, array.astype(np.int64, copy=False))
    lengths = {np.shape(getattr(self, name))[-1] for name in columns}
    if lengths - {1, len(self)} or max(lengths) != len(self):
      raise ValueError(
        f"Layers: {len(self)} names beside columns of {sorted(lengths)}; give"
        " one entry per name"
      )

  @classmethod
  def of(
    cls, rows: Layers | Mapping[str, Any] | Iterable[Mapping[str, Any]]
  ) -> Layers:
    """Builds the table from rows {name, M, N, K, pattern=None, count=1}.

    A pattern is an `NM`, "n:m", or None (or "dense"). A row may hold the real
    `mask` of its weight, Bool (K, N). Columns of equal length do as well, under
    the same names, where `name` may be left out. A table is returned as it is.

    Raises:
      ValueError: no rows, a missing or unknown column, a size that is not a
        positive integer, an illegal pattern, or a mask of another shape; it
        names the row and column.
    """
    if isinstance(rows, Layers):
      return rows
    if isinstance(rows, Mapping):
      rows = _rows_of_columns(cast(Mapping[str, Any], rows))
    table = [_read_row(index, row) for index, row in enumerate(rows)]
    if not table:
      raise ValueError("layers: no rows; give at least one {name, M, N, K}")
    names, M, N, K, n, m, count, masks = zip(*table)
    sizes = [np.array(column, np.int64) for column in (M, N, K, n, m, count)]
    known = any(mask is not None for mask in masks)
    return cls(names, *sizes, masks=masks if known else None)

  def pattern(self, index: int) -> str:
    """The pattern of one layer as text, "dense" where all is kept."""
    n, m = int(self.n[index]), int(self.m[index])
    return "dense" if n == m else f"{n}:{m}"

  def dense(self) -> Layers:
    """The same layers without patterns."""
    ones = np.ones(np.shape(self.m), np.int64)
    return dataclasses.replace(self, n=ones, m=ones, masks=None)

  def with_pattern(self, pattern: NM | str) -> Layers:
    """The layers with this pattern wherever one is sparse, or all if none is.

    A mask is kept only where the pattern stays as it was.

    >>> rows = [{"name": x, "M": 8, "N": 8, "K": 8} for x in ("qk", "ff")]
    >>> rows[1]["pattern"] = "2:4"
    >>> [Layers.of(rows).with_pattern("1:8").pattern(i) for i in (0, 1)]
    ['dense', '1:8']
    """
    given = NM.parse(pattern)
    sparse = self.n != self.m
    chosen = sparse | ~sparse.any()
    n = np.where(chosen, given.n, self.n)
    m = np.where(chosen, given.m, self.m)
    kept = (n == self.n) & (m == self.m)
    masks = self.masks and tuple(
      mask if same else None for mask, same in zip(self.masks, kept)
    )
    return dataclasses.replace(self, n=n, m=m, masks=masks)

  def __len__(self) -> int:
    return len(self.names)


def _rows_of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Rows from columns; names are numbers if there are none."""
  lists: dict[str, list[Any]] = {
    name: list(x) if isinstance(x, list | tuple) else np.atleast_1d(x).tolist()
    for name, x in columns.items()
  }
  lengths = {len(values) for values in lists.values()}
  if len(lengths) > 1:
    raise ValueError(
      f"layers: columns of lengths {sorted(lengths)}; give them one length"
    )
  count = max(lengths, default=0)
  lists = {"name": [str(i) for i in range(count)]} | lists
  return [dict(zip(lists, values)) for values in zip(*lists.values())]


def _read_row(index: int, row: Any) -> tuple[Any, ...]:
  """(name, M, N, K, n, m, count, mask) of a row, or the error that names it."""
  if not isinstance(row, Mapping):
    raise ValueError(
      f"layers row {index}: got {type(row).__name__}; give a mapping of name,"
      " M, N and K"
    )
  where = f"layers row {index} {row.get('name', '?')!r}"
  for column in row:
    if column not in _COLUMNS:
      raise ValueError(
        f"{where}: unknown column {column!r}, {nearest(column, _COLUMNS)}"
      )
  for column in _COLUMNS[:4]:
    if column not in row:
      raise ValueError(
        f"{where}: column {column!r} is missing; a row needs name, M, N and K"
      )
  row = {"pattern": None, "count": 1, "mask": None} | dict(row)
  sizes = {
    column: _read_size(where, column, row[column])
    for column in ("M", "N", "K", "count")
  }
  try:
    given: Any = row["pattern"]
    pattern = NM(1, 1) if given in (None, "dense") else NM.parse(given)
    if pattern.m > LIMITS["m"][1]:
      raise ValueError(f"{pattern} has m above {LIMITS['m'][1]}")
  except ValueError as error:
    raise ValueError(f"{where}, column 'pattern': {error}") from error
  gemm = sizes["M"], sizes["N"], sizes["K"]
  mask = row["mask"]
  if mask is not None:
    mask = np.asarray(mask)
    shape = sizes["K"], sizes["N"]
    if mask.shape != shape or mask.dtype != np.bool_:
      raise ValueError(
        f"{where}, column 'mask': got {mask.dtype} {mask.shape}; give bool"
        f" (K, N) = {shape}"
      )
    most = int(block_counts(mask, min(pattern.m, sizes["K"])).max())
    if most > pattern.n:
      raise ValueError(
        f"{where}, column 'mask': a group keeps {most}, pattern {pattern} at"
        f" most {pattern.n}; give the mask of that pattern"
      )
  names = str(row["name"]), *gemm, pattern.n, pattern.m
  return *names, sizes["count"], mask


def _read_size(where: str, column: str, value: Any) -> int:
  try:
    size = operator.index(value)
  except TypeError:
    size = 0
  if isinstance(value, bool) or not 1 <= size <= LIMITS[column][1]:
    raise ValueError(
      f"{where}, column {column!r}: got {value!r}; give an integer from 1 to"
      f" {LIMITS[column][1]}"
    )
  return size
