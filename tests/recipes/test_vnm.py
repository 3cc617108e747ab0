"""Recipes with V:N:M patterns: masks of every step, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import nn, recipes
from figs_jax.core import VNM, is_nm, vnm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel
from figs_jax.train.state import update

pytestmark = pytest.mark.standard_promotion
TAKES = {
  "dense", "ste", "sr_ste", "annealed_decay", "step", "sparse_then_dense",
  "asp", "one_shot", "mask_decay", "mdgf_linear", "mdgf_exp",
}  # fmt: skip


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_take_it_or_say_why_not(name):
  if name in TAKES:
    recipe = recipes.create(name, "ff: 4:2:8, qk: 2:4", 100)
    assert recipe.targets[0] == VNM(4, 2, 8)
    assert "4:2:8" in recipe.describe().splitlines()[0]
    return
  with pytest.raises(ValueError, match="expected an N:M.*4:2:8") as error:
    recipes.create(name, "4:2:8", 100)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("criterion", ["magnitude", "saliency", "random"])
def test_masks_of_every_criterion(criterion):
  options = {"criterion": criterion, "dense": 0.5}
  recipe = recipes.one_shot("4:2:8", total_steps=10, **options)
  bound = recipe.bind({"w": MaskedKernel((2, 16, 8), VNM(4, 2, 8), -2)})
  w, g = np.random.default_rng(0).normal(size=(2, 2, 16, 8)).astype(np.float32)
  every = {"w": np.ones(w.shape, bool)}
  masks = jax.jit(bound.masks)(5, {"w": w}, every, grads={"w": g})["w"]
  assert is_nm(masks, "4:2:8")
  scores = {"magnitude": np.abs(w), "saliency": np.abs(w * g)}
  if criterion in scores:
    np.testing.assert_array_equal(masks, vnm_mask(scores[criterion], "4:2:8"))
  assert bound.shard_units["w"] == {-2: 8, -1: 4}


def test_transposable_masks_are_refused():
  with pytest.raises(ValueError, match="expected an N:M.*along both axes"):
    recipes.ste("4:2:8", total_steps=10, transposable=True)


def net(pattern, **options):
  recipe = recipes.sr_ste(pattern, total_steps=6, dense=0.0, **options)
  model = figs.sparsify(nnx.Linear(16, 8, rngs=nnx.Rngs(0)), recipe)
  state = figs.TrainState.create(
    model, recipe, recipe.transform(optax.adamw(0.05)),
    loss=lambda model, x, key: (jnp.mean((model(x) - 1) ** 2), {}),
  )  # fmt: skip
  step = jax.jit(update)
  for i in range(6):
    x = np.random.default_rng(i).normal(size=(4, 16)).astype(np.float32)
    state, _ = step(state, x)
  return state


def test_a_run_ends_with_it_in_rows_and_files(tmp_path):
  state = net("4:2:8")
  model = state.finished()
  kernel = np.asarray(model.kernel[...])
  assert is_nm(kernel, "4:2:8") and (kernel != 0).mean() == 0.25
  (row,) = figs.layers_of(model, example=jnp.ones((4, 16)))
  assert row["pattern"] == VNM(4, 2, 8)
  table = figs.engine.Layers.of([row])
  assert table.pattern(0) == "4:2:8"
  assert "V:N:M runs as N:M on ws" in figs.engine.report([row], ["ws"]).caption
  unknown = {key: value for key, value in row.items() if key != "mask"}
  costs = (figs.engine.cost([r], "tensorcore:a100") for r in (row, unknown))
  assert len({float(cost.cycles.sum()) for cost in costs}) == 1
  leaves = nn.masked_leaves(model)
  path = tmp_path / "m.safetensors"
  figs.export.write_packed(path, {"kernel": kernel}, leaves)
  (weight,) = figs.export.survey(path)
  assert weight.declared == NM(2, 8)
  np.testing.assert_array_equal(figs.export.read(path)["kernel"], kernel)
  with pytest.raises(ValueError, match="point 1:8: expected N:M kernels"):
    state.finished(point="1:8")


def test_tensor_cores_run_a_model_of_rules_as_2_of_4():
  example = jnp.ones((256, 1024))
  layer = nnx.eval_shape(lambda: nnx.Linear(1024, 1024, rngs=nnx.Rngs(0)))
  cycles = {}
  for text in ("64:2:8", "2:8", "2:4"):
    model = nnx.eval_shape(lambda text=text: figs.sparsify(layer, text))
    (row,) = figs.layers_of(model, example=example)
    engine = "tensorcore:a100:ideal=true"
    cycles[text] = float(figs.engine.cost([row], engine).cycles.sum())
  assert cycles["64:2:8"] < cycles["2:8"] == cycles["2:4"]
  assert NM(2, 8) != VNM(64, 2, 8)
