"""The laws of the schedulers, against brute force over all orders."""

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine.serving.pifo import Node, Packet, PifoTree
from figs_jax.engine.serving.schedulers import (
  StartTimeFair,
  TokenBucket,
  earliest_deadline,
  fifo,
  shortest_remaining,
  strict_priority,
)


def slots(scheduler, jobs, quantum=False):
  """One unit per slot: the completion time of each job.

  Args:
    scheduler: Transaction of a single queue.
    jobs: Packets whose payload is (number, release time).
    quantum: Whether a job is pushed again with what remains of it.
  """
  queue, now, done = PifoTree(Node("link", scheduler)), 0, {}
  coming = sorted(jobs, key=lambda job: job.payload[1])
  while coming or len(queue):
    while coming and coming[0].payload[1] <= now:
      queue.push(coming.pop(0), now)
    now += 1
    if len(queue):
      job = queue.pop(now)
      if quantum and job.length > 1:
        queue.push(Packet(length=job.length - 1, payload=job.payload), now)
      else:
        done[job.payload[0]] = now
  return done


JOBS = st.lists(
  st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=6
)


def feasible(jobs):
  """Whether some order of unit jobs (release, deadline) is never late."""
  for order in itertools.permutations(jobs):
    now = 0
    for release, deadline in order:
      now = max(now, release) + 1
      if now > deadline:
        break
    else:
      return True
  return False


@settings(deadline=None, max_examples=150)
@given(JOBS)
def test_edf_meets_all_deadlines_if_any_order_does(windows):
  jobs = [(release, release + slack) for release, slack in windows]
  done = slots(
    earliest_deadline(),
    [
      Packet(deadline=deadline, payload=(number, release))
      for number, (release, deadline) in enumerate(jobs)
    ],
  )
  met = all(done[number] <= job[1] for number, job in enumerate(jobs))
  assert met == feasible(jobs)


def test_fifo_misses_deadlines_that_edf_meets():
  jobs = [
    Packet(deadline=3, payload=(0, 0)),
    Packet(deadline=1, payload=(1, 0)),
  ]
  assert slots(fifo(), jobs) == {0: 1, 1: 2}
  assert slots(earliest_deadline(), jobs) == {0: 2, 1: 1}


def least_total(jobs):
  """The least sum of completion times over all schedules of unit quanta."""

  @functools.cache
  def best(now, left):
    if not any(left):
      return 0
    totals = []
    for i, (remaining, (_, release)) in enumerate(zip(left, jobs)):
      if remaining and release <= now:
        after = left[:i] + (remaining - 1,) + left[i + 1 :]
        cost = now + 1 if remaining == 1 else 0
        totals.append(cost + best(now + 1, after))
    return min(totals) if totals else best(now + 1, left)

  return best(0, tuple(length for length, _ in jobs))


@settings(deadline=None, max_examples=60)
@given(
  st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=4
  )
)
def test_srpt_minimizes_the_sum_of_completion_times(jobs):
  packets = [
    Packet(length=length, payload=(number, release))
    for number, (length, release) in enumerate(jobs)
  ]
  done = slots(shortest_remaining(), packets, quantum=True)
  assert sum(done.values()) == least_total(jobs)


@given(st.lists(st.none() | st.integers(0, 3), max_size=30))
def test_strict_priority_and_fifo(operations):
  strict = PifoTree(Node("link", strict_priority()))
  plain = PifoTree(Node("link", fifo()))
  waiting, arrived = [], []
  for now, priority in enumerate(operations):
    if priority is not None:
      for tree in (strict, plain):
        tree.push(Packet(priority=priority, payload=now), now)
      waiting.append((priority, now))
      arrived.append(now)
    elif waiting:
      packet = strict.pop(now)
      first = min(waiting)  # the lowest class, and its first arrival
      assert (packet.priority, packet.payload) == first
      waiting.remove(first)
      assert plain.pop(now).payload == arrived.pop(0)


def test_bad_options_are_named():
  with pytest.raises(ValueError, match="positive weights, got 0 for flow 'a'"):
    StartTimeFair({"a": 0})
  with pytest.raises(ValueError, match=r"one of \['a'\], got 'b'"):
    StartTimeFair({"a": 1}).rank(Packet(), "b", 0)
  for rate, burst in ((0, 1), (1, 0), (-1, 1), (float("nan"), 1)):
    with pytest.raises(ValueError, match="positive rate and burst"):
      TokenBucket(rate, burst)
