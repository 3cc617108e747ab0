"""What training a model under a recipe costs on an engine, modelled."""

from __future__ import annotations

from flax import nnx

from figs_jax.engine.spec import Engine
from figs_jax.engine.training import RunCost, run_cost
from figs_jax.models.phases import phases_of
from figs_jax.recipes import Recipe


def train_cost(
  model: nnx.Module,
  recipe: Recipe,
  engine: Engine | str,
  batch: int = 1,
  *,
  steps: int | None = None,
  switched_at: int | None = None,
  itemsize: int = 2,
) -> RunCost:
  """The whole run, phase by phase, beside the same run without masks.

  The dense phase and all steps with a leak run dense; a stage of the chain runs
  at its own pattern; gradients run sparse where the recipe makes them so. Its
  FLOPs are those of `figs_jax.train_flops`.

  Args:
    model: of one of our families, sparsified as for training; abstract will do.
    recipe: decides when which kernel is sparse.
    engine: an engine, or its spec.
    batch: images (or sequences) per optimizer step.
    steps: only the first so many, at least 1; default all.
    switched_at: STEP's first masked step; default the last possible.
    itemsize: bytes per value off chip.

  Raises:
    ValueError: as `figs_jax.models.phases.phases_of` and
      `figs_jax.engine.run_cost`.

  >>> import figs_jax as figs
  >>> sizes = {"depth": 1, "image_size": 8, "num_classes": 10}
  >>> model = figs.models.create("vit", "Ti/4", **sizes)
  >>> model = figs.sparsify(model, "ff: 1:4")
  >>> recipe = figs.recipes.create("figs", "ff: 1:4", total_steps=1000)
  >>> run = train_cost(model, recipe, "ws", batch=32)
  >>> round(run.share("flops"), 2), round(run.share("cycles"), 2)
  (0.84, 0.87)
  """
  phases = phases_of(
    model, recipe, batch=batch, steps=steps, switched_at=switched_at
  )
  return run_cost(phases, engine, itemsize=itemsize)
