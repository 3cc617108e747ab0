"""Policies and fixed models under the same streams of queries.

A contender is a model's table with a policy. All contenders see the same
arrivals at a load, so that differences between them are paired by seed. The
interval of a mean over seeds is Student's, at 95 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from figs_jax.engine.serving.pifo import Transaction
from figs_jax.engine.serving.policies import Policy, ServiceTable
from figs_jax.engine.serving.queries import Queries
from figs_jax.engine.serving.simulation import Served, event_loop, serve

METRICS = (
  "missed",
  "accuracy",
  "timely_accuracy",
  "below_accuracy",
  "mean_ms",
  "p50_ms",
  "p99_ms",
  "dram_mb",
  "energy_uj",
  "changes",
)


class Contender(NamedTuple):
  """A model and how it is served.

  Attributes:
    name: Name in tables and pictures.
    table: What serving it costs.
    policy: Which point answers.
    is_nested: Whether its file holds several points.
  """

  name: str
  table: ServiceTable
  policy: Policy
  is_nested: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """Results of all contenders at all loads.

  Attributes:
    names: Names of the contenders.
    is_nested: Whether each of them is nested, Bool [contenders].
    loads: Factors by which the streams are denser in time.
    rates: Queries per second at each load, the mean over seeds.
    values: Metric -> float64 [contenders, loads, seeds].
    examples: What became of the first seed's queries at the load nearest to 1.
  """

  names: tuple[str, ...]
  is_nested: np.ndarray
  loads: tuple[float, ...]
  rates: np.ndarray
  values: dict[str, np.ndarray]
  examples: tuple[Served, ...]

  @property
  def base(self) -> int:
    """Index of the load nearest to 1."""
    return int(np.abs(np.log(self.loads)).argmin())

  def mean(self, metric: str) -> np.ndarray:
    """Mean over seeds, float64 [contenders, loads]."""
    return self.values[metric].mean(-1)

  def half_width(self, metric: str) -> np.ndarray:
    """Half of the 95 % interval of the mean, float64 [contenders, loads].

    It is NaN for a single seed.
    """
    from scipy import stats  # takes a second to import

    values = self.values[metric]
    seeds = values.shape[-1]
    if seeds == 1:
      return np.full(values.shape[:-1], np.nan)
    error = values.std(-1, ddof=1) / np.sqrt(seeds)
    return error * stats.t.ppf(0.975, seeds - 1)

  def difference(self, metric: str, one: str, other: str) -> np.ndarray:
    """Mean of one - other, paired by seed, and its half width, [loads, 2].

    Raises:
      ValueError: If a name is not that of a contender.
    """
    for name in (one, other):
      if name not in self.names:
        raise ValueError(
          f"contender: expected one of {', '.join(self.names)}, got {name!r}"
        )
    i, j = self.names.index(one), self.names.index(other)
    values = self.values[metric]
    paired = dataclasses.replace(
      self, values={metric: values[i : i + 1] - values[j : j + 1]}
    )
    return np.stack([paired.mean(metric)[0], paired.half_width(metric)[0]], -1)

  def rows(self) -> list[dict[str, Any]]:
    """One row per contender and load: means and half widths by name."""
    rows = []
    for i, name in enumerate(self.names):
      for j, load in enumerate(self.loads):
        row: dict[str, Any] = {
          "contender": name,
          "load": load,
          "queries_per_s": float(self.rates[j]),
        }
        for metric in METRICS:
          row[metric] = float(self.mean(metric)[i, j])
          row[f"{metric}_ci95"] = float(self.half_width(metric)[i, j])
        rows.append(row)
    return rows


def compare(
  entries: Sequence[Contender],
  streams: Sequence[Queries],
  loads: Sequence[float | int] = (1,),
  order: Callable[[], Transaction] | None = None,
) -> Comparison:
  """Serves the streams by every contender at every load.

  Args:
    entries: Contenders, as from
      `figs_jax.engine.serving.service_tables.contenders`.
    streams: Queries of each seed.
    loads: Factors by which the streams are made denser in time.
    order: Function that returns the rank of a new queue, such as
      `figs_jax.engine.serving.schedulers.earliest_deadline`; by default queries
      are served in order of arrival.

  Raises:
    ValueError: If contenders, streams or loads are empty, or as `serve`.

  >>> from figs_jax.engine.serving.queries import Promise, poisson
  >>> from figs_jax.engine.serving.service_tables import contenders
  >>> rows = [{"name": "ff", "M": 1, "N": 64, "K": 64}]
  >>> accuracies = {"1:4": 0.8, "4:4": 0.9}
  >>> made = contenders(rows, "ws:8x8", accuracies, [Policy("queue")])
  >>> promise = Promise.parse("latency<=1ms")
  >>> streams = [poisson(200, 100, promise, seed) for seed in range(3)]
  >>> compare(made, streams, [1, 2]).mean("accuracy").round(3).tolist()
  [[0.9, 0.9], [0.8, 0.8], [0.9, 0.9]]
  """
  if not (entries and streams and loads):
    raise ValueError(
      "compare: expected contenders, streams and loads, got"
      f" {len(entries)}, {len(streams)} and {len(loads)}"
    )
  E, L, S = len(entries), len(loads), len(streams)
  values = {metric: np.empty((E, L, S)) for metric in METRICS}
  rates = np.empty((L, S))
  base = int(np.abs(np.log(loads)).argmin())
  examples: list[Served] = []
  for j, load in enumerate(loads):
    dense = [stream.at_load(load) for stream in streams]
    rates[j] = [stream.rate for stream in dense]
    runs = [(q, x.table, x.policy) for x in entries for q in dense]
    if order is None:
      results = serve(runs)
    else:
      results = [event_loop(*run, order()) for run in runs]
    for at, served in enumerate(results):
      summary = served.summary()
      for metric in METRICS:
        values[metric][at // S, j, at % S] = summary[metric]
    if j == base:
      examples = results[::S]
  return Comparison(
    tuple(x.name for x in entries),
    np.array([x.is_nested for x in entries]),
    tuple(float(load) for load in loads),
    rates.mean(1),
    values,
    tuple(examples),
  )
