"""Classical systolic arrays, exactly: R rows x C columns of multipliers.

The two sides hold two dimensions of a GEMM; the third is streamed, T steps of
it per fold:

  ws  K down, N across, T = M        WL = R cycles load the weights
  is  K down, M across, T = N        WL = R cycles load the inputs
  os  M down, N across, T = K        WL = 0

  F = ceil(down / R) ceil(across / C), fill = R + C - 2                     (1)

folds, put through `figs_jax.engine.timing`: F (WL + T + R + C - 2) cycles
where nothing overlaps. A vector that enters takes R values ("os": R + C); one
that leaves, C. The R C sums of an "os" fold leave a row at a time.

With overlap "none" these are the cycles of SCALE-Sim v2 and v3 (which report
one less). So are the on-chip accesses, except for its os outputs, to which it
adds F (R + C). An N:M weight is compressed layer-wise, to what it keeps of K:

  K becomes floor(K / m) n + min(K mod m, n)                                (2)

These are the cycles, weights and outputs of SCALE-Sim v3 for all dataflows. Its
activations are not: it reads m / n for each kept weight (ws), more than a last
part of K has, or the kept ones alone (is, os), as if all outputs kept the same
weights. Here the outputs choose their own, so that all K are read.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from figs_jax.engine.area import Parts
from figs_jax.engine.blocks import index_bits
from figs_jax.engine.int64 import ceil_div, smaller
from figs_jax.engine.spec import CLOCK, OVERLAPS, UNLIMITED, Engine, Gemm
from figs_jax.engine.timing import Fold, bounded, bytes_of, schedule

DATAFLOWS = ("ws", "os", "is")


class Systolic(Engine):
  """A systolic array of rows x cols multipliers, one result each per cycle.

  Attributes:
    dataflow: Operand that stays in the array: "ws" weights (K down the rows, N
      across), "is" inputs (K down, M across), "os" outputs (M down, N across).
    rows: Rows R.
    cols: Columns C.
    overlap: Work hidden behind the streaming of another fold: "none";
      "weights", the loading of the stationary operand; "full", filling and
      draining too.
    sparse: Whether N:M weights are stored and run compressed. If not, a sparse
      layer runs dense, and only its kept weights count as useful.
    bw_in: Values that may enter per cycle; a full array takes R ("os": R + C).
    bw_out: Values that may leave per cycle; a full array gives C.
    dram_bw: Bytes per cycle between chip and memory.
    clock: Clock in MHz.

  Its counts also hold `mapping_efficiency`, the share of multipliers that a
  fold occupies, averaged over the folds.

  >>> array = Systolic("ws", 32, 32)
  >>> str(array), str(Systolic("ws", 32, 16, overlap="full"))
  ('ws:32x32', 'ws:32x16:overlap=full')
  >>> [int(array.counts(Gemm(64, 64, 64, 2, m))["cycles"]) for m in (2, 4)]
  [632, 316]
  """

  dataflow: str
  rows: Any
  cols: Any
  overlap: str = "none"
  sparse: bool = True
  bw_in: Any = UNLIMITED
  bw_out: Any = UNLIMITED
  dram_bw: Any = UNLIMITED
  clock: Any = CLOCK

  KINDS = DATAFLOWS
  PREFIX = ("dataflow", "rows", "cols")
  CHOICES = {"dataflow": DATAFLOWS, "overlap": OVERLAPS}

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    size = "32x16" if size is None else size
    return {"dataflow": kind} | super().read_prefix(kind, size)

  def prefix(self) -> str:
    return f"{self.dataflow}:{self.sides()}"

  def note(self, sparse: int, known: int) -> str:
    if not (sparse and self.sparse):
      return ""
    return (
      "N:M is ideally compressed on systolic arrays; :sparse=false is the plain"
      " array."
    )

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    M, N, K, n, m = gemm.M, gemm.N, gemm.K, gemm.n, gemm.m
    rows, cols, dataflow = self.rows, self.cols, self.dataflow
    kept = gemm.kept
    stored = kept if self.sparse else K  # (2)
    down, across, T = _mapped(dataflow, M, N, stored)
    down_folds, across_folds = ceil_div(down, rows), ceil_div(across, cols)
    folds = down_folds * across_folds
    metadata = ceil_div(int(self.sparse) * stored * N * index_bits(n, m), 8)
    dram_bytes = bytes_of(M * K + stored * N + M * N, itemsize) + metadata
    parts = bounded(_parts(folds, T, self), dram_bytes, self.dram_bw)
    # Ratios that cannot pass 1, so that rounding cannot lift their product.
    mapping = down / (down_folds * rows) * (across / (across_folds * cols))
    return parts | {
      "mapping_efficiency": mapping,
      # M N kept / (cycles R C)
      "utilisation": mapping * (kept / stored) * (folds * T / parts["cycles"]),
      # An operand is read again for each fold of the side that lacks it.
      "ifmap_reads": (1 if dataflow == "is" else across_folds) * M * K,
      "filter_reads": {"ws": 1, "is": across_folds, "os": down_folds}[dataflow]
      * (stored * N),
      "ofmap_writes": (1 if dataflow == "os" else down_folds) * M * N,
      "metadata_bytes": metadata,
      "dram_bytes": dram_bytes,
    }

  @property
  def input_width(self) -> Any:
    columns = self.cols if self.dataflow == "os" else 0
    return smaller(self.rows + columns, self.bw_in)

  @property
  def is_ideal(self) -> bool:
    return self.sparse

  def parts(self) -> Parts:
    """See `Engine.parts`: those of a plain array, whatever `sparse` says.

    Each multiplier has an adder, two operands' registers (a third for the next
    stationary operand, where its loading is hidden) and one of a sum.

    >>> Systolic("ws", 32, 16).parts().value_registers
    1024
    """
    size = self.rows * self.cols
    held = 2 if self.overlap == "none" or self.dataflow == "os" else 3
    return Parts(size, size, held * size, size)


def _mapped(dataflow, M, N, K):
  """The sizes down the rows, across the columns, and of the stream."""
  return {"ws": (K, N, M), "is": (K, M, N), "os": (M, N, K)}[dataflow]


def _parts(folds, T, array):
  """The cycles of F folds (1), by part."""
  rows, cols, overlap = array.rows, array.cols, array.overlap
  fill = rows + cols - 2
  leave = ceil_div(cols, array.bw_out)
  if array.dataflow != "os":
    enter = ceil_div(rows, array.bw_in)
    fold = Fold(T, rows, fill, overlap, enter=enter, leave=leave)
    return schedule(folds, fold)
  enter = ceil_div(rows + cols, array.bw_in)
  parts = schedule(folds, Fold(T, 0, fill, overlap, enter=enter))
  # `fill` holds one cycle for each row of sums; the rest is waiting.
  return parts | {"stall_output": folds * rows * (leave - 1)}
