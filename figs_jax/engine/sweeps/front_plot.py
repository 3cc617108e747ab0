"""The Pareto front of a sweep over the cloud of its points: a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from figs_jax.engine.figures import empty_figure, engine_style
from figs_jax.engine.sweeps.reductions import Where

_CLOUD = 20_000  # points that stand for all
_NAMED = 7  # designs of a front that are named
_SPAN = 8.0  # a longer span has a logarithmic axis


def pareto_front(designs: Any, x: str, y: str, *, where: Where = None) -> Any:
  """The points that none beats in x and y, over a sample of all points.

  A point has the colour and the marker of its engine; the line steps along the
  front. Quantities such as "-utilisation" are shown without their sign.

  Args:
    designs: Sweep, as from `figs_jax.engine.sweep`.
    x: Quantity to be small.
    y: The other quantity to be small.
    where: Conditions on the points.

  Raises:
    ValueError: If matplotlib is missing, a field is unknown, or no point is
      allowed.

  >>> from figs_jax.engine import sweep
  >>> gemm = {"M": [64], "N": [64], "K": [64], "rows": "8,16,...,64"}
  >>> figure = pareto_front(sweep("ws", gemm), "time_ns", "area_mm2")
  >>> [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()]
  ['time_ns', 'area_mm2']
  """
  front = designs.pareto(x, y, where=where)
  if not len(front["design"]):
    raise ValueError("sweep: no point is allowed; check where=")
  several = "engine" in front
  names = (x, y, "engine") if several else (x, y)
  cloud = designs.sample(names, _CLOUD, where=where)
  figure = empty_figure(7.6, 4.8)
  ax = figure.subplots()
  xs, ys = _shown(front, x), _shown(front, y)
  ax.plot(xs, ys, color="0.25", linewidth=1, drawstyle=_steps(x), zorder=2)
  engines = [part.labels.get("engine", "") for part in designs.parts]
  for place, engine in enumerate(dict.fromkeys(engines)):
    style = engine_style(place)
    here = _of(cloud, engine, several)
    ax.scatter(
      _shown(cloud, x)[here], _shown(cloud, y)[here], s=6, color=style["color"],
      alpha=0.4, linewidths=0, rasterized=True, zorder=1,
    )  # fmt: skip
    here = _of(front, engine, several)
    ax.plot(
      xs[here], ys[here], linestyle="", markersize=5, zorder=3, **style,
      label=engine or str(designs.parts[0].points.machine.engine),
    )  # fmt: skip
  for axis, values in (("x", _shown(cloud, x)), ("y", _shown(cloud, y))):
    if values.min() > 0 and values.max() > _SPAN * values.min():
      getattr(ax, f"set_{axis}scale")("log")
  picks = np.linspace(0, len(xs) - 1, min(_NAMED, len(xs))).round().astype(int)
  for pick in np.unique(picks):
    ax.annotate(
      _text(front, int(pick)), (xs[pick], ys[pick]), xytext=(5, 5),
      textcoords="offset points", fontsize=7, color="0.2",
    )  # fmt: skip
  ax.set_xlabel(x.removeprefix("-"))
  ax.set_ylabel(y.removeprefix("-"))
  ax.set_title(
    f"{len(xs):,} of {len(designs):,} points that no other beats",
    fontsize=9, color="0.3",
  )  # fmt: skip
  ax.grid(color="0.92")
  ax.set_axisbelow(True)
  ax.spines[["top", "right"]].set_visible(False)
  ax.legend(frameon=False, fontsize=8)
  return figure


def _shown(columns: Any, quantity: str) -> np.ndarray:
  values = np.asarray(columns[quantity], float)
  return -values if quantity.startswith("-") else values


def _of(columns: Any, engine: str, several: bool) -> Any:
  return columns["engine"] == engine if several else slice(None)


def _steps(x: str) -> str:
  """Where a front jumps: nothing lies between a point and the next x."""
  return "steps-pre" if x.startswith("-") else "steps-post"


def _text(front: Any, place: int) -> str:
  """The design of a point, and its pattern if patterns vary."""
  pattern = f", {front['pattern'][place]}" if "pattern" in front else ""
  return f"{front['design'][place]}{pattern}"
