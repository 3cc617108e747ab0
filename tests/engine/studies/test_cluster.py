"""Steps on many devices: published memories, simulated schedules, loops."""

import copy
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import step_cost
from figs_jax.engine.layers import Layers
from figs_jax.engine.studies.cluster import _estimate
from figs_jax.engine.studies.cluster._estimate import (
  estimate,
  estimate_all,
  factors,
  schedule_ns,
  train_seconds,
)
from figs_jax.engine.studies.cluster.decoder import Decoder
from figs_jax.engine.studies.cluster.network import Cluster, ring_ns
from figs_jax.engine.studies.cluster.parallel import (
  RECOMPUTE,
  Assumptions,
  BytesPerValue,
  Parallel,
)
from figs_jax.engine.studies.cluster.placements import (
  CHOICES,
  MEMORY,
  TIME,
  pareto_front,
)
from figs_jax.engine.studies.cluster.profile import blocks_of, owners
from figs_jax.engine.training import TrainingPhase
from tests.engine.studies import cluster_oracle

laws = settings(deadline=None, max_examples=60)
BLOCKS, WIDTH, HEADS, TOKENS = 6, 64, 8, 32
MEGATRON = BytesPerValue(gradient=4)  # gradients in 32 bits
GIB = 2**30


def rows(batch, pattern=None):
  tokens = batch * TOKENS
  heads = {"M": TOKENS, "count": batch * HEADS}
  square = {"M": tokens, "N": WIDTH, "K": WIDTH}
  table = [{"name": "patch_embed", **square}]
  for i in range(BLOCKS):
    b = f"blocks/{i}"
    table += [{"name": f"{b}/attn/{part}", **square} for part in "qkv"]
    table += [
      {"name": f"{b}/attn/qk", "N": TOKENS, "K": WIDTH // HEADS, **heads},
      {"name": f"{b}/attn/av", "N": WIDTH // HEADS, "K": TOKENS, **heads},
      {"name": f"{b}/attn/o", **square},
      {"name": f"{b}/mlp/fc1", "M": tokens, "N": 4 * WIDTH, "K": WIDTH,
       "pattern": pattern},
      {"name": f"{b}/mlp/fc2", "M": tokens, "N": WIDTH, "K": 4 * WIDTH,
       "pattern": pattern},
    ]  # fmt: skip
  return [*table, {"name": "head", "M": batch, "N": 16, "K": WIDTH}]


def phase_at(batch):
  return TrainingPhase(1, rows(batch, "2:4"))


def decoder_at(decoder, pattern=None):
  def at(batch):
    made = decoder.rows(batch)
    for row in made:
      if "/mlp/" in row["name"]:
        row["pattern"] = pattern
    return 1, made

  return at


# Width, layers, heads, devices, stages, chunks, batch, microbatch: table 3 of
# arXiv 2205.05198; bytes in GiB: its figure 1; percent: its figure 7.
FIGURE_1 = {
  (6144, 48, 64, 8, 1, 1, 4, 4): (45.5625, 59.25, 9.5625),
  (12288, 96, 96, 64, 8, 3, 64, 1): (45.5625, 66.84375, 12.3515625),
  (20480, 105, 128, 280, 35, 3, 280, 1): (31.640625, 114.0234375, 23.076171875),
  (25600, 128, 160, 512, 64, 1, 512, 1): (32.958984375, 131.25, 26.5625),
}
FIGURE_7 = (
  (66.84, 49.42, 16.18, 7.64),
  (62.04, 56.53, 18.49, 8.71),
  (58.31, 62.04, 20.27, 9.42),
  (58.31, 62.04, 20.27, 9.42),
)


def megatron(shape, **way):
  h, layers, heads, devices, p, v, batch, b = shape
  model = Decoder(h, layers, heads, vocab=8)
  parallel = Parallel(
    1, 8, p, batch // b, interleave=v, **way
  )  # a vocabulary of 8 leaves the head out, as the figures do
  return estimate(
    decoder_at(model), "gpu:a100", Cluster(devices), parallel, batch,
    sizes=MEGATRON,
  )  # fmt: skip


@pytest.mark.parametrize("shape", FIGURE_1)
def test_published_memory_of_megatrons_models(shape):
  states, plain, shared = FIGURE_1[shape]
  none = megatron(shape)
  h, *_, p, _, _, b = shape
  # Without a pipeline, the inputs of the last norm and the head come to it.
  head = 4 * 2048 * b * h / GIB * (p == 1)
  kept = sum(none.bytes[x] for x in ("weights", "gradients", "optimizer"))
  assert kept / GIB == pytest.approx(states, rel=1e-4)
  assert none.bytes["activations"] / GIB - head == pytest.approx(
    plain, rel=1e-4
  )
  both = megatron(shape, recompute="selective", sequence=True)
  assert both.bytes["activations"] / GIB - head == pytest.approx(
    shared, rel=1e-4
  )


@pytest.mark.parametrize("shape, published", list(zip(FIGURE_1, FIGURE_7)))
def test_published_shares_of_activations(shape, published):
  h, layers, heads, _, p, v, _, b = shape
  sbh = 2048 * b * h
  head = 4 * sbh * (p == 1)
  base = megatron(shape).bytes["activations"] - head
  ways = (
    {"sequence": True},
    {"recompute": "selective"},
    {"recompute": "selective", "sequence": True},
  )
  for way, percent in zip(ways, published):
    share = (megatron(shape, **way).bytes["activations"] - head) / base
    assert 100 * share == pytest.approx(percent, abs=0.2)
  # Full recomputation stores the blocks' inputs, and one block for a while.
  full = megatron(shape, recompute="full").bytes["activations"]
  block = sbh * (10 + 24 / 8 + 5 * heads * 2048 / h / 8)
  flight = 1 + (p - 1) / (p * v) if v > 1 else 1
  inputs = 2 * sbh * layers * flight
  assert full == pytest.approx(inputs + block + head, rel=1e-5)
  assert 100 * inputs / base == pytest.approx(published[3], abs=0.2)


def test_zeros_example():
  # 7.5e9 weights on 64 replicas, figure 1 of arXiv 1910.02054.
  row = {"M": 1, "N": 75_000, "K": 100_000}
  at = lambda batch: (1, [{"name": "blocks/0/ff", **row, "M": batch}])  # noqa: E731
  stored = [
    estimate(
      at, "gpu:a100", Cluster(64), Parallel(64, zero=zero), 64,
      sizes=BytesPerValue(),
    ).bytes
    for zero in range(4)
  ]  # fmt: skip
  total = [
    (b["weights"] + b["gradients"] + b["optimizer"]) / 1e9 for b in stored
  ]
  assert total[:3] == pytest.approx([120, 31.4, 16.6], abs=0.05)
  # The whole of the single layer is gathered beside its share.
  assert total[3] - 15 == pytest.approx(1.9, abs=0.05)


def test_megatrons_counts():
  # Table 1 of arXiv 2104.04473: h, layers, heads, billions of parameters.
  table = (
    (2304, 24, 24, 1.7), (3072, 30, 32, 3.6), (4096, 36, 32, 7.5),
    (6144, 40, 48, 18.4), (8192, 48, 64, 39.1), (10240, 60, 80, 76.1),
    (12288, 80, 96, 145.6), (16384, 96, 128, 310.1), (20480, 105, 128, 529.6),
    (25600, 128, 160, 1008.0),
  )  # fmt: skip
  for h, layers, heads, billions in table:
    model = Decoder(h, layers, heads)
    assert round(model.parameters / 1e9, 1) == billions
    closed = (
      12
      * layers
      * h**2
      * (1 + 13 / (12 * h) + (51200 + 2048) / (12 * layers * h))
    )
    assert model.parameters == pytest.approx(closed, rel=1e-12)
    # (3) is the sum over all products, blocks twice forward.
    each = [
      2.0 * r["M"] * r["N"] * r["K"] * r.get("count", 1) for r in model.rows(3)
    ]
    total = 4 * sum(each[:-1]) + 3 * each[-1]
    assert model.megatron_flops(3) == pytest.approx(total, rel=1e-9)
    assert model.megatron_flops(3, recompute=False) == pytest.approx(
      3 * sum(each), rel=1e-9
    )
  with pytest.raises(ValueError, match="ungated"):
    Decoder(64, 2, 4, gated=True).megatron_flops(1)


def test_what_selective_recomputation_saves_and_costs():
  # 70 % and 65 % fewer bytes (section 5 of arXiv 2205.05198). Attention's
  # products are s / (18 h) of the other FLOPs; the 2.7 % and 1.6 % there are
  # s / (6 h), of all three passes.
  for (h, layers, heads), fewer in (
    ((12288, 96, 96), 70), ((20480, 105, 128), 65)
  ):  # fmt: skip
    model = Decoder(h, layers, heads, vocab=8)
    none, some = (
      estimate(decoder_at(model), "gpu:a100:hbm=1000000000", Cluster(8),
               Parallel(tensor=8, sequence=True, recompute=r), 1)
      for r in ("none", "selective")
    )  # fmt: skip
    share = some.times["recomputation"] / none.times["products"]
    assert share == pytest.approx(
      2048 / (18 * h) / (1 + 2048 / (6 * h)), rel=0.02
    )
    saved = 1 - some.bytes["activations"] / none.bytes["activations"]
    assert 100 * saved == pytest.approx(fewer, abs=0.5)


def interleaved(p, u, v, f, b):
  """Duration and most chunks in flight per stage of Megatron's 1F1B."""
  total = u * v

  def order(stage):
    ahead = 2 * (p - 1 - stage) + (v - 1) * p if v > 1 else p - 1 - stage
    ahead = min(ahead, total)
    ops = [("F", k) for k in range(ahead)]
    for k in range(total - ahead):
      ops += [("F", ahead + k), ("B", k)]
    return ops + [("B", k) for k in range(total - ahead, total)]

  def item(kind, k):
    chunk = k // p % v if v > 1 else 0
    micro = k // (p * v) * p + k % p if v > 1 else k
    return (v - 1 - chunk if kind == "B" else chunk), micro

  queues = [order(stage) for stage in range(p)]
  done, clock = {}, [0.0] * p
  live, most = [0] * p, [0] * p
  while any(queues):
    for stage in range(p):
      while queues[stage]:
        kind, k = queues[stage][0]
        chunk, micro = item(kind, k)
        place = chunk * p + stage
        before = ("F", place - 1, micro)
        if kind == "B":
          last = place == p * v - 1
          before = ("F", place, micro) if last else ("B", place + 1, micro)
        if before[1] >= 0 and before not in done:
          break
        start = max(clock[stage], done.get(before, 0.0))
        clock[stage] = start + (f if kind == "F" else b) / v
        done[kind, place, micro] = clock[stage]
        live[stage] += 1 if kind == "F" else -1
        most[stage] = max(most[stage], live[stage])
        queues[stage].pop(0)
  return max(clock), most


@laws
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_the_schedule_is_the_simulated_one(p, groups, v):
  v = v if p > 1 else 1
  u = p * groups + (p if v > 1 else 0)  # more than one group: steady state
  f, b = 12.0, 24.0
  wanted, most = interleaved(p, u, v, f, b)
  got = sum(schedule_ns(x, p * x, 0.0, p, u, v) for x in (f, b))
  assert got == pytest.approx(wanted)
  # The bubble's share of the ideal time, and the chunks in flight.
  assert got / (u * (f + b)) - 1 == pytest.approx((p - 1) / (u * v))
  for stage, count in enumerate(most):
    chunks = 2 * (p - 1 - stage) + (v - 1) * p + 1
    flight = min(u * v, chunks) if v > 1 else min(u, p - stage)
    assert flight == count


times = st.integers(1, 50).map(float)


@laws
@given(st.data(), st.integers(1, 6), st.integers(1, 9))
def test_unequal_stages_wait_for_the_slowest(data, stages, count):
  work = data.draw(st.lists(times, min_size=stages, max_size=stages))
  hop = data.draw(times)
  # One pass: every stage and every link takes one microbatch at a time.
  stations = [work[0], *(x for w in work[1:] for x in (hop, w))]
  free = [0.0] * len(stations)
  end = 0.0
  for _ in range(count):
    at = 0.0
    for i, takes in enumerate(stations):
      free[i] = at = max(at, free[i]) + takes
    end = at
  got = schedule_ns(max(work), sum(work), hop, stages, count, 1)
  if stages == 1:
    got = schedule_ns(max(work), sum(work), 0.0, 1, count, 1)
  assert got == end


@laws
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 9))
def test_a_ring_adds_up_in_the_steps_that_are_charged(devices, chunk, seed):
  # Device r starts with its own vector of `devices` chunks.
  rng = np.random.default_rng(seed)
  held = rng.integers(0, 99, (devices, devices, chunk))
  wanted, clock = held.sum(0), 0.0
  gbps, latency = 2.0, 3.0
  for phase in range(2):
    for step in range(devices - 1):
      sent = held.copy()
      for r in range(devices):
        at = (r + phase - step) % devices  # reduce-scatter, then all-gather
        to = (r + 1) % devices
        if phase == 0:
          held[to, at] += sent[r, at]
        else:
          held[to, at] = sent[r, at]
      clock += chunk * 8 / gbps + latency
  assert (held == wanted).all()
  assert 2 * ring_ns(devices * chunk * 8, devices, gbps, latency) == clock


@laws
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_a_gather_over_nodes_reaches_everyone(nodes, local, chunk):
  # Rings between the nodes first, one per local device, then inside each.
  held = [[{(n, i)} for i in range(local)] for n in range(nodes)]
  cluster, clock = Cluster(nodes * local, per_node=local), 0.0
  for _ in range(nodes - 1):
    held = [
      [held[n][i] | held[n - 1][i] for i in range(local)] for n in range(nodes)
    ]
    clock += chunk * 8 / cluster.inter + cluster.inter_latency
  for _ in range(local - 1):
    held = [
      [held[n][i] | held[n][i - 1] for i in range(local)] for n in range(nodes)
    ]
    clock += nodes * chunk * 8 / cluster.intra + cluster.intra_latency
  assert all(len(h) == nodes * local for node in held for h in node)
  size = nodes * local * chunk * 8
  assert cluster.pass_ns(size, nodes * local) == pytest.approx(clock)
  # A stride as long as a node leaves nothing inside it.
  apart = cluster.pass_ns(size, nodes, stride=local)
  assert apart == pytest.approx(
    ring_ns(size, nodes, cluster.inter, cluster.inter_latency)
  )


SMALL = Decoder(64, layers=12, heads=8, seq=32, vocab=160)
TIGHT = Cluster(
  16, per_node=4, memory=900_000, tier_memory=600_000, tier_bandwidth=2
)


@pytest.mark.parametrize("overlap, pattern", [(False, None), (True, "2:4")])
def test_every_placement_is_that_of_a_plain_loop(overlap, pattern):
  options = {
    "assume": Assumptions(embedding=SMALL.embedding),
    "sizes": MEGATRON,
  }
  made = estimate_all(
    decoder_at(SMALL, pattern), "tensorcore:h100", TIGHT, 48, overlap=overlap,
    **options,
  )  # fmt: skip
  assert len(made) > 2000
  columns = made.columns
  for name, choices in (("zero", 4), ("recompute", 3), ("sequence", 2)):
    assert len(np.unique(columns[name])) == choices
  assert {*np.unique(columns["interleave"])} >= {1, 2, 3}
  excess = columns["excess"]
  assert (excess <= 0).any() and (excess > 0).any()
  assert (columns["tier_bytes"] > 0).any()
  rng = np.random.default_rng(0)
  for index in rng.choice(len(made), 30, replace=False):
    row = {name: columns[name][index].item() for name in CHOICES}
    wanted = cluster_oracle.placement(
      SMALL, "tensorcore:h100", TIGHT, row, 48, MEGATRON, overlap, pattern
    )
    got = [columns[x][index] for x in ("ns", "memory", "tier_bytes")]
    np.testing.assert_allclose(got, wanted, rtol=1e-9, err_msg=str(row))
  # Parts add up, and one placement alone is the same.
  np.testing.assert_allclose(sum(columns[x] for x in TIME), columns["ns"])
  np.testing.assert_allclose(sum(columns[x] for x in MEMORY), columns["memory"])
  first = made[7]
  alone = estimate(
    decoder_at(SMALL, pattern), "tensorcore:h100", TIGHT, first.parallel, 48,
    **options,
  )  # fmt: skip
  assert alone == first


def test_one_device_computes_and_does_not_talk():
  one = estimate(phase_at, "ws:16x16", Cluster(1), Parallel(), 8)
  alone = step_cost(rows(8, "2:4"), "ws:16x16").cycles.total
  assert one.ns == one.pipeline_ns == one.compute_ns == alone
  assert one.gradients_ns == one.tensor_ns == one.bubble == 0
  fast = estimate(phase_at, "ws:16x16", Cluster(1), Parallel(), 8, clock_ghz=2)
  assert fast.ns == alone / 2
  # The engine's own clock, in MHz, if no other is given.
  own = estimate(phase_at, "ws:16x16:clock=2000", Cluster(1), Parallel(), 8)
  assert own.ns == alone / 2
  slow = Assumptions(efficiency=0.5)
  slow = estimate(phase_at, "ws:16x16", Cluster(1), Parallel(), 8, assume=slow)
  assert slow.ns == 2 * alone
  phase = TrainingPhase(1, rows(8, "2:4"), False, False, "2:4")
  pruned = estimate(lambda _: phase, "ws:16x16", Cluster(1), Parallel(), 8)
  alone = step_cost(rows(8, "2:4"), "ws:16x16", forward=False,
                    weight_gradient="2:4")  # fmt: skip
  assert pruned.ns == alone.cycles.total


def test_replicas_split_the_batch_and_exchange_all_gradients():
  cluster = Cluster(4, per_node=2)
  four = estimate(phase_at, "ws:16x16", cluster, Parallel(4), 32)
  alone = estimate(phase_at, "ws:16x16", Cluster(1), Parallel(), 8)
  weights = (1 + BLOCKS * 12) * WIDTH**2 + 16 * WIDTH
  # Two nodes of two replicas.
  one = weights * 2 / 4 / cluster.inter + cluster.inter_latency
  one += weights * 2 / 2 / cluster.intra + cluster.intra_latency
  np.testing.assert_allclose(four.gradients_ns, 2 * one, rtol=1e-12)
  np.testing.assert_allclose(four.ns, alone.ns + 2 * one, rtol=1e-12)
  hidden = estimate(
    phase_at, "ws:16x16", cluster, Parallel(4, overlap=True), 32
  )
  assert hidden.gradients_ns == four.gradients_ns
  backward = step_cost(rows(8, "2:4"), "ws:16x16").cycles
  backward = backward.input_gradient + backward.weight_gradient
  np.testing.assert_allclose(
    hidden.ns - alone.ns, max(four.gradients_ns - backward, 0)
  )
  # Replicas of tensor groups that fill the nodes meet between nodes.
  way = Parallel(data=2, tensor=2)
  got = estimate(phase_at, "ws:16x16", cluster, way, 16)
  weights = (1 + BLOCKS * 6) * WIDTH**2 + 8 * WIDTH
  one = weights * 2 / 2 / cluster.inter + cluster.inter_latency
  np.testing.assert_allclose(got.gradients_ns, 2 * one, rtol=1e-12)


def test_tensor_parallel_devices_add_up_twice_per_block_and_pass():
  cluster, t = Cluster(4), 4
  got = estimate(phase_at, "ws:16x16", cluster, Parallel(tensor=t), 8)
  size = 8 * TOKENS * WIDTH * 2
  one = 2 * (t - 1) * (size / t / cluster.intra + cluster.intra_latency)
  np.testing.assert_allclose(got.tensor_ns, 4 * BLOCKS * one, rtol=1e-12)
  local = []
  for row in rows(8, "2:4"):
    axis = {"q": "N", "k": "N", "v": "N", "fc1": "N", "o": "K", "fc2": "K",
            "qk": "count", "av": "count", "head": "N"}  # fmt: skip
    axis = axis.get(row["name"].split("/")[-1])
    local.append(row | {axis: row[axis] // t} if axis else row)
  np.testing.assert_allclose(
    got.compute_ns, step_cost(local, "ws:16x16").cycles.total, rtol=1e-12
  )
  # A head whose size the group does not divide is padded, not refused.
  odd = [r | {"N": 15} if r["name"] == "head" else r for r in rows(8, "2:4")]
  padded = estimate(
    lambda _: (1, odd), "ws:16x16", cluster, Parallel(tensor=t), 8
  )
  assert padded.compute_ns == got.compute_ns


def test_stages_are_runs_of_blocks():
  place, blocks = blocks_of(Layers.of(rows(1)).names)
  assert blocks == BLOCKS and place[0] == 0 and place[-1] == BLOCKS - 1
  assert np.bincount(owners(BLOCKS, 4)).tolist() == [2, 2, 1, 1]
  free = Cluster(4, intra=10**9, intra_latency=0)
  way = Parallel(pipeline=4, microbatches=4)
  got = estimate(phase_at, "ws:16x16", free, way, 8)
  cost = step_cost(rows(2, "2:4"), "ws:16x16").layers
  each = np.split(cost.cycles * cost.count, 3)
  stage = owners(BLOCKS, 4)[place]
  forward = np.bincount(stage, each[0])
  backward = np.bincount(stage, each[1] + each[2])
  wanted = sum(
    x.sum() + 3 * x.max() for x in (forward, backward)
  )  # four microbatches
  np.testing.assert_allclose(got.pipeline_ns, wanted, rtol=1e-4)
  busy = 4 * (forward + backward).max()
  np.testing.assert_allclose(got.bubble, 1 - busy / wanted, rtol=1e-4)


def test_masks_and_packed_weights_are_counted():
  masked = BLOCKS * 8 * WIDTH**2
  every = (1 + BLOCKS * 12) * WIDTH**2 + 16 * WIDTH
  way = "tensorcore:h100", Cluster(2), Parallel(2), 4
  dense = estimate(lambda b: (1, rows(b)), *way)
  sparse = estimate(phase_at, *way)
  packed = estimate(phase_at, *way, assume=Assumptions(packed=True))
  assert dense.bytes["weights"] == sparse.bytes["weights"] == 2 * every
  assert dense.bytes["masks"] == 0 and sparse.bytes["masks"] == masked
  # 2:4 keeps half, with two bits of index each; masks are in the indices.
  assert packed.bytes["masks"] == 0
  kept = masked // 2 * 2 + masked // 2 * 2 // 8
  assert packed.bytes["weights"] == 2 * (every - masked) + kept
  # Gradients stay dense, in memory and between replicas.
  for each in (sparse, packed):
    assert each.bytes["gradients"] == dense.bytes["gradients"]
    assert each.gradients_ns == dense.gradients_ns
  # A stage of m:m is masked and not sparse.
  stage = estimate(lambda b: (1, rows(b, "4:4")), *way)
  assert stage.bytes["masks"] == masked
  assert stage.times["products"] == dense.times["products"]
  large = {"M": 4096, "N": 16384, "K": 4096}
  fast, slow = (
    estimate(
      lambda _, x=x: (1, [{"name": "blocks/0/mlp/fc1", **large, "pattern": x}]),
      "tensorcore:h100:ideal=true", Cluster(1), Parallel(), 1,
    )
    for x in ("2:4", None)
  )  # fmt: skip
  gain = slow.times["products"] / fast.times["products"]
  assert gain == pytest.approx(3 / 2.5, rel=0.01)  # the forward pass alone


def test_the_front_is_that_of_a_brute_force():
  rng = np.random.default_rng(0)
  for columns in (1, 2, 3):
    values = rng.integers(0, 12, (300, columns)).astype(float)
    front = pareto_front(values)
    for i, row in enumerate(values):
      beaten = ((values <= row).all(1) & (values < row).any(1)).any()
      first = not (values[:i] == row).all(1).any()
      assert (i in front) == (not beaten and first)


def test_the_sweep_tries_every_way_and_puts_the_best_first(monkeypatch):
  cluster = Cluster(8, per_node=4)
  ways = estimate_all(phase_at, "ws:16x16", cluster, 32)
  used = {(e.parallel.data, e.parallel.tensor, e.parallel.pipeline)
          for e in ways}  # fmt: skip
  assert used == {w for w in factors(8) if w[2] <= BLOCKS}
  assert {e.parallel.microbatches for e in ways} == {1, 2, 4, 8, 16, 32}
  assert ways.fits.all()
  assert np.all(np.diff(ways.columns["ns"]) >= 0)
  tight = dataclasses.replace(cluster, memory=ways[0].memory - 1)
  again = estimate_all(phase_at, "ws:16x16", tight, 32)
  flags = again.fits.tolist()
  assert flags == sorted(flags, reverse=True) and len(set(flags)) == 2
  few = ways.where("tensor<=2; zero==0; microbatches*data<9")
  assert 0 < len(few) < len(ways)
  assert all(
    e.parallel.tensor <= 2
    and e.parallel.zero == 0
    and e.parallel.microbatches * e.parallel.data < 9
    for e in few
  )
  monkeypatch.setattr(_estimate, "_AT_ONCE", 100)
  parts = estimate_all(phase_at, "ws:16x16", cluster, 32)
  for name, column in ways.columns.items():
    assert (parts.columns[name] == column).all()
  # More devices are faster and cost more.
  both = estimate_all(phase_at, "ws:16x16", cluster, 32, devices=(1, 8))
  front = both.pareto()
  assert {e.parallel.devices for e in front} == {1, 8}
  assert np.isin(front.columns["ns"], both.columns["ns"]).all()
  price = dataclasses.replace(cluster, price=2.5)
  dear = estimate_all(phase_at, "ws:16x16", price, 32)
  hours = dear.columns["ns"] / 3.6e12 * 8
  np.testing.assert_allclose(dear.columns["cost"], 2.5 * hours)


def test_a_tier_takes_what_does_not_fit():
  """COMET's question: capacity and bandwidth beyond the device's memory."""
  free = estimate(phase_at, "gpu:h100", Cluster(1), Parallel(), 8)
  short = free.memory - 1000
  args = phase_at, "gpu:h100"
  none = estimate(*args, Cluster(1, memory=short), Parallel(), 8)
  assert not none.fits and none.tier == 0
  for gbps in (1, 10, 100):
    tier = Cluster(1, memory=short, tier_memory=1000, tier_bandwidth=gbps)
    got = estimate(*args, tier, Parallel(), 8)
    assert got.fits and got.tiered["optimizer"] == got.tier == 1000
    assert got.times["tier"] == 2 * 1000 / gbps
    assert got.memory == free.memory
  full = Cluster(1, memory=short, tier_memory=999)
  assert not estimate(*args, full, Parallel(), 8).fits
  only = estimate_all(
    *args, Cluster(1, memory=short, tier_memory=10**9), 8, tiered=("weights",)
  )
  moved = only.columns
  assert (moved["optimizer_tier"] == 0).all() and (
    moved["weights_tier"] > 0
  ).any()


@pytest.mark.parametrize("devices", [1, 2, 7, 12, 60, 64])
def test_factors_are_all_factorisations(devices):
  every = [
    (d, t, p)
    for d in range(1, devices + 1)
    for t in range(1, devices + 1)
    for p in [devices // (d * t)]
    if d * t * p == devices
  ]
  assert factors(devices) == every


def test_a_run_sums_its_phases():
  cluster, way = Cluster(2), Parallel(2)

  def phases(batch):
    return TrainingPhase(3, rows(batch, "2:4"), False), TrainingPhase(
      7, rows(batch, "2:4")
    )

  each = [
    estimate(lambda b, i=i: phases(b)[i], "ws", cluster, way, 8).ns
    for i in (0, 1)
  ]
  np.testing.assert_allclose(
    train_seconds(phases, "ws", cluster, way, 8),
    (3 * each[0] + 7 * each[1]) / 1e9,
    rtol=1e-12,
  )
  assert each[1] < each[0]


def unhooked(made, name, value):
  """Checks a field of any type, which the tests' own hook would refuse."""
  changed = copy.copy(made)
  object.__setattr__(changed, name, value)
  changed.__post_init__()


def test_bad_requests():
  def ask(cluster, batch=8, **way):
    return estimate(phase_at, "ws", cluster, Parallel(**way), batch)

  with pytest.raises(ValueError, match="uses 2 devices, the cluster has 4"):
    ask(Cluster(4), data=2)
  with pytest.raises(ValueError, match="expected a multiple of .* = 3, got 8"):
    ask(Cluster(3), data=3)
  with pytest.raises(ValueError, match="pipeline=8 stages, .* 6 blocks"):
    ask(Cluster(8), pipeline=8)
  with pytest.raises(ValueError, match="'blocks/0/attn/q': N=64 does not"):
    ask(Cluster(3), tensor=3)
  with pytest.raises(ValueError, match="interleave=2: .* 6 blocks and 8 micro"):
    ask(Cluster(2), pipeline=2, microbatches=8, interleave=2)
  cut = {"name": "blocks/0/mlp/fc2", "M": 1, "N": 1, "K": 8, "pattern": "1:8"}
  with pytest.raises(ValueError, match="'blocks/0/mlp/fc2': K=8 .* divisor"):
    estimate(lambda b: (1, [cut]), "ws", Cluster(2), Parallel(tensor=2), 1)
  with pytest.raises(ValueError, match="the same rows for every size"):
    estimate_all(lambda b: (1, [cut] * b), "ws", Cluster(1), 2)
  with pytest.raises(ValueError, match="no way to use 7 devices; "):
    estimate_all(phase_at, "ws", Cluster(7), 8)
  with pytest.raises(ValueError, match="none of .* placements meets it"):
    estimate_all(phase_at, "ws", Cluster(2), 8, where="tensor>64")
  with pytest.raises(ValueError, match="column 'tensors', did you mean"):
    estimate_all(phase_at, "ws", Cluster(2), 8, where="tensors>64")
  with pytest.raises(ValueError, match="unknown state 'weight', did you mean"):
    estimate_all(phase_at, "ws", Cluster(2), 8, tiered=("weight",))
  wrong = (-1, math.nan, math.inf, "2", None, True)
  for field in dataclasses.fields(Cluster):
    fix = "an integer" if field.name in ("devices", "per_node") else "a number"
    zero = () if field.name.endswith(("latency", "tier_memory")) else (0,)
    for value in (*wrong, *zero):
      why = f"Cluster {field.name}: expected {fix} .*, got {value!r}"
      with pytest.raises(ValueError, match=why):
        unhooked(Cluster(2), field.name, value)
  for kind in (Parallel, BytesPerValue, Assumptions):
    for field in dataclasses.fields(kind):
      for value in (-1, 1.5, math.nan, "2", None):
        why = f"{kind.__name__} {field.name}: (expected|unknown)"
        with pytest.raises(ValueError, match=why):
          unhooked(kind(), field.name, value)
  with pytest.raises(ValueError, match="zero: expected 0 to 3, got 4"):
    Parallel(zero=4)
  with pytest.raises(ValueError, match="'some', .*none, selective"):
    Parallel(recompute="some")
  assert RECOMPUTE == ("none", "selective", "full")


def test_decoders_are_read_from_text():
  text = "gpt:width=128,layers=2,heads=8,kv_heads=2,ffn=352,gated=true"
  made = Decoder.parse(text, seq=16)
  assert made == Decoder(128, 2, 8, 16, 352, 2, True)
  table = {row["name"]: row for row in made.rows(3)}
  columns, wanted = made.table(3), Layers.of(made.rows(3))
  assert columns.names == wanted.names
  for name in ("M", "N", "K", "count", "n", "m"):
    assert (getattr(columns, name) == getattr(wanted, name)).all()
  assert len(table) == 2 * 9 + 1
  assert table["blocks/1/attn/k"]["N"] == 2 * 16
  assert (
    table["blocks/1/mlp/gate"]["N"] == table["blocks/0/mlp/fc2"]["K"] == 352
  )
  assert table["blocks/0/attn/qk"] == {
    "name": "blocks/0/attn/qk", "M": 16, "N": 16, "K": 16, "count": 24
  }  # fmt: skip
  for words, why in {
    "gpt:width=8,layers=1": "heads is missing",
    "gpt:width=8,layers=1,head=2": "unknown size 'head', did you mean 'heads'",
    "gpt:width=8,layers=1,heads=3": "expected a divisor of width=8, got 3",
    "gpt:width=8,layers=1,heads=-2": "expected heads=a positive integer",
    "gpt:width=8,layers=0,heads=2": "layers: expected an integer above 0",
    "gpt:width=8,width=8": "width is given twice",
    "gpt:width=8,gated=yes": "expected gated=true or false, got 'yes'",
  }.items():
    with pytest.raises(ValueError, match=why):
      Decoder.parse(words)
