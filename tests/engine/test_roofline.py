"""Rooflines: laws, data sheets, and published ratios of 2:4 to dense."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.engine import Csr, Roofline, TensorCore, cost, parse
from figs_jax.engine.chips import CHIPS
from figs_jax.engine.csr import intensity
from figs_jax.engine.timing import PARTS
from tests.engine.counting import counts

laws = settings(deadline=None, max_examples=50)
sizes = st.integers(1, 2**17)
tiny, short = st.integers(1, 12), st.integers(1, 40)
HALF, WHOLE = (2, 4), (4, 4)


@st.composite
def patterns(draw):
  m = draw(st.sampled_from([1, 2, 4, 8, 12, 32]))
  return NM(draw(st.integers(1, m)), m)


def one_call(M, N, K, halves, itemsize, rate, hbm, side):
  """ns, FLOPs, bytes and bytes of indices of operands that are laid out."""

  def padded(size, by):
    return np.ones(size + -size % by)

  rows, cols, deep = (padded(size, side) for size in (M, N, K))
  stored = np.ones((K, N))
  codes = np.zeros(0, np.uint8)
  if halves:
    # Of every four, the last ones padded, the first two stay.
    deep = padded(deep.size, 4).reshape(-1, 4)[:, :2].ravel()
    stored = np.pad(stored, ((0, -K % 4), (0, 0))).reshape(-1, 4, N)[:, :2]
    codes = np.packbits(np.zeros(2 * stored.size, bool))  # 2 bits each
  # A product of ones counts its own multiplications.
  product = np.outer(rows, deep) @ np.outer(deep, cols)
  kind = {1: np.int8, 2: np.int16}[itemsize]
  arrays = np.ones((M, K)), stored, np.ones((M, N))
  moved = sum(array.astype(kind).nbytes for array in arrays) + codes.nbytes
  flops = 2 * int(product.sum())
  time = max(math.ceil(Fraction(flops, rate)), math.ceil(Fraction(moved, hbm)))
  return time + 70 + 30 * halves, flops, moved, codes.nbytes


@laws
@given(short, short, short, patterns(), st.sampled_from([1, 2]),
       st.integers(1, 10**4), st.integers(1, 10**3),
       st.sampled_from([1, 3, 16]), st.booleans(),
       st.booleans())  # fmt: skip
@example(1, 1, 1, NM(2, 4), 2, 1, 10**4, 1, True, False)  # one weight, padded
@example(9, 9, 9, NM(2, 4), 2, 1, 10**4, 1, True, True)  # the sparse call wins
@example(7, 7, 31, NM(1, 2), 1, 80, 11, 3, True, True)  # both take as long
def test_a_call_takes_what_its_operands_do(
  M, N, K, nm, itemsize, peak, hbm, side, sparse, fallback
):
  chip = "x", peak, hbm, side, 70
  engine = Roofline("gpu", *chip)
  if sparse:
    engine = TensorCore(*chip, 30, fallback, ideal=True)
  fallback = fallback and sparse
  got = counts(M, N, K, engine, nm.n, nm.m, itemsize)
  machine = itemsize, peak, hbm, side
  # The most that a block of four may hold, of all places that n:m allows.
  group = np.arange(math.lcm(4, nm.m)) % nm.m < nm.n
  fullest = group.reshape(-1, 4).sum(1).max()
  want = one_call(M, N, K, sparse and fullest <= 2, *machine)
  if fallback:
    # Of two equal times the dense call's.
    dense = one_call(M, N, K, False, *machine)
    want = min(dense, want, key=lambda call: call[0])
  names = ("cycles", "flops", "dram_bytes", "metadata_bytes")
  assert tuple(int(got[name]) for name in names) == want


@laws
@given(sizes, sizes, sizes, patterns(), st.sampled_from([1, 2]),
       st.integers(1, 10**6), st.integers(1, 10**4),
       st.sampled_from([1, 3, 16, 128]), st.booleans(),
       st.booleans())  # fmt: skip
@example(2**17, 2**17, 2**17, NM(2, 4), 1, 3, 10**4, 1, True, False)
def test_parts_add_up_and_only_kept_weights_are_useful(
  M, N, K, nm, itemsize, peak, hbm, side, sparse, fallback
):
  chip = "x", peak, hbm, side, 70
  engine = Roofline("gpu", *chip)
  if sparse:
    engine = TensorCore(*chip, 30, fallback, ideal=True)
  fallback = fallback and sparse
  got = counts(M, N, K, engine, nm.n, nm.m, itemsize)
  assert got["cycles"] == sum(got[part] for part in PARTS)
  kept = np.count_nonzero(np.arange(K) % nm.m < nm.n)
  assert 0 < got["utilisation"] <= 1
  useful = 2 * M * N * kept / (int(got["cycles"]) * peak)
  np.testing.assert_allclose(got["utilisation"], useful, rtol=1e-12)


@pytest.mark.parametrize(
  "kind, chip", [(k, c) for k in ("tpu", "gpu", "tensorcore") for c in CHIPS[k]]
)
def test_a_preset_reads_its_data_sheet(kind, chip):
  ideal = ":ideal=true" if kind == "tensorcore" else ""
  engine, sheet = parse(f"{kind}:{chip}{ideal}"), CHIPS[kind][chip]
  assert (engine.peak, engine.hbm) == (sheet.peaks["bf16"], sheet.hbm)
  wide = kind == "tpu" and sheet.peaks["bf16"] > 500_000
  assert engine.side == (256 if wide else 128 if kind == "tpu" else 16)
  # A large cube runs at the peak; tensor cores take half of that at 2:4.
  size = 2**14
  row = {"name": "cube", "M": size, "N": size, "K": size}
  time = cost([row], engine).cycles[0]
  np.testing.assert_allclose(2 * size**3 / time, engine.peak, rtol=1e-4)
  ratio = time / cost([row | {"pattern": "2:4"}], engine).cycles[0]
  np.testing.assert_allclose(ratio, 1 + (kind == "tensorcore"), rtol=1e-4)


def test_every_key_is_read():
  spec = (
    "tensorcore:h200:peak=7:hbm=6:side=5:overhead=3:sparse_overhead=2"
    ":fallback=true:name=mine"
  )
  assert parse(spec) == TensorCore("h200", 7, 6, 5, 3, 2, True, name="mine")
  spec = (
    "csr:v5e:peak=7:hbm=6:value_bytes=2:index_bytes=1:pointer_bytes=8"
    ":reuse=false:name=mine"
  )
  assert parse(spec) == Csr("v5e", 7, 6, 2, 1, 8, False, name="mine")
  assert str(parse("tpu:v5e:overhead=9")) == "tpu:v5e:overhead=9"


@pytest.mark.parametrize(
  "spec, message",
  [
    ("tpu", "expected a chip, as in 'tpu:v3'"),
    ("tensorcore", "expected a chip, as in 'tensorcore:a100'"),
    ("tpu:v5", "unknown chip 'v5', did you mean 'v5"),
    ("tpu:h200", "unknown chip 'h200'.*[Kk]nown: ironwood"),
    ("tensorcore:v5e", "unknown chip 'v5e'"),
    ("csr:h10", "unknown chip 'h10', did you mean .*:peak= and :hbm="),
    ("gpu:h200:sparse=true", "unknown key 'sparse'"),
    ("gpu:h200:chip=a100", "unknown key 'chip'"),
    ("tpu:v5e:hbm=0", "hbm: expected integers from 1 .*got 0"),
    ("tpu:v5e:side=0", "side: .*got 0"),
    ("tpu:v5e:overhead=-1", "overhead: expected integers from 0 .*got -1"),
    ("tpu:v5e:peak=1e3", "peak='1e3': expected an integer"),
    ("tensorcore:h200:fallback=1", "fallback='1'.*[Kk]nown: false, true"),
    ("csr:h200:pointer_bytes=-4", "pointer_bytes: .*got -4"),
  ],
)
def test_a_bad_chip_or_key_is_one_line_with_the_fix(spec, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse(spec)
  assert repr(spec) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_metadata_is_2_bits_per_kept_value():
  for itemsize, share in [(2, 0.125), (1, 0.25)]:
    got = counts(64, 64, 64, parse("tensorcore:a100"), *HALF, itemsize)
    assert got["metadata_bytes"] == share * (itemsize * 64 * 32)


def test_patterns_that_tensor_cores_lack():
  engine = parse("tensorcore:h200")

  def of(n, m, masks=None):
    sizes = (np.array([size]) for size in (256, 64, 512))
    pattern = np.array([n]), np.array([m])
    return int(counts(*sizes, engine, *pattern, masks=masks)["cycles"][0])

  assert of(1, 2) == of(1, 16) == of(2, 8) == of(2, 4)
  assert of(3, 4) == of(3, 8) == of(4, 4) != of(2, 4)
  evenly = np.arange(512)[:, None] % 4 < np.ones((1, 64))  # 1:4
  assert of(3, 8, [evenly]) == of(2, 4)
  with pytest.raises(
    ValueError, match="pattern 1:6 does not fit.* blocks of 4"
  ):
    of(1, 6)
  with pytest.raises(ValueError, match="n <= m"):
    of(5, 4)
  # Weights of the pattern that a mask lacks are not useful.
  wide = TensorCore("x", 1, 10**6, ideal=True)
  M, N, K, n, m = (np.array([size]) for size in (256, 64, 512, 3, 4))
  assert counts(M, N, K, wide, n, m, masks=[evenly])["utilisation"] == 1
  # A chip without sparse units takes any pattern, and gains nothing.
  dense = parse("tpu:v5e")
  assert (
    counts(8, 8, 6, dense, 1, 6)["cycles"] == counts(8, 8, 6, dense)["cycles"]
  )


CHIP = "x", np.array([9, 70, 800]), np.array([4, 5, 6])
WAYS = {
  "fallback": TensorCore(*CHIP, 8, 7, 500, fallback=True),
  "sparse": TensorCore(*CHIP, 8, 7, np.array([0, 5000, 30])),
  "ideal": TensorCore(*CHIP, 8, ideal=True),
  "csr": Csr(*CHIP, np.array([1, 2, 4])),
}


@pytest.mark.parametrize("way", WAYS)
def test_traced_chips_sizes_and_patterns_agree_with_concrete_ones(way):
  engine = WAYS[way]
  M, N, K = (
    np.array([33, 17, 500]),
    np.array([2, 400, 60]),
    np.array([99, 256, 7]),
  )
  n, m = np.array([1, 2, 3]), np.array([16, 4, 4])
  want = counts(M, N, K, engine, n, m)
  args = jax.tree.map(jnp.asarray, (M, N, K, n, m, engine))
  axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, args)

  def one(M, N, K, n, m, engine):
    return counts(M, N, K, engine, n, m)

  for call in (one, jax.vmap(one, axes)):
    got = jax.jit(call)(*args)
    for name, value in want.items():
      np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_a_product_past_int64_is_refused():
  with pytest.raises(ValueError, match="does not fit int64"):
    counts(2**22, 2**22, 2**22, parse("tpu:v5e"))


class Bus:
  """Hands out arrays and counts their bytes, of whatever width a value has."""

  def __init__(self):
    self.bytes = 0

  def move(self, array, width):
    self.bytes += np.empty(np.shape(array), f"V{width}").nbytes
    return array


@laws
@given(tiny, tiny, short, patterns(), st.booleans(), st.integers(1, 8),
       st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))  # fmt: skip
def test_csr_bytes_are_those_of_a_product_row_by_row(
  M, N, K, nm, reuse, value, index, pointer, seed
):
  rng = np.random.default_rng(seed)
  score = rng.random((N, -(-K // nm.m) * nm.m))
  score[:, K:] = 2  # a last part keeps what a whole group would
  order = score.reshape(N, -1, nm.m).argsort(2).argsort(2)
  w = ((order < nm.n).reshape(N, -1)[:, :K]) * rng.integers(1, 9, (N, K))
  x = rng.integers(-9, 9, (M, K))
  # The CSR matrix: values and indices, and where each row ends.
  rows, indices = np.nonzero(w)
  values, ends = w[rows, indices], np.searchsorted(rows, np.arange(N), "right")
  matrix, dense, flops = Bus(), Bus(), 0
  out = np.zeros((M, N), int)
  for column, row in np.ndindex(M, N):
    # Kept in place, a row comes once, with the first dense column.
    bus = matrix if column == 0 or not reuse else Bus()
    end = bus.move(ends[row], pointer)
    here = slice(ends[row - 1] if row else 0, end)
    weights = bus.move(values[here], value)
    values_read = dense.move(x[column, bus.move(indices[here], index)], value)
    out[column, row] = dense.move(weights @ values_read, value)
    flops += 2 * len(weights)
  np.testing.assert_array_equal(out, x @ w.T)
  got = counts(
    M, N, K, Csr("x", 3, 2, value, index, pointer, reuse), nm.n, nm.m
  )
  moved = matrix.bytes + dense.bytes
  assert got["dram_bytes"] == moved
  stored = Bus()
  for array, width in ((indices, index), (ends, pointer)):
    stored.move(array, width)
  assert got["metadata_bytes"] == stored.bytes
  assert got["flops"] == flops
  assert got["cycles"] == sum(got[part] for part in PARTS)
  slower = max(Fraction(flops, 3), Fraction(moved, 2))
  assert got["cycles"] == math.ceil(slower)
  assert 0 < got["utilisation"] <= 1
  kept = len(values) / N
  columns = M if reuse else 1
  np.testing.assert_allclose(
    got["flops"] / got["dram_bytes"],
    intensity(kept, columns, value, index, pointer),
    rtol=1e-12,
  )


def test_intensity_of_the_tutorial():
  # 4-byte values and indices, long rows, no reuse: 2 / 12 whatever delta is.
  for pointer in (0, 4, 8):
    ratio = intensity(10**6, pointer_bytes=pointer)
    np.testing.assert_allclose(ratio, 0.167, atol=5e-4)
  engine = parse("csr:h200:reuse=false")
  got = counts(1000, 512, 8192, engine, 1, 8)
  ratio = got["flops"] / got["dram_bytes"]
  np.testing.assert_allclose(ratio, 1 / 6, rtol=2e-3)
  # Kept in place, A costs nothing in the end: 2 / B_T, less the results.
  np.testing.assert_allclose(intensity(10**6, 10**9), 1 / 2, rtol=1e-5)
  # Memory bounds it, on every chip.
  for chip in CHIPS["csr"]:
    got = counts(1000, 512, 8192, parse(f"csr:{chip}"), 1, 8)
    assert got["stall_dram"] > 0
