"""Layers as columns, one row per GEMM, and what they compute and weigh.

A GEMM takes 2 M FLOPs for each kept weight, so that a model takes total = SA +
(n / m) FF where m divides K (arXiv 2402.04744, appendix D). A kept weight is
stored with ceil(log2 m) index bits.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from figs_jax.core.pattern import NM, VNM
from figs_jax.engine.blocks import block_counts
from figs_jax.engine.int64 import array_dataclass, ceil_div, is_traced
from figs_jax.engine.spec import LIMITS, Gemm, nearest

_COLUMNS = ("name", "M", "N", "K", "pattern", "count", "mask")


class NonGemm(NamedTuple):
  """Passes of a model beside its products, such as norms and softmax.

  Attributes:
    name: Path of the operation.
    kind: Kind of the operation, as in "norm".
    reads: Values that one pass reads.
    writes: Values that one pass writes.
    count: Number of such passes.
  """

  name: str
  kind: str
  reads: int
  writes: int
  count: int = 1


class Forward(NamedTuple):
  """What a whole model's forward pass is beside its products.

  Attributes:
    non_gemms: All passes beside the products.
    seq: Tokens of a sequence, in the cache where it decodes; 0 if unknown.
    phase: "prefill", "decode", or "" for whole sequences.
  """

  non_gemms: tuple[NonGemm, ...]
  seq: int = 0
  phase: str = ""

  @classmethod
  def of(
    cls, rows: Iterable[Mapping[str, Any]], seq: int = 0, phase: str = ""
  ) -> Forward:
    """Builds it from rows {name, kind, reads, writes, count=1}.

    Raises:
      ValueError: If a row has other columns or a number is not a positive
        integer.

    >>> row = {"name": "norm", "kind": "norm", "reads": 8, "writes": 8}
    >>> Forward.of([row]).non_gemms[0].count
    1
    """
    passes = []
    for index, row in enumerate(rows):
      where = f"non-GEMM row {index} {row.get('name', '?')!r}"
      full = {"count": 1} | dict(row)
      if full.keys() != set(NonGemm._fields):
        raise ValueError(
          f"{where}: expected the columns {', '.join(NonGemm._fields)}, got"
          f" {', '.join(full)}"
        )
      numbers = (
        _read_size(where, column, full[column])
        for column in ("reads", "writes", "count")
      )
      passes.append(NonGemm(str(full["name"]), str(full["kind"]), *numbers))
    return cls(tuple(passes), seq, phase)


@array_dataclass("names", "forward")
@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
  """A table of GEMMs, (M x K) times (K x N): columns of int64, one per layer.

  Attributes:
    names: Names of the layers.
    M: Rows of the activations (tokens, summed over the batch).
    N: Columns of the weight (outputs).
    K: Lengths of the contraction, along which N:M groups lie.
    n: Weights kept of every m; n = m is dense.
    m: Lengths of the groups.
    count: Number of such GEMMs that the model runs.
    masks: Real masks, Bool (K, N), or None for a layer without; None if no
      layer has one.
    v: Outputs that share the columns of a V:N:M pattern, 0 for n:m; None if all
      are n:m.
    forward: The rest of the model's forward pass, or None if the layers are not
      a whole model.

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
  v: Any = None
  forward: Forward | None = None

  def __post_init__(self):
    columns = {name: getattr(self, name) for name in LIMITS}
    if self.v is None:
      del columns["v"]
    if is_traced(*columns.values()):
      return
    for name, column in columns.items():
      array = np.asarray(column)
      if array.dtype.kind not in "iu" or array.ndim == 0:
        raise ValueError(
          f"Layers {name}: expected integers, one per layer, got"
          f" {array.dtype} of shape {array.shape}"
        )
      object.__setattr__(self, name, array.astype(np.int64, copy=False))
    lengths = {np.shape(getattr(self, name))[-1] for name in columns}
    if lengths - {1, len(self)} or max(lengths) != len(self):
      raise ValueError(
        f"Layers: expected one entry per name, got {len(self)} names and"
        f" columns of {sorted(lengths)}"
      )

  @classmethod
  def of(
    cls,
    rows: Layers | Mapping[str, Any] | Iterable[Mapping[str, Any]],
    forward: Forward | None = None,
  ) -> Layers:
    """Builds the table from rows {name, M, N, K, pattern=None, count=1}.

    A pattern is an `NM`, "n:m", "V:2:M" (see `read_pattern`), or None (or
    "dense"). A row may hold the real `mask` of its weight, Bool (K, N). A
    mapping of columns of equal length is read in the same way; its `name` is
    optional. A table is returned as it is. `forward` is the rest of the pass of
    a whole model.

    Raises:
      ValueError: If rows or a column are missing, a column is unknown, a size
        is not a positive integer, a pattern is illegal, or a mask has another
        shape. The message names the row and column.
    """
    if isinstance(rows, Layers):
      return rows
    if isinstance(rows, Mapping):
      rows = _rows_of_columns(cast(Mapping[str, Any], rows))
    table = [_read_row(index, row) for index, row in enumerate(rows)]
    if not table:
      raise ValueError("layers: expected {name, M, N, K} rows, got no rows")
    names, M, N, K, n, m, count, masks, v = zip(*table)
    sizes = [np.array(column, np.int64) for column in (M, N, K, n, m, count)]
    known = any(mask is not None for mask in masks)
    shared = np.array(v, np.int64) if any(v) else None
    real = masks if known else None
    return cls(names, *sizes, masks=real, v=shared, forward=forward)

  @property
  def gemm(self) -> Gemm:
    """Sizes and patterns of all layers."""
    v = 0 if self.v is None else self.v
    return Gemm(self.M, self.N, self.K, self.n, self.m, v)

  def pattern(self, index: int) -> str:
    """The pattern of one layer as text, "dense" if all is kept."""
    n, m = int(self.n[index]), int(self.m[index])
    v = 0 if self.v is None else int(self.v[index])
    return "dense" if n == m else f"{v}:{n}:{m}" if v else f"{n}:{m}"

  def dense(self) -> Layers:
    """The same layers without patterns."""
    ones = np.ones(np.shape(self.m), np.int64)
    return dataclasses.replace(self, n=ones, m=ones, masks=None, v=None)

  def with_pattern(self, pattern: NM | str) -> Layers:
    """The layers with another pattern where they are sparse, or all if none is.

    A mask is kept only where the pattern stays the same.

    >>> rows = [{"name": x, "M": 8, "N": 8, "K": 8} for x in ("qk", "ff")]
    >>> rows[1]["pattern"] = "2:4"
    >>> [Layers.of(rows).with_pattern("1:8").pattern(i) for i in (0, 1)]
    ['dense', '1:8']
    """
    shared, given = read_pattern(pattern)
    sparse = self.n != self.m
    chosen = sparse | ~sparse.any()
    n = np.where(chosen, given.n, self.n)
    m = np.where(chosen, given.m, self.m)
    kept = (n == self.n) & (m == self.m)
    masks = self.masks and tuple(
      mask if same else None for mask, same in zip(self.masks, kept)
    )
    v = None
    if shared or self.v is not None:
      v = np.where(chosen, shared, 0 if self.v is None else self.v)
    return dataclasses.replace(self, n=n, m=m, masks=masks, v=v)

  def __len__(self) -> int:
    return len(self.names)


def _rows_of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Rows from columns; without names they are numbered."""
  lists: dict[str, list[Any]] = {
    name: list(x) if isinstance(x, list | tuple) else np.atleast_1d(x).tolist()
    for name, x in columns.items()
  }
  lengths = {len(values) for values in lists.values()}
  if len(lengths) > 1:
    raise ValueError(
      f"layers: expected columns of one length, got {sorted(lengths)}"
    )
  count = max(lengths, default=0)
  lists = {"name": [str(i) for i in range(count)]} | lists
  return [dict(zip(lists, values)) for values in zip(*lists.values())]


def _read_row(index: int, row: Any) -> tuple[Any, ...]:
  """(name, M, N, K, n, m, count, mask, v) of a row, or the error naming it."""
  if not isinstance(row, Mapping):
    raise ValueError(
      f"layers row {index}: expected a mapping of name, M, N and K, got"
      f" {type(row).__name__}"
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
    v, pattern = 0, NM(1, 1)
    if given not in (None, "dense"):
      v, pattern = read_pattern(given)
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
        f"{where}, column 'mask': expected bool (K, N) = {shape}, got"
        f" {mask.dtype} {mask.shape}"
      )
    most = int(block_counts(mask, min(pattern.m, sizes["K"])).max())
    if most > pattern.n:
      raise ValueError(
        f"{where}, column 'mask': expected at most {pattern.n} of a group"
        f" (pattern {pattern}), got {most}"
      )
  names = str(row["name"]), *gemm, pattern.n, pattern.m
  return *names, sizes["count"], mask, v


def read_pattern(text: Any) -> tuple[int, NM]:
  """Reads "n:m", or "V:2:M" of VENOM (arXiv 2310.02065).

  V outputs share 4 columns of each M, in which each keeps 2 of its own, so that
  units for 2:4 run any M. To all else it is 2:M. A `VNM` of another n is
  n:m everywhere.

  Returns:
    V, or 0, and n:m.

  Raises:
    ValueError: If the text is neither, n is not 2, or M is below 4.

  >>> read_pattern("64:2:8"), read_pattern("1:8")
  ((64, NM(n=2, m=8)), (0, NM(n=1, m=8)))
  """
  if isinstance(text, VNM):
    return (text.v if text.n == 2 else 0), text.pattern
  match = None
  if isinstance(text, str):
    match = re.fullmatch(r"\s*(\d{1,9})\s*:([^:]*:[^:]*)", text)
  if match is None:
    return 0, NM.parse(text)
  try:
    v, pattern = int(match[1]), NM.parse(match[2])
  except ValueError:
    return 0, NM.parse(text)  # its message
  if v < 1 or pattern.n != 2 or pattern.m < 4:
    raise ValueError(
      f"Invalid V:N:M pattern {text!r}: expected 'V:2:M' with M of at least 4,"
      " for example '64:2:8'."
    )
  return v, pattern


def _read_size(where: str, column: str, value: Any) -> int:
  try:
    size = operator.index(value)
  except TypeError:
    size = 0
  most = LIMITS.get(column, LIMITS["M"])[1]
  if isinstance(value, bool) or not 1 <= size <= most:
    raise ValueError(
      f"{where}, column {column!r}: expected an integer from 1 to {most}, got"
      f" {value!r}"
    )
  return size


def flops(layers: Layers | Iterable[Mapping[str, Any]]) -> np.ndarray:
  """Inference FLOPs of each layer: 2 M N count for each weight kept along K.

  Args:
    layers: A table, or its rows.

  >>> row = {"name": "ff", "M": 4, "N": 8, "K": 9, "pattern": "1:4"}
  >>> flops([row])
  array([192.])
  """
  layers = Layers.of(layers)
  # In float64 throughout: a product of sizes may pass int64.
  columns = (layers.M, layers.N, layers.gemm.kept, layers.count)
  return 2.0 * np.prod([np.asarray(c, np.float64) for c in columns], axis=0)


def packed_bytes(size: int, pattern: NM | str | None, itemsize: int) -> int:
  """Bytes of a packed tensor: its kept values, then their indices.

  The indices of a tensor are rounded up to whole bytes together.

  Args:
    size: Number of weights, kept or not.
    pattern: Pattern of the tensor; None is dense.
    itemsize: Bytes per value.

  Raises:
    ValueError: If m does not divide size.

  >>> packed_bytes(1024, "2:4", 2), packed_bytes(1024, None, 2)
  (1152, 2048)
  """
  nm = NM(1, 1) if pattern is None else NM.parse(pattern)
  if nm.is_dense:
    return size * itemsize
  if size % nm.m:
    raise ValueError(
      f"packed_bytes: size {size} is not a multiple of m={nm.m}; pass"
      " pattern=None for a dense tensor"
    )
  kept = size // nm.m * nm.n
  return kept * itemsize + ceil_div(kept * nm.metadata_bits, 8)
