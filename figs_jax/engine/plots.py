"""Pictures of a report; matplotlib is needed, and imported, only here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from figs_jax.engine.blocks import kept_depth
from figs_jax.engine.figures import (
  COLOURS,
  LAYERS,
  LINES,
  MARKERS,
  empty_figure,
  engine_style,
)
from figs_jax.engine.layers import read_pattern
from figs_jax.engine.reports._report import Report
from figs_jax.engine.reports.rows import Row, Total
from figs_jax.engine.reports.text import times
from figs_jax.engine.spec import UNLIMITED, Engine
from figs_jax.engine.timing import PARTS

# Okabe and Ito's colours, which all kinds of vision tell apart, with wine for
# their pale yellow; black is left for roofs.
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

  Arithmetic intensity is useful FLOP per byte of memory traffic. Where an
  engine's memory is unlimited, its multipliers are the only roof, and the panel
  says so. An engine with 2:4 units has two roofs.
  Engines that count in one unit share the y axis.

  Args:
    report: Report of one workload.
    title: Name of the layers' model. Defaults to the workload's label.

  Raises:
    ValueError: If matplotlib is missing, or there are too many engines.

  >>> from figs_jax.engine import report
  >>> rows = [{"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "1:8"}]
  >>> roofline(report(rows, ["ws", "tpu:v5e"])).axes[0].get_title()
  'ws'
  """
  count = len(report.totals)
  _check_number("engines", count, _PANELS)
  across = 2 if count == 4 else min(count, 3)
  down = math.ceil(count / across)
  figure, axes = _figure(2.6 + 2.7 * across, 0.8 + 2.7 * down, down, across)
  length = len(report.rows) // count
  rows = [
    report.rows[place * length : (place + 1) * length] for place in range(count)
  ]
  styles = _styles(rows[0])
  intensities = [_flops(row) / row.dram_bytes for row in report.rows]
  knees = [
    peak / bandwidth
    for engine, layers in zip(report.engines, rows)
    if (bandwidth := engine.memory_bandwidth) != UNLIMITED
    for peak in _peaks(layers)
  ]
  span = _decades(min(intensities), max(intensities + knees))
  for ax, engine, layers in zip(axes, report.engines, rows):
    _panel(ax, engine, layers, styles, span)
  for kind in {engine.unit for engine in report.engines}:
    alike = [ax for ax, e in zip(axes, report.engines) if e.unit == kind]
    ends = [end for ax in alike for end in ax.get_ylim()]
    for ax in alike:
      ax.set_ylim(min(ends), max(ends))
  title = title or report.totals[0].workload
  if title:
    figure.suptitle(f"Rooflines: {title}".replace("$", r"\$"), fontsize=10)
  for place in range(count, len(axes)):
    axes[place].set_visible(False)
    axes[place - across].tick_params(labelbottom=True)
  figure.supxlabel("useful FLOP per byte of memory traffic", fontsize=9)
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
  _check_number("bars", len(totals), _MOST)
  figure, ax = _figure(8.4, 1.1 + 0.34 * len(totals))
  labels = _labels(totals, several=("workload", "pattern", "fuse"))
  places = list(range(len(totals)))
  left = [0.0] * len(totals)
  kinds = list(dict.fromkeys(k for total in totals for k in total.non_gemm))
  styles = [(part, colour, "") for part, colour in zip(PARTS, COLOURS)]
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
    text = (
      f"{total.whole_cycles:.3g} {total.unit}, {times(total.whole_speedup)}"
    )
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
  _check_number("lines", len(lines), _MOST)
  figure, ax = _figure(7.6, max(4.2, 0.19 * len(lines) + 1))
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
  "breakdown": breakdown,
}


def _figure(width: float, height: float, down: int = 0, across: int = 0) -> Any:
  """A figure and its axes: one, or a flat list of down x across."""
  figure = empty_figure(width, height)
  if not down:
    return figure, figure.subplots()
  axes = figure.subplots(down, across, squeeze=False, sharex=True)
  return figure, list(axes.flat)


def _check_number(what: str, count: int, most: int) -> None:
  if count > most:
    raise ValueError(
      f"a picture of {count} {what} cannot be read; give at most {most}, or"
      " write a table"
    )


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


def _flops(row: Row) -> float:
  """Of the kept weights."""
  dense = row.pattern == "dense"
  n, m = (1, 1) if dense else map(int, row.pattern.split(":")[-2:])
  return 2.0 * row.M * row.N * kept_depth(row.K, n, m)


def _peaks(rows: Sequence[Row]) -> set[float]:
  """FLOP per cycle that layers could have had, as their utilisation tells."""
  return {
    float(f"{_flops(row) / row.cycles / row.utilisation:.6g}") for row in rows
  }


def _panel(
  ax: Any,
  engine: Engine,
  rows: Sequence[Row],
  styles: dict[tuple[Any, ...], dict[str, Any]],
  span: tuple[float, float],
) -> None:
  """One engine's roofs over a span of intensities, and a mark per layer."""
  rates = [_flops(row) / row.cycles for row in rows]
  peaks = _peaks(rows)
  points = {_key(row): (row, rate) for row, rate in zip(rows, rates)}
  for key, (row, rate) in points.items():
    ax.plot(
      _flops(row) / row.dram_bytes, rate, linestyle="", zorder=3,
      markerfacecolor="none", markeredgewidth=1.6, **styles[key],
    )  # fmt: skip
  low, high = span
  bandwidth = engine.memory_bandwidth
  knees = {peak: min(max(peak / bandwidth, low), high) for peak in peaks}
  for peak, knee in knees.items():
    ax.plot([knee, high], [peak, peak], color="0.2", linewidth=1)
  end = max(knees.values())
  if end > low:
    roof = [low * bandwidth, end * bandwidth]
    ax.plot([low, end], roof, color="0.2", linewidth=1)
  ax.set_xscale("log")
  ax.set_yscale("log")
  ax.set_xlim(low, high)
  ax.set_ylim(*_decades(min(rates), max(peaks)))
  ax.set_title(str(engine), fontsize=9)
  ax.set_ylabel(
    f"useful FLOP per {'ns' if engine.unit == 'ns' else 'cycle'}", fontsize=8
  )
  if bandwidth == UNLIMITED:
    ax.text(
      0.03, 0.97, "no memory limit", transform=ax.transAxes, va="top",
      fontsize=8, color="0.4",
    )  # fmt: skip
  ax.tick_params(which="both", labelsize=8)
  ax.grid(color="0.92")
  ax.set_axisbelow(True)
