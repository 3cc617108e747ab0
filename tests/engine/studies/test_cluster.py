"""A step on many devices: simulated schedules and rings, limits, refusals."""

import copy
import dataclasses
import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import step_cost
from figs_jax.engine.layers import Layers
from figs_jax.engine.studies.cluster import (
  BytesPerValue,
  Cluster,
  Parallel,
  estimate,
  estimate_all,
  factors,
  makespan,
  ring_ns,
  shard,
  stages_of,
  train_seconds,
)
from figs_jax.engine.training import TrainingPhase

laws = settings(deadline=None, max_examples=60)
BLOCKS, WIDTH, HEADS, TOKENS = 6, 64, 8, 32


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


def simulated(forward, backward, hops, count):
  """GPipe event by event: who is free takes the microbatch that waits longest.

  Stations are stages and the links between them; all microbatches go forward,
  then back in reverse order.
  """

  def line(times, stages, links):
    stations = [stages[0]]
    for stage, link in zip(stages[1:], links):
      stations += [link, stage]
    events = [(times, item, 0) for item in range(count)]  # (when, item, where)
    free, end = [times] * len(stations), times
    heapq.heapify(events)
    while events:
      when, item, where = heapq.heappop(events)
      start = max(when, free[where])
      if start > when:
        heapq.heappush(events, (start, item, where))
        continue
      free[where] = end_of = start + stations[where]
      end = max(end, end_of)
      if where + 1 < len(stations):
        heapq.heappush(events, (end_of, item, where + 1))
    return end

  turned = line(0.0, list(forward), list(hops))
  return line(turned, list(backward)[::-1], list(hops)[::-1])


times = st.integers(1, 50).map(float)


@laws
@given(st.data(), st.integers(1, 6), st.integers(1, 9))
def test_the_makespan_is_the_simulated_schedules(data, stages, count):
  many = st.lists(times, min_size=stages, max_size=stages)
  forward, backward = data.draw(many), data.draw(many)
  hops = data.draw(many)[: stages - 1]
  got = sum(makespan(np.array(x), np.array(hops), count)
            for x in (forward, backward))  # fmt: skip
  assert got == simulated(forward, backward, hops, count)


@laws
@given(st.integers(1, 8), st.integers(1, 20))
def test_equal_stages_have_gpipes_bubble(stages, count):
  total = makespan(np.ones(stages), np.zeros(stages - 1), count)
  np.testing.assert_allclose(
    1 - count / total, (stages - 1) / (count + stages - 1), rtol=1e-12
  )


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
  assert ring_ns(devices * chunk * 8, devices, gbps, latency) == clock


def test_one_device_computes_and_does_not_talk():
  one = estimate(phase_at, "ws:16x16", Cluster(1), Parallel(), 8)
  alone = step_cost(rows(8, "2:4"), "ws:16x16").cycles.total
  assert one.ns == one.pipeline_ns == one.compute_ns == alone
  assert one.gradients_ns == one.tensor_ns == one.bubble == 0
  fast = estimate(phase_at, "ws:16x16", Cluster(1), Parallel(), 8, clock_ghz=2)
  assert fast.ns == alone / 2
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
  # Four replicas span two nodes.
  ring = 2 * 3 * (weights * 2 / 4 / cluster.inter + cluster.inter_latency)
  np.testing.assert_allclose(four.gradients_ns, ring, rtol=1e-12)
  np.testing.assert_allclose(four.ns, alone.ns + ring, rtol=1e-12)
  near = dataclasses.replace(cluster, per_node=4)
  quick = estimate(phase_at, "ws:16x16", near, Parallel(4), 32)
  assert quick.gradients_ns < four.gradients_ns
  hidden = estimate(
    phase_at, "ws:16x16", cluster, Parallel(4, overlap=True), 32
  )
  assert hidden.gradients_ns == four.gradients_ns
  assert alone.ns <= hidden.ns < four.ns
  backward = step_cost(rows(8, "2:4"), "ws:16x16").cycles
  backward = backward.input_gradient + backward.weight_gradient
  np.testing.assert_allclose(
    hidden.ns - alone.ns, max(four.gradients_ns - backward, 0)
  )


def test_replicas_of_tensor_groups_meet_across_nodes():
  cluster, way = Cluster(4, per_node=2), Parallel(data=2, tensor=2)
  got = estimate(phase_at, "ws:16x16", cluster, way, 16)
  # Tensor groups fill the nodes, so that gradients leave them.
  weights = (1 + BLOCKS * 6) * WIDTH**2 + 16 * WIDTH
  ring = 2 * (weights * 2 / 2 / cluster.inter + cluster.inter_latency)
  np.testing.assert_allclose(got.gradients_ns, ring, rtol=1e-12)
  inside = dataclasses.replace(cluster, inter=0.001)
  slow = estimate(phase_at, "ws:16x16", inside, way, 16)
  assert slow.tensor_ns == got.tensor_ns


def test_tensor_parallel_devices_add_up_twice_per_block_and_pass():
  cluster, t = Cluster(4), 4
  got = estimate(phase_at, "ws:16x16", cluster, Parallel(tensor=t), 8)
  size = 8 * TOKENS * WIDTH * 2
  one = 2 * (t - 1) * (size / t / cluster.intra + cluster.intra_latency)
  np.testing.assert_allclose(got.tensor_ns, 4 * BLOCKS * one, rtol=1e-12)
  local = shard(Layers.of(rows(8, "2:4")), t)
  np.testing.assert_allclose(
    got.compute_ns, step_cost(local, "ws:16x16").cycles.total, rtol=1e-12
  )
  # Every product of a block is spread whole: a quarter of its work each.
  macs = [x.M * x.N * x.K * x.count for x in (Layers.of(rows(8)), local)]
  assert (macs[0][1:-1] == t * macs[1][1:-1]).all()
  assert (macs[0][[0, -1]] == macs[1][[0, -1]]).all()


def test_a_pipeline_is_as_slow_as_its_fullest_stage():
  names = Layers.of(rows(1)).names
  place = stages_of(names, 4)  # 6 blocks: 2, 2, 1, 1
  blocks = [set() for _ in range(4)]
  for name, stage in zip(names, place):
    if name.startswith("blocks"):
      blocks[stage].add(name.split("/")[1])
  assert [len(b) for b in blocks] == [2, 2, 1, 1]
  assert (np.diff(place) >= 0).all() and place[0] == 0 and place[-1] == 3
  free = Cluster(4, intra=10**9, intra_latency=0)
  got = estimate(phase_at, "ws:16x16", free, Parallel(pipeline=4,
                 microbatches=4), 8)  # fmt: skip
  cost = step_cost(rows(2, "2:4"), "ws:16x16").layers
  each = np.split(cost.cycles * cost.count, 3)
  forward = np.bincount(place, each[0])
  backward = np.bincount(place, each[1] + each[2])
  wanted = simulated(forward, backward, np.zeros(3), 4)
  np.testing.assert_allclose(got.pipeline_ns, wanted, rtol=1e-4)
  busy = 4 * (forward + backward).max()
  np.testing.assert_allclose(got.bubble, 1 - busy / wanted, rtol=1e-4)
  # Sends are charged: a slow link stretches the same pipeline.
  slow = Cluster(4, intra=0.001)
  stretched = estimate(phase_at, "ws:16x16", slow, got.parallel, 8)
  hop = 2 * TOKENS * WIDTH * 2 / 0.001 + 1000
  assert stretched.pipeline_ns >= 2 * (3 + 3) * hop
  assert stretched.bubble > got.bubble


def test_memory_is_counted_and_what_does_not_fit_is_flagged():
  sizes = BytesPerValue(value=1, gradient=10, states=100)
  got = estimate(phase_at, "ws", Cluster(1), Parallel(), 2, sizes=sizes)
  weights = (1 + BLOCKS * 12) * WIDTH**2 + 16 * WIDTH
  tokens = 2 * TOKENS
  inputs = tokens * WIDTH * (1 + BLOCKS * (3 + 1 + 1 + 4)) + 2 * WIDTH
  attention = (
    2
    * HEADS
    * BLOCKS
    * (2 * TOKENS * (WIDTH // HEADS) + TOKENS**2 + TOKENS * (WIDTH // HEADS))
  )
  assert got.memory == weights * 111 + inputs + attention
  assert got.fits
  small = Cluster(1, memory=got.memory - 1)
  assert not estimate(phase_at, "ws", small, Parallel(), 2, sizes=sizes).fits
  # A pipeline holds the activations of every microbatch of its stage.
  piped = [
    estimate(phase_at, "ws", Cluster(2), Parallel(pipeline=2, microbatches=u),
             8, sizes=sizes).memory
    for u in (1, 4)
  ]  # fmt: skip
  assert piped[0] == piped[1]


def test_the_sweep_tries_every_way_and_puts_the_best_first():
  cluster = Cluster(8, per_node=4)
  ways = estimate_all(phase_at, "ws:16x16", cluster, 32, microbatches=(1, 4))
  used = {(e.parallel.data, e.parallel.tensor, e.parallel.pipeline)
          for e in ways}  # fmt: skip
  assert used == {w for w in factors(8) if w[2] <= BLOCKS}
  assert all(e.fits for e in ways)
  assert [e.ns for e in ways] == sorted(e.ns for e in ways)
  alone = estimate(phase_at, "ws:16x16", Cluster(1), Parallel(), 32)
  assert alone.ns / 8 < ways[0].ns
  tight = dataclasses.replace(cluster, memory=ways[0].memory - 1)
  again = estimate_all(phase_at, "ws:16x16", tight, 32, microbatches=(1, 4))
  flags = [e.fits for e in again]
  assert flags == sorted(flags, reverse=True) and not all(flags)


@given(st.integers(1, 60))
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
  with pytest.raises(ValueError, match="'blocks/0/mlp/fc2': K=8 .* divisor"):
    shard(Layers.of([{"name": "blocks/0/mlp/fc2", "M": 1, "N": 1, "K": 8,
                      "pattern": "1:8"}]), 2)  # fmt: skip
  wrong = (-1, math.nan, math.inf, "2", None, True)
  for field in dataclasses.fields(Cluster):
    fix = "an integer" if field.name in ("devices", "per_node") else "a number"
    zero = () if field.name.endswith("latency") else (0,)
    for value in (*wrong, *zero):
      why = f"Cluster {field.name}: expected {fix} .*, got {value!r}"
      with pytest.raises(ValueError, match=why):
        unhooked(Cluster(2), field.name, value)
  assert Cluster(2, intra_latency=0, inter_latency=0.5).link(9)[1] == 0.5
  for kind in (Parallel, BytesPerValue):
    for field in dataclasses.fields(kind):
      for value in (-1, 1.5, math.nan, "2", None):
        why = f"{kind.__name__} {field.name}: expected"
        with pytest.raises(ValueError, match=why):
          unhooked(kind(), field.name, value)
  with pytest.raises(
    ValueError, match="Cluster intra: expected a number above 0, got 0"
  ):
    Cluster(2, intra=0)
  with pytest.raises(
    ValueError, match="Parallel tensor: expected an integer above 0, got 0"
  ):
    Parallel(tensor=0)
  with pytest.raises(ValueError, match="no way to use 7 devices; .* = 7"):
    estimate_all(phase_at, "ws", Cluster(7), 8)
