"""Whether all points of a sweep fit int64, shown from bounds before it runs."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np

from figs_jax.engine.int64 import INT64_MAX, Interval
from figs_jax.engine.sweeps.points import MEANS, Points

_MOST = 2000  # boxes that are looked into


def reach(points: Points) -> dict[str, list[Interval]]:
  """Bounds of every field, sums over the layers included, box by box.

  Bounds of the whole product may be wide, as they combine the extremes of all
  axes and of terms that depend on each other. Where they do not fit, the
  product is cut into ever smaller boxes until those of each do, or a single
  point does not.

  Raises:
    ValueError: a result of a possible point, or an integer on the way to it,
      does not fit int64, or the boxes are too many.
  """
  found: dict[str, list[Interval]] = {}
  box = tuple((0, size) for size in points.sizes)
  boxes = [box]
  for _ in range(_MOST):
    if not boxes:
      return found
    box = boxes.pop()
    bounds = _bounds(points, box)
    lengths = [stop - start for start, stop in box]
    if all(bound.peak <= INT64_MAX for bound in bounds.values()):
      for name, bound in bounds.items():
        found.setdefault(name, []).append(bound)
    elif math.prod(lengths) == 1:
      _refuse(points, box, bounds)
    else:
      axis = int(np.argmax(lengths))
      start, stop = box[axis]
      half = (start + stop) // 2
      boxes += [
        (*box[:axis], part, *box[axis + 1 :])
        for part in ((half, stop), (start, half))
      ]
  raise ValueError(
    f"sweep at about {points.say(_first(points, box))}: cannot show that all is"
    " below 2^63; sweep smaller sizes or fewer values at a time"
  )


def _bounds(points: Points, box: Any) -> dict[str, Interval]:
  """Of the points of a box, possible or not."""
  part = [slice(*span) for span in box]
  values = {}
  for name, table in points.values.items():
    here = (x if n > 1 else slice(None) for x, n in zip(part, table.shape))
    values[name] = table[tuple(here)]
  of_layers = [
    _gemm(points, {k: x[..., i % x.shape[-1]] for k, x in values.items()})
    for i in range(max(points.layers, 1))
  ]
  if not points.layers:
    return of_layers[0]
  return {
    name: functools.reduce(operator.add, (found[name] for found in of_layers))
    for name in of_layers[0]
  }


def _gemm(points: Points, values: dict[str, np.ndarray]) -> dict[str, Interval]:
  """Of one layer, as often as it counts; means weighed by time."""
  numbers = {name: Interval.of(x) for name, x in values.items()}
  found = points.machine(numbers)
  count = numbers["count"]
  time = count * found["cycles"]
  return {
    name: x + 0 * time if name in MEANS else count * x
    for name, x in found.items()
  }


def _first(points: Points, box: Any) -> np.ndarray:
  at = [start for start, _ in box]
  return np.array([np.ravel_multi_index(at, points.sizes)])


def _refuse(points: Points, box: Any, bounds: dict[str, Interval]) -> None:
  """Raises ValueError for a point, unless it is impossible."""
  number = _first(points, box)
  if not points.allowed(number)[0]:
    return
  for is_result in (True, False):
    for name, bound in bounds.items():
      if is_result and isinstance(bound.most, int) and bound.most > INT64_MAX:
        why = f"{name} = {bound.most} does not fit int64"
      elif not is_result and bound.peak > INT64_MAX:
        why = f"{name} needs {bound.peak} on the way, past int64"
      else:
        continue
      raise ValueError(
        f"sweep at {points.say(number)}: {why}; sweep smaller sizes"
      )
