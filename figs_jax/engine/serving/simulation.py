"""Serving streams of queries on one engine, query by query, deterministically.

An engine that is free serves the head of the queue to its end. With times in
whole nanoseconds, of the k-th query in the order of service

  start_k = max(arrival_k, finish_(k-1) + change_(k-1))
  finish_k = start_k + latency[point_k, cached_k],                          (1)

where the point follows from the policy, and change is the time of reading a new
sub-graph, 0 but after every Q-th query. `serve` scans (1) over first-come
queues, and maps it over runs: policies, loads, models. `event_loop` is the same
in plain Python, its oracle, for queues of any order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.engine.serving.pifo import Packet, Pifo, Transaction
from figs_jax.engine.serving.policies import RULES, Policy, ServiceTable
from figs_jax.engine.serving.queries import Queries
from figs_jax.engine.serving.schedulers import fifo

_CHUNK = 16  # queries of a scan's step


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
  """What became of n queries; arrays [n] are in the order of arrival.

  Attributes:
    queries: The queries.
    table: What serving costs.
    policy: The policy.
    start: Times at which service starts in ns, int64.
    finish: Times of the answers in ns, int64.
    point: Index of the point that answered, int64.
    cached: Index of what was on chip, int64.
  """

  queries: Queries
  table: ServiceTable
  policy: Policy
  start: np.ndarray
  finish: np.ndarray
  point: np.ndarray
  cached: np.ndarray

  @property
  def response(self) -> np.ndarray:
    """Time from each arrival to its answer in ns, int64 [n]."""
    return self.finish - self.queries.arrival

  @property
  def missed(self) -> np.ndarray:
    """Whether each answer came after its bound, Bool [n]."""
    return self.response > self.queries.latency

  @property
  def accuracy(self) -> np.ndarray:
    """Accuracy of the point that answered, float64 [n]."""
    return np.asarray(self.table.accuracy)[self.point]

  @property
  def changes(self) -> np.ndarray:
    """Pairs of candidates, before and after each change, int64 [c, 2]."""
    kept = self.cached[np.argsort(self.start, kind="stable")]
    pairs = np.stack([kept[:-1], kept[1:]], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]

  def summary(self) -> dict[str, float]:
    """Means and quantiles over the queries, changes of the cache included.

    `accuracy` is of all answers; `timely_accuracy` counts a late one as wrong.
    """
    old, new = self.changes.T
    at = self.point, self.cached
    table, n = self.table, len(self.queries)
    moved = table.dram_bytes[at].sum() + table.change_bytes[old, new].sum()
    energy = table.energy_pj[at].sum() + table.change_pj[old, new].sum()
    p50, p99 = np.quantile(self.response, [0.5, 0.99])
    below = self.accuracy < self.queries.accuracy
    return {
      "queries": n,
      "missed": float(self.missed.mean()),
      "accuracy": float(self.accuracy.mean()),
      "timely_accuracy": float(np.where(self.missed, 0, self.accuracy).mean()),
      "below_accuracy": float(below.mean()),
      "mean_ms": float(self.response.mean() / 1e6),
      "p50_ms": float(p50 / 1e6),
      "p99_ms": float(p99 / 1e6),
      "dram_mb": float(moved / n / 1e6),
      "energy_uj": float(energy / n / 1e6),
      "changes": len(old),
    }


def event_loop(
  queries: Queries,
  table: ServiceTable,
  policy: Policy,
  order: Transaction | None = None,
) -> Served:
  """Serves the queries one after the other, in a queue of any order.

  Args:
    queries: The queries. A packet of the queue has `deadline`.
    table: What serving costs.
    policy: Which point answers.
    order: Rank of the queue; first come, first served by default.

  Raises:
    ValueError: If the policy's point is not in the table.

  >>> from figs_jax.engine.serving.queries import Promise, poisson
  >>> one = np.zeros((1, 1))
  >>> table = ServiceTable(
  ...   ("1:1",), np.ones(1), np.array([[10**6]]), one, one, one, one, one, (0,)
  ... )
  >>> queries = poisson(100, 1000, Promise.parse("latency<=2ms"))
  >>> event_loop(queries, table, Policy("latency")).summary()["p50_ms"]
  1.0
  """
  rank, n = fifo() if order is None else order, len(queries)
  arrival = queries.arrival.tolist()
  deadline = (queries.arrival + queries.latency).tolist()
  least = queries.accuracy.tolist()
  latency, change = table.latency.tolist(), table.change.tolist()
  moved, changed = table.dram_bytes.tolist(), table.change_bytes.tolist()
  accuracy, place = np.asarray(table.accuracy).tolist(), table.order.tolist()
  best = max(range(len(place)), key=place.__getitem__)
  fixed, cached = policy.place(table.points), policy.begins_with(table)
  window = [0] * len(place)
  start, finish, point, kept = ([0] * n for _ in range(4))
  queue, next_arrival, now = Pifo(), 0, 0
  for served in range(1, n + 1):
    if not len(queue):
      now = max(now, arrival[next_arrival])
    while next_arrival < n and arrival[next_arrival] <= now:
      packet = Packet(payload=next_arrival, deadline=deadline[next_arrival])
      queue.push(next_arrival, rank.rank(packet, None, arrival[next_arrival]))
      next_arrival += 1
    number, rank_of = queue.pop()
    rank.dequeued(rank_of)
    takes = [row[cached] for row in latency]
    if policy.rule == "fixed":
      chosen = fixed
    elif policy.rule == "latency":
      slack = deadline[number] - now
      fits = [p for p, time in enumerate(takes) if time <= slack]
      chosen = max(fits, key=place.__getitem__, default=-1)
      if chosen < 0:
        chosen = takes.index(min(takes))
    else:
      fits = [p for p, x in enumerate(accuracy) if x >= least[number]]
      chosen = min(fits, key=takes.__getitem__, default=best)
    start[number], point[number], kept[number] = now, chosen, cached
    now += takes[chosen]
    finish[number] = now
    window[chosen] += 1
    if policy.every and served % policy.every == 0:
      costs = [
        (
          sum(x * row[c] for x, row in zip(window, latency)) + change[cached][c],
          sum(x * row[c] for x, row in zip(window, moved)) + changed[cached][c],
        )
        for c in range(len(change))
      ]
      new = costs.index(min(costs))
      now += change[cached][new]
      cached, window = new, [0] * len(place)
  columns = (np.array(x, np.int64) for x in (start, finish, point, kept))
  return Served(queries, table, policy, *columns)


def serve(
  runs: Sequence[tuple[Queries, ServiceTable, Policy]],
) -> list[Served]:
  """Serves several streams at once, each first come, first served.

  One compiled scan over the queries, mapped over the runs. Its results are
  those of `event_loop`.

  Args:
    runs: Queries, table and policy of each run. All streams have the same
      number of queries, all tables the same numbers of points and candidates.

  Raises:
    ValueError: If there are no runs, those numbers differ, or a time does not
      fit int64.

  >>> from figs_jax.engine.serving.queries import Promise, poisson
  >>> one = np.zeros((1, 1), int)
  >>> table = ServiceTable(
  ...   ("1:1",), np.ones(1), np.array([[10**6]]), one, one, one, one, one, (0,)
  ... )
  >>> queries = poisson(100, 1000, Promise.parse("latency<=2ms"))
  >>> (run,) = serve([(queries, table, Policy("latency"))])
  >>> run.summary()["p50_ms"]
  1.0
  """
  runs = list(runs)
  shapes = {(len(q), *np.shape(table.latency)) for q, table, _ in runs}
  if len(shapes) != 1:
    raise ValueError(
      "runs: expected the same numbers of queries, points and candidates in"
      f" all, got {', '.join(map(str, sorted(shapes))) or 'no runs'}"
    )
  ((n, _, _),) = shapes
  for queries, table, policy in runs:
    slowest = int(table.latency.max()) + int(table.change.max())
    every = max(policy.every, 1)
    if int(queries.arrival[-1]) + n * slowest > 2**62 or every * int(
      max(table.dram_bytes.max(), table.latency.max(), 1)
    ) > 2**61:
      raise ValueError(
        f"runs: expected times and bytes that fit int64, got {n} queries of up"
        f" to {slowest} ns and {int(table.dram_bytes.max())} bytes"
      )
  padding = -n % _CHUNK
  inputs = _inputs(runs, padding)
  with jax.enable_x64(True):
    outputs = _scan(*jax.tree.map(jnp.asarray, inputs))
    start, finish, point, cached = (np.asarray(x)[:, :n] for x in outputs)
  return [
    Served(*run, *(x[i].astype(np.int64) for x in (start, finish, point, cached)))
    for i, run in enumerate(runs)
  ]


def _inputs(runs: Any, padding: int) -> tuple[Any, Any]:
  """The streams [R, n + padding] and the settings [R, ...] of the runs."""

  def padded(column):
    return np.pad(column, (0, padding), mode="edge")

  streams = [
    (
      padded(queries.arrival),
      padded(queries.arrival + queries.latency),
      padded(queries.accuracy),
    )
    for queries, _, _ in runs
  ]
  settings = [
    {
      "latency": table.latency.astype(np.int64),
      "change": table.change.astype(np.int64),
      "moved": table.dram_bytes.astype(np.int64),
      "changed": table.change_bytes.astype(np.int64),
      "accuracy": np.asarray(table.accuracy, np.float64),
      "place": table.order,
      "rule": np.int64(RULES.index(policy.rule)),
      "fixed": np.int64(policy.place(table.points)),
      "every": np.int64(policy.every),
      "cached": np.int64(policy.begins_with(table)),
    }
    for _, table, policy in runs
  ]
  return (
    tuple(np.stack(x) for x in zip(*streams)),
    {name: np.stack([x[name] for x in settings]) for name in settings[0]},
  )


@jax.jit
@jax.vmap
def _scan(stream: Any, run: Any) -> Any:
  """(1) over one stream: start, finish, point and cached of each query."""
  latency, place = run["latency"], run["place"]
  most = jnp.argmax(place)
  columns = latency.T  # [C, P]

  def step(carry, query):
    free, cached, window, since = carry
    arrival, deadline, least = query
    start = jnp.maximum(arrival, free)
    takes = columns[cached]
    # The highest place of those in time, or the first of the fastest.
    in_time = jnp.where(takes <= deadline - start, place, -1)
    timely = jnp.where(
      in_time.max() >= 0, jnp.argmax(in_time), jnp.argmin(takes)
    )
    accurate = run["accuracy"] >= least
    cheapest = jnp.argmin(jnp.where(accurate, takes, jnp.iinfo(jnp.int64).max))
    precise = jnp.where(accurate.any(), cheapest, most)
    chosen = jnp.select(
      [run["rule"] == 0, run["rule"] == 1], [timely, precise], run["fixed"]
    )
    finish = start + takes[chosen]
    window = window.at[chosen].add(1)
    since = since + 1
    renew = (run["every"] > 0) & (since == run["every"])
    time = window @ latency + run["change"][cached]
    moved = window @ run["moved"] + run["changed"][cached]
    fewest = jnp.where(time == time.min(), moved, jnp.iinfo(jnp.int64).max)
    new = jnp.where(renew, jnp.argmin(fewest), cached)
    carry = (
      finish + run["change"][cached, new],
      new,
      jnp.where(renew, 0, window),
      jnp.where(renew, 0, since),
    )
    return carry, (
      start,
      finish,
      chosen.astype(jnp.int16),
      cached.astype(jnp.int16),
    )

  begin = (
    jnp.int64(0),
    run["cached"],
    jnp.zeros(latency.shape[0], jnp.int64),
    jnp.int64(0),
  )
  _, results = jax.lax.scan(step, begin, stream, unroll=_CHUNK)
  return results
