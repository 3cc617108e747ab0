"""Data types: rates, sizes and energy, and what contradicts or is not there."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from figs_jax.engine import (
  AttentionShape,
  Energy,
  Gemm,
  Memory,
  attention_cost,
  cost,
  model_cost,
  parse,
  report,
  run_cost,
  step_cost,
  sweep,
)
from figs_jax.engine.chips import DTYPES

CUBE = {"name": "cube", "M": 4096, "N": 4096, "K": 4096}
FLOPS = 2 * 4096**3
SMALL = {"name": "ff", "M": 30, "N": 20, "K": 41, "pattern": "2:4"}


def tera(spec, **options):
  """TFLOP/s of a large product."""
  return FLOPS / cost([CUBE], spec, **options).cycles[0] / 1000


def test_an_a100_runs_each_type_at_its_own_peak():
  # NVIDIA A100 data sheet.
  sheet = {"float32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312, "int8": 624}
  for dtype, peak in sheet.items():
    np.testing.assert_allclose(tera("gpu:a100", dtype=dtype), peak, rtol=1e-5)
    own = tera(f"gpu:a100:dtype={dtype}")
    np.testing.assert_allclose(own, peak, rtol=1e-5)


@pytest.mark.parametrize(
  "spec, itemsize, peak",
  [
    ("gpu:a100", 4, 19.5),  # float32, not the 312 of bf16
    ("gpu:a100", 2, 312),
    ("gpu:a100", 1, 624),  # int8
    ("tpu:v5p", 1, 918),  # int8
    ("tpu:v6e", 1, 1836),  # int8: fp8 has the 918 of bf16
    ("tpu:v7x", 1, 4614),  # fp8: no int8
    ("gpu:b300", 1, 4500),  # fp8
    ("trainium2", 4, 181),
    ("trainium3", 1, 2517),
  ],
)
def test_an_item_size_alone_stands_for_a_type(spec, itemsize, peak):
  rate = tera(spec, itemsize=itemsize)
  np.testing.assert_allclose(rate, peak, rtol=1e-4)


@pytest.mark.parametrize(
  "spec, options, message",
  [
    ("tpu:v5e", {"itemsize": 4}, "tpu:v5e has no float32; choose one of bf16"),
    ("tpu:v4", {"dtype": "fp8"}, "tpu:v4 has no fp8; choose one of bf16, int8"),
    ("gpu:h100", {"dtype": "fp4"}, "gpu:h100 has no fp4; choose one of fl"),
    ("gpu:h100", {"itemsize": 3}, "gpu:h100 has no itemsize 3; choose one of"),
    ("ws", {"dtype": "bf17"}, "unknown dtype 'bf17', did you mean 'bf16'"),
    ("ws", {"dtype": "int8", "itemsize": 2}, "int8 has itemsize 1, got item"),
    ("gpu:h100:dtype=fp8", {"itemsize": 2}, "fp8 has itemsize 1, got item"),
    ("gpu:h100:dtype=fp8", {"dtype": "bf16"}, "own dtype=fp8, got dtype bf1"),
    ("csr:h100", {"dtype": "fp4"}, "expected values of whole bytes, got fp4"),
    ("ws", {"itemsize": 0}, "itemsize: expected bytes per value"),
  ],
)  # fmt: skip
def test_what_is_not_there_or_contradicts_is_one_line(spec, options, message):
  with pytest.raises(ValueError, match=message) as caught:
    cost([SMALL], spec, **options)
  assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match=message):
    report([SMALL], [spec], **options)
  with pytest.raises(ValueError, match=message):
    sweep(spec, {"M": [1], "N": [1], "K": [1]}, **options)


def test_a_report_says_what_its_operands_are():
  assert "Operands are fp8." in report([SMALL], ["ws"], dtype="fp8").caption
  assert "Operands" not in report([SMALL], ["ws"]).caption


def test_a_spec_with_an_unknown_type_names_the_known_ones():
  with pytest.raises(ValueError, match="unknown dtype='half', known: bf16, fl"):
    parse("gpu:h100:dtype=half")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", ["ws:8x8", "vegeta-s-4-2", "figs:16x16"])
def test_to_an_array_a_type_is_the_size_of_its_values(spec, dtype):
  size = Fraction(DTYPES[dtype], 8)
  got, words = (cost([SMALL], spec, dtype=x) for x in (dtype, "int8"))
  values = words.dram_bytes[0] - words.metadata_bytes[0]  # of one byte each
  want = -(-values * size.numerator // size.denominator)
  assert got.dram_bytes[0] - got.metadata_bytes[0] == want
  np.testing.assert_array_equal(got.cycles, words.cycles)
  # Words on chip at their size, products of their type.
  moved = got.ifmap_reads[0] + got.filter_reads[0] + got.ofmap_writes[0]
  kept = 30 * 20 * 21  # 20 of ten groups, and the last row
  picked = Energy.at_least(dtype)
  picojoules = kept * (picked.mult + picked.add) + got.dram_bytes[0] * 160
  picojoules += moved * float(size) * 1.25
  np.testing.assert_allclose(got.energy_pj[0], picojoules, rtol=1e-9)


def test_values_of_half_a_byte_are_rounded_up_once():
  row = {"name": "odd", "M": 3, "N": 1, "K": 1}  # 3 + 1 + 3 values
  assert cost([row], "ws:2x2", dtype="fp4").dram_bytes[0] == 4
  assert cost([row], "gpu:b200", dtype="fp4").dram_bytes[0] == 4
  engine = parse("gpu:b200:dtype=fp4")
  assert engine.counts(Gemm(3, 1, 1))["dram_bytes"] == 4


def test_every_price_of_a_model_reads_the_type():
  """No way to price leaves float32 at the rate of bf16."""
  rows, spec = [CUBE], "gpu:a100"

  def ways(dtype):
    options = {"dtype": dtype}
    yield cost(rows, spec, **options).cycles[0]
    yield report(rows, [spec], **options).totals[0].cycles
    made = sweep(spec, {"hbm": [2039]}, rows, **options)
    yield made.smallest("cycles")["cycles"][0]
    yield step_cost(rows, spec, **options).cycles.forward
    run = run_cost([(1, rows, True)], spec, **options)
    yield run.total("cycles") / 3
    yield jax.jit(lambda engine: cost(rows, engine, **options).cycles)(
      parse(spec)
    )[0]

  for dtype, factor in (("float32", 16), ("tf32", 2)):
    for got, bf16 in zip(ways(dtype), ways("bf16"), strict=True):
      np.testing.assert_allclose(got / bf16, factor, rtol=1e-4)


def test_csr_computes_in_its_type():
  row = {"name": "x", "M": 2**20, "N": 64, "K": 2**16, "pattern": "1:2"}

  def bound(spec):
    return cost([row], spec).compute[0]

  flops = 2 * 2**20 * 64 * 2**15
  np.testing.assert_allclose(flops / bound("csr:a100"), 19_500, rtol=1e-4)
  rate = flops / bound("csr:a100:dtype=bf16")
  np.testing.assert_allclose(rate, 312_000, rtol=1e-4)
  # TPUs have no float32: two bytes of bf16.
  np.testing.assert_allclose(flops / bound("csr:v5e"), 197_000, rtol=1e-4)
  wide, narrow = (
    cost([SMALL], spec).dram_bytes[0] for spec in ("csr:a100", "csr:v5e")
  )
  assert wide > narrow


def test_a_type_is_an_axis_of_a_sweep():
  made = sweep("gpu:a100", "dtype=tf32,bf16,int8", [CUBE])
  points = made.smallest("cycles", 3)
  assert list(points["dtype"]) == ["int8", "bf16", "tf32"]
  rates = FLOPS / np.asarray(points["cycles"]) / 1000
  np.testing.assert_allclose(rates, [624, 312, 156], rtol=1e-4)
  moved = 3 * 4096**2 * np.array([1, 2, 4])
  np.testing.assert_array_equal(points["dram_bytes"], moved)


def test_attention_and_whole_models_take_half_bytes():
  shape = AttentionShape(1, 2, 33, 65, 16)
  chip = Memory(buffer=2**11, dram_bw=8, sram_bw=64)
  for fused in (False, True):
    # Half of the bytes through half of the room and width, so that it fits.
    half = Memory(buffer=2**10, dram_bw=4, sram_bw=32)
    got = attention_cost(shape, "ws:8x8", half, fused, Fraction(1, 2))
    want = attention_cost(shape, "ws:8x8", chip, fused, 1)
    assert got.cycles == want.cycles and got.tile_rows == want.tile_rows
    assert got.dram_bytes == -(-int(want.dram_bytes) // 2)
  rows = [SMALL]
  sizes = [
    model_cost(rows, "ws:8x8", chip, dtype=x).dram_bytes
    for x in ("fp4", "int8")
  ]
  assert sizes[0] < sizes[1]
