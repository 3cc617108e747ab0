"""FLAT's two platforms and what of its published speed-ups we reproduce.

The paper (arXiv 2107.06419) gives 1.94x at the edge and 1.76x in the cloud over
accelerators without its dataflow, but neither the sequence lengths behind those
means nor how its baseline overlaps memory with compute. Its platforms and
models are public in the artefact of FuseMax (arXiv 2406.10491, MIT licence),
which recomputed FLAT: 940 MHz, 16-bit values, batch 64, an edge array of 32 x
32 with 512 KiB and 50 GiB/s, a cloud array of 256 x 256 with 32 MiB and
400 GiB/s. Bandwidths on chip, 1 and 8 TB/s, are as commonly quoted.

With these the edge figure is bracketed by an ideal machine and the cloud figure
is not; neither is the mean of our model, see `claims`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from figs_jax.engine.studies.attention import Attention, Memory, attention_cost
from figs_jax.engine.systolic import Systolic

# Bytes per cycle of 940 MHz, rounded to whole bytes (by less than 0.3 %).
EDGE = Memory(buffer=512 * 2**10, dram_bw=57, sram_bw=1064)
CLOUD = Memory(buffer=32 * 2**20, dram_bw=457, sram_bw=8511)
PLATFORMS = {
  "edge": (Systolic("os", 32, 32, "full"), EDGE, 1.94),
  "cloud": (Systolic("os", 256, 256, "full"), CLOUD, 1.76),
}
# model -> heads, head dimension.
MODELS = {"BERT": (12, 64), "TrXL": (16, 64), "T5": (8, 64), "XLM": (16, 128)}
BATCH = 64
LENGTHS = tuple(512 << i for i in range(8))  # 512 to 64K


@dataclasses.dataclass(frozen=True)
class Claim:
  """A published speed-up beside ours; means are geometric.

  Each pair is over a baseline that hides memory behind compute, and over one
  that hides nothing.

  Attributes:
    platform: "edge" or "cloud".
    baseline: when an unfused operator ends, as of `Memory.unfused`.
    published: FLAT over its baseline.
    ideal: `ideal` on this platform.
    mean: of our model over all models and lengths.
    extremes: the least of the first and the most of the second.
  """

  platform: str
  baseline: str
  published: float
  ideal: tuple[float, float]
  mean: tuple[float, float]
  extremes: tuple[float, float]

  @property
  def status(self) -> str:
    """How far the published mean is explained, as of the ideal machine."""
    low, high = self.ideal
    return "bracket" if low <= self.published <= high else "not reproduced"


def ideal(
  multipliers: int, dram_bw: int, dim: int = 64, passes: int = 4
) -> tuple[float, float]:
  """What fusing saves where products fill the array and only logits move.

  A logit costs c = 2 dim / multipliers cycles of compute and m = 2 passes /
  dram_bw of memory, at 16 bits: max(1, m / c) over a baseline that overlaps
  both, 1 + m / c over one that does not.

  >>> [round(x, 2) for x in ideal(32 * 32, 50)]  # edge: 1 GHz and 50 GB/s
  [1.28, 2.28]
  """
  ratio = passes * multipliers / (dram_bw * dim)
  return max(1.0, ratio), 1 + ratio


def claims() -> tuple[Claim, ...]:
  """FLAT's claims beside our model's, over models and lengths.

  The better of fused and unfused counts as FLAT: tiles of few rows do not fill
  the array, and its own search falls back there too.

  >>> [(c.platform, c.status) for c in claims() if c.baseline == "head"]
  [('edge', 'bracket'), ('cloud', 'not reproduced')]
  """
  heads, widths = np.array(list(MODELS.values())).T[:, :, None]
  length = np.array(LENGTHS)
  asked = Attention(BATCH, heads, length, length, widths)
  found = []
  for platform, (array, memory, published) in PLATFORMS.items():
    for baseline in ("head", "operator"):
      memory = dataclasses.replace(memory, unfused=baseline)
      serial = dataclasses.replace(memory, overlap="none")
      fused, apart = (
        attention_cost(asked, array, memory, on).cycles for on in (True, False)
      )
      slow = attention_cost(asked, array, serial, False).cycles
      best = np.minimum(fused, apart)
      low, high = apart / best, slow / best
      found.append(
        Claim(
          platform,
          baseline,
          published,
          ideal=ideal(array.rows * array.cols, memory.dram_bw),
          mean=(_mean(low), _mean(high)),
          extremes=(float(low.min()), float(high.max())),
        )
      )
  return tuple(found)


def _mean(x: np.ndarray) -> float:
  return float(np.exp(np.log(x).mean()))
