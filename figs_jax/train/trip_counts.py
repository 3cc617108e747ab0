"""How often the loops of a compiled program run, read from its HLO text.

XLA for CPUs writes the length of most loops into their backend_config. XLA for
TPUs does not; there the counter of the loop, its start, its step and the bound
that the condition compares it with are looked up. A loop whose condition
depends on data has no length that could be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_WHILE = re.compile(r" while\(%([\w.\-]+)\)")
_PARTS = re.compile(r"\b(condition|body)=%([\w.\-]+)")
_ASSIGNED = re.compile(r"(ROOT )?%([\w.\-]+) = .*? ([\w\-]+)\((.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_INDEX = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")
# Operations whose result has the value of their operand.
_SAME = {"copy", "copy-start", "copy-done", "bitcast", "reshape"}
# Bound on the left of a comparison: the direction with it on the right.
_MIRRORED = {"GT": "LT", "GE": "LE"}


class _Instruction(NamedTuple):
  """An operation, the names of its operands, and what follows its bracket."""

  operation: str
  operands: list[str]
  rest: str


class _Computation:
  """Instructions of a computation by name, and the name of its result."""

  def __init__(self, lines: Sequence[str]):
    self.root = ""
    self._instructions: dict[str, _Instruction] = {}
    for line in lines:
      if match := _ASSIGNED.match(line):
        root, name, operation, rest = match.groups()
        operands = _OPERAND.findall(rest.partition(")")[0])
        self._instructions[name] = _Instruction(operation, operands, rest)
        self.root = name if root else self.root

  def source(self, name: str) -> _Instruction:
    """The instruction that computes a value, behind its copies."""
    one = self._instructions[name]
    while one.operation in _SAME:
      one = self._instructions[one.operands[0]]
    return one

  def element(self, name: str) -> int | None:
    """Index of the element of the parameter that a value is, or None."""
    one = self.source(name)
    if one.operation != "get-tuple-element":
      return None
    if self.source(one.operands[0]).operation != "parameter":
      return None
    index = _INDEX.search(one.rest)
    return int(index[1]) if index else None

  def constant(
    self, name: str, outer: Callable[[int], int | None] = lambda _: None
  ) -> int | None:
    """A constant integer; `outer` has those of the parameter's elements."""
    one = self.source(name)
    if one.operation == "constant":
      text = one.rest.partition(")")[0]
      return int(text) if re.fullmatch(r"-?\d+", text) else None
    index = self.element(name)
    return None if index is None else outer(index)


def trip_count(
  line: str, lines: Sequence[str], bodies: Mapping[str, Sequence[str]]
) -> int | None:
  """How often a loop runs; None if that cannot be read.

  Args:
    line: Instruction of the loop.
    lines: Instructions of the computation that it stands in.
    bodies: Instructions of each computation, by name.

  >>> line = '%w = s32[] while(%x), {"known_trip_count":{"n":"7"}}'
  >>> trip_count(line, [line], {})
  7
  """
  if known := _KNOWN.search(line):
    return int(known[1])
  operand, parts = _WHILE.search(line), dict(_PARTS.findall(line))
  if operand is None or not parts.keys() >= {"condition", "body"}:
    return None
  around = _Computation(lines)
  condition, body = (
    _Computation(bodies[parts[part]]) for part in ("condition", "body")
  )
  first, after = around.source(operand[1]), body.source(body.root)
  if first.operation != "tuple" or after.operation != "tuple":
    return None

  def start(index: int) -> int | None:
    return around.constant(first.operands[index])

  def unchanged(index: int) -> int | None:
    """The value of an element that the body hands on."""
    kept = body.element(after.operands[index]) == index
    return start(index) if kept else None

  test = condition.source(condition.root)
  direction = _DIRECTION.search(test.rest)
  if test.operation != "compare" or direction is None:
    return None
  (counter, limit), way = test.operands, direction[1]
  if way in _MIRRORED:
    counter, limit, way = limit, counter, _MIRRORED[way]
  index = condition.element(counter)
  if index is None or way not in _MIRRORED.values():
    return None
  step = _step(body, after.operands[index], index, unchanged)
  begin, end = start(index), condition.constant(limit, unchanged)
  if begin is None or end is None or step is None or step < 1:
    return None
  return max(0, math.ceil((end + (way == "LE") - begin) / step))


def _step(
  body: _Computation,
  name: str,
  index: int,
  outer: Callable[[int], int | None],
) -> int | None:
  """What the body adds to an element of its parameter, if that is constant."""
  one = body.source(name)
  if one.operation != "add":
    return None
  for counter, step in (one.operands, one.operands[::-1]):
    if body.element(counter) == index:
      return body.constant(step, outer)
  return None
