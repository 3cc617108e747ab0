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
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.engine.serving.pifo import Packet, Pifo, Transaction
from figs_jax.engine.serving.policies import (
  LOOK_AHEAD,
  RULES,
  Policy,
  ServiceTable,
)
from figs_jax.engine.serving.queries import Queries
from figs_jax.engine.serving.schedulers import fifo

_CHUNK = 4


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

  def summary(self) -> dict[str, float | int]:
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
  >>> one = np.zeros((1, 1), int)
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
  bound, least = queries.latency.tolist(), queries.accuracy.tolist()
  latency, change = table.latency.tolist(), table.change.tolist()
  moved, changed = table.dram_bytes.tolist(), table.change_bytes.tolist()
  accuracy, place = np.asarray(table.accuracy).tolist(), table.order.tolist()
  best = max(range(len(place)), key=place.__getitem__)
  fixed, cached = policy.place(table.points), policy.begins_with(table)
  window = [0] * len(place)
  start, finish, point, cache = ([0] * n for _ in range(4))
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
    elif policy.rule in ("latency", "queue"):
      slack = deadline[number] - now
      if policy.rule == "queue":
        fastest = min(takes)
        waiting = queue.first(LOOK_AHEAD)
        later = (
          deadline[j] - now - k * fastest for k, j in enumerate(waiting, 1)
        )
        kept = bound[number] * (100 - policy.spare) // 100
        slack = min([slack, kept - len(waiting) * fastest, *later])
      fits = [p for p, time in enumerate(takes) if time <= slack]
      chosen = max(fits, key=place.__getitem__, default=-1)
      if chosen < 0:
        chosen = takes.index(min(takes))
    else:
      fits = [p for p, x in enumerate(accuracy) if x >= least[number]]
      chosen = min(fits, key=takes.__getitem__, default=best)
    start[number], point[number], cache[number] = now, chosen, cached
    now += takes[chosen]
    finish[number] = now
    window[chosen] += 1
    if policy.every and served % policy.every == 0:
      costs = [
        (
          sum(x * row[c] for x, row in zip(window, latency))
          + change[cached][c],
          sum(x * row[c] for x, row in zip(window, moved)) + changed[cached][c],
        )
        for c in range(len(change))
      ]
      new = costs.index(min(costs))
      now += change[cached][new]
      cached, window = new, [0] * len(place)
  columns = (np.array(x, np.int64) for x in (start, finish, point, cache))
  return Served(queries, table, policy, *columns)


def serve(
  runs: Sequence[tuple[Queries, ServiceTable, Policy]],
) -> list[Served]:
  """Serves several streams at once, each first come, first served.

  A scan over the queries, mapped over the runs; equal to `event_loop`.

  Args:
    runs: Queries, table and policy of each run. Those with equal numbers of
      queries, points and candidates share a compiled scan.

  Raises:
    ValueError: If a policy's point is not in its table, or a time does not fit
      int64.

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
  for queries, table, policy in runs:
    _refuse_overflow(queries, table, policy)
  alike: dict[Any, list[int]] = {}
  for i, (queries, table, _) in enumerate(runs):
    shape = len(queries), *np.shape(table.latency)
    alike.setdefault(shape, []).append(i)
  results: dict[int, Served] = {}
  for places in alike.values():
    some = [runs[i] for i in places]
    with jax.enable_x64(True):
      columns = [np.asarray(x) for x in _scan(_streams(some), _settings(some))]
    for i, run, *rows in zip(places, some, *columns):
      results[i] = Served(*run, *(x.astype(np.int64) for x in rows))
  return [results[i] for i in range(len(runs))]


def _refuse_overflow(
  queries: Queries, table: ServiceTable, policy: Policy
) -> None:
  """Raises ValueError unless all times, and sums of a window, fit int64."""
  slowest = int(table.latency.max()) + int(table.change.max())
  moved = int(table.dram_bytes.max()) + int(table.change_bytes.max())
  end = int(queries.arrival[-1]) + len(queries) * slowest
  if max(end, policy.every * moved, policy.every * slowest) > 2**62:
    raise ValueError(
      f"serve: expected times and bytes that fit int64, got {len(queries)}"
      f" queries of up to {slowest} ns and {moved} bytes"
    )


def _streams(runs: Any) -> Any:
  """Arrival, deadline, bound and least accuracy of all runs, [R, n]."""
  streams = (
    (x.arrival, x.arrival + x.latency, x.latency, x.accuracy)
    for x, _, _ in runs
  )
  return tuple(np.stack(column) for column in zip(*streams))


def _settings(runs: Any) -> dict[str, np.ndarray]:
  """Tables and policies of all runs, [R, ...]."""
  settings = [
    {
      "latency": table.latency,
      "change": table.change,
      "moved": table.dram_bytes,
      "changed": table.change_bytes,
      "accuracy": np.asarray(table.accuracy, np.float64),
      "place": table.order,
      "rule": RULES.index(policy.rule),
      "fixed": policy.place(table.points),
      "every": policy.every,
      "spare": policy.spare,
      "cached": policy.begins_with(table),
    }
    for _, table, policy in runs
  ]
  return {name: np.stack([x[name] for x in settings]) for name in settings[0]}


@jax.jit
@jax.vmap
def _scan(stream: Any, run: Any) -> Any:
  """(1) over one stream: start, finish, point and cached of each query."""
  latency, place = run["latency"], run["place"]
  most, columns = jnp.argmax(place), latency.T  # [C, P]
  never = jnp.iinfo(jnp.int64).max
  arrivals, deadlines = (
    jnp.append(x, jnp.full(LOOK_AHEAD, never)) for x in stream[:2]
  )

  def step(carry, query):
    free, cached, window, since = carry
    number, arrival, deadline, bound, least = query
    start = jnp.maximum(arrival, free)
    takes = columns[cached]
    behind = (
      jax.lax.dynamic_slice_in_dim(x, number + 1, LOOK_AHEAD)
      for x in (arrivals, deadlines)
    )
    waits, later = next(behind) <= start, next(behind)
    later = later - jnp.arange(1, LOOK_AHEAD + 1) * takes.min()
    kept = bound * (100 - run["spare"]) // 100 - waits.sum() * takes.min()
    tightest = jnp.minimum(jnp.where(waits, later - start, never).min(), kept)
    slack = deadline - start
    slack = jnp.where(run["rule"] == 1, jnp.minimum(slack, tightest), slack)
    # The highest place of those in time, or the first of the fastest.
    in_time = jnp.where(takes <= slack, place, -1)
    timely = jnp.where(
      in_time.max() >= 0, jnp.argmax(in_time), jnp.argmin(takes)
    )
    accurate = run["accuracy"] >= least
    cheapest = jnp.argmin(jnp.where(accurate, takes, never))
    precise = jnp.where(accurate.any(), cheapest, most)
    chosen = jnp.select(
      [run["rule"] <= 1, run["rule"] == 2], [timely, precise], run["fixed"]
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
      *(x.astype(jnp.int16) for x in (chosen, cached)),
    )

  begin = (
    jnp.int64(0),
    run["cached"],
    jnp.zeros(latency.shape[0], jnp.int64),
    jnp.int64(0),
  )
  numbers = jnp.arange(len(stream[0]))
  return jax.lax.scan(step, begin, (numbers, *stream))[1]
