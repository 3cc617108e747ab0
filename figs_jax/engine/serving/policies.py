"""Which point of a nested model answers a query, and what stays on chip.

A policy looks at a table: for each point and each candidate of a cached
sub-graph, the latency of a query (as SUSHI's scheduler does). When the engine
is free, the queue's head is served at a point,

* latency: the most accurate one that meets the query's deadline now, or the
  fastest if none does;
* queue: the most accurate one with which the query and those that wait behind
  it, up to 32, can meet their deadlines if these are served at the fastest
  point, and a spare share of the query's bound is left for those to come; or
  the fastest if none is;
* accuracy: the fastest one that has the query's least accuracy, or the most
  accurate if none has;
* fixed: always the same.

Since `latency` uses all the time that a query has, those behind it wait, and
many are late where a sparse model serves all of them in time.

With `every`, the cache is chosen anew after each Q queries: the candidate under
which these queries would have taken least time, the change included; among
equal ones the fewest bytes. SUSHI caches the candidate that is most like the
average of the sub-networks it served; the least time is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

RULES = ("latency", "queue", "accuracy", "fixed")
LOOK_AHEAD = 32
SPARE = 60  # per cent
SUSHI_EVERY = 32


@dataclasses.dataclass(frozen=True, eq=False)
class ServiceTable:
  """What serving costs: P points of a model, C candidates of what is cached.

  Attributes:
    points: Patterns, the sparsest first.
    accuracy: Accuracy of each point, float64 [P].
    latency: Nanoseconds of a query, int64 [P, C].
    dram_bytes: Bytes off chip of a query, int64 [P, C].
    energy_pj: Picojoules of a query, float64 [P, C].
    change: Nanoseconds of changing the cache, from row to column, int64 [C, C].
    change_bytes: Bytes of it, int64 [C, C].
    change_pj: Picojoules of it, float64 [C, C].
    favourite: Candidate to begin with where all queries take one point, [P].
    common: Candidate to begin with where they take any.

  Raises:
    ValueError: If shapes differ, or an accuracy is not from 0 to 1.
  """

  points: tuple[str, ...]
  accuracy: np.ndarray
  latency: np.ndarray
  dram_bytes: np.ndarray
  energy_pj: np.ndarray
  change: np.ndarray
  change_bytes: np.ndarray
  change_pj: np.ndarray
  favourite: tuple[int, ...]
  common: int = 0

  def __post_init__(self):
    P, C = len(self.points), self.change.shape[0]
    shapes = {
      **dict.fromkeys(("latency", "dram_bytes", "energy_pj"), (P, C)),
      **dict.fromkeys(("change", "change_bytes", "change_pj"), (C, C)),
      "accuracy": (P,),
    }
    for name, shape in shapes.items():
      got = np.shape(getattr(self, name))
      if got != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {got}")
    accuracy = np.asarray(self.accuracy)
    if not ((accuracy >= 0) & (accuracy <= 1)).all():
      raise ValueError(
        f"accuracy: expected values from 0 to 1, got {accuracy.tolist()}"
      )

  @property
  def order(self) -> np.ndarray:
    """Place of each point by accuracy, 0 the lowest, int64 [P].

    Of equally accurate points the sparser one comes higher.
    """
    P = len(self.points)
    places = np.empty(P, np.int64)
    places[np.lexsort((-np.arange(P), self.accuracy))] = np.arange(P)
    return places


@dataclasses.dataclass(frozen=True)
class Policy:
  """A rule, and how often the cache is chosen anew.

  Attributes:
    rule: "latency", "queue", "accuracy" or "fixed".
    point: Pattern of the rule "fixed".
    every: Queries Q from one choice of the cache to the next; 0 keeps it.
    spare: Per cent of a query's bound that the rule "queue" leaves.

  Raises:
    ValueError: If the rule is unknown, it lacks its point or has one that it
      does not take, Q is negative, or the spare share is not from 0 to 100.

  >>> str(Policy.parse("sushi")), str(Policy.parse("fixed:1:8"))
  ('latency:every=32', 'fixed:1:8')
  """

  rule: str
  point: str = ""
  every: int = 0
  spare: int = SPARE

  def __post_init__(self):
    if self.rule not in RULES:
      raise ValueError(
        f"policy {self.rule!r}: expected {', '.join(RULES)} or sushi, as in"
        " 'latency', 'accuracy:every=32' or 'fixed:1:8'"
      )
    if (self.rule == "fixed") != bool(self.point):
      raise ValueError(
        f"policy {self}: expected a point of fixed and of no other rule, as in"
        " 'fixed:1:8'"
      )
    if self.every < 0 or not 0 <= self.spare <= 100:
      raise ValueError(
        f"policy {self}: expected every=Q of at least 0 and spare=PERCENT from"
        f" 0 to 100, got {self.every} and {self.spare}"
      )
    if self.rule != "queue" and self.spare != SPARE:
      raise ValueError(f"policy {self}: spare= is of queue; leave it out")

  @classmethod
  def parse(cls, text: str) -> Policy:
    """Reads RULE[:n:m][:every=Q][:spare=PERCENT].

    "sushi" is latency:every=32.

    Raises:
      ValueError: If the text cannot be read.

    >>> Policy.parse("queue:every=8").every
    8
    """
    rule, *parts = text.strip().split(":")
    options = {"every": SUSHI_EVERY} if rule == "sushi" else {}
    rule = "latency" if rule == "sushi" else rule
    given = [part for part in parts if "=" in part]
    for part in given:
      name, _, number = part.partition("=")
      whole = number.isdecimal() and len(number) < 10
      if name not in ("every", "spare") or not whole:
        raise ValueError(
          f"policy {text!r}: expected every=Q or spare=PERCENT, integers, got"
          f" {part!r}"
        )
      options[name] = int(number)
    point = ":".join(part for part in parts if part not in given)
    return cls(rule, point, **options)

  def place(self, points: Sequence[str]) -> int:
    """The index of its point among those of a model; 0 for other rules.

    Raises:
      ValueError: If the model has no such point.
    """
    if self.rule != "fixed":
      return 0
    if self.point not in points:
      raise ValueError(
        f"policy {self}: expected a point of the model, one of"
        f" {', '.join(points)}, got {self.point!r}"
      )
    return list(points).index(self.point)

  def begins_with(self, table: ServiceTable) -> int:
    """The candidate that is cached before the first query."""
    if self.rule == "fixed":
      return table.favourite[self.place(table.points)]
    return table.common

  def __str__(self) -> str:
    words = [self.rule, self.point]
    words.append(f"every={self.every}" * bool(self.every))
    words.append(f"spare={self.spare}" * (self.spare != SPARE))
    return ":".join(filter(None, words))
