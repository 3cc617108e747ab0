"""Statistics inside the step; the statistics themselves are core's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.train.diagnostics import every, layer_statistics


def trees():
  """(old masks, new masks, params, grads) with a dense bias."""
  rng = np.random.default_rng(1)
  old, new = rng.random((8, 2)) < 0.5, rng.random((8, 2)) < 0.5
  params, grads = rng.normal(size=(2, 8, 2)).astype(np.float32)
  return [
    {"a": {"kernel": jnp.asarray(x), "bias": b}}
    for x, b in (
      (old, None),
      (new, None),
      (params, jnp.ones(2)),
      (grads, jnp.ones(2)),
    )
  ]


def test_layer_statistics():
  old, new, params, grads = (np.asarray(t["a"]["kernel"]) for t in trees())
  found = layer_statistics(*trees())
  assert list(found) == ["a/kernel"]
  row = {name: float(v) for name, v in found["a/kernel"].items()}
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
    return every(3, step, *args)

  wanted = layer_statistics(*trees())
  for step in range(5):
    found = run(jnp.int32(step), *trees())
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
      found,
      wanted if step % 3 == 0 else jax.tree.map(jnp.zeros_like, wanted),
    )
  assert traces == 1
