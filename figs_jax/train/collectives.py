"""The collectives of a compiled program, read from its HLO text.

XLA writes each as one instruction with its result and its groups of devices.
One in the body of a loop counts as often as the loop runs, if that can be read
(see `figs_jax.train.trip_counts`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from figs_jax.train.trip_counts import trip_count

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?->.*\{$")
_INSTRUCTION = re.compile(
  rf"%?([\w.\-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(?:condition|body|calls|to_apply|true_computation|false_computation)="
  r"%?([\w.\-]+)"
)
_BRANCHES = re.compile(
  r"\b(?:branch_computations|called_computations)=\{(.*?)\}"
)
_IOTA = re.compile(
  r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
# A mesh of XLA's own over the devices, and the axes that a group spans.
_MESH = re.compile(
  r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\]"
  r"(?:T\(([\d,]+)\))?\))? \{(.*?)\}"
)
_MESH_AXIS = re.compile(r"'(\w+)'=(\d+)")
_PART = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_LISTS = re.compile(
  r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\}|)\}"
)
# XLA for TPUs writes a reduce-scatter as a computation of this name, of an
# all-reduce and a slice.
_SCATTER = "all-reduce-scatter"
# It repeats an asynchronous all-gather in each fusion that the gather runs
# beside, from its start to its end; all are one run.
_CHAIN = re.compile(r'channel_id=(\d+),.*\bchain_id="(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a step.

  Attributes:
    kind: Kind, as in "all-gather".
    axis: Mesh axes that the devices of a group differ in, as in "fsdp" or
      "data+fsdp"; "none" if groups have one device.
    bytes: Bytes of the whole array on one device: the result, or of a
      reduce-scatter the operand.
    count: Number of times that a step runs it.
    operation: Name of the operation in JAX; "" if XLA has none.
    shape: Result as HLO writes it.
    counted_once: Whether a loop around it has an unknown length, and counts as
      one run.
  """

  kind: str
  axis: str
  bytes: int
  count: int
  operation: str
  shape: str
  counted_once: bool = False

  @property
  def total(self) -> int:
    """Bytes of all its runs in a step."""
    return self.bytes * self.count


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
  """The collectives of a program, those with most bytes first.

  A branch of a conditional counts as if it were taken, and a loop of unknown
  length as one run.

  Args:
    text: HLO of a compiled program, `compiled.as_text()`.
    mesh: Size of each mesh axis, in the order of the mesh.

  Raises:
    ValueError: If the groups of an instruction have an unknown form.

  >>> text = '''
  ... ENTRY %main (a: f32[4]) -> f32[8] {
  ...   ROOT %g = f32[8]{0} all-gather(%a), replica_groups=[2,2]<=[4]
  ... }'''
  >>> collectives(text, {"data": 2, "fsdp": 2})[0].axis
  'fsdp'
  """
  bodies, entry = _bodies(text)
  runs, unknown = _runs(bodies, entry)
  each, chains = [], set()
  for name, line in (
    (name, x) for name, lines in bodies.items() for x in lines
  ):
    match = _INSTRUCTION.search(line)
    if match is None or not runs[name]:
      continue
    if chain := _CHAIN.search(line):
      if chain.groups() in chains:
        continue
      chains.add(chain.groups())
    one = _read(line, match, mesh, runs[name], name.startswith(_SCATTER))
    each.append(dataclasses.replace(one, counted_once=name in unknown))
  return sorted(each, key=lambda one: -one.total)


def _bodies(text: str) -> tuple[dict[str, list[str]], str]:
  """(lines of each computation by name, name of the entry)."""
  bodies: dict[str, list[str]] = {}
  entry = name = ""
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      name = match[2]
      bodies[name] = []
      entry = name if match[1] else entry
    elif name:
      bodies[name].append(line.strip())
  return bodies, entry


def _runs(
  bodies: Mapping[str, Sequence[str]], entry: str
) -> tuple[dict[str, int], set[str]]:
  """(how often each computation runs, those in loops of unknown length)."""
  calls: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
  for name, lines in bodies.items():
    for line in lines:
      called = _CALLED.findall(line)
      for several in _BRANCHES.findall(line):
        called += [one.strip().lstrip("%") for one in several.split(",")]
      loops = called and " while(" in line
      count = trip_count(line, lines, bodies) if loops else 1
      calls[name] += [(one, count) for one in called if one in bodies]
  runs, unknown = dict.fromkeys(bodies, 0), set()

  def visit(name: str, times: int, is_known: bool) -> None:
    runs[name] += times
    if not is_known:
      unknown.add(name)
    for called, count in calls[name]:
      times_more = 1 if count is None else count
      visit(called, times * times_more, is_known and count is not None)

  visit(entry, 1, True)
  return runs, unknown


def _read(
  line: str,
  match: re.Match[str],
  mesh: Mapping[str, int],
  count: int,
  scatters: bool,
) -> Collective:
  kind, shape, start = match[3], match[2], match[4]
  sizes = [_bytes(*array) for array in _ARRAY.findall(shape)]
  # An asynchronous start returns its operands too; the result is the largest.
  size = max(sizes) if start and kind != "all-reduce" else sum(sizes)
  groups = _groups(line, math.prod(mesh.values()))
  if kind == "reduce-scatter":
    size *= len(groups[0])
  elif scatters and kind == "all-reduce":
    kind = "reduce-scatter"
  operation = _NAME.search(line)
  axis = _axis(groups, mesh)
  name = operation[1] if operation else ""
  return Collective(kind, axis, size, count, name, shape)


def _bytes(dtype: str, dims: str) -> int:
  bits = re.search(r"\d+", dtype)
  width = 8 if dtype == "pred" or bits is None else int(bits[0])
  return math.prod(map(int, filter(None, dims.split(",")))) * width // 8


def _groups(line: str, devices: int) -> list[list[int]]:
  if match := _IOTA.search(line):
    shape = _numbers(match[1])
    return _ids(match[2], match[3]).reshape(shape).tolist()
  if match := _MESH.search(line):
    return _groups_of_mesh(*match.groups())
  match = _LISTS.search(line)
  if match is None:
    raise ValueError(f"expected groups of devices in HLO, got {line[:300]!r}")
  groups = [_numbers(one) for one in re.findall(r"\{([\d,]+)\}", match[1])]
  return groups or [list(range(devices))]


def _groups_of_mesh(
  axes: str, reshaped: str | None, order: str | None, spans: str
) -> list[list[int]]:
  """Groups that span some axes of a mesh, or parts of them.

  `'a':(2)4` is the middle one of the three axes of sizes 2, 4 and the rest into
  which axis a is divided.
  """
  parts = {name: (before, size) for name, before, size in _PART.findall(spans)}
  shape, moved = [], []
  for name, size in _MESH_AXIS.findall(axes):
    before, own = parts.get(name, ("1", "1"))
    before, own = int(before or 1), int(own or size)
    if name in parts:
      moved.append(len(shape) + 1)
    shape += [before, own, int(size) // before // own]
  ids = _ids(reshaped or str(math.prod(shape)), order).reshape(shape)
  last = range(len(shape) - len(moved), len(shape))
  members = math.prod(shape[i] for i in moved)
  return np.moveaxis(ids, moved, last).reshape(-1, members).tolist()


def _ids(shape: str, order: str | None) -> np.ndarray:
  """Numbers of all devices, reshaped and transposed."""
  sizes = _numbers(shape)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _axis(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> str:
  shape = tuple(mesh.values())
  differ = np.zeros(len(shape), bool)
  for group in groups:
    places = np.stack(np.unravel_index(np.array(group), shape))
    differ |= (places != places[:, :1]).any(axis=1)
  names = [name for name, various in zip(mesh, differ) if various]
  return "+".join(names) or "none"
