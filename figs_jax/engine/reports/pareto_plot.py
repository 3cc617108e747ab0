"""The front of a report's designs: cycles, multipliers or area, traffic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from figs_jax.engine.figures import (
  COLOURS,
  check_number,
  engine_style,
  panels,
)
from figs_jax.engine.reports.rows import Total
from figs_jax.engine.spec import Engine

_FEW = 12  # designs that are all numbered
_NAMED = 6  # points of the fronts that are numbered else
_OFFSETS = ((7, 7), (-7, -7), (7, -7), (-7, 7))  # points, by group


def pareto(report: Any) -> Any:
  """Cycles against multipliers or area, and against bytes, the fronts marked.

  A point is an engine or a design of a sweep. Those that no other of the same
  workload and pattern beats in both axes are filled, and a line steps along
  them; some are numbered and named. The first panel shows the multipliers, or
  the area if the report has it, the second the memory traffic. Whole models
  count norms, softmax and the like too.

  Args:
    report: Report of several designs. Arrays beside processors are compared in
      nanoseconds of their clocks. The multipliers of a processor are unknown,
      so that the first panel lacks it.

  Raises:
    ValueError: If matplotlib is missing, or there are too many workloads and
      patterns.

  >>> from figs_jax.engine import report
  >>> rows = [{"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "1:8"}]
  >>> axes = pareto(report(rows, ["ws"], axes="rows=8,16,32")).axes
  >>> [ax.get_ylabel() for ax in axes]
  ['multipliers', 'memory traffic, bytes']
  """
  totals, unit = report.totals, report.totals[0].unit
  xs = [float(total.whole_cycles) for total in totals]
  if any(total.unit != unit for total in totals):
    unit = "ns"
    xs = [float(e.nanoseconds(x)) for e, x in zip(report.engines, xs)]
  shown: list[tuple[str, list[Any]]] = [
    ("memory traffic, bytes", [float(x.dram_bytes) for x in totals])
  ]
  sizes = [_size(engine, report.area) for engine in report.engines]
  if any(size is not None for size in sizes):
    label = "area, mm²" if report.area else "multipliers"
    shown.insert(0, (label, sizes))
  groups = _groups(totals)
  check_number("workloads and patterns", len(groups), len(COLOURS))
  figure, axes = panels(4.6 * len(shown) + 3.0, 4.4, 1, len(shown))
  numbers: dict[int, int] = {}
  for ax, (label, ys) in zip(axes, shown):
    for place, (name, members) in enumerate(groups.items()):
      known = [i for i in members if ys[i] is not None]
      front = _front([(xs[i], ys[i], i) for i in known])
      _draw(ax, xs, ys, front, known, engine_style(place), name)
      # All of a few designs, else some of the front.
      picked = known
      if len(totals) > _FEW:
        picked = _picked(front, max(_NAMED // len(groups), 2))
      for i in picked:
        number = numbers.setdefault(i, len(numbers) + 1)
        ax.annotate(
          str(number), (xs[i], ys[i]), xytext=_OFFSETS[place % len(_OFFSETS)],
          textcoords="offset points", fontsize=7, ha="center", va="center",
        )  # fmt: skip
    _scale(ax.xaxis, xs)
    _scale(ax.yaxis, [y for y in ys if y is not None])
    whole = "whole model" if any(total.non_gemm for total in totals) else ""
    ax.set_xlabel(" of the ".join(filter(None, (unit, whole))))
    ax.set_ylabel(label)
    ax.margins(0.08)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
  handles, labels = axes[-1].get_legend_handles_labels()
  of = {i: name for name, members in groups.items() for i in members}
  for i, number in numbers.items():
    handles.append(axes[0].plot([], [], linestyle="")[0])
    labels.append(
      ", ".join(filter(None, (f"{number}  {totals[i].engine}", of[i])))
    )
  figure.legend(
    handles, labels, loc="outside right upper", fontsize=7, frameon=False,
    title="filled: none beats it in both", title_fontsize=8, handlelength=1,
  )  # fmt: skip
  return figure


def _groups(totals: Sequence[Total]) -> dict[str, list[int]]:
  """Places of the totals that compute the same, by what sets them apart."""
  names = [
    name
    for name in ("workload", "pattern", "fuse")
    if len({getattr(total, name) for total in totals}) > 1
  ]
  groups: dict[str, list[int]] = {}
  for place, total in enumerate(totals):
    label = ", ".join(getattr(total, name) for name in names)
    groups.setdefault(label, []).append(place)
  return groups


def _draw(
  ax: Any,
  xs: Sequence[float],
  ys: Sequence[Any],
  front: Sequence[int],
  members: Sequence[int],
  style: dict[str, str],
  name: str,
) -> None:
  """The points of a group, those of its front filled on a line of steps."""
  rest = [i for i in members if i not in front]
  ax.plot(
    [xs[i] for i in rest], [ys[i] for i in rest], linestyle="", markersize=4,
    markerfacecolor="none", alpha=0.6, zorder=2, **style,
  )  # fmt: skip
  line = [xs[i] for i in front], [ys[i] for i in front]
  ax.plot(
    *line, drawstyle="steps-post", linewidth=1, zorder=1, color=style["color"]
  )
  ax.plot(
    *line, linestyle="", markersize=6, markeredgecolor="black", zorder=3,
    label=name or None, **style,
  )  # fmt: skip


def _scale(axis: Any, values: Sequence[float]) -> None:
  """A logarithmic axis if values span much, with plain numbers at ticks."""
  from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

  if min(values) > 0 and max(values) > 4 * min(values):
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    steps = (1,) if max(values) > 100 * min(values) else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(EngFormatter(sep=""))


def _size(engine: Engine, area: Any) -> float | None:
  """The area in mm², or the number of multipliers; None if unknown."""
  parts = engine.parts()
  if parts is None:
    return None
  if area is None:
    return float(parts.multipliers)
  return float(sum(area.square_millimetres(parts).values()))


def _front(points: Sequence[tuple[float, float, int]]) -> list[int]:
  """The points (x, y, place) that no other beats in both, by growing x."""
  front, least = [], math.inf
  for _, y, place in sorted(points):
    if y < least:
      front.append(place)
      least = y
  return front


def _picked(front: Sequence[int], most: int) -> list[int]:
  """A few points that stand for a front, its ends among them."""
  last, many = len(front) - 1, min(most, len(front))
  return [front[round(i * last / max(many - 1, 1))] for i in range(many)]
