"""The order that matters: each claim of docs/optimizers.md as a number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.core._flow import flow
from figs_jax.optim import (
  DecayPrunedState,
  decay_pruned,
  gradient_flow,
  mask_moments,
  mask_updates,
  scale_by_step_adam,
  step_adamw,
)
from figs_jax.optim.auto_switch import steps

pytestmark = pytest.mark.standard_promotion
LAMBDA, SCALE = 2e-4, 65536.0
MASK = np.array([[True, False], [False, True], [True, False]])
MASKS = {"w": jnp.asarray(MASK), "b": None}
PARAMS = {"w": jnp.linspace(0.5, 2.0, 6).reshape(3, 2), "b": jnp.ones(2)}


def effective_lambda(tx, grads, params=PARAMS):
  """What pulls a pruned weight whose loss gradient is 0, per unit of weight."""
  updates, _ = tx.update(grads, tx.init(params), params, masks=MASKS)
  return float(np.mean((-updates["w"] / params["w"])[~MASK]))


def zeros():
  return jax.tree.map(jnp.zeros_like, PARAMS)


def descend(tx, loss, steps=20, params=PARAMS, masks=MASKS):
  state = tx.init(params)

  @jax.jit
  def one(params, state, t):
    grads = jax.grad(loss)(params, t)
    updates, state = tx.update(grads, state, params, masks=masks)
    return optax.apply_updates(params, updates), state

  for t in range(steps):
    params, state = one(params, state, t)
  return params, state


def loss_with(decay, scale=1.0):
  def loss(params, t):
    w = flow(params["w"], MASKS["w"], decay=decay)
    x = jnp.sin(jnp.arange(12.0).reshape(4, 3) + t)
    return scale * jnp.mean(
      (x @ w + params["b"][None] - jnp.cos(x[:, :2])) ** 2
    )

  return loss


def gap(a, b):
  return max(float(jnp.abs(a[k] - b[k]).max()) for k in a)


def test_the_loss_scaling_mistake_as_a_number():
  """Before unscaling λ shrinks to λ / scale, 3e-9: plain STE in effect."""
  unscale, descent = optax.scale(1 / SCALE), optax.sgd(1.0)
  right = optax.chain(unscale, decay_pruned(LAMBDA), descent)
  wrong = optax.chain(decay_pruned(LAMBDA), unscale, descent)
  np.testing.assert_allclose(effective_lambda(right, zeros()), 2e-4, rtol=1e-5)
  np.testing.assert_allclose(
    effective_lambda(wrong, zeros()), 3.0517578e-9, rtol=1e-5
  )


@pytest.mark.parametrize(
  "factor,effective", [(1, LAMBDA / SCALE), (SCALE, LAMBDA)]
)
def test_the_backward_place_needs_lambda_times_the_scale(factor, effective):
  """The term is made inside the backward pass, so unscaling divides it too."""

  def grads(decay):
    return jax.grad(loss_with(decay, SCALE))(PARAMS, 0)

  got = (grads(LAMBDA * factor)["w"] - grads(None)["w"]) / SCALE
  scaled = np.asarray(got / PARAMS["w"])[~MASK].mean()
  # the gradient's own rounding hides so small a term: look at it alone
  alone = jax.grad(
    lambda w: 0 * flow(w, MASKS["w"], decay=LAMBDA * factor).sum()
  )(PARAMS["w"])
  alone = np.asarray(alone / PARAMS["w"] / SCALE)[~MASK].mean()
  np.testing.assert_allclose(alone, effective, rtol=1e-5)
  np.testing.assert_allclose(scaled, effective, rtol=1e-2, atol=1e-7)


def test_clipping_before_the_term_leaves_lambda_alone():
  grads = zeros() | {"b": jnp.array([300.0, 400.0])}
  clip, descent = optax.clip_by_global_norm(1.0), optax.sgd(1.0)
  right = optax.chain(clip, decay_pruned(LAMBDA), descent)
  wrong = optax.chain(decay_pruned(LAMBDA), clip, descent)
  np.testing.assert_allclose(effective_lambda(right, grads), 2e-4, rtol=1e-5)
  np.testing.assert_allclose(effective_lambda(wrong, grads), 4e-7, rtol=1e-4)


@pytest.mark.parametrize("clip", [False, True])
def test_backward_equals_into_grad_until_something_clips(clip):
  weight = 0.05
  bound = [optax.clip_by_global_norm(0.05)] if clip else []
  inside, _ = descend(optax.chain(*bound, optax.adam(0.02)), loss_with(weight))
  outside, _ = descend(
    optax.chain(*bound, decay_pruned(weight), optax.adam(0.02)), loss_with(None)
  )
  if clip:
    assert gap(inside, outside) > 1e-3
  else:
    assert gap(inside, outside) < 1e-5
    plain, _ = descend(optax.adam(0.02), loss_with(None))
    assert gap(inside, plain) > 1e-2, "the term matters here"


def test_annealed_decay_is_a_linear_schedule():
  """2407.20584: λ(t) = α t up to T0, then constant."""
  alpha, until = 1e-3, 5
  tx = optax.chain(
    decay_pruned(
      alpha * until, schedule=optax.linear_schedule(0.0, 1.0, until)
    ),
    optax.sgd(1.0),
  )
  state, got = tx.init(PARAMS), []
  for _ in range(8):
    updates, state = tx.update(zeros(), state, PARAMS, masks=MASKS)
    got.append(float(np.mean((-updates["w"] / PARAMS["w"])[~MASK])))
  wanted = [alpha * min(t, until) for t in range(8)]
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mean,factor", [(True, 1), (False, 4)])
def test_gradient_accumulation_around_and_after_the_term(mean, factor):
  """Inside MultiSteps λ enters once; before a *sum* of k it enters k times."""

  def multi(tx):
    steps = optax.MultiSteps(tx, 4, use_grad_mean=mean)
    return steps.gradient_transformation()

  inside = multi(optax.chain(decay_pruned(LAMBDA), optax.sgd(1.0)))
  before = optax.chain(decay_pruned(LAMBDA), multi(optax.sgd(1.0)))
  for tx, wanted in ((inside, LAMBDA), (before, factor * LAMBDA)):
    state = tx.init(PARAMS)
    for _ in range(4):
      updates, state = tx.update(zeros(), state, PARAMS, masks=MASKS)
    pull = np.mean((-updates["w"] / PARAMS["w"])[~MASK])
    np.testing.assert_allclose(pull, wanted, rtol=1e-5)


def test_lambda_as_a_hyperparameter():
  tx = optax.chain(
    optax.inject_hyperparams(decay_pruned)(weight=LAMBDA), optax.sgd(1.0)
  )
  state, update = tx.init(PARAMS), jax.jit(tx.update)
  for weight in (LAMBDA, 0.5):
    state[0].hyperparams["weight"] = jnp.asarray(weight)
    updates, state = update(zeros(), state, PARAMS, masks=MASKS)
    pull = np.mean((-updates["w"] / PARAMS["w"])[~MASK])
    np.testing.assert_allclose(pull, weight, rtol=1e-5)
  scheduled = optax.inject_hyperparams(decay_pruned)(
    weight=lambda t: 0.1 * t, mode="decoupled"
  )
  state = scheduled.init(PARAMS)
  for t in range(3):
    updates, state = scheduled.update(zeros(), state, PARAMS, masks=MASKS)
    pull = np.mean((updates["w"] / PARAMS["w"])[~MASK])
    np.testing.assert_allclose(pull, 0.1 * t, rtol=1e-5)


def test_gradient_flow_as_a_hyperparameter():
  tx = optax.inject_hyperparams(gradient_flow)(decay=lambda t: 1 / (1 + t))
  state, update = tx.init(PARAMS), jax.jit(tx.update)
  for t in range(3):
    updates, state = update(PARAMS, state, PARAMS, masks=MASKS)
    ratio = (updates["w"] / PARAMS["w"])[~MASK]
    np.testing.assert_allclose(ratio, 1 / (1 + t), rtol=1e-5)


def test_step_adamw_with_a_hyperparameter():
  static = ("t_min", "t_max", "window", "b2")
  injected = optax.inject_hyperparams(step_adamw, static_args=static)
  limits = {"t_min": 3, "t_max": 8}
  a, _ = descend(injected(learning_rate=0.02, **limits), loss_with(None))
  b, _ = descend(step_adamw(0.02, **limits), loss_with(None))
  assert gap(a, b) < 1e-5
  with pytest.raises(TypeError, match="static_args"):
    steps("t_min", jnp.asarray(3.0))
  with pytest.raises(TypeError, match="t_min"):
    jax.jit(optax.inject_hyperparams(step_adamw)(0.02, **limits).init)(PARAMS)
  with pytest.raises(TypeError, match="window=None"):
    optax.inject_hyperparams(
      scale_by_step_adam, static_args=("t_min", "t_max")
    )(**limits).init(PARAMS)


@pytest.mark.parametrize("same_masking", [False, True])
def test_partition_sends_each_leaf_its_mask(same_masking):
  labels = {"w": "sparse", "b": "dense"}
  sparse = optax.chain(
    decay_pruned(0.05), mask_moments(optax.adam(0.02)), mask_updates()
  )
  tx = optax.partition(
    {"sparse": sparse, "dense": optax.adam(0.02)},
    labels,
    mask_compatible_extra_args=same_masking,
  )
  a, state = descend(tx, loss_with(None))
  b, _ = descend(sparse, loss_with(None))
  assert gap(a, b) < 1e-6
  ours = lambda node: isinstance(node, DecayPrunedState)  # noqa: E731
  assert any(map(ours, jax.tree.leaves(state, is_leaf=ours)))


def test_weight_decay_reaches_pruned_entries():
  """AdamW's decay and λ add up there; optax's mask= is per leaf, not entry."""
  lr, decay, weight = 0.1, 0.3, 0.2
  tx = optax.chain(
    optax.scale_by_adam(),
    optax.add_decayed_weights(decay, mask={"w": True, "b": False}),
    decay_pruned(weight, "decoupled"),
    optax.scale_by_learning_rate(lr),
  )
  updates, _ = tx.update(zeros(), tx.init(PARAMS), PARAMS, masks=MASKS)
  shrink = np.asarray(-updates["w"] / PARAMS["w"])
  np.testing.assert_allclose(shrink[MASK], lr * decay, rtol=1e-5)
  np.testing.assert_allclose(shrink[~MASK], lr * (decay + weight), rtol=1e-5)
  np.testing.assert_array_equal(updates["b"], 0)


def test_mask_updates_belongs_after_weight_decay():
  decay = optax.add_decayed_weights(0.1)
  for tx, moves in (
    (optax.chain(decay, optax.sgd(1.0), mask_updates()), False),
    (optax.chain(mask_updates(), decay, optax.sgd(1.0)), True),
  ):
    updates, _ = tx.update(zeros(), tx.init(PARAMS), PARAMS, masks=MASKS)
    assert bool(np.any(updates["w"][~MASK])) is moves


def test_a_step_that_is_skipped_counts_nowhere():
  """Mixed precision: an overflow skips the update and every schedule."""
  tx = optax.apply_if_finite(
    optax.chain(
      decay_pruned(0.1, schedule=lambda t: 1 / (1 + t)),
      mask_moments(optax.adam(0.02), "reset"),
    ),
    max_consecutive_errors=5,
  )
  state = tx.init(PARAMS)
  _, state = tx.update(PARAMS, state, PARAMS, masks=MASKS)
  bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
  other = {"w": ~MASKS["w"], "b": None}
  updates, after = tx.update(bad, state, PARAMS, masks=other)
  jax.tree.map(
    np.testing.assert_array_equal, after.inner_state, state.inner_state
  )
  assert not any(np.any(u) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_params_keep_their_dtype(dtype):
  params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    decay_pruned(LAMBDA),
    mask_moments(optax.adamw(1e-2), "reset"),
    mask_updates(clear=True),
  )
  state = tx.init(params)
  for _ in range(3):
    updates, new = tx.update(params, state, params, masks=MASKS)
    assert jax.tree.map(jnp.result_type, new) == jax.tree.map(
      jnp.result_type, state
    )
    params, state = optax.apply_updates(params, updates), new
  assert params["w"].dtype == dtype
  np.testing.assert_array_equal(params["w"][~MASK], 0)
