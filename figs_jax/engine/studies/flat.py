"""FLAT's published figures beside the model of attention.

FLAT publishes means of 1.94x at the edge and 1.76x in the cloud over
accelerators without its dataflow, but neither the sequence lengths behind them
nor how its baseline overlaps memory with compute. Its platforms and models are
public in the artefact of FuseMax (arXiv 2406.10491, MIT licence), which
recomputed FLAT: 940 MHz, 16-bit values, batch 64, an edge array of 32 x 32 with
512 KiB and 50 GiB/s, a cloud array of 256 x 256 with 32 MiB and 400 GiB/s. The
bandwidths on chip, 1 and 8 TB/s, are those commonly quoted. With these, an
ideal machine brackets the edge figure but not the cloud figure, and the mean of
this model reaches neither (`flat_claims`).

FRAME, the roofline of FLAT's authors (github.com/maestro-project/frame), has
another model: each operand of an operator takes its bytes over its bandwidth,
and fusing moves the logits from the bandwidth off chip to that on chip.

  unfused  max(compute, (operands + logits) / BW)                           (1)
  fused    max(compute, operands / BW + logits / BW on chip)                (2)

for either product: logits are written once and read once, 2 passes. It has no
buffer that tiles must fit. `frame_claims` sets what it prints beside this model
on the same processors with 2 passes, where both products of a fused pair share
one maximum with what they move.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from figs_jax.engine.roofline import Roofline
from figs_jax.engine.studies.attention import (
  AttentionShape,
  Memory,
  attention_cost,
)
from figs_jax.engine.systolic import Systolic

# FLAT's platforms: array, memory and published speed-up. Bytes per cycle at
# 940 MHz, rounded to whole bytes (by less than 0.3 %).
_PLATFORMS = {
  "edge": (
    Systolic("os", 32, 32, "full"),
    Memory(buffer=512 * 2**10, dram_bw=57, sram_bw=1064),
    1.94,
  ),
  "cloud": (
    Systolic("os", 256, 256, "full"),
    Memory(buffer=32 * 2**20, dram_bw=457, sram_bw=8511),
    1.76,
  ),
}
# Heads and head dimensions of BERT, TrXL, T5 and XLM.
_HEADS = np.array([(12, 64), (16, 64), (8, 64), (16, 128)]).T[:, :, None]
_BATCH, _LENGTHS = 64, 512 << np.arange(8)  # 512 to 64K


@dataclasses.dataclass(frozen=True)
class FlatClaim:
  """A speed-up that FLAT publishes, beside this model's.

  Pairs are over a baseline that hides memory behind compute, and over one that
  hides nothing. Means are geometric.

  Attributes:
    platform: "edge" or "cloud".
    baseline: When an unfused operator ends, as in `Memory.unfused`.
    published: Speed-up of FLAT over its baseline.
    ideal: Result of `flat_ideal` on this platform.
    mean: Means of this model over all models and lengths.
    extremes: The least of the first kind and the greatest of the second.
  """

  platform: str
  baseline: str
  published: float
  ideal: tuple[float, float]
  mean: tuple[float, float]
  extremes: tuple[float, float]

  @property
  def status(self) -> str:
    """Whether the ideal machine brackets the published mean."""
    low, high = self.ideal
    return "bracket" if low <= self.published <= high else "not reproduced"


def flat_ideal(
  multipliers: int, dram_bw: int, dim: int = 64, passes: int = 4
) -> tuple[float, float]:
  """Speed-up by fusion if products fill the array and only logits move.

  A logit costs c = 2 dim / multipliers cycles of compute and m = 2 passes /
  dram_bw of memory, at 16 bits: max(1, m / c) over a baseline that overlaps
  both, 1 + m / c over one that does not.

  >>> [round(x, 2) for x in flat_ideal(32 * 32, 50)]  # edge: 1 GHz, 50 GB/s
  [1.28, 2.28]
  """
  ratio = passes * multipliers / (dram_bw * dim)
  return max(1.0, ratio), 1 + ratio


def flat_claims() -> tuple[FlatClaim, ...]:
  """FLAT's claims beside this model's, over models and lengths.

  The faster of fused and unfused counts as FLAT: tiles of few rows do not fill
  the array, and FLAT's own search falls back there too.

  >>> [(c.platform, c.status) for c in flat_claims() if c.baseline == "head"]
  [('edge', 'bracket'), ('cloud', 'not reproduced')]
  """
  heads, dims = _HEADS
  shape = AttentionShape(_BATCH, heads, _LENGTHS, _LENGTHS, dims)
  claims = []
  for platform, (array, memory, published) in _PLATFORMS.items():
    fused = attention_cost(shape, array, memory).cycles
    for baseline in Memory.CHOICES["unfused"]:
      hidden = dataclasses.replace(memory, unfused=baseline)
      serial = dataclasses.replace(hidden, overlap="none")
      apart, slow = (
        attention_cost(shape, array, chip, False).cycles
        for chip in (hidden, serial)
      )
      best = np.minimum(fused, apart)
      low, high = apart / best, slow / best
      claims.append(
        FlatClaim(
          platform,
          baseline,
          published,
          ideal=flat_ideal(array.rows * array.cols, memory.dram_bw),
          mean=(_mean(low), _mean(high)),
          extremes=(float(low.min()), float(high.max())),
        )
      )
  return tuple(claims)


class FrameClaim(NamedTuple):
  """What FRAME prints for fusing logit and attend, beside this model.

  Attributes:
    system: Name of the system.
    keys: Queries, and keys, of each head.
    published: Unfused over fused time by FRAME.
    model: The same ratio by `attention_cost`, at least 1.
  """

  system: str
  keys: int
  published: float
  model: float


# System: GFLOP/s, bytes per ns off chip, bytes on chip (which FRAME does not
# have), and what FRAME (commit 952f46e) gives for each length. Its bandwidths
# on chip, 20 times those off chip, decide at 512 keys alone.
_FRAME = {
  "cloud": (
    (123_000, 429, 2**25),
    {512: 4.167, 2048: 4.754, 8192: 4.545, 65536: 4.484},
  ),
  "defaults": ((123_000, 966, 2**25), {512: 2.486, 65536: 1.993}),
  "edge": ((1925, 54, 2**19), {512: 1.0, 65536: 1.0}),
}


def frame_claims() -> tuple[FrameClaim, ...]:
  """FRAME's ratios of 64 x 12 heads of 64 beside this model with 2 passes.

  >>> claims = {(c.system, c.keys): c for c in frame_claims()}
  >>> round(claims["cloud", 2048].model, 2)
  4.76
  """
  claims = []
  for system, ((peak, hbm, buffer), ratios) in _FRAME.items():
    chip = Roofline("gpu", system, peak=peak, hbm=hbm)
    memory = Memory(buffer, hbm, logit_passes=2, unfused="operator")
    lengths = np.array(list(ratios))
    shape = AttentionShape(_BATCH, 12, lengths, lengths, 64)
    fused, apart = (
      attention_cost(shape, chip, memory, way).cycles for way in (True, False)
    )
    for keys, ratio in zip(ratios, apart / np.minimum(fused, apart)):
      claims.append(FrameClaim(system, keys, ratios[keys], float(ratio)))
  return tuple(claims)


def _mean(x: np.ndarray) -> float:
  return float(np.exp(np.log(x).mean()))
