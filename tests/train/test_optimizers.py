"""The optimizers of config.optimizer.name, beside optax and closed forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax import contrib

import figs_jax as figs
from figs_jax import recipes
from figs_jax.analysis._study_cells import fingerprint, of_cell
from figs_jax.core import optimizer_fields
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.train import schema
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import (
  ConfigError,
  changes,
  completed,
  default_config,
  plain,
  with_defaults,
)
from figs_jax.train.optimizer import decayed, learning_rate, make_optimizer
from figs_jax.train.sharding import make_mesh, state_shardings
from figs_jax.train.state import TrainState, finish, update

pytestmark = pytest.mark.standard_promotion
DECAY = 0.1
NAMES = tuple(optimizer_fields.OPTIMIZERS)


def config_of(name, recipe="dense", **fields):
  config = default_config(recipe)
  config.optimizer.update({"name": name, "weight_decay": DECAY, **fields})
  config.total_steps, config.optimizer.learning_rate = 8, 0.05
  schema.check(config)
  return config


def trees(steps=5):
  """Parameters, and the gradients of some steps."""
  shapes = {"embed": (7, 4), "fc": {"kernel": (4, 6), "bias": (6,)}}
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  random = np.random.default_rng(0)

  def one():
    return jax.tree.map(
      lambda s: jnp.asarray(random.normal(size=s), jnp.float32),
      shapes,
      is_leaf=is_shape,
    )

  return one(), [one() for _ in range(steps)]


def run(tx, params, grads):
  state = tx.init(params)
  for g in grads:
    updates, state = tx.update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


def of_optax(name, rate):
  """Plain optax; the decay of what optax.contrib.muon leaves out is apart."""
  if name == "adamw":
    return optax.adamw(rate, weight_decay=DECAY, mask=decayed)
  if name == "lion":
    return optax.lion(rate, weight_decay=DECAY, mask=decayed)
  if name == "sgd":
    return optax.chain(
      optax.add_decayed_weights(DECAY, decayed), optax.sgd(rate, 0.9, True)
    )
  if name == "adafactor":
    return optax.adafactor(
      rate,
      min_dim_size_to_factor=4,
      momentum=0.5,
      weight_decay_rate=lambda step: rate(step) * DECAY,
      weight_decay_mask=decayed,
    )
  if name == "schedule_free":
    base = optax.adamw(rate, b1=0.0, weight_decay=DECAY, mask=decayed)
    return contrib.schedule_free(base, lambda count: rate(count - 1))
  kernel = contrib.MuonDimensionNumbers()
  return contrib.muon(
    rate,
    weight_decay=DECAY,
    muon_weight_dimension_numbers={
      "embed": None,
      "fc": {"kernel": kernel, "bias": None},
    },
  )


FIELDS = {
  "sgd": {"momentum": 0.9, "nesterov": True},
  "adafactor": {"min_dim_size_to_factor": 4, "momentum": 0.5},
  "schedule_free": {"schedule": "constant"},
}


FREE = {"name": "schedule_free", "schedule": "constant"}


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_dense_run_is_that_of_optax(name, clip):
  config = config_of(name, clip=clip, **FIELDS.get(name, {}))
  recipe = recipes.create("dense", "ff: 1:4", config.total_steps)
  params, grads = trees()
  ours = run(make_optimizer(config, recipe), params, grads)
  plain_tx = of_optax(name, learning_rate(config))
  if clip:
    plain_tx = optax.chain(optax.clip_by_global_norm(clip), plain_tx)
  theirs = run(plain_tx, params, grads)
  if name == "muon":  # optax decays no parameter of its Adam part
    del ours["embed"], theirs["embed"]
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


def test_the_formulas_of_sgd_and_lion():
  params, grads = trees()
  w, v, m = np.asarray(params["embed"]), 0.0, 0.0
  sgd, lion = w, w
  config = config_of("sgd", clip=0.0, momentum=0.9)
  for step, grad in enumerate(grads):
    g, rate = np.asarray(grad["embed"]), float(learning_rate(config)(step))
    v = 0.9 * v + (g + DECAY * sgd)
    sgd = sgd - rate * v
    sign = np.sign(0.9 * m + 0.1 * g)
    m = 0.99 * m + 0.01 * g
    lion = lion - rate * (sign + DECAY * lion)
  recipe = recipes.create("dense", "ff: 1:4", 8)
  of_lion = config_of("lion", clip=0.0)
  for each, wanted in ((config, sgd), (of_lion, lion)):
    got = run(make_optimizer(each, recipe), params, grads)["embed"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_muon_turns_the_matrix_of_each_scanned_block_by_itself():
  config = config_of("muon", weight_decay=0.0, clip=0.0)
  tx = make_optimizer(config, recipes.create("dense", "ff: 1:4", 8))
  stack = jax.random.normal(jax.random.key(0), (3, 4, 6))
  together = run(tx, {"kernel": stack}, [{"kernel": stack}])["kernel"]
  for one, matrix in zip(together, stack):
    alone = run(tx, {"kernel": matrix}, [{"kernel": matrix}])["kernel"]
    np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-6)
    # Newton-Schulz brings singular values near 1, times the root of 6 / 4.
    step = (np.asarray(matrix) - np.asarray(alone)) / 0.05
    values = np.linalg.svd(step, compute_uv=False) / (6 / 4) ** 0.5
    assert ((values > 0.6) & (values < 1.3)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_term_of_sr_ste_enters_before_the_moments(name):
  """One step on a zero gradient equals plain optax on lambda times pruned w."""
  config = config_of(
    name, "sr_ste", weight_decay=0.0, clip=1.0, **FIELDS.get(name, {})
  )
  recipe = recipes.create("sr_ste", "kernel: 1:4", 8)
  (params, _), pruned = trees(), np.arange(24).reshape(4, 6) % 4 > 0
  masks = {"embed": None, "fc": {"kernel": jnp.asarray(~pruned), "bias": None}}
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = make_optimizer(config, recipe)
  got, _ = tx.update(zero, tx.init(params), params, masks=masks)
  term = jnp.where(pruned, 2e-4 * params["fc"]["kernel"], 0)
  zero["fc"]["kernel"] = term
  alone = make_optimizer(config, recipes.create("dense", "kernel: 1:4", 8))
  wanted, _ = alone.update(zero, alone.init(params), params)
  np.testing.assert_allclose(
    got["fc"]["kernel"], wanted["fc"]["kernel"], rtol=1e-5
  )
  assert got["fc"]["kernel"].any()


@pytest.mark.parametrize("name", NAMES)
def test_pruned_weights_stay_zero_under_asp(name):
  """Muon turns a masked gradient into an update of every entry."""
  config = config_of(name, "asp", **FIELDS.get(name, {}))
  tx = make_optimizer(config, recipes.create("asp", "kernel: 1:4", 8))
  params, grads = trees(1)
  mask = jnp.arange(24).reshape(4, 6) % 4 == 0
  masks = {"embed": None, "fc": {"kernel": mask, "bias": None}}
  grads[0]["fc"]["kernel"] *= mask
  updates, _ = tx.update(grads[0], tx.init(params), params, masks=masks)
  kernel = optax.apply_updates(params, updates)["fc"]["kernel"]
  assert not kernel[~mask].any()
  assert (updates["fc"]["kernel"][mask] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_run_is_bit_equal_and_ends_sparse(name, tmp_path):
  config = config_of(name, "ste", **FIELDS.get(name, {}))
  recipe = recipes.create("ste", "1:4", 8, dense=0.0)
  model = figs.sparsify(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), recipe.pattern)
  state = TrainState.create(
    model,
    recipe,
    make_optimizer(config, recipe),
    loss=lambda model, x, key: (jnp.mean((model(x) - 1) ** 2), {}),
  )
  x = jax.random.normal(jax.random.key(0), (4, 8))
  step = jax.jit(lambda state: update(state, x)[0])
  middle = step(step(state))
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(2, middle, {}, plain(config), None)
  with Checkpointer(tmp_path) as checkpoints:
    restored, _, _ = checkpoints.restore(jax.eval_shape(lambda: state))
  one, other = (step(step(each)) for each in (middle, restored))
  for left, right in zip(*map(jax.tree.leaves, (one, other))):
    np.testing.assert_array_equal(left, right)
  assert (one.params["kernel"] != middle.params["kernel"]).all()
  assert figs.is_nm(finish(one)[0]["kernel"], "1:4")


@pytest.mark.parametrize("name", NAMES)
def test_two_devices_give_what_one_gives(name):
  """Also where a moment has another shape than its kernel."""
  recipe = recipes.create("dense", "kernel: 1:4", 8)
  tx = make_optimizer(config_of(name, **FIELDS.get(name, {})), recipe)
  kernels = {
    "fc": {"kernel": jax.random.normal(jax.random.key(0), (8, 6))},
    "blocks": {"kernel": jax.random.normal(jax.random.key(1), (2, 8, 6))},
  }
  leaves = {
    "fc/kernel": MaskedKernel((8, 6), NM(1, 4), 0),
    "blocks/kernel": MaskedKernel((2, 8, 6), NM(1, 4), 1),
  }

  @jax.jit
  def step(params, state):
    updates, state = tx.update(params, state, params)
    return optax.apply_updates(params, updates), state

  alone = kernels, tx.init(kernels)
  shardings = state_shardings(alone, make_mesh(1, 2), recipe.bind(leaves))
  apart = jax.device_put(alone, shardings)
  assert apart[0]["fc"]["kernel"].addressable_shards[0].data.shape == (8, 3)
  for _ in range(2):
    alone, apart = step(*alone), jax.device_put(step(*apart), shardings)
  for one, other in zip(*map(jax.tree.leaves, (alone, apart))):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("recipe", "fields", "words"),
  [
    ("ste", {"name": "sgd", "b2": 0.98}, "a field of sgd (momentum, nesterov)"),
    ("ste", {"name": "lion", "eps": 1e-6}, "set it to 1e-08, or choose"),
    ("ste", {"momentum": 0.9}, "name=sgd, adafactor or muon"),
    ("ste", {"name": "muon", "factored": False}, "name=adafactor"),
    ("ste", {"name": "sgd", "nesterov": True}, "optimizer.momentum=0.9"),
    ("ste", {"name": "adam"}, "did you mean 'adamw'?"),
    ("ste", {"name": "schedulefree"}, "did you mean 'schedule_free'?"),
    ("ste", {"name": "schedule_free"}, "schedule: expected constant for"),
    ("ste", {**FREE, "b1": 0.0}, "b1: expected a number above 0"),
    ("step", FREE, "expected adamw, which has the second moment"),
    ("slope", FREE, "rank: expected 0 with schedule_free"),
    ("ste", {**FREE, "weight_lr_power": -1.0}, "expected None or a number in"),
    ("ste", {"weight_lr_power": 1.0}, "name=schedule_free"),
    ("step", {"name": "sgd"}, "expected adamw, which has the second moment"),
    ("step", {"name": "muon"}, "recipe 'step' freezes, got 'muon'"),
    ("rigl", {"name": "adafactor"}, "optimizer.factored: expected False"),
  ],
)
def test_what_does_not_go_together_is_one_line(recipe, fields, words):
  config = default_config(recipe)
  config.optimizer.update(fields)
  with pytest.raises(ConfigError) as error:
    schema.check(config)
    make_optimizer(config, recipes.create(recipe, "ff: 1:4", 100))
  assert words in str(error.value) and "\n" not in str(error.value)


def test_schedule_free_weighs_a_step_by_its_own_rate():
  config = config_of("schedule_free", warmup_steps=4, **FIELDS["schedule_free"])
  config.optimizer.weight_lr_power = 2.0
  recipe = recipes.create("dense", "ff: 1:4", config.total_steps)
  tx, params = make_optimizer(config, recipe), {"w": jnp.ones((2, 2))}
  state = tx.init(params)
  for _ in range(3):
    _, state = tx.update(params, state, params)
  rates = [float(learning_rate(config)(step)) for step in range(3)]
  assert rates[1] > rates[0]
  is_free = lambda node: isinstance(node, contrib.ScheduleFreeState)  # noqa: E731
  (free,) = filter(is_free, jax.tree.leaves(state, is_leaf=is_free))
  assert float(free.weight_sum) == pytest.approx(sum(r**2 for r in rates))


def free_state(recipe, steps=5, **fields):
  """The state of a small run, the model's input and the values of x."""
  config = config_of("schedule_free", recipe.name, **FIELDS["schedule_free"])
  config.update(fields)
  model = figs.sparsify(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), recipe.pattern)
  state = TrainState.create(
    model,
    recipe,
    make_optimizer(config, recipe),
    loss=lambda model, x, key: (jnp.mean((model(x) - 1) ** 2), {}),
  )
  x = jax.random.normal(jax.random.key(0), (4, 8))
  step = jax.jit(lambda state: update(state, x)[0])
  for _ in range(steps):
    state = step(state)
  return state


def averaged(state):
  """x of optax, from the state that make_optimizer has."""
  is_free = lambda s: isinstance(s, contrib.ScheduleFreeState)  # noqa: E731
  states = jax.tree.leaves(state.opt_state, is_leaf=is_free)
  (free,) = filter(is_free, states)
  return contrib.schedule_free_eval_params(free, state.params), free


def test_a_schedule_free_run_is_evaluated_at_its_average():
  """Masks of x come from |x|; those of training were chosen from |y|."""
  state = free_state(recipes.create("ste", "1:4", 8, dense=0.0))
  x, _ = averaged(state)
  assert np.abs(np.asarray(x["kernel"] - state.params["kernel"])).max() > 1e-3
  mask = figs.nm_mask(jnp.abs(x["kernel"]), "1:4", 0)
  finished = state.finished()
  np.testing.assert_allclose(
    finished.kernel[...], jnp.where(mask, x["kernel"], 0), rtol=1e-5, atol=1e-7
  )
  np.testing.assert_allclose(finished.bias[...], x["bias"], rtol=1e-5)
  chosen = figs.nm_mask(jnp.abs(state.params["kernel"]), "1:4", 0)
  np.testing.assert_array_equal(state.masks["kernel"], chosen)


@pytest.mark.parametrize("name", ["asp", "rigl"])
def test_pruned_weights_are_0_in_all_three_sequences(name):
  options = {"dense": 0.25} if name == "asp" else {}
  state = free_state(recipes.create(name, "1:4", 8, **options))
  x, free = averaged(state)
  pruned = ~np.asarray(state.masks["kernel"])
  for each in (state.params["kernel"], free.z["kernel"], x["kernel"]):
    if name == "asp":
      assert not np.asarray(each)[pruned].any()
      assert np.asarray(each)[~pruned].all()
  mask = state.masks["kernel"]  # it is carried, not chosen from x
  np.testing.assert_array_equal(finish(state)[1]["kernel"], mask)
  assert figs.is_nm(finish(state)[0]["kernel"], "1:4")


def test_schedule_free_adamw_of_optax_for_five_steps():
  config = config_of(
    "schedule_free", clip=0.0, weight_decay=0.0, **FIELDS["schedule_free"]
  )
  recipe = recipes.create("dense", "ff: 1:4", config.total_steps)
  params, grads = trees()
  ours = run(make_optimizer(config, recipe), params, grads)
  theirs = run(contrib.schedule_free_adamw(0.05), params, grads)
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"ema_decay": 0.9}, "ema_decay: expected 0 with schedule_free"),
    ({"train_only": "head"}, "train_only: expected '' with schedule_free"),
  ],
)
def test_averages_of_a_schedule_free_run_are_refused(fields, words):
  config = default_config("ste")
  config.optimizer.update(FREE)
  config.update(fields)
  with pytest.raises(ConfigError, match=words):
    schema.check(config)


def old_run():
  """What a run saved before optimizers could be chosen."""
  saved = plain(with_defaults(default_config("ste")))
  for name in ("name", *optimizer_fields.FIELDS):
    saved["optimizer"].pop(name)
  saved["optimizer"] |= {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
  return saved


def test_a_run_from_before_the_field_goes_on():
  saved, now = old_run(), with_defaults(default_config("ste"))
  assert changes(saved, now) == ([], [])
  assert completed(saved)["optimizer"]["name"] == "adamw"
  now.optimizer.b2 = 0.98
  assert changes(saved, now)[1] == ["optimizer.b2"]
  now.optimizer.update({"name": "sgd", "b2": None})
  assert "optimizer.name" in changes(saved, now)[1]


def test_the_fingerprint_of_a_study_is_that_of_before():
  saved, now = old_run(), default_config("ste")
  assert fingerprint(now) == fingerprint(saved)
  wanted = {f"optimizer.{name}" for name in saved["optimizer"]}
  assert {k for k in of_cell(now) if k.startswith("optimizer.")} == wanted
  json.dumps(of_cell(now))
  of_texts = plain(with_defaults(default_config("ste", "bert")))
  known = fingerprint(of_texts)
  del of_texts["loss"], of_texts["model"]["relu2"]
  assert fingerprint(of_texts) == known
  before = fingerprint(now)
  now.optimizer.b1 = 0.9  # its default
  assert fingerprint(now) == before
  now.optimizer.name = "lion"
  assert fingerprint(now) != before
