"""Matrix products of a model or a run, as rows for the engine; their cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from figs_jax import models, nn
from figs_jax.core.tree import flatten
from figs_jax.engine.spec import Engine
from figs_jax.engine.training import RunCost, run_cost
from figs_jax.models.phases import phases_of
from figs_jax.recipes import Recipe
from figs_jax.train.distributed import whole


def layers_of(
  net: nnx.Module | str | Path,
  batch: int = 1,
  *,
  example: Any = None,
  step: int | None = None,
  seed: int | None = None,
  ema: bool = False,
  data_dir: str | None = None,
  zeros: bool = False,
) -> list[dict[str, Any]]:
  """The rows that `figs_jax.engine` takes: one per product of a forward pass.

  A model of our families lists its products; any other NNX model is traced,
  which runs nothing (`figs_jax.models.traced` says what is counted).

  Args:
    net: Any NNX model, or the workdir of a run. The model of a run is finished
      first: patterns and masks are the target ones at any step. An abstract
      model (`nnx.eval_shape`) needs no memory and has patterns, but no masks.
    batch: Images or sequences per pass, for models of our families and of
      registered classes. With an example, its leading axis is the batch.
    example: Input of the call, for a model of another class: an array or
      `jax.ShapeDtypeStruct`, a tuple of arguments, or a dictionary of keyword
      arguments. A model of ours is traced too if it is given.
    step: Step of the run. Defaults to the newest good checkpoint.
    seed: Index of the seed, for a run with several. Defaults to the first.
    ema: Whether to take the run's averaged weights.
    data_dir: Directory of the run's data sets, in place of the configured one.
    zeros: Whether the zeros of a kernel without a pattern are its mask, as
      after unstructured pruning.

  Returns:
    Rows {"name", "M", "N", "K", "pattern", "count"} as from
    `figs_jax.models.gemms_of`, and "mask", Bool (K, N), where the layer is
    sparse and its mask is known. Scanned layers then have one row each, such as
    "blocks/mlp/fc1[0]".

  Raises:
    ValueError: If `batch` is below 1, `figs_jax.models.products_of` refuses the
      model or the example, an option of runs is given with a model, or
      `restore` raises it.

  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> model = nn.sparsify(models.create("vit", "custom/4", **sizes), "ff: 1:8")
  >>> [(row["name"], row["mask"].shape) for row in layers_of(model, batch=4)
  ...  if "mask" in row]
  [('blocks/0/mlp/fc1', (8, 32)), ('blocks/0/mlp/fc2', (32, 8))]
  >>> net = nn.sparsify(nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0)), "2:4")
  >>> image = jax.ShapeDtypeStruct((1, 6, 6, 4), "float32")
  >>> row, = layers_of(net, example=image)
  >>> row["M"], row["K"], row["N"], str(row["pattern"]), row["mask"].shape
  (36, 36, 8, '2:4', (36, 8))
  """
  if batch < 1:
    raise ValueError(f"layers_of: expected batch of at least 1, got {batch}")
  options: dict[str, Any] = {"step": step, "seed": seed, "data_dir": data_dir}
  if isinstance(net, nnx.Module):
    for name, value in (options | {"ema": ema or None}).items():
      if value is not None:
        raise ValueError(
          f"layers_of: {name}={value!r} applies to a run's workdir only; omit"
          " it for a model"
        )
    model = net
  else:
    # Orbax is needed for checkpoints alone.
    from figs_jax.train.workdir import finished_model

    model = finished_model(net, ema=ema, **options)
  if example is None and models.lists_products(model):
    return with_masks(model, models.gemms_of(model, batch), zeros)
  masks = _masks(model, zeros)
  rows: list[dict[str, Any]] = []
  for product in models.products_of(model, batch, example):
    mask = product.kernel and masks.get(product.kernel.path)
    # Along other axes than the groups, a mask is a matter of its zeros.
    is_sparse = product.pattern is not None or zeros
    each = product.masks(mask) if is_sparse and mask is not None else None
    rows += [product.row] if each is None else _per_mask(product.row, each)
  return rows


def train_cost(
  model: nnx.Module,
  recipe: Recipe,
  engine: Engine | str,
  batch: int = 1,
  *,
  steps: int | None = None,
  switched_at: int | None = None,
  itemsize: int | None = None,
  dtype: str | None = None,
  example: Any = None,
) -> RunCost:
  """Modelled cost of a whole training run, beside the same run without masks.

  The dense phase and all steps with a leak run dense, each stage runs at its
  own pattern, and gradients run sparse where the recipe makes them so. The
  FLOPs are those of `figs_jax.train_flops`.

  Args:
    model: Any NNX model, sparsified as for training; it may be abstract.
    recipe: Recipe that decides when each kernel is sparse.
    engine: Engine, or its spec.
    batch: Images or sequences per optimizer step.
    steps: Number of steps to count from the start. Defaults to all.
    switched_at: First masked step of STEP. Defaults to the latest possible.
    itemsize: Bytes per value off chip; see `figs_jax.engine.cost`.
    dtype: Data type of the operands; see `figs_jax.engine.cost`.
    example: Input of a model of another class than ours, with the batch as its
      leading axis.

  Raises:
    ValueError: If `figs_jax.models.phases.phases_of` or
      `figs_jax.engine.run_cost` raises it.

  >>> import figs_jax as figs
  >>> sizes = {"depth": 1, "image_size": 8, "num_classes": 10}
  >>> model = figs.models.create("vit", "Ti/4", **sizes)
  >>> model = figs.sparsify(model, "ff: 1:4")
  >>> recipe = figs.recipes.create("figs", "ff: 1:4", total_steps=1000)
  >>> run = train_cost(model, recipe, "ws", batch=32)
  >>> round(run.share("flops"), 2), round(run.share("cycles"), 2)
  (0.84, 0.87)
  """
  options = {"steps": steps, "switched_at": switched_at, "example": example}
  phases = phases_of(model, recipe, batch=batch, **options)
  return run_cost(phases, engine, itemsize=itemsize, dtype=dtype)


def with_masks(
  model: nnx.Module, products: Sequence[dict[str, Any]], zeros: bool = False
) -> list[dict[str, Any]]:
  """Adds the masks of a model to rows of `figs_jax.models.gemms_of`.

  Args:
    model: Model that the rows are of.
    products: Rows of its products.
    zeros: Whether zeros of other kernels are masks, as in `layers_of`.

  Returns:
    Rows as from `layers_of`.

  Raises:
    ValueError: If a mask has another size than its row.

  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> model = nn.sparsify(models.create("vit", "custom/4", **sizes), "ff: 1:8")
  >>> len(with_masks(model, models.gemms_of(model))) == len(layers_of(model))
  True
  """
  masks = _masks(model, zeros)
  rows = []
  for row in products:
    mask = masks.get(f"{row['name']}/kernel")
    if mask is None:
      rows.append(row)
      continue
    stacked, rest = divmod(mask.size, row["K"] * row["N"])
    if rest or row["count"] % max(stacked, 1):
      raise ValueError(
        f"{row['name']}: expected a mask of K={row['K']}, N={row['N']}, got"
        f" {mask.shape}; write this row for the engine by hand"
      )
    # Contracted axes come first, in the order of the groups.
    rows += _per_mask(row, mask.reshape(stacked, row["K"], row["N"]))
  return rows


def _masks(model: nnx.Module, zeros: bool) -> dict[str, np.ndarray]:
  """Path -> mask of every kernel whose mask is known."""
  _, params, masks, *_ = nn.split(model)
  known = {
    path: whole(mask)
    for path, mask in flatten(masks).items()
    if _is_known(mask)
  }
  for path, kernel in flatten(params).items() if zeros else ():
    is_kernel = path.rpartition("/")[2] == "kernel"
    if is_kernel and path not in known and _is_known(kernel):
      kept = whole(kernel) != 0
      known |= {} if kept.all() else {path: kept}
  return known


def _per_mask(row: dict[str, Any], each: np.ndarray) -> list[dict[str, Any]]:
  """The row with its masks (stack, K, N), one row for each of them."""
  if len(each) == 1:
    return [row | {"mask": each[0]}]
  count = row["count"] // len(each)
  return [
    row | {"name": f"{row['name']}[{i}]", "mask": one, "count": count}
    for i, one in enumerate(each)
  ]


def _is_known(array: Any) -> bool:
  unknown = (jax.core.Tracer, jax.ShapeDtypeStruct)
  return array is not None and not isinstance(array, unknown)
