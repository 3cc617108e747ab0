"""Tables of what each layer, and the whole model, costs on each engine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine._cost import Cost, cost, operands
from figs_jax.engine.area import Area, area_table
from figs_jax.engine.energy import Energy
from figs_jax.engine.layers import Layers
from figs_jax.engine.non_gemm import non_gemm_cycles
from figs_jax.engine.reports.notes import energy_note, notes_of
from figs_jax.engine.reports.rows import Row, Total
from figs_jax.engine.reports.tables import layer_rows, printed
from figs_jax.engine.reports.text import csv_text, markdown, text_table
from figs_jax.engine.spec import Engine, nearest
from figs_jax.engine.spec_text import parse
from figs_jax.engine.studies.attention import (
  Fusion,
  attention_pairs,
  fused_cost,
)
from figs_jax.engine.studies.bandwidth import dense_peers
from figs_jax.engine.sweeps.axes import (
  Axes,
  as_axes,
  designs,
  workloads_of,
)
from figs_jax.engine.timing import PARTS

FORMATS = ("table", "csv", "json", "md")
_SUMMED = ("cycles", "dram_bytes", *PARTS)
DENSE = "the same engine running the dense model"
BEST_DENSE = "dense"  # a baseline: the fastest of an engine's dense peers
_FUSED = (
  "fused is the share of attention whose logits stay on chip; elsewhere no tile"
  " fits, or tiles take longer."
)
# What a report of a sweep can hold.
_DESIGNS, _ROWS = 100_000, 2_000_000


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
    lengths: Number of `rows` of each of `totals`.
    itemsize: Bytes per value off chip, as given.
    dtype: Data type of the operands, as given.
  """

  rows: tuple[Row, ...]
  totals: tuple[Total, ...]
  engines: tuple[Engine, ...]
  baseline: str
  note: str = ""
  fmt: str = "table"
  area: Area | None = None
  peers: tuple[Engine, ...] = ()
  lengths: tuple[int, ...] = ()
  itemsize: int | Fraction | None = None
  dtype: str | None = None

  def __post_init__(self):
    if self.fmt not in FORMATS:
      raise ValueError(f"report fmt {self.fmt!r}: {nearest(self.fmt, FORMATS)}")

  @classmethod
  def joined(cls, reports: Sequence[Report]) -> Report:
    """Several workloads' reports as one."""
    parts: dict[str, Any] = {
      name: tuple(one for each in reports for one in getattr(each, name))
      for name in ("rows", "totals", "engines", "peers", "lengths")
    }
    return dataclasses.replace(reports[0], **parts)

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
    return " ".join(filter(None, self._captions))

  @property
  def _captions(self) -> tuple[str, str]:
    areas = "Areas are reconstructed from counted parts." if self.area else ""
    return (
      "Modelled cycles (ns on rooflines), not measured. Speed-up is over"
      f" {self.baseline}.",
      " ".join(filter(None, (self.note, areas))),
    )

  @property
  def layers(self) -> tuple[tuple[Row, ...], ...]:
    """The rows of each of `totals`."""
    rows = iter(self.rows)
    return tuple(tuple(itertools.islice(rows, n)) for n in self.lengths)

  @property
  def layers_csv(self) -> str:
    """Every layer on every engine as comma-separated values."""
    return csv_text(*layer_rows(self.rows))

  def __str__(self) -> str:
    if self.fmt == "csv":
      return self.layers_csv
    areas = [area_table(self.engines, self.area)] if self.area else []
    if self.fmt == "json":
      tables = (
        {
          "areas": [
            dict(zip(header, row)) for header, rows in areas for row in rows
          ]
        }
        if areas
        else {}
      )
      return json.dumps(
        {
          "caption": self.caption,
          "totals": [total._asdict() for total in self.totals],
          "rows": [row._asdict() for row in self.rows],
          **tables,
        },
        indent=1,
      )  # fmt: skip
    draw = markdown if self.fmt == "md" else text_table
    captions = self._captions
    return printed(self.totals, self.layers, captions, draw, more=areas)


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
  fuse: Fusion | str = "none",
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
      design (`figs_jax.engine.sweep` selects from more of them). Fields of a
      `Fusion` are axes too, as in "fuse=none,flat; buffer=524288,33554432".
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
    fuse: How attention runs, "none" or "flat", or a `Fusion`. The dense model
      that speed-ups are over by default is not fused.

  Raises:
    ValueError: If engines are missing or designs too many; a row, spec, axis
      or fmt is bad; the baseline counts in another unit; or a result does not
      fit int64.

  >>> row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  >>> made = report([row], ["ws:32x32"], fmt="csv")
  >>> print(str(made).partition(",energy_pj")[0])
  name,engine,M,N,K,pattern,count,cycles,utilisation,speedup
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
  all_axes = {} if axes is None else as_axes(axes)
  varied = dict(all_axes)
  patterns = varied.pop("pattern", (None,))
  fusions = _fusions(fuse, varied)
  if varied:
    rows = sum(map(len, tables.values())) * len(patterns) * len(fusions)
    machines = designs(machines, varied, min(_DESIGNS, _ROWS // rows))
  options: dict[str, Any] = {"itemsize": itemsize, "energy": energy}
  options["dtype"] = dtype
  notes: dict[str, None] = {}
  rows, totals, peers, lengths, words = [], [], [], [], ""
  for label, table in tables.items():
    for pattern in patterns:
      one = _with(table, pattern)
      words, dense, over = _baseline(one, machines, baseline, options)
      notes |= notes_of(one, machines, dtype)
      notes |= energy_note(machines, energy)
      for fusion in fusions:
        parts = _report(one, machines, over, fusion, options, label)
        rows += parts[0]
        totals += parts[1]
        peers += dense
        lengths += [len(one)] * len(machines)
  words += _named(peers)
  if any(total.fuse != "none" for total in totals):
    words += ", attention unfused"
    notes[_FUSED] = None
  repeats = len(totals) // len(machines)
  made = Report(
    *(tuple(rows), tuple(totals), tuple(machines) * repeats),
    baseline=words,
    note=" ".join(notes),
    fmt=fmt,
    area=area,
    peers=tuple(peers),
    lengths=tuple(lengths),
    itemsize=itemsize,
    dtype=dtype,
  )
  silicon = [chip for x in machines if (chip := x.silicon()) is not None]
  if not silicon:
    return made
  # The designs have their axes already.
  kept = {name: x for name, x in all_axes.items() if name not in varied}
  over = baseline
  if over is not None and over != BEST_DENSE:
    over = parse(over)
    over = over.silicon() or over
  options |= {"baseline": over}
  ideal = report(tables, silicon, axes=kept or None, fuse=fuse, **options)
  return made.beside(ideal)


def _beside(item: Any, ideal: Iterator[Any]) -> Any:
  return item._replace(ideal_speedup=next(ideal).speedup)


def _fusions(
  fuse: Fusion | str, axes: dict[str, Sequence[Any]]
) -> list[Fusion]:
  """Every `Fusion` of the axes that it has, which are removed from them."""
  first = fuse if isinstance(fuse, Fusion) else Fusion(fuse)
  names = [field.name for field in dataclasses.fields(Fusion)]
  own = {name: axes.pop(name) for name in names if name in axes}
  try:
    made = [
      dataclasses.replace(first, **dict(zip(own, point)))
      for point in itertools.product(*own.values())
    ]
  except ValueError as error:
    raise ValueError(f"sweep axis: {error}") from error
  idle = own.keys() - {"fuse"}
  if idle and all(fusion.fuse == "none" for fusion in made):
    raise ValueError(f"sweep axis {min(idle)!r}: expected fuse=flat with it")
  # Unfused attention has no buffer, so that one of these is enough.
  alike = {str(fusion): fusion for fusion in made}
  return list(alike.values())


def _baseline(
  table: Layers,
  machines: Sequence[Engine],
  baseline: Engine | str | None,
  options: dict[str, Any],
) -> tuple[str, list[Engine], list[_Priced]]:
  """What the speed-ups are over, in words, and each engine's peer and cost."""
  if baseline is None:
    return DENSE, [], _costs(table.dense(), machines, options, Fusion())
  if baseline == BEST_DENSE:
    words = "the fastest dense array of as many multipliers and as wide a port"
    peers, over = zip(*(_best_dense(table, x, options) for x in machines))
    return words, list(peers), list(over)
  other = parse(baseline)
  _check_units(machines, other)
  over = _costs(table, [other], options, Fusion()) * len(machines)
  return f"{other} running the same layers", [], over


def _best_dense(
  table: Layers, engine: Engine, options: dict[str, Any]
) -> tuple[Engine, _Priced]:
  """The fastest dense peer or the engine itself, and what it takes."""
  peers = dense_peers(engine) or (engine,)
  priced = _costs(table.dense(), peers, options, Fusion())
  best = min(range(len(peers)), key=lambda i: priced[i].sums["cycles"])
  return peers[best], priced[best]


def _named(peers: Sequence[Engine]) -> str:
  names = list(dict.fromkeys(map(str, peers)))
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f" ({', '.join(names[:3])}{more})" if names else ""


def _report(
  table: Layers,
  machines: Sequence[Engine],
  over: Sequence[_Priced],
  fusion: Fusion,
  options: dict[str, Any],
  workload: str,
) -> tuple[list[Row], list[Total]]:
  """The rows and totals of one table under one fusion."""
  rows, totals = [], []
  patterns = [table.pattern(i) for i in range(len(table))]
  known = {
    "fuse": str(fusion),
    "seq": table.forward.seq if table.forward else 0,
  }
  cached = _cached(table)
  costs = _costs(table, machines, options, fusion)

  def has_energy(engine: Engine) -> bool:
    # The table of 45 nm arrays says nothing of a processor.
    return engine.is_array or options["energy"] is not None

  for engine, priced, base in zip(machines, costs, over):
    costs_of = priced.cost, base.cost
    rows += _rows(table, patterns, engine, *costs_of, has_energy(engine))
    total = _total(workload, patterns, engine, priced, base)
    if not has_energy(engine):
      total = total._replace(energy_pj=None)
    size = operands(engine, **options).itemsize
    totals.append(total._replace(**known, cache_bytes=math.ceil(size * cached)))
  return rows, totals


def _with(table: Layers, pattern: Any) -> Layers:
  if pattern is None:
    return table
  if pattern == "dense":
    return table.dense()
  try:
    return table.with_pattern(pattern)
  except ValueError as error:
    raise ValueError(f"sweep axis 'pattern': {error}") from error


def _cached(table: Layers) -> int:
  """Keys and values that a decoded token of every sequence reads."""
  if table.forward is None or table.forward.phase != "decode":
    return 0
  both = list(itertools.chain(*attention_pairs(table)))
  return sum((table.K[both] * table.N[both] * table.count[both]).tolist())


def _check_units(engines: Sequence[Engine], baseline: Engine) -> None:
  for engine in engines:
    if engine.unit != baseline.unit:
      raise ValueError(
        f"baseline {baseline} counts {baseline.unit} and {engine}"
        f" {engine.unit}, which do not compare; choose a baseline of its kind"
      )


class _Priced(NamedTuple):
  """A table on one engine.

  Attributes:
    cost: Cost per layer.
    sums: Sums of its fields, weighed by count.
    fused: Whether each pair of attention's products is fused.
    non_gemm: Cycles beside the products, by kind.
  """

  cost: Cost
  sums: dict[str, int]
  fused: np.ndarray
  non_gemm: dict[str, int]


def _costs(
  table: Layers,
  engines: Sequence[Engine],
  options: dict[str, Any],
  fusion: Fusion,
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
    priced |= zip(places, _together(table, several, options, fusion))
  return [priced[place] for place in range(len(engines))]


def _kind(engine: Engine) -> tuple[Any, ...]:
  """What engines must share to be computed together: all but numbers."""
  numbers = {field.name for field in engine.numeric()}
  fields = (field.name for field in dataclasses.fields(engine))
  names = set(fields) - numbers - set(engine.LABELS)
  return type(engine), *(getattr(engine, name) for name in sorted(names))


def _together(
  table: Layers,
  engines: Sequence[Engine],
  options: dict[str, Any],
  fusion: Fusion,
) -> list[_Priced]:
  first = engines[0]
  columns: dict[str, Any] = {
    field.name: np.array([[getattr(each, field.name)] for each in engines])
    for field in first.numeric()
  }
  all_at_once = dataclasses.replace(first, name="all", **columns)
  try:
    whole, fused = _priced(table, all_at_once, options, fusion)
    sums = {name: np.asarray(whole.total(name)).tolist() for name in _SUMMED}
  except ValueError:
    # Again one by one, so that the error names its engine.
    for engine in engines:
      try:
        alone, _ = _priced(table, engine, options, fusion)
        _ = [alone.total(name) for name in _SUMMED]
      except ValueError as error:
        raise ValueError(f"engine {engine}: {error}") from error
    raise
  names = [field.name for field in dataclasses.fields(Cost)]
  fields = {name: getattr(whole, name) for name in names if name != "count"}
  fused = np.broadcast_to(fused, (len(engines), fused.shape[-1]))
  given = operands(all_at_once, **options)
  beside = _non_gemms(table, given.engine, given.itemsize, fused)
  return [
    _Priced(
      Cost(**{k: v[place] for k, v in fields.items()}, count=whole.count),
      {name: column[place] for name, column in sums.items()},
      fused[place],
      {kind: int(column[place]) for kind, column in beside.items()},
    )
    for place in range(len(engines))
  ]


def _priced(
  table: Layers, engine: Engine, options: dict[str, Any], fusion: Fusion
) -> tuple[Cost, np.ndarray]:
  """The cost of the layers, and which of attention's pairs are fused."""
  price = cost(table, engine, **options)
  if fusion.fuse == "none":
    return price, np.zeros((1, 0), bool)
  given = operands(engine, **options)
  sizes = {"itemsize": given.itemsize, "energy": given.energy}
  return fused_cost(table, given.engine, price, fusion, **sizes)


def _non_gemms(
  table: Layers, engine: Engine, itemsize: int | Fraction, fused: np.ndarray
) -> dict[str, np.ndarray]:
  """Kind -> cycles on each design; fused attention has no softmax of its own.

  Args:
    table: Layers, of a whole model or not.
    engine: Engine of several designs.
    itemsize: Bytes per value.
    fused: Whether each pair of attention's products is fused, (designs, pairs).
  """
  if table.forward is None:
    return {}
  passes = table.forward.non_gemms
  cycles = np.array(non_gemm_cycles(passes, engine, itemsize))
  cycles = np.broadcast_to(cycles, (len(fused), len(passes))).copy()
  if fused.size:
    qk, _ = attention_pairs(table)
    pairs = {table.names[i].rpartition("/")[0]: p for p, i in enumerate(qk)}
    for place, one in enumerate(passes):
      pair = pairs.get(one.name.rpartition("/")[0])
      if one.kind == "softmax" and pair is not None:
        cycles[:, place] *= ~fused[:, pair]
  kinds = dict.fromkeys(one.kind for one in passes)
  return {
    kind: cycles[:, [one.kind == kind for one in passes]].sum(-1)
    for kind in kinds
  }


def _rows(
  table: Layers,
  patterns: Sequence[str],
  engine: Engine,
  price: Cost,
  base: Cost,
  has_energy: bool,
) -> list[Row]:
  columns = (
    table.names,
    [str(engine)] * len(table),
    *(size.tolist() for size in (table.M, table.N, table.K)),
    patterns,
    table.count.tolist(),
    price.cycles.tolist(),
    price.utilisation.tolist(),
    (base.cycles / price.cycles).tolist(),
    price.energy_pj.tolist() if has_energy else [None] * len(table),
    price.dram_bytes.tolist(),
  )
  return [Row(*row) for row in zip(*columns)]


def _total(workload, patterns, engine, price, base) -> Total:
  cycles, baseline = price.sums["cycles"], base.sums["cycles"]
  sparse = {pattern for pattern in patterns if pattern != "dense"}
  cost, count = price.cost, price.cost.count
  waits = (cost.cycles * count)[cost.stall_dram > 0].sum()
  whole = cycles + sum(price.non_gemm.values())
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
    memory_bound=int(waits) / cycles,
    fuse="none",
    fused=float(price.fused.mean()) if price.fused.size else 0.0,
    seq=0,
    cache_bytes=0,
    non_gemm=price.non_gemm,
    whole_cycles=whole,
    whole_speedup=(baseline + sum(base.non_gemm.values())) / whole,
  )
