"""What crosses the ports of an array, and how fast it can be at best.

A weight-stationary array that takes I values per cycle and holds O outputs
does, per cycle, at most I O (n / m) MACs of an n:m weight: each output needs n
of every m inputs. With P multipliers its utilisation is at most

  min(1, I O (n / m) / P)

so that a sparse engine has to take more inputs (VEGETA) or hold more outputs
(FIGS). Which of the two moves is what `ledger` shows.
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
  """The bound above.

  Args:
    inputs: I, values that enter per cycle.
    outputs: O, outputs whose weights the array holds.
    density: n / m.
    multipliers: P.

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
  """Bytes that cross the ports per cycle, if those are wide enough.

  A sparse FIGS array needs the inputs of a dense one and writes m / n times its
  partial sums; VEGETA the other way round. At 32 x 16 with bf16 in and fp32
  out, 1:2 and 1:4: 64 and 64 against 128 and 256 B in, 128 and 256 against 64
  and 64 B out. So the cost moves; it does not go away.

  Args:
    engine: a FIGS or a VEGETA array.
    n: weights kept of every m along K.
    m: group length.
    in_bytes: bytes of an activation.
    out_bytes: bytes of a partial sum.

  Raises:
    ValueError: the engine cannot run the pattern.

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
  """An overlapped FIGS array over a baseline with as wide an input port.

  A sparse array that holds one output per column takes m / n vectors' worth of
  inputs for what FIGS does with one, hence m / n cycles per vector through the
  same port. If it also waits o cycles for each fold of T vectors (its load,
  filling and draining), and FIGS hides them, the ratio is m / n + o / T.

  The FiGS slides claim up to 2.4 at 1:2 and 4.4 at 1:4, over engines and at
  settings that they do not give. o / T = .40 fits both: one parameter that we
  chose for two points. It is no prediction of either. If both overlap, the
  ratios are 2 and 4.

  Args:
    n: weights kept of every m along K.
    m: group length.
    exposed: o / T of the baseline.

  >>> iso_bandwidth_speedup(1, np.array([2, 4])).tolist()
  [2.4, 4.4]
  """
  return np.asarray(m) / np.asarray(n) + np.asarray(exposed)
