"""STEP's Adam against numpy, against optax's Adam, and its own statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from figs_jax.optim import auto_switch, scale_by_step_adam, step_adamw

SHAPES = {"a": (2, 3), "b": (4,), "c": (5,)}
MASKED = ("a", "c")
MASKS = {
  "a": jnp.array([[True, False, True], [False, True, True]]),
  "b": None,
  "c": jnp.array([True, False, False, True, False]),
}
SETTINGS = {
  "b1": 0.8,
  "b2": 0.6,
  "eps": 1e-3,
  "t_min": 4,
  "t_max": 15,
  "window": 3,
}


def gradients(steps, seed=0):
  """Gaussian, getting smaller so that the second moment settles."""
  rng = np.random.default_rng(seed)
  return [
    {k: 0.8**t * rng.normal(size=shape) for k, shape in SHAPES.items()}
    for t in range(steps)
  ]


def reference(
  grads, *, b1, b2, eps, t_min, t_max, window, criterion="absolute",
  mean="arithmetic", threshold=None, bias_correct=True, eps_in_root=False,
):  # fmt: skip
  """Updates, levels of the criterion, and the update that switched."""
  m = {k: np.zeros(s) for k, s in SHAPES.items()}
  v = {k: np.zeros(s) for k, s in SHAPES.items()}
  v_star, ring, out, levels, switch = None, [], [], [], None
  for t, g in enumerate(grads, start=1):
    old = v
    m = {k: b1 * m[k] + (1 - b1) * g[k] for k in g}
    v = {k: b2 * v[k] + (1 - b2) * g[k] ** 2 for k in g}
    step = {}
    for k in g:
      m_hat = m[k] / (1 - b1**t)
      if switch is not None and k in MASKED:
        inside, outside = (eps, 0) if eps_in_root else (0, eps)
        step[k] = m_hat / (np.sqrt(v_star[k] + inside) + outside)
      else:
        step[k] = m_hat / (np.sqrt(v[k] / (1 - b2**t)) + eps)
    out.append(step)
    moved = np.concatenate([np.abs(v[k] - old[k]).ravel() for k in MASKED])
    if mean == "geometric":
      moved = np.exp(np.mean(np.log(moved + np.finfo(np.float32).tiny)))
    ring = [*ring, moved.mean()][-window:]
    level = np.mean(ring)
    if criterion == "relative":
      level /= np.concatenate([v[k].ravel() for k in MASKED]).mean()
    levels.append(level)
    below = level < (eps if threshold is None else threshold)
    settled = len(ring) == window and t > t_min and below
    if switch is None and (settled or t > t_max):
      switch = t
      scale = 1 - b2**t if bias_correct else 1
      v_star = {k: v[k] / scale for k in MASKED}
  return out, levels, switch


def run(tx, grads, masks=MASKS):
  state, update = (
    tx.init(jax.tree.map(jnp.float32, grads[0])),
    jax.jit(tx.update),
  )
  out, states = [], []
  for g in grads:
    updates, state = update(jax.tree.map(jnp.float32, g), state, masks=masks)
    out.append(updates)
    states.append(state)
  return out, states


@pytest.mark.parametrize("decides", ["criterion", "t_min", "t_max"])
@pytest.mark.parametrize("bias_correct", [True, False])
@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
@pytest.mark.parametrize("criterion", ["absolute", "relative"])
def test_twenty_five_steps_equal_numpy(criterion, mean, bias_correct, decides):
  grads = gradients(25)
  options = dict(
    SETTINGS, criterion=criterion, mean=mean, bias_correct=bias_correct
  )
  _, levels, _ = reference(grads, **options, threshold=0.0)
  settles = 1.01 * min(levels[5:12])
  options |= {
    "criterion": {"threshold": settles},
    "t_min": {"threshold": 2 * max(levels), "t_min": 9},
    "t_max": {"threshold": 0.0},
  }[decides]
  wanted, _, switch = reference(grads, **options)
  assert (
    switch in {"criterion": range(5, 13), "t_min": [10], "t_max": [16]}[decides]
  )
  got, states = run(scale_by_step_adam(**options), grads)
  assert [bool(s.switched) for s in states] == [
    t >= switch for t in range(1, 26)
  ]
  for ours, theirs in zip(got, wanted, strict=True):
    for k in SHAPES:
      np.testing.assert_allclose(ours[k], theirs[k], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("eps_in_root", [False, True])
def test_at_the_latest_after_t_max_and_v_star_then_stays(eps_in_root):
  grads = gradients(20)
  options = dict(SETTINGS, threshold=0.0, eps_in_root=eps_in_root)
  wanted, _, switch = reference(grads, **options)
  assert switch == 16, "the first t > t_max = 15"
  got, states = run(scale_by_step_adam(**options), grads)
  assert [bool(s.switched) for s in states].index(True) == 15
  for ours, theirs in zip(got, wanted, strict=True):
    for k in SHAPES:
      np.testing.assert_allclose(ours[k], theirs[k], rtol=2e-4, atol=1e-6)
  for state in states[16:]:
    for k in MASKED:
      np.testing.assert_array_equal(state.nu[k], states[15].nu[k])
    assert np.any(state.nu["b"] != states[15].nu["b"])
    np.testing.assert_array_equal(state.window, states[15].window)


def test_never_up_to_t_min():
  _, states = run(
    scale_by_step_adam(**dict(SETTINGS, t_min=9, threshold=1e9)), gradients(12)
  )
  assert [bool(s.switched) for s in states] == [t > 9 for t in range(1, 13)]


def test_never_before_the_window_is_full():
  tx = scale_by_step_adam(t_min=0, t_max=99, window=7, threshold=1e9)
  _, states = run(tx, gradients(9))
  assert [bool(s.switched) for s in states] == [t >= 7 for t in range(1, 10)]


@pytest.mark.parametrize("t_min,length", [(0, 1), (40, 40), (5000, 1000)])
def test_default_window(t_min, length):
  tx = scale_by_step_adam(t_min=t_min, t_max=t_min)
  assert tx.init({}).window.shape == (length,)


@pytest.mark.parametrize("size,paper", [(1e-4, 1.4), (1e-5, 10), (1e-6, 99)])
def test_the_update_is_continuous_at_the_switch_unless_eps_is_in_the_root(
  size, paper
):
  """A constant gradient g: the paper shrinks by sqrt(g² + eps) / (g + eps)."""
  grads = [{"w": np.full(2, size)}] * 30
  masks = {"w": jnp.array([True, False])}
  for eps_in_root, wanted in ((False, 1), (True, paper)):
    tx = step_adamw(
      1e-3, weight_decay=0.0, t_min=5, t_max=20, eps_in_root=eps_in_root
    )
    state, w, moves = tx.init({"w": jnp.zeros(2)}), {"w": jnp.zeros(2)}, []
    update = jax.jit(tx.update)
    for g in grads:
      step, state = update(jax.tree.map(jnp.float32, g), state, w, masks=masks)
      moves.append(step["w"])
    assert state[0].switched
    np.testing.assert_allclose(moves[0] / moves[-1], wanted, rtol=0.03)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
  "dtype,options",
  [
    (jnp.float32, {}),
    (jnp.float32, {"mu_dtype": jnp.bfloat16}),
    (jnp.bfloat16, {}),
    (jnp.float16, {}),
  ],
)
def test_phase_one_is_optax_adam_bit_for_bit(dtype, compiled, options):
  """Of 16-bit gradients it is Adam in float32, rounded at the end."""
  options = dict(options, eps_root=1e-9, b1=0.85, b2=0.95)
  ours = scale_by_step_adam(t_min=50, t_max=50, **options)
  theirs = optax.scale_by_adam(**options)
  wrap = jax.jit if compiled else lambda fn: fn
  update, adam = wrap(ours.update), wrap(theirs.update)
  params = {k: jnp.zeros(s, dtype) for k, s in SHAPES.items()}
  a = ours.init(params)
  b = theirs.init(jax.tree.map(jnp.float32, params))
  for g in gradients(30 if compiled else 5):
    g = jax.tree.map(lambda x: jnp.asarray(x, dtype), g)
    x, a = update(g, a, masks=MASKS)
    y, b = adam(jax.tree.map(jnp.float32, g), b)
    y = jax.tree.map(lambda u: u.astype(dtype), y)
    jax.tree.map(np.testing.assert_array_equal, x, y)
    jax.tree.map(np.testing.assert_array_equal, (a.mu, a.nu), (b.mu, b.nu))
    assert jax.tree.map(jnp.result_type, (x, a.mu, a.nu)) == jax.tree.map(
      jnp.result_type, (y, b.mu, b.nu)
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_frozen_moment_of_16_bit_params_has_not_stuck(dtype):
  """In bfloat16 v would stop at .03125 under g = .25."""
  tx = scale_by_step_adam(t_min=3000, t_max=3000, window=1)
  params, masks = {"w": jnp.zeros(2, dtype)}, {"w": jnp.ones(2, bool)}
  grads = {"w": jnp.full(2, 0.25, dtype)}
  one = lambda state, _: (tx.update(grads, state, masks=masks)[1], None)  # noqa: E731
  state, _ = jax.lax.scan(one, tx.init(params), None, 3001)
  assert state.switched
  v = 0.25**2 * (1 - 0.999**3001)  # .0594
  np.testing.assert_allclose(state.nu["w"], v, rtol=1e-4)
  updates, _ = tx.update(grads, state, masks=masks)
  assert updates["w"].dtype == dtype
  np.testing.assert_allclose(updates["w"], 1.0, rtol=1e-2)


def first_switches(stds, t_min, t_max, size=500, b2=0.999, **options):
  """The updates that set the flag, for Gaussian gradients of each std."""
  tx = scale_by_step_adam(b2=b2, t_min=t_min, t_max=t_max, **options)
  params = {"w": jnp.zeros(size)}
  masks = {"w": jnp.arange(size) % 2 == 0}

  @jax.jit
  @jax.vmap
  def simulate(std):
    def one(state, key):
      grads = {"w": std * jax.random.normal(key, (size,))}
      return tx.update(grads, state, masks=masks)[1], state.switched

    keys = jax.random.split(jax.random.key(0), t_max + 2)
    return jax.lax.scan(one, tx.init(params), keys)[1]

  return np.argmax(simulate(jnp.asarray(stds)), axis=1).tolist()


@pytest.mark.parametrize(
  "t_min,soonest",
  [
    (0, 1),  # then the window holds one value
    (800, 801),  # T_min has passed and the window of 800 is full
    (1200, 1201),  # T_min has passed, the window of 1000 is full before
  ],
)
def test_the_absolute_criterion_depends_on_scale(t_min, soonest):
  """The published simulation: b2 .999, eps 1e-8, Gaussian gradients."""
  stds = [1e-4, 1e-3, 3e-3, 1e-2, 0.1, 1.0]
  got = first_switches(stds, t_min, 1500)
  assert got == [soonest] * 3 + [1501] * 3


def test_as_soon_as_a_full_window_is_full():
  got = first_switches([1e-3, 3e-3, 1e-2], 0, 1500, window=1000)
  assert got == [1000, 1000, 1501]


def test_the_relative_criterion_does_not():
  options = {"criterion": "relative", "threshold": 1.1e-2, "b2": 0.99}
  ends = set(first_switches([1e-4, 1e-2, 1.0], 100, 700, **options))
  assert len(ends) == 1 and 100 < ends.pop() < 700


def test_no_masked_leaf_switches_by_t_max_and_stays_adam():
  grads = gradients(8)
  masks = dict.fromkeys(SHAPES)
  options = dict(SETTINGS, t_max=5, t_min=2)
  got, states = run(scale_by_step_adam(**options), grads, masks)
  assert [bool(s.switched) for s in states] == [t > 5 for t in range(1, 9)]
  never, _ = run(scale_by_step_adam(**dict(options, t_max=99)), grads, masks)
  jax.tree.map(np.testing.assert_array_equal, got, never)


@pytest.mark.parametrize(
  "bad,message",
  [
    ({"t_min": 5, "t_max": 4}, "0 <= t_min <= t_max"),
    ({"t_min": -1}, "0 <= t_min <= t_max"),
    ({"criterion": "relativ"}, "Known: absolute, relative"),
    ({"mean": "median"}, "Known: arithmetic, geometric"),
    ({"window": 0}, "at least 1"),
  ],
)
def test_illegal_options(bad, message):
  with pytest.raises(ValueError, match=message):
    scale_by_step_adam(**({"t_min": 1, "t_max": 10} | bad))


@pytest.mark.standard_promotion
def test_step_adamw_is_adamw_until_the_switch():
  decayed = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)  # noqa: E731
  schedule = optax.linear_schedule(1e-2, 0.0, 20)
  ours = step_adamw(schedule, 0.8, 0.9, 1e-6, 0.1, decayed, t_min=50, t_max=50)
  theirs = optax.adamw(schedule, 0.8, 0.9, 1e-6, weight_decay=0.1, mask=decayed)
  params = {k: jnp.ones(s) for k, s in SHAPES.items()}
  a, b, p, q = ours.init(params), theirs.init(params), params, params
  update, adamw = jax.jit(ours.update), jax.jit(theirs.update)
  for g in gradients(20):
    g = jax.tree.map(jnp.float32, g)
    x, a = update(g, a, p, masks=MASKS)
    y, b = adamw(g, b, q)
    p, q = optax.apply_updates(p, x), optax.apply_updates(q, y)
    jax.tree.map(np.testing.assert_array_equal, p, q)


def test_more_weights_than_an_int32_counts():
  """The criterion's mean, traced for the masks of T5-XXL."""
  shape = jax.ShapeDtypeStruct((48, 8192, 16384), jnp.float32)
  mask = jax.ShapeDtypeStruct(shape.shape, jnp.bool)
  mean = jax.eval_shape(
    lambda m, x: auto_switch._mean(jnp.abs, {"w": m}, {"w": x}), mask, shape
  )
  assert mean.dtype == jnp.float32
