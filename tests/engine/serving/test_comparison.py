"""Contenders under one stream: intervals over seeds, rows and pictures."""

import numpy as np
import pytest
from scipy import stats

from figs_jax.engine.serving import plots
from figs_jax.engine.serving.comparison import METRICS, compare
from figs_jax.engine.serving.policies import Policy
from figs_jax.engine.serving.queries import Promise, poisson
from figs_jax.engine.serving.schedulers import earliest_deadline, fifo
from figs_jax.engine.serving.service_tables import contenders
from figs_jax.engine.serving.subgraph import nested_model

ROWS = [
  {"name": "fc1", "M": 16, "N": 64, "K": 256},
  {"name": "fc2", "M": 16, "N": 256, "K": 64},
]
ENGINE = "ws:8x8:dram_bw=4:clock=1"  # 1 MHz: queries of milliseconds
ACCURACIES = {"1:8": 0.8, "2:8": 0.85, "8:8": 0.9}


@pytest.fixture(scope="module")
def entries():
  policies = [Policy("queue"), Policy("latency")]
  return contenders(ROWS, ENGINE, ACCURACIES, policies, buffer=2000)


@pytest.fixture(scope="module")
def comparison(entries):
  dense = entries[-1].table.latency[0, 0] / 1e9
  promise = Promise(latency=int(4e9 * dense))
  streams = [poisson(1.3 / dense, 600, promise, seed) for seed in range(4)]
  return compare(entries, streams, [0.25, 1])


def test_fixed_models_are_files_of_their_own(entries):
  assert [x.name for x in entries] == [
    *("nested queue", "nested latency"),
    *("fixed 1:8", "fixed 2:8", "fixed 8:8"),
  ]
  for entry, point in zip(entries[2:], ACCURACIES):
    model = nested_model(ROWS, ENGINE, [point])
    (free,) = model.nanoseconds(model.query().cycles)
    assert (entry.table.latency <= free).all()
    assert entry.table.accuracy.tolist() == [ACCURACIES[point]]
  # The dense point of the nested file also reads its indices.
  nested, alone = entries[0].table, entries[-1].table
  assert (nested.dram_bytes[2] > alone.dram_bytes[0, 0]).all()
  assert nested.dram_bytes[0, 0] == entries[2].table.dram_bytes[0, 0]


def test_the_nested_model_answers_in_time_where_the_dense_one_is_late(
  comparison,
):
  missed = dict(zip(comparison.names, comparison.mean("missed")))
  accuracy = dict(zip(comparison.names, comparison.mean("accuracy")))
  assert missed["fixed 8:8"][1] > 0.9
  assert missed["nested queue"][1] < 0.05
  assert accuracy["nested queue"][1] > accuracy["fixed 1:8"][1] + 0.01
  # Alone in time, all answer densely.
  assert missed["fixed 8:8"][0] < 0.05
  assert accuracy["nested queue"][0] > 0.88
  gain = comparison.difference("missed", "nested queue", "nested latency")
  assert gain[1].sum() < 0  # the whole interval


def test_intervals_are_student_s(comparison):
  values = comparison.values["missed"]
  assert values.shape == (5, 2, 4)
  mean, low = comparison.mean("missed"), comparison.half_width("missed")
  expected = stats.ttest_1samp(values[0, 1], 0).confidence_interval()
  assert mean[0, 1] - low[0, 1] == pytest.approx(expected.low)
  paired = comparison.difference("missed", "fixed 8:8", "nested queue")
  test = stats.ttest_rel(values[4, 1], values[0, 1]).confidence_interval()
  assert paired[1].tolist() == pytest.approx(
    [(test.low + test.high) / 2, (test.high - test.low) / 2]
  )
  with pytest.raises(ValueError, match="one of nested queue"):
    comparison.difference("missed", "dense", "nested queue")


def test_rows_hold_every_contender_and_load(comparison):
  rows = comparison.rows()
  assert len(rows) == 5 * 2
  assert {f"{metric}_ci95" for metric in METRICS} < set(rows[0])
  assert rows[1]["load"] == 1
  ratio = rows[1]["queries_per_s"] / rows[0]["queries_per_s"]
  assert ratio == pytest.approx(4, rel=1e-6)


def test_another_order_of_the_queue(entries):
  streams = [poisson(300, 60, Promise(latency=10**7), 0)]
  plain = compare(entries, streams)
  by_loop = compare(entries, streams, order=fifo)
  for metric in METRICS:
    assert (plain.values[metric] == by_loop.values[metric]).all()
  # One bound for all: the earliest deadline is the first arrival.
  by_deadline = compare(entries, streams, order=earliest_deadline)
  for metric in METRICS:
    assert (plain.values[metric] == by_deadline.values[metric]).all()
  assert np.isnan(plain.half_width("missed")).all()


def test_pictures_show_what_they_say(comparison):
  pytest.importorskip("matplotlib")
  cdf = plots.latency_cdf(comparison).axes[0]
  for line, served in zip(cdf.lines, comparison.examples):
    assert line.get_xdata().max() == served.response.max() / 1e6
    assert line.get_ydata()[-1] == 1
  misses = plots.misses(comparison).axes[0]
  assert misses.get_xlabel() == "queries per second"
  shown = [
    line.get_ydata() for line in misses.lines if len(line.get_xdata()) == 2
  ]
  assert shown[0].tolist() == comparison.mean("missed")[0].tolist()
  assert plots.served_accuracy(comparison).axes[0].get_ylim()[1] > 1
  assert len(plots.frontier(comparison).axes) == 2
  model = nested_model(ROWS, ENGINE, list(ACCURACIES))
  total = int(model.weight_bytes[-1])
  moved, _ = plots.buffer_savings(model, [0, total]).axes
  for i, line in enumerate(moved.lines[:3]):
    plain = model.query().dram_bytes[i]
    rest = plain - model.weight_bytes[i]  # all its weights are on chip
    assert (line.get_ydata() * 1e6).tolist() == pytest.approx([plain, rest])


def test_mistakes_are_named(entries):
  with pytest.raises(
    ValueError, match="expected contenders, streams and loads"
  ):
    compare(entries, [])
  with pytest.raises(ValueError, match="expected one of 1:8, got 2:8"):
    contenders(ROWS, ENGINE, ACCURACIES, [], fixed_accuracies={"2:8": 1.0})
  with pytest.raises(ValueError, match="one of 1:8, 2:8, 8:8, got '4:8'"):
    contenders(ROWS, ENGINE, ACCURACIES, [Policy("fixed", "4:8")])
