"""One step: your loss, your loop, any recipe, one compilation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import nn, recipes
from figs_jax.core.tree import flatten
from figs_jax.train._finish import averaged_statistics
from figs_jax.train.state import TrainState, train_step, update
from tests.compilations import compilations

pytestmark = pytest.mark.standard_promotion
STEPS = 40


class Net(nnx.Module):
  """Foreign to us: dropout, batch statistics, a convolution."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(4, 8, (1, 1), rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.drop = nnx.Dropout(0.2, rngs=rngs)
    self.out = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    return self.out(self.drop(x.mean((1, 2))))


def batch_of(seed, size=8):
  key = jax.random.key(seed)
  image = jax.random.normal(key, (size, 2, 2, 4))
  return {"image": image, "label": jnp.arange(size) % 3}


def make(recipe="figs", tx=None, model=None, dense=0.05, **options):
  # Two channels of figs' chain fit; the head's 3 outputs hold no block of 4.
  both = "conv/.*: 1:4"
  special = {"figs": "1:2", "transposable": both, "slope": both}
  pattern = special.get(recipe, "1:4")
  own = {"rank": 0} if recipe == "slope" else {}  # no adapters of convolutions
  recipe = recipes.create(
    recipe, pattern, total_steps=STEPS, dense=dense, **own
  )
  model = Net(nnx.Rngs(0)) if model is None else model
  model = figs.sparsify(model, recipe)
  tx = recipe.transform(tx) if tx else recipe.adamw(1e-2)
  return TrainState.create(model, recipe, tx, **options)


# One of each kind of mask, forward pass and optimizer; the contract of recipes
# has a run of the others through TrainState too.
KINDS = ("dense", "figs", "mdgf_exp", "rigl", "s_ste", "step", "transposable")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
    for name in recipes.names()
  ],
)
def test_one_compilation_and_exact_masks_at_the_end(name):
  state = make(name)
  step = jax.jit(partial(update), donate_argnums=0)
  losses = []
  with compilations("update") as compiled:
    for i in range(STEPS):
      state, metrics = step(state, batch_of(i))
      losses.append(float(metrics["loss"]))
  assert len(compiled) == 1
  assert np.isfinite(losses).all()
  assert int(state.step) == STEPS
  net = state.finished()
  leaves = figs.nn.masked_leaves(net)
  recipe = state.recipe
  assert bool(leaves) == (recipe.sparse and not recipe.ends_dense)
  params = flatten(figs.nn.split(net)[1])
  for path, leaf in leaves.items():
    assert figs.is_nm(params[path], leaf.pattern, axis=leaf.axis), path
  assert np.isfinite(net(batch_of(0)["image"])).all()


@pytest.mark.parametrize("ema", [False, True])
def test_soft_weights_are_finished_once(ema):
  """S-STE's finished model computes what its training forward did."""
  state = make("s_ste", dense=0.0, ema_decay=0.5)
  assert state.rest["out"]["scale"].shape == ()
  first = np.asarray(state.rest["out"]["scale"])
  for i in range(3):
    state, _ = train_step(state, batch_of(i))
  np.testing.assert_array_equal(state.rest["out"]["scale"], first)
  params = state.ema if ema else state.params
  masks = state.bound.target(params)
  rest = averaged_statistics(state).rest if ema else state.rest
  soft = figs.nn.merge(state.graphdef, params, masks, 0.0, rest)
  soft.eval()
  x = batch_of(9)["image"]
  net = state.finished(ema=ema)
  np.testing.assert_allclose(net(x), soft(x), rtol=1e-5)
  assert not hasattr(net.out, "scale") and figs.is_nm(
    net.out.kernel[...], "1:4"
  )
  hard = np.where(masks["out"]["kernel"], params["out"]["kernel"], 0)
  assert not np.allclose(net.out.kernel[...], hard)


def test_neural_gradients_are_pruned_inside_of_the_step():
  """The same seed gives the same step, another key another gradient."""
  recipe = recipes.create("ste", "1:4", STEPS, dense=0.0, mvue="1:2")
  model = figs.sparsify(Net(nnx.Rngs(0)), "1:4")
  runs = []
  for seed in (0, 0, 1):
    tx = recipe.transform(optax.sgd(0.1))
    state = TrainState.create(model, recipe, tx, seed=seed)
    runs.append(train_step(state, batch_of(0))[0].params["out"]["kernel"])
  plain = make("ste", tx=optax.sgd(0.1), dense=0.0)
  runs.append(train_step(plain, batch_of(0))[0].params["out"]["kernel"])
  np.testing.assert_array_equal(runs[0], runs[1])
  assert not np.array_equal(runs[0], runs[2])
  assert not np.array_equal(runs[0], runs[3])


def test_one_shot_may_look_at_gradients():
  recipe = recipes.create("one_shot", "1:4", STEPS, criterion="saliency")
  model = figs.sparsify(Net(nnx.Rngs(0)), "1:4")
  state = TrainState.create(model, recipe, recipe.transform(optax.sgd(0.1)))
  with pytest.raises(ValueError, match="grads=grads"):
    state.bound.masks(1, state.params, state.masks)
  for i in range(STEPS):
    state, _ = train_step(state, batch_of(i))
  by_weight = state.bound.target(state.params)["out"]["kernel"]
  assert (state.masks["out"]["kernel"] != by_weight).any()
  assert figs.is_nm(state.finished().out.kernel[...], "1:4")


def test_the_scale_is_that_of_the_weights_at_hand():
  """Also where weights were loaded after the masks were made."""
  recipe = recipes.create("s_ste", "1:4", STEPS)
  model = figs.sparsify(Plain(nnx.Rngs(0)), "1:4")
  model.out.kernel[...] = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
  state = TrainState.create(model, recipe, recipe.transform(optax.sgd(0.1)))
  wanted = state.bound.scales(state.params)["out"]["kernel"]
  np.testing.assert_array_equal(state.rest["out"]["scale"], wanted)


def test_seeds_draw_their_own_masks():
  recipe = recipes.create("one_shot", "1:4", STEPS, criterion="random")
  model = figs.sparsify(Plain(nnx.Rngs(0)), "1:4")
  bound = recipe.bind(figs.nn.masked_leaves(model))
  params = figs.nn.split(model)[1]
  masks = jax.vmap(lambda seed: bound.masks(STEPS, params, seed=seed))(
    jnp.arange(2, dtype=jnp.uint32)
  )["out"]["kernel"]
  assert (masks[0] != masks[1]).any()
  alone = bound.masks(STEPS, params, seed=1)["out"]["kernel"]
  np.testing.assert_array_equal(masks[1], alone)


def test_metrics_follow_the_recipe():
  state = make("mdgf_linear")
  leaks = []
  for i in range(STEPS):
    expected = state.recipe.leak_at(i)
    state, metrics = train_step(state, batch_of(i))
    assert float(metrics["leak"]) == pytest.approx(expected, abs=1e-7)
    leaks.append(float(metrics["leak"]))
  assert leaks[0] == 1.0
  assert leaks[-1] == 0.0
  assert leaks == sorted(leaks, reverse=True)


def test_dropout_is_a_function_of_seed_and_step():
  def losses(seed):
    state, out = make("ste", seed=seed), []
    for i in range(3):
      state, metrics = train_step(state, batch_of(i))
      out.append(float(metrics["loss"]))
    return out

  assert losses(0) == losses(0)
  assert losses(0) != losses(1)


def test_batch_statistics_move():
  state = make("ste")
  before = np.asarray(state.rest["norm"]["mean"])
  state, _ = train_step(state, batch_of(0))
  assert not np.array_equal(before, state.rest["norm"]["mean"])


def test_the_model_survives_donation():
  model = Net(nnx.Rngs(0))
  before = np.asarray(model.out.kernel[...])
  state = make("ste", model=model)
  train_step(state, batch_of(0))
  np.testing.assert_array_equal(model.out.kernel[...], before)


class Plain(nnx.Module):
  def __init__(self, rngs):
    self.out = nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    return self.out(x.mean((1, 2)))


def test_a_users_own_loss():
  def loss(model, batch, key):
    noise = jax.random.normal(key, batch["image"].shape)
    value = jnp.mean(model(batch["image"] + noise) ** 2)
    return value, {"twice": 2 * value}

  state = make("sr_ste", model=Plain(nnx.Rngs(0)), loss=loss)
  _, metrics = train_step(state, batch_of(0))
  assert float(metrics["twice"]) == pytest.approx(2 * float(metrics["loss"]))


def test_step_equals_numpy():
  """Masked softmax regression under STE and SGD, by hand."""
  state = make("ste", tx=optax.sgd(0.5), model=Plain(nnx.Rngs(0)))
  w = np.asarray(state.params["out"]["kernel"], np.float64)
  b = np.asarray(state.params["out"]["bias"], np.float64)
  for i in range(STEPS // 4, STEPS // 4 + 5):
    state = state_at(state, i)
    mask = np.asarray(state.masks["out"]["kernel"])
    batch = batch_of(i)
    x = np.asarray(batch["image"], np.float64).mean((1, 2))
    logits = x @ (w * mask) + b
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d = (p - np.eye(3)[np.asarray(batch["label"])]) / len(x)
    w, b = w - 0.5 * x.T @ d, b - 0.5 * d.sum(0)
    state, _ = train_step(state, batch)
    np.testing.assert_allclose(state.params["out"]["kernel"], w, atol=2e-6)
    best = np.abs(w).argmax(0)
    np.testing.assert_array_equal(
      state.masks["out"]["kernel"], np.arange(4)[:, None] == best
    )


def state_at(state, step):
  """The state moved to a step of the sparse phase, masks taken there."""
  import dataclasses

  count = jnp.int32(step)
  masks = state.bound.masks(count, state.params)
  return dataclasses.replace(state, step=count, masks=masks)


def test_accumulation_equals_the_whole_batch():
  one = make("ste", tx=optax.sgd(0.1), model=Plain(nnx.Rngs(0)))
  four = make(
    "ste", tx=optax.sgd(0.1), model=Plain(nnx.Rngs(0)), grad_accum_steps=4
  )
  for i in range(3):
    one, a = train_step(one, batch_of(i))
    four, b = train_step(four, batch_of(i))
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
  assert int(four.step) == 3
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
    one.params,
    four.params,
  )


def test_average_of_the_weights():
  state = make(
    "ste", tx=optax.sgd(0.1), model=Plain(nnx.Rngs(0)), ema_decay=0.9
  )
  mean = np.asarray(state.ema["out"]["kernel"])
  for i in range(5):
    state, _ = train_step(state, batch_of(i))
    mean = 0.9 * mean + 0.1 * np.asarray(state.params["out"]["kernel"])
  np.testing.assert_allclose(state.ema["out"]["kernel"], mean, rtol=1e-5)
  kernel = state.finished(ema=True).out.kernel[...]
  assert figs.is_nm(kernel, "1:4")
  kept = kernel != 0
  np.testing.assert_array_equal(kernel[kept], state.ema["out"]["kernel"][kept])


def test_diagnostics_only_when_due():
  state = make("ste", diagnose_every=2)
  seen = []
  for i in range(4):
    state, metrics = train_step(state, batch_of(i))
    seen.append(float(metrics["layers"]["out/kernel"]["density"]))
  assert seen == [0.0, 0.25, 0.0, 0.25]


@pytest.mark.parametrize("name", ["sr_ste", "step"])
def test_an_optimizer_that_lacks_the_recipes_part_is_refused(name):
  recipe = recipes.create(name, "1:4", total_steps=STEPS)
  model = figs.sparsify(Net(nnx.Rngs(0)), "1:4")
  with pytest.raises(ValueError, match="recipe.transform"):
    TrainState.create(model, recipe, optax.adamw(1e-3))


def test_a_sparse_recipe_wants_a_sparse_model():
  recipe = recipes.create("ste", "1:4", total_steps=STEPS)
  with pytest.raises(ValueError, match="sparsify"):
    TrainState.create(Net(nnx.Rngs(0)), recipe, optax.sgd(0.1))


def test_finishing_a_checkpoint_of_the_dense_phase():
  state = make("figs", dense=0.25)
  assert np.asarray(state.masks["out"]["kernel"]).all()
  kernel = state.finished().out.kernel[...]
  assert figs.is_nm(kernel, "1:2")
  assert int((kernel != 0).sum()) == kernel.size // 2


@pytest.mark.parametrize("dtype", ["float32", "float8_e4m3fn"])
def test_a_start_that_is_not_finite_is_refused(dtype):
  model = Plain(nnx.Rngs(0))
  kernel = model.out.kernel[...].at[1, 2].set(jnp.nan).astype(dtype)
  model.out.kernel.set_value(kernel)
  recipe = recipes.create("dense", "1:4", total_steps=STEPS)
  with pytest.raises(ValueError, match=f"out/kernel: expected fin.*{dtype}"):
    TrainState.create(model, recipe, optax.sgd(0.1))


class _Named(nnx.Module):
  def __init__(self, **variables):
    self.parts = nnx.data(
      {name.replace("_", "."): value for name, value in variables.items()}
    )


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    (
      {
        "fc": {"kernel": nnx.Param(jnp.ones(2))},
        "fc_kernel": nnx.Param(jnp.ones(2)),
      },
      r"\['fc.kernel'\] and .*\['fc'\]\['kernel'\]: .* as parts.fc.kernel",
    ),
    ({"a": nnx.Param(jnp.ones((0, 2)))}, r"parts/a: .* got shape \(0, 2\)"),
    ({"a": nnx.BatchStat(jnp.ones(0))}, r"parts/a: .* got shape \(0,\)"),
  ],
)
def test_variables_that_cannot_be_saved_are_refused(variables, message):
  recipe = recipes.create("dense", "1:4", total_steps=1)
  with pytest.raises(ValueError, match=message):
    TrainState.create(_Named(**variables), recipe, optax.sgd(0.1))


def test_sparse_then_dense_ends_as_a_dense_model():
  state = make("sparse_then_dense", dense=0.0)
  assert not nn.masked_leaves(state.finished())
  kernel = state.params["conv"]["kernel"]
  step, zeros = jax.jit(update), []
  for i in range(STEPS):
    state, _ = step(state, batch_of(i))
    kernel = np.asarray(state.params["conv"]["kernel"])
    zeros.append(float(np.mean(kernel == 0)))
  start = state.recipe.timeline.finetune_start  # its update is the first
  assert zeros[:start] == [0.75] * start and zeros[start] < 0.75
  # A channel that the head's masks left without an output follows a step later.
  assert zeros[start + 1 :] == [0] * (STEPS - start - 1)
  kernel = np.asarray(state.params["conv"]["kernel"])
  finished = state.finished()
  np.testing.assert_array_equal(finished.conv.kernel[...], kernel)
  rows = figs.layers_of(finished, example=batch_of(0)["image"])
  assert all(row["pattern"] is None for row in rows)
  cut = nn.split(state.finished(point="1:4"))[2]["conv"]["kernel"]
  assert float(cut.mean()) == 0.25
