"""Pictures of a report; matplotlib is needed, and imported, only here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from figs_jax.engine._cost import operands
from figs_jax.engine.figures import (
  COLOURS,
  LAYERS,
  LINES,
  MARKERS,
  check_number,
  engine_style,
  panels,
)
from figs_jax.engine.layers import read_pattern
from figs_jax.engine.reports._report import Report
from figs_jax.engine.reports.pareto_plot import pareto
from figs_jax.engine.reports.rows import Row, Total
from figs_jax.engine.reports.text import plain, times
from figs_jax.engine.spec import UNLIMITED, Engine, Gemm
from figs_jax.engine.timing import PARTS

_LENGTH = re.compile(r", (?:seq|context) \d+")  # of a workload's label
_MOST = 40  # bars or lines that can be told apart
_PANELS = 9


def speedup(report: Report) -> Any:
  """Speed-up against sparsity, a line per engine: the matplotlib figure.

  The axis of patterns shows m/n, doubling from tick to tick; the dotted line is
  m/n itself, what a model of nothing but sparse layers could gain at most. Of
  whole models, marks are the whole pass and thin lines its products alone.

  Args:
    report: Report of workloads that differ in the pattern of their sparse
      layers.

  Raises:
    ValueError: If matplotlib is missing, a workload mixes patterns, or there
      are too many engines for one picture.

  >>> from figs_jax.engine import report
  >>> rows = [{"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "1:8"}]
  >>> speedup(report(rows, ["ws"])).axes[0].get_ylabel()
  'modelled speed-up'
  """
  labels = _labels(report.totals, several=("workload", "fuse"))
  places = [_ratio(total) for total in report.totals]
  figure, ax = _speedup_lines(report.totals, labels, places)
  _pattern_axis(ax, report.totals)
  xs = sorted(set(places))
  ax.plot(xs, xs, color="0.5", linestyle=":", linewidth=1, label="m/n")
  ax.set_title(f"over {report.baseline}", fontsize=9, color="0.3")
  _legend(figure, ax)
  return figure


def length(report: Report) -> Any:
  """Speed-up against sequence length, a line per engine and fusion.

  Of whole models, marks are the whole pass and thin lines its products alone.

  Args:
    report: Report of workloads that differ in the length of their sequences.

  Raises:
    ValueError: If matplotlib is missing, a length is unknown, or there are too
      many lines for one picture.

  >>> from figs_jax.engine import Forward, Layers, report
  >>> head = [{"name": "qk", "M": 64, "N": 64, "K": 8}]
  >>> head += [{"name": "av", "M": 64, "N": 8, "K": 64}]
  >>> tables = {"net, seq 64": Layers.of(head, Forward((), seq=64))}
  >>> made = report(tables, ["ws:8x8:dram_bw=4"], fuse="flat")
  >>> length(made).axes[0].get_xlabel()
  'tokens of a sequence'
  """
  totals = report.totals
  if not all(total.seq for total in totals):
    raise ValueError(
      "speed-up over sequence length: expected workloads of known length; sweep"
      " seq or context of a model"
    )
  stems = [_LENGTH.sub("", total.workload) for total in totals]
  named = [total._replace(workload=stem) for total, stem in zip(totals, stems)]
  labels = _labels(named, several=("workload", "pattern", "fuse"))
  places = [float(total.seq) for total in totals]
  figure, ax = _speedup_lines(totals, labels, places)
  ax.set_xscale("log", base=2)
  ticks = sorted(set(places))
  ax.set_xticks(ticks, [_thousands(int(tick)) for tick in ticks])
  ax.set_xticks([], minor=True)
  ax.set_xlabel("tokens of a sequence")
  title = f"{stems[0]}\nover {report.baseline}".strip()
  ax.set_title(title.replace("$", r"\$"), fontsize=9, color="0.3")
  _legend(figure, ax)
  return figure


def roofline(report: Report, title: str = "") -> Any:
  """The layers under the roofs of each engine, a panel per engine.

  Both axes count the weights that a pattern leaves out, as data sheets do for
  2:4, so that a layer twice as high takes half the time. A chip with units for
  2:4 has a second roof, whether the engine uses them or not; an array has one
  for each pattern that it runs faster. Where its memory is unlimited, the panel
  says so.

  Args:
    report: Report of one workload.
    title: Name of the layers' model. Defaults to the workload's label.

  Raises:
    ValueError: If matplotlib is missing, or there are too many engines.

  >>> from figs_jax.engine import report
  >>> rows = [{"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "1:8"}]
  >>> roofline(report(rows, ["ws", "tpu:v5e"])).axes[0].get_title()
  'ws, 1 GHz'
  """
  count = len(report.totals)
  check_number("engines", count, _PANELS)
  across = 2 if count == 4 else min(count, 3)
  down = math.ceil(count / across)
  figure, axes = panels(
    2.6 + 2.7 * across, 1.0 + 2.7 * down, down, across, sharey=True
  )
  styles = _styles(report.layers[0])
  given = [
    operands(engine, report.itemsize, None, report.dtype)
    for engine in report.engines
  ]
  roofs = [
    _roofs(one.engine, one.itemsize, rows)
    for one, rows in zip(given, report.layers)
  ]
  marks = [
    [_mark(row, engine) for row in rows]
    for engine, rows in zip(report.engines, report.layers)
  ]
  points = [mark for each in marks for mark in each]
  knees = [
    peak / slope
    for peaks, slope in roofs
    if slope != math.inf
    for peak in peaks.values()
  ]
  xs = [x for x, _ in points]
  span = _decades(min(xs), max(xs + knees))
  tops = [peak for peaks, _ in roofs for peak in peaks.values()]
  axes[0].set_ylim(*_decades(min(y for _, y in points), max(tops)))
  for ax, engine, rows, each, roof in zip(
    axes, report.engines, report.layers, marks, roofs
  ):
    for row, (x, y) in {_key(r): (r, m) for r, m in zip(rows, each)}.values():
      ax.plot(
        x, y, linestyle="", zorder=3, markerfacecolor="none",
        markeredgewidth=1.6, **styles[_key(row)],
      )  # fmt: skip
    _panel(ax, engine, *roof, span)
  title = title or report.totals[0].workload
  if title:
    figure.suptitle(f"Rooflines: {title}".replace("$", r"\$"), fontsize=10)
  for place in range(count, len(axes)):
    axes[place].set_visible(False)
    axes[place - across].tick_params(labelbottom=True)
  figure.supxlabel("FLOP per byte of memory traffic, as if dense", fontsize=9)
  figure.supylabel("TFLOP/s, as if dense", fontsize=9)
  handles, labels = axes[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside right upper", fontsize=8, frameon=False
  )
  return figure


def breakdown(report: Report) -> Any:
  """Parts of the cycles of the whole model, a bar per engine.

  Hatched parts are those beside the products. Of whole models both speed-ups
  are named, that of the products alone in brackets.

  Raises:
    ValueError: If matplotlib is missing, or there are too many bars.

  >>> from figs_jax.engine import report
  >>> rows = [{"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "1:8"}]
  >>> breakdown(report(rows, ["ws"])).axes[0].get_xlabel()
  'share of the modelled cycles, %'
  """
  totals = report.totals
  check_number("bars", len(totals), _MOST)
  figure, ax = panels(8.4, 1.1 + 0.34 * len(totals))
  labels = _labels(totals, several=("workload", "pattern", "fuse"))
  places = list(range(len(totals)))
  left = [0.0] * len(totals)
  kinds = list(dict.fromkeys(k for total in totals for k in total.non_gemm))
  styles = [
    (part, colour, "") for part, colour in zip(PARTS, (*COLOURS, "0.6"))
  ]
  styles += [(kind, colour, "////") for kind, colour in zip(kinds, LAYERS)]
  for part, colour, hatch in styles:
    widths = [
      100 * (total.parts | total.non_gemm).get(part, 0) / total.whole_cycles
      for total in totals
    ]
    if not any(widths):
      continue
    ax.barh(
      places, widths, left=left, color=colour, height=0.7, edgecolor="white",
      linewidth=0.5, hatch=hatch, label=part.replace("_", " "),
    )  # fmt: skip
    left = [a + b for a, b in zip(left, widths)]
  for place, total in zip(places, totals):
    cycles = f"{plain(total.whole_cycles)} {total.unit}"
    text = f"{cycles}, {times(total.whole_speedup)}"
    products = f" ({times(total.speedup)})" if total.non_gemm else ""
    ax.annotate(
      text + products,
      (100, place),
      xytext=(6, 0),
      textcoords="offset points",
      va="center",
      fontsize=8,
    )
  ax.set_yticks(places, labels, fontsize=8)
  ax.set_ylim(len(totals) - 0.4, -0.6)
  ax.set_xlim(0, 100)
  ax.set_xlabel("share of the modelled cycles, %")
  ax.spines[["top", "right"]].set_visible(False)
  figure.legend(
    loc="outside upper center", ncols=len(PARTS), fontsize=8, frameon=False
  )
  return figure


def _speedup_lines(
  totals: Sequence[Total], labels: Sequence[str], places: Sequence[float]
) -> tuple[Any, Any]:
  """A figure with a line of speed-ups for each label, and its axes."""
  lines: dict[str, list[tuple[float, Total]]] = {}
  for label, place, total in zip(labels, places, totals):
    lines.setdefault(label, []).append((place, total))
  check_number("lines", len(lines), _MOST)
  figure, ax = panels(7.6, max(4.2, 0.19 * len(lines) + 1))
  speedups = [1.0]
  for place, (label, points) in enumerate(lines.items()):
    points.sort(key=lambda point: point[0])
    xs = [x for x, _ in points]
    style = engine_style(place)
    marker = style.pop("marker")
    style["linestyle"] = LINES[place // len(COLOURS) % len(LINES)]
    wholes = [total.whole_speedup for _, total in points]
    products = [total.speedup for _, total in points]
    ax.plot(xs, wholes, marker=marker, markersize=5, label=label, **style)
    if any(total.non_gemm for _, total in points):
      ax.plot(xs, products, linewidth=0.8, alpha=0.6, **style)
    speedups += wholes + products
  if any(total.non_gemm for total in totals):
    ax.plot([], [], color="0.4", linewidth=0.8, label="products alone")
  _log_axis(ax, min(speedups) * 0.93, max(speedups) * 1.08)
  ax.set_ylabel("modelled speed-up")
  ax.grid(color="0.92")
  ax.set_axisbelow(True)
  return figure, ax


def _thousands(count: int) -> str:
  return f"{count // 1024}K" if count % 1024 == 0 else str(count)


PLOTS: dict[str, Callable[[Report], Any]] = {
  "speedup": speedup,
  "length": length,
  "roofline": roofline,
  "pareto": pareto,
  "breakdown": breakdown,
}


def _ratio(total: Total) -> float:
  """m/n of the sparse layers."""
  if total.pattern == "mixed":
    raise ValueError(
      f"speed-up against sparsity: {total.engine} ran layers of several"
      " patterns; sweep one pattern, or draw the breakdown"
    )
  if total.pattern == "dense":
    return 1.0
  _, pattern = read_pattern(total.pattern)
  return pattern.m / pattern.n


def _labels(totals: Sequence[Total], several: Sequence[str]) -> list[str]:
  """The engine's name, and each of these fields that has several values."""
  names = [
    name
    for name in several
    if len({getattr(total, name) for total in totals}) > 1
  ]
  return [
    ", ".join((total.engine, *(getattr(total, name) for name in names)))
    for total in totals
  ]


def _pattern_axis(ax: Any, totals: Sequence[Total]) -> None:
  """Ticks where patterns are, as m/n on a logarithmic axis."""
  places: dict[float, list[str]] = {}
  for total in totals:
    names = places.setdefault(_ratio(total), [])
    if total.pattern not in names:
      names.append(total.pattern)
  ax.set_xscale("log", base=2)
  ax.set_xticks(list(places), ["\n".join(names) for names in places.values()])
  ax.set_xticks([], minor=True)
  ax.set_xlabel("pattern of the sparse layers, n:m")


def _log_axis(ax: Any, low: float, high: float) -> None:
  """A logarithmic y axis over [low, high] with plain numbers at its ticks."""
  from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

  ax.set_yscale("log", base=2)
  ax.set_ylim(low, high)
  steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 16 * low else (1, 2, 5)
  ticks = [step * 10.0**power for power in range(-6, 7) for step in steps]
  ax.yaxis.set_major_locator(
    FixedLocator([t for t in ticks if low <= t <= high])
  )
  ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
  ax.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Any, ax: Any) -> None:
  handles, labels = ax.get_legend_handles_labels()
  if len(labels) <= 6 and max(map(len, labels)) <= 30:
    ax.legend(handles, labels, frameon=False, fontsize=8)
  else:
    # Beside the axes, or below them where names would take their width.
    long = max(map(len, labels)) > 40
    place, columns = ("lower center", 2) if long else ("right upper", 1)
    figure.legend(
      handles,
      labels,
      loc=f"outside {place}",
      ncols=columns,
      fontsize=7,
      frameon=False,
    )


def _styles(rows: Sequence[Row]) -> dict[tuple[Any, ...], dict[str, Any]]:
  """Size and pattern of a layer -> its mark; alike layers share one."""
  kinds: dict[tuple[Any, ...], list[str]] = {}
  for row in rows:
    names = kinds.setdefault(_key(row), [])
    name = row.name.rsplit("/", 1)[-1]
    if name not in names:
      names.append(name)
  styles = {}
  for place, (key, names) in enumerate(kinds.items()):
    text = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    styles[key] = {
      "color": LAYERS[place % len(LAYERS)],
      "marker": MARKERS[place % len(MARKERS)],
      # Open, smaller and smaller, so that marks on one point all show.
      "markersize": max(11 - place, 5),
      "label": f"{text} ({key[-1]})" if place < 12 else None,
    }
  return styles


def _key(row: Row) -> tuple[Any, ...]:
  return row.M, row.N, row.K, row.pattern


def _decades(low: float, high: float) -> tuple[float, float]:
  """Powers of ten around a span, with room for a mark at either end."""
  first = math.floor(math.log10(low / 1.2))
  return 10.0**first, 10.0 ** math.ceil(math.log10(high * 1.2))


def _mark(row: Row, engine: Engine) -> tuple[float, float]:
  """FLOP per byte and TFLOP/s of a layer, left-out weights counted."""
  flops = 2.0 * row.M * row.N * row.K
  time = float(engine.nanoseconds(row.cycles))
  return flops / row.dram_bytes, flops / time / 1000


def _roofs(
  engine: Engine, itemsize: Any, rows: Sequence[Row]
) -> tuple[dict[str, float], float]:
  """TFLOP/s by pattern, and TB/s of the memory."""
  patterns = []
  for text in dict.fromkeys(row.pattern for row in rows):
    if text != "dense":
      v, pattern = read_pattern(text)
      patterns.append(Gemm(1, 1, 1, pattern.n, pattern.m, v))
  per_cycle = 1000 * float(engine.nanoseconds(1))
  peaks = engine.roofs(itemsize, patterns)
  bandwidth = engine.memory_bandwidth
  slope = math.inf if bandwidth == UNLIMITED else bandwidth / per_cycle
  return {name: peak / per_cycle for name, peak in peaks.items()}, slope


def _panel(
  ax: Any,
  engine: Engine,
  peaks: dict[str, float],
  slope: float,
  span: tuple[float, float],
) -> None:
  """One engine's roofs over a span of intensities."""
  low, high = span
  words = ["no memory limit"] if slope == math.inf else []
  for place, (name, peak) in enumerate(peaks.items()):
    knee = min(max(peak / slope, low), high)
    style = {"color": "0.2", "linewidth": 1, "linestyle": LINES[place and 1]}
    ax.plot([knee, high], [peak, peak], **style)
    dashed = " (dashed)" if place else ""
    words.insert(0, f"{name}{dashed} {float(f'{peak:.4g}'):g}")
  end = min(max(peaks.values()) / slope, high)
  if end > low:
    ax.plot([low, end], [low * slope, end * slope], color="0.2", linewidth=1)
  ax.set_xscale("log")
  ax.set_yscale("log")
  ax.set_xlim(low, high)
  clock = 1 / float(engine.nanoseconds(1))
  ax.set_title(
    f"{engine}, {clock:g} GHz" if engine.is_array else str(engine), fontsize=9
  )
  ax.text(
    0.97, 0.03, "\n".join(words), transform=ax.transAxes, ha="right",
    fontsize=7, color="0.3",
  )  # fmt: skip
  ax.tick_params(which="both", labelsize=8)
  ax.grid(color="0.92")
  ax.set_axisbelow(True)
