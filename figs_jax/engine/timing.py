"""From folds to cycles: what streams, what fills, and what waits for what.

An array works through F folds. In each, WL cycles load the stationary operand,
T vectors stream through at one per II cycles, and `fill` cycles pass until the
last result has left:

  cycles = F (WL + II T + fill)                          overlap "none"
           WL + F (II T + fill) + (F - 1) wait           "weights"
           WL + F max(II T, WL) + fill                   "full"

where wait = max(WL - II T - fill, 0) is what remains of a load when a fold has
drained; it is 0 where fill >= WL, as in classical arrays and VEGETA. The memory
bounds all of them from below: ceil(DRAM bytes / bytes per cycle). "full"
charges a last load that no fold follows, so that for one short fold (F = 1,
T < WL) it exceeds "none".
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from figs_jax.engine.int64 import ceil_div, larger

# The parts that the array itself decides.
ON_CHIP = (
  "compute",
  "fill",
  "stall_weights",
  "stall_exchange",
  "stall_input",
  "stall_output",
)
# The parts that add up to `cycles`.
PARTS = (*ON_CHIP, "stall_dram", "launch")


class Fold(NamedTuple):
  """What one fold does.

  Attributes:
    T: Vectors that stream through.
    load: Cycles that load the stationary operand, WL.
    fill: Cycles from the last vector to its last result.
    overlap: "none", "weights" or "full".
    exchange: Cycles of a vector's exchange, kappa of the FIGS array.
    enter: Cycles in which a vector enters.
    leave: Cycles in which a vector's results leave.
  """

  T: Any
  load: Any
  fill: Any
  overlap: str
  exchange: Any = 1
  enter: Any = 1
  leave: Any = 1

  @property
  def interval(self) -> Any:
    """Cycles from one vector to the next, II."""
    return larger(larger(self.exchange, self.enter), self.leave)

  @property
  def wait(self) -> Any:
    """What remains of the load when the array is free for the next fold."""
    drained = self.fill if self.overlap == "weights" else 0
    return larger(self.load - self.interval * self.T - drained, 0)


def schedule(folds: Any, fold: Fold) -> dict[str, Any]:
  """The parts of the cycles of F equal folds, without the memory's bound.

  >>> parts = schedule(2, Fold(10, load=4, fill=3, overlap="none", enter=2))
  >>> [int(parts[x]) for x in ("compute", "stall_input", "stall_weights")]
  [20, 20, 8]
  """
  parts = streams(folds, fold)
  for name, value in once(fold).items():
    parts[name] = parts[name] + value
  return parts


def streams(folds: Any, fold: Fold) -> dict[str, Any]:
  """The parts that are proportional to the number F of equal folds.

  Those of unlike folds add up to those of an array, with `once` of the last.

  >>> unlike = [streams(1, Fold(10, 4, 3, "full", exchange=k)) for k in (1, 3)]
  >>> [int(parts["stall_exchange"]) for parts in unlike]
  [0, 20]
  """
  stream = folds * fold.T
  fed = larger(fold.exchange, fold.enter)
  serial = fold.overlap == "none"
  return {
    "compute": stream,
    "fill": (0 if fold.overlap == "full" else 1) * folds * fold.fill,
    "stall_weights": folds * (fold.load if serial else fold.wait),
    "stall_exchange": stream * (fold.exchange - 1),
    "stall_input": stream * (fed - fold.exchange),
    "stall_output": stream * (larger(fed, fold.leave) - fed),
  }


def once(last: Fold) -> dict[str, Any]:
  """The parts that are charged once: the first load, and the last fold's.

  >>> once(Fold(10, load=4, fill=3, overlap="full"))
  {'stall_weights': 4, 'fill': 3}
  """
  if last.overlap == "none":
    return {}
  if last.overlap == "full":
    return {"stall_weights": last.load, "fill": last.fill}
  return {"stall_weights": last.load - last.wait}


def bytes_of(values: Any, itemsize: int | Fraction) -> Any:
  """Whole bytes of values that take `itemsize` bytes each, ceil(values size).

  >>> bytes_of(3, 2), bytes_of(3, Fraction(1, 2))
  (6, 2)
  """
  size = Fraction(itemsize)
  if size.denominator == 1:
    return size.numerator * values
  return ceil_div(size.numerator * values, size.denominator)


def bounded(
  parts: dict[str, Any], dram_bytes: Any, dram_bw: Any, launch: Any = 0
) -> dict[str, Any]:
  """The parts with `stall_dram` and `launch`, and `cycles`, their sum.

  Args:
    parts: Parts on chip.
    dram_bytes: Bytes to and from memory.
    dram_bw: Bytes per cycle.
    launch: Cycles that every call takes before it starts.

  >>> int(bounded({"compute": 5, "fill": 1}, 100, 10)["stall_dram"])
  4
  """
  on_chip = sum(parts.values())
  stall = larger(ceil_div(dram_bytes, dram_bw) - on_chip, 0)
  launch = launch + 0 * stall
  cycles = on_chip + stall + launch
  return parts | {"stall_dram": stall, "launch": launch, "cycles": cycles}
