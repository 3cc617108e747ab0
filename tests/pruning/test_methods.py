"""Pruning of one kernel against brute force and closed forms in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core.masks import is_nm, nm_mask
from figs_jax.core.pattern import NM
from figs_jax.pruning import (
  METHODS,
  Choice,
  layer_error,
  obs_scores,
  prune_kernel,
  ria_scores,
  sparsegpt,
  sparseswaps,
  swaps,
  wanda_scores,
)

EVERY = sorted(METHODS)


def layer(rows, k, n, seed=0, heavy=False):
  """Weights, inputs and their second moment, of correlated inputs."""
  rng = np.random.default_rng(seed)
  draw = (
    (lambda *s: rng.standard_t(3, size=s)) if heavy else rng.standard_normal
  )
  shape = (lambda *s: draw(*s)) if heavy else (lambda *s: draw(s))
  w = shape(k, n)
  x = shape(rows, k) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
  return w.astype(np.float32), x, (x.T @ x).astype(np.float32)


def in_float64(kernel, moment, *args, **options):
  with jax.enable_x64(True):
    wide = kernel.astype(np.float64), moment.astype(np.float64)
    return jax.tree.map(np.asarray, prune_kernel(*wide, *args, **options))


def masks_of(k, n, m):
  """Every n:m mask of a column of length k."""
  groups = [
    np.isin(np.arange(m), c) for c in itertools.combinations(range(m), n)
  ]
  return np.array(
    [np.concatenate(each) for each in itertools.product(groups, repeat=k // m)]
  )


def best_error(w, h, masks, refitted):
  """The least ||X w - X w'||^2 of every column over all masks."""
  w, h = w.astype(float), h.astype(float)
  if not refitted:
    r = np.where(masks[:, :, None], 0, w)
    return np.einsum("ckn,kl,cln->cn", r, h, r).min(0)
  # With the best weights, r^T H r is p^T (inv(H)_PP)^-1 p of the pruned p.
  inverse, best = np.linalg.inv(h), np.inf
  for mask in masks:
    p = w[~mask]
    left = np.linalg.solve(inverse[np.ix_(~mask, ~mask)], p)
    best = np.minimum(best, np.sum(p * left, 0))
  return best


def column_errors(w, pruned, h):
  d = w.astype(float) - np.asarray(pruned, float)
  return np.einsum("kn,kl,ln->n", d, h.astype(float), d)


def sparsegpt_in_numpy(w, h, n, m, damping):
  """One input after another, with an inverse of its own each time."""
  w, h = w.astype(float).copy(), h.astype(float)
  h = h + damping * np.diag(h).mean() * np.eye(len(h))
  keep = np.ones(w.shape, bool)
  for i in range(len(w)):
    if i % m == 0:
      errors = [
        w[j] ** 2 / np.linalg.inv(h[j:, j:])[0, 0] for j in range(i, i + m)
      ]
      order = np.argsort(-np.array(errors), axis=0, kind="stable")
      keep[i : i + m] = np.argsort(order, axis=0) < n
    inverse = np.linalg.inv(h[i:, i:])
    removed = np.where(keep[i], 0, w[i])
    w[i:] -= inverse[:, :1] / inverse[0, 0] * removed
    w[i] = np.where(keep[i], w[i], 0)
  return w, keep


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8", "3:6", "2:3"])
def test_sparsegpt_is_the_algorithm_in_numpy(pattern):
  nm = NM.parse(pattern)
  w, _, h = layer(200, 24, 5)
  expected, keep = sparsegpt_in_numpy(w, h, nm.n, nm.m, 0.01)
  for block in (nm.m, 2 * nm.m, 128):  # blocks change nothing
    pruned, mask = in_float64(w, h, pattern, block=block)
    assert np.array_equal(mask, keep)
    np.testing.assert_allclose(pruned, expected, rtol=1e-9, atol=1e-9)
  pruned, mask = prune_kernel(w, h, pattern)  # float32 suffices
  assert np.array_equal(mask, keep)
  np.testing.assert_allclose(pruned, expected, rtol=1e-3, atol=1e-3)


def test_one_removed_weight_is_updated_in_closed_form():
  w, x, h = layer(50, 8, 3)
  mask = np.ones(w.shape, bool)
  mask[0] = False  # all others come later, so that all are updated
  choice = Choice(NM(2, 4))
  pruned, _ = sparsegpt(w, h, choice, damping=0.0, mask=jnp.asarray(mask))
  inverse = np.linalg.inv(h.astype(float))
  closed = w - inverse[:, :1] * w[0] / inverse[0, 0]
  np.testing.assert_allclose(pruned, closed, atol=2e-4)
  error = column_errors(w, pruned, h)
  np.testing.assert_allclose(error, w[0] ** 2 / inverse[0, 0], rtol=1e-3)
  scores = obs_scores(w, h, 0.0)
  np.testing.assert_allclose(scores[0], w[0] ** 2 / inverse[0, 0], rtol=1e-3)
  solution = np.linalg.lstsq(x[:, 1:], x @ w.astype(float))[0]
  np.testing.assert_allclose(pruned[1:], solution, atol=2e-4)


def test_independent_inputs_make_sparsegpt_wanda():
  w, _, h = layer(50, 16, 6)
  h = np.diag(np.diag(h))
  np.testing.assert_allclose(
    obs_scores(w, h, 0.0), np.square(wanda_scores(w, h)), rtol=1e-5
  )
  first, second = (
    prune_kernel(w, h, "2:4", method, **options)
    for method, options in (("wanda", {}), ("sparsegpt", {"damping": 0.0}))
  )
  assert np.array_equal(first[1], second[1])
  np.testing.assert_array_equal(first[0], second[0])
  # With equal norms, wanda is magnitude.
  eye = np.eye(16, dtype=np.float32)
  assert np.array_equal(
    prune_kernel(w, eye, "2:4", "wanda")[1],
    prune_kernel(w, eye, "2:4", "magnitude")[1],
  )


def test_wanda_and_ria_in_numpy():
  w, x, h = layer(40, 8, 5)
  norms = np.linalg.norm(x, axis=0)[:, None]
  size = np.abs(w)
  np.testing.assert_allclose(wanda_scores(w, h), size * norms, rtol=1e-5)
  relative = size / size.sum(0) + size / size.sum(1, keepdims=True)
  for exponent in (0.0, 0.5, 1.0):
    np.testing.assert_allclose(
      ria_scores(w, h, exponent), relative * norms**exponent, rtol=1e-5
    )
  pruned, mask = prune_kernel(w, h, "1:4", "ria", exponent=1.0)
  assert np.array_equal(mask, nm_mask(relative * norms, "1:4", 0))
  assert np.array_equal(pruned, np.where(mask, w, 0))


@pytest.mark.parametrize("method", ["wanda", "alps", "sparseswaps"])
def test_refitted_weights_are_least_squares_on_the_mask(method):
  w, x, h = layer(60, 16, 4)
  pruned, mask = in_float64(w, h, "2:4", method, refit=True, damping=0.0)
  ridge, same = in_float64(w, h, "2:4", "wanda", refit=True, damping=0.1)
  weight = 0.1 * np.diag(h).mean()
  for j in range(w.shape[1]):
    kept, target = x[:, mask[:, j]], x @ w[:, j].astype(float)
    solution = np.linalg.lstsq(kept, target)[0]
    np.testing.assert_allclose(pruned[mask[:, j], j], solution, atol=1e-5)
    tall = np.concatenate([x, np.sqrt(weight) * np.eye(16)])
    wide = np.linalg.lstsq(tall[:, same[:, j]], tall @ w[:, j].astype(float))[0]
    np.testing.assert_allclose(ridge[same[:, j], j], wide, atol=1e-5)


@pytest.mark.parametrize("heavy", [False, True])
def test_sparseswaps_finds_the_best_masks(heavy):
  """benchmarks/prune.py counts 200 layers of each kind."""
  masks, hits = masks_of(8, 2, 4), 0
  for seed in range(20):
    w, _, h = layer(16, 8, 8, seed, heavy)
    pruned, mask = prune_kernel(w, h, "2:4", "sparseswaps")
    assert np.array_equal(pruned, np.where(mask, w, 0))
    best, error = best_error(w, h, masks, False), column_errors(w, pruned, h)
    assert np.all(error >= best * (1 - 1e-4))
    hits += np.all(error <= best * (1 + 1e-4))
  assert hits >= 19


def test_no_swap_improves_a_mask_of_sparseswaps():
  w, _, h = layer(80, 24, 6, seed=3)
  start = prune_kernel(w, h, "2:6", "wanda")[0]
  choice = Choice(NM(2, 6))
  pruned, mask = sparseswaps(w, h, choice, starts=("wanda",), escapes=0)
  error, mask = column_errors(w, pruned, h), np.asarray(mask)
  assert np.all(error <= column_errors(w, start, h))
  for j, p in itertools.product(range(6), range(24)):
    for q in range(p // 6 * 6, p // 6 * 6 + 6):
      if mask[p, j] and not mask[q, j]:
        other = mask.copy()
        other[[p, q], j] = False, True
        other = column_errors(w, np.where(other, w, 0), h)
        assert other[j] >= error[j] * (1 - 1e-4)


def test_portions_of_columns_give_the_masks_of_all_columns(monkeypatch):
  w, _, h = layer(30, 16, 5, seed=1)
  w, h, choice = jnp.asarray(w), jnp.asarray(h), Choice(NM(2, 4))
  start = choice(jnp.abs(w))
  whole = swaps.swapped(w, h, start, choice, 2)
  monkeypatch.setattr(swaps, "_HELD", 2 * 16 * 4)  # two, two, and one of five
  parts = swaps.swapped(w, h, start, choice, 2)
  np.testing.assert_array_equal(parts[0], whole[0])
  np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)


def test_no_method_beats_the_exhaustive_optimum_and_the_better_come_close():
  masks, ratios = masks_of(8, 2, 4), {method: [] for method in EVERY}
  for seed in range(10):
    w, _, h = layer(24, 8, 8, seed)
    best = best_error(w, h, masks, True).sum()
    for method in EVERY:
      pruned, mask = prune_kernel(w, h, "2:4", method)
      assert is_nm(mask, "2:4", axis=0)
      assert np.all(np.asarray(pruned)[~np.asarray(mask)] == 0)
      ratios[method].append(column_errors(w, pruned, h).sum() / best)
  assert min(map(min, ratios.values())) >= 1 - 1e-4
  mean = {method: np.mean(each) for method, each in ratios.items()}
  assert mean["alps"] < mean["sparsegpt"] < mean["sparseswaps"]
  assert mean["sparseswaps"] < mean["wanda"] < mean["magnitude"]
  assert mean["alps"] < 1.25


@pytest.mark.parametrize("method", EVERY)
def test_the_layer_error_is_that_of_the_outputs(method):
  w, x, h = layer(30, 12, 7)
  pruned, mask = prune_kernel(w, h, "1:4", method)
  assert pruned.dtype == jnp.float32 and mask.dtype == bool
  out = x @ w
  expected = np.sum((out - x @ np.asarray(pruned)) ** 2) / np.sum(out**2)
  np.testing.assert_allclose(layer_error(w, pruned, h), expected, rtol=1e-3)
  assert layer_error(w, pruned, np.zeros_like(h)) == 0


@pytest.mark.parametrize("method", ["magnitude", "ria", "sparsegpt", "alps"])
def test_transposable_masks(method):
  w, _, h = layer(60, 16, 8)
  pruned, mask = prune_kernel(w, h, "2:4", method, transposable=True)
  for axis in (0, 1):
    assert is_nm(mask, "2:4", axis=axis)
  assert np.array_equal(pruned != 0, mask)


@pytest.mark.parametrize("method", EVERY)
def test_dead_inputs_and_too_few_rows_are_damped(method):
  w, x, _ = layer(5, 16, 4)  # 5 rows for 16 inputs
  x[:, 3] = 0
  h = (x.T @ x).astype(np.float32)
  pruned, mask = prune_kernel(w, h, "2:4", method)
  assert np.isfinite(pruned).all() and is_nm(mask, "2:4", axis=0)
  if method in ("wanda", "sparsegpt", "alps"):
    assert not np.asarray(mask)[3].any()


def test_bfloat16_and_dense_patterns():
  w, _, h = layer(30, 8, 4)
  short = jnp.asarray(w, jnp.bfloat16)
  pruned, _ = prune_kernel(short, h, "2:4", "alps")
  assert pruned.dtype == jnp.bfloat16
  for method in EVERY:
    pruned, mask = prune_kernel(w, h, "4:4", method)
    assert mask.all()
    np.testing.assert_allclose(pruned, w, atol=1e-4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"method": "wonda"}, "Unknown pruning method 'wonda'.*'wanda'"),
    ({"method": "wanda", "damping": 0.1}, "wanda has no option 'damping'"),
    ({"damping": -1.0}, "Expected damping of 0 or more, got -1.0"),
    ({"method": "alps", "rho": 0}, "Expected rho above 0, got 0"),
    ({"method": "sparseswaps", "transposable": True}, "along one axis"),
    ({"method": "sparseswaps", "starts": ("best",)}, "starts of wanda"),
    ({"pattern": "2:5"}, "not a multiple of m=5"),
    ({"moment": np.eye(4, dtype=np.float32)}, "a second moment .K, K."),
    ({"moment": np.full((8, 8), np.nan, np.float32)}, "singular or not finite"),
    ({"moment": np.ones((8, 8), np.float32), "damping": 0.0}, "raise damping"),
  ],
)
def test_wrong_arguments(unchecked, options, message):
  w, _, h = layer(30, 8, 4)
  arguments = {"kernel": w, "moment": h, "pattern": "2:4"} | options
  with pytest.raises(ValueError, match=message) as error:
    prune_kernel(**arguments)
  assert "\n" not in str(error.value)
