"""Push-in first-out queues (PIFOs), and trees of them with shaping.

A PIFO takes an element anywhere, at the place that its rank gives it, and
releases only its head. The rank is computed once, when the element arrives, by
a small program, the transaction; a scheduler is a choice of transactions
(`figs_jax.engine.serving.schedulers`). A tree of PIFOs expresses hierarchies:
its leaves hold packets, its inner nodes hold references to their children, and
a shaping transaction delays when a reference becomes visible to the parent.

Sivaraman et al., "Programmable Packet Scheduling at Line Rate", SIGCOMM 2016.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator
from fractions import Fraction
from typing import Any

Number = int | float | Fraction


@dataclasses.dataclass(frozen=True)
class Packet:
  """What waits in a queue: a query, a job or a network packet.

  Attributes:
    flow: Flow or client that the packet belongs to.
    length: Service that the packet needs, in any unit (bytes, cycles).
    deadline: Time by which it should be served, or None.
    priority: Class of strict priority; 0 is served first.
    remaining: Remaining service of the packet's job, or None for `length`.
    payload: Anything else, never looked at.

  Raises:
    ValueError: If the length is not positive.
  """

  flow: Hashable = None
  length: Number = 1
  deadline: Number | None = None
  priority: Number = 0
  remaining: Number | None = None
  payload: Any = None

  def __post_init__(self):
    if not self.length > 0:
      raise ValueError(f"Expected a positive length, got {self.length}")


class Pifo:
  """A queue ordered by rank, first in first out among equal ranks.

  The smallest rank is the head. Ranks are numbers, or tuples of numbers, which
  are compared in lexicographic order. Both operations take O(log n).

  >>> queue = Pifo()
  >>> for item, rank in [("a", 2), ("b", 1), ("c", 2)]:
  ...   queue.push(item, rank)
  >>> [queue.pop() for _ in range(len(queue))]
  [('b', 1), ('a', 2), ('c', 2)]
  """

  def __init__(self):
    self._heap: list[tuple[Any, int, Any]] = []
    self._sequence = itertools.count()

  def push(self, item: Any, rank: Any) -> None:
    """Inserts an item behind all items of smaller or equal rank.

    Args:
      item: Any object.
      rank: Number, or tuple of numbers.

    Raises:
      ValueError: If the rank is None or NaN, which have no order.
    """
    if rank is None or rank != rank:
      raise ValueError(
        f"Expected a rank that can be ordered, got {rank}; does the packet"
        " lack the field that its scheduler ranks by?"
      )
    heapq.heappush(self._heap, (rank, next(self._sequence), item))

  def pop(self) -> tuple[Any, Any]:
    """Removes the head and returns it with its rank.

    Raises:
      IndexError: If the queue is empty.
    """
    if not self._heap:
      raise IndexError("Expected a packet to pop, got an empty queue")
    rank, _, item = heapq.heappop(self._heap)
    return item, rank

  def first(self, count: int) -> list[Any]:
    """The items that would leave next, in order, at most `count` of them.

    >>> queue = Pifo()
    >>> for rank in (3, 1, 2):
    ...   queue.push(f"item {rank}", rank)
    >>> queue.first(2), len(queue)
    (['item 1', 'item 2'], 3)
    """
    return [item for *_, item in heapq.nsmallest(count, self._heap)]

  @property
  def head_rank(self) -> Any:
    """The rank of the head, or None for an empty queue."""
    return self._heap[0][0] if self._heap else None

  def __len__(self) -> int:
    return len(self._heap)


class Transaction:
  """The program that ranks a packet when it enters a queue.

  A subclass with state defines `rank`, and `dequeued` if its state follows what
  leaves the queue. `RankBy` makes one of a plain function. In a shaping
  transaction the rank is a release time.
  """

  def rank(self, packet: Packet, flow: Hashable, now: Number) -> Any:
    """The rank of a packet that enters the queue now.

    Args:
      packet: The packet.
      flow: Flow of the packet in a leaf, and name of the child that the packet
        comes from in an inner node.
      now: Current time.
    """
    raise NotImplementedError

  def dequeued(self, rank: Any) -> None:
    """Updates the state after an element has left the head of the queue.

    Args:
      rank: Rank of that element.
    """


class RankBy(Transaction):
  """A transaction without state.

  Args:
    function: Function of packet, flow and time that returns a rank.

  >>> last_in_first_out = RankBy(lambda packet, flow, now: -now)
  >>> last_in_first_out.rank(Packet(), None, now=3)
  -3
  """

  def __init__(self, function: Callable[[Packet, Hashable, Number], Any]):
    self._function = function

  def rank(self, packet: Packet, flow: Hashable, now: Number) -> Any:
    """The function's rank.

    Args:
      packet: The packet.
      flow: Flow of the packet, or name of the child that it comes from.
      now: Current time.
    """
    return self._function(packet, flow, now)


class Node:
  """A node of a tree of queues.

  Args:
    name: Name of the node, unique in its tree. The parent's transaction sees it
      as the flow.
    scheduling: Transaction that ranks what enters the node.
    children: Child nodes; a node without children holds packets.
    shaping: Transaction that gives the time at which an arrival becomes visible
      to the parent, or None for at once.
  """

  def __init__(
    self,
    name: str,
    scheduling: Transaction,
    children: tuple[Node, ...] | list[Node] = (),
    shaping: Transaction | None = None,
  ):
    self.name = name
    self.scheduling = scheduling
    self.children = tuple(children)
    self.shaping = shaping
    self.queue = Pifo()

  def walk(self) -> Iterator[Node]:
    """Yields this node and all below it, parents first."""
    yield self
    for child in self.children:
      yield from child.walk()


class PifoTree:
  """A hierarchy of queues, driven by the caller's clock.

  An arrival is ranked in its leaf, and a reference to the leaf is ranked in the
  parent, and so on up to the root. Below a shaped node the way up continues at
  the release time. `pop` follows the references down from the root: the packet
  that leaves is the head of its leaf, which need not be the packet that brought
  the reference.

  Hence what a parent charges for a reference (fair queueing, a token bucket) is
  the length of the packet that brought it. The laws of the parent are exact if
  each child serves in order of arrival, or its packets have equal lengths.

  Args:
    root: Root of the tree. A single queue is a root without children.

  Raises:
    ValueError: If two nodes have one name, or the root is shaped.

  >>> from figs_jax.engine.serving.schedulers import StartTimeFair, fifo
  >>> tree = PifoTree(
  ...   Node(
  ...     "link",
  ...     StartTimeFair({"a": 3, "b": 1}),
  ...     [Node("a", fifo()), Node("b", fifo())],
  ...   )
  ... )
  >>> for number in range(3):
  ...   for leaf in "ab":
  ...     tree.push(Packet(payload=f"{leaf}{number}"), now=0, leaf=leaf)
  >>> [tree.pop(now=0).payload for _ in range(len(tree))]
  ['a0', 'b0', 'a1', 'a2', 'b1', 'b2']
  """

  def __init__(self, root: Node):
    self.root = root
    self._nodes: dict[str, Node] = {}
    self._parents: dict[str, Node] = {}
    for node in root.walk():
      if node.name in self._nodes:
        raise ValueError(
          f"Expected nodes with different names, got two named {node.name!r}"
        )
      self._nodes[node.name] = node
      self._parents |= {child.name: node for child in node.children}
    if root.shaping is not None:
      raise ValueError(
        f"Expected a root without shaping, got a shaped root {root.name!r};"
        " put it under a root of its own, Node('link', fifo(), [node])"
      )
    # The shaping queues of all nodes, in one order of release times.
    self._held = Pifo()
    self._packets = 0
    self._now: Number | None = None

  def push(self, packet: Packet, now: Number, leaf: str | None = None) -> None:
    """Enqueues a packet.

    Args:
      packet: The packet.
      now: Current time, at least that of the previous call.
      leaf: Name of the leaf to enter; the root by default.

    Raises:
      ValueError: If time runs backwards, or the leaf does not exist.
    """
    name = self.root.name if leaf is None else leaf
    node = self._nodes.get(name)
    if node is None or node.children:
      leaves = [n.name for n in self.root.walk() if not n.children]
      raise ValueError(f"Expected one of the leaves {leaves}, got {name!r}")
    self._advance(now)
    self._enter(node, packet, packet, packet.flow, now)
    self._packets += 1

  def pop(self, now: Number) -> Packet:
    """Removes the packet that is served next.

    Args:
      now: Current time, at least that of the previous call.

    Raises:
      IndexError: If no packet has been released yet.
      ValueError: If time runs backwards.
    """
    self._advance(now)
    if not self.root.queue:
      raise IndexError(
        f"Expected a released packet at time {now}, got {self._packets} held;"
        f" the next release is at {self.next_release}"
      )
    node = self.root
    while True:
      item, rank = node.queue.pop()
      node.scheduling.dequeued(rank)
      if not node.children:
        self._packets -= 1
        return item
      node = item

  def ready(self, now: Number) -> int:
    """The number of packets that could be popped now.

    Args:
      now: Current time, at least that of the previous call.

    Raises:
      ValueError: If time runs backwards.
    """
    self._advance(now)
    return len(self.root.queue)

  @property
  def next_release(self) -> Number | None:
    """The earliest release time of what shaping holds, or None."""
    return self._held.head_rank

  def __len__(self) -> int:
    """The number of packets in the tree, held ones included."""
    return self._packets

  def _advance(self, now: Number) -> None:
    """Continues the way up of all that is released by now, in that order."""
    if self._now is not None and now < self._now:
      raise ValueError(f"Expected a time of {self._now} or later, got {now}")
    self._now = now
    while len(self._held) and self._held.head_rank <= now:
      (node, packet), time = self._held.pop()
      self._enter(self._parents[node.name], node, packet, node.name, time)

  def _enter(
    self,
    node: Node,
    item: Packet | Node,
    packet: Packet,
    flow: Hashable,
    now: Number,
  ) -> None:
    """Ranks an item in a node and references to the node above it."""
    while True:
      node.queue.push(item, node.scheduling.rank(packet, flow, now))
      if node is self.root:
        return
      if node.shaping is not None:
        release = max(node.shaping.rank(packet, node.name, now), now)
        self._held.push((node, packet), release)
        return
      item, flow, node = node, node.name, self._parents[node.name]
