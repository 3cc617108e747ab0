"""Tables of what each layer, and the whole model, costs on each engine."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.engine.cost import cost
from figs_jax.engine.grammar import parse
from figs_jax.engine.spec import Engine, nearest
from figs_jax.engine.workload import Layers

FORMATS = ("table", "csv", "md")
_CAPTION = (
  "Modelled cycles, not measured. Speed-up is over the same array running the"
  " dense model."
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One layer on one engine; cycles of one of its `count` instances."""

  name: str
  engine: str
  M: int
  N: int
  K: int
  pattern: str
  cycles: int
  utilisation: float
  speedup: float
  count: int


@dataclasses.dataclass(frozen=True)
class Total:
  """The whole model on one engine: every layer, dense ones too (Amdahl)."""

  engine: str
  cycles: int
  dense_cycles: int
  speedup: float
  utilisation: float


@dataclasses.dataclass(frozen=True)
class Report:
  """Rows per layer and engine, totals per engine; its str() is the table."""

  rows: tuple[Row, ...]
  totals: tuple[Total, ...]
  fmt: str = "table"

  def __post_init__(self):
    if self.fmt not in FORMATS:
      raise ValueError(f"report fmt {self.fmt!r}: {nearest(self.fmt, FORMATS)}")

  def __str__(self) -> str:
    if self.fmt == "csv":
      return _csv(self.rows)
    draw = _markdown if self.fmt == "md" else _aligned
    tables = (draw(self.totals), draw(self.rows))
    return "\n\n".join((_CAPTION, *tables))


def report(
  layers: Layers | Iterable[Mapping[str, Any]],
  engines: Sequence[Engine | str],
  fmt: str = "table",
) -> Report:
  """Costs the layers on each engine, beside the same layers without patterns.

  Args:
    layers: a table, or its rows; all of the model's GEMMs, so that the total is
      the model's and not only its sparse part's.
    engines: engines or specs, with scalar sides.
    fmt: "table"; "md"; "csv", which holds the rows alone.

  Raises:
    ValueError: no engines, a bad row, spec or fmt, or a result past int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> print(report([row], ["ws:32x32"], fmt="csv"))
  name,engine,M,N,K,pattern,cycles,utilisation,speedup,count
  ff,ws:32x32,64,64,64,2:4,316,0.405063,2,1
  """
  table = Layers.of(layers)
  arrays = [parse(engine) for engine in engines]
  if not arrays:
    raise ValueError(
      "report: no engines; give at least one, as in ['ws:32x16']"
    )
  rows, totals = [], []
  for array in arrays:
    if any(map(np.ndim, array.leaves)):
      raise ValueError(
        f"report: engine {array} has an array of values; report designs singly"
      )
    sparse, dense = cost(table, array), cost(table.dense(), array)
    rows += _rows(table, array, sparse, dense)
    totals.append(_total(array, sparse, dense))
  return Report(tuple(rows), tuple(totals), fmt)


def _rows(table, array, sparse, dense) -> list[Row]:
  return [
    Row(
      name=name,
      engine=array.name,
      M=int(table.M[i]),
      N=int(table.N[i]),
      K=int(table.K[i]),
      pattern=table.pattern(i),
      cycles=int(sparse.cycles[i]),
      utilisation=float(sparse.utilisation[i]),
      speedup=float(dense.cycles[i] / sparse.cycles[i]),
      count=int(table.count[i]),
    )
    for i, name in enumerate(table.names)
  ]


def _total(array, sparse, dense) -> Total:
  cycles, dense_cycles = int(sparse.total("cycles")), int(dense.total("cycles"))
  busy = sparse.utilisation * sparse.cycles * sparse.count
  return Total(
    engine=array.name,
    cycles=cycles,
    dense_cycles=dense_cycles,
    speedup=dense_cycles / cycles,
    utilisation=float(busy.sum()) / cycles,
  )


def _cells(records, number: str) -> list[list[str]]:
  """A header and a row per record; fractions in the given format."""
  header = [field.name for field in dataclasses.fields(records[0])]
  body = [
    [format(x, number) if isinstance(x, float) else str(x) for x in row]
    for row in map(dataclasses.astuple, records)
  ]
  return [header, *body]


def _csv(records) -> str:
  out = io.StringIO()
  csv.writer(out, lineterminator="\n").writerows(_cells(records, ".6g"))
  return out.getvalue().rstrip("\n")


def _markdown(records) -> str:
  header, *body = _cells(records, ".3f")
  rule = ["---"] * len(header)
  return "\n".join(f"| {' | '.join(r)} |" for r in (header, rule, *body))


def _aligned(records) -> str:
  cells = _cells(records, ".3f")
  widths = [max(map(len, column)) for column in zip(*cells)]
  # Text to the left, numbers to the right.
  left = [isinstance(x, str) for x in dataclasses.astuple(records[0])]
  return "\n".join(
    "  ".join(
      x.ljust(w) if to_left else x.rjust(w)
      for x, w, to_left in zip(row, widths, left)
    ).rstrip()
    for row in cells
  )
