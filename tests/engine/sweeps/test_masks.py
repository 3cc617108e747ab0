"""Sweeps of layers with real masks, against a cost for each design."""

import dataclasses

import numpy as np
import pytest

from figs_jax.engine import Layers, cost, sweep
from figs_jax.engine.sweeps.points import UnreadMasksError

RNG = np.random.default_rng(0)


def mask_of(K, N, n, m):
  return (RNG.random((K // m, m, N)).argsort(1) < n).reshape(K, N)


ROWS = [
  {"name": "a", "M": 40, "N": 48, "K": 64, "pattern": "2:16", "count": 2},
  {"name": "b", "M": 40, "N": 48, "K": 64, "pattern": "2:16"},
  {"name": "c", "M": 30, "N": 32, "K": 128},
  {"name": "d", "M": 30, "N": 32, "K": 128},
  {"name": "e", "M": 40, "N": 48, "K": 64, "pattern": "2:16"},
]
ROWS[0]["mask"] = mask_of(64, 48, 2, 16)
ROWS[1]["mask"] = mask_of(64, 48, 2, 32)
ROWS[2]["mask"] = RNG.random((128, 32)) < 0.1  # of no pattern
LAYERS = Layers.of(ROWS)
CASES = {
  "figs:16x8": "alpha=0,1,3,7,15; rows=8,16; pattern=2:16,1:8",
  "vegeta-s-2-2:8x8": "rows=4,8,32; granularity=layer,row; pattern=2:16,1:4",
  "tensorcore:h200": "hbm=1000,4800",
  "ws:8x8": "rows=4,8",
}


@pytest.mark.parametrize("spec", CASES)
def test_every_design_reads_the_masks(spec):
  designs = sweep(spec, CASES[spec], LAYERS)
  every = designs.smallest("cycles", len(designs))
  if spec.startswith("vegeta"):  # where these masks gain over the worst
    unread = sweep(spec, CASES[spec], dataclasses.replace(LAYERS, masks=None))
    worst = unread.smallest("cycles", len(unread))
    assert worst["cycles"].sum() > every["cycles"].sum()
  for i, design in enumerate(every["design"].tolist()):
    table = LAYERS
    if "pattern" in every:
      table = LAYERS.with_pattern(every["pattern"][i])
    alone = cost(table, design)
    for name in ("cycles", "dram_bytes", "metadata_bytes"):
      assert every[name][i] == alone.total(name), (design, name)
    np.testing.assert_allclose(every["energy_pj"][i], alone.total("energy_pj"))
  # As the devices count them.
  chunks = [chunk["cycles"] for chunk in designs.chunks(["cycles"])]
  assert sorted(np.concatenate(chunks)) == sorted(every["cycles"])


def test_swap_registers_need_more_than_a_sweep_reads():
  with pytest.raises(UnreadMasksError, match="exchange=swap.*masks=None"):
    sweep("figs:exchange=swap", "rows=8,16", LAYERS)


def test_too_many_row_covers_are_refused():
  with pytest.raises(ValueError, match="give at most 838,860 designs"):
    sweep(
      "vegeta-s-1-2:granularity=row",
      {"rows": range(2, 2002, 2), "cols": range(1, 1001)},
      LAYERS,
    )
