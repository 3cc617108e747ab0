"""What a training step takes on a cluster, for every way to spread it.

In the spirit of COMET (arXiv 2211.16648). With u microbatches, p stages of
forward and backward times F_s and B_s, v chunks a stage and sends of S between
stages, a step's schedule takes (1F1B, interleaved for v > 1; 2104.04473)

  T(F) + T(B),  T(F) = F + (sum_s F_s - F) / v + (p - 1) S
                       + (u - 1) max(F, v S),   F = max_s F_s,              (1)

for equal stages and free sends the bubble (p - 1) / (u v) of the ideal time.
To it add what is exposed of the replicas' exchange, the optimizer's reads and
writes, and traffic with the expansion tier. Replicas exchange, in passes of a
ring (see `.network`) and by ZeRO's stage (1910.02054),

  0  2 of the gradients           1  1 of the gradients, 1 of the weights
  2  u of the gradients, 1 of the weights
  3  u of the gradients, 2 u of the weights                                 (2)

A device keeps weights, gradients and optimizer states, divided by the replicas
where ZeRO shares them, masks, and the activations of the microbatches in
flight: min(u, p - i) at stage i, or min(u v, 2 (p - 1 - i) + (v - 1) p + 1)
chunks (4.2.3 of arXiv 2205.05198). What exceeds the memory moves to the tier,
the least used bytes first: optimizer states (2 moves a step), activations (2 a
microbatch), gradients (2 a microbatch), weights (2 a microbatch).

Devices of a group are neighbours: tensor first, then data, then pipeline. Not
modelled: congestion, stragglers, expert parallelism, and overlap of a tensor
group's exchange with compute.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from figs_jax.engine.spec import Engine, nearest
from figs_jax.engine.spec_text import parse
from figs_jax.engine.studies.cluster.network import Cluster
from figs_jax.engine.studies.cluster.parallel import (
  RECOMPUTE,
  Assumptions,
  BytesPerValue,
  Parallel,
)
from figs_jax.engine.studies.cluster.placements import (
  CHOICES,
  MEMORY,
  TIERED,
  TIME,
  Estimate,
  Placements,
)
from figs_jax.engine.studies.cluster.profile import (
  Profile,
  Rows,
  blocks_of,
  profile,
)
from figs_jax.engine.training import TrainingPhase

_MIXED = BytesPerValue()
_IDEAL = Assumptions()
_INTERLEAVE = 8  # the most chunks per stage that are tried
_AT_ONCE = 2**17  # placements, which bounds the memory of a search


def estimate(
  phase_at: Callable[[int], Any],
  engine: Engine | str,
  cluster: Cluster,
  parallel: Parallel,
  batch: int,
  *,
  clock_ghz: float | int | None = None,
  sizes: BytesPerValue = _MIXED,
  assume: Assumptions = _IDEAL,
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
    clock_ghz: Clock of an array in place of the engine's own.
    sizes: Bytes per value.
    assume: Assumptions about kernels and model.

  Raises:
    ValueError: If the numbers of devices differ, the batch does not divide,
      there are more stages than blocks, `tensor` does not divide a size, or
      `interleave` does not divide the blocks of a stage or the microbatches.

  >>> def phase_at(batch):
  ...   size = {"M": 196 * batch, "N": 768, "K": 768}
  ...   return 1, [{"name": f"blocks/{i}/mlp/fc1", **size} for i in range(4)]
  >>> one = estimate(phase_at, "tpu:v5e", Cluster(1), Parallel(), 64)
  >>> two = estimate(phase_at, "tpu:v5e", Cluster(2), Parallel(2), 64)
  >>> 1 < one.ns / two.ns < 2, one.gradients_ns, round(one.bubble, 9)
  (True, 0.0, 0.0)
  """
  if parallel.devices != cluster.devices:
    raise ValueError(
      f"{parallel} uses {parallel.devices} devices, the cluster has"
      f" {cluster.devices}; make data x tensor x pipeline equal to it"
    )
  parts = parallel.data * parallel.microbatches
  if batch < 1 or batch % parts:
    raise ValueError(
      f"batch: expected a multiple of data x microbatches = {parts}, got"
      f" {batch}"
    )
  rows = Rows(phase_at, (batch // parts,))
  if reason := rows.misfit(parallel.tensor):
    raise ValueError(reason)
  blocks = blocks_of(rows.names)[1]
  _check_stages(parallel, blocks)
  tables = profile(
    rows, parse(engine), cluster, (parallel.tensor,), (parallel.pipeline,),
    clock_ghz=clock_ghz, sizes=sizes, assume=assume,
  )  # fmt: skip
  row = [
    RECOMPUTE.index(x) if name == "recompute" else x
    for name, x in (
      (
        name,
        batch // parts if name == "microbatch" else getattr(parallel, name),
      )
      for name in CHOICES
    )
  ]
  choices = {name: np.array([x]) for name, x in zip(CHOICES, row)}
  return evaluate(choices, tables, cluster, sizes, parallel.overlap)[0]


def _check_stages(parallel: Parallel, blocks: int) -> None:
  p, v, u = parallel.pipeline, parallel.interleave, parallel.microbatches
  if p > blocks:
    raise ValueError(
      f"pipeline={p} stages, but the model has {blocks} blocks; give at most"
      f" {blocks}"
    )
  if v > 1 and (p == 1 or blocks % (p * v) or u % p):
    raise ValueError(
      f"interleave={v}: expected a pipeline whose stages have a multiple of {v}"
      f" blocks and whose microbatches are a multiple of its {p} stages, got"
      f" {blocks} blocks and {u} microbatches"
    )


def estimate_all(
  phase_at: Callable[[int], Any],
  engine: Engine | str,
  cluster: Cluster,
  batch: int,
  *,
  devices: Sequence[int] = (),
  overlap: bool = False,
  where: str | None = None,
  clock_ghz: float | int | None = None,
  sizes: BytesPerValue = _MIXED,
  assume: Assumptions = _IDEAL,
  tiered: Sequence[str] = TIERED,
) -> Placements:
  """Every way to use the devices, the fastest that fits first.

  Ways that do not divide the model or the batch are left out; those that do not
  fit into memory come last, the smallest excess first.

  Args:
    phase_at, engine, cluster, batch: Arguments of `estimate`.
    devices: Numbers of devices to try. Defaults to the cluster's.
    overlap: Whether replicas hide their exchange, as in `Parallel`.
    where: Conditions on the columns, as in "tensor<=8; zero==1".
    clock_ghz, sizes, assume: Arguments of `estimate`.
    tiered: States that may move to the tier, among `TIERED`.

  Raises:
    ValueError: If no way fits the model and the batch, no placement meets the
      conditions, or a name or condition cannot be read.

  >>> sides = {"M": 8, "N": 8, "K": 8}
  >>> rows = [{"name": f"blocks/{i}/ff", **sides} for i in (0, 1)]
  >>> ways = estimate_all(lambda batch: (1, rows), "ws", Cluster(2), 2)
  >>> len(ways), ways[0].parallel.pipeline
  (30, 1)
  """
  for name in tiered:
    if name not in TIERED:
      raise ValueError(
        f"tiered: unknown state {name!r}, {nearest(name, TIERED)}"
      )
  if batch < 1:
    raise ValueError(f"batch: expected a positive integer, got {batch}")
  counts = tuple(devices) or (cluster.devices,)
  choices, rows = _choices(phase_at, counts, batch, assume)
  tables = profile(
    rows, parse(engine), cluster, np.unique(choices["tensor"]).tolist(),
    np.unique(choices["pipeline"]).tolist(), clock_ghz=clock_ghz, sizes=sizes,
    assume=assume,
  )  # fmt: skip
  parts = [
    evaluate(
      {name: x[at : at + _AT_ONCE] for name, x in choices.items()},
      *(tables, cluster, sizes, overlap, tiered),
    ).columns
    for at in range(0, len(choices["data"]), _AT_ONCE)
  ]
  joined = {x: np.concatenate([part[x] for part in parts]) for x in parts[0]}
  made = Placements(joined, overlap)
  if where is not None:
    every, made = len(made), made.where(where)
    if not len(made):
      raise ValueError(
        f"where {where!r}: none of {every:,} placements meets it"
      )
  excess = np.maximum(made.columns["excess"], 0)
  return made[np.lexsort([made.columns["ns"], excess])]


def _choices(
  phase_at: Callable[[int], Any],
  counts: Sequence[int],
  batch: int,
  assume: Assumptions,
) -> tuple[dict[str, np.ndarray], Rows]:
  """Every combination of choices, in columns, and the rows that they need."""
  widest = Rows(phase_at, (1,))
  blocks = blocks_of(widest.names)[1]
  reason = ""
  fits_rows = functools.cache(widest.misfit)
  bases = []
  for total in counts:
    for data, tensor, pipeline in factors(total):
      why = fits_rows(tensor)
      if why is None and pipeline > blocks:
        why = f"pipeline={pipeline} stages, but the model has {blocks} blocks"
      if why is None and batch % data:
        why = f"data={data} does not divide the batch of {batch}"
      if why is not None:
        reason = why
        continue
      share = batch // data
      for micro in divisors(share):
        count = share // micro
        chunks = [1]
        if pipeline > 1 and not count % pipeline and not blocks % pipeline:
          chunks = [v for v in divisors(blocks // pipeline) if v <= _INTERLEAVE]
        bases += [
          (total, data, tensor, pipeline, micro, count, v) for v in chunks
        ]
  if not bases:
    raise ValueError(
      f"no way to use {' or '.join(map(str, counts))} devices; {reason}"
    )
  base = np.array(bases)
  recompute = (0, 2) if assume.fused_attention else (0, 1, 2)
  rest = np.array(list(itertools.product(range(4), recompute, (0, 1))))
  table = np.concatenate(
    [np.repeat(base, len(rest), 0), np.tile(rest, (len(base), 1))], 1
  )
  choices = dict(zip(CHOICES, table.T))
  # One replica has nothing to share, nor has a tensor group of one.
  useful = (choices["data"] > 1) | (choices["zero"] == 0)
  useful &= (choices["tensor"] > 1) | (choices["sequence"] == 0)
  choices = {name: x[useful] for name, x in choices.items()}
  choices["sequence"] = choices["sequence"].astype(bool)
  return choices, Rows(phase_at, np.unique(base[:, 4]).tolist())


def evaluate(
  choices: dict[str, np.ndarray],
  tables: Profile,
  cluster: Cluster,
  sizes: BytesPerValue,
  overlap: bool,
  tiered: Sequence[str] = TIERED,
) -> Placements:
  """Puts placements in columns through the formulas of this module.

  Args:
    choices: Columns by the names of `CHOICES`; numbers that `tables` hold.
    tables: Profile of the model's stages.
    cluster: Links and memories; its number of devices plays no part.
    sizes: Bytes per value.
    overlap: Whether replicas hide their exchange.
    tiered: States that may move to the tier.
  """
  d, t, p, u, v = (
    choices[name]
    for name in ("data", "tensor", "pipeline", "microbatches", "interleave")
  )
  zero, devices = choices["zero"], choices["devices"]
  ip = np.searchsorted(tables.pipelines, p)
  ib = np.searchsorted(tables.batches, choices["microbatch"])
  it = np.searchsorted(tables.tensors, t)
  cell = choices["recompute"], choices["sequence"].astype(int), ip, ib, it
  spans = devices > cluster.per_node
  out: dict[str, Any] = dict(choices)

  # The schedule, (1).
  gbps = np.where(spans, cluster.inter, cluster.intra)
  latency = np.where(spans, cluster.inter_latency, cluster.intra_latency)
  send = (p > 1) * (tables.sends[ip, ib] / t / gbps + latency)
  forward, backward = tables.forward[cell], tables.backward[cell]
  pipeline = schedule_ns(forward, tables.forward_sum[cell], send, p, u, v)
  pipeline += schedule_ns(backward, tables.backward_sum[cell], send, p, u, v)
  out["products"] = u * tables.products[cell]
  out["elementwise"] = u * tables.elementwise[cell]
  out["recomputation"] = u * tables.recompute[cell]
  out["tensor_exchange"] = u * tables.exchange[cell]
  busy = sum(out[name] for name in TIME[:4])
  out["bubble"] = np.maximum(pipeline - busy, 0)

  # What the fullest stage keeps.
  weights, stored, masked = (
    getattr(tables, name)[ip, it] for name in ("weights", "stored", "masked")
  )
  shared = [np.where(zero >= stage, d, 1)[:, None] for stage in range(4)]
  chunks = (2 * (p - 1) + (v - 1) * p + 1)[:, None] - 2 * tables.place[ip]
  flight = np.where(
    v[:, None] > 1,
    np.minimum((u * v)[:, None], chunks) / v[:, None],
    np.minimum(u[:, None], p[:, None] - tables.place[ip]),
  )
  microbatch = tables.activations[cell]
  states = {
    "weights": stored / shared[3] + ((zero == 3) * tables.block[it])[:, None],
    "masks": sizes.mask * masked / shared[3],
    "gradients": sizes.gradient * weights / shared[2],
    "optimizer": sizes.states * weights / shared[1],
    "activations": flight * microbatch + tables.transient[cell],
  }
  fullest = np.argmax(sum(states.values()), -1)[:, None]
  for name, value in states.items():
    out[name] = np.take_along_axis(value, fullest, -1)[:, 0]
  microbatch = np.take_along_axis(microbatch, fullest, -1)[:, 0]
  out["memory"] = sum(out[name] for name in MEMORY)

  # The exchange between replicas, (2).
  gradient = cluster.pass_ns(sizes.gradient * weights.max(-1), d, t)
  weight = cluster.pass_ns(stored.max(-1), d, t)
  scatters = np.choose(zero, np.broadcast_arrays(2, 1, u, u))
  gathers = np.choose(zero, np.broadcast_arrays(0, 1, 1, 2 * u))
  exchange = scatters * gradient + gathers * weight
  window = np.choose(
    zero, [backward, backward, u * backward, u * (forward + backward)]
  )
  hidden = np.minimum(exchange, window) if overlap else 0.0
  out["data_exchange"] = exchange - hidden

  # What the memory does not hold goes to the tier.
  left = np.maximum(out["memory"] - cluster.memory, 0)
  room = np.full(len(d), float(cluster.tier_memory))
  for name in TIERED:
    moved = np.minimum(np.minimum(left, out[name]), room) * (name in tiered)
    out[f"{name}_tier"], left, room = moved, left - moved, room - moved
  out["excess"] = left
  out["tier_bytes"] = sum(out[f"{name}_tier"] for name in TIERED)
  # Bytes that cross the tier's link in a step.
  part = out["activations_tier"] / np.maximum(out["activations"], 1)
  streamed = (
    2 * u * (part * microbatch + out["gradients_tier"] + out["weights_tier"])
  )
  stepped = 2 * out["optimizer_tier"]
  tier = streamed / cluster.tier_bandwidth
  hidden = np.minimum(tier, busy) if overlap else 0.0
  out["tier"] = tier - hidden + stepped / cluster.tier_bandwidth
  # States are read and written, gradients read, weights written.
  owned = out["optimizer"] / max(sizes.states, 1)
  touched = 2 * (out["optimizer"] - out["optimizer_tier"])
  touched = touched + owned * (sizes.gradient + sizes.value)
  out["optimizer_step"] = touched / tables.hbm

  out["pipeline_ns"], out["gradients_ns"] = pipeline, exchange
  rest = out["data_exchange"] + out["optimizer_step"] + out["tier"]
  out["ns"] = pipeline + rest
  out["cost"] = out["ns"] / 3.6e12 * devices * cluster.price
  return Placements(out, overlap)


def schedule_ns(
  slowest: Any, total: Any, send: Any, stages: Any, count: Any, chunks: Any
) -> Any:
  """T of (1), for one pass of `count` microbatches.

  Args:
    slowest: ns of the slowest stage.
    total: ns of all stages.
    send: ns of a send between stages.
    stages: Number of stages, p.
    count: Number of microbatches, u.
    chunks: Chunks of blocks per stage, v.

  >>> float(schedule_ns(3.0, 5.0, 1.0, 2, 4, 1))
  15.0
  """
  fill = (total - slowest) / chunks + (stages - 1) * send
  return slowest + fill + (count - 1) * np.maximum(slowest, chunks * send)


def train_seconds(
  phases_at: Callable[[int], Sequence[Any]],
  engine: Engine | str,
  cluster: Cluster,
  parallel: Parallel,
  batch: int,
  *,
  clock_ghz: float | int | None = None,
  sizes: BytesPerValue = _MIXED,
  assume: Assumptions = _IDEAL,
) -> float:
  """The duration of a whole run, phase by phase.

  Args:
    phases_at: Function from the size of a microbatch to the phases, as from
      `figs_jax.models.phases.phases_of`.
    engine, cluster, parallel, batch, clock_ghz, sizes, assume: Arguments of
      `estimate`.

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
      assume=assume,
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
    for d in divisors(devices)
    for t in divisors(devices // d)
  ]


@functools.lru_cache(4096)
def divisors(number: int) -> tuple[int, ...]:
  """All divisors, in order.

  >>> divisors(12)
  (1, 2, 3, 4, 6, 12)
  """
  small = [x for x in range(1, int(number**0.5) + 1) if number % x == 0]
  return tuple(sorted({*small, *(number // x for x in small)}))
