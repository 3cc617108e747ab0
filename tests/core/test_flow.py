"""flow: the effective weight and its three gradients, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core import flow, nm_mask

MODES = ("ste", "damped", "masked")
DTYPES = (jnp.float32, jnp.bfloat16)
BAD = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1e38])


def example(dtype, seed=0, shape=(16, 6)):
  """(kernel, mask, cotangent)."""
  keys = jax.random.split(jax.random.key(seed), 2)
  kernel, g = (jax.random.normal(k, shape).astype(dtype) for k in keys)
  return kernel, nm_mask(jnp.abs(kernel), "1:4"), g


def pull(kernel, mask, g, *args):
  out, back = jax.vjp(lambda k: flow(k, mask, *args), kernel)
  (grad,) = back(g)
  assert out.dtype == grad.dtype == kernel.dtype
  return out, grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("leak", [0.0, 0.25, 0.3, 1.0, 0, 1])
def test_pruned_gradients_are_exactly_g_dg_and_0(mode, leak, dtype):
  kernel, mask, g = example(dtype)
  out, grad = pull(kernel, mask, g, leak, mode)
  d = jnp.asarray(leak, dtype)
  factor = {"ste": jnp.ones((), dtype), "damped": d, "masked": d * 0}[mode]
  np.testing.assert_array_equal(out[mask], kernel[mask])
  np.testing.assert_array_equal(out[~mask], (d * kernel)[~mask])
  np.testing.assert_array_equal(grad[mask], g[mask])
  np.testing.assert_array_equal(grad[~mask], (factor * g)[~mask])


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 1, width=32), st.sampled_from(MODES), st.integers(0, 99))
def test_a_traced_leak_is_the_static_one(leak, mode, seed):
  kernel, mask, g = example(jnp.float32, seed)
  static = pull(kernel, mask, g, leak, mode)
  traced = TRACED[mode](kernel, mask, g, jnp.float32(leak))
  for a, b in zip(static, traced):
    np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 1, width=32), st.sampled_from(MODES), st.integers(0, 99))
def test_as_the_leak_falls_to_0_the_mask_becomes_hard(leak, mode, seed):
  """|w~(D) - w~(0)| = D |w| at pruned entries, 0 at kept ones."""
  kernel, mask, _ = example(jnp.float32, seed)
  hard = flow(kernel, mask, 0.0, mode)
  np.testing.assert_array_equal(hard, np.where(mask, kernel, 0))
  gap = jnp.abs(flow(kernel, mask, leak, mode) - hard)
  bound = np.where(mask, 0, np.float32(leak) * np.abs(kernel))
  np.testing.assert_allclose(gap, bound, rtol=1e-6, atol=1e-30)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 99), st.sampled_from(DTYPES))
def test_damped_with_a_leak_of_1_is_ste(seed, dtype):
  kernel, mask, g = example(dtype, seed)
  damped = pull(kernel, mask, g, 1.0, "damped")
  straight = pull(kernel, mask, g, 1.0, "ste")
  for a, b in zip(damped, straight):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(damped[1], g)


TRACED = {
  mode: jax.jit(lambda k, m, g, d, mode=mode: pull(k, m, g, d, mode))
  for mode in MODES
}


@pytest.mark.parametrize("mode", MODES)
def test_damped_is_the_true_derivative(mode):
  """Against finite differences: only `damped` claims to be one."""
  kernel, mask, g = example(jnp.float32)
  _, grad = pull(kernel, mask, g, 0.5, mode)
  step = 2.0**-3  # the forward is linear: any step that rounds well will do
  shifted = [flow(kernel + s * step, mask, 0.5) for s in (1, -1)]
  slope = g * (shifted[0] - shifted[1]) / (2 * step)
  assert np.allclose(grad, slope, atol=1e-5) == (mode == "damped")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_decay_pulls_pruned_entries_only(mode, dtype):
  kernel, mask, g = example(dtype)
  rate = jnp.asarray(2e-4, dtype)
  _, plain = pull(kernel, mask, g, 0.0, mode)
  _, grad = pull(kernel, mask, g, 0.0, mode, 2e-4)
  np.testing.assert_array_equal(grad[mask], g[mask])
  np.testing.assert_array_equal(grad[~mask], (plain + rate * kernel)[~mask])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_leaks_at_leak_0(mode, jit):
  """Pruned NaN and inf stay out of the forward and, where cut, the backward."""
  kernel = jnp.concatenate([BAD, jnp.arange(1.0, 5.0)])
  mask = jnp.arange(8) >= 4
  g = jnp.concatenate([BAD, jnp.ones(4)])

  def run(kernel, g, leak):
    return pull(kernel, mask, g, leak, mode)

  run = jax.jit(run) if jit else run
  for leak in (0.0, jnp.float32(0)):
    out, grad = run(kernel, g, leak)
    np.testing.assert_array_equal(out, [0, 0, 0, 0, 1, 2, 3, 4])
    pruned = BAD if mode == "ste" else jnp.zeros(4)
    np.testing.assert_array_equal(grad[:4], pruned)
    np.testing.assert_array_equal(grad[4:], 1.0)


@pytest.mark.parametrize("mode", MODES)
def test_many_seeds_at_once(mode):
  """A batch of kernels, masks and leaks equals one after the other."""
  stack = [example(jnp.float32, seed) for seed in range(3)]
  leaks = jnp.array([0.0, 0.4, 1.0])
  kernels, masks, gs = (jnp.stack(x) for x in zip(*stack))
  many = jax.jit(jax.vmap(lambda k, m, g, d: pull(k, m, g, d, mode, 0.1)))
  batched = many(kernels, masks, gs, leaks)
  for i, (one, d) in enumerate(zip(stack, leaks)):
    for a, b in zip(batched, pull(*one, d, mode, 0.1)):
      np.testing.assert_allclose(a[i], b, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("decay", [None, 2e-4])
def test_the_backward_keeps_no_float_copy_of_the_mask(mode, decay):
  kernel, mask, _ = example(jnp.float32)
  _, back = jax.vjp(
    lambda k, d: flow(k, mask, d, mode, decay), kernel, jnp.float32(0.5)
  )
  big = [x for x in jax.tree.leaves(back) if jnp.shape(x) == kernel.shape]
  floats = [x for x in big if jnp.issubdtype(x.dtype, jnp.floating)]
  assert len(floats) == (0 if decay is None else 1)
  assert all(x is kernel for x in floats)  # decay's own factor, no new array


def test_only_the_kernel_gets_a_gradient():
  kernel, mask, _ = example(jnp.float32)
  grads = jax.grad(
    lambda k, d, rate: flow(k, mask, d, "damped", rate).sum(), (0, 1, 2)
  )(kernel, jnp.float32(0.5), jnp.float32(0.1))
  assert grads[1] == 0 and grads[2] == 0 and (grads[0] != 0).all()


def test_no_mask_is_an_ordinary_kernel():
  kernel, _, _ = example(jnp.float32)
  assert flow(kernel, None, 0.5, "masked", 1.0) is kernel


def test_errors_name_the_fix(unchecked):
  kernel, mask, _ = example(jnp.float32)
  with pytest.raises(ValueError, match="grad_mode 'sts'. Known: ste, damped"):
    flow(kernel, mask, 0.0, "sts")
  with pytest.raises(ValueError, match=r"shape \(16, 6\), got \(8, 6\)"):
    flow(kernel, mask[:8])
