"""From folds to cycles: what streams, what fills, and what waits for what.

An array works through F folds. In each, WL cycles load the stationary operand,
T vectors stream through at one per II cycles, and `fill` cycles pass until the
last result has left:

  cycles = F (WL + II T + fill)                    overlap "none"
           WL + F (II T + fill)                    "weights"
           WL + F max(II T, WL) + fill             "full"

and the memory bounds them from below: ceil(DRAM bytes / bytes per cycle).
"full" charges a last load that no fold follows, so that for one short fold
(F = 1, T < WL) it exceeds "none".
"""

from __future__ import annotations

from typing import Any

from figs_jax.engine.exact import ceil_div, larger

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
  fed = larger(exchange, ports_in)
  interval = larger(fed, ports_out)
  stream = folds * T
  if overlap == "none":
    waits, fills = folds * load, folds * fill
  elif overlap == "weights":
    waits, fills = load, folds * fill
  else:
    waits = load + folds * larger(load - interval * T, 0)
    fills = fill
  return {
    "compute": stream,
    "fill": fills,
    "stall_weights": waits,
    "stall_exchange": stream * (exchange - 1),
    "stall_in": stream * (fed - exchange),
    "stall_out": stream * (interval - fed),
  }


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
