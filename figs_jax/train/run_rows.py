"""Every matrix product of a model or a run, with pattern and real mask."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from figs_jax import models, nn
from figs_jax.core.tree import flatten


def layers_of(
  source: nnx.Module | str | Path,
  batch: int = 1,
  *,
  step: int | None = None,
  seed: int | None = None,
  ema: bool = False,
  data_dir: str | None = None,
) -> list[dict[str, Any]]:
  """The rows that `figs_jax.engine` takes: one per product of a forward pass.

  Args:
    source: a model of one of our families, or the workdir of a training run,
      whose model is finished first: patterns and masks are the target ones,
      whatever step the checkpoint is of. An abstract model (`nnx.eval_shape`)
      costs no memory and has patterns only.
    batch: images (or sequences) per pass.
    step: of a run; None takes the newest good checkpoint.
    seed: of a run with several, the place of the one to take, from 0; None
      takes the first.
    ema: of a run, takes the averaged weights.
    data_dir: of a run, where its data is now.

  Returns:
    Rows {"name", "M", "N", "K", "pattern", "count"} as of
    `figs_jax.models.layers_of`, and "mask", the real one as Bool (K, N), where
    the layer is sparse and its mask known; scanned layers then have a row each,
    "blocks/mlp/fc1[0]".

  Raises:
    ValueError: a batch below 1, a model of another origin, an option of runs
      given with a model, or (`CheckpointError`) what `restore` refuses.

  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> model = nn.sparsify(models.create("vit", "custom/4", **sizes), "ff: 1:8")
  >>> [(row["name"], row["mask"].shape) for row in layers_of(model, batch=4)
  ...  if "mask" in row]
  [('blocks/0/mlp/fc1', (8, 32)), ('blocks/0/mlp/fc2', (32, 8))]
  """
  if batch < 1:
    raise ValueError(f"batch={batch}: give the number of images, at least 1")
  if isinstance(source, nnx.Module):
    options = {"step": step, "seed": seed, "data_dir": data_dir}
    options["ema"] = ema or None
    for name, value in options.items():
      if value is not None:
        raise ValueError(
          f"layers_of: {name}={value!r} is of a run's workdir; leave it out for"
          " a model"
        )
    return _rows(source, batch)
  found = finished_model(
    source, step=step, seed=seed, ema=ema, data_dir=data_dir
  )
  return _rows(found, batch)


def finished_model(
  workdir: str | Path,
  *,
  step: int | None = None,
  seed: int | None = None,
  ema: bool = False,
  data_dir: str | None = None,
) -> nnx.Module:
  """The model of a run, at its target pattern, in evaluation mode.

  Args:
    workdir, step, seed, ema, data_dir: as of `layers_of`.

  Raises:
    ValueError: what `restore` refuses.
  """
  # Orbax only where there is a checkpoint to read.
  from figs_jax.train import seeds
  from figs_jax.train.restore import restore

  experiment, state, _ = restore(workdir, step, seed=seed, data_dir=data_dir)
  if experiment.seeds and seed is None:
    state = seeds.take(state, 0)
  return state.finished(ema=ema)


def _rows(model: nnx.Module, batch: int) -> list[dict[str, Any]]:
  masks = flatten(nn.split(model)[2])
  rows = []
  for row in models.layers_of(model, batch):
    mask = masks.get(f"{row['name']}/kernel")
    if mask is None or not _is_known(mask):
      rows.append(row)
      continue
    stacked, rest = divmod(math.prod(mask.shape), row["K"] * row["N"])
    if rest or row["count"] % max(stacked, 1):
      raise ValueError(
        f"{row['name']}: the mask {mask.shape} is not of the product's weight,"
        f" K={row['K']}, N={row['N']}; write its row for the engine yourself"
      )
    # The contracted axes come first, in the order of the groups.
    each = np.asarray(mask).reshape(stacked, row["K"], row["N"])
    if stacked == 1:
      rows.append(row | {"mask": each[0]})
      continue
    count = row["count"] // stacked
    rows += [
      row | {"name": f"{row['name']}[{i}]", "mask": one, "count": count}
      for i, one in enumerate(each)
    ]
  return rows


def _is_known(mask: Any) -> bool:
  is_abstract = isinstance(mask, (jax.core.Tracer, jax.ShapeDtypeStruct))
  return not is_abstract
