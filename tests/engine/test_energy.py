"""Picojoules by hand, and the table that they come from."""

import dataclasses

import numpy as np
import pytest

from figs_jax.engine import Energy, cost

ROW = {"name": "ff", "M": 8, "N": 16, "K": 64, "pattern": "1:4"}
FREE = Energy(0.0, 0.0, 0.0, 0.0)


def test_the_default_is_a_16_bit_product_at_45_nm():
  # By hand: 1:4 leaves 16 of K = 64, so 2 x 2 folds of the 8 x 8 array.
  macs = 8 * 16 * 16
  # Activations pass both halves of N, weights load once, and both halves of
  # the contraction write their sums; reading these back is not charged.
  words = 2 * 8 * 64 + 16 * 16 + 2 * 8 * 16
  # Every operand once, and 2 bits for each kept weight.
  dram = 2 * (8 * 64 + 16 * 16 + 8 * 16) + 16 * 16 * 2 // 8
  pj = macs * (1.1 + 0.9) + words * 2 * (10 / 8) + dram * (640 / 4)
  np.testing.assert_allclose(cost([ROW], "ws:8x8").energy_pj, pj, rtol=1e-12)


@pytest.mark.parametrize(
  "operation, count",
  [
    ("mult", 2048),
    ("add", 2048),
    ("sram_byte", None),
    ("dram_byte", None),
  ],
)
def test_each_operation_counts_alone(operation, count):
  energy = dataclasses.replace(FREE, **{operation: 3.0})
  costs = cost([ROW], "ws:8x8", itemsize=4, energy=energy)
  words = costs.ifmap_reads + costs.filter_reads + costs.ofmap_writes
  moved = {"sram_byte": 4 * words, "dram_byte": costs.dram_bytes}
  expected = 3.0 * (moved[operation] if count is None else count)
  np.testing.assert_allclose(costs.energy_pj, expected, rtol=1e-12)


def test_sparsity_saves_energy_on_chip_and_off():
  dense, sparse = ROW | {"pattern": None}, ROW
  costs = cost([dense, sparse], "ws:8x8")
  assert costs.energy_pj[1] < costs.energy_pj[0]


def test_a_total_counts_every_instance():
  rows = [ROW | {"count": 3}, ROW | {"N": 32}]
  costs = cost(rows, "ws:8x8")
  one, other = costs.energy_pj.tolist()
  np.testing.assert_allclose(costs.total("energy_pj"), 3 * one + other)


@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16", "float32"])
def test_wider_types_cost_more(dtype):
  assert Energy.of("int8").mult <= Energy.of(dtype).mult <= 3.7


def test_bad_energies_are_refused_in_one_line():
  for value in (-1.0, float("nan"), float("inf"), "2", None):
    with pytest.raises(
      ValueError, match="Energy dram_byte: expected picojoules"
    ):
      # Past the tests' own hook, which would refuse other types.
      energy = Energy()
      object.__setattr__(energy, "dram_byte", value)
      energy.__post_init__()
  with pytest.raises(ValueError, match="Energy of 'fp4'.*bfloat16"):
    Energy.of("fp4")
