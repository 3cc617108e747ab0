"""A trained checkpoint on a clocked FIGS array: its masks, its weights."""

import numpy as np
import pytest

import figs_jax
from figs_jax import engine
from figs_jax.engine.figs import checkpoint_stall_factor
from figs_jax.engine.simulator._simulate import simulate
from figs_jax.train.loop import train
from figs_jax.train.workdir import restore

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
  workdir = tmp_path_factory.mktemp("trained")
  train(tiny_config("sr_ste", total_steps=20), workdir)
  return workdir


@pytest.mark.parametrize("overlap", engine.spec.OVERLAPS)
def test_the_array_stalls_as_the_trained_masks_dictate(run, overlap):
  """Each sparse layer: the product to the bit, and the closed form's cycles."""
  array = f"figs:8x4:alpha=3:exchange=swap:overlap={overlap}"
  rows = [row for row in figs_jax.layers_of(run, batch=1) if "mask" in row]
  costs = engine.cost(rows, array)
  _, state, _ = restore(run)
  blocks = state.finished().blocks
  weights = {
    "blocks/0/mlp/fc1": blocks[0].mlp.fc1.kernel[...],
    "blocks/0/mlp/fc2": blocks[0].mlp.fc2.kernel[...],
  }
  assert weights.keys() == {row["name"] for row in rows}
  random = np.random.default_rng(0)
  for row, cycles in zip(rows, costs.cycles):
    # Whole numbers, so that sums in any order are equal.
    w = np.rint(1e3 * np.asarray(weights[row["name"]])).astype(np.int64)
    assert (w[~row["mask"]] == 0).all()
    x = random.integers(-9, 10, (row["M"], row["K"]))
    result = simulate(x, w, array, row["pattern"], row["mask"])
    np.testing.assert_array_equal(result.product, x @ w)
    assert result.cycles == cycles
  assert (costs.stall_exchange > 0).all()


def test_a_checkpoint_has_a_stall_factor(run):
  rows = figs_jax.layers_of(run, batch=1)
  array = engine.parse("figs:8x4:alpha=3:exchange=swap")
  factor = checkpoint_stall_factor(engine.Layers.of(rows), array)
  assert 1 < factor <= 4  # of 1:4, one output alone wants no value twice
  report = engine.report(rows, [array])
  assert report.totals[0].stall_factor == pytest.approx(factor)
