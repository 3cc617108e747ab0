"""Noise of gradients: closed forms on a linear model, brute force on runs."""

import dataclasses
import io
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image
from scipy import stats

import figs_jax as figs
from figs_jax.analysis import (
  GradientNoise,
  History,
  histories,
  noise_and_loss,
  noise_rows,
)
from figs_jax.analysis.gradient_noise import (
  CLASSES,
  noise_bands,
  noise_statistics,
)
from figs_jax.core.tree import flatten
from figs_jax.train import TrainState, seeds
from figs_jax.train.config import default_config
from figs_jax.train.loop import train
from figs_jax.train.state import gradients
from figs_jax.train.workdir import restore

pytestmark = pytest.mark.standard_promotion  # optax mixes dtypes
FIELDS = GradientNoise._fields[-3:]


def by_hand(grads, mask):
  """The three statistics of a class, in float64."""
  g = np.asarray(grads, np.float64)[:, np.asarray(mask)]
  count = len(g)
  moving = (g != 0).any(0)
  ratio = np.zeros(g.shape[1])
  ratio[moving] = g.mean(0)[moving] ** 2 / g.var(0)[moving]
  snr = np.where(moving, ((count - 3) * ratio - 1) / count, 0.0)
  return g.var(axis=1).mean(), g.var(axis=0, ddof=1).mean(), snr.mean()


def test_statistics_equal_those_by_hand():
  rng = np.random.default_rng(0)
  grads = rng.normal(0.3, 1.0, (5, 8, 6)).astype(np.float32)
  grads[:, 2] = 0  # rows that no batch moves
  mask = rng.random((8, 6)) < 0.4
  table = noise_statistics(jnp.asarray(grads), jnp.asarray(mask))
  for name, where in zip(CLASSES, (mask, ~mask)):
    np.testing.assert_allclose(table[name], by_hand(grads, where), rtol=2e-5)
  with pytest.raises(ValueError, match="at least 4 batches, got 3"):
    noise_statistics(jnp.asarray(grads[:3]), jnp.asarray(mask))


@pytest.mark.parametrize("mode", ["ste", "damped"])
def test_noise_of_a_linear_model_is_known(mode):
  """The loss mean(y) has the gradient mean(x) / outputs, damped by the leak.

  With x ~ N(mu, sigma²) and b examples, its variance over batches is D² sigma²
  / (b outputs²), and its signal-to-noise ratio b mu² / sigma², whatever D.
  """
  mu, sigma, examples, outputs, batches = 1.0, 2.0, 6, 2, 12
  recipe = figs.recipes.create(
    "mdgf_linear", "1:4", total_steps=100, dense=0.0, grad_mode=mode
  )
  model = figs.sparsify(nnx.Linear(2048, outputs, rngs=nnx.Rngs(0)), "1:4")
  state = TrainState.create(
    model, recipe, recipe.transform(optax.sgd(0.1)),
    loss=lambda model, x, key: (jnp.mean(model(x)), {}),
  )  # fmt: skip
  state = dataclasses.replace(state, step=jnp.int32(30))
  leak = float(recipe.at(state.step, False).leak)
  assert 0.3 < leak < 0.7
  rng = np.random.default_rng(1)
  x = rng.normal(mu, sigma, (batches, examples, 2048)).astype(np.float32)
  one = jax.jit(gradients)
  grads = [one(state, batch, jax.random.key(0))["kernel"] for batch in x]
  np.testing.assert_allclose(
    grads[0][state.masks["kernel"]],
    np.broadcast_to(x[0].mean(0)[:, None] / outputs, (2048, outputs))[
      np.asarray(state.masks["kernel"])
    ],
    rtol=1e-4,
    atol=1e-6,
  )
  table = noise_statistics(jnp.stack(grads), state.masks["kernel"])
  for name in CLASSES:
    scale = leak if (name, mode) == ("pruned", "damped") else 1.0
    variance = (scale * sigma / outputs) ** 2 / examples
    over_entries, over_batches, snr = map(float, table[name])
    assert over_entries == pytest.approx(variance, rel=0.1)
    assert over_batches == pytest.approx(variance, rel=0.1)
    assert snr == pytest.approx(examples * mu**2 / sigma**2, rel=0.1)


@pytest.fixture(scope="module")
def runs(sparse_workdir, short_workdir, tmp_path_factory, tiny_config):
  """A dense run, and two sparse ones of another configured pattern."""
  dense = tmp_path_factory.mktemp("dense")
  config = tiny_config("dense", total_steps=2, pattern="ff: 2:4")
  train(config, dense)
  return histories([dense, sparse_workdir, short_workdir])


@pytest.fixture(scope="module")
def rows(runs):
  return noise_rows(runs, batches=4)


def next_gradients(workdir, step, batches=4):
  """(state, gradients by path) of each seed at the next training batches."""
  experiment, states, _ = restore(workdir, step)
  stream = experiment.task.train_batches(experiment.config.batch_size)
  drawn = list(itertools.islice(stream, step, step + batches))
  stream.close()
  one, results = jax.jit(gradients), []
  for seed, state in enumerate(seeds.singles(states)):
    grads = []
    for i, batch in enumerate(drawn, start=step):
      own = {k: v[seed] if experiment.seeds else v for k, v in batch.items()}
      key = jax.random.fold_in(jax.random.key(state.seed), i)
      grads.append(flatten(one(state, own, key)))
    stacked = {k: np.stack([each[k] for each in grads]) for k in grads[0]}
    results.append((state, stacked))
  return results


def values(rows, **where):
  """(layer, entries) -> statistics of the rows with these fields."""
  return {
    (row.layer, row.entries): [getattr(row, name) for name in FIELDS]
    for row in rows
    if all(getattr(row, name) == value for name, value in where.items())
  }


def test_the_gradient_is_the_one_that_training_takes(runs):
  """It has the variance that `diagnose_every` recorded of that step."""
  run = runs[1]
  logged = {row["step"]: row for row in run.rows if "leak" in row}
  layer = "blocks/0/mlp/fc1/kernel"
  variances = [
    grads[layer][0][np.asarray(flatten(state.masks)[layer])].var()
    for state, grads in next_gradients(run.path, 3, batches=1)
  ]
  recorded = logged[4][f"layers/{layer}/grad_var_kept"]
  assert np.mean(variances) == pytest.approx(recorded, rel=1e-4)


def test_rows_equal_those_by_hand(runs, rows):
  run = runs[1]
  steps = {row.step for row in rows if row.run == run.label}
  assert steps == {1, 2, 3, 4, 5, 6}
  state, grads = next_gradients(run.path, 4)[1]
  masks = {k: v for k, v in flatten(state.masks).items() if v is not None}
  table = values(rows, run=run.label, step=4, seed=1)
  assert len(table) == 2 * len(masks)
  for path, mask in masks.items():
    for name, where in zip(CLASSES, (mask, ~mask)):
      wanted = by_hand(grads[path], where)
      np.testing.assert_allclose(table[path, name], wanted, rtol=1e-3)


def test_a_dense_run_has_the_classes_of_the_sparse_runs(runs, rows):
  """1:4 of |w|, though its own configuration says 2:4."""
  table = values(rows, run=runs[0].label)
  assert {layer for layer, _ in table} == {
    row.layer for row in rows if row.run == runs[1].label
  }
  ((state, grads),) = next_gradients(runs[0].path, 2)
  for path in {layer for layer, _ in table}:
    size = np.abs(flatten(state.params)[path])
    groups = size.reshape(-1, 4, size.shape[-1])
    mask = (groups == groups.max(axis=1, keepdims=True)).reshape(size.shape)
    for name, where in zip(CLASSES, (mask, ~mask)):
      wanted = by_hand(grads[path], where)
      np.testing.assert_allclose(table[path, name], wanted, rtol=1e-3)


def test_a_recipe_that_keeps_all_has_the_classes_of_its_target(runs, rows):
  """As in its dense phase: the classes of a run without masks of its own."""
  from figs_jax.analysis.gradient_noise import _classes

  experiment, state, _ = runs[2].restored
  leaves = experiment.abstract_state.bound.leaves
  kept = _classes(state, leaves)
  everything = jax.tree.map(jnp.ones_like, state.masks)
  state = dataclasses.replace(state, masks=everything)
  again = _classes(state, leaves)
  for path in leaves:
    np.testing.assert_array_equal(kept[path], again[path])


def test_refused_in_one_line(runs):
  other = History(Path("b"), "b", runs[1].config | {"pattern": "ff: 2:4"}, [])
  with pytest.raises(ValueError, match="of one pattern, got .*1:4.*2:4"):
    noise_rows([runs[1], other])
  with pytest.raises(ValueError, match="at least 4 batches, got 1"):
    noise_rows(runs, batches=1)
  with pytest.raises(ValueError, match="from step 0 to 2, the decay phase"):
    noise_and_loss([runs[0], runs[2]], noise_rows([runs[2]], batches=4))
  late = History(
    Path("c"), "c", runs[2].config | {"total_steps": 3}, runs[2].rows
  )
  with pytest.raises(ValueError, match="after step 3, .*after step 2; train"):
    noise_and_loss([late], [])


RECIPES = ("dense", "ste", "sr_ste", "mdgf_exp", "figs", "s_ste")


def made(noise, losses, seeds=2):
  """(runs, rows) of six recipes; checkpoints 50 of 100 count, others do not."""
  runs, rows = [], []
  for name, level, loss in zip(RECIPES, noise, losses):
    config = default_config(name)
    config.total_steps, config.seeds = 100, seeds
    each = {f"eval/loss/seed{i}": loss + i / 100 for i in range(seeds)}
    last = {"step": 100, "eval/accuracy": 0.5, "eval/loss": loss, **each}
    runs.append(History(Path(name), name, config.to_dict(), [last]))
    for step, entries, seed, layer in itertools.product(
      (0, 50, 95), CLASSES, range(seeds), "ab"
    ):
      size = level * (1 + seed) * (1.5 if layer == "a" else 0.5)
      size = size if step == 50 else 100 - size
      rows.append(
        GradientNoise(name, step, seed, layer, entries, 0.0, size, -size)
      )
  return runs, rows


def test_correlation_of_noise_and_loss():
  runs, rows = made([9, 1, 2, 3, 4, 5], [0.1, 0.3, 0.2, 0.4, 0.5, 0.6])
  table = {(r.statistic, r.entries): r for r in noise_and_loss(runs, rows)}
  assert len(table) == 4
  relation = table["variance_over_batches", "kept"]
  assert relation.noise["figs"] == pytest.approx((6.0, 2.0))  # of 4 and 8
  assert relation.loss["figs"] == pytest.approx((0.505, 0.005))
  assert relation.sparse == RECIPES[1:]
  # One neighbouring pair of five is swapped: rho = 1 - 6 * 2 / (5 * 24).
  r, low, high = relation.correlation
  assert r == pytest.approx(0.9) and low < r < high
  # Of 120 orders 1 + 4 are at least as ordered, and as many the other way.
  assert relation.p == pytest.approx(10 / 120)
  assert relation.sentence.endswith("over 5 recipes: not resolved")
  assert table["snr", "pruned"].correlation[0] == pytest.approx(-0.9)

  runs, rows = made([9, 1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
  sentences = [relation.sentence for relation in noise_and_loss(runs, rows)]
  assert sentences[0] == (
    "variance over batches, kept entries: rank correlation with test loss"
    " +1.00, p = 0.017 over 5 recipes: more of it goes with more loss"
  )
  assert sentences[-1].endswith("-1.00, p = 0.017 over 5 recipes: more of it"
                                " goes with less loss")  # fmt: skip


def test_few_recipes_resolve_nothing():
  runs, rows = made([9, 1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4, 0.5])
  relation = noise_and_loss(runs, rows)[0]
  assert relation.correlation[0] == 1 and relation.p == pytest.approx(2 / 24)
  assert relation.sentence.endswith("nor can it be by so few recipes")
  relation = noise_and_loss(runs[:4], rows)[0]
  assert math.isnan(relation.p)
  assert relation.sentence.endswith("3 sparse runs, at least 4 are needed")


@pytest.mark.parametrize("count", [6, 9])
def test_p_value(count):
  """Against SciPy: all orders of few pairs, Student's t of more."""
  from figs_jax.analysis.noise_correlation import _permutation_p

  rng = np.random.default_rng(3)
  x, y = rng.integers(0, 4, (2, count)).astype(float)
  ours = _permutation_p(x, y)
  if count > 8:
    assert ours == stats.spearmanr(x, y).pvalue
    return
  wanted = stats.permutation_test(
    (x,), lambda x: abs(stats.spearmanr(x, y).statistic),
    permutation_type="pairings", alternative="greater", n_resamples=10_000,
  )  # fmt: skip
  assert ours == pytest.approx(wanted.pvalue)


def test_the_plot_shows_the_rows():
  pytest.importorskip("matplotlib")
  from figs_jax.analysis import plot_style, plots

  runs, rows = made([9, 1, 2, 3, 4, 5], [0.1, 0.3, 0.2, 0.4, 0.5, 0.6])
  relations = noise_and_loss(runs, rows)
  figure = plots.plot_noise(rows, relations)
  assert len(figure.axes) == 8
  for ax, (statistic, entries) in zip(
    figure.axes, itertools.product(("variance_over_batches", "snr"), CLASSES)
  ):
    bands = noise_bands(rows, entries, statistic)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines) == list(RECIPES)
    for name, line in lines.items():
      assert line.get_xdata().tolist() == [0, 50, 95]
      shown = np.where(bands[name].mean > 0, bands[name].mean, np.nan)
      wanted = bands[name].mean if statistic == "snr" else shown
      np.testing.assert_array_equal(line.get_ydata(), wanted)
  scatter = figure.axes[4]
  points = [bar.lines[0].get_xydata()[0] for bar in scatter.containers]
  np.testing.assert_allclose(
    points,
    [
      (relations[0].noise[name][0], relations[0].loss[name][0])
      for name in RECIPES
    ],
  )
  assert "ρ = 0.90" in scatter.texts[0].get_text()
  Image.open(io.BytesIO(plot_style.image_bytes(figure, "png"))).verify()
