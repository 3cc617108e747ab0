"""Twenty steps of every row in every container equal plain numpy."""

import numpy as np
import pytest

from figs_jax import recipes
from figs_jax.core.masks import is_nm

from . import reference
from .harness import batches, draws_of, history, seeds_of, weights
from .pieces import TOTAL, both_ways
from .table import FIRST, ROWS

pytestmark = pytest.mark.standard_promotion


def test_every_recipe_has_a_row():
  rows = {row.name for row in ROWS}
  missing = set(recipes.names()) - rows
  assert not missing, f"add a row to tests/contract/table.py for {missing}"


def check(row, kind):
  """Masks exactly, the rest within float32 of float64."""
  got, data = history(row, kind), list(zip(*batches()))
  for i, seed in enumerate(seeds_of(kind)):
    wanted = reference.run(row, weights(seed), data, draws_of(row, kind))
    assert len(wanted) == TOTAL + 1
    for step, want in enumerate(wanted):
      where = f"{kind}, seed {seed}, step {step}"
      if step < TOTAL:
        pick, seen = (i, step), got.seen
        np.testing.assert_allclose(
          got.losses[pick], want["loss"], rtol=1e-4, err_msg=where
        )
      else:
        pick, seen = (i,), got.last
      for name in row.targets:
        np.testing.assert_array_equal(
          seen["masks"][name][pick], want["masks"][name], f"{name} {where}"
        )
      assert seen["switched"][pick] == want["switched"], where
      np.testing.assert_allclose(
        seen["leak"][pick], want["leak"], rtol=1e-5, atol=1e-7, err_msg=where
      )
      assert (seen["leak"][pick] == 0) == (want["leak"] == 0), where
      for name, w in want["weights"].items():
        np.testing.assert_allclose(
          seen["weights"][name][pick], w, rtol=1e-4, atol=2e-5,
          err_msg=f"{name} {where}",
        )  # fmt: skip


def check_finished(row, kind):
  """Exactly n per group, zeros elsewhere."""
  got = history(row, kind)
  for name, (n, m) in row.targets.items():
    masks, weights = (got.finished[k][name] for k in ("masks", "weights"))
    if row.name in ("dense", "sparse_then_dense"):
      assert masks.all()
      continue
    for axis in (1, 2) if row.choose is both_ways else (1,):
      assert is_nm(weights, f"{n}:{m}", axis)
      assert is_nm(masks, f"{n}:{m}", axis) == row.exact
    assert np.all(weights[~masks] == 0)
    if not row.soft:
      np.testing.assert_array_equal(
        weights[masks], got.last["weights"][name][masks]
      )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_run_equals_numpy(row):
  check(row, "plain")
  check_finished(row, "plain")


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param("linen", marks=pytest.mark.slow),
    pytest.param("equinox", marks=pytest.mark.slow),
    "nnx",
  ],
)
@pytest.mark.parametrize("row", FIRST, ids=lambda row: row.name)
def test_in_every_container(row, kind):
  check(row, kind)
  check_finished(row, kind)
