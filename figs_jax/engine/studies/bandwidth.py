"""What crosses the ports of an array, and how fast it can be at best.

A weight-stationary array that takes I values per cycle and holds O outputs does
at most I O (n / m) MACs of an n:m weight per cycle, since each output needs n
of every m inputs. With P multipliers its utilisation is at most

  min(1, I O (n / m) / P)                                                    (1)

so that a sparse engine has to take more inputs (VEGETA) or hold more outputs
(FIGS). `ledger` shows the cost of each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.spec import Engine


def utilisation_bound(
  inputs: ArrayLike,
  outputs: ArrayLike,
  density: ArrayLike,
  multipliers: ArrayLike,
) -> Any:
  """The bound (1).

  Args:
    inputs: Values that enter per cycle, I.
    outputs: Outputs whose weights the array holds, O.
    density: Share of weights kept, n / m if m divides K.
    multipliers: Number of multipliers, P.

  >>> float(utilisation_bound(32, 16, 0.25, 512))  # a dense array, 1:4 weights
  0.25
  >>> float(utilisation_bound(32, 64, 0.25, 512))
  1.0
  """
  work = np.asarray(inputs) * np.asarray(outputs) * np.asarray(density)
  return np.minimum(1.0, work / np.asarray(multipliers))


def ledger(
  engine: Engine,
  n: ArrayLike = 1,
  m: ArrayLike = 1,
  in_bytes: int = 2,
  out_bytes: int = 4,
) -> dict[str, Any]:
  """Bytes per cycle that cross sufficiently wide ports.

  A sparse FIGS array needs the inputs of a dense one and writes m / n times its
  partial sums; VEGETA does the opposite. At 32 x 16 with bf16 in and fp32 out,
  1:2 and 1:4 take 64 and 64 B in on FIGS against 128 and 256 on VEGETA, and 128
  and 256 B out against 64 and 64. The cost moves, but does not vanish.

  Args:
    engine: FIGS or VEGETA array.
    n: Weights kept of every m along K.
    m: Length of a group.
    in_bytes: Bytes of an activation.
    out_bytes: Bytes of a partial sum.

  Raises:
    ValueError: If the engine is of another kind or cannot run the pattern.

  >>> from figs_jax.engine.spec_text import parse
  >>> [int(x) for x in ledger(parse("figs:32x16"), 1, 2).values()]
  [64, 128]
  """
  values = engine.port_values(n, m)
  return {
    "inputs": in_bytes * values["inputs"],
    "outputs": out_bytes * values["outputs"],
  }


def iso_bandwidth_speedup(
  n: ArrayLike, m: ArrayLike, exposed: ArrayLike = 0.40
) -> Any:
  """Speed-up of an overlapped FIGS array at a baseline's input bandwidth.

  A sparse array that holds one output per column needs the inputs of m / n
  vectors where FIGS needs one, hence m / n cycles per vector through the same
  port. If it also waits o cycles for each fold of T vectors (its load, filling
  and draining), which FIGS hides, the ratio is m / n + o / T.

  The FiGS slides claim up to 2.4 at 1:2 and 4.4 at 1:4, over engines and at
  settings that they do not give. o / T = .40 fits both: one parameter chosen
  for two points, which predicts neither. If both arrays overlap, the ratios are
  2 and 4.

  Args:
    n: Weights kept of every m along K.
    m: Length of a group.
    exposed: Share of waiting in the baseline, o / T.

  >>> iso_bandwidth_speedup(1, np.array([2, 4])).tolist()
  [2.4, 4.4]
  """
  return np.asarray(m) / np.asarray(n) + np.asarray(exposed)
