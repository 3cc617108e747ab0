"""What a microbatch takes on each stage: time, traffic and stored bytes.

The end of a row's name says what it is. Per row, with v bytes a value and
in = M K, out = M N, a device of a tensor group stores for the backward pass

  q, fc1 (up, wi, wi_0)    2 v in        inputs of the norm and of the product
  q, k, v, fc1, gate, wi   v out / t     operands of attention, inputs of GeLU
  av                       (2 v + 1) in / t   softmax, dropout's mask, result
  o, fc2 (or wo, down)     v in / t + out     input, and mask of dropout

which for a plain decoder sums to s b h (10 + 24 / t + 5 a s / (h t)), (2) of
arXiv 2205.05198. Sequence parallelism divides the 10 by t as well, (4);
selective recomputation drops the 5 a s / (h t), (6); full recomputation keeps
a block's input, 2 s b h, alone. Any other row stores its input.

Tensor groups split outputs, contractions or heads; o and fc2 add up their
partial sums over the group in the forward pass, as many bytes again in the
backward pass (1909.08053). Norms, GeLU, softmax, dropout and the residual move
bytes through the device's memory: reads and writes of the tensors above, half
as much again in the backward pass.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from figs_jax.engine._cost import cost
from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import UNLIMITED, Engine, Gemm
from figs_jax.engine.studies.cluster.network import Cluster
from figs_jax.engine.studies.cluster.parallel import Assumptions, BytesPerValue
from figs_jax.engine.training import TrainingPhase, nanoseconds

# What tensor parallelism splits, by the end of a row's name: its outputs, its
# contraction (whose partial sums are added up), or its heads.
_FEED_IN = ("fc1", "gate", "up", "wi", "wi_0", "wi_1")
_SPLITS = {
  "N": ("q", "k", "v", *_FEED_IN),
  "K": ("o", "fc2", "wo", "down"),
  "count": ("qk", "av"),
  "vocabulary": ("head",),  # padded to a multiple of the group, as in Megatron
}
_AXES = {end: axis for axis, ends in _SPLITS.items() for end in ends}
# The first product after a norm.
_ENTRIES = ("q", "fc1", "up", "wi", "wi_0")
_BACKWARD = 1.5  # traffic of norms and the like, over the forward pass's
_LOGIT = 4  # bytes of a logit of the head, kept in 32 bits


@dataclasses.dataclass(frozen=True)
class Profile:
  """Tables that placements look up.

  Axes: r, recomputation; s, sequence parallelism off and on; p, pipelines; b,
  sizes of microbatches; t, tensor groups; k, the different stages of a
  pipeline, the first of equal ones, padded with copies of stage 0.

  Attributes:
    batches: Sizes of microbatches.
    tensors: Sizes of tensor groups.
    pipelines: Numbers of stages.
    forward: ns of the slowest stage's forward pass, (r, s, p, b, t).
    backward: ns of the slowest backward pass.
    forward_sum: ns of all stages' forward passes.
    backward_sum: ns of all stages' backward passes.
    products: ns of matrix products in both passes of the busiest stage.
    elementwise: ns of norms and the like in both passes there.
    exchange: ns of adding up partial sums in both passes there.
    recompute: ns of recomputation there.
    activations: Bytes that a microbatch leaves stored, (r, s, p, b, t, k).
    transient: Bytes that one microbatch needs for a while.
    weights: Weights of a device, (p, t, k).
    stored: Bytes of their values in use.
    masked: Number of those that have a mask.
    place: Index of the stage in its pipeline, (p, k).
    block: Bytes of the largest block's values in use, (t,).
    sends: Bytes between stages per microbatch, (p, b).
    hbm: Bytes per ns of the device's memory.
  """

  batches: tuple[int, ...]
  tensors: tuple[int, ...]
  pipelines: tuple[int, ...]
  forward: np.ndarray
  backward: np.ndarray
  forward_sum: np.ndarray
  backward_sum: np.ndarray
  products: np.ndarray
  elementwise: np.ndarray
  exchange: np.ndarray
  recompute: np.ndarray
  activations: np.ndarray
  transient: np.ndarray
  weights: np.ndarray
  stored: np.ndarray
  masked: np.ndarray
  place: np.ndarray
  block: np.ndarray
  sends: np.ndarray
  hbm: float


class Rows:
  """A model's different rows at several sizes of microbatches, (b, rows).

  Attributes:
    names: Names of all rows, in order.
    which: For each of them, the index of its different row.
    roles: The ends of the different rows' names; "" where it means nothing.
    labels: Names of the first rows of each kind.
    sizes: M, N, K and count by name, (b, rows).
    n: Weights kept of every m, (rows,).
    m: Lengths of the groups.
    v: Outputs that share columns, 0 for n:m.
    batches: Sizes of the microbatches.
    phase: Which products of the step are sparse.

  Raises:
    ValueError: If the rows depend on the size of the microbatch.
  """

  def __init__(self, phase_at: Callable[[int], Any], batches: Sequence[int]):
    phases = [TrainingPhase(*phase_at(batch)) for batch in batches]
    tables = [unrolled(Layers.of(phase.layers)) for phase in phases]
    self.names = tables[0].names
    if any(table.names != self.names for table in tables):
      raise ValueError(
        "phase_at: expected the same rows for every size of a microbatch"
      )
    roles = [_role(name) for name in self.names]
    tables = [dataclasses.replace(t, v=_vectors(t)) for t in tables]
    columns = ("M", "N", "K", "count", "n", "m", "v")
    kinds = sorted(set(roles))
    stack = np.concatenate(
      [np.array([[kinds.index(role)] for role in roles])]
      + [np.stack([getattr(t, c) for c in columns], 1) for t in tables],
      axis=1,
    )
    _, first, which = np.unique(
      stack, axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)  # of first appearance
    self.which, first = np.argsort(order)[which.reshape(-1)], first[order]
    self.roles = tuple(roles[i] for i in first)
    self.labels = tuple(self.names[i] for i in first)
    every = {
      c: np.stack([getattr(t, c)[first] for t in tables]) for c in columns
    }
    self.n, self.m, self.v = (every.pop(name)[0] for name in "nmv")
    self.sizes = every
    self.batches = tuple(batches)
    self.phase = phases[0]

  def has(self, *ends: str) -> np.ndarray:
    """Whether each different row has one of these ends of its name."""
    return np.array([role in ends for role in self.roles])

  def divide(self, tensors: Sequence[int]) -> dict[str, np.ndarray]:
    """Sizes of one device's share, (b, t, rows)."""
    t = np.array(tensors)[:, None]
    shape = len(self.batches), len(tensors), len(self.roles)
    local = {}
    for name, size in self.sizes.items():
      ends = _SPLITS.get(name, ())
      ends += _SPLITS["vocabulary"] if name == "N" else ()
      whole, split = np.broadcast_to(size[:, None], shape), self.has(*ends)
      local[name] = np.where(split, -(-whole // t), whole)
    return local

  def misfit(self, tensor: int) -> str | None:
    """What a tensor group of this size cannot share; None if it can."""
    for i, role in enumerate(self.roles):
      axis = _AXES.get(role)
      if axis not in self.sizes or tensor == 1:
        continue
      size = int(self.sizes[axis][0, i])
      size //= self.batches[0] if axis == "count" else 1
      groups = {"K": self.m[i], "N": max(self.v[i], 1), "count": 1}
      group = int(groups[axis])
      if size % (tensor * group):
        return (
          f"layer {self.labels[i]!r}: {axis}={size} does not divide among"
          f" tensor={tensor} devices; give a divisor of {size // group}"
        )
    return None


def unrolled(table: Layers) -> Layers:
  """The table with a row per block where a scanned model has one for all.

  >>> rows = [{"name": "blocks/mlp/fc1", "M": 1, "N": 4, "K": 2, "count": 3}]
  >>> unrolled(Layers.of(rows)).names[1:]
  ('blocks/1/mlp/fc1', 'blocks/2/mlp/fc1')
  """
  ends = [re.match(r"(.*\bblocks/)(?!\d)(.*)", name) for name in table.names]
  if not any(ends):
    return table
  stems = [(end[1], end[2]) if end else ("", "") for end in ends]
  places, names, counts = [], [], []
  for stack, run in itertools.groupby(range(len(ends)), lambda i: stems[i][0]):
    rows = list(run)
    # The first row is a product with a weight, one per block.
    depth = int(table.count[rows[0]]) if stack else 1
    for block, i in itertools.product(range(depth), rows):
      name = f"{stack}{block}/{stems[i][1]}" if stack else table.names[i]
      names.append(name)
      places.append(i)
      counts.append(int(table.count[i]) // depth)
  columns = {x: getattr(table, x)[places] for x in ("M", "N", "K", "n", "m")}
  v = None if table.v is None else table.v[places]
  return Layers(tuple(names), count=np.array(counts), v=v, **columns)


def blocks_of(names: Sequence[str]) -> tuple[np.ndarray, int]:
  """The block of each row and the number of blocks.

  Rows before the first block belong to it, other rows to the block before them.
  """
  blocks = [re.match(r"(.*blocks/\d+)/", name) for name in names]
  order = list(dict.fromkeys(b[1] for b in blocks if b)) or [""]
  place, at = [], 0
  for match in blocks:
    at = order.index(match[1]) if match else at
    place.append(at)
  return np.array(place), len(order)


def owners(blocks: int, stages: int) -> np.ndarray:
  """The stage of each block: equal runs, the first stages taking one more.

  >>> owners(6, 4).tolist()
  [0, 0, 1, 1, 2, 3]
  """
  return np.sort(np.arange(blocks) % stages)


def profile(
  rows: Rows,
  engine: Engine,
  cluster: Cluster,
  tensors: Sequence[int],
  pipelines: Sequence[int],
  *,
  clock_ghz: float | int | None,
  sizes: BytesPerValue,
  assume: Assumptions,
) -> Profile:
  """Measures every stage once for all placements; see `Profile`."""
  features = _features(rows, engine, tensors, clock_ghz, sizes, assume)
  link = cluster.pass_ns
  t = np.array(tensors)[:, None]
  # Two passes of a ring per sum; its latency counts per product.
  summed = features.pop("summed")
  latency = link(0.0, t)
  features["exchange"] = 2 * (link(1.0, t) - latency) * summed + 2 * latency * (
    summed > 0
  )
  cycle = float(nanoseconds(1, engine, clock_ghz))
  hbm = float(engine.memory_bandwidth) / cycle  # bytes per ns
  if engine.memory_bandwidth == UNLIMITED:
    hbm = float("inf")
  for name in ("moved", "moved_shared", "moved_core"):
    features[name] = features[name] / hbm
  place, blocks = blocks_of(rows.names)
  which = rows.which
  per_block = np.zeros((blocks, len(rows.roles) + 1))
  np.add.at(per_block, (place, which), 1)
  opens = np.zeros_like(per_block)
  _, first = np.unique(place, return_index=True)
  named = np.array([bool(re.search(r"blocks/\d+/", n)) for n in rows.names])
  for block, at in enumerate(first):  # the first row inside the block
    inside = np.flatnonzero(named & (place == block))
    opens[block, which[inside[0] if inside.size else at]] = 1
  stages = [_stages(per_block, opens, p) for p in pipelines]
  most = max(len(stage[0]) for stage in stages)
  tables: dict[str, list[np.ndarray]] = {}
  for counts, firsts, index, times in stages:
    pad = [*range(len(counts)), *[0] * (most - len(counts))]
    repeat = np.where(np.arange(most) < len(counts), times[pad], 0)
    made = _stage_tables(features, counts[pad], firsts[pad], repeat, t)
    made["place"] = index[pad]
    for name, value in made.items():
      tables.setdefault(name, []).append(value)
  whole = _block_bytes(features, per_block, t)  # (s, b, t)
  transient = np.stack(tables.pop("head"), 0)[None, None]
  full = np.array([0, 0, 1])[:, None, None, None, None, None]
  transient = transient + full * whole[None, :, None, :, :, None]
  axis = dict.fromkeys(("weights", "stored", "masked", "place"), 0)
  arrays = {
    name: np.stack(values, axis.get(name, 2)) for name, values in tables.items()
  }
  out = rows.sizes["M"] * rows.sizes["N"] * rows.sizes["count"] * sizes.value
  ends = np.append(np.flatnonzero(np.diff(place)), len(place) - 1)
  sends = []
  for p in pipelines:
    last = np.flatnonzero(np.diff(owners(blocks, p)))  # blocks that end a stage
    cut = which[ends[last]]
    sends.append(out[:, cut].max(1) if cut.size else 0 * out[:, 0])
  return Profile(
    rows.batches,
    tuple(tensors),
    tuple(pipelines),
    transient=np.broadcast_to(transient, arrays["activations"].shape),
    block=(features["stored"][0] @ per_block.T).max(-1),
    sends=np.stack(sends).astype(float),
    hbm=hbm,
    **arrays,
  )


def _features(rows, engine, tensors, clock_ghz, sizes, assume):
  """Numbers of one microbatch per different row, (b, t, rows), and the table.

  The last column is the table of the embedding, which has weights alone.
  """
  local = rows.divide(tensors)
  M, N, K, count = (
    local[name].astype(float) for name in ("M", "N", "K", "count")
  )
  ns = _products_ns(rows, local, engine, clock_ghz, sizes, assume)
  v, dropout = sizes.value, int(assume.dropout)
  taken, made = M * K * count, M * N * count
  entry, exit_ = rows.has(*_ENTRIES), rows.has(*_SPLITS["K"])
  feeds, head = rows.has(*_FEED_IN), rows.has("head")
  outputs, soft = rows.has(*_SPLITS["N"]), rows.has("av")
  pair = rows.has(*_SPLITS["count"])
  other = rows.has("")
  own = ~pair
  core = 0 if assume.fused_attention else 1
  weights = K * N * count * own
  gemm = Gemm(local["M"], local["N"], local["K"], rows.n, rows.m)
  kept = gemm.kept / K
  sparse = rows.n < rows.m
  bits = np.ceil(np.log2(np.maximum(rows.m, 1))) * sparse
  packed = assume.packed * sparse
  stored = weights * np.where(packed, kept * (v + bits / 8), v)
  rerun = ns[0] * rows.has("qk") * (1 - core)
  values = {
    "forward": ns[0],
    "backward": ns[1] + ns[2] + rerun,
    "attention": ns[0] * pair * core,
    # s b h (24 / t), s b h 10 and 5 a s^2 b / t of (2).
    "saved": v * made * outputs + v * taken * exit_,
    "saved_shared": v * taken * (2 * entry + other) + dropout * made * exit_,
    "saved_core": (v + dropout * (v + 1)) * taken * soft * core,
    "input": v * taken,
    "head": head * (2 * v * taken + _LOGIT * made),
    # Reads and writes of norms and residuals; of GeLU; of softmax.
    "moved": 2 * v * made * feeds + 2 * _LOGIT * made * head,
    "moved_shared": 2 * v * taken * entry + (3 * v + dropout) * made * exit_,
    "moved_core": (2 * v + dropout * (2 * v + 1)) * taken * soft * core,
    "summed": v * made * exit_,
    "weights": weights,
    "stored": stored,
    "masked": weights * (rows.m > 1) * ~np.asarray(packed, bool),
  }
  padded = {
    name: np.concatenate([x, np.zeros((*x.shape[:-1], 1))], -1)
    for name, x in values.items()
  }
  table = assume.embedding / np.array(tensors)
  padded["weights"][..., -1] = table
  padded["stored"][..., -1] = table * v
  return padded


def _products_ns(rows, local, engine, clock_ghz, sizes, assume):
  """ns of the three products of each different row, (3, b, t, rows)."""
  shape = np.shape(local["M"])
  repeats = shape[0] * shape[1]
  flat = {name: size.reshape(-1) for name, size in local.items()}
  table = Layers(
    rows.labels * repeats,
    n=np.tile(rows.n, repeats),
    m=np.tile(rows.m, repeats),
    v=np.tile(rows.v, repeats) if rows.v.any() else None,
    **flat,
  )
  size = None if assume.dtype else sizes.value
  products = cost(
    rows.phase._replace(layers=table).products(), engine, size,
    dtype=assume.dtype or None,
  )  # fmt: skip
  cycles = products.cycles.astype(float) * products.count
  ns = nanoseconds(cycles, engine, clock_ghz) / assume.efficiency
  return ns.reshape(3, *shape)


def _stages(per_block: np.ndarray, opens: np.ndarray, stages: int):
  """The different stages: rows, first rows, first index, how many there are."""
  owner = owners(len(per_block), stages)
  counts, firsts = np.zeros((2, stages, per_block.shape[1]))
  np.add.at(counts, owner, per_block)
  np.add.at(firsts, owner, opens)
  counts[0, -1] = 1  # the embedding
  both = np.concatenate([counts, firsts], 1)
  _, index, times = np.unique(
    both, axis=0, return_index=True, return_counts=True
  )
  order = np.argsort(index)
  index, times = index[order], times[order]
  return counts[index], firsts[index], index, times


def _stage_tables(features, counts, firsts, repeat, t):
  """Entries of `Profile` for one pipeline, the axis p left out."""

  def per_stage(name, rows=counts):
    return features[name] @ rows.T  # (b, t, k)

  shares = 1.0, 1 / t  # of what a tensor group without or with s repeats
  exchange = per_stage("exchange")
  core, products = per_stage("attention"), per_stage("forward")
  out: dict[str, Any] = {
    name: [[None, None] for _ in range(3)]
    for name in (
      "forward", "backward", "forward_sum", "backward_sum", "products",
      "elementwise", "exchange", "recompute", "activations",
    )
  }  # fmt: skip
  for s, share in enumerate(shares):
    moved = per_stage("moved") + per_stage("moved_shared") * share
    moved_core = per_stage("moved_core")
    elementwise = moved + moved_core
    forward = products + elementwise + exchange
    saved = per_stage("saved") + per_stage("saved_shared") * share
    stored = (
      saved + per_stage("saved_core"),
      saved,
      per_stage("input", firsts) * share,
    )
    again = (0 * forward, core + moved_core, forward)
    for r in range(3):
      backward = (
        per_stage("backward") + _BACKWARD * elementwise + exchange + again[r]
      )
      busiest = np.argmax(forward + backward, -1)[..., None]
      entries = {
        "products": products + per_stage("backward"),
        "elementwise": (1 + _BACKWARD) * elementwise,
        "exchange": 2 * exchange,
        "recompute": again[r],
      }
      for name, value in entries.items():
        out[name][r][s] = np.take_along_axis(value, busiest, -1)[..., 0]
      out["forward"][r][s] = forward.max(-1)
      out["backward"][r][s] = backward.max(-1)
      out["forward_sum"][r][s] = forward @ repeat
      out["backward_sum"][r][s] = backward @ repeat
      out["activations"][r][s] = stored[r]
  tables = {name: np.array(value) for name, value in out.items()}
  for name in ("weights", "stored", "masked"):
    tables[name] = per_stage(name)[0]
  return tables | {"head": per_stage("head")}


def _block_bytes(features, per_block, t):
  """Bytes that the largest block stores without recomputation, (s, b, t)."""
  totals = []
  for share in (1.0, 1 / t):
    each = (features["saved"] + features["saved_core"]) + features[
      "saved_shared"
    ] * share
    totals.append((each @ per_block.T).max(-1))
  return np.stack(totals)


def _vectors(table: Layers) -> np.ndarray:
  return np.zeros(len(table), np.int64) if table.v is None else table.v


def _role(name: str) -> str:
  """The end of a row's name if it has a place in a block, else ""."""
  last = name.rpartition("/")[2]
  return last if last in _AXES and "/cpb/" not in name else ""
