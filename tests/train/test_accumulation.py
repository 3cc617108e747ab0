"""Micro-batches, devices and seeds give the step of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import recipes
from figs_jax.train import seeds
from figs_jax.train.losses import (
  Mean,
  MixedCrossEntropy,
  cross_entropy,
  teacher_forcing,
)
from figs_jax.train.sharding import batch_sharding, make_mesh, state_shardings
from figs_jax.train.state import TrainState, train_step, update
from tests.models import families

pytestmark = pytest.mark.standard_promotion
LENGTHS = (12, 2, 12, 2)


def text(lengths, vocab=16):
  """Inputs, and targets of these lengths, padded with 0."""
  size = (len(lengths), max(lengths))
  ids = np.random.default_rng(0).integers(2, vocab, (2, *size), np.int32)
  kept = np.arange(size[1]) < np.array(lengths)[:, None]
  return {"inputs": ids[0], "targets": np.where(kept, ids[1], 0)}


class Bigrams(nnx.Module):
  """Logits of a token depend on the one before, through a sparse kernel."""

  def __init__(self, rngs, vocab=16):
    self.table = nnx.Embed(vocab, 8, rngs=rngs)
    self.head = nnx.Linear(8, vocab, rngs=rngs)

  def __call__(self, inputs, targets):
    del inputs
    before = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return self.head(self.table(before))


def state_of(model, *, loss, parts=1, pattern="2:4", **options):
  recipe = recipes.create("ste", pattern, total_steps=10, dense=0.0)
  model = figs.sparsify(model, recipe)
  tx = recipe.transform(optax.sgd(1.0))  # an update is the gradient
  return TrainState.create(
    model, recipe, tx, loss=loss, grad_accum_steps=parts, **options
  )


def stepped(batch, mesh=None, count=0, **options):
  """(parameters, metrics) after a step on a mesh, with seeds."""

  def make(seed):
    model = Bigrams(nnx.Rngs(jax.random.key(seed)))
    return state_of(model, loss=teacher_forcing, seed=seed, **options)

  state = seeds.create_states(make, range(count)) if count else make(0)
  step = seeds.step_seeds if count else update
  if mesh is not None:
    placed = state_shardings(state, mesh, state.bound, bool(count))
    state = jax.device_put(state, placed)
    batch = jax.device_put(batch, batch_sharding(mesh))
  state, metrics = jax.jit(step)(state, batch)
  return state.params, metrics


def assert_close(one, other, rtol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6),
    one,
    other,
  )


def test_t5_on_targets_of_different_lengths():
  """A mean of means would be 4.4209 at two parts, for 4.1824."""
  results = []
  for parts in (1, 2, 4):
    model = families.create("t5", scan=True, **families.TINY["t5"].fewer)
    state = state_of(
      model, loss=teacher_forcing, parts=parts, pattern="ff: 1:4"
    )
    state, metrics = train_step(state, text(LENGTHS, vocab=24))
    results.append((state.params, metrics))
  assert_close(results[1], results[0])
  assert_close(results[2], results[0])


@pytest.mark.parametrize(
  ("data", "fsdp", "count"),
  [(1, 1, 0), (8, 1, 0), (2, 4, 0), (1, 1, 2), (4, 2, 2), (8, 1, 2)],
)
def test_accumulation_times_mesh_times_seeds(data, fsdp, count):
  """Examples of log-normal lengths, some of which have no target."""
  rng = np.random.default_rng(1)
  lengths = np.clip(rng.lognormal(1.0, 1.0, 32), 0, 20).astype(int)
  batch = text(lengths)
  whole = stepped(batch, count=count)
  tokens = (batch["targets"] != 0).sum(-1)
  assert min(tokens) == 0 and max(tokens) > 10
  mesh = make_mesh(data, fsdp)
  for parts in (1, 4):
    assert_close(stepped(batch, mesh, count, parts=parts), whole)


class Classes(nnx.Module):
  def __init__(self, rngs):
    self.out = nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    return self.out(x)


@pytest.mark.parametrize("loss", [cross_entropy, MixedCrossEntropy(3)])
def test_images(loss):
  image = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  batch = {"image": image, "label": np.arange(8) % 3}
  results = []
  for parts in (1, 2, 8):
    state = state_of(
      Classes(nnx.Rngs(0)), loss=loss, parts=parts, pattern="1:4"
    )
    state, metrics = train_step(state, batch)
    results.append((state.params, metrics))
  assert_close(results[1], results[0])
  assert_close(results[2], results[0])


def test_scalars_of_a_users_loss_become_means_of_means():
  def of_sums(model, batch, key):
    values, kept = model(batch["x"])[:, 0], batch["kept"]
    total, count = (values * kept).sum(), kept.sum()
    return Mean(total, count), {"share": Mean(count, len(kept)), "one": 1}

  def plain(model, batch, key):
    return of_sums(model, batch, key)[0].value, {"one": 1}

  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 4)).astype(np.float32)
  kept = np.array([1, 1, 0, 1], np.float32)
  state = state_of(Classes(nnx.Rngs(0)), loss=of_sums, parts=2, pattern="1:4")
  kernel = np.asarray(state.params["out"]["kernel"])
  values = x @ np.where(state.masks["out"]["kernel"], kernel, 0)[:, 0]
  _, metrics = train_step(state, {"x": x, "kept": kept})
  assert float(metrics["loss"]) == pytest.approx(
    (values * kept).sum() / 3, rel=1e-5
  )
  assert (float(metrics["share"]), float(metrics["one"])) == (0.75, 1.0)
  state = state_of(Classes(nnx.Rngs(0)), loss=plain, parts=2, pattern="1:4")
  _, metrics = train_step(state, {"x": x, "kept": kept})
  means = [values[0], (values[1] + values[3]) / 2]  # strided
  assert float(metrics["loss"]) == pytest.approx(np.mean(means), rel=1e-5)


class Weights(nnx.Module):
  def __init__(self, dtype):
    self.w = nnx.Param(jnp.ones((4,), dtype))


def weighted(model, batch, key):
  del key
  return (batch @ model.w[...]).mean(), {}


def dense_state(dtype, rate, **options):
  recipe = recipes.create("dense", "1:4", total_steps=10)
  tx = recipe.transform(optax.sgd(rate))
  return TrainState.create(Weights(dtype), recipe, tx, loss=weighted, **options)


def test_many_parts_are_added_up_in_float32():
  """In bfloat16, a sum stands still once a term is below half its spacing."""
  x = np.random.default_rng(0).uniform(0.5, 1.0, (256, 4)).astype(jnp.bfloat16)
  state = dense_state("bfloat16", 1.0, grad_accum_steps=256)
  state, metrics = train_step(state, x)
  moved = 1 - np.asarray(state.params["w"], np.float32)
  wanted = x.astype(np.float32).mean(0)
  np.testing.assert_allclose(moved, wanted, rtol=0.01)
  assert state.params["w"].dtype == jnp.bfloat16
  assert float(metrics["loss"]) == pytest.approx(wanted.sum(), rel=0.005)


@pytest.mark.parametrize("decay", [0.999, 0.9999])
def test_averages_of_low_precision_move(decay):
  state = dense_state("bfloat16", 0.1, ema_decay=decay)
  x = np.full((1, 4), 0.25, jnp.bfloat16)

  def body(state, _):
    state, _ = update(state, x)
    return state, state.params["w"]

  state, seen = jax.lax.scan(body, state, None, length=1000)
  mean = np.ones(4)
  for w in np.asarray(seen, np.float64):
    mean = decay * mean + (1 - decay) * w
  assert state.ema["w"].dtype == jnp.float32
  np.testing.assert_allclose(state.ema["w"], mean, rtol=1e-4)
  finished = state.finished(ema=True).w[...]
  assert finished.dtype == jnp.bfloat16
  np.testing.assert_array_equal(finished, state.ema["w"].astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["dense", "ste", "sr_ste", "step"])
def test_adam_sees_float32(name, dtype):
  """In float16, 1e-8 is 0, and an input without signal made 0 / 0."""
  recipe = recipes.create(name, "1:4", total_steps=10, dense=0.0)
  params = []
  for each in (dtype, "float32"):
    model = Classes(nnx.Rngs(0))
    kernel = model.out.kernel[...].astype(dtype).astype(each)
    model.out.kernel.set_value(kernel)
    model = figs.sparsify(model, recipe)
    state = TrainState.create(model, recipe, recipe.adamw(1e-2))
    image = jax.random.normal(jax.random.key(0), (6, 4)).at[:, 3].set(0.0)
    for _ in range(4):
      state, _ = train_step(state, {"image": image, "label": jnp.arange(6) % 3})
    params.append(np.asarray(state.params["out"]["kernel"], np.float32))
    floats = jax.tree.leaves(state.opt_state)
    assert not [x for x in floats if x.dtype in (jnp.float16, jnp.bfloat16)]
  np.testing.assert_allclose(*params, atol=0.02)


def test_second_moments_do_not_stick():
  """An exponential mean in bfloat16 stands still at a part of its limit."""
  recipe = recipes.create("dense", "1:4", total_steps=10)
  tx = recipe.adamw(0.0, weight_decay=0.0)
  state = TrainState.create(Weights("bfloat16"), recipe, tx, loss=weighted)
  x = np.full((1, 4), 0.25, jnp.bfloat16)
  body = lambda state, _: (update(state, x)[0], None)  # noqa: E731
  state, _ = jax.lax.scan(body, state, None, length=3000)
  nu = optax.tree.get(state.opt_state, "nu")["w"]
  np.testing.assert_allclose(nu, 0.25**2 * (1 - 0.999**3000), rtol=1e-4)
