"""What crosses the ports of an array, and how fast it can be at best.

A weight-stationary array that takes I values per cycle and holds O outputs does
at most I O (n / m) MACs of an n:m weight per cycle, since each output needs n
of every m inputs. With P multipliers its utilisation is at most

  min(1, I O (n / m) / P)                                                    (1)

so that a sparse engine has to take more inputs (VEGETA) or hold more outputs
(FIGS). `ledger` shows the cost of each, and `dense_peers` are the arrays to
compare with.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.spec import Engine, text_of, unboxed
from figs_jax.engine.spec_text import parse


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

  >>> utilisation_bound(32, 16, 0.25, 512)  # a dense array, 1:4 weights
  0.25
  >>> utilisation_bound(32, 64, 0.25, 512)
  1.0
  """
  work = np.asarray(inputs) * np.asarray(outputs) * np.asarray(density)
  return unboxed(np.minimum(1.0, work / np.asarray(multipliers)))


def dense_peers(
  engine: Engine | str, ideal: bool = False
) -> tuple[Engine, ...]:
  """The dense arrays that an engine is to be compared with.

  Systolic arrays of every dataflow and shape with as many multipliers, behind
  an input port as wide, and with the same overlap, output port, memory and
  clock. A layer's speed-up over the fastest of them is what sparse hardware
  gains, and not what is regained from a badly chosen shape.

  Args:
    engine: Array with scalar fields, or its spec.
    ideal: Whether the arrays compress N:M at no cost, as no hardware does; the
      fastest of them bounds what an engine of that size could gain.

  Returns:
    The arrays; none for an engine without multipliers to count.

  >>> peers = dense_peers("figs:4x2")
  >>> len(peers), str(peers[0])
  (12, 'ws:1x8:sparse=false:bw_in=4')
  """
  engine = parse(engine)
  parts, width = engine.parts(), engine.input_width
  if parts is None or width is None:
    return ()
  names = ("overlap", "bw_out", "dram_bw", "clock")
  shared = {x: getattr(engine, x) for x in names if hasattr(engine, x)}
  keys = {"sparse": ideal, "bw_in": width} | shared
  text = "".join(f":{key}={text_of(value)}" for key, value in keys.items())
  size = int(parts.multipliers)
  shapes = [(r, size // r) for r in range(1, size + 1) if size % r == 0]
  arrays = [
    parse(f"{dataflow}:{rows}x{cols}{text}")
    for dataflow in ("ws", "is", "os")
    for rows, cols in shapes
  ]
  return tuple(dataclasses.replace(array, name="") for array in arrays)


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
  >>> ledger(parse("figs:32x16"), 1, 2)
  {'inputs': 64, 'outputs': 128}
  """
  values = engine.port_values(n, m)
  return {
    "inputs": unboxed(in_bytes * values["inputs"]),
    "outputs": unboxed(out_bytes * values["outputs"]),
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
  return unboxed(np.asarray(m) / np.asarray(n) + np.asarray(exposed))
