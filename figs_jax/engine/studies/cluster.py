"""A training step on many devices: data, tensor and pipeline parallel.

An estimate in the spirit of COMET (arXiv 2211.16648), from compute, links and
memory. A step on d x t x p devices with u microbatches takes

  GPipe's schedule   sum_s F_s + (u - 1) max_s F_s, then the same of B_s, links
                     between stages being stages of their own; for equal stages
                     and free links the bubble is (p - 1) / (u + p - 1)
  + gradients        a ring over d devices: 2 (d - 1) steps of bytes / d each
  F_s and B_s        the products of a stage on the engine, split in t, and per
                     block two all-reduces of activations each (Megatron,
                     1909.08053)

Links and groups are those of `figs_jax.engine.studies.devices`. Not modelled:
congestion, the optimizer's time, sequence parallelism, sharded optimizer
states, embeddings and biases. COMET's published figures (up to 7.7x between its
clusters, 1.4x from more memory, of models with up to 1T parameters) depend on
settings that its abstract does not give; none of them is reproduced here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import Engine
from figs_jax.engine.spec_text import parse
from figs_jax.engine.studies.devices import Bytes, Cluster, Parallel
from figs_jax.engine.studies.sharding import (
  activations_of,
  axes_of,
  makespan,
  ring_ns,
  split,
  stages_of,
  weights_of,
)
from figs_jax.engine.training import Phase, StepCost, nanoseconds, step_cost

MIXED = Bytes()


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A training step on a cluster; times in ns.

  Attributes:
    parallel: how it is spread.
    ns: of the step: pipeline and exposed gradients.
    pipeline_ns: of the schedule, with tensor exchange and sends.
    compute_ns: the slowest stage's own compute, all microbatches.
    tensor_ns: its all-reduces of activations, all microbatches.
    gradients_ns: of the exchange of gradients, hidden or not.
    bubble: share of `pipeline_ns` in which the slowest stage waits.
    memory: bytes of the fullest device.
    fits: whether that is what a device has.
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
  sizes: Bytes = MIXED,
) -> Estimate:
  """The time and memory of one training step.

  Args:
    phase_at: batch -> the step as a `figs_jax.engine.training.Phase`; called
      with the size of one microbatch. Rows come in the model's order; `blocks/
      I/...` belong to block I, what comes before to the first block, what comes
      after to the last.
    engine: of each device; scalar sides.
    cluster: devices and links.
    parallel: how to use them.
    batch: of the whole cluster, per step.
    clock_ghz: of an array; a roofline has none.
    sizes: bytes per value.

  Raises:
    ValueError: the numbers of devices differ, the batch does not divide, more
      stages than blocks, or a size that `tensor` does not divide.

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
  parts = parallel.data * parallel.microbatches
  if batch < 1 or batch % parts:
    raise ValueError(
      f"batch={batch} does not divide into data x microbatches = {parts};"
      f" give a multiple of {parts}"
    )
  phase = Phase(*phase_at(batch // parts))
  table = Layers.of(phase.layers)
  stages = stages_of(table.names, parallel.pipeline)
  local = split(table, parallel.tensor)
  cost = step_cost(
    local,
    engine,
    forward=phase.forward,
    input_gradient=phase.input_gradient,
    weight_gradient=phase.weight_gradient,
    itemsize=sizes.value,
  )
  ns = _ns_of_rows(cost, engine, clock_ghz)
  exchange = _exchanged(local, cluster, parallel.tensor, sizes.value)
  forward = _sums(ns[0] + exchange, stages)
  backward = _sums(ns[1] + ns[2] + exchange, stages)
  hops = _hops(local, stages, cluster, parallel, sizes.value)
  count = parallel.microbatches
  pipeline = makespan(forward, hops, count) + makespan(backward, hops, count)
  weights = _sums(weights_of(local), stages)
  reduce = max(
    ring_ns(
      int(w) * sizes.gradient, parallel.data, *_data_link(cluster, parallel)
    )
    for w in weights
  )
  slowest = int(np.argmax(forward + backward))
  hidden = backward[slowest] if parallel.overlap else 0.0
  busy = float(forward[slowest] + backward[slowest]) * count
  tensor = float(_sums(2 * exchange, stages)[slowest]) * count
  live = _sums(activations_of(local), stages) * count * sizes.value
  kept = weights * (sizes.value + sizes.gradient + sizes.states)
  memory = int((live + kept).max())
  return Estimate(
    parallel,
    ns=float(pipeline + max(reduce - hidden, 0.0)),
    pipeline_ns=float(pipeline),
    compute_ns=busy - tensor,
    tensor_ns=tensor,
    gradients_ns=float(reduce),
    bubble=float(max(1 - busy / pipeline, 0.0)),
    memory=memory,
    fits=memory <= cluster.memory,
  )


def sweep(
  phase_at: Callable[[int], Any],
  engine: Engine | str,
  cluster: Cluster,
  batch: int,
  *,
  microbatches: Iterable[int] = (1, 2, 4, 8, 16, 32),
  overlap: bool = False,
  clock_ghz: float | int = 1.0,
  sizes: Bytes = MIXED,
) -> tuple[Estimate, ...]:
  """Every way to use the devices, the fastest that fits first.

  Ways that do not divide the model or the batch are left out; those that do not
  fit into memory come last.

  Args:
    phase_at, engine, cluster, batch, clock_ghz, sizes: as of `estimate`.
    microbatches: numbers to try where there is a pipeline, else 1.
    overlap: as of `Parallel`.

  Raises:
    ValueError: no way at all; it ends in the last reason.
  """
  found, why = [], ""
  for data, tensor, pipeline in factors(cluster.devices):
    for count in microbatches if pipeline > 1 else (1,):
      way = Parallel(data, tensor, pipeline, count, overlap)
      try:
        each = estimate(
          *(phase_at, engine, cluster, way, batch),
          clock_ghz=clock_ghz,
          sizes=sizes,
        )
      except ValueError as error:
        why = str(error)
        continue
      found.append(each)
  if not found:
    raise ValueError(f"sweep: no way to use {cluster.devices} devices; {why}")
  return tuple(sorted(found, key=lambda each: (not each.fits, each.ns)))


def train_seconds(
  phases_at: Callable[[int], Sequence[Any]],
  engine: Engine | str,
  cluster: Cluster,
  parallel: Parallel,
  batch: int,
  *,
  clock_ghz: float | int = 1.0,
  sizes: Bytes = MIXED,
) -> float:
  """The time of a whole run, phase by phase.

  Args:
    phases_at: batch -> phases, as of `figs_jax.models.phases.phases_of`; called
      with the size of one microbatch.
    engine, cluster, parallel, batch, clock_ghz, sizes: as of `estimate`.

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
    total += Phase(*phase).steps * each.ns
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


def _sums(values: np.ndarray, stages: np.ndarray) -> np.ndarray:
  return np.bincount(stages, np.asarray(values, float))


def _ns_of_rows(cost: StepCost, engine: Engine, clock_ghz) -> np.ndarray:
  """(3, rows): ns of each product of each row, all its instances."""
  cycles = cost.layers.cycles.astype(float) * cost.layers.count
  return np.stack(np.split(nanoseconds(cycles, engine, clock_ghz), 3))


def _exchanged(table, cluster, tensor, itemsize) -> np.ndarray:
  """ns of adding up the partial sums of each row that is split along K.

  Megatron adds up as many bytes in the backward pass, before each such pair.
  """
  link = cluster.link(tensor)
  sizes = table.M.astype(float) * table.N * table.count * itemsize
  return np.array(
    [
      ring_ns(size, tensor, *link) if "K" in axes_of(name) else 0.0
      for name, size in zip(table.names, sizes)
    ]
  )


def _hops(table, stages, cluster, parallel, itemsize) -> np.ndarray:
  """ns of sending a microbatch's activations to the next stage."""
  if parallel.pipeline == 1:
    return np.zeros(0)
  gbps, latency = cluster.link(cluster.devices)
  hops = []
  for stage in range(parallel.pipeline - 1):
    # The stage's last row ends its block; tensor devices send a share each.
    row = int(np.flatnonzero(stages == stage)[-1])
    size = int(table.M[row]) * int(table.N[row]) * int(table.count[row])
    hops.append(size * itemsize / parallel.tensor / gbps + latency)
  return np.array(hops)


def _data_link(cluster: Cluster, parallel: Parallel) -> tuple[float, float]:
  return cluster.link(parallel.tensor * parallel.data)
