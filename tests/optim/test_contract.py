"""What every transform of the table (see conftest) must do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.optim import (
  decay_pruned,
  gradient_flow,
  mask_moments,
  mask_updates,
  step_adamw,
)

PARAMS = {
  "block": {0: {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3)}},
  "pair": (jnp.ones(3), jnp.ones(2)),
  "none": None,
}
MASKS = {
  "block": {0: {"kernel": jnp.arange(12).reshape(4, 3) % 3 == 0}},
  "pair": (None, jnp.array([True, False])),
  "none": None,
}


def grads_like(params, t):
  return jax.tree.map(lambda p: jnp.sin(p * (t + 1)).astype(p.dtype), params)


def run(tx, params=PARAMS, masks=MASKS, steps=8, **extra):
  """The updates of every step and the last state; compiles exactly once."""
  traces = []

  @jax.jit
  def update(*args, **kwargs):
    traces.append(1)
    return tx.update(*args, **kwargs)

  state = tx.init(params)
  out = []
  for t in range(steps):
    grads = grads_like(params, t)
    updates, state = update(grads, state, params, masks=masks, **extra)
    out.append(updates)
  assert len(traces) == 1
  return out, state


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_structure_dtype_and_state_stay(make):
  tx = make()
  for dtype in (jnp.float32, jnp.bfloat16):
    params = jax.tree.map(lambda p, d=dtype: p.astype(d), PARAMS)
    out, state = run(tx, params)
    assert jax.tree.map(jnp.result_type, out[-1]) == jax.tree.map(
      jnp.result_type, params
    )
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(
      jnp.result_type, tx.init(params)
    )


def test_masks_are_asked_for_in_one_line(make):
  tx = make()
  with pytest.raises(ValueError, match="masks=") as error:
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match="masks="):
    optax.chain(tx, optax.sgd(1.0)).update(
      PARAMS, optax.chain(tx, optax.sgd(1.0)).init(PARAMS), PARAMS
    )


def test_masks_that_do_not_fit(make):
  tx = make()
  params, state = {"a": {"w": jnp.ones(3)}}, tx.init({"a": {"w": jnp.ones(3)}})
  with pytest.raises(ValueError, match="structured like the params"):
    tx.update(params, state, params, masks={"a/w": jnp.ones(3, bool)})
  with pytest.raises(ValueError, match="at a/w"):
    tx.update(params, state, params, masks={"a": {"w": jnp.ones(4, bool)}})


def test_unknown_extra_arguments_and_no_masks_at_all(make):
  tx = make()
  same(run(tx)[0], run(tx, value=1.0, other=None)[0])
  empty = jax.tree.map(lambda p: None, PARAMS)
  same(run(tx, masks=empty)[0], run(tx, masks=None)[0])


def test_scan_equals_a_loop(make):
  tx = make()
  out, state = run(tx)

  def one(state, t):
    updates, state = tx.update(
      grads_like(PARAMS, t), state, PARAMS, masks=MASKS
    )
    return state, updates

  @jax.jit
  def scanned():
    ts = jnp.arange(8, dtype=jnp.float32)
    return jax.lax.scan(one, tx.init(PARAMS), ts)

  got_state, got = scanned()
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *out)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, stacked
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got_state, state
  )


def test_vmap_over_seeds_equals_one_at_a_time(make):
  tx = make()
  scales = jnp.array([0.5, 1.0, 2.0])
  many = jax.vmap(lambda s: jax.tree.map(lambda p: s * p, PARAMS))(scales)
  masks = jax.tree.map(lambda m: jnp.stack([m, ~m, m]), MASKS)

  @jax.jit
  @jax.vmap
  def train(params, masks):
    state = tx.init(params)
    for t in range(6):
      updates, state = tx.update(
        grads_like(params, t), state, params, masks=masks
      )
    return updates

  got = train(many, masks)
  for i in range(3):
    pick = lambda x, i=i: x[i]  # noqa: E731
    alone, _ = run(
      tx, jax.tree.map(pick, many), jax.tree.map(pick, masks), steps=6
    )
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5),
      got,
      alone[-1],
    )


def test_leaves_that_another_wrapper_hides(make):
  """Under optax.masked the hidden leaves pass, the others are transformed."""
  keep = {
    "block": {0: {"kernel": True}}, "pair": (False, False), "none": None,
  }  # fmt: skip
  out, _ = run(optax.masked(make(), keep))
  lone = {"kernel": PARAMS["block"][0]["kernel"]}
  mask = {"kernel": MASKS["block"][0]["kernel"]}
  wanted, _ = run(make(), lone, mask)
  for t, (got, ref) in enumerate(zip(out, wanted)):
    same(got["block"][0], ref)
    same(got["pair"], grads_like(PARAMS, t)["pair"])


@pytest.mark.standard_promotion
def test_gradient_accumulation_counts_optimizer_steps(make):
  tx = optax.MultiSteps(make(), every_k_schedule=2)
  state = tx.init(PARAMS)
  update = jax.jit(tx.update)
  accumulated = []
  for t in range(8):
    for _ in range(2):
      updates, state = update(grads_like(PARAMS, t), state, PARAMS, masks=MASKS)
    accumulated.append(updates)
  once, _ = run(make())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    accumulated,
    once,
  )


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
  "tx",
  [
    optax.chain(decay_pruned(1e-2), optax.adam(0.05)),
    optax.chain(gradient_flow(0.5), optax.adam(0.05)),
    mask_moments(optax.adam(0.05)),
    mask_moments(optax.adam(0.05), "reset"),
    optax.chain(optax.adam(0.05), mask_updates()),
    optax.chain(optax.adam(0.05), mask_updates(clear=True)),
    step_adamw(0.05, b2=0.9, t_min=20, t_max=100, weight_decay=0.0),
  ],
)
def test_reaches_the_optimum_of_a_masked_problem(tx):
  """Least squares on the kept weights; the optimum is known."""
  masks = {"w": jnp.arange(8) % 2 == 0}
  target = jnp.linspace(-1.0, 1.0, 8)

  def loss(params):
    return jnp.sum((jnp.where(masks["w"], params["w"], 0.0) - target) ** 2)

  @jax.jit
  def train(params):
    def one(carry, _):
      params, state = carry
      updates, state = tx.update(
        jax.grad(loss)(params), state, params, masks=masks
      )
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(
      one, (params, tx.init(params)), None, length=600
    )
    return params

  params = train({"w": jnp.zeros(8)})
  np.testing.assert_allclose(params["w"][::2], target[::2], atol=2e-3)
