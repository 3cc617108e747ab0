"""Weights of one's own models: every variable that decides the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import export, nn
from figs_jax.models.own_weights import fill_own, load_own, own_weights
from figs_jax.models.pretrained import PretrainedError
from tests.models.own_net import Net

IMAGES = jax.random.normal(jax.random.key(0), (4, 6, 6, 4))


def trained(seed):
  """A sparse model whose batch statistics have moved."""
  net = nn.sparsify(Net(5, 4, width=4, rngs=nnx.Rngs(seed)), "conv/.*: 1:4")
  net.train()
  net(IMAGES + seed)
  net.eval()
  return net


def test_they_are_the_parameters_and_batch_statistics():
  names = set(own_weights(trained(0)))
  state = nnx.state(trained(0), (nnx.Param, nnx.BatchStat))
  assert names == {"/".join(path) for path in nnx.to_flat_state(state).paths}
  assert {"norm/mean", "norm/var", "conv/kernel"} < names
  assert not any("rngs" in name or "mask" in name for name in names)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_model_filled_from_a_file_computes_the_same(tmp_path, suffix):
  net, path = trained(1), tmp_path / f"net.{suffix}"
  weights = own_weights(net)
  mask = np.asarray(net.conv.kernel_mask[...])
  weights["conv/kernel"] = np.where(mask, weights["conv/kernel"], 0)
  if suffix == "npz":
    np.savez(path, **weights)
  else:
    export.write_packed(path, weights, nn.masked_leaves(net))
  other = trained(2)
  loaded = load_own(other, path)
  assert jnp.array_equal(loaded(IMAGES), net(IMAGES))
  assert not jnp.array_equal(other(IMAGES), net(IMAGES))
  jitted = jax.jit(lambda x: fill_own(other, weights)(x))
  np.testing.assert_allclose(jitted(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"norm/mean": None}, r"norm/mean of shape \[4\], got none"),
    ({"more": np.zeros(2)}, r"more of shape none, got \[2\]"),
    ({"head/bias": np.zeros(6)}, r"head/bias of shape \[5\], got \[6\]"),
  ],
)
def test_weights_that_do_not_fit(tmp_path, change, words):
  weights = own_weights(trained(0)) | change
  weights = {name: each for name, each in weights.items() if each is not None}
  np.savez(tmp_path / "a.npz", **weights)
  with pytest.raises(PretrainedError, match=f"a.npz: .*a Net with {words}"):
    load_own(trained(0), tmp_path / "a.npz")


def test_files_that_cannot_be_read(tmp_path):
  for name in ("none.npz", "none.safetensors"):
    with pytest.raises(PretrainedError, match=name):
      load_own(trained(0), tmp_path / name)
