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

from typing import Any

from figs_jax.engine.int64 import ceil_div, larger

# The parts that add up to `cycles`.
PARTS = (
  "compute",
  "fill",
  "stall_weights",
  "stall_exchange",
  "stall_in",
  "stall_out",
  "stall_dram",
)


def schedule(
  folds: Any,
  T: Any,
  load: Any,
  fill: Any,
  overlap: str,
  *,
  exchange: Any = 1,
  ports_in: Any = 1,
  ports_out: Any = 1,
) -> dict[str, Any]:
  """The parts of the cycles of an array, but for the memory's bound.

  Args:
    folds: F.
    T: vectors streamed per fold.
    load: WL.
    fill: cycles from a fold's last vector to its last result.
    overlap: "none", "weights" or "full".
    exchange: cycles a vector's exchange takes, kappa of the FIGS array.
    ports_in: cycles in which a vector enters.
    ports_out: cycles in which a vector's results leave.

  >>> parts = schedule(2, 10, 4, 3, "none", ports_in=2)
  >>> [int(parts[name]) for name in ("compute", "stall_in", "stall_weights")]
  [20, 20, 8]
  """
  sizes = T, load, fill, overlap
  slow = {"exchange": exchange, "ports_in": ports_in, "ports_out": ports_out}
  parts = streams(folds, *sizes, **slow)
  for name, value in once(*sizes, **slow).items():
    parts[name] = parts[name] + value
  return parts


def streams(
  folds: Any,
  T: Any,
  load: Any,
  fill: Any,
  overlap: str,
  *,
  exchange: Any = 1,
  ports_in: Any = 1,
  ports_out: Any = 1,
) -> dict[str, Any]:
  """The parts that are proportional to F, of folds that are all alike.

  The parts of unlike folds add up to those of an array, with `once` of the last
  fold. Arguments are those of `schedule`.

  >>> unlike = [streams(1, 10, 4, 3, "full", exchange=k) for k in (1, 3)]
  >>> [int(part["stall_exchange"]) for part in unlike]
  [0, 20]
  """
  fed = larger(exchange, ports_in)
  interval = larger(fed, ports_out)
  stream = folds * T
  if overlap == "none":
    waits = folds * load
  else:
    waits = folds * _wait(interval * T, load, fill, overlap)
  return {
    "compute": stream,
    "fill": (0 if overlap == "full" else 1) * folds * fill,
    "stall_weights": waits,
    "stall_exchange": stream * (exchange - 1),
    "stall_in": stream * (fed - exchange),
    "stall_out": stream * (interval - fed),
  }


def once(
  T: Any,
  load: Any,
  fill: Any,
  overlap: str,
  *,
  exchange: Any = 1,
  ports_in: Any = 1,
  ports_out: Any = 1,
) -> dict[str, Any]:
  """The parts that are charged once, for the first load and the last fold.

  Arguments are those of `schedule`, of the last fold.

  >>> once(10, 4, 3, "full")
  {'stall_weights': 4, 'fill': 3}
  """
  if overlap == "none":
    return {}
  if overlap == "full":
    return {"stall_weights": load, "fill": fill}
  interval = larger(larger(exchange, ports_in), ports_out)
  return {"stall_weights": load - _wait(interval * T, load, fill, overlap)}


def _wait(stream: Any, load: Any, fill: Any, overlap: str) -> Any:
  """What remains of the load when the array is free for the next fold."""
  return larger(load - stream - (fill if overlap == "weights" else 0), 0)


def bounded(
  parts: dict[str, Any], dram_bytes: Any, dram_bw: Any
) -> dict[str, Any]:
  """The parts with `stall_dram`, and `cycles`, their sum.

  >>> int(bounded({"compute": 5, "fill": 1}, 100, 10)["stall_dram"])
  4
  """
  on_chip = sum(parts.values())
  stall = larger(ceil_div(dram_bytes, dram_bw) - on_chip, 0)
  return parts | {"stall_dram": stall, "cycles": on_chip + stall}
