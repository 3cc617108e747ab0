"""A training step on many devices: data, tensor and pipeline parallel.

An estimate in the spirit of COMET (arXiv 2211.16648) from compute, links and
memory. A step on d x t x p devices with u microbatches takes

  sum_s F_s + (u - 1) max_s F_s, then the same of B_s,                       (1)

GPipe's schedule, where links between stages count as stages, plus a ring that
adds up gradients over d devices,

  2 (d - 1) steps of bytes / d each.                                         (2)

F_s and B_s are the products of a stage on the engine, split in t, and per block
two all-reduces of activations each (Megatron, 1909.08053): q, k, v and fc1 are
split by outputs, o and fc2 by their contraction, attention's products by heads;
other rows are repeated. For equal stages and free links, the bubble in (1) is
(p - 1) / (u + p - 1).

Devices of a group are neighbours: tensor first, then data, then pipeline. A
group that does not fit into a node is as slow as the link between nodes. Not
modelled: congestion, the optimizer's time, sequence parallelism, sharded
optimizer states, embeddings and biases. COMET's published figures (up to 7.7x
between its clusters, 1.4x from more memory, for models with up to 1T
parameters) depend on settings that its abstract does not give; none of them is
reproduced here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from figs_jax.engine._cost import cost
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine
from figs_jax.engine.spec_text import parse
from figs_jax.engine.training import TrainingPhase, nanoseconds

# What tensor parallelism splits, by the end of a row's name: its outputs, its
# contraction (whose partial sums are added up), or its heads.
_SPLITS = {
  "N": ("q", "k", "v", "fc1"),
  "K": ("o", "fc2"),
  "count": ("qk", "av"),
}


def _check(owner: Any, kind: type, *names: str, zero: bool = False) -> None:
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
  """Devices, links and memory.

  Attributes:
    devices: Number of devices.
    per_node: Devices of a node.
    intra: GB/s (bytes per ns) of a device's link within its node.
    inter: GB/s of its link to other nodes.
    intra_latency: Nanoseconds of a message within a node.
    inter_latency: Nanoseconds of a message between nodes.
    memory: Bytes of a device.

  Raises:
    ValueError: If a size or rate is not positive, or a latency is negative.

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
    _check(self, Integral, "devices", "per_node")
    _check(self, Real, "intra", "inter", "memory")
    _check(self, Real, "intra_latency", "inter_latency", zero=True)

  def link(self, span: int) -> tuple[float, float]:
    """(GB/s, ns) of the slowest link among `span` neighbouring devices."""
    if span <= self.per_node:
      return float(self.intra), float(self.intra_latency)
    return float(self.inter), float(self.inter_latency)


@dataclasses.dataclass(frozen=True)
class Parallel:
  """How a step is spread: data x tensor x pipeline devices.

  Attributes:
    data: Replicas, each with its share of the batch.
    tensor: Devices that share every block.
    pipeline: Stages of whole blocks.
    microbatches: Parts of a replica's batch, one after the other.
    overlap: Whether the exchange of gradients hides behind the backward pass of
      the last microbatch.

  Raises:
    ValueError: If a number is not a positive integer, or `overlap` not a bool.
  """

  data: int = 1
  tensor: int = 1
  pipeline: int = 1
  microbatches: int = 1
  overlap: bool = False

  def __post_init__(self):
    _check(self, Integral, "data", "tensor", "pipeline", "microbatches")
    if not isinstance(self.overlap, bool):
      raise ValueError(
        f"Parallel overlap: expected True or False, got {self.overlap!r}"
      )

  @property
  def devices(self) -> int:
    """Number of devices."""
    return self.data * self.tensor * self.pipeline


@dataclasses.dataclass(frozen=True)
class BytesPerValue:
  """Bytes that a device keeps per value: 16-bit training with Adam.

  Attributes:
    value: Bytes of a weight or an activation in use.
    gradient: Bytes of a gradient.
    states: Bytes of a weight's optimizer state: a 32-bit copy and two moments.

  Raises:
    ValueError: If a number is not an integer from 1 (`states`: from 0).
  """

  value: int = 2
  gradient: int = 2
  states: int = 12

  def __post_init__(self):
    _check(self, Integral, "value", "gradient")
    _check(self, Integral, "states", zero=True)


_MIXED = BytesPerValue()


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A training step on a cluster; times in ns.

  Attributes:
    parallel: How the step is spread.
    ns: Duration of the step: pipeline and exposed gradients.
    pipeline_ns: Duration of the schedule, with tensor exchange and sends.
    compute_ns: The slowest stage's own compute, all microbatches.
    tensor_ns: The slowest stage's all-reduces of activations, all microbatches.
    gradients_ns: Duration of the exchange of gradients, hidden or not.
    bubble: Share of `pipeline_ns` in which the slowest stage waits.
    memory: Bytes of the fullest device.
    fits: Whether a device has that much memory.
  """

  parallel: Parallel
  ns: float
  pipeline_ns: float
  compute_ns: float
  tensor_ns: float
  gradients_ns: float
  bubble: float
  memory: int
  fits: bool


def estimate(
  phase_at: Callable[[int], Any],
  engine: Engine | str,
  cluster: Cluster,
  parallel: Parallel,
  batch: int,
  *,
  clock_ghz: float | int = 1.0,
  sizes: BytesPerValue = _MIXED,
) -> Estimate:
  """The time and memory of one training step.

  Args:
    phase_at: Function from the size of a microbatch to the step, as a
      `figs_jax.engine.training.TrainingPhase` or a tuple of its fields. Rows
      come in the model's order; `blocks/I/...` belong to block I, previous rows
      to the first block, later ones to the last.
    engine: Engine of each device, with scalar sides.
    cluster: Devices and links.
    parallel: How to use them.
    batch: Batch of the whole cluster, per step.
    clock_ghz: Clock of an array; 1 for a roofline.
    sizes: Bytes per value.

  Raises:
    ValueError: If the numbers of devices differ, the batch does not divide,
      there are more stages than blocks, or `tensor` does not divide a size.

  >>> def phase_at(batch):
  ...   size = {"M": 196 * batch, "N": 768, "K": 768}
  ...   return 1, [{"name": f"blocks/{i}/mlp/fc1", **size} for i in range(4)]
  >>> one = estimate(phase_at, "tpu:v5e", Cluster(1), Parallel(), 64)
  >>> two = estimate(phase_at, "tpu:v5e", Cluster(2), Parallel(2), 64)
  >>> 1 < one.ns / two.ns < 2, one.gradients_ns, one.bubble
  (True, 0.0, 0.0)
  """
  engine = parse(engine)
  if parallel.devices != cluster.devices:
    raise ValueError(
      f"{parallel} uses {parallel.devices} devices, the cluster has"
      f" {cluster.devices}; make data x tensor x pipeline equal to it"
    )
  count = parallel.microbatches
  parts = parallel.data * count
  if batch < 1 or batch % parts:
    raise ValueError(
      f"batch: expected a multiple of data x microbatches = {parts}, got"
      f" {batch}"
    )
  phase = TrainingPhase(*phase_at(batch // parts))
  table = Layers.of(phase.layers)
  stages = stages_of(table.names, parallel.pipeline)
  local = shard(table, parallel.tensor)
  products = cost(phase._replace(layers=local).products(), engine, sizes.value)
  cycles = products.cycles.astype(float) * products.count
  ns = np.split(nanoseconds(cycles, engine, clock_ghz), 3)
  exchange = _exchanges(local, cluster, parallel.tensor, sizes.value)

  def per_stage(values: np.ndarray) -> np.ndarray:
    return np.bincount(stages, np.asarray(values, float))

  forward = per_stage(ns[0] + exchange)
  backward = per_stage(ns[1] + ns[2] + exchange)
  sends = _sends(local, stages, cluster, parallel, sizes.value)
  pipeline = makespan(forward, sends, count) + makespan(backward, sends, count)
  weights = per_stage(_weights(local))
  link = cluster.link(parallel.tensor * parallel.data)
  gradients = max(
    ring_ns(int(w) * sizes.gradient, parallel.data, *link) for w in weights
  )
  slowest = int(np.argmax(forward + backward))
  hidden = backward[slowest] if parallel.overlap else 0.0
  busy = float(forward[slowest] + backward[slowest]) * count
  tensor = float(per_stage(2 * exchange)[slowest]) * count
  live = per_stage(_activations(local)) * count * sizes.value
  kept = weights * (sizes.value + sizes.gradient + sizes.states)
  memory = int((live + kept).max())
  return Estimate(
    parallel,
    ns=float(pipeline + max(gradients - hidden, 0.0)),
    pipeline_ns=float(pipeline),
    compute_ns=busy - tensor,
    tensor_ns=tensor,
    gradients_ns=float(gradients),
    bubble=float(max(1 - busy / pipeline, 0.0)),
    memory=memory,
    fits=memory <= cluster.memory,
  )


def estimate_all(
  phase_at: Callable[[int], Any],
  engine: Engine | str,
  cluster: Cluster,
  batch: int,
  *,
  microbatches: Iterable[int] = (1, 2, 4, 8, 16, 32),
  overlap: bool = False,
  clock_ghz: float | int = 1.0,
  sizes: BytesPerValue = _MIXED,
) -> tuple[Estimate, ...]:
  """Every way to use the devices, the fastest that fits first.

  Ways that do not divide the model or the batch are left out; those that do not
  fit into memory come last.

  Args:
    phase_at, engine, cluster, batch, clock_ghz, sizes: Arguments of `estimate`.
    microbatches: Numbers of microbatches to try if there is a pipeline.
    overlap: Whether to hide the exchange of gradients, as in `Parallel`.

  Raises:
    ValueError: If no way fits the model and the batch; the message gives the
      last reason.

  >>> sides = {"M": 8, "N": 8, "K": 8}
  >>> rows = [{"name": f"blocks/{i}/ff", **sides} for i in (0, 1)]
  >>> ways = estimate_all(lambda batch: (1, rows), "ws", Cluster(2), 2)
  >>> len(ways), ways[0].parallel.pipeline
  (4, 1)
  """
  ways, why = [], ""
  for data, tensor, pipeline in factors(cluster.devices):
    for count in microbatches if pipeline > 1 else (1,):
      way = Parallel(data, tensor, pipeline, count, overlap)
      asked = phase_at, engine, cluster, way, batch
      try:
        ways.append(estimate(*asked, clock_ghz=clock_ghz, sizes=sizes))
      except ValueError as error:
        why = str(error)
  if not ways:
    raise ValueError(f"no way to use {cluster.devices} devices; {why}")
  return tuple(sorted(ways, key=lambda each: (not each.fits, each.ns)))


def train_seconds(
  phases_at: Callable[[int], Sequence[Any]],
  engine: Engine | str,
  cluster: Cluster,
  parallel: Parallel,
  batch: int,
  *,
  clock_ghz: float | int = 1.0,
  sizes: BytesPerValue = _MIXED,
) -> float:
  """The duration of a whole run, phase by phase.

  Args:
    phases_at: Function from the size of a microbatch to the phases, as from
      `figs_jax.models.phases.phases_of`.
    engine, cluster, parallel, batch, clock_ghz, sizes: Arguments of `estimate`.

  >>> rows = [{"name": "blocks/0/ff", "M": 8, "N": 8, "K": 8}]
  >>> phases = [(10, rows), (90, rows)]
  >>> way = Cluster(1), Parallel(), 1
  >>> one = estimate(lambda batch: phases[0], "ws", *way).ns
  >>> train_seconds(lambda batch: phases, "ws", *way) == 100 * one / 1e9
  True
  """
  known = functools.cache(phases_at)
  parts = parallel.data * parallel.microbatches
  total = 0.0
  for index, phase in enumerate(known(max(batch // parts, 1))):
    each = estimate(
      *(lambda size, i=index: known(size)[i], engine, cluster, parallel, batch),
      clock_ghz=clock_ghz,
      sizes=sizes,
    )
    total += TrainingPhase(*phase).steps * each.ns
  return total / 1e9


def factors(devices: int) -> list[tuple[int, int, int]]:
  """All (data, tensor, pipeline) with that product.

  >>> factors(2)
  [(1, 1, 2), (1, 2, 1), (2, 1, 1)]
  """
  return [
    (d, t, devices // (d * t))
    for d in range(1, devices + 1)
    for t in range(1, devices // d + 1)
    if devices % (d * t) == 0
  ]


def makespan(stages: np.ndarray, sends: np.ndarray, count: int) -> float:
  """When `count` microbatches have passed all stages and sends, half of (1).

  Each stage and each send takes one microbatch at a time.

  >>> makespan(np.array([2.0, 3.0]), np.array([1.0]), 4)
  15.0
  """
  times = np.concatenate([stages, sends])
  return float(times.sum() + (count - 1) * times.max())


def ring_ns(size: Any, devices: int, gbps: float, latency: float) -> Any:
  """A ring all-reduce of `size` bytes, (2).

  >>> ring_ns(800, 4, 2.0, 10.0)
  660.0
  """
  return 2 * (devices - 1) * (size / devices / gbps + latency)


def shard(layers: Layers, tensor: int) -> Layers:
  """One device's part of each row under tensor parallelism.

  Raises:
    ValueError: If `tensor` does not divide a size, or cuts groups.

  >>> row = {"name": "mlp/fc1", "M": 8, "N": 32, "K": 16}
  >>> shard(Layers.of([row]), 4).N.tolist()
  [8]
  """
  columns = {name: getattr(layers, name).copy() for name in _SPLITS}
  for i, name in enumerate(layers.names):
    axis = _axis(name)
    if axis is None:
      continue
    size = int(columns[axis][i])
    whole = tensor * (int(layers.m[i]) if axis == "K" else 1)
    if tensor > 1 and size % whole:
      raise ValueError(
        f"layer {name!r}: {axis}={size} does not divide among tensor={tensor}"
        f" devices; give a divisor of {size // (whole // tensor)}"
      )
    columns[axis][i] = size // tensor
  return dataclasses.replace(layers, masks=None, **columns)


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
    at = order.index(match[1]) if match else at  # rows after a block join it
    place.append(at)
  return owner[np.array(place)]


def _axis(name: str) -> str | None:
  """What tensor parallelism splits of a row; None repeats it."""
  last = name.rpartition("/")[2]
  return next((axis for axis, ends in _SPLITS.items() if last in ends), None)


def _weights(table: Layers) -> np.ndarray:
  """Weights of each row; attention's products have none."""
  owns = [_axis(name) != "count" for name in table.names]
  return table.K.astype(float) * table.N * table.count * owns


def _activations(table: Layers) -> np.ndarray:
  """Values that the backward pass of each row needs."""
  M, N, K = (getattr(table, name).astype(float) for name in "MNK")
  both = [_axis(name) == "count" for name in table.names]
  return (M * K + both * (K * N)) * table.count


def _exchanges(
  table: Layers, cluster: Cluster, tensor: int, itemsize: int
) -> np.ndarray:
  """ns of adding up the partial sums of each row that is split along K.

  Megatron adds up as many bytes in the backward pass, before each such pair.
  """
  link = cluster.link(tensor)
  sizes = table.M.astype(float) * table.N * table.count * itemsize
  is_split = np.array([_axis(name) == "K" for name in table.names])
  return np.where(is_split, ring_ns(sizes, tensor, *link), 0.0)


def _sends(
  table: Layers,
  stages: np.ndarray,
  cluster: Cluster,
  parallel: Parallel,
  itemsize: int,
) -> np.ndarray:
  """ns of sending a microbatch's activations to each next stage."""
  gbps, latency = cluster.link(cluster.devices)
  # The stage's last row ends its block; tensor devices send a share each.
  last = [np.flatnonzero(stages == s)[-1] for s in range(parallel.pipeline - 1)]
  sizes = (table.M.astype(float) * table.N * table.count)[np.array(last, int)]
  return sizes * itemsize / parallel.tensor / gbps + latency
