"""Tables of what each layer, and the whole model, costs on each engine."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine._cost import Cost, cost
from figs_jax.engine.area import Area, Parts
from figs_jax.engine.energy import Energy
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine, nearest
from figs_jax.engine.spec_text import parse
from figs_jax.engine.studies.bandwidth import dense_peers
from figs_jax.engine.sweeps.axes import (
  Axes,
  as_axes,
  designs,
  workloads_of,
)
from figs_jax.engine.timing import PARTS

FORMATS = ("table", "csv", "json", "md")
DENSE = "the same engine running the dense model"
BEST_DENSE = "dense"  # a baseline: the fastest of an engine's dense peers
# What a report of a sweep can hold.
_DESIGNS, _ROWS = 100_000, 2_000_000
_SUMMED = ("cycles", "dram_bytes", *PARTS)


class Row(NamedTuple):
  """One layer on one engine: one of its instances, however many there are.

  `ideal_speedup` is that of `Engine.silicon`, None for an engine without one.
  """

  name: str
  engine: str
  M: int
  N: int
  K: int
  pattern: str
  cycles: int
  utilisation: float
  speedup: float
  energy_pj: float
  dram_bytes: int
  ideal_speedup: float | None = None


class Total(NamedTuple):
  """The whole model on one engine: every instance of every layer (Amdahl).

  Attributes:
    workload: Label of the layers, or "".
    engine: Name of the engine.
    pattern: Pattern of the sparse layers; "dense" without any, "mixed" if
      there are several.
    unit: Unit of cycles: "cycles", or "ns" of a roofline.
    cycles: Sum of the cycles.
    baseline_cycles: Sum of the cycles that `speedup` compares with.
    speedup: Ratio baseline_cycles / cycles.
    utilisation: Useful MACs / (cycles x multipliers).
    energy_pj: Sum of the energy.
    dram_bytes: Sum of the memory traffic.
    stall_factor: Factor by which swapping makes vectors stream longer, 1
      without; `figs_jax.engine.figs.checkpoint_stall_factor`.
    parts: Parts of cycles by name, which add up to them.
    ideal_speedup: The speed-up at the rates of the silicon (`Engine.silicon`),
      None for an engine that models no lower ones.
  """

  workload: str
  engine: str
  pattern: str
  unit: str
  cycles: int
  baseline_cycles: int
  speedup: float
  utilisation: float
  energy_pj: float
  dram_bytes: int
  stall_factor: float
  parts: dict[str, int]
  ideal_speedup: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
  """Rows per layer and engine, totals per engine; its str() is the table.

  Attributes:
    rows: Costs of every layer on the first engine, then on the next.
    totals: Costs of the whole model, one per engine, in the same order.
    engines: Engine of each of `totals`.
    baseline: Description of what the speed-ups are over.
    note: Further sentences that a reader must know, or "".
    fmt: One of `FORMATS`; "csv" holds the rows alone.
    area: Area of each part, for a table of the engines' areas, or None.
    peers: Dense engine that each of `totals` is over, if the baseline is
      "dense".
  """

  rows: tuple[Row, ...]
  totals: tuple[Total, ...]
  engines: tuple[Engine, ...]
  baseline: str
  note: str = ""
  fmt: str = "table"
  area: Area | None = None
  peers: tuple[Engine, ...] = ()

  def __post_init__(self):
    if self.fmt not in FORMATS:
      raise ValueError(f"report fmt {self.fmt!r}: {nearest(self.fmt, FORMATS)}")

  @classmethod
  def joined(cls, reports: Sequence[Report]) -> Report:
    """Several workloads' reports as one."""
    return dataclasses.replace(
      reports[0],
      rows=tuple(row for each in reports for row in each.rows),
      totals=tuple(total for each in reports for total in each.totals),
      engines=tuple(engine for each in reports for engine in each.engines),
      peers=tuple(engine for each in reports for engine in each.peers),
    )

  def beside(self, ideal: Report) -> Report:
    """The report with the speed-ups of another, of its engines' silicon."""
    has = {str(x): x.silicon() is not None for x in self.engines}
    rows, totals = iter(ideal.rows), iter(ideal.totals)
    return dataclasses.replace(
      self,
      rows=tuple(_beside(row, rows) if has[row.engine] else row
                 for row in self.rows),
      totals=tuple(_beside(total, totals) if has[total.engine] else total
                   for total in self.totals),
    )  # fmt: skip

  @property
  def caption(self) -> str:
    """What the numbers are, and are not."""
    return (
      "Modelled cycles (ns on rooflines), not measured. Speed-up is over"
      f" {self.baseline}{_named(self.peers)}.{self.note and ' '}{self.note}"
      f"{self.area and ' Areas are reconstructed from counted parts.' or ''}"
    )

  @property
  def _areas(self) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the mm² of each engine, in all and by part."""
    area = self.area or Area()
    known = {
      str(engine): area.square_millimetres(parts)
      for engine in self.engines
      if (parts := engine.parts()) is not None
    }
    names = [
      x for x in Parts._fields if any(each[x] for each in known.values())
    ]
    rows = [
      [engine, sum(each.values()), *(each[name] for name in names)]
      for engine, each in known.items()
    ]
    return ["area, mm²", "total", *names], rows

  def __str__(self) -> str:
    if self.fmt == "csv":
      return csv_text(*_layers(self.rows))
    if self.fmt == "json":
      header, areas = self._areas
      tables = {"areas": [dict(zip(header, row)) for row in areas]}
      return json.dumps(
        {
          "caption": self.caption,
          "totals": [total._asdict() for total in self.totals],
          **(tables if self.area else {}),
          "rows": [row._asdict() for row in self.rows],
        },
        indent=1,
      )
    draw = markdown if self.fmt == "md" else text_table
    tables = [draw(*_totals(self.totals)), draw(*_parts(self.totals))]
    tables += [draw(*self._areas)] if self.area else []
    tables.append(draw(*_layers(self.rows)))
    return "\n\n".join((self.caption, *tables))


def report(
  layers: Layers | Iterable[Mapping[str, Any]] | Mapping[str, Layers],
  engines: Sequence[Engine | str],
  fmt: str = "table",
  *,
  axes: Axes | str | None = None,
  baseline: Engine | str | None = None,
  itemsize: int | Fraction | None = None,
  energy: Energy | None = None,
  dtype: str | None = None,
  workload: str = "",
  area: Area | None = None,
) -> Report:
  """Costs the layers on each engine, beside a baseline.

  Rows are of one instance of a layer; totals weigh them by their count. Designs
  that differ in numbers only are computed together.

  Args:
    layers: Table, or its rows, or a table for each of several workloads by
      label. All of the model's GEMMs, so that the total is the model's and not
      only its sparse part's.
    engines: Engines or specs, with scalar fields.
    fmt: "table", "md", "csv" (the rows alone) or "json".
    axes: Axes of a sweep, as in "pattern=1:2,1:4,...,1:128; rows=8,16": every
      pattern, of the layers that are sparse (`Layers.with_pattern`), on every
      design (`figs_jax.engine.sweep` selects from more of them).
    baseline: Engine whose cycles on the same layers, patterns included, the
      speed-ups are over; to compare with dense execution, name one that does
      not exploit patterns (`ws:32x16:sparse=false`, `vegeta-d-1-2`,
      `gpu:h200`), or "dense", the fastest dense array of as many multipliers
      behind as wide a port (`figs_jax.engine.dense_peers`). By default each
      engine is compared with itself running the layers dense.
    itemsize: Bytes per value of every operand off chip; see `cost`.
    energy: Picojoules per operation; see `cost`.
    dtype: Data type of the operands; see `cost`.
    workload: Label of the layers in the totals.
    area: Square micrometres per part; adds a table of the engines' areas.

  Raises:
    ValueError: If there are no engines or too many designs; a row, spec, axis
      or fmt is bad; the baseline counts in another unit; or a result does not
      fit int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> made = report([row], ["ws:32x32"], fmt="csv")
  >>> print(str(made).partition(",energy_pj")[0])
  name,engine,M,N,K,pattern,cycles,utilisation,speedup
  >>> made.totals[0].speedup
  2.0
  >>> swept = report([row], ["ws"], axes="pattern=1:2,1:4; rows=16,32")
  >>> [(total.pattern, total.engine) for total in swept.totals][1:3]
  [('1:2', 'ws:32x16'), ('1:4', 'ws:16x16')]
  """
  tables = workloads_of(layers, workload)
  machines = [parse(engine) for engine in engines]
  if not machines:
    raise ValueError(
      "report: no engines; give at least one, as in ['ws:32x16']"
    )
  varied = {} if axes is None else dict(as_axes(axes))
  patterns = varied.pop("pattern", (None,))
  if varied:
    rows = sum(map(len, tables.values())) * len(patterns)
    machines = designs(machines, varied, min(_DESIGNS, _ROWS // rows))
  options: dict[str, Any] = {
    "itemsize": itemsize, "energy": energy, "dtype": dtype
  }  # fmt: skip
  made = Report.joined(
    [
      _report(_with(table, pattern), machines, fmt, baseline, options, label)
      for label, table in tables.items()
      for pattern in patterns
    ]
  )
  made = dataclasses.replace(made, area=area)
  silicon = [chip for x in engines if (chip := parse(x).silicon()) is not None]
  if not silicon:
    return made
  over = baseline
  if over is not None and over != "dense":
    over = parse(over)
    over = over.silicon() or over
  ideal = report(tables, silicon, axes=axes, baseline=over, **options)
  return made.beside(ideal)


def _beside(item: Any, ideal: Iterator[Any]) -> Any:
  return item._replace(ideal_speedup=next(ideal).speedup)


def _report(
  table: Layers,
  machines: Sequence[Engine],
  fmt: str,
  baseline: Engine | str | None,
  options: dict[str, Any],
  workload: str,
) -> Report:
  costs = _costs(table, machines, options)
  peers: tuple[Engine, ...] = ()
  if baseline is None:
    words, over = DENSE, _costs(table.dense(), machines, options)
  elif baseline == BEST_DENSE:
    words = "the fastest dense array of as many multipliers and as wide a port"
    best = [_best_dense(table, engine, options) for engine in machines]
    peers, over = zip(*best)
  else:
    other = parse(baseline)
    _check_units(machines, other)
    words = f"{other} running the same layers"
    over = _costs(table, [other], options) * len(machines)
  rows, totals = [], []
  patterns = [table.pattern(i) for i in range(len(table))]
  for engine, priced, base in zip(machines, costs, over):
    rows += _rows(table, patterns, engine, priced.cost, base.cost)
    totals.append(_total(workload, patterns, engine, priced, base))
  return Report(
    *(tuple(rows), tuple(totals), tuple(machines)),
    baseline=words,
    note=_note(table, machines, options["dtype"]),
    fmt=fmt,
    peers=peers,
  )


def _best_dense(
  table: Layers, engine: Engine, options: dict[str, Any]
) -> tuple[Engine, _Priced]:
  """The fastest dense peer or the engine itself, and what it takes."""
  peers = dense_peers(engine) or (engine,)
  priced = _costs(table.dense(), peers, options)
  best = min(range(len(peers)), key=lambda i: priced[i].sums["cycles"])
  return peers[best], priced[best]


def _with(table: Layers, pattern: Any) -> Layers:
  if pattern is None:
    return table
  if pattern == "dense":
    return table.dense()
  try:
    return table.with_pattern(pattern)
  except ValueError as error:
    raise ValueError(f"sweep axis 'pattern': {error}") from error


def _named(peers: Sequence[Engine]) -> str:
  names = list(dict.fromkeys(map(str, peers)))
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f" ({', '.join(names[:3])}{more})" if names else ""


def _note(table: Layers, engines: Sequence[Engine], dtype: str | None) -> str:
  """What the engines assume of these layers, in sentences."""
  masks = table.masks or [None] * len(table)
  sparse = [mask for mask, m, n in zip(masks, table.m, table.n) if n < m]
  known = sum(mask is not None for mask in sparse)
  engines = [engine.at(dtype) if dtype else engine for engine in engines]
  notes = dict.fromkeys(engine.note(len(sparse), known) for engine in engines)
  plain = [str(engine) for engine in engines if not engine.NARROWS]
  if table.v is not None and table.v.any() and plain:
    notes[f"V:N:M runs as N:M on {', '.join(plain)}."] = None
  operands = f"Operands are {dtype}." if dtype else ""
  return " ".join(filter(None, (operands, *notes)))


def _check_units(engines: Sequence[Engine], baseline: Engine) -> None:
  for engine in engines:
    if engine.unit != baseline.unit:
      raise ValueError(
        f"baseline {baseline} counts {baseline.unit} and {engine}"
        f" {engine.unit}, which do not compare; choose a baseline of its kind"
      )


class _Priced(NamedTuple):
  """A table on one engine: the cost per layer, and sums weighed by count."""

  cost: Cost
  sums: dict[str, int]


def _costs(
  table: Layers, engines: Sequence[Engine], options: dict[str, Any]
) -> list[_Priced]:
  """The cost on each engine; those of one kind in one call."""
  groups: dict[Any, list[int]] = {}
  for place, engine in enumerate(engines):
    if any(map(np.ndim, engine.leaves)):
      raise ValueError(
        f"report: engine {engine} has an array of values; report designs singly"
      )
    groups.setdefault(_kind(engine), []).append(place)
  priced: dict[int, _Priced] = {}
  for places in groups.values():
    several = [engines[place] for place in places]
    priced |= zip(places, _together(table, several, options))
  return [priced[place] for place in range(len(engines))]


def _kind(engine: Engine) -> tuple[Any, ...]:
  """What engines must share to be computed together: all but numbers."""
  numbers = {field.name for field in engine.numeric()}
  fields = (field.name for field in dataclasses.fields(engine))
  names = set(fields) - numbers - set(engine.LABELS)
  return type(engine), *(getattr(engine, name) for name in sorted(names))


def _together(
  table: Layers, engines: Sequence[Engine], options: dict[str, Any]
) -> list[_Priced]:
  first = engines[0]
  columns: dict[str, Any] = {
    field.name: np.array([[getattr(each, field.name)] for each in engines])
    for field in first.numeric()
  }
  all_at_once = dataclasses.replace(first, name="all", **columns)
  try:
    whole = cost(table, all_at_once, **options)
    sums = {name: whole.total(name).tolist() for name in _SUMMED}
  except ValueError:
    # Again one by one, so that the error names its engine.
    for engine in engines:
      try:
        alone = cost(table, engine, **options)
        _ = [alone.total(name) for name in _SUMMED]
      except ValueError as error:
        raise ValueError(f"engine {engine}: {error}") from error
    raise
  names = [field.name for field in dataclasses.fields(Cost)]
  fields = {name: getattr(whole, name) for name in names if name != "count"}
  return [
    _Priced(
      Cost(**{k: v[place] for k, v in fields.items()}, count=whole.count),
      {name: column[place] for name, column in sums.items()},
    )
    for place in range(len(engines))
  ]


def _rows(
  table: Layers,
  patterns: Sequence[str],
  engine: Engine,
  price: Cost,
  base: Cost,
) -> list[Row]:
  columns = (
    table.names,
    [str(engine)] * len(table),
    *(size.tolist() for size in (table.M, table.N, table.K)),
    patterns,
    price.cycles.tolist(),
    price.utilisation.tolist(),
    (base.cycles / price.cycles).tolist(),
    price.energy_pj.tolist(),
    price.dram_bytes.tolist(),
  )
  return [Row(*row) for row in zip(*columns)]


def _total(workload, patterns, engine, price, base) -> Total:
  cycles, baseline = price.sums["cycles"], base.sums["cycles"]
  sparse = {pattern for pattern in patterns if pattern != "dense"}
  cost, count = price.cost, price.cost.count
  return Total(
    workload=workload,
    engine=str(engine),
    pattern="mixed" if len(sparse) > 1 else min(sparse, default="dense"),
    unit=engine.unit,
    cycles=cycles,
    baseline_cycles=baseline,
    speedup=baseline / cycles,
    utilisation=float((cost.utilisation * cost.cycles * count).sum()) / cycles,
    energy_pj=float((cost.energy_pj * count).sum()),
    dram_bytes=price.sums["dram_bytes"],
    stall_factor=1 + price.sums["stall_exchange"] / price.sums["compute"],
    parts={part: price.sums[part] for part in PARTS},
  )


def _layers(rows: Sequence[Row]) -> tuple[Sequence[str], Sequence[Any]]:
  """Header and rows of the layers."""
  if any(row.ideal_speedup is not None for row in rows):
    return Row._fields, rows
  return Row._fields[:-1], [row[:-1] for row in rows]


def _totals(totals: Sequence[Total]) -> tuple[list[str], list[list[Any]]]:
  """Header and rows of the totals, without their parts."""
  names = [name for name in Total._fields if name != "parts"]
  if not any(total.workload for total in totals):
    names.remove("workload")
  if all(total.stall_factor == 1 for total in totals):
    names.remove("stall_factor")
  if all(total.ideal_speedup is None for total in totals):
    names.remove("ideal_speedup")
  return names, [[getattr(total, name) for name in names] for total in totals]


def _parts(totals: Sequence[Total]) -> tuple[list[str], list[list[Any]]]:
  """Header and rows of the shares of cycles, of parts that occur."""
  parts = [part for part in PARTS if any(total.parts[part] for total in totals)]
  rows = [
    [
      total.engine,
      total.pattern,
      *(total.parts[part] / total.cycles for part in parts),
    ]
    for total in totals
  ]
  return ["share of cycles", "pattern", *parts], rows


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Comma-separated values; fractions with nine digits.

  >>> print(csv_text(["name", "share"], [["a, b", 1 / 3]]))
  name,share
  "a, b",0.333333333
  """
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(header)
  writer.writerows(
    [f"{x:.9g}" if isinstance(x, float) else x for x in row] for row in rows
  )
  return out.getvalue().rstrip("\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table for a page.

  >>> print(markdown(["name", "share"], [["a", 0.5]]))
  | name | share |
  | --- | --- |
  | a | 0.500 |
  """
  cells = [[x.replace("|", "\\|") for x in row] for row in _texts(header, rows)]
  cells.insert(1, ["---"] * len(header))
  return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table for a terminal: text to the left, numbers to the right.

  >>> print(text_table(["name", "size"], [["a", 5], ["bb", 50]]))
  name  size
  a        5
  bb      50
  """
  cells = _texts(header, rows)
  widths = [max(map(len, column)) for column in zip(*cells)]
  left = [isinstance(x, str) for x in (rows[0] if rows else header)]
  return "\n".join(
    "  ".join(
      x.ljust(w) if to_left else x.rjust(w)
      for x, w, to_left in zip(row, widths, left)
    ).rstrip()
    for row in cells
  )


def columns_text(columns: Mapping[str, Any], caption: str, fmt: str) -> str:
  """Columns as one of `FORMATS`, with a caption but in CSV.

  Args:
    columns: Arrays of equal length by name; -1 stands for nothing.
    caption: What the numbers are.
    fmt: Format of the text.

  >>> print(columns_text({"a": np.array([1, -1])}, "Two rows.", "table"))
  Two rows.
  <BLANKLINE>
  a
  1
  -
  """
  lists = [np.asarray(x).tolist() for x in columns.values()]
  rows = [[None if x == -1 else x for x in row] for row in zip(*lists)]
  if fmt == "json":
    points = [dict(zip(columns, row)) for row in rows]
    return json.dumps({"caption": caption, "points": points}, indent=1)
  if fmt == "csv":
    return csv_text(list(columns), rows)
  draw = markdown if fmt == "md" else text_table
  return f"{caption}\n\n{draw(list(columns), rows)}"


def times(ratio: float) -> str:
  """A speed-up, which may be tiny, as text.

  >>> times(2.149), times(1.0), times(0.000412)
  ('2.15×', '1.00×', '0.00041×')
  """
  return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.2g}×"


def _texts(
  header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> list[list[str]]:
  return [list(header), *([_text(x) for x in row] for row in rows)]


def _text(value: Any) -> str:
  """Three decimals, or a few digits where a number is large or tiny."""
  if value is None:
    return "-"
  if not isinstance(value, float):
    return str(value)
  if value and value < 0.001:
    return f"{value:.2g}"
  return f"{value:.3f}" if value < 1000 else f"{value:.4g}"
