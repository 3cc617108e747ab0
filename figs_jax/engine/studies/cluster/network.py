"""The devices of a cluster, their links, and what collectives take on them.

A message of B bytes takes alpha + B / beta on a link of latency alpha and
bandwidth beta. A ring gathers or scatters B bytes over d devices in

  (d - 1) (B / d / beta + alpha)                                            (1)

and adds them up on all of them (all-reduce) by a scatter and a gather (Thakur,
Rabenseifner and Gropp, 2005). Over n nodes with l devices of the group in each,
one ring per local device runs between the nodes, with B / l bytes, and one ring
inside each node (Jia et al., 1807.11205):

  (n - 1) (B / (l n) / beta_2 + alpha_2)
    + (l - 1) (B / l / beta_1 + alpha_1)                                    (2)
"""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_fields(
  owner: Any, kind: type, *names: str, zero: bool = False
) -> None:
  """Raises ValueError for a field that is not a positive number of a kind."""
  for name in names:
    value = getattr(owner, name)
    legal = isinstance(value, kind) and not isinstance(value, bool)
    if legal and (0 < float(value) < float("inf") or zero and value == 0):
      continue
    what = "an integer" if kind is Integral else "a number"
    raise ValueError(
      f"{type(owner).__name__} {name}: expected {what}"
      f" {'from 0' if zero else 'above 0'}, got {value!r}"
    )


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Devices, links and memories.

  Attributes:
    devices: Number of devices.
    per_node: Devices of a node.
    intra: GB/s (bytes per ns) that a device sends within its node.
    inter: GB/s that it sends to other nodes.
    intra_latency: Nanoseconds of a message within a node.
    inter_latency: Nanoseconds of a message between nodes.
    memory: Bytes of a device.
    tier_memory: Bytes of a device's expansion tier, such as CXL memory; 0 for
      none.
    tier_bandwidth: GB/s between a device and its tier.
    price: Price of a device-hour; 1 counts device-hours.

  Raises:
    ValueError: If a size, rate or price is not positive, or a latency or
      `tier_memory` is negative.

  >>> Cluster(16, per_node=8, inter=25).pass_ns(0, 16).item()
  12000.0
  """

  devices: int
  per_node: int = 8
  intra: float | int = 300
  inter: float | int = 25
  intra_latency: float | int = 1000
  inter_latency: float | int = 5000
  memory: int = 80 * 10**9
  tier_memory: int = 0
  tier_bandwidth: float | int = 64
  price: float | int = 1

  def __post_init__(self):
    check_fields(self, Integral, "devices", "per_node")
    check_fields(self, Real, "intra", "inter", "memory")
    check_fields(self, Real, "tier_bandwidth", "price")
    names = ("intra_latency", "inter_latency", "tier_memory")
    check_fields(self, Real, *names, zero=True)

  def pass_ns(self, size: Any, devices: Any, stride: Any = 1) -> Any:
    """Gathering or scattering bytes over a group in every device's reach, (2).

    Args:
      size: Bytes of the whole, in arrays or numbers.
      devices: Number of devices of the group.
      stride: Distance between neighbours of the group in the order of devices.

    >>> float(Cluster(16).pass_ns(2.4e9, 8)) / 1e6  # 7 / 8 of it, at 300 GB/s
    7.007
    """
    devices = np.asarray(devices)
    local = np.gcd(devices, np.maximum(self.per_node // np.asarray(stride), 1))
    nodes = devices // local
    between = ring_ns(size / local, nodes, self.inter, self.inter_latency)
    inside = ring_ns(size, local, self.intra, self.intra_latency)
    return between + inside


def ring_ns(size: Any, devices: Any, gbps: Any, latency: Any) -> Any:
  """One pass of a ring, (1): a gather, or a scatter of sums.

  Args:
    size: Bytes of the whole.
    devices: Number of devices.
    gbps: GB/s of each link.
    latency: Nanoseconds of a message.

  >>> ring_ns(800, 4, 2.0, 10.0)
  330.0
  """
  return (devices - 1) * (size / devices / gbps + latency)
