"""The tables of a report, as headers and rows.

A printed report starts and ends with the whole model. Between them stands each
kind of layer once, with the number of its instances, and the engines side by
side; `layer_rows` has every layer on every engine.
"""

from __future__ import annotations

import itertools
import os.path
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from figs_jax.engine.reports.rows import Row, Total
from figs_jax.engine.reports.text import plain, times
from figs_jax.engine.timing import PARTS

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
NO_ENERGY = "n/a"  # of a processor, for which there is no table
_ACROSS = 4  # engines side by side
_MOST = 12  # designs whose layers are printed
_NAMES = 6  # names of a kind of layer
_WIDTH = 120


def printed(
  totals: Sequence[Total],
  layers: Sequence[Sequence[Row]],
  caption: Sequence[str],
  draw: Callable[..., str],
  *,
  more: Iterable[Table] = (),
) -> str:
  """The text of a report.

  Args:
    totals: Costs of the whole model.
    layers: Costs of its layers, for each of the totals.
    caption: What the numbers are, and what else a reader must know.
    draw: Draws a header and rows.
    more: Tables to add.
  """
  whole = draw(*total_rows(totals))
  blocks = [wrapped(caption[0]), whole, draw(*part_rows(totals))]
  blocks += [draw(*table) for table in more]
  if len(totals) > _MOST:
    count = sum(map(len, layers))
    blocks.append(
      f"{count:,} rows of layers are left out; csv, json and --layers_out have"
      " them."
    )
  else:
    blocks += list(_layer_blocks(totals, layers, draw))
  if caption[1]:
    blocks.append(wrapped(caption[1]))
  return "\n\n".join([*blocks, whole])


def wrapped(text: str) -> str:
  """A paragraph in lines for a terminal."""
  return textwrap.fill(text, _WIDTH, break_long_words=False)


def layer_rows(rows: Sequence[Row]) -> Table:
  """Every layer on every engine."""
  names = list(Row._fields)
  if all(row.ideal_speedup is None for row in rows):
    names.remove("ideal_speedup")
  return names, [_values(row, names) for row in rows]


def total_rows(totals: Sequence[Total]) -> Table:
  """The totals without their parts and without what is alike."""
  shows = {
    "workload": any(total.workload for total in totals),
    "stall_factor": any(total.stall_factor != 1 for total in totals),
    "memory_bound": any(total.memory_bound for total in totals),
    "cache_bytes": any(total.cache_bytes for total in totals),
    **dict.fromkeys(
      ("fuse", "fused"), any(total.fuse != "none" for total in totals)
    ),
    "ideal_speedup": any(x.ideal_speedup is not None for x in totals),
    "whole_cycles": any(total.non_gemm for total in totals),
    "whole_speedup": any(total.non_gemm for total in totals),
  } | dict.fromkeys(("parts", "non_gemm", "seq"), False)
  names = [name for name in Total._fields if shows.get(name, True)]
  return names, [_values(total, names) for total in totals]


def _values(item: Row | Total, names: Sequence[str]) -> list[Any]:
  """Fields by name, with a word for an energy that no table has."""
  shown = item._asdict()
  if item.energy_pj is None:
    shown["energy_pj"] = NO_ENERGY
  return [shown[name] for name in names]


def part_rows(totals: Sequence[Total]) -> Table:
  """The shares of all cycles, of parts that occur."""
  parts = [part for part in PARTS if any(total.parts[part] for total in totals)]
  kinds = list(dict.fromkeys(k for total in totals for k in total.non_gemm))
  rows = []
  for total in totals:
    cycles = total.parts | total.non_gemm
    shares = [cycles.get(x, 0) / total.whole_cycles for x in (*parts, *kinds)]
    rows.append([total.engine, total.pattern, *shares])
  return ["share of cycles", "pattern", *parts, *kinds], rows


def _layer_blocks(
  totals: Sequence[Total],
  layers: Sequence[Sequence[Row]],
  draw: Callable[..., str],
) -> Iterable[str]:
  """A table per workload, pattern and few engines."""
  pairs = zip(totals, layers, strict=True)
  for what, group in itertools.groupby(pairs, lambda pair: _what(pair[0])):
    of = ", ".join(("one of each layer", *filter(None, what)))
    title = f"Cycles, speed-up and utilisation of {of}."
    several = list(group)
    for first in range(0, len(several), _ACROSS):
      few = several[first : first + _ACROSS]
      names = [total.engine for total, _ in few]
      kinds = alike([rows for _, rows in few])
      header = ["layer", "M", "N", "K", "pattern", *names]
      yield title
      yield draw(header, [_kind(*kind) for kind in kinds])


def _what(total: Total) -> tuple[str, ...]:
  fuse = "" if total.fuse == "none" else f"fuse={total.fuse}"
  pattern = total.pattern if total.pattern not in ("mixed", "dense") else ""
  return total.workload, pattern, fuse


def _kind(label: str, rows: Sequence[Row]) -> list[Any]:
  row = rows[0]
  cells = [
    f"{plain(x.cycles):>9} {times(x.speedup):>7} {x.utilisation:4.0%}"
    for x in rows
  ]
  return [label, row.M, row.N, row.K, row.pattern, *cells]


def alike(layers: Sequence[Sequence[Row]]) -> list[tuple[str, tuple[Row, ...]]]:
  """Layers of equal sizes and costs as one, under a name with its count.

  Args:
    layers: Rows of the same layers on each of several engines.

  Returns:
    The name of each kind, and the row of its first layer on each engine.

  >>> row = Row("", "ws", 8, 8, 8, "dense", 1, 30, 0.5, 1.0, 9.0, 384)
  >>> names = ("blocks/0/q", "blocks/0/k", "blocks/1/q", "blocks/1/k", "head")
  >>> rows = [row._replace(name=name) for name in names]
  >>> rows[-1] = rows[-1]._replace(N=5, count=3)
  >>> [label for label, _ in alike([rows])]
  ['q, k × 2', 'head × 3']
  """
  kinds: dict[Any, list[tuple[Row, ...]]] = {}
  for several in zip(*layers, strict=True):
    plain_rows = (row._replace(name="", count=1) for row in several)
    kinds.setdefault(tuple(plain_rows), []).append(several)
  groups = list(kinds.values())
  counts = [_counts([several[0] for several in group]) for group in groups]
  paths = [[several[0].name for several in group] for group in groups]
  labels = []
  for place, mine in enumerate(counts):
    rivals = [
      paths[other]
      for other, names in enumerate(counts)
      if other != place and names.keys() & mine.keys()
    ]
    labels.append(f"{_prefix(paths[place], rivals)}{_counted(mine)}")
  return [(label, group[0]) for label, group in zip(labels, groups)]


def _counts(rows: Sequence[Row]) -> dict[str, int]:
  """Last part of a name -> number of its instances."""
  counts: dict[str, int] = {}
  for row in rows:
    last = re.sub(r"\[\d+\]$", "", row.name.rsplit("/", 1)[-1])
    counts[last] = counts.get(last, 0) + row.count
  return counts


def _counted(counts: dict[str, int]) -> str:
  """The names, each with its count unless all have the same."""
  shown = dict(itertools.islice(counts.items(), _NAMES))
  more = f", {len(counts) - _NAMES} more" if len(counts) > _NAMES else ""
  if len(set(counts.values())) > 1:
    return ", ".join(f"{k} × {v}" for k, v in shown.items()) + more
  (count,) = set(counts.values())
  return ", ".join(shown) + more + (f" × {count}" if count > 1 else "")


def _prefix(paths: Sequence[str], rivals: Sequence[Sequence[str]]) -> str:
  """The module that sets layers apart from others of the same names."""
  mine = _stem(paths)
  stems = [_stem(names) for names in rivals]
  if not mine or not stems or all(stem == mine for stem in stems):
    return ""
  shared = len(os.path.commonprefix([mine, *stems]))
  return f"{'/'.join(mine[: shared + 1])}: "


def _stem(paths: Sequence[str]) -> list[str]:
  """The modules that all paths lie in."""
  modules = [path.split("/")[:-1] for path in paths]
  return list(os.path.commonprefix(modules))
