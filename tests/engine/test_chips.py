"""Chips: each figure beside the number in its vendor's document."""

import re
from pathlib import Path

import numpy as np
import pytest

from figs_jax.engine import chips, cost, parse
from figs_jax.engine.chips import CHIPS, DTYPES, GPUS, TPUS, TRAINIUMS, find

# TFLOP/s (TOP/s) per chip as printed, dense, in the order of DTYPES: float32,
# tf32, bf16, fp16, fp8, int8, fp4; then GB/s and GB or GiB of memory.
# A page of Google Cloud or AWS prints them per chip. NVIDIA's sheets of Hopper
# print twice the dense rate ("with sparsity"), and its pages on HGX and NVL72
# print PFLOP/s of 8 GPUs and of superchips of 2, with sparsity too.
X = None
PRINTED = {
  "v3": ((X, X, 123, X, X, X, X), 900, 32),
  "v4": ((X, X, 275, X, X, 275, X), 1228, 32),
  "v5e": ((X, X, 197, X, X, 393, X), 819, 16),
  "v5p": ((X, X, 459, X, 459, 918, X), 2765, 95),
  "v6e": ((X, X, 918, X, 918, 1836, X), 1638, 32),
  "v7x": ((X, X, 2307, X, 4614, X, X), 7380, 192),
  "a100": ((19.5, 156, 312, 312, X, 624, X), 2039, 80),
  "a100-40gb": ((19.5, 156, 312, 312, X, 624, X), 1555, 40),
  "h100": ((67, 989 / 2, 989, 989, 3958 / 2, 3958 / 2, X), 3350, 80),
  "h200": ((67, 989 / 2, 989, 989, 3958 / 2, 3958 / 2, X), 4800, 141),
  "h20": ((44, 74, 148, 148, 296, 296, X), 4000, 96),
  "b200": (
    (600 / 8, 18000 / 16, 36000 / 16, 36000 / 16, 72000 / 16, 72000 / 16,
     72000 / 8), 8000, 180,
  ),  # fmt: skip
  "gb200": (
    (160 / 2, 5000 / 4, 10000 / 4, 10000 / 4, 20000 / 4, 20000 / 4, 20000 / 2),
    16000 / 2, 372 / 2,
  ),  # fmt: skip
  "b300": (
    (600 / 8, 18000 / 16, 36000 / 16, 36000 / 16, 72000 / 16, X, X), 8000, 270,
  ),
  "l40s": ((91.6, 183, 362.05, 362.05, 733, 733, X), 864, 48),
  "rtx4090": ((82.6, 82.6, 165.2, 165.2, 330.3, 660.6, X), 1008, 24),
  "rtx5090": ((104.8, 104.8, 209.5, 209.5, 419, 838, 1676), 1792, 32),
  "mi300x": ((163.4, 653.7, 1307.4, 1307.4, 2614.9, 2614.9, X), 5300, 192),
  "mi355x": (
    (157.3, X, 2516.6, 2516.6, 5033.2, 5033.2, 10066.3), 8000, 288,
  ),
  "trainium2": ((181, 667, 667, 667, 1299, X, X), 2900, 96),
  "trainium3": ((183, 671, 671, 671, 2517, X, 2517), 4900, 144),
}  # fmt: skip
# With sparse weights: tf32, bf16 and fp16, fp8, int8, fp4.
SPARSE = {
  "a100": (312, 624, X, 1248, X),
  "a100-40gb": (312, 624, X, 1248, X),
  "h100": (989, 1979, 3958, 3958, X),
  "h200": (989, 1979, 3958, 3958, X),
  "b200": (18000 / 8, 36000 / 8, 72000 / 8, 72000 / 8, 144000 / 8),
  "gb200": (5000 / 2, 10000 / 2, 20000 / 2, 20000 / 2, 40000 / 2),
  "b300": (18000 / 8, 36000 / 8, 72000 / 8, X, X),
  "l40s": (366, 733, 1466, 1466, X),
  "rtx4090": (165.2, 330.4, 660.6, 1321.2, X),
  "rtx5090": (209.5, 419, 838, 1676, 3352),
  "mi300x": (1307.4, 2614.9, 5229.8, 5229.8, X),
  "mi355x": (X, 5033.2, 10066.3, 10066.3, X),
  "trainium2": (2563, 2563, 2563, X, X),
  "trainium3": (2517, 2517, X, X, X),
}
ALL = TPUS | GPUS | TRAINIUMS


@pytest.mark.parametrize("name", ALL)
def test_a_row_is_its_vendors_document(name):
  chip, (peaks, hbm, memory) = ALL[name], PRINTED[name]
  want = {x: y * 1000 for x, y in zip(DTYPES, peaks) if y is not None}
  assert chip.peaks == want
  tf32, half, *rest = SPARSE.get(name, (X,) * 5)
  kinds = ("tf32", "bf16", "fp16", "fp8", "int8", "fp4")
  sparse = dict(zip(kinds, (tf32, half, half, *rest)))
  assert chip.sparse == {x: y * 1000 for x, y in sparse.items() if y}
  assert chip.hbm == hbm
  assert chip.memory in (memory * 10**9, memory * 2**30)
  assert chip.source and re.fullmatch(r"20\d\d-\d\d-\d\d", chip.date)


def test_every_chip_is_printed_and_named_once():
  assert PRINTED.keys() == ALL.keys()
  words = [w for name, chip in ALL.items() for w in (name, *chip.aliases)]
  assert len(words) == len(set(words)) and all(w == w.lower() for w in words)
  assert set(CHIPS["tensorcore"]) == set(GPUS) - {"h20"}


@pytest.mark.parametrize(
  "spec, chip",
  [
    ("tpu:ironwood", "v7x"),
    ("tpu:v7", "v7x"),
    ("tpu:trillium", "v6e"),
    ("gpu:B200", "b200"),
    ("tensorcore:4090", "rtx4090"),
    ("csr:trn2", "trainium2"),
  ],
)
def test_aliases_name_the_same_chip(spec, chip):
  engine = parse(spec)
  assert engine.chip == chip and str(engine) == spec
  kind = spec.partition(":")[0]
  assert engine.peak == find(kind, chip)[1].peak


@pytest.mark.parametrize(
  "name, dtype",
  [(name, dtype) for name in TPUS | GPUS for dtype in ALL[name].peaks],
)
def test_a_large_product_runs_at_the_rate_of_its_type(name, dtype):
  kind = "tpu" if name in TPUS else "gpu"
  cube = {"name": "cube", "M": 2**15, "N": 2**15, "K": 2**15}
  time = cost([cube], f"{kind}:{name}", dtype=dtype).cycles[0]
  want = PRINTED[name][0][[*DTYPES].index(dtype)] * 1000
  np.testing.assert_allclose(2 * 2**45 / time, want, rtol=1e-4)


def test_the_documentation_has_the_table():
  page = Path(__file__).parents[2] / "docs" / "engine.md"
  assert chips.markdown() in page.read_text(), (
    "out of date: paste figs_jax.engine.chips.markdown()"
  )
