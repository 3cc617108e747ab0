"""Streams of queries, policies, and the simulation against a plain loop."""

import csv
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine.serving.policies import Policy, ServiceTable
from figs_jax.engine.serving.queries import (
  Promise,
  Queries,
  poisson,
  read_trace,
)
from figs_jax.engine.serving.schedulers import (
  earliest_deadline,
  fifo,
  shortest_remaining,
)
from figs_jax.engine.serving.service_tables import service_table
from figs_jax.engine.serving.simulation import event_loop, serve
from figs_jax.engine.serving.subgraph import nested_model

POINTS = "1:8", "2:8", "8:8"
COLUMNS = "start", "finish", "point", "cached"
POLICIES = [
  *("latency", "queue", "accuracy", "sushi"),
  *(
    "latency:every=1",
    "queue:every=4:spare=0",
    "queue:spare=80",
    "accuracy:every=3",
  ),
  *("fixed:1:8", "fixed:8:8", "fixed:2:8:every=5"),
]
N = 60


def random_case(seed):
  """A stream and a table with ties of every kind."""
  rng = np.random.default_rng(seed)
  arrival = np.sort(rng.integers(0, 300, N))
  latency, accuracy = rng.integers(1, 40, N), rng.integers(0, 5, N) / 4
  P, C = len(POINTS), 4
  table = ServiceTable(
    POINTS,
    rng.integers(0, 5, P) / 4,
    rng.integers(1, 12, (P, C)),
    rng.integers(0, 3, (P, C)),
    rng.random((P, C)),
    rng.integers(0, 20, (C, C)) * (1 - np.eye(C, dtype=int)),
    rng.integers(0, 3, (C, C)) * (1 - np.eye(C, dtype=int)),
    rng.random((C, C)),
    (0, 1, 2),
    3,
  )
  return Queries(arrival, latency, accuracy), table


def test_the_scan_is_the_event_loop():
  runs = [
    (*random_case(seed), Policy.parse(text))
    for seed in range(12)
    for text in POLICIES
  ]
  changes = 0
  for run, got in zip(runs, serve(runs)):
    expected = event_loop(*run)
    for column in COLUMNS:
      assert (getattr(got, column) == getattr(expected, column)).all(), column
    assert got.summary() == expected.summary()
    changes += len(got.changes)
  assert changes > 20


def oracle(queries, table, policy):
  """First come, first served, from the definitions, with lists alone."""
  free, cached, window, rows = 0, policy.begins_with(table), [], []
  accuracy = np.asarray(table.accuracy)
  for arrival, bound, least in zip(
    queries.arrival, queries.latency, queries.accuracy
  ):
    start = max(free, arrival)
    takes = table.latency[:, cached]

    by_accuracy = sorted(range(len(accuracy)), key=lambda p: (-accuracy[p], p))
    by_time = np.argsort(takes, kind="stable").tolist()
    if policy.rule == "fixed":
      point = POINTS.index(policy.point)
    elif policy.rule in ("latency", "queue"):
      last = arrival + bound
      if policy.rule == "queue":
        behind = np.arange(len(rows) + 1, min(len(rows) + 33, N))
        behind = behind[queries.arrival[behind] <= start]
        ends = queries.arrival[behind] + queries.latency[behind]
        ends = ends - takes.min() * (1 + np.arange(len(behind)))
        kept = bound * (100 - policy.spare) // 100
        kept = start + kept - len(behind) * takes.min()
        last = min([last, kept, *ends])
      timely = [p for p in by_accuracy if start + takes[p] <= last]
      point = [*timely, by_time[0]][0]
    else:
      good = [p for p in by_time if accuracy[p] >= least]
      point = [*good, by_accuracy[0]][0]
    free = start + takes[point]
    rows.append((start, free, point, cached))
    window.append(point)
    if policy.every and len(window) == policy.every:
      new = min(
        range(len(table.change)),
        key=lambda c: (
          sum(table.latency[p, c] for p in window) + table.change[cached, c],
          sum(table.dram_bytes[p, c] for p in window)
          + table.change_bytes[cached, c],
        ),
      )
      free, cached, window = free + table.change[cached, new], new, []
  return np.array(rows).T


@given(st.integers(0, 10**6), st.sampled_from(POLICIES))
@settings(max_examples=60, deadline=None)
def test_the_event_loop_follows_the_definitions(seed, text):
  queries, table = random_case(seed)
  policy = Policy.parse(text)
  got = event_loop(queries, table, policy)
  for column, expected in zip(COLUMNS, oracle(queries, table, policy)):
    assert getattr(got, column).tolist() == expected.tolist()


def test_a_fixed_point_waits_as_lindley_says():
  """finish_i = S_i + max over j <= i of (arrival_j - S_(j-1)), S sums."""
  queries, table = random_case(5)
  got = event_loop(queries, table, Policy.parse("fixed:2:8"))
  time = int(table.latency[1, 1])
  work = time * np.arange(N)
  finish = work + time + np.maximum.accumulate(queries.arrival - work)
  assert got.finish.tolist() == finish.tolist()
  assert (got.point == 1).all() and (got.cached == 1).all()


def test_a_queue_by_deadline_misses_less_and_serves_all():
  queries = poisson(900, 400, Promise())
  bounds = np.where(np.arange(400) % 2, 2 * 10**6, 10**8)
  queries = Queries(queries.arrival, bounds, queries.accuracy)
  one = np.zeros((1, 1), int)
  table = ServiceTable(
    ("1:1",), np.ones(1), one + 10**6, one, one, one, one, one, (0,)
  )
  policy = Policy("latency")
  by_arrival = event_loop(queries, table, policy)
  assert (
    event_loop(queries, table, policy, fifo()).start == by_arrival.start
  ).all()
  by_deadline = event_loop(queries, table, policy, earliest_deadline())
  assert sorted(by_deadline.start) == sorted(by_arrival.start)  # one server
  assert by_deadline.missed.sum() < by_arrival.missed.sum() / 2
  # Equal lengths and no deadline: any order is that of arrival.
  plain = event_loop(queries, table, policy, shortest_remaining())
  assert (plain.start == by_arrival.start).all()


def test_the_summary_by_hand():
  one = np.zeros((1, 1), int)
  table = ServiceTable(
    ("1:2", "2:2"),
    np.array([0.5, 0.9]),
    np.array([[2], [5]]) * 10**6,
    np.array([[10], [30]]) * 10**6,
    np.array([[1e6], [3e6]]),
    *(one, one, one),
    favourite=(0, 0),
  )
  # The second waits for the first and has 3 ms left, which the sparse one fits.
  queries = Queries(
    np.array([0, 10**6]), np.array([7, 7]) * 10**6, np.array([0, 0.8])
  )
  (got,) = serve([(queries, table, Policy("latency"))])
  assert got.point.tolist() == [1, 0]
  assert got.summary() == {
    "queries": 2,
    "missed": 0.0,
    "accuracy": 0.7,
    "timely_accuracy": 0.7,
    "below_accuracy": 0.5,
    "mean_ms": 5.5,
    "p50_ms": 5.5,
    "p99_ms": pytest.approx(5.99),
    "dram_mb": 20.0,
    "energy_uj": 2.0,
    "changes": 0,
  }


def test_changes_of_the_cache_are_paid():
  rows = [{"name": x, "M": 1, "N": 64, "K": 64} for x in "ab"]
  model = nested_model(rows, "ws:8x8:dram_bw=1", POINTS)
  buffer = int(model.weight_bytes[0])
  table = service_table(model, [0.7, 0.8, 0.9], buffer)
  assert (np.diag(table.change_bytes) == 0).all()
  assert (table.dram_bytes[0, :2] == 2 * 256).all()  # inputs and outputs alone
  assert table.latency.shape == (3, 4)
  # What is read is what the new sub-graph has and the old one has not.
  small = service_table(model, [0.7, 0.8, 0.9], buffer // 2)
  assert small.change_bytes.max() <= buffer // 2
  # Without a buffer all candidates are the same and cost nothing.
  none = service_table(model, [0.7, 0.8, 0.9])
  assert (none.change_bytes == 0).all()
  assert (none.latency == none.latency[:, :1]).all()
  plain = model.query()
  assert (none.dram_bytes[:, 0] == plain.dram_bytes).all()


def test_traces(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text("arrival, latency\n2.5,.004\n0.5,.001\n2.5,.002\n")
  queries = read_trace(path, Promise.parse("accuracy>=.5"))
  assert queries.arrival.tolist() == [0, 2 * 10**9, 2 * 10**9]
  assert queries.latency.tolist() == [10**6, 4 * 10**6, 2 * 10**6]
  assert queries.accuracy.tolist() == [0.5] * 3
  assert queries.at_load(4).arrival.tolist() == [0, 5 * 10**8, 5 * 10**8]
  # Written and read again.
  original = poisson(300, 20, Promise.parse("latency<=5ms"))
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["arrival"])
    writer.writerows(
      [[x / 1e9] for x in original.arrival - original.arrival[0]]
    )
  again = read_trace(path, Promise.parse("latency<=5ms"))
  assert (again.arrival == original.arrival - original.arrival[0]).all()


@pytest.mark.parametrize(
  "text, words",
  [
    ("time,latency\n1,2\n", "expected the columns arrival"),
    ("arrival\n", "got no rows"),
    ("", "got none"),
    ("arrival\n1\nx\n", "line 3, column arrival: expected seconds, got 'x'"),
    ("arrival,latency\n1,0\n", "column latency: expected seconds, got '0'"),
    ("arrival,accuracy\n1,2\n", "an accuracy from 0 to 1, got '2'"),
    ("arrival,latency\n1\n", "line 2: expected 2 values"),
    ("arrival\n1,2\n", "line 2: expected 1 values"),
    ("arrival\nnan\n", "expected seconds, got 'nan'"),
  ],
)
def test_bad_traces_are_named(tmp_path, text, words):
  path = tmp_path / "t.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=re.escape(words)):
    read_trace(path, Promise())


def _table(**fields):
  one = np.zeros((1, 1), int)
  columns = dict.fromkeys(
    ("latency", "dram_bytes", "energy_pj", "change", "change_bytes"), one
  )
  given = {"points": ("1:1",), "accuracy": np.ones(1), "favourite": (0,)}
  return ServiceTable(**(columns | {"change_pj": one} | given | fields))


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: Promise.parse("latency>=5ms"), "expected 'latency<=5ms'"),
    (lambda: Promise.parse("latency<=5"), "a positive time in ns, us, ms or s"),
    (lambda: Promise.parse("latency<=0ms"), "a positive time"),
    (lambda: Promise.parse("latency<=1e-e3ms"), "a positive time"),
    (lambda: Promise.parse("accuracy>=86"), "an accuracy from 0 to 1"),
    (lambda: Promise.parse("latency<=1ms,latency<=2ms"), "each once"),
    (lambda: Promise.parse("speed"), "objective 'speed'"),
    (lambda: Policy.parse("fast"), "expected latency, queue, accuracy, fixed"),
    (lambda: Policy.parse("fixed"), "expected a point"),
    (lambda: Policy.parse("latency:1:8"), "a point of fixed and of no other"),
    (lambda: Policy.parse("sushi:every=x"), "integers, got 'every=x'"),
    (lambda: Policy.parse("latency:spare=5"), "spare= is of queue"),
    (lambda: Policy.parse("queue:spare=101"), "spare=PERCENT from 0 to 100"),
    (lambda: Policy.parse("queue:size=1"), "every=Q or spare=PERCENT"),
    (lambda: Policy.parse("fixed:3:8").place(POINTS), "one of 1:8, 2:8, 8:8"),
    (lambda: poisson(0, 5, Promise()), "expected queries per second"),
    (lambda: poisson(1, 0, Promise()), "expected at least one"),
    (lambda: poisson(1e-12, 5, Promise()), "after 2^60 ns"),
    (lambda: poisson(1, 5, Promise()).at_load(0), "a positive factor"),
    (
      lambda: Queries(np.array([2, 1]), np.array([1, 1]), np.zeros(2)),
      "never fall, got 1 ns of query 1",
    ),
    (
      lambda: Queries(np.array([], int), np.array([], int), np.zeros(0)),
      "expected at least one",
    ),
    (lambda: _table(accuracy=np.array([1.5])), "values from 0 to 1"),
    (lambda: _table(latency=np.zeros((2, 1), int)), "expected shape (1, 1)"),
    (
      lambda: serve(
        [
          (
            poisson(1, 5, Promise()),
            _table(latency=np.array([[2**61]])),
            Policy("latency"),
          )
        ]
      ),
      "fit int64",
    ),
  ],
)
def test_mistakes_are_named(call, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    call()
