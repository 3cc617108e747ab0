"""Norms, softmax and the like: bytes over the bandwidth, or the ports."""

import numpy as np
import pytest

from figs_jax.engine import (
  Forward,
  Layers,
  NonGemm,
  Systolic,
  non_gemm_cycles,
  parse,
)

PASSES = [
  NonGemm("norm", "norm", 1030, 1000, 3),
  NonGemm("softmax", "softmax", 77, 77),
]


@pytest.mark.parametrize(
  ("spec", "bandwidth", "width"),
  [
    ("ws:32x16", None, 32),
    ("ws:32x16:bw_in=5", None, 5),
    ("ws:32x16:dram_bw=8", 8, 32),
    ("os:32x16:dram_bw=999", 999, 32),
    ("vegeta-d-1-2", None, 32),
    ("vegeta-s-16-2", None, 128),
    ("vegeta-s-16-2:bw_in=50", None, 50),
    ("figs:24x8", None, 24),
    ("tpu:v5e", 820, None),
    ("tensorcore:h200", 4800, None),
    ("csr:a100", 2039, None),
  ],
)
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_the_slower_of_memory_and_ports_decides(
  spec, bandwidth, width, itemsize
):
  engine, wanted = parse(spec), []
  for one in PASSES:
    values = one.reads + one.writes
    waits = [-(-values * itemsize // bandwidth)] if bandwidth else []
    waits += [-(-values // width)] if width else []
    wanted.append(one.count * max(waits))
  assert non_gemm_cycles(PASSES, engine, itemsize).tolist() == wanted


def test_designs_broadcast():
  rows = np.array([[8], [16], [32]])
  many = non_gemm_cycles(PASSES, Systolic("ws", rows, 16))
  assert many.shape == (3, 2)
  for r, cycles in zip((8, 16, 32), many):
    one = non_gemm_cycles(PASSES, parse(f"ws:{r}x16"))
    assert cycles.tolist() == one.tolist()


def test_bad_passes():
  row = {"name": "norm", "kind": "norm", "reads": 8, "writes": 8}
  with pytest.raises(ValueError, match=r"row 0 'norm': expected the columns"):
    Forward.of([row | {"M": 3}])
  with pytest.raises(ValueError, match="'reads': expected an integer from 1"):
    Forward.of([row | {"reads": 0}])
  with pytest.raises(ValueError, match="do not fit int64"):
    many = Forward.of([row | {"reads": 2**53, "count": 2**30}])
    non_gemm_cycles(many.non_gemms, parse("ws"))


def test_a_table_keeps_its_pass():
  forward = Forward.of([{"name": "n", "kind": "norm", "reads": 1, "writes": 1}])
  rows = [{"name": "ff", "M": 8, "N": 8, "K": 8, "pattern": "1:2"}]
  table = Layers.of(rows, forward)
  assert table.dense().forward is table.with_pattern("1:4").forward is forward
  assert Layers.of(rows).forward is None
