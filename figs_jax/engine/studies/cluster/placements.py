"""Placements in columns: their choices, time, memory and cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from figs_jax.engine.spec import nearest
from figs_jax.engine.studies.cluster.parallel import RECOMPUTE, Parallel
from figs_jax.engine.sweeps.text import read_conditions, read_quantity

# The choices of a placement, and the shares of its memory and of its time.
CHOICES = (
  "devices", "data", "tensor", "pipeline", "microbatch", "microbatches",
  "interleave", "zero", "recompute", "sequence",
)  # fmt: skip
MEMORY = ("weights", "masks", "gradients", "optimizer", "activations")
TIME = (
  "products", "elementwise", "recomputation", "tensor_exchange", "bubble",
  "data_exchange", "optimizer_step", "tier",
)  # fmt: skip
# States in the order in which they leave for the tier.
TIERED = ("optimizer", "activations", "gradients", "weights")


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A training step on a cluster; times in ns, memory in bytes of a device.

  Attributes:
    parallel: How the step is spread.
    ns: Duration of the step, the sum of `times`.
    pipeline_ns: Duration of the schedule (1), with tensor exchange and sends.
    compute_ns: The busiest stage's products, norms and recomputation.
    tensor_ns: Its exchange within the tensor group.
    gradients_ns: Duration of the replicas' exchange, hidden or not.
    bubble: Share of `pipeline_ns` in which the busiest stage waits.
    memory: Bytes of the fullest device, the tier's included.
    tier: Bytes of them in the expansion tier.
    fits: Whether memory and tier hold them.
    times: Share of each part of `ns`, by the names of `TIME`.
    bytes: Share of each kind of state, by the names of `MEMORY`.
    tiered: Bytes of each kind of state in the tier, by the names of `TIERED`.
  """

  parallel: Parallel
  ns: float
  pipeline_ns: float
  compute_ns: float
  tensor_ns: float
  gradients_ns: float
  bubble: float
  memory: int
  tier: int
  fits: bool
  times: dict[str, float]
  bytes: dict[str, int]
  tiered: dict[str, int]


class Placements(Sequence):
  """Placements in columns, the fastest that fits first.

  Attributes:
    columns: Arrays by name: the choices (`CHOICES`, `recompute` counting from
      "none" at 0), `ns`, `memory`, `tier_bytes`, `cost` (device-hours x price),
      `excess` (bytes that do not fit), the shares of memory and time, and what
      else an `Estimate` holds.
    overlap: Whether the replicas' exchange overlaps with compute.
  """

  def __init__(self, columns: dict[str, np.ndarray], overlap: bool):
    self.columns, self.overlap = columns, overlap

  @property
  def fits(self) -> np.ndarray:
    """Whether each placement fits into memory and tier."""
    return self.columns["excess"] <= 0

  def __len__(self) -> int:
    return len(self.columns["ns"])

  def __getitem__(self, index: Any) -> Any:
    if not isinstance(index, slice) and np.ndim(index) == 0:
      return self._estimate(range(len(self))[index])
    columns = {name: x[index] for name, x in self.columns.items()}
    return Placements(columns, self.overlap)

  def __iter__(self) -> Iterator[Estimate]:
    return map(self._estimate, range(len(self)))

  def where(self, conditions: str) -> Placements:
    """The placements that meet conditions, as in "tensor<=8; zero==1".

    Raises:
      ValueError: If a condition cannot be read or names an unknown column.
    """
    kept = np.ones(len(self), bool)
    for left, compare, right in read_conditions(conditions):
      kept &= compare(self._quantity(left), self._quantity(right))
    return self[kept]

  def pareto(self, *names: str) -> Placements:
    """The placements that fit and that no other beats in all quantities.

    Of placements equal in all of them the first stays.

    Args:
      *names: Columns to be small. Defaults to ns, memory and cost.

    Raises:
      ValueError: If a name is unknown.
    """
    names = names or ("ns", "memory", "cost")
    fitting = self[self.fits]
    values = np.stack([fitting._quantity(name) for name in names], -1)
    return fitting[pareto_front(values)]

  def _quantity(self, text: str) -> np.ndarray:
    scale, names = read_quantity(text)
    value = np.full(len(self), scale)
    for name in names:
      if name not in self.columns:
        raise ValueError(
          f"placements: unknown column {name!r}, {nearest(name, self.columns)}"
        )
      value = value * self.columns[name]
    return value

  def _estimate(self, index: int) -> Estimate:
    row = {name: x[index].item() for name, x in self.columns.items()}
    choices = {
      name: row[name]
      for name in CHOICES
      if name not in ("devices", "microbatch")
    }
    choices["recompute"] = RECOMPUTE[row["recompute"]]
    times = {name: row[name] for name in TIME}
    busy = ("products", "elementwise", "recomputation")
    return Estimate(
      Parallel(**choices, overlap=self.overlap),
      ns=row["ns"],
      pipeline_ns=row["pipeline_ns"],
      compute_ns=sum(times[name] for name in busy),
      tensor_ns=times["tensor_exchange"],
      gradients_ns=row["gradients_ns"],
      bubble=times["bubble"] / row["pipeline_ns"],
      memory=round(row["memory"]),
      tier=round(row["tier_bytes"]),
      fits=row["excess"] <= 0,
      times=times,
      bytes={name: round(row[name]) for name in MEMORY},
      tiered={name: round(row[f"{name}_tier"]) for name in TIERED},
    )


def pareto_front(values: np.ndarray) -> np.ndarray:
  """Indices of rows that no other row is at most as large as in every column.

  >>> pareto_front(np.array([[1, 3], [2, 2], [2, 3], [3, 1], [1, 3]])).tolist()
  [0, 1, 3]
  """
  order = np.lexsort(values.T[::-1])
  left, front = order, []
  while left.size:
    front.append(left[0])
    best = values[left[0]]
    left = left[(values[left] < best).any(1)]
  return np.array(sorted(front), int)


def describe(parallel: Parallel) -> str:
  """A placement in a few words.

  >>> describe(Parallel(8, 4, 2, 16, zero=1, recompute="full", sequence=True))
  'd8 t4 p2 u16, ZeRO 1, full, seq'
  """
  chunks = f"v{parallel.interleave}" if parallel.interleave > 1 else ""
  sizes = f"d{parallel.data} t{parallel.tensor} p{parallel.pipeline}{chunks}"
  words = [f"{sizes} u{parallel.microbatches}", f"ZeRO {parallel.zero}"]
  words += [] if parallel.recompute == "none" else [parallel.recompute]
  return ", ".join([*words, *(["seq"] if parallel.sequence else [])])
