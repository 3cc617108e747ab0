"""What a recipe makes of an optimizer, and how it notices when it did not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.optim import DecayPrunedState, decay_pruned, step_adamw
from figs_jax.recipes import create, names

PARAMS = {"w": jnp.linspace(-1, 1, 16).reshape(8, 2), "b": jnp.ones(2)}
LEAVES = {"w": MaskedKernel((8, 2), NM(1, 4), 0)}


def train(tx, recipe, steps=20, noise=0.5):
  """Parameters, masks and flags of every step of a small masked regression."""
  bound = recipe.bind(LEAVES)
  traces = []

  @jax.jit
  def one(step, params, masks, opt_state, key):
    traces.append(step)
    switched = recipe.switched(opt_state)
    moment = recipe.at(step, switched)
    grads = jax.tree.map(
      lambda p: noise * jax.random.normal(key, p.shape) + p, params
    )
    updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
    params = optax.apply_updates(params, updates)
    new = recipe.switched(opt_state)
    masks = bound.masks(step + 1, params, masks, new, switched)
    return params, masks, opt_state, moment, new

  params, masks = PARAMS, bound.masks(0, PARAMS)
  opt_state, history = tx.init(params), []
  for step in range(steps):
    key = jax.random.key(step)
    params, masks, opt_state, moment, flag = one(
      jnp.int32(step), params, masks, opt_state, key
    )
    history.append((params, masks, moment, bool(flag)))
  assert len(traces) == 1
  return history


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", ["dense", "ste", "mdgf_exp", "figs"])
def test_most_recipes_need_nothing(name):
  recipe = create(name, "1:4", 20)
  tx = recipe.adamw(1e-2)
  history = train(tx, recipe)
  same(
    [h[0] for h in history],
    [h[0] for h in train(recipe.transform(optax.adamw(1e-2)), recipe)],
  )
  plain = train(optax.with_extra_args_support(optax.adamw(1e-2)), recipe)
  same([h[0] for h in history], [h[0] for h in plain])
  recipe.check(tx.init(PARAMS))
  assert not recipe.switched(tx.init(PARAMS))


@pytest.mark.standard_promotion
def test_sr_ste_into_grad_comes_after_clipping_and_before_the_moments():
  recipe = create("sr_ste", "1:4", 20, decay=0.1)
  clip = optax.clip_by_global_norm(0.1)
  by_hand = optax.chain(clip, decay_pruned(0.1), optax.adamw(1e-2))
  wanted = [h[0] for h in train(by_hand, recipe)]
  for tx in (
    recipe.transform(optax.adamw(1e-2), before=clip),
    recipe.adamw(1e-2, before=clip),
  ):
    same([h[0] for h in train(tx, recipe)], wanted)
  recipe.check(tx.init(PARAMS))
  recipe.check(by_hand.init(PARAMS))
  recipe.check(optax.MultiSteps(tx, 2).init(PARAMS))


@pytest.mark.standard_promotion
@pytest.mark.parametrize("rate", [0.02, optax.cosine_decay_schedule(0.05, 20)])
def test_sr_ste_decoupled_around_a_closed_optimizer(rate):
  recipe = create("sr_ste", "1:4", 20, decay=0.1, mode="decoupled")
  tx = recipe.transform(optax.adamw(rate), learning_rate=rate)
  by_hand = optax.chain(
    optax.scale_by_adam(),
    optax.add_decayed_weights(1e-4),
    decay_pruned(0.1, "decoupled"),
    optax.scale_by_learning_rate(rate),
  )
  history = train(tx, recipe)
  same(
    [h[0] for h in history],
    [h[0] for h in train(recipe.adamw(rate), recipe)],
  )
  for ours, theirs in zip(history, train(by_hand, recipe)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      ours[0],
      theirs[0],
    )
  with pytest.raises(ValueError, match="learning_rate="):
    recipe.transform(optax.adamw(rate))


@pytest.mark.standard_promotion
def test_the_decay_pulls_pruned_weights_to_zero_and_no_others():
  recipe = create("sr_ste", "1:4", 60, decay=0.5, dense=0.0)
  tx = recipe.transform(optax.sgd(0.1))
  bound = recipe.bind(LEAVES)
  params, masks = PARAMS, bound.masks(0, PARAMS)
  state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, PARAMS)
  for _ in range(200):
    updates, state = tx.update(zero, state, params, masks=masks)
    params = optax.apply_updates(params, updates)
  wanted = np.where(masks["w"], PARAMS["w"], 0)
  np.testing.assert_allclose(params["w"], wanted, atol=1e-4)
  same(params["b"], PARAMS["b"])


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"b1": 0.8, "b2": 0.9, "eps": 1e-5, "eps_root": 1e-6}
    | {"weight_decay": 0.1, "mask": {"w": True, "b": False}}
    | {"mu_dtype": jnp.bfloat16},
  ],
)
def test_adamw_of_step_is_step_adamw(options):
  recipe = create("step", "1:4", 20)
  by_hand = step_adamw(1e-2, t_min=2, t_max=10, **options)
  wanted = [h[0] for h in train(by_hand, recipe)]
  same([h[0] for h in train(recipe.adamw(1e-2, **options), recipe)], wanted)
  # A user's own chain, recognised by the state of its Adam.
  same([h[0] for h in train(recipe.transform(by_hand), recipe)], wanted)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("clip", [False, True])
def test_phase_one_of_step_is_the_plain_optimizer(clip):
  recipe = create("step", "1:4", 20)
  options = {"mask": {"w": True, "b": False}}
  rate = optax.cosine_decay_schedule(1e-2, 20)
  before = optax.clip_by_global_norm(0.5) if clip else None
  switched = train(recipe.adamw(rate, before=before, **options), recipe)
  plain = optax.adamw(rate, **options)
  plain = train(optax.chain(before, plain) if clip else plain, recipe)
  # Fused with what is in front, the same sums may round differently.
  agree = np.testing.assert_allclose if clip else np.testing.assert_array_equal
  for step in range(11):  # T_max = 10: update 11 sets the flag
    jax.tree.map(agree, switched[step][0], plain[step][0])
  assert np.any(switched[11][0]["w"] != plain[11][0]["w"])


def test_step_in_an_optimizer_of_ones_own():
  recipe = create("step", "1:4", 20)
  adam = recipe.scale_by_adam(b2=0.9)
  lamb = optax.chain(adam, optax.scale_by_trust_ratio(), optax.scale(-1e-3))
  labels = {"w": "sparse", "b": "dense"}
  parts = {"sparse": recipe.adamw(1e-3), "dense": optax.adafactor(1e-3)}
  for tx in (
    adam,
    lamb,
    optax.chain(optax.chain(optax.chain(lamb))),
    optax.masked(lamb, True),
    optax.MultiSteps(lamb, 2).gradient_transformation(),
    optax.apply_if_finite(lamb, 3),
    optax.partition(parts, labels),
  ):
    recipe.check(recipe.transform(tx).init(PARAMS))
  assert isinstance(
    create("figs", "1:4", 20).scale_by_adam().init(PARAMS),
    optax.ScaleByAdamState,
  )


@pytest.mark.parametrize(
  "tx",
  [
    optax.sgd(1e-3),
    optax.adamw(1e-3),
    optax.nadamw(1e-3),
    optax.lion(1e-3),
    optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
    optax.masked(optax.adamw(1e-3), True),
    optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(),
    optax.GradientTransformation(lambda p: (), lambda u, s, p=None: (u, s)),
  ],
)
def test_step_refuses_another_optimizer_with_the_fix(tx):
  recipe = create("step", "1:4", 20)
  with pytest.raises(ValueError, match="needs scale_by_step_adam") as error:
    recipe.transform(tx)
  message = str(error.value)
  for fix in (
    "recipe.adamw(learning_rate, ...)",
    "figs_jax.optim.step_adamw(learning_rate, t_min=2, t_max=10, ...)",
    "recipe.scale_by_adam(...)",
  ):
    assert fix in message
  assert "\n" not in message


def test_what_depends_on_the_params_is_refused_on_init():
  recipe = create("step", "1:4", 20)
  parts = {"a": optax.adam(1e-3), "b": optax.sgd(1e-3)}
  tx = recipe.transform(optax.partition(parts, {"w": "a", "b": "b"}))
  with pytest.raises(ValueError, match="needs scale_by_step_adam"):
    tx.init(PARAMS)
  recipe = create("sr_ste", "1:4", 20, mode="decoupled")
  parts["a"] = optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation()
  tx = optax.partition(parts, {"w": "a", "b": "b"})
  tx = recipe.transform(tx, learning_rate=1e-3)
  with pytest.raises(ValueError, match="every micro-step"):
    tx.init(PARAMS)


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
  "tx",
  [
    optax.adafactor(1e-3),
    optax.chain(optax.clip(1.0), optax.adafactor(1e-3, factored=False)),
    optax.chain(optax.scale_by_factored_rms(), optax.scale_by_adam()),
    optax.inject_hyperparams(optax.adafactor)(learning_rate=1e-3),
    optax.masked(optax.adafactor(1e-3), True),
    optax.MultiSteps(optax.adafactor(1e-3), 2).gradient_transformation(),
    optax.apply_if_finite(optax.adafactor(1e-3), 3),
  ],
)
def test_step_refuses_adafactor_with_the_reason(tx):
  with pytest.raises(ValueError, match="factored into row") as error:
    create("step", "1:4", 20).transform(tx).init(PARAMS)
  assert "recipe.adamw" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("threshold", [1e9, 0.0])
def test_steps_masks_follow_the_flag_in_the_next_forward_pass(threshold):
  """Even between refreshes; then they wait for the next refresh."""
  recipe = create("step", "1:4", 20, threshold=threshold, refresh_every=9)
  tx = recipe.adamw(1e-2)
  history = train(tx, recipe)
  last = 2 if threshold else 10  # T_min = 2, T_max = 10
  flags = [h[3] for h in history]
  assert flags == [step + 1 > last for step in range(20)]
  for step, (_, _, moment, _) in enumerate(history):
    assert int(moment.stage) == int(step > last)
    assert float(moment.leak) == float(step <= last)
  kept = [np.asarray(h[1]["w"]).reshape(2, 4, 2).sum(1) for h in history]
  for step, counts in enumerate(kept):  # masks for the pass of step + 1
    assert np.all(counts == (1 if step + 1 > last else 4))
  changed = [
    step + 1
    for step in range(1, 20)
    if np.any(history[step][1]["w"] != history[step - 1][1]["w"])
  ]
  assert changed[0] == last + 1
  assert set(changed[1:]) <= {9, 18}
  assert [recipe.pattern_at(s) for s in (10, 11)] == [NM(4, 4), NM(1, 4)]


@pytest.mark.parametrize("name", ["sr_ste", "step"])
def test_an_optimizer_that_lacks_a_requirement_is_refused(name):
  recipe = create(name, "1:4", 20)
  for tx in (optax.sgd(1e-2), optax.adamw(1e-2)):
    with pytest.raises(ValueError, match=r"recipe.transform\(tx\)") as error:
      recipe.check(tx.init(PARAMS))
    assert "\n" not in str(error.value) and name in str(error.value)
  if name == "sr_ste":
    recipe.check((optax.EmptyState(), {"x": DecayPrunedState(jnp.int32(0))}))


def test_two_flags_are_one_too_many():
  adam = step_adamw(1e-2, t_min=1, t_max=2)
  recipe = create("step", "1:4", 20)
  with pytest.raises(ValueError, match="got 2, whose flags"):
    recipe.switched(optax.chain(adam, adam).init(PARAMS))


def test_every_recipe_has_an_adamw():
  for name in names():
    recipe = create(name, "1:4", 20)
    recipe.check(recipe.adamw(1e-3).init(PARAMS))


def test_decoupled_decay_stays_outside_of_accumulation():
  recipe = create("sr_ste", "1:4", 20, mode="decoupled")
  inside = optax.MultiSteps(optax.adamw(1e-2), 2).gradient_transformation()
  with pytest.raises(ValueError, match="every micro-step"):
    recipe.transform(inside, learning_rate=1e-2)
  around = recipe.transform(optax.adamw(1e-2), learning_rate=1e-2)
  recipe.check(optax.MultiSteps(around, 2).init(PARAMS))
