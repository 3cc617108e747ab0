"""Attention against a numpy loop, its masks, and its dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import nn
from figs_jax.nn.attention import attend

DIM, HEADS = 8, 2


def attention(**options):
  options = {"kernel_init": nnx.initializers.normal(1.0), **options}
  rngs = nnx.Rngs(params=0, dropout=1)
  return nn.Attention(DIM, HEADS, rngs=rngs, **options)


def tokens():
  return jax.random.normal(jax.random.key(5), (2, 3, DIM))


def reference(layer, x, mask=None):
  x = np.asarray(x, np.float64)
  project = {
    part: np.asarray(getattr(layer, part).effective_kernel(), np.float64)
    for part in "qkvo"
  }
  out = np.zeros_like(x)
  depth = DIM // HEADS
  for b in range(x.shape[0]):
    q, k, v = (x[b] @ project[part] for part in "qkv")
    for h in range(HEADS):
      at = slice(h * depth, (h + 1) * depth)
      logits = q[:, at] @ k[:, at].T / np.sqrt(depth)
      if mask is not None:
        logits = np.where(mask[0, 0], logits, -np.inf)
      weights = np.exp(logits - logits.max(-1, keepdims=True))
      weights /= weights.sum(-1, keepdims=True)
      out[b, :, at] = weights @ v[:, at]
  return out @ project["o"]


@pytest.mark.parametrize("causal", [False, True])
def test_forward_by_numpy(causal):
  layer = attention(patterns={"q": "1:4", "k": "2:4", "o": "1:8"})
  mask = jnp.tril(jnp.ones((1, 1, 3, 3), bool)) if causal else None
  want = reference(layer, tokens(), mask)
  np.testing.assert_allclose(layer(tokens(), mask), want, atol=1e-5)


def test_each_kernel_has_its_own_mask():
  leaves = nn.masked_leaves(attention(patterns={"q": "1:4", "o": "1:8"}))
  assert {path: str(leaf.pattern) for path, leaf in leaves.items()} == {
    "q/kernel": "1:4",
    "o/kernel": "1:8",
  }
  assert len(nn.masked_leaves(attention(patterns="2:4"))) == 4


@pytest.mark.parametrize("causal", [False, True])
def test_the_path_with_dropout_agrees_where_nothing_is_dropped(causal):
  layer = attention(dropout=1e-9)
  mask = jnp.tril(jnp.ones((1, 1, 3, 3), bool)) if causal else None
  trained = layer(tokens(), mask)
  layer.eval()
  np.testing.assert_allclose(trained, layer(tokens(), mask), atol=1e-5)


def test_dropout_drops_in_training_only():
  layer = attention(dropout=0.5)
  assert not jnp.array_equal(layer(tokens()), layer(tokens()))
  layer.eval()
  assert jnp.array_equal(layer(tokens()), layer(tokens()))


def test_biases():
  assert attention(qkv_bias=False).q.bias is None
  assert attention(qkv_bias=False).o.bias is not None


def test_errors():
  with pytest.raises(ValueError, match="multiple of num_heads=3, got dim=8"):
    nn.Attention(8, 3, rngs=nnx.Rngs(0))
  with pytest.raises(
    ValueError, match="Unknown attention kernel 'out'.*[Kk]nown: k, o, q, v"
  ):
    attention(patterns={"out": "1:4"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_attend_by_numpy(dtype):
  logits = 30 * jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  values = jax.random.normal(jax.random.key(1), (2, 5, 3, 6)).astype(dtype)
  got = attend(logits, 1e4 * values, nnx.Dropout(0), scale=0.25)
  assert got.dtype == dtype
  weights = np.exp(0.25 * np.asarray(logits, np.float64))
  weights /= weights.sum(-1, keepdims=True)
  exact = np.asarray(1e4 * values, np.float64)
  want = np.einsum("bhqk,bkhd->bqhd", weights, exact)
  digits = 1e-6 if dtype == "float32" else 2e-2
  np.testing.assert_allclose(
    np.asarray(got, np.float64), want, atol=digits * np.abs(exact).max()
  )


def test_attend_averages_where_everything_is_masked():
  least = jnp.full((1, 1, 2), jnp.finfo(jnp.float32).min)
  values = jnp.array([1.0, 3.0]).reshape(2, 1, 1)
  assert attend(least, values, nnx.Dropout(0)).item() == 2
