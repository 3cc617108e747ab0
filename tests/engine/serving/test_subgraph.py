"""The cost of serving with a cached sub-graph, and the choice of one."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import Energy, Layers, cost, parse
from figs_jax.engine.serving.buffer import best_subgraph, savings
from figs_jax.engine.serving.subgraph import nested_model

ROWS = [
  {"name": "embed", "M": 6, "N": 24, "K": 30},
  {"name": "qk", "M": 6, "N": 6, "K": 8, "count": 3},
  {"name": "fc1", "M": 6, "N": 20, "K": 36, "pattern": "1:8", "count": 2},
  {"name": "fc2", "M": 5, "N": 10, "K": 64, "pattern": "1:8"},
]
POINTS = "1:8", "2:8", "4:8", "8:8"
ENGINES = (
  "ws:8x8",
  "ws:8x8:dram_bw=3",
  "ws:8x8:sparse=false:dram_bw=2",
  "os:8x4:dram_bw=1:overlap=full",
  "vegeta-s-2-2:dram_bw=5",
  "figs:8x8:dram_bw=2",
  "gpu:h200",
  "tensorcore:a100",
  "trainium2",
  "nm-spmm:a100",
  "csr:h200",
  "csr:mine:peak=10:hbm=1:reuse=false",
)


def table_at(point):
  """The layers with a pattern where they are sparse."""
  return Layers.of(
    [row | ({"pattern": point} if "pattern" in row else {}) for row in ROWS]
  )


def index_bytes(spec):
  """What the dense point of one file reads beyond a dense file: 3 bits each.

  Engines that run patterns dense, or whose dense weights have indices already,
  read no more.
  """
  sparse = cost(table_at("1:8"), spec).metadata_bytes
  dense = cost(table_at("8:8"), spec).metadata_bytes
  kept = [0, 0, math.ceil(36 * 20 * 3 / 8), math.ceil(64 * 10 * 3 / 8)]
  more = np.where(sparse > 0, np.maximum(kept - dense, 0), 0)
  return int((more * [1, 1, 2, 1])[2:].sum())


@pytest.mark.parametrize("spec", ENGINES)
def test_without_a_buffer_it_is_the_plain_engine(spec):
  model = nested_model(ROWS, spec, POINTS)
  got = model.query()
  for i, point in enumerate(POINTS):
    plain = cost(table_at(point), spec)
    more = index_bytes(spec) if point == "8:8" else 0
    assert got.dram_bytes[i] == plain.total("dram_bytes") + more
    assert got.energy_pj[i] == pytest.approx(
      plain.total("energy_pj") + 160 * more, rel=1e-12
    )
    if not more:
      assert got.cycles[i] == plain.total("cycles")
  # A file of one point is read as the plain engine reads it, dense or not.
  for point in POINTS:
    alone = nested_model(ROWS, spec, [point]).query()
    plain = cost(table_at(point), spec)
    assert alone.cycles.tolist() == [plain.total("cycles")]
    assert alone.dram_bytes.tolist() == [plain.total("dram_bytes")]


@pytest.mark.parametrize("spec", ENGINES)
def test_with_all_weights_on_chip_no_weight_moves(spec):
  model = nested_model(ROWS, spec, POINTS)
  best = best_subgraph(model, int(model.weight_bytes[-1]))
  assert best.gap == 0 and best.size == model.weight_bytes[-1]
  engine = parse(spec)
  gemms = [table_at(point).gemm for point in POINTS]
  kept = [
    (engine.activation_bytes(gemm, engine.itemsize) * [1, 3, 2, 1]).sum()
    for gemm in gemms
  ]
  qk = cost([ROWS[1]], spec)
  second = 3 * int(
    qk.dram_bytes[0]
    - np.broadcast_to(engine.activation_bytes(gemms[0], engine.itemsize), 4)[1]
  )  # the second operand of qk is no weight
  moved = model.query(best.cached).dram_bytes
  assert moved.tolist() == [x + second for x in kept]


def brute_force(model, cached, bandwidth, itemsize=2):
  """Cycles and bytes of each point of an array, layer by layer in Python."""
  results = []
  for i in range(len(model.points)):
    cycles = moved_in_all = 0
    for layer in range(len(model.names)):
      weights = [int(x) for x in model.slices[:, layer]]
      moved = int(model.activations[i, layer])
      for rank, size in enumerate(weights):
        if rank <= i and rank >= cached[layer]:
          moved += size
      on_chip = int(model.on_chip[i, layer])
      wait = max(math.ceil(moved / bandwidth) - on_chip, 0)
      count = int(model.count[layer])
      cycles += (on_chip + wait) * count
      moved_in_all += moved * count
    results.append((cycles, moved_in_all))
  return results


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_queries_against_a_loop_over_layers(data):
  model = nested_model(ROWS, "ws:8x8", POINTS)
  layers = len(model.names)
  depth = st.lists(st.integers(0, 4), min_size=layers, max_size=layers)
  cached = np.array(data.draw(st.lists(depth, min_size=2, max_size=2)))
  bandwidth = np.array(
    data.draw(st.lists(st.integers(1, 40), min_size=3, max_size=3))
  )
  got = model.query(cached[:, None], bandwidth)  # (2, 3, P) at once
  assert got.cycles.shape == (2, 3, 4)
  for i, j in np.ndindex(2, 3):
    expected = brute_force(model, cached[i], int(bandwidth[j]))
    assert got.cycles[i, j].tolist() == [x for x, _ in expected]
  moved = [x for _, x in brute_force(model, cached[0], 1)]
  assert got.dram_bytes[0, 0].tolist() == moved
  plain = model.query().energy_pj
  saved = model.query().dram_bytes - got.dram_bytes[0, 0]
  assert np.allclose(got.energy_pj[0, 0], plain - 160 * saved, rtol=1e-12)
  # A change reads what is new, and nothing else.
  change = model.change(cached[0], cached[1], 7)
  read = sum(
    int(model.slices[rank, layer])
    for layer in range(layers)
    for rank in range(cached[0, layer], cached[1, layer])
  )
  assert change.dram_bytes == read
  assert change.cycles == math.ceil(read / 7)
  assert change.energy_pj == 160 * read


def test_slices_by_hand():
  """K = 36 is 4 groups of 8 and one of 4: 5, 10, 20, 36 of 36 rows are kept."""
  model = nested_model(ROWS, "ws:8x8", POINTS)
  assert model.names == ("embed", "qk", "fc1", "fc1", "fc2")
  kept = [5, 10, 20, 36]
  expected = [20 * k * 2 + math.ceil(20 * k * 3 / 8) for k in kept]
  assert model.weights[1:, 2].tolist() == expected
  assert model.weights[1:, 0].tolist() == [24 * 30 * 2] * 4  # a dense layer
  assert model.weights[1:, 1].tolist() == [0] * 4  # has no weight


def small(seed):
  """A model of up to 4 layers of random slices, and a mix."""
  rng = np.random.default_rng(seed)
  layers, points = rng.integers(1, 5), rng.integers(1, 4)
  base = nested_model(
    [{"name": str(i), "M": 1, "N": 4, "K": 8} for i in range(layers)],
    "ws:8x8:dram_bw=3",
    POINTS[:points],
  )
  slices = rng.integers(0, 30, (points, layers))
  weights = np.concatenate([np.zeros((1, layers), int), slices.cumsum(0)])
  return dataclasses.replace(
    base,
    weights=weights,
    activations=rng.integers(0, 9, (points, layers)),
    on_chip=rng.integers(0, 12, (points, layers)),
  ), rng.integers(0, 4, points).tolist()


@pytest.mark.parametrize("objective", ["bytes", "latency"])
def test_the_chosen_subgraph_against_all(objective):
  gaps = []
  for seed in range(60):
    model, mix = small(seed)
    layers, points = len(model.names), len(model.points)
    buffers = np.arange(0, int(model.weight_bytes[-1]) + 5, 7)
    best = best_subgraph(model, buffers, mix, objective)
    assert (best.size <= buffers).all()
    assert (best.size == model.cached_bytes(best.cached)).all()
    choices = np.array(
      list(itertools.product(range(points + 1), repeat=layers))
    )
    sizes = model.cached_bytes(choices)
    before, after = model.query(), model.query(choices)
    name = {"bytes": "dram_bytes", "latency": "cycles"}[objective]
    saved = ((getattr(before, name) - getattr(after, name)) * mix).sum(-1)
    # The saving is that of the queries, and no choice passes the bound.
    at = [int(np.flatnonzero((choices == x).all(1))[0]) for x in best.cached]
    assert saved[at].tolist() == best.saving.tolist()
    optimum = np.array([saved[sizes <= B].max() for B in buffers])
    assert (best.saving <= optimum).all() and (optimum <= best.bound).all()
    # Its gap is below what the step saves that no longer fits.
    steps = np.diff(savings(model, mix, objective), axis=0).max(initial=0)
    if objective == "bytes":
      assert (best.gap <= steps).all()
    gaps += (
      (optimum - best.saving)[optimum > 0] / optimum[optimum > 0]
    ).tolist()
  assert np.mean(np.array(gaps) == 0) > 0.5  # mostly the optimum itself
  assert max(gaps) <= 0.5


def test_the_saving_rises_with_the_buffer_to_all_weights():
  model = nested_model(ROWS, "ws:8x8:dram_bw=1", POINTS)
  total = int(model.weight_bytes[-1])
  best = best_subgraph(model, np.linspace(0, total, 20).astype(int))
  moved = model.query(best.cached).dram_bytes
  assert moved[0].tolist() == model.query().dram_bytes.tolist()
  saved = moved[0] - moved
  assert saved[-1].tolist() == model.weight_bytes.tolist()
  # One query of each: it takes the first ranks first, all of density 4.
  first = model.weights[1].sum()
  fits = best_subgraph(model, int(first))
  assert fits.cached.tolist() == [1 if x else 0 for x in model.weights[1]]
  assert fits.saving == 4 * first


def test_the_density_decides_and_not_the_rank_alone():
  model, _ = small(3)
  only_dense = [0] * (len(model.points) - 1) + [1]
  values = savings(model, only_dense)
  assert (values == model.weights).all()


def test_counts_past_2_to_the_53_stay_exact():
  rows = [{"name": "a", "M": 2**40 + 1, "N": 3, "K": 2**12 + 1}]
  model = nested_model(rows, "ws:8x8", ["4:4"])
  assert model.query().dram_bytes[0] == cost(rows, "ws:8x8").dram_bytes[0]
  assert model.query().dram_bytes[0] > 2**53


def test_energy_and_size_of_values_are_the_caller_s():
  energy = Energy(dram_byte=7.0)
  model = nested_model(ROWS, "ws:8x8", POINTS, itemsize=1, energy=energy)
  plain = cost(table_at("2:8"), "ws:8x8", 1, energy)
  assert model.query().energy_pj[1] == pytest.approx(plain.total("energy_pj"))
  assert model.dram_byte == 7.0


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: nested_model(ROWS, "ws", "2:8,1:8"), "ascending n of one m"),
    (lambda: nested_model(ROWS, "ws", "1:4,2:8"), "ascending n of one m"),
    (lambda: nested_model(ROWS, "ws", "8"), "Invalid N:M pattern '8'"),
    (
      lambda: nested_model(
        [{"name": "a", "M": 1, "N": 1, "K": 8, "count": 2**21}], "ws", "1:8"
      ),
      "write a smaller count",
    ),
    (
      lambda: nested_model(ROWS, "ws", "1:8").query(np.array([1, 2])),
      "expected integers of shape (..., 5)",
    ),
    (
      lambda: nested_model(ROWS, "ws", "1:8").query(np.array([0] * 4 + [2])),
      "expected from 0 to 1 slices",
    ),
    (
      lambda: best_subgraph(nested_model(ROWS, "ws", "1:8"), -1),
      "integers of at least 0",
    ),
    (
      lambda: best_subgraph(nested_model(ROWS, "ws", "1:8"), 1, [1, 2]),
      "one per point",
    ),
    (
      lambda: best_subgraph(nested_model(ROWS, "ws", "1:8"), 1, [1], "speed"),
      "one of bytes, latency",
    ),
    (
      lambda: nested_model(ROWS, "ws", "1:8").query(bandwidth=0),
      "bandwidth: expected integers from 1",
    ),
  ],
)
def test_mistakes_are_named(call, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    call()
