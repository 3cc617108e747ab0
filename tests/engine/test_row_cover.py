"""Row-wise n:4 of real masks, against a walk of every row of every tile."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import (
  Energy,
  Gemm,
  Layers,
  Vegeta,
  cost,
  parse,
  report,
  simulate,
)
from figs_jax.engine.studies.row_cover import cover_text, row_covers
from figs_jax.engine.vegeta import unstructured_speedup


def walked(mask, rows, cols):
  """(folds, weights stored, index bits, rows that enter), loop by loop."""
  K, N = mask.shape
  folds = stored = bits = entered = 0
  for start in range(0, K, 2 * rows):
    piece = mask[start : start + 2 * rows]
    halves = 0  # of a column of `rows` multipliers
    for j in range(N):
      blocks = [piece[i : i + 4, j] for i in range(0, len(piece), 4)]
      n = next(n for n in (1, 2, 4) if all(b.sum() <= n for b in blocks))
      halves += n
      held = sum(min(n, len(b)) for b in blocks)
      stored += held
      bits += 2 + (2 * held if n < 4 else 0)
    here = -(-halves // (2 * cols))
    folds += here
    entered += here * len(piece)
  return folds, stored, bits, entered


@settings(deadline=None, max_examples=40)
@given(
  st.integers(1, 70), st.integers(1, 20), st.integers(0, 10),
  st.sampled_from([2, 4, 6]), st.integers(1, 5), st.integers(0, 99),
  st.sampled_from(["none", "full"]),
)  # fmt: skip
def test_counts_are_those_of_a_walk(K, N, tenths, rows, cols, seed, overlap):
  mask = np.random.default_rng(seed).random((K, N)) < tenths / 10
  array = Vegeta(True, 1, 2, rows, cols, overlap, granularity="row")
  dense = dataclasses.replace(array, granularity="layer", name="")
  M = 7
  one = np.array([1])
  got = array.counts(Gemm(M, N, K, one, one), masks=[mask])
  whole = dense.counts(Gemm(M, N, K))
  folds, stored, bits, entered = walked(mask, rows, cols)
  if folds >= -(-K // rows) * -(-N // cols):
    assert got["cycles"] == whole["cycles"]
    assert got["filter_reads"] == whole["filter_reads"]
    assert got["dram_bytes"] == whole["dram_bytes"]
    return
  load, fill = rows // 2, rows // 2 + cols + 3
  once, each = (load + fill, max(load, M)) if overlap == "full" else (
    0, load + M + fill
  )  # fmt: skip
  assert got["cycles"] == once + folds * each
  assert got["filter_reads"] == stored
  assert got["metadata_bytes"] == -(-bits // 8)
  assert got["ifmap_reads"] == M * entered
  assert got["ofmap_writes"] == M * N * -(-K // (2 * rows))
  useful = mask.sum() * M
  assert got["macs"] == useful
  np.testing.assert_allclose(
    got["utilisation"], useful / (got["cycles"] * rows * cols), rtol=1e-12
  )


def test_a_random_mask_gains_what_its_expectation_says():
  rng = np.random.default_rng(0)
  for density in (0.05, 0.1, 0.2):
    mask = rng.random((4096, 1024)) < density
    row = {"name": "a", "M": 4096, "N": 1024, "K": 4096, "mask": mask}
    spec = "vegeta-s-16-2:granularity=row:overlap=full"
    (total,) = report([row], [spec]).totals
    expected = float(unstructured_speedup(density))
    # Slices are rounded up to whole folds.
    assert 0.975 * expected < total.speedup <= 1.002 * expected


def test_a_mask_with_a_pattern_gains_no_less_by_rows():
  rng = np.random.default_rng(1)
  mask = rng.random((64, 4, 64)).argsort(1) < 1
  row = {"name": "a", "M": 64, "N": 64, "K": 256, "pattern": "1:4"}
  row["mask"] = mask.reshape(256, 64)
  rows, layer = (
    cost([row], f"vegeta-s-16-2:granularity={x}") for x in ("row", "layer")
  )
  assert rows.cycles == layer.cycles
  np.testing.assert_allclose(rows.utilisation, layer.utilisation)
  np.testing.assert_allclose(rows.energy_pj, layer.energy_pj)


def test_energy_is_charged_for_kept_weights():
  mask = np.zeros((128, 32), bool)
  mask[::8] = True
  row = {"name": "a", "M": 8, "N": 32, "K": 128, "mask": mask}
  energy = Energy(1.0, 0.0, 0.0, 0.0)
  spec = "vegeta-s-16-2:granularity=row"
  assert cost([row], spec, energy=energy).energy_pj == 8 * 32 * 16


def test_designs_and_layers_broadcast():
  rng = np.random.default_rng(2)
  masks = [rng.random((100, 24)) < 0.1, None, rng.random((64, 40)) < 0.3]
  table = [
    {"name": "a", "M": 9, "N": 24, "K": 100, "mask": masks[0]},
    {"name": "b", "M": 9, "N": 24, "K": 64, "pattern": "2:4"},
    {"name": "c", "M": 5, "N": 40, "K": 64, "mask": masks[2]},
  ]
  fields = {"rows": [4, 8, 32], "cols": [16, 8, 4]}
  array = Vegeta(
    True, 4, 2, **{x: np.array(y)[:, None] for x, y in fields.items()},
    granularity="row",
  )  # fmt: skip
  together = cost(table, array)
  for i, (rows, cols) in enumerate(zip(*fields.values())):
    one = Vegeta(True, 4, 2, rows, cols, granularity="row")
    for j, row in enumerate(table):
      alone = cost([row], one)
      for name in ("cycles", "dram_bytes", "ifmap_reads", "energy_pj"):
        assert getattr(together, name)[i, j] == getattr(alone, name)[0]


def test_the_cover_of_a_table():
  mask = np.zeros((128, 4), bool)
  mask[0, 0] = mask[64:66, 1] = mask[64:67, 2] = True
  table = [
    {"name": "a", "M": 64, "N": 4, "K": 128, "mask": mask, "count": 2},
    {"name": "b", "M": 64, "N": 16, "K": 64},
  ]
  a, b, whole = row_covers(table, "vegeta-s-1-2:32x2")
  # Slices of 64 rows: n = 1, 1, 1, 1 and 1, 2, 4, 1, or 1 + 2 folds of 2.
  assert (a.cover, a.rows_1, a.rows_2, a.rows_4) == (1.5, 0.75, 0.125, 0.125)
  assert a.density == 6 / 512 and a.layer == 4 and np.isnan(b.density)
  assert a.row_speedup == 8 / 3 and a.layer_speedup == b.row_speedup == 1
  dense = cost(table, "vegeta-s-1-2:32x2").cycles
  np.testing.assert_allclose(
    whole.row_speedup,
    (2 * dense[0] + dense[1]) / (2 * dense[0] * 3 / 8 + dense[1]),
  )
  assert whole.cover == 1.5 and whole.count == 3
  made = json.loads(cover_text({"it": (a, b, whole)}, "json"))
  assert made["points"][1]["density"] is None
  half = np.tile([[True], [True], [False], [False]], (16, 8))
  row = {"name": "c", "M": 8, "N": 8, "K": 64, "mask": half}
  assert row_covers([row], "vegeta-s-1-2:32x8")[0].layer_speedup == 2


def test_what_has_no_cover_is_refused():
  row = {"name": "a", "M": 8, "N": 8, "K": 8}
  with pytest.raises(ValueError, match="no layer has a real mask"):
    row_covers([row])
  masked = Layers.of([row | {"mask": np.eye(8, dtype=bool)}])
  with pytest.raises(ValueError, match="expected a VEGETA S engine.*got figs"):
    row_covers(masked, "figs")
  for spec in (
    "vegeta-d-1-2:granularity=row",
    "vegeta-s-1-1:3x4:granularity=row",
    "vegeta-s-1-2:granularity=row:overlap=full:interleave=2",
  ):
    with pytest.raises(ValueError, match="granularity='row': expected an S"):
      parse(spec)
  with pytest.raises(ValueError, match="leave granularity out"):
    ones = np.ones((8, 8), int)
    simulate(ones, ones, "vegeta-s-1-2:8x8:granularity=row", "1:1")


def test_unknown_masks_run_the_layers_pattern():
  rng = np.random.default_rng(0)
  for _ in range(50):
    m = int(rng.choice([1, 2, 4, 16]))
    n, K, N = (int(rng.integers(1, most)) for most in (m + 1, 200, 50))
    rows, cols = int(rng.choice([2, 4, 32])), int(rng.integers(1, 9))
    gemm = Gemm(7, N, K, np.array([n]), np.array([m]))
    array = Vegeta(True, 1, 2, rows, cols, granularity="row")
    got = array.counts(gemm, masks=[None])
    want = dataclasses.replace(array, granularity="layer", name="").counts(gemm)
    for name, value in want.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)
