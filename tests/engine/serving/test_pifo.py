"""The queue's order, and trees of queues with and without shaping."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine.serving.offline import drain
from figs_jax.engine.serving.pifo import (
  Node,
  Packet,
  Pifo,
  PifoTree,
  RankBy,
)
from figs_jax.engine.serving.schedulers import (
  StartTimeFair,
  TokenBucket,
  earliest_deadline,
  fifo,
  strict_priority,
)

# Push a rank, or pop (None).
OPERATIONS = st.lists(st.none() | st.integers(-3, 3), max_size=40)


@given(OPERATIONS)
def test_the_smallest_rank_leaves_and_equals_in_order(operations):
  queue, inside = Pifo(), []  # a list sorted by insertion is the oracle
  for number, rank in enumerate(operations):
    if rank is not None:
      queue.push(number, rank)
      place = sum(other <= rank for other, _ in inside)
      inside.insert(place, (rank, number))
    elif inside:
      assert queue.head_rank == inside[0][0]
      rank, number = inside.pop(0)
      assert queue.pop() == (number, rank)
    assert len(queue) == len(inside)
  if not inside:
    with pytest.raises(IndexError, match="empty queue"):
      queue.pop()


def heap_order(ranks, pops):
  """The same pops of a `Pifo`, one by one."""
  queue, order = Pifo(), []
  for number, (rank, count) in enumerate(zip(ranks, pops)):
    queue.push(number, rank)
    order += [queue.pop()[0] if len(queue) else -1 for _ in range(count)]
  return order


@given(
  st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 3)), max_size=40),
  st.sampled_from([np.int32, np.uint8, np.float32]),
)
def test_drain_has_the_order_of_the_heap(operations, dtype):
  ranks = np.array([rank for rank, _ in operations]).astype(dtype)
  pops = np.array([count for _, count in operations], int)
  assert drain(ranks, pops).tolist() == heap_order(ranks.tolist(), pops)
  everything = [0] * (len(ranks) - 1) + [len(ranks)]
  assert drain(ranks).tolist() == heap_order(
    ranks.tolist(), everything[-len(ranks) :] if len(ranks) else []
  )


@pytest.mark.parametrize("mean", [0.9, 1.0, 1.1])
def test_drain_of_deep_and_shallow_queues(mean):
  rng = np.random.default_rng(0)
  ranks, pops = rng.integers(0, 500, 3000), rng.poisson(mean, 3000)
  assert drain(ranks, pops).tolist() == heap_order(ranks.tolist(), pops)


def test_bad_operations_are_named():
  with pytest.raises(ValueError, match="got NaN for item 1"):
    drain([0.0, float("nan")])
  with pytest.raises(ValueError, match="vector of real ranks"):
    drain([[1, 2]])
  for pops in ([1], [1, -1], [0.5, 1.0]):
    with pytest.raises(ValueError, match="2 integers of at least 0"):
      drain([1, 2], pops)
  for rank in (None, float("nan")):
    with pytest.raises(ValueError, match="rank that can be ordered"):
      Pifo().push("a", rank)


def shares(services, flows):
  """The largest |W_f / w_f - W_g / w_g| - (l_f / w_f + l_g / w_g) of windows.

  Args:
    services: (flow, length, flows with waiting packets before the pop, flows
      with waiting packets after it) of each pop.
    flows: Weight and longest packet of each flow.
  """
  worst = Fraction(-1000)
  for f, g in itertools.combinations(flows, 2):
    bound = sum(Fraction(flows[x][1], flows[x][0]) for x in (f, g))
    for first in range(len(services)):
      lead = Fraction(0)
      for flow, length, before, after in services[first:]:
        if not {f, g} <= before:
          break
        if flow in (f, g):
          sign = 1 if flow == f else -1
          lead += sign * Fraction(length, flows[flow][0])
        if not {f, g} <= after:
          break
        worst = max(worst, abs(lead) - bound)
  return worst


@st.composite
def crowds(draw, flows):
  """Bursts of 4 to 12 packets of one flow, each before up to 12 pops."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  arrivals = []
  for _ in range(draw(st.integers(2, 7))):
    for flow in rng.choice(list(flows), rng.integers(1, len(flows) + 1)):
      lengths = rng.integers(1, 10, rng.integers(4, 13)).tolist()
      arrivals += [(str(flow), length) for length in lengths]
    arrivals += [None] * int(rng.integers(0, 13))
  return arrivals


WEIGHTS = st.fixed_dictionaries({flow: st.integers(1, 5) for flow in "abc"})


def measured(tree, arrivals, class_of, leaf_of):
  """Feeds a tree (None pops) and records the services by class.

  Args:
    tree: Tree of queues.
    arrivals: (flow, length) to push, or None to pop.
    class_of: Function of a flow that returns its class, or None for others.
    leaf_of: Function of a flow that returns its leaf.
  """
  waiting, services = {}, []

  def backlog():
    return {key for key, count in waiting.items() if count}

  for arrival in [*arrivals, *[None] * len(arrivals)]:
    if arrival is not None:
      flow, length = arrival
      tree.push(Packet(flow, length), 0, leaf_of(flow))
      waiting[class_of(flow)] = waiting.get(class_of(flow), 0) + 1
    elif len(tree):
      before = backlog()
      packet = tree.pop(0)
      waiting[class_of(packet.flow)] -= 1
      row = class_of(packet.flow), packet.length, before, backlog()
      services.append(row)
  return [row for row in services if row[0] is not None]


@settings(deadline=None, max_examples=25)
@given(crowds("abc"), WEIGHTS)
def test_fair_queueing_shares_within_one_packet_of_each_flow(arrivals, weights):
  tree = PifoTree(Node("link", StartTimeFair(weights)))
  services = measured(tree, arrivals, str, lambda flow: None)
  longest = {
    flow: max((a[1] for a in arrivals if a and a[0] == flow), default=1)
    for flow in "abc"
  }
  flows = {flow: (weights[flow], longest[flow]) for flow in "abc"}
  assert shares(services, flows) <= 0


def test_fair_queueing_reaches_its_bound_and_fifo_breaks_it():
  packets = [("a", 8)] * 9 + [("b", 8)] * 9
  flows = {"a": (1, 8), "b": (1, 8)}
  fair = PifoTree(Node("link", StartTimeFair({"a": 1, "b": 1})))
  assert -8 <= shares(measured(fair, packets, str, lambda f: None), flows) <= 0
  plain = PifoTree(Node("link", fifo()))
  assert shares(measured(plain, packets, str, lambda f: None), flows) > 0


def hierarchy(tops, leaves):
  """HPFQ: classes x and y, of the flows a, b and c, d."""
  return PifoTree(
    Node(
      "link",
      StartTimeFair(tops),
      [
        Node("x", StartTimeFair({f: leaves[f] for f in "ab"})),
        Node("y", StartTimeFair({f: leaves[f] for f in "cd"})),
      ],
    )
  )


def top(flow):
  return "x" if flow in "ab" else "y"


@settings(deadline=None, max_examples=25)
@given(
  crowds("abcd"),
  st.fixed_dictionaries({name: st.integers(1, 5) for name in "xyabcd"}),
)
def test_a_hierarchy_shares_at_each_level(arrivals, weights):
  # In a class: any lengths. Only its own services count.
  for flows in ("ab", "cd"):
    services = measured(
      hierarchy({k: weights[k] for k in "xy"}, weights),
      arrivals,
      lambda flow, flows=flows: flow if flow in flows else None,
      top,
    )
    limits = {f: (weights[f], 9) for f in flows}
    assert shares(services, limits) <= 0
  # Between classes: lengths that are equal within each class.
  equal = [a and (a[0], 3 if top(a[0]) == "x" else 7) for a in arrivals]
  tree = hierarchy({k: weights[k] for k in "xy"}, weights)
  services = measured(tree, equal, top, top)
  limits = {"x": (weights["x"], 3), "y": (weights["y"], 7)}
  assert shares(services, limits) <= 0


def test_a_parent_charges_the_arrival_not_the_packet_that_leaves():
  """Unequal lengths out of order: 45 units against 5 for equal weights."""
  weights = dict.fromkeys("xy", 1)
  tree = PifoTree(
    Node(
      "link",
      StartTimeFair(weights),
      [Node("x", strict_priority()), Node("y", fifo())],
    )
  )
  for _ in range(10):
    tree.push(Packet("x", 1, priority=1), 0, "x")
    tree.push(Packet("y", 1), 0, "y")
  for _ in range(10):
    tree.push(Packet("x", 9, priority=0), 0, "x")
  sent = [tree.pop(0) for _ in range(10)]
  served = {f: sum(p.length for p in sent if p.flow == f) for f in "xy"}
  assert served == {"x": 45, "y": 5}


def drained(tree, now):
  """Pops everything as soon as it is released: (time, packet)."""
  sent = []
  while len(tree):
    if not tree.ready(now):
      now = max(now, tree.next_release)
    sent.append((now, tree.pop(now)))
  return sent


@settings(deadline=None, max_examples=60)
@given(
  st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=25
  ),
  st.fractions(min_value="1/4", max_value=4, max_denominator=8),
  st.integers(6, 12),
)
def test_a_token_bucket_keeps_rate_and_burst(arrivals, rate, burst):
  """Over every closed interval, and no packet waits without need."""
  shaped = Node("shaped", fifo(), shaping=TokenBucket(rate, burst))
  tree, now, sent = PifoTree(Node("link", fifo(), [shaped])), 0, []
  arrived = {}
  for number, (gap, length) in enumerate(arrivals):
    later = now + gap
    while tree.next_release is not None and tree.next_release <= later:
      now = max(now, tree.next_release)
      sent += [(now, tree.pop(now)) for _ in range(tree.ready(now))]
    now = max(now, later)
    arrived[number] = now
    tree.push(Packet("a", length, payload=number), now, "shaped")
  sent += drained(tree, now)
  assert [p.payload for _, p in sent] == list(range(len(arrivals)))
  for first, (start, _) in enumerate(sent):
    total = 0
    for end, packet in sent[first:]:
      total += packet.length
      assert total <= rate * (end - start) + burst
  # The earliest such times: a packet that waited left the bucket empty.
  for last, (end, packet) in enumerate(sent):
    if end > arrived[packet.payload]:
      assert any(
        sum(p.length for _, p in sent[first : last + 1])
        == rate * (end - start) + burst
        for first, (start, _) in enumerate(sent[: last + 1])
      )


def test_a_shaped_class_leaves_the_link_to_the_other():
  """Priority for x, but x has no more than its rate; nothing else waits."""
  order = RankBy(lambda packet, flow, now: packet.priority)
  tree = PifoTree(
    Node(
      "link",
      order,
      [Node("x", fifo(), shaping=TokenBucket(1, 1)), Node("y", fifo())],
    )
  )
  for number in range(3):
    tree.push(Packet("x", 1, payload=f"x{number}"), 0, "x")
    tree.push(Packet("y", 1, priority=1, payload=f"y{number}"), 0, "y")
  assert len(tree) == 6 and tree.ready(0) == 4 and tree.next_release == 1
  slots = [[0, 0], [1, 1], [2, 2]]
  sent = [tree.pop(now).payload for pair in slots for now in pair]
  assert sent == ["x0", "y0", "x1", "y1", "x2", "y2"]


def test_nested_shaping_goes_up_in_the_order_of_time():
  """A release may be held again above, and both may be due in one step."""
  inner = Node("inner", fifo(), shaping=TokenBucket(1, 1))
  outer = Node("outer", fifo(), [inner], shaping=TokenBucket(1, 1))
  other = Node("other", fifo())
  tree = PifoTree(Node("link", fifo(), [outer, other]))
  for number in range(3):
    tree.push(Packet("a", 1, payload=number), 0, "inner")
  tree.push(Packet("b", 1, payload="b"), 0, "other")
  assert tree.ready(9) == 4  # root ranks are the times 0, 0, 1, 2
  assert [tree.pop(9).payload for _ in range(4)] == [0, "b", 1, 2]


def test_a_release_in_the_past_is_now():
  early = RankBy(lambda packet, flow, now: now - 5)
  node = Node("x", fifo(), shaping=early)
  tree = PifoTree(Node("link", fifo(), [node]))
  tree.push(Packet(), 7, "x")
  assert tree.next_release == 7 and tree.ready(7) == 1


def test_bad_trees_and_calls_are_named():
  leaf = Node("x", fifo())
  with pytest.raises(ValueError, match="two named 'x'"):
    PifoTree(Node("link", fifo(), [leaf, Node("x", fifo())]))
  with pytest.raises(ValueError, match="root without shaping"):
    PifoTree(Node("link", fifo(), shaping=TokenBucket(1, 1)))
  tree = PifoTree(
    Node("link", fifo(), [Node("x", fifo(), shaping=TokenBucket(1, 2))])
  )
  for name in (None, "link", "z"):
    with pytest.raises(ValueError, match=r"one of the leaves \['x'\]"):
      tree.push(Packet(), 0, name)
  tree.push(Packet(), 3, "x")
  tree.push(Packet(length=2), 3, "x")
  tree.pop(3)
  with pytest.raises(IndexError, match="1 held; the next release is at 4"):
    tree.pop(3)
  with pytest.raises(ValueError, match="time of 3 or later, got 2"):
    tree.ready(2)
  with pytest.raises(ValueError, match="at most burst=2, got 3"):
    tree.push(Packet(length=3), 3, "x")
  assert len(tree) == 1
  with pytest.raises(ValueError, match="positive length, got 0"):
    Packet(length=0)
  with pytest.raises(ValueError, match="lack the field"):
    PifoTree(Node("link", earliest_deadline())).push(Packet(), 0)
