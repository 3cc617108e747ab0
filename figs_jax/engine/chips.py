"""Chips by name: peaks, memories, and what a 2:4 call costs.

TPUs: Google Cloud's pages on each generation. GPUs: NVIDIA's data sheets of the
SXM modules, rates without sparsity; 2:4 operands run at twice `peak` on their
tensor cores.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
  """A processor's data sheet.

  Attributes:
    peak: Dense GFLOP/s of 16-bit operands.
    hbm: GB/s of its memory.
    side: Side of its matrix unit; on a GPU that of one tensor core instruction
      (kernels pad to larger tiles).
    int8: Rate of 8-bit operands, as a multiple of `peak`.
  """

  peak: int
  hbm: int
  side: int
  int8: int


TPUS = {
  "v4": Chip(275_000, 1230, 128, 1),
  "v5e": Chip(197_000, 820, 128, 2),
  "v5p": Chip(459_000, 2460, 128, 2),
  "v6e": Chip(920_000, 1640, 256, 2),
  "v7x": Chip(2_310_000, 7400, 256, 2),
}
GPUS = {
  "a100": Chip(312_000, 2039, 16, 2),
  "h100": Chip(989_000, 3350, 16, 2),
  "h200": Chip(989_000, 4800, 16, 2),
}
# kind of engine -> the chips that it knows.
CHIPS = {"tpu": TPUS, "gpu": GPUS, "tensorcore": GPUS, "csr": GPUS | TPUS}
# ns of a 2:4 call before it computes, on any GPU: calibrated on one published
# ratio, 1.11 at 4096^3 in 16 bits on an A100, measured from PyTorch
# (`figs_jax.engine.tensorcore.calibrated_overhead`).
SPARSE_OVERHEAD = 176_601
