"""Pictures of serving; matplotlib is needed, and imported, only here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from figs_jax.engine.figures import (
  COLOURS,
  LINES,
  MARKERS,
  check_number,
  panels,
)
from figs_jax.engine.serving.buffer import best_subgraph
from figs_jax.engine.serving.comparison import Comparison
from figs_jax.engine.serving.subgraph import NestedModel

_MOST = 14  # contenders that can be told apart


def latency_cdf(comparison: Comparison) -> Any:
  """Share of queries answered within a time, at the load nearest to 1.

  The dotted line is the bound of the queries, where all have one.

  Raises:
    ValueError: If matplotlib is missing, or there are too many contenders.
  """
  figure, ax = _start(comparison, 6.4, 3.6)
  for style, name, served in zip(
    _styles(comparison), comparison.names, comparison.examples
  ):
    response = np.sort(served.response) / 1e6
    share = np.arange(1, len(response) + 1) / len(response)
    keep = np.unique(np.linspace(0, len(share) - 1, 800).astype(int))
    style = {x: style[x] for x in ("color", "linestyle")}
    ax.step(response[keep], share[keep], where="post", label=name, **style)
  _draw_bound(ax, comparison)
  ax.set_xscale("log")
  ax.set_xlabel("time from arrival to answer, ms")
  ax.set_ylabel("share of queries")
  ax.set_title(_load_text(comparison, comparison.base), fontsize=9)
  return _legend(figure, ax)


def served_accuracy(comparison: Comparison) -> Any:
  """Accuracy of the answers in time against load: late ones count as wrong.

  Raises:
    ValueError: If matplotlib is missing, or there are too many contenders.
  """
  return _over_load(
    comparison, "timely_accuracy", "accuracy, late answers wrong"
  )


def misses(comparison: Comparison) -> Any:
  """Share of late answers against load, with 95 % intervals over seeds.

  Raises:
    ValueError: If matplotlib is missing, or there are too many contenders.
  """
  return _over_load(comparison, "missed", "share of late answers")


def frontier(comparison: Comparison) -> Any:
  """Served accuracy against the 99th percentile of the time, for three loads.

  They are the load nearest to 1 and its neighbours. Fixed models are joined by
  a line, from the sparsest to the densest; a nested model above and to the left
  of it answers better in the same time.

  Raises:
    ValueError: If matplotlib is missing, or there are too many contenders.
  """
  check_number("contenders", len(comparison.names), _MOST)
  first = min(max(comparison.base - 1, 0), max(len(comparison.loads) - 3, 0))
  shown = range(len(comparison.loads))[first : first + 3]
  figure, axes = panels(2.6 * len(shown) + 2.4, 3.4, 1, len(shown), sharey=True)
  accuracy, p99 = comparison.mean("accuracy"), comparison.mean("p99_ms")
  fixed = ~comparison.is_nested
  for ax, j in zip(axes, shown):
    ax.plot(p99[fixed, j], accuracy[fixed, j], color="0.7", linewidth=1)
    for i, style in enumerate(_styles(comparison)):
      mark = {"color": style["color"], "marker": style["marker"]}
      ax.plot(
        p99[i, j],
        accuracy[i, j],
        linestyle="",
        label=comparison.names[i],
        **mark,
      )
    _draw_bound(ax, comparison)
    ax.set_xscale("log")
    ax.set_xlabel("99th percentile, ms")
    ax.set_title(_load_text(comparison, j), fontsize=9)
  axes[0].set_ylabel("accuracy of all answers")
  return _legend(figure, axes[0])


def buffer_savings(
  model: NestedModel, buffers: Sequence[int] | None = None
) -> Any:
  """Bytes off chip and latency of each point against the buffer's size.

  For each buffer the best sub-graph for as many queries at every point; the
  dotted line is the size of all weights, from which on none moves.

  Args:
    model: Nested model on an engine.
    buffers: Bytes of the buffers. Defaults to 60 sizes up to 1.25 times the
      weights.

  Raises:
    ValueError: If matplotlib is missing.
  """
  total = int(model.weight_bytes[-1])
  if buffers is None:
    buffers = np.linspace(0, total * 1.25, 61).astype(np.int64).tolist()
  best = best_subgraph(model, np.asarray(buffers, np.int64))
  query = model.query(best.cached)
  figure, axes = panels(7.2, 3.4, 1, 2)
  sizes = np.asarray(buffers) / 2**20
  for ax, values, label in (
    (axes[0], query.dram_bytes / 1e6, "MB off chip per query"),
    (axes[1], model.nanoseconds(query.cycles) / 1e6, "ms per query"),
  ):
    for i, point in enumerate(model.points):
      style = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i % 4]}
      ax.plot(sizes, values[:, i], label=point, **style)
    ax.axvline(total / 2**20, color="0.5", linestyle=":", label="all weights")
    ax.set_xlabel("persistent buffer, MiB")
    ax.set_ylabel(label)
    ax.set_ylim(bottom=0)
  figure.suptitle(f"{model.engine}, modelled", fontsize=9)
  return _legend(figure, axes[0])


def _start(comparison: Comparison, width: float, height: float) -> Any:
  check_number("contenders", len(comparison.names), _MOST)
  return panels(width, height)


def _draw_bound(ax: Any, comparison: Comparison) -> None:
  """A line at the bound of the queries, where all have the same."""
  bounds = np.unique(comparison.examples[0].queries.latency)
  if len(bounds) == 1 and bounds[0] < 2**59:
    ax.axvline(bounds[0] / 1e6, color="0.5", linestyle=":", label="bound")


def _styles(comparison: Comparison) -> list[dict[str, str]]:
  """Nested contenders by colour in full lines, fixed models grey to black."""
  styles, fixed = [], int((~comparison.is_nested).sum())
  greys = iter(np.linspace(0.7, 0.0, max(fixed, 1)))
  places = iter(range(len(comparison.names)))
  for i, nested in enumerate(comparison.is_nested):
    marker = MARKERS[i % len(MARKERS)]
    if nested:
      colour, line = COLOURS[next(places) % len(COLOURS)], "-"
    else:
      colour, line = f"{next(greys):.2f}", "--"
    styles.append({"color": colour, "linestyle": line, "marker": marker})
  return styles


def _over_load(comparison: Comparison, metric: str, label: str) -> Any:
  figure, ax = _start(comparison, 6.4, 3.6)
  mean, half = comparison.mean(metric), comparison.half_width(metric)
  for i, style in enumerate(_styles(comparison)):
    ax.errorbar(
      comparison.rates,
      mean[i],
      yerr=None if np.isnan(half[i]).any() else half[i],
      label=comparison.names[i],
      markersize=4,
      capsize=2,
      **style,
    )
  ax.set_xscale("log")
  ax.set_xticks(comparison.rates, [f"{x:.4g}" for x in comparison.rates])
  ax.set_xticks([], minor=True)
  ax.set_ylim(-0.02, 1.02)
  ax.set_xlabel("queries per second")
  ax.set_ylabel(label)
  return _legend(figure, ax)


def _load_text(comparison: Comparison, j: int) -> str:
  return f"{comparison.rates[j]:.4g} queries per second"


def _legend(figure: Any, ax: Any) -> Any:
  figure.legend(
    *ax.get_legend_handles_labels(), loc="outside right upper", fontsize=7
  )
  return figure
