"""How rows of a model are spread over devices, and what spreading costs.

Tensor parallelism after Megatron (1909.08053): q, k, v and fc1 are split by
outputs, o and fc2 by their contraction, attention's products by heads; other
rows are repeated. Pipelines hold whole blocks.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from figs_jax.engine.layers import Layers

# How tensor parallelism splits a row, by the end of its name: its outputs, its
# contraction (whose partial sums are then added up), or its heads.
SPLITS = {"N": ("q", "k", "v", "fc1"), "K": ("o", "fc2"), "count": ("qk", "av")}


def ring_ns(size: Any, devices: int, gbps: float, latency: float) -> Any:
  """A ring all-reduce of `size` bytes: 2 (d - 1) messages of size / d each.

  >>> ring_ns(800, 4, 2.0, 10.0)
  660.0
  """
  return 2 * (devices - 1) * (size / devices / gbps + latency)


def makespan(stages: np.ndarray, hops: np.ndarray, count: int) -> float:
  """When `count` microbatches have passed all stages and the hops between.

  Each stage and each hop takes one microbatch at a time, for a time of its own.

  >>> makespan(np.array([2.0, 3.0]), np.array([1.0]), 4)
  15.0
  """
  times = np.concatenate([stages, hops])
  return float(times.sum() + (count - 1) * times.max())


def split(layers: Layers, tensor: int) -> Layers:
  """One device's part of each row under tensor parallelism; see `SPLITS`.

  Raises:
    ValueError: a size that `tensor` does not divide, or groups that it cuts.

  >>> row = {"name": "mlp/fc1", "M": 8, "N": 32, "K": 16}
  >>> split(Layers.of([row]), 4).N.tolist()
  [8]
  """
  columns = {name: getattr(layers, name).copy() for name in ("N", "K", "count")}
  for i, name in enumerate(layers.names):
    for axis in axes_of(name):
      size = int(columns[axis][i])
      whole = tensor * (int(layers.m[i]) if axis == "K" else 1)
      if tensor > 1 and size % whole:
        raise ValueError(
          f"layer {name!r}: {axis}={size} does not divide among tensor={tensor}"
          f" devices; give a divisor of {size // (whole // tensor)}"
        )
      columns[axis][i] = size // tensor
  return dataclasses.replace(layers, masks=None, **columns)


def axes_of(name: str) -> list[str]:
  last = name.rpartition("/")[2]
  return [axis for axis, ends in SPLITS.items() if last in ends]


def stages_of(names: tuple[str, ...], stages: int) -> np.ndarray:
  """The stage of each row: whole blocks, the first stages taking one more."""
  blocks = [re.match(r"(.*blocks/\d+)/", name) for name in names]
  order = list(dict.fromkeys(b[1] for b in blocks if b)) or [""]
  if stages > len(order):
    raise ValueError(
      f"pipeline={stages} stages, but the model has {len(order)} blocks; give"
      f" at most {len(order)}"
    )
  owner = np.sort(np.arange(len(order)) % stages)
  place, at = [], 0
  for match in blocks:
    at = order.index(match[1]) if match else at
    place.append(at)
  # What follows the last block stays with it: `at` only grows.
  return owner[np.array(place)]


def weights_of(table: Layers) -> np.ndarray:
  """Weights of each row; attention's products have none."""
  owns = [axis != ["count"] for axis in map(axes_of, table.names)]
  return table.K.astype(float) * table.N * table.count * owns


def activations_of(table: Layers) -> np.ndarray:
  """Values that the backward pass of each row needs."""
  M, N, K = (getattr(table, name).astype(float) for name in "MNK")
  both = [axis == ["count"] for axis in map(axes_of, table.names)]
  return (M * K + both * (K * N)) * table.count
