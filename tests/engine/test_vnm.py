"""V:N:M on tensor cores, counted on packed operands."""

import math

import numpy as np
import pytest

from figs_jax.cli import workloads
from figs_jax.core import NM, VNM
from figs_jax.engine import Layers, cost, report, run_cost, sweep
from figs_jax.engine.layers import read_pattern


def packed(N, K, v, m):
  """Values and bits of indices of a V:2:M weight that is laid out.

  For every v outputs and each group of m rows, four rows are chosen; each
  output keeps two of them.
  """
  values = bits = 0
  for first in range(0, N, v):
    outputs = min(v, N - first)
    columns = sum(min(4, K - start) for start in range(0, K, m))
    bits += columns * math.ceil(math.log2(m))
    kept = 2 * -(-columns // 4)  # blocks of four, the last one padded
    values += outputs * kept
  return values, bits


@pytest.mark.parametrize("v, m", [(64, 8), (16, 5), (32, 20), (128, 4), (1, 7)])
@pytest.mark.parametrize("M, N, K", [(64, 64, 64), (3, 50, 37), (1, 1, 1)])
def test_a_call_moves_what_is_packed_and_all_activations(v, m, M, N, K):
  row = {"name": "ff", "M": M, "N": N, "K": K, "pattern": f"{v}:2:{m}"}
  got = cost([row], "tensorcore:a100:side=1:ideal=true")
  values, bits = packed(N, K, v, m)
  indices = math.ceil(values * 2 / 8) + math.ceil(bits / 8)
  assert got.metadata_bytes[0] == indices
  assert got.dram_bytes[0] == 2 * (M * K + values + M * N) + indices
  flops = 2 * M * values
  memory = math.ceil(got.dram_bytes[0] / 2039)
  assert got.cycles[0] == max(math.ceil(flops / 312_000), memory)


def gains(pattern, spec="tensorcore:a100:ideal=true", size=8192):
  row = {"name": "ff", "M": size, "N": size, "K": size}
  dense, sparse = cost([row, row | {"pattern": pattern}], spec).cycles
  return dense / sparse


def test_the_contraction_shrinks_to_four_of_m():
  np.testing.assert_allclose(gains("64:2:4"), 2, rtol=1e-3)
  np.testing.assert_allclose(gains("64:2:8"), 4, rtol=1e-3)
  np.testing.assert_allclose(gains("64:2:16"), 8, rtol=1e-3)
  # Without V, 2:8 is 2:4 to them.
  np.testing.assert_allclose(gains("2:8"), 2, rtol=1e-3)
  # The fallback compares with all of K.
  call = "tensorcore:a100:ideal=true:sparse_overhead=100000000"
  assert gains("64:2:8", call) < 0.1
  assert gains("64:2:8", f"{call}:fallback=true") == 1


def test_other_engines_run_it_as_n_of_m_and_the_report_says_so():
  for spec in ("ws:32x32", "vegeta", "figs", "trainium2", "gpu:a100"):
    assert gains("64:2:8", spec, 512) == gains("2:8", spec, 512)
  row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "64:2:8"}
  made = report([row], ["ws", "tensorcore:a100", "figs"])
  assert "V:N:M runs as N:M on ws, figs." in made.caption
  assert made.rows[0].pattern == "64:2:8"
  assert "V:N:M" not in report([row], ["tensorcore:a100"]).caption
  assert "V:N:M" not in report([row | {"pattern": "2:8"}], ["ws"]).caption


def test_a_run_tells_it_from_n_of_m():
  spec = "tensorcore:a100:ideal=true"
  row = {"name": "ff", "M": 2048, "N": 2048, "K": 2048}
  tables = [[row | {"pattern": x}] for x in ("2:8", "64:2:8")]
  run = run_cost([(1, table) for table in tables], spec)
  plain, shared = (phase.cycles for phase in run.phases)
  assert shared.forward < plain.forward
  assert shared.input_gradient == plain.input_gradient


def test_rules_and_tables_read_it(tmp_path):
  path = tmp_path / "net.csv"
  path.write_text("name,M,N,K,pattern\nfc1,8,8,16,64:2:8\nfc2,8,8,16,2:8\n")
  (table,) = workloads.from_file(path).values()
  assert [table.pattern(i) for i in (0, 1)] == ["64:2:8", "2:8"]
  (table,) = workloads.from_file(path, "fc2: 32:2:16, fc1: 1:4").values()
  assert [table.pattern(i) for i in (0, 1)] == ["1:4", "32:2:16"]
  (table,) = workloads.from_file(path, "16:2:4").values()
  assert [table.pattern(i) for i in (0, 1)] == ["16:2:4"] * 2
  (model,) = workloads.from_model("vit:Ti/16", [1], "ff: 64:2:8").values()
  assert {model.pattern(i) for i in range(len(model))} == {"dense", "64:2:8"}
  assert Layers.of(table).dense().v is None
  with pytest.raises(ValueError, match="expected n:m, got 16:2:4"):
    sweep("tensorcore:a100", "hbm=1,2", table)


@pytest.mark.parametrize(
  "text, message",
  [
    ("64:3:8", "expected 'V:2:M' with M of at least 4"),
    ("64:2:3", "expected 'V:2:M' with M of at least 4"),
    ("0:2:8", "expected 'V:2:M'"),
    ("64:2:8:1", "Invalid N:M pattern"),
    ("a:2:8", "Invalid N:M pattern"),
  ],
)
def test_what_is_no_pattern_is_one_line(text, message):
  with pytest.raises(ValueError, match=message):
    read_pattern(text)


def test_patterns_as_objects_are_those_of_their_text():
  assert read_pattern(VNM(64, 2, 8)) == read_pattern("64:2:8")
  assert read_pattern(VNM(64, 1, 8)) == (0, NM(1, 8))  # no 2:4 in it
