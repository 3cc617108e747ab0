"""Statistics of masks and gradients against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.train.diagnostics import gradient_variance, layer_statistics


def test_variances_against_numpy():
  rng = np.random.default_rng(0)
  grad = rng.normal(size=(16, 8)).astype(np.float32)
  mask = rng.random((16, 8)) < 0.25
  kept, pruned = gradient_variance(jnp.asarray(grad), jnp.asarray(mask))
  assert float(kept) == pytest.approx(grad[mask].var(), rel=1e-5)
  assert float(pruned) == pytest.approx(grad[~mask].var(), rel=1e-5)


def test_layer_statistics():
  rng = np.random.default_rng(1)
  params = rng.normal(size=(8, 2)).astype(np.float32)
  grads = rng.normal(size=(8, 2)).astype(np.float32)
  old, new = rng.random((8, 2)) < 0.5, rng.random((8, 2)) < 0.5
  trees = [
    {"a": {"kernel": jnp.asarray(x), "bias": b}}
    for x, b in (
      (old, None),
      (new, None),
      (params, jnp.ones(2)),
      (grads, jnp.ones(2)),
    )
  ]
  found = layer_statistics(*trees)
  assert list(found) == ["a/kernel"]
  row = {name: float(v) for name, v in found["a/kernel"].items()}
  size = np.abs(params)
  assert row == pytest.approx(
    {
      "density": new.mean(),
      "flip_rate": (old != new).mean(),
      "kept_magnitude": size[new].sum() / size.sum(),
      "grad_var_kept": grads[old].var(),
      "grad_var_pruned": grads[~old].var(),
    },
    rel=1e-5,
  )
