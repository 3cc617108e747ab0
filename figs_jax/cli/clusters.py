"""Models and clusters from flags, and placements as text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from figs_jax.cli import workloads
from figs_jax.core.rules import word_table
from figs_jax.engine import (
  Cluster,
  Decoder,
  Engine,
  Estimate,
  Layers,
  Placements,
  TrainingPhase,
)
from figs_jax.engine.reports.text import columns_text
from figs_jax.engine.studies.cluster.parallel import (
  RECOMPUTE,
)
from figs_jax.engine.studies.cluster.placements import MEMORY, TIME, describe

# Words of rules over a decoder's rows.
_WORDS = word_table(
  ff=r"blocks/\d+/mlp/.*",
  **{x: rf"blocks/\d+/attn/{x}" for x in ("q", "k", "v", "o")},
  head="head",
)
_ATTENTION = ("qk", "av")  # products without weights
# What a row of the printed placements holds, in this order.
_SHOWN = (
  "devices", "data", "tensor", "pipeline", "interleave", "microbatch",
  "microbatches", "zero", "recompute", "sequence",
)  # fmt: skip
_GB = 1e9


class Workload(NamedTuple):
  """A model to train.

  Attributes:
    label: Name and sizes.
    phase_at: Function from the size of a microbatch to the step.
    embedding: Weights of tables that no product reads.
    flops: Dense FLOPs of a step per sequence, without recomputation.
    weights: Weights of all products and tables.
  """

  label: str
  phase_at: Callable[[int], TrainingPhase]
  embedding: int
  flops: float
  weights: float


def workload(
  model: str,
  pattern: str | None = None,
  *,
  seq: int | None = None,
  transposable: bool = False,
) -> Workload:
  """A model by name, or a decoder by its sizes.

  Args:
    model: "gpt:width=25600,layers=128,heads=160", or a model as in
      `figs_jax.cli.workloads.from_model`.
    pattern: Rules, as in "ff: 2:4", or one n:m for every kernel; None is dense.
    seq: Tokens of a sequence. Defaults to 2048 of "gpt:", else to the model's
      own.
    transposable: Whether masks make the input gradient sparse too.

  Raises:
    ValueError: If the model or pattern cannot be read, a rule fits no kernel,
      or the model takes no such length.

  >>> made = workload("gpt:width=64,layers=2,heads=4", "ff: 2:4", seq=16)
  >>> made.phase_at(3).layers.m.tolist()[:8]
  [1, 1, 1, 1, 1, 1, 4, 4]
  """
  if model.partition(":")[0] == "gpt":
    decoder = Decoder.parse(model, **({} if seq is None else {"seq": seq}))
    label, embedding = f"{model}, {decoder.seq:,} tokens", decoder.embedding
    sparse = decoder.table(1)
    if pattern is not None:
      kernels = [x for x in sparse.names if not re.search(r"/(qk|av)$", x)]
      sparse = workloads.with_rules(sparse, pattern, _WORDS, kernels)

    def layers_at(batch: int) -> Layers:
      table, like = decoder.table(batch), sparse
      return dataclasses.replace(table, n=like.n, m=like.m, v=like.v)
  else:
    seqs = [] if seq is None else [seq]
    tables = workloads.from_model(model, [1, 2], pattern, seqs=seqs)
    first, second = tables.values()
    label = model if seq is None else f"{model}, {seq:,} tokens"
    from figs_jax import models

    embedding = 0  # our own families have too little to count
    if isinstance(shape := workloads.model_of(model), models.Shape):
      embedding = max(shape.parameters - _read(first), 0)

    def layers_at(batch: int) -> Layers:
      # Rows and counts grow by the same number with every image.
      more = {
        name: getattr(first, name)
        + (batch - 1) * (getattr(second, name) - getattr(first, name))
        for name in ("M", "count")
      }
      return dataclasses.replace(first, **more)

  one = layers_at(1)
  K, N, M, count = (x.astype(float) for x in (one.K, one.N, one.M, one.count))
  return Workload(
    label,
    lambda batch: TrainingPhase(
      1, layers_at(batch), input_gradient=transposable
    ),
    embedding,
    flops=float(6 * (M * N * K * count).sum()),
    weights=float(_read(one) + embedding),
  )


def _read(table: Layers) -> int:
  """The number of weights that products read."""
  last = [name.rpartition("/")[2] for name in table.names]
  weighted = [name not in _ATTENTION for name in last]
  K, N, count = (x.astype(object) for x in (table.K, table.N, table.count))
  return int((K * N * count)[weighted].sum())  # exact beyond int64


def fraction_of_peak(
  placements: Placements, work: Workload, batch: int, engine: Engine
) -> np.ndarray | None:
  """Model FLOPs utilization: dense FLOPs over time and the chip's dense peak.

  None for an engine without a peak.
  """
  peak = getattr(engine, "peak", None)
  if peak is None:
    return None
  columns = placements.columns
  done = work.flops * batch / columns["devices"] / columns["ns"]
  return done / float(peak)


def table(
  placements: Placements, utilization: np.ndarray | None
) -> dict[str, np.ndarray]:
  """Placements as columns to print: choices, seconds, GB and cost."""
  columns = placements.columns
  shown: dict[str, Any] = {name: columns[name] for name in _SHOWN}
  shown["recompute"] = np.array(RECOMPUTE)[columns["recompute"]]
  shown["sequence"] = np.where(columns["sequence"], "yes", "no")
  shown["seconds"] = columns["ns"] * 1e-9
  shown["memory_gb"] = columns["memory"] / _GB
  shown["tier_gb"] = columns["tier_bytes"] / _GB
  if utilization is not None:
    shown["mfu"] = utilization
  return shown | {"cost": columns["cost"]}


def report(
  placements: Placements,
  work: Workload,
  engine: Engine,
  cluster: Cluster,
  batch: int,
  fmt: str = "table",
  top: int = 10,
) -> str:
  """The fastest placement with its shares, the next ones and the Pareto front.

  Args:
    placements: Placements of the model, one of which fits.
    work: The model.
    engine: Engine of each device.
    cluster: The cluster.
    batch: Sequences (or images) of a step.
    fmt: "table", "md", "csv" or "json". CSV has one table, whose column `front`
      says which placements no other beats in time, memory and cost.
    top: Number of the fastest placements that are listed.
  """
  best = placements[placements.fits][:top]
  front = placements.pareto()
  tables = [
    table(each, fraction_of_peak(each, work, batch, engine))
    for each in (best, front)
  ]
  caption = (
    f"{work.label}, batch {batch:,}: {work.weights / 1e9:,.4g} G weights;"
    f" {engine}, {cluster.memory / _GB:,.4g} GB, {cluster.intra:,.4g} GB/s in"
    f" nodes of {cluster.per_node}, {cluster.inter:,.4g} GB/s between them"
    + (
      f", tier {cluster.tier_memory / _GB:,.4g} GB at"
      f" {cluster.tier_bandwidth:,.4g} GB/s"
      if cluster.tier_memory
      else ""
    )
    + f". {len(placements):,} placements, {int(placements.fits.sum()):,} fit."
    " Modelled, not measured."
  )
  if fmt in ("csv", "json"):
    joined = {
      name: np.concatenate([x[name] for x in tables]) for name in tables[0]
    }
    joined["front"] = np.repeat(["no", "yes"], [len(best), len(front)])
    return columns_text(joined, caption, fmt)
  first = best[0]
  fullest = {name: first.bytes[name] for name in MEMORY}
  share = tables[0].get("mfu")
  headline = (
    "In short, d: data, t: tensor, p: pipeline, v: chunks of a stage, u:"
    " microbatches, seq: sequence parallelism.\n"
    f"Fastest: {describe(first.parallel)}: {first.ns * 1e-9:.4g} s a step"
    + ("" if share is None else f", {100 * share[0]:.3g} % of the dense peak")
  )
  times = _shares(first.times, TIME, first.ns, 1e-9, "seconds")
  bytes_ = _shares(fullest, MEMORY, first.memory, 1 / _GB, "GB")
  bytes_["tier_GB"] = np.array(
    [first.tiered.get(name, 0) / _GB for name in MEMORY]
  )
  return "\n\n".join(
    [
      caption,
      columns_text(times, headline, fmt),
      columns_text(bytes_, "Memory of the fullest device", fmt),
      columns_text(tables[0], f"The {len(best)} fastest", fmt),
      columns_text(
        tables[1],
        f"Pareto front of time, memory and cost: {len(front)} placements",
        fmt,
      ),
    ]
  )


def _shares(
  values: dict[str, Any], names: Any, total: float, scale: float, unit: str
) -> dict[str, np.ndarray]:
  part = np.array([values[name] for name in names], float)
  return {
    "part": np.array([name.replace("_", " ") for name in names]),
    unit: part * scale,
    "percent": 100 * part / total,
  }


def shortfall(placements: Placements, cluster: Cluster) -> str:
  """What is missing where nothing fits, and what would make it fit.

  Args:
    placements: Placements of which none fits.
    cluster: The cluster.
  """
  index = int(np.argmin(placements.columns["excess"]))
  nearest_one: Estimate = placements[index]
  over = float(placements.columns["excess"][index]) / _GB
  memory = cluster.memory / _GB + over
  tier = cluster.tier_memory / _GB + over
  return (
    f"none of {len(placements):,} placements fits: the smallest excess is"
    f" {over:,.3g} GB a device ({describe(nearest_one.parallel)}, whose largest"
    f" part is {max(nearest_one.bytes, key=nearest_one.bytes.__getitem__)});"
    f" give --memory {_up(memory)} or --tier_memory {_up(tier)}, or more"
    " --devices"
  )


def _up(gigabytes: float) -> str:
  """GB rounded up to three digits.

  >>> _up(93.21), _up(0.01234)
  ('93.3', '0.0124')
  """
  step = 10.0 ** (np.floor(np.log10(gigabytes)) - 2)
  return f"{np.ceil(gigabytes / step) * step:.4g}"
