"""STEP's Adam in an optimizer that optax built."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.optim import replace_adam, step_adamw
from figs_jax.optim.step_adam import ScaleByStepAdamState

LIMITS = {"t_min": 5, "t_max": 12}
MASKS = {"w": jnp.arange(12).reshape(4, 3) % 2 == 0, "b": None}


def trajectory(tx, steps=20):
  params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
  state, update = tx.init(params), jax.jit(tx.update)
  rng, history = np.random.default_rng(0), []
  for _ in range(steps):
    grads = jax.tree.map(
      lambda x: jnp.float32(rng.normal(size=x.shape)), params
    )
    updates, state = update(grads, state, params, masks=MASKS)
    params = optax.apply_updates(params, updates)
    history.append(params)
  return history


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
  "options",
  [
    {},
    {
      "b1": 0.8,
      "b2": 0.9,
      "eps": 1e-5,
      "eps_root": 1e-6,
      "mu_dtype": jnp.bfloat16,
    },
  ],
)
def test_adamw_becomes_step_adamw(options):
  theirs = replace_adam(optax.adamw(1e-2, **options), **LIMITS)
  same(trajectory(theirs), trajectory(step_adamw(1e-2, **options, **LIMITS)))


@pytest.mark.standard_promotion
@pytest.mark.parametrize("clip", [False, True])
def test_phase_one_is_the_optimizer_that_was_given(clip):
  tx = optax.adamw(
    optax.cosine_decay_schedule(1e-2, 20), mask={"w": True, "b": False}
  )
  agree = same
  if clip:  # the compiler fuses what is in front, and may round differently
    tx = optax.chain(optax.clip_by_global_norm(0.5), tx)
    agree = close
  switched = trajectory(replace_adam(tx, **LIMITS))
  plain = trajectory(optax.with_extra_args_support(tx))
  # t = 13 sets the flag, 14 is the first after
  agree(switched[:13], plain[:13])
  assert np.any(switched[13]["w"] != plain[13]["w"])


@pytest.mark.parametrize(
  "tx",
  [
    optax.adam(1e-3),
    optax.lamb(1e-3),
    optax.scale_by_adam(),
    optax.chain(optax.chain(optax.chain(optax.adam(1e-3)))),
    optax.with_extra_args_support(optax.scale_by_adam()),
    optax.chain(optax.scale_by_adam(), optax.polyak_sgd()),
  ],
)
def test_recognised(tx):
  state = replace_adam(tx, **LIMITS).init({"w": jnp.ones(2)})
  leaves = jax.tree.leaves(
    state, is_leaf=lambda x: isinstance(x, ScaleByStepAdamState)
  )
  kinds = [type(x) for x in leaves]
  assert kinds.count(ScaleByStepAdamState) == 1
  assert optax.ScaleByAdamState not in kinds


def test_one_that_has_it_is_left_alone():
  tx = step_adamw(1e-3, t_min=1, t_max=2)
  assert replace_adam(tx, **LIMITS) is tx


@pytest.mark.parametrize(
  "tx",
  [
    optax.sgd(1e-3),
    optax.nadamw(1e-3),
    optax.lion(1e-3),
    optax.chain(optax.scale_by_adam(), optax.scale_by_adam()),
    optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
    optax.masked(optax.adamw(1e-3), True),
    optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(),
    optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (u, s)),
  ],
)
def test_anything_else_is_refused_with_the_fix(tx):
  with pytest.raises(ValueError, match="step_adamw"):
    replace_adam(tx, **LIMITS)


@pytest.mark.parametrize(
  "tx",
  [
    optax.adafactor(1e-3),
    optax.chain(optax.clip(1.0), optax.adafactor(1e-3, factored=False)),
    optax.chain(optax.scale_by_factored_rms(), optax.scale_by_adam()),
    optax.inject_hyperparams(optax.adafactor)(learning_rate=1e-3),
    optax.masked(optax.adafactor(1e-3), True),
    optax.partition({"a": optax.adafactor(1e-3), "b": optax.adam(1)}, "a"),
    optax.MultiSteps(optax.adafactor(1e-3), 2).gradient_transformation(),
    optax.apply_if_finite(optax.adafactor(1e-3), 3),
  ],
)
def test_adafactor_is_refused_with_the_reason(tx):
  with pytest.raises(ValueError, match="factored into row") as error:
    replace_adam(tx, **LIMITS)
  assert "step_adamw" in str(error.value) and "\n" not in str(error.value)
