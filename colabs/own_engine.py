"""An engine of one's own: a vector unit that skips pruned weights.

Import this file, or name it by `--engine_file`, and `engine.parse` reads
"vector:8x4": 8 lanes of 4 multipliers.
"""

from typing import Any

from figs_jax.engine import Engine, Gemm, register
from figs_jax.engine.blocks import index_bits
from figs_jax.engine.int64 import ceil_div
from figs_jax.engine.spec import UNLIMITED
from figs_jax.engine.timing import Fold, bounded, bytes_of, schedule


@register
class Vector(Engine):
  """Rows of lanes, an output each, whose cols multipliers share a dot product.

  Attributes:
    rows: Lanes.
    cols: Multipliers of a lane.
    latency: Cycles of a lane's adder tree.
    dram_bw: Bytes per cycle between chip and memory.
  """

  rows: Any = 8
  cols: Any = 4
  latency: Any = 3
  dram_bw: Any = UNLIMITED

  KINDS = ("vector",)
  FROM_ZERO = ("latency",)

  def note(self, sparse: int, known: int) -> str:
    return f"{self} gathers activations without a conflict." if sparse else ""

  def formula(self, gemm: Gemm, run: Any, *, itemsize: Any) -> dict[str, Any]:
    # ceil(N / R) folds; in each, every row of activations takes the kept K / C.
    M, N, K, kept = gemm.M, gemm.N, gemm.K, gemm.kept
    steps = ceil_div(kept, self.cols)
    folds = ceil_div(N, self.rows)
    metadata = ceil_div(kept * N * index_bits(gemm.n, gemm.m), 8)
    dram_bytes = bytes_of(M * K + kept * N + M * N, itemsize) + metadata
    fold = Fold(M * steps, load=0, fill=self.latency, overlap="none")
    parts = bounded(schedule(folds, fold), dram_bytes, self.dram_bw)
    return parts | {
      "utilisation": N / (folds * self.rows)
      * (kept / (steps * self.cols))
      * (parts["compute"] / parts["cycles"]),
      "ifmap_reads": folds * M * kept,
      "filter_reads": M * N * kept,
      "ofmap_writes": M * N,
      "metadata_bytes": metadata,
      "dram_bytes": dram_bytes,
    }  # fmt: skip
