"""Clocked arrays: the product, and the cycles and words of the closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.transposable import transposable_nm_mask
from figs_jax.engine import Figs, Gemm, Vegeta, parse
from figs_jax.engine.figs import EXCHANGES
from figs_jax.engine.simulator._simulate import simulate
from figs_jax.engine.spec import OVERLAPS, UNLIMITED

laws = settings(deadline=None, max_examples=30)
COUNTED = ("cycles", "ifmap_reads", "filter_reads", "ofmap_writes")


def operands(seed, M, N, K, nm, group=1):
  """Integers, and a mask that keeps n of every m rows, shared by `group`.

  A last group that K cuts keeps as many as a packed weight stores.
  """
  rng = np.random.default_rng(seed)
  score = rng.random((-(-K // nm.m) * nm.m, -(-N // group)))
  score[K:] = 2
  score = score.reshape(-1, nm.m, score.shape[1])
  mask = (score.argsort(1).argsort(1) < nm.n).reshape(-1, score.shape[2])[:K]
  mask = mask.repeat(group, 1)[:, :N]
  x, w = rng.integers(-99, 100, (M, K)), rng.integers(-99, 100, (K, N))
  return x, np.where(mask, w, 0), mask


def check(engine, pattern, x, w, mask):
  """Simulates, and compares with NumPy and with the closed form."""
  nm = NM.parse(pattern)
  result = simulate(x, w, engine, nm, mask)
  np.testing.assert_array_equal(result.product, x @ w)
  (M, K), N = x.shape, w.shape[1]
  gemm = Gemm(M, N, K, np.array([nm.n]), np.array([nm.m]))
  want = engine.counts(gemm, masks=[mask])
  for name in COUNTED:
    assert getattr(result, name) == want[name][0], name
  return result


@pytest.mark.parametrize(
  "spec, pattern, M, N, K",
  [
    # The default array at its patterns, and where a port, load or hop is slow.
    ("figs:32x16", "dense", 16, 20, 70),
    ("figs:32x16", "1:2", 16, 40, 70),
    ("figs:32x16", "1:4", 16, 128, 64),
    ("figs:32x16", "1:8", 7, 130, 64),
    ("figs:32x16", "2:8", 16, 64, 70),
    ("figs:32x16", "3:8", 5, 64, 64),
    ("figs:32x16", "4:8", 5, 40, 64),
    ("figs:32x16", "1:16", 5, 130, 64),
    ("figs:32x16", "3:32", 5, 64, 64),
    ("figs:32x16:overlap=weights", "1:4", 16, 65, 64),
    ("figs:32x16:overlap=full", "1:4", 16, 128, 70),
    ("figs:32x16:overlap=full:load=8", "2:4", 16, 64, 70),
    ("figs:32x16:sigma=1", "1:4", 16, 65, 64),
    ("figs:32x16:bw_in=8:bw_out=40", "1:4", 9, 65, 64),
    ("figs:32x16:block=8:overlap=full", "dense", 16, 20, 64),
    ("figs:32x16:exchange=swap", "1:4", 9, 65, 64),
    ("figs:32x16:exchange=swap:overlap=full", "2:8", 9, 65, 64),
    ("figs:32x16:alpha=3:exchange=swap:overlap=full:load=4", "1:8", 4, 65, 64),
    # Several MACs share a register.
    ("figs:8x2:alpha=3:beta=2", "1:4", 9, 20, 20),
    ("figs:8x2:alpha=3:beta=2:exchange=swap", "1:4", 9, 20, 20),
    ("figs:8x2:alpha=3:beta=2:exchange=swap:mask_group=2", "2:4", 9, 20, 20),
    ("figs:8x2:alpha=4:beta=2:sigma=2:overlap=full", "2:5", 9, 20, 20),
    # VEGETA's engines.
    ("vegeta-s-2-2:8x4", "2:4", 9, 9, 40),
    ("vegeta-s-2-2:8x4:overlap=full:tile=4:interleave=2", "1:4", 12, 9, 40),
    ("vegeta-s-2-2:8x4:overlap=weights:bw_in=9", "3:4", 9, 9, 20),
    # Tiles that stream for less than a load, whose sums do not wait for it.
    ("vegeta-s-2-2:8x4:overlap=full:tile=3:interleave=1", "2:4", 9, 9, 40),
    # A row has no place for two weights of a block, but for one.
    ("vegeta-s-2-1:1x4", "2:4", 9, 9, 10),
    ("vegeta-s-2-1:1x4", "1:4", 9, 9, 10),
    ("vegeta-d-2-2:8x4", "1:4", 9, 9, 20),
    ("vegeta-d-2-2:8x4:overlap=full:bw_out=3", "dense", 9, 9, 20),
  ],
)
def test_named_arrays(spec, pattern, M, N, K):
  engine = parse(spec)
  nm = NM(1, 1) if pattern == "dense" else NM.parse(pattern)
  group = engine.mask_group if isinstance(engine, Figs) else 1
  check(engine, nm, *operands(0, M, N, K, nm, group))


@pytest.mark.parametrize(
  "spec, block, patterns",
  [
    ("figs:8x2", 8, ["3:8", "1:8"]),
    ("figs:8x2", 4, ["1:4", "3:4"]),
    ("figs:8x3:alpha=3:beta=2:load=3:overlap=full", 4, ["2:4", "1:16"]),
    ("vegeta-s-2-2:8x4", 4, ["1:2", "1:4", "3:8"]),
    ("vegeta-s-2-1:3x4", 4, ["2:4"]),
    ("vegeta-s-2-1:3x4", 1, ["4:4"]),
  ],
)
def test_a_block_that_k_cuts_takes_the_place_of_a_whole_one(
  spec, block, patterns
):
  engine = parse(spec)
  for pattern in patterns:
    nm = NM.parse(pattern)
    for K in (1, nm.n, nm.m - 1, nm.m + 1, 2 * nm.m + nm.n):
      x, w, mask = operands(K, 3, 7, K, nm)
      result = check(engine, nm, x, w, mask)
      # Without the mask, what its fullest block may hold decides.
      whole = -(-K // block) * block
      worst, padded = (
        engine.counts(Gemm(3, 7, depth, nm.n, nm.m))["cycles"]
        for depth in (K, whole)
      )
      assert worst == padded
      assert result.cycles == worst or (result.cycles < worst and nm.n > K)


@st.composite
def figs_designs(draw):
  exchange = draw(st.sampled_from(EXCHANGES))
  powers = exchange == "swap"
  alpha = draw(st.sampled_from([0, 1, 3, 7]) if powers else st.integers(0, 7))
  cols, beta = draw(st.sampled_from([(2, 2), (3, 1)]))
  fields = {
    "rows": 8,
    "cols": cols,
    "alpha": alpha,
    "beta": beta,
    "exchange": exchange,
    "mask_group": draw(st.sampled_from([1, beta])),
    "sigma": draw(st.integers(0, 2)),
    "load": draw(st.sampled_from([1, 3, 8])),
    "overlap": draw(st.sampled_from(OVERLAPS)),
    "bw_in": draw(st.sampled_from([2, 3, UNLIMITED])),
    "bw_out": draw(st.sampled_from([3, 8, UNLIMITED])),
  }
  m = draw(st.sampled_from([1, alpha + 1, 2 * alpha + 2]))
  return fields, (draw(st.integers(1, m)), m)


@laws
@given(st.integers(1, 16), st.integers(1, 12), st.integers(1, 20),
       figs_designs(), st.integers(0, 10**6))  # fmt: skip
def test_figs_is_its_closed_form(M, N, K, design, seed):
  fields, (n, m) = design
  engine, nm = Figs(**fields), NM(n, m)
  check(engine, nm, *operands(seed, M, N, K, nm, engine.mask_group))


@st.composite
def vegeta_designs(draw):
  sparse, alpha, beta = draw(
    st.sampled_from([(True, 2, 2), (True, 4, 4), (False, 2, 2)])
  )
  return {
    "sparse": sparse,
    "alpha": alpha,
    "beta": beta,
    "rows": 8,
    "cols": 4,
    "overlap": draw(st.sampled_from(OVERLAPS)),
    "tile": draw(st.sampled_from([3, 8, UNLIMITED])),
    "interleave": draw(st.integers(0, 3)),
    "bw_in": draw(st.sampled_from([5, UNLIMITED])),
    "bw_out": draw(st.sampled_from([3, UNLIMITED])),
  }


@laws
@given(
  st.integers(1, 16),
  st.integers(1, 8),
  st.integers(1, 20),
  vegeta_designs(),
  st.integers(0, 10**6),
  st.sampled_from(["1:1", "1:2", "1:4", "2:4", "3:4", "1:8", "3:8"]),
)
def test_vegeta_is_its_closed_form(M, N, K, fields, seed, pattern):  # fmt: skip
  nm = NM.parse(pattern)
  check(Vegeta(**fields), nm, *operands(seed, M, N, K, nm))


@laws
@given(st.integers(1, 9), st.integers(1, 8), st.integers(9, 20),
       st.sampled_from([(True, 2, 2), (False, 2, 2)]), st.integers(1, 3),
       st.integers(1, 3), st.sampled_from([3, UNLIMITED]))  # fmt: skip
def test_sums_of_tiles_shorter_than_a_load_do_not_wait_for_it(
  M, N, K, kind, tile, interleave, bw_out
):
  engine = Vegeta(
    *(*kind, 8, 4, "full"), tile=tile, interleave=interleave, bw_out=bw_out
  )
  check(engine, NM(1, 1), *operands(0, M, N, K, NM(1, 1)))


@pytest.mark.parametrize("n", [4, 2, 1])
def test_a_tile_of_vegetas_rtl(n):
  # K_c = 32, M_c = 16, alpha = beta = 2, T = 16: 16 to load, 43 to the end.
  engine = Vegeta(True, 2, 2, rows=32, cols=16)
  nm = NM(n, 4)
  result = check(engine, nm, *operands(n, 16, 16, 32 * 4 // n, nm))
  assert result.cycles == 16 + 43


@pytest.mark.parametrize("pattern", ["1:4", "2:8"])
def test_pruned_weights_swap_as_long_as_their_masks_ask(pattern):
  nm = NM.parse(pattern)
  rng = np.random.default_rng(3)
  x, w = rng.integers(-9, 10, (16, 64)), rng.integers(1, 10, (64, 64))
  engine = Figs(32, 16, exchange="swap", overlap="full", alpha=nm.m - 1)
  cycles = {}
  for name, prune in [("plain", nm_mask), ("both", transposable_nm_mask)]:
    mask = np.asarray(prune(w.astype(np.float32), nm))
    result = check(engine, nm, x, np.where(mask, w, 0), mask)
    cycles[name] = result.cycles
  mux = Figs(32, 16, overlap="full", alpha=nm.m - 1)
  fast = check(mux, nm, x, np.where(mask, w, 0), mask).cycles
  worst = int(engine.counts(Gemm(16, 64, 64, nm.n, nm.m))["cycles"])
  assert fast <= cycles["both"] < cycles["plain"] <= worst
  if nm.n == 1:  # A tile of a mask along two axes is a permutation.
    assert cycles["both"] == fast


@pytest.mark.parametrize("spec", ["figs:8x2", "vegeta-s-2-2:8x4"])
def test_dense_is_a_pattern_and_an_empty_mask_a_weight_of_zeros(spec):
  x, w, _ = operands(0, 9, 20, 20, NM(1, 1))
  dense, same = simulate(x, w, spec), simulate(x, w, spec, "dense")
  assert dense.cycles == same.cycles
  empty = simulate(x, 0 * w, spec, "2:4")
  assert not empty.product.any() and 0 < empty.cycles < dense.cycles


def test_floats_and_masks_that_are_not_given():
  x, w, _ = operands(0, 9, 20, 20, NM(1, 4))
  engine = "figs:8x2:alpha=3:beta=2"
  result = simulate(x / 8, w / 4, engine, "1:4")  # exact in float64
  np.testing.assert_array_equal(result.product, x / 8 @ (w / 4))
  assert result.product.dtype == np.float64
  mixed = simulate(x, w / 4, engine, "1:4")
  np.testing.assert_array_equal(mixed.product, x @ (w / 4))


@pytest.mark.parametrize(
  "engine, pattern, change, why",
  [
    ("ws:8x8", "1:4", {}, "expected a FIGS or VEGETA array, got ws:8x8"),
    ("figs:8x2:dram_bw=4", "1:4", {}, "bounds the memory"),
    (Figs(np.array([8, 16]), 2), "1:4", {}, "expected a single design"),
    ("figs:8x2", "1:4", {"x": np.ones((3, 5), int)}, r"x \(M, K\) and w \(K"),
    ("figs:8x2", "1:4", {"x": np.ones((3, 8), complex)}, "integers or floats"),
    ("figs:8x2", "1:4", {"mask": np.ones((8, 3), int)}, r"bool \(K, N\)"),
    ("figs:8x2", "1:4", {"mask": np.zeros((8, 3), bool)}, "not zero outside"),
    ("figs:8x2", "1:4", {}, "column 0 keeps 4 of the 4 rows from 0 on"),
    ("figs:4x2", "1:8", {"w": np.zeros((8, 3), int)}, "longer than rows=4"),
  ],
)
def test_what_cannot_be_clocked_is_refused(engine, pattern, change, why):
  operands = {"x": np.ones((3, 8), int), "w": np.ones((8, 3), int)}
  with pytest.raises(ValueError, match=why) as error:
    simulate(**operands | change, engine=engine, pattern=pattern)
  assert "\n" not in str(error.value)
