"""Statistics of masks and gradients inside the step, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core.diagnostics import layer_table
from figs_jax.train.mask_health import layers_if


def trees():
  """(new masks, params, grads, old masks) with a dense bias."""
  rng = np.random.default_rng(1)
  old, new = rng.random((8, 2)) < 0.5, rng.random((8, 2)) < 0.5
  params, grads = rng.normal(size=(2, 8, 2)).astype(np.float32)
  return [
    {"a": {"kernel": jnp.asarray(x), "bias": b}}
    for x, b in (
      (new, None),
      (params, jnp.ones(2)),
      (grads, jnp.ones(2)),
      (old, None),
    )
  ]


def test_layer_statistics():
  new, params, grads, old = (np.asarray(t["a"]["kernel"]) for t in trees())
  table = layer_table(*trees())
  assert list(table) == ["a/kernel"]
  row = {name: float(v) for name, v in table["a/kernel"].items()}
  size = np.abs(params)
  assert row == pytest.approx(
    {
      "density": new.mean(),
      "flip_rate": (old != new).mean(),
      "sad": (old != new).sum(),
      "kept_magnitude": size[new].sum() / size.sum(),
      "grad_var_kept": grads[old].var(),
      "grad_var_pruned": grads[~old].var(),
      "grad_snr_kept": abs(grads[old].mean()) / grads[old].std(),
      "grad_snr_pruned": abs(grads[~old].mean()) / grads[~old].std(),
    },
    rel=1e-5,
  )


def test_every_so_many_steps_under_one_compilation():
  traces = 0

  @jax.jit
  def run(step, *args):
    nonlocal traces
    traces += 1
    return layers_if(step % 3 == 0, *args)

  wanted = layer_table(*trees())
  for step in range(5):
    table = run(jnp.int32(step), *trees())
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
      table,
      wanted if step % 3 == 0 else jax.tree.map(jnp.zeros_like, wanted),
    )
  assert traces == 1
