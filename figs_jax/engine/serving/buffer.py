"""Which part of a nested model a buffer of B bytes should keep.

A layer that keeps its first d slices takes C(d) bytes and saves V(d), summed
over a mix of queries; one d is chosen for each layer, a knapsack of multiple
choice. On the upper hull of (C, V) the steps of a layer save ever less per
byte, so that the greedy order by density takes them from the left: a rank of
the weights before the next one. With a last step cut to what is left of B, the
greedy order is the optimum of the relaxed problem (Dantzig, 1957):

  greedy <= optimum <= bound < greedy up to the first step that does not fit
                               + what this step saves.                      (1)

`best_subgraph` also tries the later steps that still fit, and single layers.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine.int64 import INT64_MAX
from figs_jax.engine.serving.subgraph import NestedModel

OBJECTIVES = ("bytes", "latency")


class Subgraph(NamedTuple):
  """What a buffer keeps.

  Attributes:
    cached: Slices of each layer, int64 [..., L].
    size: Bytes in the buffer, int64 [...].
    saving: Bytes or cycles that the mix of queries saves, int64 [...].
    bound: Upper bound of the saving of any sub-graph that fits, int64 [...].
  """

  cached: np.ndarray
  size: np.ndarray
  saving: np.ndarray
  bound: np.ndarray

  @property
  def gap(self) -> Any:
    """How far the saving may be from the best: at most bound - saving."""
    return self.bound - self.saving


def savings(
  model: NestedModel, mix: Sequence[int], objective: str = "bytes"
) -> np.ndarray:
  """What keeping the first d slices of each layer saves, int64 [P + 1, L].

  Args:
    model: Nested model on an engine.
    mix: Number of queries at each point, [P].
    objective: "bytes" off chip, and hence their energy; or "latency", cycles.

  Raises:
    ValueError: If the mix is not P integers of at least 0, the objective is
      unknown, or a saving does not fit int64.

  >>> from figs_jax.engine.serving.subgraph import nested_model
  >>> rows = [{"name": "ff", "M": 1, "N": 64, "K": 64}]
  >>> model = nested_model(rows, "ws:8x8:dram_bw=1", "1:4,2:4")
  >>> savings(model, [1, 2]).tolist()
  [[0], [6912], [11520]]
  """
  queries = np.asarray(mix)
  most = len(model.points)
  if (
    queries.shape != (most,)
    or queries.dtype.kind not in "iu"
    or (queries < 0).any()
  ):
    raise ValueError(
      f"mix: expected {most} integers of at least 0, one per point, got {mix!r}"
    )
  if objective not in OBJECTIVES:
    raise ValueError(
      f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}"
    )
  # hit[d, p, l]: bytes of a query at point p that the first d slices hold.
  points = np.arange(1, most + 1)
  hit = model.weights[np.minimum(np.arange(most + 1)[:, None], points)]
  saved = hit
  if objective == "latency":
    moved = model.activations + model.weights[1:] - hit
    engine = model.engine
    memory = engine.memory_cycles(moved, engine.memory_bandwidth)
    busy = np.maximum(model.on_chip, memory)
    saved = busy[:1] - busy
  peak = int(saved.max(initial=0)) * int(queries.sum()) * saved.shape[-1]
  if peak > INT64_MAX:
    raise ValueError(
      f"mix: expected savings that fit int64, got up to {peak:,}; give smaller"
      " numbers of queries"
    )
  return np.einsum("p,dpl->dl", queries.astype(np.int64), saved)


def best_subgraph(
  model: NestedModel,
  buffer: Any,
  mix: Sequence[int] | None = None,
  objective: str = "bytes",
) -> Subgraph:
  """The sub-graph to keep in each buffer, greedily, with a bound of its gap.

  Args:
    model: Nested model on an engine.
    buffer: Bytes B of the buffer, integers [...].
    mix: Number of queries at each point, [P]. Defaults to one of each.
    objective: What is saved, "bytes" off chip or "latency" in cycles.

  Raises:
    ValueError: If a buffer is not an integer of at least 0, or as `savings`.

  >>> from figs_jax.engine.serving.subgraph import nested_model
  >>> rows = [{"name": x, "M": 1, "N": 64, "K": 64} for x in ("a", "b")]
  >>> model = nested_model(rows, "ws:8x8", "1:4,2:4")
  >>> best = best_subgraph(model, [0, 5000, 10000])
  >>> best.cached.tolist(), best.gap.tolist()
  ([[0, 0], [1, 1], [2, 2]], [0, 392, 0])
  """
  sizes = np.asarray(buffer)
  if sizes.dtype.kind not in "iu" or (sizes < 0).any():
    raise ValueError(
      f"buffer: expected bytes, integers of at least 0, got {buffer!r}"
    )
  shape, room = sizes.shape, sizes.reshape(-1).astype(np.int64)
  mix = [1] * len(model.points) if mix is None else mix
  values = savings(model, mix, objective)
  steps = _hull_steps(model.weights, values)
  cached = np.zeros((room.size, len(model.names)), np.int64)
  used, saving = np.zeros((2, room.size), np.int64)
  for layer, start, end, size, value in steps:
    takes = (cached[:, layer] == start) & (used + size <= room)
    cached[takes, layer] = end
    used += size * takes
    saving += value * takes
  _take_single_layers(model.weights, values, room, cached, used, saving)
  bound = _relaxed(steps, room)
  return Subgraph(
    cached.reshape(*shape, -1),
    *(x.reshape(shape) for x in (used, saving, bound)),
  )


def _hull_steps(
  sizes: np.ndarray, values: np.ndarray
) -> list[tuple[int, int, int, int, int]]:
  """(layer, from, to, bytes, saving), by falling density.

  Equal densities go by rank, then by falling size, so that large slices are
  placed while there is room.
  """
  steps = []
  for layer, (C, V) in enumerate(zip(sizes.T.tolist(), values.T.tolist())):
    hull = [0]
    for d in range(1, len(C)):
      if V[d] <= V[hull[-1]]:
        continue

      def below(b: int, a: int, d: int = d, C: list = C, V: list = V) -> bool:
        """Whether corner b lies below the line from a to d."""
        return (V[b] - V[a]) * (C[d] - C[a]) < (V[d] - V[a]) * (C[b] - C[a])

      while len(hull) > 1 and below(hull[-1], hull[-2]):
        hull.pop()
      hull.append(d)
    steps += [
      (layer, a, b, C[b] - C[a], V[b] - V[a]) for a, b in zip(hull, hull[1:])
    ]
  return sorted(steps, key=lambda x: (-Fraction(x[4], x[3]), x[1], -x[3], x[0]))


def _take_single_layers(
  sizes: np.ndarray,
  values: np.ndarray,
  room: np.ndarray,
  cached: np.ndarray,
  used: np.ndarray,
  saving: np.ndarray,
) -> None:
  """Replaces, in place, sub-graphs that save less than a single layer would."""
  order = np.argsort(sizes, axis=None, kind="stable")
  size, value = sizes.flat[order], values.flat[order]
  best = np.maximum.accumulate(value)
  last = np.searchsorted(size, room, side="right") - 1
  for i in np.flatnonzero(best[last] > saving):
    at = order[int(value[: last[i] + 1].argmax())]
    depth, layer = np.unravel_index(at, sizes.shape)
    cached[i] = 0
    cached[i, layer] = depth
    used[i], saving[i] = sizes[depth, layer], values[depth, layer]


def _relaxed(steps: Sequence[tuple[int, ...]], room: np.ndarray) -> np.ndarray:
  """The optimum if a step may be taken in part, rounded down, (1)."""
  sizes = [0, *itertools.accumulate(step[3] for step in steps)]
  values = [0, *itertools.accumulate(step[4] for step in steps)]
  bounds = []
  for B in room.tolist():
    whole = bisect.bisect_right(sizes, B) - 1
    bound = values[whole]
    if whole < len(steps):
      *_, size, value = steps[whole]
      bound += value * (B - sizes[whole]) // size
    bounds.append(bound)
  return np.array(bounds, np.int64)
