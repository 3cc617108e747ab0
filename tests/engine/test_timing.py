"""Folds, streams and waits: the closed forms against a walk over the cycles."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine.spec import OVERLAPS
from figs_jax.engine.timing import PARTS, Fold, bounded, schedule

small = st.integers(1, 9)
laws = settings(deadline=None, max_examples=100)


def walk(folds, T, load, fill, overlap, interval):
  """When the last result leaves, from when each operand is in place."""
  ready = load  # the first operand is in place
  done = 0
  for _ in range(folds):
    if overlap == "none":
      done += load + T * interval + fill
    elif overlap == "weights":
      start = max(done, ready)
      ready = start + load  # the next one, once this one is in use
      done = start + T * interval + fill
    else:
      # The next operand, or one that nobody needs, loads beside the stream.
      ready += max(T * interval, load)
      done = ready + fill
  return done


@laws
@given(small, small, small, st.integers(0, 9), st.sampled_from(OVERLAPS),
       small, small, small)  # fmt: skip
def test_the_parts_add_up_to_a_walk_over_the_folds(
  folds, T, load, fill, overlap, exchange, enter, leave
):
  fold = Fold(T, load, fill, overlap, exchange, enter, leave)
  parts = schedule(folds, fold)
  interval = max(exchange, enter, leave)
  assert sum(parts.values()) == walk(folds, T, load, fill, overlap, interval)
  assert min(parts.values()) >= 0
  assert parts["compute"] == folds * T


@laws
@given(small, small, small, st.sampled_from(OVERLAPS))
def test_more_overlap_never_costs_a_long_stream(folds, load, fill, overlap):
  T = load + 1  # as long as a load at least
  full, weights, none = (
    sum(schedule(folds, Fold(T, load, fill, kind)).values())
    for kind in ("full", "weights", "none")
  )
  assert full <= weights <= none


def test_the_slowest_port_is_charged_and_no_other():
  parts = schedule(1, Fold(10, 0, 0, "none", exchange=2, enter=3, leave=5))
  names = ("stall_exchange", "stall_input", "stall_output")
  stalls = [parts[name] for name in names]
  assert stalls == [10, 10, 20]
  parts = schedule(1, Fold(10, 0, 0, "none", exchange=4, enter=3, leave=2))
  stalls = [parts[name] for name in names]
  assert stalls == [30, 0, 0]


@pytest.mark.parametrize("bandwidth, cycles", [(1, 100), (10, 12), (9, 12)])
def test_the_memory_bounds_from_below(bandwidth, cycles):
  parts = bounded(schedule(1, Fold(10, 1, 1, "none")), 100, bandwidth)
  assert parts["cycles"] == cycles
  assert sum(parts[name] for name in PARTS) == cycles
