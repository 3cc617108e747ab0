"""The layers of runs and of models: patterns, and the masks themselves."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import figs_jax
from figs_jax import engine, models, nn
from figs_jax.cli.workloads import from_run
from figs_jax.core.masks import is_nm
from figs_jax.train import Checkpointer, CheckpointError, seeds
from figs_jax.train._evaluate import evaluate
from figs_jax.train.experiment import build
from figs_jax.train.run_rows import layers_of
from figs_jax.train.workdir import restore

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def config(tiny_config):
  pattern = "ff: 1:4, patch_embed/kernel: 2:4, q: dense"
  return tiny_config(
    "figs", total_steps=20, pattern=pattern, seeds=2, ema_decay=0.5
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory, config):
  """Steps 10 and 20 of two seeds, with other weights each, without training."""
  workdir = tmp_path_factory.mktemp("run")
  state = jax.jit(build(config).state)()
  with Checkpointer(workdir) as checkpoints:
    for step in (10, 20):
      params = jax.tree.map(lambda x, s=step: jnp.roll(x, s, -1), state.params)
      number = jnp.asarray(step, jnp.int32)
      now = dataclasses.replace(state, step=number, params=params)
      now = seeds.with_fresh_masks(now)
      checkpoints.save(step, now, {}, config.to_dict(), {"accuracy": 0.0})
  return workdir


def masked(rows):
  return {row["name"]: row["mask"] for row in rows if "mask" in row}


def test_a_run_has_the_patterns_and_masks_of_its_finished_model(run):
  _, state, _ = restore(run, seed=0)
  rows = figs_jax.layers_of(run, batch=3)
  model = state.finished()
  plain = models.gemms_of(model, 3)
  for row, want in zip(rows, plain, strict=True):
    assert {k: v for k, v in row.items() if k != "mask"} == want
  masks = masked(rows)
  assert sorted(masks) == [
    "blocks/0/mlp/fc1",
    "blocks/0/mlp/fc2",
    "patch_embed",
  ]
  for row in rows:
    assert (row["pattern"] is None) == (row["name"] not in masks)
    if row["name"] in masks:
      mask = row["mask"]
      assert mask.dtype == bool and mask.shape == (row["K"], row["N"])
      assert is_nm(mask, row["pattern"])
  # Zero exactly where the finished kernel is.
  kernel = np.asarray(model.blocks[0].mlp.fc1.kernel[...])
  np.testing.assert_array_equal(masks["blocks/0/mlp/fc1"], kernel != 0)
  patches = np.asarray(model.patch_embed.kernel[...])
  assert patches.ndim == 4
  np.testing.assert_array_equal(
    masks["patch_embed"], patches.reshape(-1, patches.shape[-1]) != 0
  )


def test_an_earlier_step_is_finished_too(run):
  early = layers_of(str(run), step=10)
  assert {str(r["pattern"]) for r in early if "mask" in r} == {"1:4", "2:4"}
  assert all(is_nm(r["mask"], r["pattern"]) for r in early if "mask" in r)
  late = masked(layers_of(run))
  differ = [(late[name] != mask).any() for name, mask in masked(early).items()]
  assert any(differ)


def test_seeds_of_a_run(run, config, tmp_path):
  first, one, two = (masked(layers_of(run, seed=seed)) for seed in (None, 0, 1))
  for name, mask in first.items():
    np.testing.assert_array_equal(mask, one[name])
  assert any((one[name] != two[name]).any() for name in one)
  _, state, _ = restore(run)
  want = seeds.take(state, 1).finished().blocks[0].mlp.fc2.kernel_mask[...]
  np.testing.assert_array_equal(two["blocks/0/mlp/fc2"], want)
  averaged = masked(layers_of(run, ema=True))
  assert averaged.keys() == first.keys()
  for seed in (2, -1):
    with pytest.raises(ValueError, match=f"expected 0 to 1, got seed={seed}"):
      layers_of(run, seed=seed)
  lone = config.to_dict() | {"seeds": 0}
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, {"x": jnp.zeros(1)}, {}, lone, {"accuracy": 0.0})
  with pytest.raises(ValueError, match="this run has one seed, got seed=0"):
    layers_of(tmp_path, seed=0)


def test_nothing_is_written(run):
  before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
  layers_of(run)
  assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_the_rows_are_what_the_engine_takes(run):
  rows = layers_of(run)
  table = engine.Layers.of(rows)
  assert sum(mask is not None for mask in table.masks) == 3
  report = engine.report(rows, engines=["ws:8x8"], baseline="dense")
  result = evaluate(run, engine_spec="ws:8x8", batch=1)
  assert result["speedup"] == report.totals[0].speedup > 0
  assert result["baseline"] == str(report.peers[0])
  assert result["ideal_speedup"] >= result["speedup"]


def test_models():
  sizes = {"depth": 1, "image_size": 8, "num_classes": 10}
  model = models.create("vit", "Ti/4", **sizes)
  assert masked(layers_of(model)) == {}
  sparse = nn.sparsify(model, "ff: 1:8, embed: 2:4")
  rows = layers_of(sparse)
  assert sorted(masked(rows)) == [
    "blocks/0/mlp/fc1",
    "blocks/0/mlp/fc2",
    "patch_embed",
  ]
  np.testing.assert_array_equal(
    masked(rows)["blocks/0/mlp/fc1"],
    sparse.blocks[0].mlp.fc1.kernel_mask[...],
  )
  pickle.dumps(rows)  # plain tables

  @jax.jit
  def inside(model):
    assert masked(layers_of(model)) == {}
    return 0

  inside(sparse)


def test_abstract_models_cost_nothing():
  model = models.abstract("vit", "H/14", depth=2)
  rows = layers_of(nn.sparsify(model, "ff: 1:8"), batch=8)
  assert len(rows) == 2 + 2 * 8
  assert masked(rows) == {}
  assert {str(row["pattern"]) for row in rows} == {"None", "1:8"}


def test_errors(tmp_path):
  with pytest.raises(CheckpointError, match="no checkpoint here"):
    layers_of(tmp_path / "no")
  with pytest.raises(ValueError, match="batch of at least 1, got 0"):
    layers_of(tmp_path, batch=0)
  linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="Linear is not of our.*example="):
    layers_of(linear)
  for option in ({"seed": 0}, {"step": 1}, {"ema": True}, {"data_dir": "d"}):
    with pytest.raises(ValueError, match="applies to a run's workdir"):
      layers_of(linear, **option)


def test_runs_in_programs(run):
  label, other = (f"{run}, batch {batch}" for batch in (1, 2))
  tables = from_run(run, [1, 2], seed=1)
  assert list(tables) == [label, other]
  want = engine.Layers.of(layers_of(run, 2, seed=1))
  assert tables[other].names == want.names
  np.testing.assert_array_equal(tables[other].M, want.M)
  for mask, known in zip(tables[other].masks, want.masks):
    np.testing.assert_array_equal(mask, known)
  kinds = {one.kind for one in tables[other].forward.non_gemms}
  assert kinds >= {"norm", "softmax", "activation", "residual"}
  changed = from_run(run, [1], "1:8")[label]
  patterns = {changed.pattern(i) for i in range(len(changed))}
  assert patterns == {"dense", "1:8"}
  assert changed.masks == (None,) * len(changed)
  with pytest.raises(ValueError, match="a run has its own rules"):
    from_run(run, [1], "ff: 1:8")
