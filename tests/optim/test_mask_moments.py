"""mask_moments against numpy, in every place optax may keep moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.optim import mask_moments, step_adamw

pytestmark = pytest.mark.standard_promotion
SHAPE = (4, 3)


def masks_of(t, seed=3):
  """A mask that changes every third update."""
  rng = np.random.default_rng((seed, t // 3))
  return rng.random(SHAPE) < 0.5


def adam_in_numpy(mode, steps, lr=0.1, b1=0.9, b2=0.999, eps=1e-8):
  rng = np.random.default_rng(0)
  w, m, v = np.ones(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE)
  previous, history = np.ones(SHAPE, bool), []
  for t in range(1, steps + 1):
    g, mask = rng.normal(size=SHAPE), masks_of(t - 1)
    if mode == "reset":
      m, v = m * (mask == previous), v * (mask == previous)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    if mode == "zero":
      m, v = m * mask, v * mask
    previous = mask
    history.append((w, m, v))
  return history


@pytest.mark.parametrize("mode", ["zero", "keep", "reset"])
def test_adam_equals_numpy(mode):
  tx = mask_moments(optax.adam(0.1), mode)
  params = {"w": jnp.ones(SHAPE), "b": jnp.ones(2)}
  state, update = tx.init(params), jax.jit(tx.update)
  rng = np.random.default_rng(0)
  for t, (w, m, v) in enumerate(adam_in_numpy(mode, 20)):
    grads = {"w": jnp.float32(rng.normal(size=SHAPE)), "b": jnp.ones(2)}
    masks = {"w": jnp.asarray(masks_of(t)), "b": None}
    updates, state = update(grads, state, params, masks=masks)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.inner[0].mu["w"], m, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.inner[0].nu["w"], v, rtol=1e-4, atol=1e-7)
    # zeros of the dense leaf would show here
    np.testing.assert_allclose(
      state.inner[0].mu["b"], 1 - 0.9 ** (t + 1), rtol=1e-5
    )


LABELS = {"w": "a", "b": "b"}
INNERS = {
  "adam": (lambda: optax.adam(0.1), 2),
  "adamw": (lambda: optax.adamw(0.1), 2),
  "momentum": (lambda: optax.sgd(0.1, momentum=0.9), 1),
  "lion": (lambda: optax.lion(0.1), 1),
  "adagrad": (lambda: optax.adagrad(0.1), 1),
  "adabelief": (lambda: optax.adabelief(0.1), 2),
  "amsgrad": (lambda: optax.amsgrad(0.1), 3),
  "adadelta": (lambda: optax.adadelta(0.1), 2),
  "ema": (lambda: optax.chain(optax.ema(0.9), optax.sgd(0.1)), 1),
  "adafactor, not factored": (
    # its clipping by the block's RMS would couple the entries
    lambda: optax.adafactor(
      0.1, factored=False, momentum=0.9, clipping_threshold=None
    ), 2,
  ),
  "adafactor, its momentum": (
    lambda: optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9), 1,
  ),
  "multi steps": (lambda: optax.MultiSteps(optax.adam(0.1), 2), 3),
  "injected": (lambda: optax.inject_hyperparams(optax.adamw)(0.1), 2),
  "masked": (lambda: optax.masked(optax.adam(0.1), {"w": True, "b": False}), 2),
  "partition": (
    lambda: optax.partition(
      {"a": optax.adam(0.1), "b": optax.sgd(0.1)}, LABELS
    ), 2,
  ),
  "apply if finite": (lambda: optax.apply_if_finite(optax.adam(0.1), 3), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", INNERS)
def test_every_moment_is_found_and_no_other(name):
  make, count = INNERS[name]
  inner = make()
  if isinstance(inner, optax.MultiSteps):
    inner = inner.gradient_transformation()
  params = {"w": jnp.ones(SHAPE), "b": jnp.ones(2)}
  mask = np.arange(12).reshape(SHAPE) % 2 == 0
  masks = {"w": jnp.asarray(mask), "b": None}
  tx, bare = mask_moments(inner), optax.with_extra_args_support(inner)
  state, free = tx.init(params), bare.init(params)
  grads = jax.tree.map(lambda p: 0.3 * p, params)
  for _ in range(3):
    updates, state = tx.update(grads, state, params, masks=masks)
    alone, free = bare.update(grads, free, params)
    for key in params:
      keep = mask if key == "w" else slice(None)
      np.testing.assert_array_equal(updates[key][keep], alone[key][keep])
  changed = 0
  pairs = zip(jax.tree.leaves(state.inner), jax.tree.leaves(free), strict=True)
  for ours, theirs in pairs:
    if ours.shape == SHAPE:
      np.testing.assert_array_equal(ours[~mask], 0)
      np.testing.assert_array_equal(ours[mask], theirs[mask])
      changed += 1
    else:
      np.testing.assert_array_equal(ours, theirs)
  assert changed == count


@pytest.mark.parametrize("mode", ["zero", "reset"])
def test_first_step_of_an_entry_that_returns_late(mode):
  """Zero moments under Adam's late bias correction: .1 / sqrt(.001) = 3.16."""
  tx = mask_moments(optax.scale_by_adam(), mode)
  grads = {"w": jnp.full(2, 0.7)}
  kept = {"w": jnp.array([True, True])}
  pruned = {"w": jnp.array([True, False])}

  @jax.jit
  def train(state):
    def one(state, _):
      return tx.update(grads, state, masks=pruned)[1], None

    state, _ = jax.lax.scan(one, state, None, length=20_000)
    return tx.update(grads, state, masks=kept)[0]["w"]

  stayed, returned = train(tx.init(grads))
  np.testing.assert_allclose(stayed, 1.0, rtol=1e-3)
  np.testing.assert_allclose(returned, 0.1 / np.sqrt(0.001), rtol=1e-3)
  assert 3.16 < float(returned) < 3.17


def test_reset_remembers_one_byte_per_parameter():
  params = {"w": jnp.ones(SHAPE), "b": jnp.ones(2), "none": None}
  reset = mask_moments(optax.adam(0.1), "reset").init(params).previous
  assert sum(x.nbytes for x in jax.tree.leaves(reset)) == 14
  assert mask_moments(optax.adam(0.1)).init(params).previous is None


def test_reset_under_gradient_accumulation_loses_no_gradient():
  """The moments go before the update, so the first mini-step counts whole."""
  params, half = {"w": jnp.ones(4)}, {"w": jnp.arange(4) < 2}
  full = {"w": jnp.ones(4, bool)}
  both = [
    mask_moments(
      optax.MultiSteps(optax.trace(0.9), 2).gradient_transformation(), "reset"
    ),
    optax.MultiSteps(
      mask_moments(optax.trace(0.9), "reset"), 2
    ).gradient_transformation(),
  ]
  out = []
  for tx in both:
    state = tx.init(params)
    for masks in (full, half, full):
      for g in (1.0, 3.0):
        updates, state = tx.update(
          {"w": jnp.full(4, g)}, state, params, masks=masks
        )
    out.append(updates["w"])
  wanted = [2 + 0.9 * (2 + 0.9 * 2)] * 2 + [2.0] * 2
  np.testing.assert_allclose(out[0], wanted, rtol=1e-6)
  np.testing.assert_allclose(out[1], wanted, rtol=1e-6)


def test_trees_that_only_resemble_the_params():
  """A tuple of two params is not mistaken for the state of a chain of two."""
  params = (jnp.ones(3), jnp.ones(3))
  masks = (jnp.array([True, False, True]), jnp.array([False, True, True]))
  tx = mask_moments(optax.chain(optax.trace(0.9), optax.trace(0.5)))
  _, state = tx.update(params, tx.init(params), masks=masks)
  for trace in state.inner:
    np.testing.assert_array_equal(trace.trace[0] == 0, ~masks[0])
    np.testing.assert_array_equal(trace.trace[1] == 0, ~masks[1])


def test_one_array_as_params():
  tx = mask_moments(optax.adam(0.1))
  w, mask = jnp.ones(3), jnp.array([True, False, True])
  _, state = tx.update(w, tx.init(w), w, masks=mask)
  np.testing.assert_array_equal(state.inner[0].mu == 0, ~mask)


@pytest.mark.parametrize(
  "inner,message",
  [
    (optax.adafactor(0.1, min_dim_size_to_factor=2), "factored"),
    (step_adamw(0.1, t_min=1, t_max=2), "frozen"),
    (
      optax.MultiSteps(
        step_adamw(0.1, t_min=1, t_max=2), 2
      ).gradient_transformation(),
      "frozen",
    ),
  ],
)
@pytest.mark.parametrize("mode", ["zero", "reset", "keep"])
def test_what_it_refuses(inner, message, mode):
  params = {"w": jnp.ones(SHAPE)}
  tx = mask_moments(inner, mode)
  if mode == "keep":
    tx.init(params)
    return
  with pytest.raises(ValueError, match=message) as error:
    tx.init(params)
  assert "\n" not in str(error.value)


def test_an_optimizer_without_moments_has_none_to_control():
  params, masks = {"w": jnp.ones(2)}, {"w": jnp.array([True, False])}
  tx = mask_moments(optax.sgd(0.5))
  updates, _ = tx.update(params, tx.init(params), params, masks=masks)
  np.testing.assert_array_equal(updates["w"], -0.5)


@pytest.mark.parametrize("mode", ["zero", "reset"])
@pytest.mark.parametrize("labels", [{"a": "x", "b": "y"}, "x"])
def test_labels_of_whole_branches(labels, mode):
  """`partition` hides a branch behind one node, not its leaves."""
  params = {k: {"w": jnp.ones(4), "v": jnp.ones(2)} for k in "ab"}
  mask = jnp.array([True, False, True, True])
  masks = {k: {"w": mask, "v": None} for k in "ab"}
  parts = {"x": optax.trace(0.9), "y": optax.trace(0.5)}
  tx = mask_moments(optax.partition(parts, labels), mode)
  state = tx.init(params)
  for _ in range(2):  # after a change of masks, `reset` zeroes before adding
    updates, state = tx.update(params, state, params, masks=masks)
  kept = {"x": 1.9, "y": 1.5}
  for branch in "ab":
    label = labels if labels == "x" else labels[branch]
    trace = state.inner.inner_states[label].inner_state.trace[branch]
    pruned = {"zero": 0.0, "reset": kept[label]}[mode]
    wanted = np.where(mask, kept[label], pruned)
    np.testing.assert_allclose(trace["w"], wanted, rtol=1e-6)
    np.testing.assert_allclose(trace["v"], kept[label], rtol=1e-6)


def test_an_unknown_mode():
  with pytest.raises(ValueError, match="Known: zero, keep, reset"):
    mask_moments(optax.adam(0.1), "zeros")
