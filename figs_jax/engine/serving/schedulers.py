"""The classic schedulers as transactions of a push-in first-out queue.

Fair queueing and token buckets compute in fractions, so that their laws hold
exactly; a float counts as the binary fraction that it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from fractions import Fraction

from figs_jax.engine.serving.pifo import Number, Packet, RankBy, Transaction


def fifo() -> Transaction:
  """First in, first out: rank = time of arrival.

  >>> fifo().rank(Packet(), None, now=7)
  7
  """
  return RankBy(lambda packet, flow, now: now)


def strict_priority() -> Transaction:
  """Lower classes first: rank = priority.

  >>> strict_priority().rank(Packet(priority=2), None, now=7)
  2
  """
  return RankBy(lambda packet, flow, now: packet.priority)


def earliest_deadline() -> Transaction:
  """Earliest deadline first (EDF): rank = deadline.

  Meets all deadlines of unit jobs with integer release times if any order does.

  >>> earliest_deadline().rank(Packet(deadline=12), None, now=7)
  12
  """
  return RankBy(lambda packet, flow, now: packet.deadline)


def shortest_remaining() -> Transaction:
  """Shortest remaining processing time first (SRPT): rank = remaining service.

  Pushing what is left of a job after each quantum minimizes the sum of the
  completion times (Schrage, 1968).

  >>> shortest_remaining().rank(Packet(length=1, remaining=5), None, now=7)
  5
  """
  return RankBy(
    lambda packet, flow, now: (
      packet.length if packet.remaining is None else packet.remaining
    )
  )


class StartTimeFair(Transaction):
  """Weighted fair queueing by start tags (Goyal et al., SIGCOMM 1996).

  A packet p of flow f has the tags

    start(p) = max(v, finish_f),    finish_f = start(p) + length(p) / w_f,

  its rank is its start tag, and the virtual time v is the start tag of the last
  packet that left. Between two moments between which flows f and g always have
  packets waiting, their services W differ by

    |W_f / w_f - W_g / w_g| <= l_f / w_f + l_g / w_g,

  where l is the longest packet of a flow.

  Args:
    weights: Weight of each flow, or None for equal weights of any flows.

  Raises:
    ValueError: If a weight is not positive.

  >>> fair = StartTimeFair({"a": 2, "b": 1})
  >>> [str(fair.rank(Packet(length=3), flow, now=0)) for flow in "aabb"]
  ['0', '3/2', '0', '3']
  """

  def __init__(self, weights: Mapping[Hashable, Number] | None = None):
    for flow, weight in (weights or {}).items():
      if not weight > 0:
        raise ValueError(
          f"Expected positive weights, got {weight} for flow {flow!r}"
        )
    self.weights = weights
    self.virtual_time = Fraction(0)
    self._finish: dict[Hashable, Fraction] = {}

  def rank(self, packet: Packet, flow: Hashable, now: Number) -> Fraction:
    """The start tag of the packet; its finish tag is kept for the next one.

    Args:
      packet: The packet.
      flow: Flow that is charged for it.
      now: Current time, unused.

    Raises:
      ValueError: If the flow has no weight.
    """
    if self.weights is not None and flow not in self.weights:
      raise ValueError(
        f"Expected a flow with a weight, one of {list(self.weights)}, got"
        f" {flow!r}"
      )
    weight = 1 if self.weights is None else self.weights[flow]
    start = max(self.virtual_time, self._finish.get(flow, Fraction(0)))
    self._finish[flow] = start + Fraction(packet.length) / Fraction(weight)
    return start

  def dequeued(self, rank: Fraction) -> None:
    """Moves the virtual time to the start tag of what has left.

    Args:
      rank: Start tag of the packet that has left.
    """
    self.virtual_time = rank


class TokenBucket(Transaction):
  """Shaping: release times that keep a rate, with bursts of a limited size.

  A packet waits until the bucket, which fills at `rate` up to `burst`, holds
  its length in tokens. What is released within any closed interval of t is at
  most rate * t + burst.

  Args:
    rate: Tokens per unit of time.
    burst: Tokens that a full bucket holds.

  Raises:
    ValueError: If rate or burst are not positive.

  >>> bucket = TokenBucket(rate=2, burst=3)
  >>> [str(bucket.rank(Packet(length=3), None, now=t)) for t in (0, 0, 9)]
  ['0', '3/2', '9']
  """

  def __init__(self, rate: Number, burst: Number):
    if not (rate > 0 and burst > 0):
      raise ValueError(
        f"Expected a positive rate and burst, got rate={rate}, burst={burst}"
      )
    self.rate, self.burst = Fraction(rate), Fraction(burst)  # pyrefly: ignore
    self._tokens = self.burst
    self._time: Fraction | None = None

  def rank(self, packet: Packet, flow: Hashable, now: Number) -> Fraction:
    """The release time of the packet; its tokens are taken at once.

    Args:
      packet: The packet.
      flow: Flow of the packet, unused.
      now: Current time.

    Raises:
      ValueError: If the packet is longer than a full bucket.
    """
    length, time = Fraction(packet.length), Fraction(now)
    if length > self.burst:
      raise ValueError(
        f"Expected a length of at most burst={self.burst}, got {length}"
      )
    passed = 0 if self._time is None else time - self._time
    # Negative tokens are owed to packets that wait already.
    tokens = min(self.burst, self._tokens + self.rate * passed)
    self._tokens, self._time = tokens - length, time
    return time + max(Fraction(0), length - tokens) / self.rate
