"""How the rows of real masks are covered: unstructured weights on VEGETA.

Every output takes its own n:4 in each slice of the contraction, the least n of
{1, 2, 4} that covers its blocks there (`figs_jax.engine.vegeta`, granularity
"row"), in place of one n:4 for a whole weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine._cost import cost
from figs_jax.engine.blocks import block_counts, row_cover
from figs_jax.engine.layers import Layers
from figs_jax.engine.reports.text import columns_text
from figs_jax.engine.spec import Engine
from figs_jax.engine.spec_text import parse

_BLOCK = 4
WHOLE = "whole model"


class LayerCover(NamedTuple):
  """One layer's mask and what it gains; NaN where the mask is not known.

  Attributes:
    name: Name of the layer, or `WHOLE`.
    M: Rows of the activations; -1 for the whole model.
    N: Columns of the weight; -1 for the whole model.
    K: Length of the contraction; -1 for the whole model.
    count: Number of such layers.
    density: Share of weights kept, of the layers whose mask is known.
    cover: Mean n of the rows, from 1 to 4.
    rows_1: Share of rows that 1:4 covers.
    rows_2: Share of rows that 2:4 covers, and 1:4 does not.
    rows_4: Share of rows that run dense.
    layer: n of the n:4 that covers the whole weight.
    layer_speedup: Speed-up of that n:4 over the engine running dense.
    row_speedup: Speed-up of the rows' own n:4 over the engine running dense.
  """

  name: str
  M: int
  N: int
  K: int
  count: int
  density: float
  cover: float
  rows_1: float
  rows_2: float
  rows_4: float
  layer: float
  layer_speedup: float
  row_speedup: float


def row_covers(
  layers: Layers | Iterable[Mapping[str, Any]],
  engine: Engine | str = "vegeta-s-16-2",
) -> tuple[LayerCover, ...]:
  """The cover of each layer, and of the whole model as the last.

  Args:
    layers: Table of layers with real masks, or its rows. Layers without a mask
      run by their pattern.
    engine: VEGETA engine of S type, or its spec.

  Raises:
    ValueError: If no layer has a mask, or the engine has no `granularity`.

  >>> mask = np.random.default_rng(0).random((640, 256)) < 0.05
  >>> row = {"name": "ff", "M": 4096, "N": 256, "K": 640, "mask": mask}
  >>> ff, whole = row_covers([row], "vegeta-s-16-2:overlap=full")
  >>> [round(x, 2) for x in (ff.density, ff.cover, ff.row_speedup)]
  [0.05, 1.23, 3.11]
  """
  table, array = Layers.of(layers), parse(engine)
  if "granularity" not in array.CHOICES:
    raise ValueError(
      f"row cover: expected a VEGETA S engine, as in 'vegeta-s-16-2', got"
      f" {array}"
    )
  masks = table.masks
  if masks is None:
    raise ValueError(
      "row cover: no layer has a real mask; give weights or a run's workdir"
    )
  by_layer = _layer_wise(table, masks)
  cycles = [
    cost(case, _with(array, granularity)).cycles * table.count
    for case, granularity in (
      (table.dense(), "layer"), (by_layer, "layer"), (table, "row"),
    )
  ]  # fmt: skip
  depth = 2 * int(_rows(array))
  rows, weights = [], []
  for i, mask in enumerate(masks):
    sizes = [int(getattr(table, name)[i]) for name in ("M", "N", "K", "count")]
    shares = _shares(mask, depth)
    dense, layer, row = (float(each[i]) for each in cycles)
    n = _BLOCK * by_layer.n[i] / by_layer.m[i]
    gains = n, dense / layer, dense / row
    rows.append(LayerCover._make((table.names[i], *sizes, *shares, *gains)))
    weights.append(0 if mask is None else mask.size * sizes[-1])
  dense, layer, row = (float(each.sum()) for each in cycles)
  means = [
    float(np.average(np.nan_to_num(column), weights=weights))
    for column in zip(*(row[5:10] for row in rows))
  ]
  gains = -1, dense / layer, dense / row
  head = WHOLE, -1, -1, -1, int(table.count.sum())
  whole = LayerCover._make((*head, *means, *gains))
  return (*rows, whole)


def cover_text(
  covers: Mapping[str, tuple[LayerCover, ...]], fmt: str = "table"
) -> str:
  """Covers by engine as a table of one of `figs_jax.engine` report's formats.

  Args:
    covers: Engine's name -> covers from `row_covers`.
    fmt: "table", "md", "csv" or "json".
  """
  columns: dict[str, list[Any]] = {"engine": []}
  for engine, rows in covers.items():
    for row in rows:
      columns["engine"].append(engine)
      for name, value in row._asdict().items():
        known = isinstance(value, str) or np.isfinite(value)
        columns.setdefault(name, []).append(value if known else -1)
  arrays = {name: np.array(column) for name, column in columns.items()}
  return columns_text(arrays, CAPTION, fmt)


CAPTION = (
  "Modelled cycles, not measured. density: weights kept. cover: mean n of the"
  " n:4 of each row of a tile; rows_n: share of rows that take it. layer: n of"
  " the n:4 that covers the whole weight. Speed-ups are over the same engine"
  " running the layer dense."
)


def _with(array: Engine, granularity: str) -> Engine:
  options: Any = {"granularity": granularity}
  return dataclasses.replace(array, name="", **options)


def _rows(array: Any) -> int:
  return array.rows


def _shares(mask: np.ndarray | None, depth: int) -> list[float]:
  """density, cover, and the shares of rows by n."""
  if mask is None:
    return [np.nan] * 5
  cover = row_cover(mask, depth)
  shares = [float((cover == n).mean()) for n in (1, 2, _BLOCK)]
  return [float(mask.mean()), float(cover.mean()), *shares]


def _layer_wise(table: Layers, masks: Any) -> Layers:
  """The table with the n:4 that covers each known mask."""
  n, m = table.n.copy(), table.m.copy()
  for i, mask in enumerate(masks):
    if mask is not None:
      most = max(int(block_counts(mask, _BLOCK).max()), 1)
      n[i], m[i] = (most, _BLOCK) if most < 3 else (1, 1)
  return dataclasses.replace(table, n=n, m=m, masks=None)
