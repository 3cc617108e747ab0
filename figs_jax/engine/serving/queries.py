"""Streams of queries: when they arrive and what they ask for.

Times are whole nanoseconds in int64, so that a simulation has one result. A
trace is a CSV file with the column `arrival`, in seconds, and optionally
`latency`, the bound of the response in seconds, and `accuracy`, the least that
is asked for.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
_MOST_NS = 2**60  # some 36 years
_BOUND = re.compile(r"(latency|accuracy)\s*(<=|>=)\s*([0-9.eE+-]+)\s*([a-z]*)")


class Promise(NamedTuple):
  """What a query asks for.

  Attributes:
    latency: Bound of the time from its arrival to its answer, in ns.
    accuracy: Least accuracy.
  """

  latency: int = _MOST_NS
  accuracy: float = 0.0

  @classmethod
  def parse(cls, text: str) -> Promise:
    """Reads "latency<=5ms", "accuracy>=.85", or both with a comma between.

    Raises:
      ValueError: If the text is neither, or a value is out of range.

    >>> Promise.parse("latency<=5ms, accuracy>=.85")
    Promise(latency=5000000, accuracy=0.85)
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
      match = _BOUND.fullmatch(part.strip())
      signs = {"latency": "<=", "accuracy": ">="}
      if match is None or signs[match[1]] != match[2] or match[1] in values:
        raise ValueError(
          f"objective {part.strip()!r}: expected 'latency<=5ms' or"
          " 'accuracy>=0.85', each once"
        )
      name, _, number, unit = match.groups()
      try:
        value = float(number)
      except ValueError:
        value = float("nan")
      if name == "latency":
        if unit not in NS or not 0 < value * NS[unit] < _MOST_NS:
          raise ValueError(
            f"objective {part.strip()!r}: expected a positive time in ns, us,"
            f" ms or s, got {number + unit!r}"
          )
        values[name] = max(round(value * NS[unit]), 1)
      else:
        if unit or not 0 <= value <= 1:
          raise ValueError(
            f"objective {part.strip()!r}: expected an accuracy from 0 to 1, got"
            f" {number + unit!r}"
          )
        values[name] = value
    return cls(**values)


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
  """A stream of queries, in the order of their arrival.

  Attributes:
    arrival: Times of arrival in ns, int64 [n], never falling.
    latency: Bounds of the time to the answer in ns, int64 [n].
    accuracy: Least accuracies, float64 [n].

  Raises:
    ValueError: If the stream is empty, shapes differ, times fall or are out of
      range, or a bound is not positive.
  """

  arrival: np.ndarray
  latency: np.ndarray
  accuracy: np.ndarray

  def __post_init__(self):
    columns = self.arrival, self.latency, self.accuracy
    shapes = {np.shape(column) for column in columns}
    if len(shapes) != 1 or len(min(shapes)) != 1 or min(shapes) == (0,):
      raise ValueError(
        "queries: expected at least one, with a bound for each, got shapes"
        f" {', '.join(str(np.shape(x)) for x in columns)}"
      )
    for name, kind in (("arrival", np.int64), ("latency", np.int64)):
      column = np.asarray(getattr(self, name))
      if column.dtype.kind not in "iu":
        raise ValueError(f"queries {name}: expected integers in ns")
      object.__setattr__(self, name, column.astype(kind))
    accuracy = np.asarray(self.accuracy, np.float64)
    object.__setattr__(self, "accuracy", accuracy)
    arrival, latency = self.arrival, self.latency
    if (np.diff(arrival) < 0).any() or arrival[0] < 0:
      at = int(np.flatnonzero(np.diff(arrival, prepend=0) < 0)[0])
      raise ValueError(
        f"queries arrival: expected times from 0 that never fall, got"
        f" {arrival[at]} ns of query {at}; sort the queries"
      )
    if arrival[-1] > _MOST_NS or latency.max() > _MOST_NS or latency.min() < 1:
      raise ValueError(
        "queries: expected times and positive bounds of at most 2^60 ns, got an"
        f" arrival at {arrival[-1]} and bounds from {latency.min()} to"
        f" {latency.max()} ns"
      )

  def __len__(self) -> int:
    return len(self.arrival)

  @property
  def rate(self) -> float:
    """Queries per second, from the first arrival to the last."""
    span = int(self.arrival[-1] - self.arrival[0])
    return (len(self) - 1) / span * 1e9 if span else float("inf")

  def at_load(self, factor: float | int) -> Queries:
    """The same stream `factor` times as dense in time.

    Raises:
      ValueError: If the factor is not positive, or a time leaves the range.

    >>> poisson(100, 2, Promise()).at_load(2).rate > 0
    True
    """
    if not 0 < factor < float("inf"):
      raise ValueError(f"load: expected a positive factor, got {factor}")
    scaled = np.rint(self.arrival / factor)
    if scaled[-1] > _MOST_NS:
      raise ValueError(f"load {factor}: the last query arrives after 2^60 ns")
    return dataclasses.replace(self, arrival=scaled.astype(np.int64))


def poisson(
  rate: float | int, count: int, promise: Promise, seed: int = 0
) -> Queries:
  """Queries that arrive independently of each other.

  Args:
    rate: Queries per second.
    count: Number of queries.
    promise: What each of them asks for.
    seed: Seed of the times.

  Raises:
    ValueError: If the rate or the number is not positive, or the last query
      arrives after 2^60 ns.

  >>> queries = poisson(200, 10_000, Promise.parse("latency<=5ms"))
  >>> len(queries), round(queries.rate, -1)
  (10000, 200.0)
  """
  if not 0 < rate < float("inf"):
    raise ValueError(f"rate: expected queries per second, got {rate}")
  if count < 1:
    raise ValueError(f"queries: expected at least one, got {count}")
  gaps = np.random.default_rng(seed).exponential(1e9 / rate, count)
  times = np.cumsum(gaps)
  if times[-1] > _MOST_NS:
    raise ValueError(f"rate {rate}: the last query arrives after 2^60 ns")
  return Queries(
    np.rint(times).astype(np.int64),
    np.full(count, promise.latency),
    np.full(count, promise.accuracy),
  )


def read_trace(path: str | Path, promise: Promise) -> Queries:
  """The queries of a CSV file, the first at 0, sorted by their arrival.

  Args:
    path: File with the columns of the module's docstring.
    promise: What a query asks for where the file has no such column.

  Raises:
    ValueError: If the file cannot be read, a column is unknown or missing, or a
      value is not a number in range. The message names the line.
  """
  try:
    with open(path, newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file, skipinitialspace=True)
      rows = list(reader)
      header = [name.strip() for name in reader.fieldnames or ()]
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    reason = getattr(error, "strerror", None) or str(error)
    raise ValueError(f"trace {path}: {reason}") from error
  legal = {"arrival", "latency", "accuracy"}
  if "arrival" not in header or {*header} - legal:
    raise ValueError(
      f"trace {path}: expected the columns arrival and, if given, latency and"
      f" accuracy, got {', '.join(header) or 'none'}"
    )
  if not rows:
    raise ValueError(f"trace {path}: expected queries, got no rows")
  columns: dict[str, list[float]] = {name: [] for name in header}
  for number, row in enumerate(rows, 2):
    for name, text in row.items():
      where = f"trace {path}, line {number}"
      if name is None or text is None:
        raise ValueError(f"{where}: expected {len(header)} values")
      columns[name.strip()].append(_value(where, name.strip(), text))
  seconds = np.array(columns["arrival"])
  order = np.argsort(seconds, kind="stable")
  times = np.rint((seconds - seconds.min()) * 1e9).astype(np.int64)
  bounds = np.full(len(rows), promise.latency)
  if "latency" in columns:
    bounds = np.rint(np.array(columns["latency"]) * 1e9).astype(np.int64)
  least = columns.get("accuracy", np.full(len(rows), promise.accuracy))
  return Queries(
    times[order], np.maximum(bounds, 1)[order], np.array(least)[order]
  )


def _value(where: str, name: str, text: str) -> float:
  ranges = {
    "arrival": (-_MOST_NS / 1e9, _MOST_NS / 1e9, "seconds"),
    "latency": (0, _MOST_NS / 1e9, "seconds"),
    "accuracy": (0, 1, "an accuracy from 0 to 1"),
  }
  low, high, what = ranges[name]
  try:
    value = float(text)
  except ValueError:
    value = float("nan")
  positive = name != "latency" or value > 0
  if not (low <= value <= high and positive):
    raise ValueError(f"{where}, column {name}: expected {what}, got {text!r}")
  return value
