"""Many devices as frozen, validated descriptions: links, memory, and their use.

Devices of one group sit next to each other: tensor first, then data, then
pipeline; a group that does not fit into a node is as slow as the link between
nodes.
"""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Devices, links and memory.

  Attributes:
    devices: how many.
    per_node: devices of a node.
    intra: GB/s (bytes per ns) of a device's link within its node.
    inter: GB/s of its link to other nodes.
    intra_latency: ns of a message within a node.
    inter_latency: ns of a message between nodes.
    memory: bytes of a device.

  Raises:
    ValueError: a number that is not positive (a latency: negative) or none, or
      devices that are not whole.

  >>> Cluster(16, per_node=8).link(16) == Cluster(16, per_node=8).link(2)
  False
  """

  devices: int
  per_node: int = 8
  intra: float | int = 300
  inter: float | int = 25
  intra_latency: float | int = 1000
  inter_latency: float | int = 5000
  memory: int = 80 * 10**9

  def __post_init__(self):
    for name in ("devices", "per_node"):
      _check_whole(self, name, 1)
    for name in ("intra", "inter", "memory"):
      _check_number(self, name, "above 0")
    for name in ("intra_latency", "inter_latency"):
      _check_number(self, name, "from 0")

  def link(self, span: int) -> tuple[float, float]:
    """(GB/s, ns) of the slowest link among `span` neighbouring devices."""
    if span <= self.per_node:
      return float(self.intra), float(self.intra_latency)
    return float(self.inter), float(self.inter_latency)


@dataclasses.dataclass(frozen=True)
class Parallel:
  """How a step is spread: data x tensor x pipeline devices.

  Attributes:
    data: replicas, each with its share of the batch.
    tensor: devices that share every block.
    pipeline: stages of whole blocks.
    microbatches: parts of a replica's batch, one after the other.
    overlap: whether the exchange of gradients hides behind the backward pass of
      the last microbatch.

  Raises:
    ValueError: what is no whole number from 1, or (overlap) no bool.
  """

  data: int = 1
  tensor: int = 1
  pipeline: int = 1
  microbatches: int = 1
  overlap: bool = False

  def __post_init__(self):
    for name in ("data", "tensor", "pipeline", "microbatches"):
      _check_whole(self, name, 1)
    if not isinstance(self.overlap, bool):
      raise ValueError(f"Parallel overlap={self.overlap!r}: give True or False")

  @property
  def devices(self) -> int:
    """How many devices that takes."""
    return self.data * self.tensor * self.pipeline


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Bytes that a device keeps per value: 16-bit training with Adam.

  Attributes:
    value: of a weight or an activation in use.
    gradient: of a gradient.
    states: of a weight's optimizer state: a 32-bit copy and two moments.

  Raises:
    ValueError: what is no whole number (from 1; states from 0).
  """

  value: int = 2
  gradient: int = 2
  states: int = 12

  def __post_init__(self):
    for name, least in (("value", 1), ("gradient", 1), ("states", 0)):
      _check_whole(self, name, least)


def _check_whole(owner: Any, name: str, least: int) -> None:
  value = getattr(owner, name)
  whole = isinstance(value, Integral) and not isinstance(value, bool)
  if not whole or value < least:
    raise ValueError(
      f"{type(owner).__name__} {name}={value!r}: give a whole number from"
      f" {least}"
    )


def _check_number(owner: Any, name: str, legal: str) -> None:
  value = getattr(owner, name)
  number = isinstance(value, Real) and not isinstance(value, bool)
  legal_zero = legal == "from 0" and value == 0
  if not legal_zero and not (number and 0 < float(value) < float("inf")):
    raise ValueError(
      f"{type(owner).__name__} {name}={value!r}: give a number {legal}"
    )
