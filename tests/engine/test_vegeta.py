"""The closed form against the RTL's rows, the paper, and a walk of the tiles.

data/vegeta_rtl.csv holds cycles that the authors' RTL reported: M is the output
side M_c of the array, K its contraction side K_c, N the streamed rows T.
"""

import csv
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.engine import Vegeta, parse
from figs_jax.engine.spec import OVERLAPS, UNLIMITED
from figs_jax.engine.timing import PARTS
from figs_jax.engine.vegeta import (
  covered_rows,
  spmm_lines,
  spmm_speedup,
  tile_cycles,
  unstructured_speedup,
)
from tests.engine.counting import counts

DATA = pathlib.Path(__file__).parent / "data"
laws = settings(deadline=None, max_examples=80)
sizes = st.integers(1, 60)


@st.composite
def designs(draw, **fields):
  """The fields of an engine."""
  alpha, beta = draw(st.integers(1, 4)), draw(st.integers(1, 3))
  return {
    "sparse": draw(st.booleans()),
    "alpha": alpha,
    "beta": beta,
    "rows": beta * draw(st.integers(1, 6)),
    "cols": alpha * draw(st.integers(1, 4)),
    **{name: draw(value) for name, value in fields.items()},
  }


def design(alpha, beta, rows, cols, **fields):
  sides = {"alpha": alpha, "beta": beta, "rows": rows, "cols": cols}
  return {"sparse": True} | sides | fields


@st.composite
def patterns(draw):
  """What blocks of 4 can run: m a divisor or a multiple of 4."""
  m = draw(st.sampled_from([1, 2, 4, 8, 12, 32]))
  return NM(draw(st.integers(1, m)), m)


def test_rtl_rows_are_exact():
  with open(DATA / "vegeta_rtl.csv") as file:
    rows = list(csv.DictReader(file))
  table = {name: np.array([int(r[name]) for r in rows]) for name in rows[0]}
  M, N, K = table["N"], table["M"], table["K"]
  n = table["sparsityN"]
  engine = Vegeta(True, table["ALPHA"], 2, rows=K, cols=N)
  tile = tile_cycles(engine, M)
  assert len(rows) == 9
  np.testing.assert_array_equal(tile["load"], table["WL_cycles"])
  np.testing.assert_array_equal(tile["mode"], table["mode_cycles"])
  alone = tile["alone"] - tile["load"]
  np.testing.assert_array_equal(alone, table["start_to_end"])
  # The same through a GEMM of one tile, whose K is K_c {1, 2, 4}.
  got = counts(M, N, K * (4 // n), engine, n, 4)
  np.testing.assert_array_equal(got["cycles"], tile["alone"])
  one_more = counts(M, N, K * (4 // n) + 1, engine, n, 4)
  np.testing.assert_array_equal(one_more["cycles"], 2 * tile["alone"])


@pytest.mark.parametrize(
  "spec, mode",
  [
    ("vegeta-d-1-1", 65),
    ("vegeta-d-1-2", 49),
    ("vegeta-s-1-2", 49),
    ("vegeta-s-2-2", 41),
    ("vegeta-s-4-2", 37),
    ("vegeta-s-8-2", 35),
    ("vegeta-s-16-2", 34),
  ],
)
def test_engines_of_512_multipliers(spec, mode):
  engine = parse(spec)
  tile = tile_cycles(engine)
  assert tile["mode"] == mode
  assert tile["alone"] == tile["load"] + mode + 2
  depth = 32
  for n in (4, 2, 1):
    K = depth * 4 // n if engine.sparse else depth
    got = counts(16, 16, K, engine, n, 4)
    assert got["cycles"] == tile["alone"]
    # A is 16 x K, B K x 16, C 16 x 16: so many useful MACs in every mode.
    useful = got["utilisation"] * got["cycles"] * 512
    kept = 8192 if engine.sparse else 8192 * n / 4
    np.testing.assert_allclose(useful, kept, rtol=1e-12)


def test_interval_of_a_pipeline_of_tiles():
  # max(16, mode / d) at T = WL = 16, whose mode is 34.
  for d, interval in [(0, 16), (1, 34), (2, 17), (3, 16), (8, 16)]:
    engine = parse(f"vegeta-s-16-2:interleave={d}")
    assert tile_cycles(engine)["interval"] == interval
  # A load longer than the stream bounds it: WL = 32.
  assert tile_cycles(parse("vegeta-d-1-1:interleave=8"))["interval"] == 32
  # And so does a GEMM of many tiles, but for its first and last.
  for d in (0, 1, 2, 3):
    engine = parse(f"vegeta-s-16-2:overlap=full:tile=16:interleave={d}")
    few, many = (
      int(counts(16, 96, 128 * steps, engine, 1, 4)["cycles"])
      for steps in (10, 110)
    )
    interval = float(tile_cycles(engine)["interval"])
    assert many - few == 100 * 6 * interval


def by_tiles(M, N, K, engine, run):
  """Walks the tiles one after the other, with what each of them uses."""
  R, C, load = engine.rows, engine.cols, engine.rows // engine.beta
  hops, held = C // engine.alpha, {1: 1, 2: 2, 3: 4, 4: 4}[run]
  held = 4 if held > R else held
  depth = max(R, R // held * 4)
  length, d = min(engine.tile, M), engine.interleave
  enter = -(-R * (4 if engine.sparse else 1) // engine.bw_in)
  interval = max(enter, -(-C // engine.bw_out))
  steps = range(0, K, depth)
  lefts = range(0, N, C)
  starts = range(0, M, length)
  # Whole tiles in groups of d, then the last, shorter ones.
  whole = [(t, c) for t in starts for c in lefts if t + length <= M]
  short = [(t, c) for t in starts for c in lefts if t + length > M]
  size = d if d else 10**9
  groups = [
    part[i : i + size]
    for part in (whole, short)
    for i in range(0, len(part), size)
  ]
  serial, start, ends, words, left = 0, load, [load], np.zeros(3, int), {}
  for group in groups:
    for top, (t, c) in itertools.product(steps, group):
      rows = min(length, M - t)
      deep, wide = min(depth, K - top), min(C, N - c)
      words += rows * deep, rows * wide, 0
      words[2] += wide * sum(k % 4 < held for k in range(top, top + deep))
      stream = rows * interval
      serial += {"none": load, "weights": 0, "full": 0}[engine.overlap]
      serial += stream + load + hops + 1 + 2
      if d:
        start = max(start, left.get((t, c), 0))
      left[t, c] = start + load + stream + hops + 1
      start += max(stream, load)
      ends.append(start)
  if engine.overlap == "full":
    return ends[-1] + load + hops + 3, words
  return serial + (load if engine.overlap == "weights" else 0), words


@laws
@given(sizes, sizes, sizes,
       designs(overlap=st.sampled_from(OVERLAPS),
               tile=st.sampled_from([1, 3, 7, 16, UNLIMITED]),
               interleave=st.integers(0, 5),
               bw_in=st.sampled_from([1, 3, UNLIMITED]),
               bw_out=st.sampled_from([1, 2, UNLIMITED])),
       st.integers(1, 4))  # fmt: skip
@example(20, 9, 60, design(1, 1, 4, 4, overlap="full", tile=7, interleave=2), 1)
@example(5, 9, 60, design(4, 1, 12, 4, overlap="full", interleave=1), 3)  # T<WL
@example(9, 9, 60, design(4, 1, 1, 4), 2)  # no block of two fits in a row
def test_closed_form_is_the_sum_over_tiles(M, N, K, fields, n):
  engine = Vegeta(**fields)
  got = counts(M, N, K, engine, n, 4)
  run = n if engine.sparse else 4
  clock, words = by_tiles(M, N, K, engine, run)
  assert got["cycles"] == clock
  assert got["cycles"] == sum(got[part] for part in PARTS)
  names = ("ifmap_reads", "ofmap_writes", "filter_reads")
  assert [got[name] for name in names] == words.tolist()
  kept = K // 4 * n + min(K % 4, n)
  useful = M * N * kept / (clock * engine.rows * engine.cols)
  np.testing.assert_allclose(got["utilisation"], useful, rtol=1e-12)


@laws
@given(st.integers(1, 2**20), st.integers(1, 2**20), st.integers(1, 2**20),
       designs(overlap=st.sampled_from(OVERLAPS),
               interleave=st.integers(0, 9)), patterns())  # fmt: skip
@example(2**20, 2**20, 2**20, design(4, 2, 32, 16, overlap="full"), NM(1, 4))
def test_utilisation_never_passes_one(M, N, K, fields, nm):
  engine = Vegeta(**fields)
  got = counts(M, N, K, engine, nm.n, nm.m)
  assert 0 < got["utilisation"] <= 1
  kept = K // nm.m * nm.n + min(K % nm.m, nm.n)
  useful = M * N * kept / (int(got["cycles"]) * engine.rows * engine.cols)
  np.testing.assert_allclose(got["utilisation"], useful, rtol=1e-12)


def test_patterns_run_as_their_fullest_block():
  engine = parse("vegeta-s-2-2")

  def of(pattern, **options):
    nm = NM.parse(pattern)
    return counts(64, 64, 1024, engine, nm.n, nm.m, **options)

  names = ("cycles", "dram_bytes", "metadata_bytes", "filter_reads")
  same = [("1:4", "1:16"), ("2:4", "1:2"), ("4:4", "3:4"), ("4:4", "6:8"),
          ("2:4", "2:8"), ("1:1", "4:4")]  # fmt: skip
  for one, other in same:
    assert all(of(one)[name] == of(other)[name] for name in names)
  # Half of 4 dense values' bytes and 2 bits for each of the 2 kept.
  assert of("2:4")["filter_reads"] == 64 * 1024 // 2
  assert of("2:4")["metadata_bytes"] == 64 * 1024 // 2 // 4
  assert of("4:4")["metadata_bytes"] == 0
  with pytest.raises(
    ValueError, match="pattern 1:6 does not fit.* blocks of 4"
  ):
    of("1:6")
  with pytest.raises(ValueError, match="n <= m"):
    counts(8, 8, 8, engine, 5, 4)


def test_a_real_mask_decides_what_runs():
  rng = np.random.default_rng(0)
  mask = np.zeros((64, 8, 8), bool)
  order = rng.random(mask.shape).argsort(1)
  np.put_along_axis(mask, order[:, :2], True, 1)  # 2:8 somewhere
  mask = mask.reshape(512, 8)
  crowded = mask.reshape(128, 4, 8).sum(1).max()
  spread = np.zeros((512, 8), bool)
  spread[::4] = True  # 2:8, one of every 4
  assert crowded == 2
  engine = parse("vegeta-s-2-2:overlap=full")

  def of(n, *masks):
    sizes = (np.full(len(masks), size) for size in (64, 8, 512))
    pattern = np.full(len(masks), n), np.full(len(masks), 8)
    return counts(*sizes, engine, *pattern, masks=masks)

  worst, real, best = of(2, None, mask, spread)["cycles"]
  one_of_4 = int(counts(64, 8, 512, engine, 1, 4)["cycles"])
  assert worst == real > best == one_of_4
  empty = of(4, spread & False)  # runs one of every 4
  assert empty["cycles"] == one_of_4
  assert empty["utilisation"] == of(2, spread)["utilisation"]


def test_dense_engines_run_everything_dense():
  engine = parse("vegeta-d-1-2")
  dense, sparse = (counts(64, 64, 256, engine, n, 4) for n in (4, 1))
  for name in dense.keys() - {"utilisation"}:
    assert dense[name] == sparse[name]
  assert sparse["utilisation"] == dense["utilisation"] / 4
  # Even a pattern that no block of 4 can hold.
  assert counts(64, 64, 256, engine, 1, 6)["cycles"] == dense["cycles"]


def test_ports_and_memory_bound_the_engine():
  free = counts(64, 16, 128, parse("vegeta-s-1-2"), 1, 4)
  # 16 rows of PEs take 4 beta = 8 values each, in every mode.
  for n in (1, 2, 4):
    wide = counts(64, 16, 128, parse("vegeta-s-1-2:bw_in=128"), n, 4)
    assert wide["stall_input"] == 0
    half = counts(64, 16, 128, parse("vegeta-s-1-2:bw_in=127"), n, 4)
    assert half["stall_input"] == half["compute"]
  assert counts(64, 16, 32, parse("vegeta-d-1-2:bw_in=32"))["stall_input"] == 0
  assert counts(64, 16, 32, parse("vegeta-d-1-2:bw_in=31"))["stall_input"] == 64
  slow = counts(64, 16, 128, parse("vegeta-s-1-2:bw_out=4"), 1, 4)
  assert slow["cycles"] - free["cycles"] == slow["stall_output"] == 64 * 3
  starved = counts(64, 16, 128, parse("vegeta-s-1-2:dram_bw=1"), 1, 4)
  assert starved["cycles"] == free["dram_bytes"]


def test_traced_designs_sizes_and_patterns_agree_with_concrete_ones():
  engine = Vegeta(
    *(True, np.array([1, 2, 4]), 2, np.array([8, 16, 32]), 16, "full"),
    tile=np.array([5, 16, UNLIMITED]),
    interleave=np.array([0, 1, 2]),
    bw_in=np.array([7, 64, UNLIMITED]),
  )
  M, N, K = (
    np.array([33, 17, 5]),
    np.array([20, 40, 60]),
    np.array([99, 256, 7]),
  )
  n, m = np.array([1, 3, 2]), np.array([16, 4, 2])
  want = counts(M, N, K, engine, n, m)

  def one(M, N, K, n, m, engine):
    return counts(M, N, K, engine, n, m)

  args = jax.tree.map(jnp.asarray, (M, N, K, n, m, engine))
  axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, args)
  for call in (one, jax.vmap(one, axes)):
    got = jax.jit(call)(*args)
    for name, value in want.items():
      np.testing.assert_array_equal(got[name], value, err_msg=name)
  grid = counts(M[:, None], N[:, None], K[:, None], engine)
  assert grid["cycles"].shape == (3, 3)
  # Layers down, designs across.
  np.testing.assert_array_equal(
    grid["cycles"].diagonal(), counts(M, N, K, engine)["cycles"]
  )


def test_random_rows_need_what_chance_says():
  rng = np.random.default_rng(0)
  for p in (0.05, 0.10, 0.30):
    kept = rng.random((40_000, 16, 4)) < p
    fullest = kept.sum(-1).max(-1)
    for n in range(5):
      share = float(covered_rows(p, n))
      sigma = np.sqrt(share * (1 - share) / len(fullest))
      assert abs((fullest <= n).mean() - share) <= 4 * sigma + 1e-12
    cost = np.where(fullest <= 1, 1 / 4, np.where(fullest <= 2, 1 / 2, 1))
    np.testing.assert_allclose(1 / cost.mean(), unstructured_speedup(p), 0.01)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_every_row_of_two_blocks_weighed_by_its_chance(p):
  cost = 0.0
  for row in itertools.product((0, 1), repeat=8):
    chance = np.prod([p if kept else 1 - p for kept in row])
    need = max(sum(row[:4]), sum(row[4:]))
    cost += chance * {0: 1, 1: 1, 2: 2}.get(need, 4) / 4
  np.testing.assert_allclose(unstructured_speedup(p, 2), 1 / cost, rtol=1e-12)


def test_published_figures():
  speedups = unstructured_speedup(np.array([0.10, 0.05]))
  np.testing.assert_allclose(speedups, [2.364, 3.285], atol=5e-4)
  # A 1:4 tile: 16 + 2 lines of A, 64 of B, against 16 cycles of 4 each.
  assert spmm_lines(1) == 16 + 2 + 64
  np.testing.assert_allclose(spmm_lines(1) / 64, 1.281, atol=5e-4)
  assert spmm_speedup(4) == (1.09, 1.09)  # calibrated
  low, high = spmm_speedup(2)  # predicted; published 2.20
  assert low == high and abs(high / 2.20 - 1) < 0.01
  low, high = spmm_speedup(1)  # bracketed; published 3.74
  np.testing.assert_allclose([low, high], [3.40, 4.36], atol=5e-3)
  assert low < 3.74 < high
