"""Training on meshes against training on one device.

  python benchmarks/meshes.py [--steps 20] [--families vit t5]

Trains a tiny ViT, Swin-V2 and T5 in float32 on eight virtual CPU devices, laid
out in several meshes, and prints for each the largest relative difference of a
loss from that of one device, the groups whose masks differ and how near to a
tie they are, and whether a state saved on one mesh is restored bit for bit on
the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
  )

import jax
import numpy as np

from figs_jax.core.tree import flatten
from figs_jax.data import python_data
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.compilation import compiled_step
from figs_jax.train.config import default_config
from figs_jax.train.experiment import Experiment, build
from figs_jax.train.sharding import make_mesh

MESHES = ((1, 8, 1), (2, 2, 2), (1, 1, 8), (4, 1, 2))
LENGTH = 8  # of texts and images
# Heads, feed-forward widths and classes or tokens are multiples of 8.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
  "vit": ("custom/4", {"width": 64, "depth": 2, "heads": 8, "mlp_dim": 256}),
  "swin_v2": (
    "custom/2",
    {"width": 64, "depths": (1, 1), "heads": 8, "window": 2},
  ),
  "t5": (
    "custom",
    {"width": 64, "depth": 2, "heads": 8, "head_dim": 8, "mlp_dim": 256},
  ),
}
CLASSES = 16
LONGEST = 2  # longest groups of FIGS, in those of the target
# Adam divides a gradient by its own size, so an entry near the usual epsilon of
# 1e-8 turns the rounding of a sum into a visible part of a step.
EPS = 1e-3


def data_of(family: str) -> dict[str, list[dict[str, Any]]]:
  """A data set of the right kind; batches are drawn, not read from it."""
  if family == "t5":
    rows: list[dict[str, Any]] = [{"text": "a", "target": "b"}] * CLASSES
  else:
    image = np.zeros((LENGTH, LENGTH, 1), np.uint8)
    rows = [{"image": image, "label": i} for i in range(CLASSES)]
  return {"train": rows, "test": rows}


def experiment_of(
  family: str, recipe: str = "figs", **fields: Any
) -> Experiment:
  """A run whose masks start, decay and come to their end in 20 steps."""
  config = default_config(recipe, family)
  config.variant, sizes = MODELS[family]
  config.model.update(sizes)
  config.pattern = "ff: 1:4, o: 2:4"
  config.batch_size, config.total_steps = 8, 20
  if recipe == "figs":
    config.recipe.dense, config.recipe.finetune = 0.1, 0.25
    config.recipe.k = LONGEST
  config.optimizer.warmup_steps = 0
  config.optimizer.learning_rate = 3e-3
  config.optimizer.eps = EPS
  config.data.name = python_data.NAME
  if family == "t5":
    config.data.vocabulary = "bytes"
    config.data.input_length = config.data.target_length = LENGTH
    config.data.train_split, config.data.eval_split = "train", "test"
  else:
    config.data.image_size = LENGTH
  config.update_from_flattened_dict(fields)
  return build(config, data_of(family))


def batches(family: str, steps: int) -> Iterator[dict[str, np.ndarray]]:
  """The same batches of noise for every mesh."""
  rng = np.random.default_rng(0)
  for _ in range(steps):
    if family == "t5":
      ids = rng.integers(1, 200, (2, 8, LENGTH)).astype(np.int32)
      yield {"inputs": ids[0], "targets": ids[1]}
    else:
      images = rng.random((8, LENGTH, LENGTH, 1), np.float32)
      labels = rng.integers(0, CLASSES, 8).astype(np.int32)
      yield {"image": images, "label": labels}


@dataclasses.dataclass(frozen=True)
class Trained:
  """A run on one mesh.

  Attributes:
    losses: Loss of every step.
    masks: Masks by path after every step.
    scores: Magnitudes of the masked kernels by path after every step.
    state: Last state.
    shardings: Its shardings.
  """

  losses: np.ndarray
  masks: list[dict[str, np.ndarray]]
  scores: list[dict[str, np.ndarray]]
  state: Any
  shardings: Any


def trained(
  experiment: Experiment, family: str, sizes: Sequence[int], steps: int
) -> Trained:
  """Trains on a mesh of data, fsdp and tensor, from the first step."""
  mesh = make_mesh(*sizes)
  shardings = experiment.shardings(mesh)
  state: Any = experiment.placed_state(shardings)
  losses, masks, scores = [], [], []
  with jax.default_matmul_precision("highest"):
    step: Any = compiled_step(experiment, shardings, mesh)
    for batch in batches(family, steps):
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"]))
      params, kept = flatten(state.params), flatten(state.masks)
      paths = state.bound.leaves
      masks.append({path: np.asarray(kept[path]) for path in paths})
      scores.append({path: np.abs(np.asarray(params[path])) for path in paths})
  return Trained(np.array(losses), masks, scores, state, shardings)


@dataclasses.dataclass(frozen=True)
class Difference:
  """A run on a mesh against that on one device.

  Attributes:
    loss: Largest relative difference of a loss.
    groups: Groups whose masks differ, over all steps.
    compared: Number of groups compared, over all steps.
    gap: Largest relative difference of two scores that changed places; 0 if
      none did.
  """

  loss: float
  groups: int
  compared: int
  gap: float


def difference(one: Trained, many: Trained) -> Difference:
  """What a mesh changes."""
  loss = float(np.max(np.abs(many.losses - one.losses) / np.abs(one.losses)))
  groups = compared = 0
  gap = 0.0
  for first, second, scores in zip(one.masks, many.masks, one.scores):
    for path, leaf in one.state.bound.leaves.items():
      length = LONGEST * leaf.pattern.m
      rows = [
        each[path].swapaxes(leaf.axis, -1).reshape(-1, length)
        for each in (first, second, scores)
      ]
      differ = np.flatnonzero((rows[0] != rows[1]).any(axis=-1))
      groups, compared = groups + len(differ), compared + len(rows[0])
      for a, b, s in zip(*(each[differ] for each in rows)):
        changed = s[a != b]
        gap = max(gap, float(np.ptp(changed) / changed.max()))
  return Difference(loss, groups, compared, gap)


def is_restored(folder: str | Path, state: Any, like: Trained) -> bool:
  """Whether a saved state comes back bit for bit, placed as on another mesh."""
  target = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    like.state,
    like.shardings,
  )
  with Checkpointer(folder) as checkpoints:
    restored, _, _ = checkpoints.restore(target)
  return all(
    np.array_equal(old, new) and new.sharding.is_equivalent_to(place, new.ndim)
    for old, new, place in zip(
      *map(jax.tree.leaves, (state, restored, like.shardings))
    )
  )


def main() -> None:
  """Prints one row per family and mesh."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=20, help="Steps of a run.")
  parser.add_argument(
    "--families", nargs="+", default=list(MODELS), choices=list(MODELS)
  )
  args = parser.parse_args()
  print("| family | mesh | largest difference of a loss | groups | restored |")
  print("|---|---|---|---|---|")
  for family in args.families:
    experiment = experiment_of(family)
    one = trained(experiment, family, (1, 1, 1), args.steps)
    last = one
    for sizes in MESHES:
      many = trained(experiment, family, sizes, args.steps)
      differs = difference(one, many)
      with tempfile.TemporaryDirectory() as folder:
        with Checkpointer(folder) as checkpoints:
          checkpoints.save(args.steps, last.state, {}, {}, None)
        same = is_restored(folder, last.state, many)
      mesh = "x".join(map(str, sizes))
      groups = f"{differs.groups} of {differs.compared}"
      if differs.groups:
        groups += f", gap {differs.gap:.0e}"
      print(
        f"| {family} | {mesh} | {differs.loss:.1e} | {groups} |"
        f" {'bit-equal' if same else 'differs'} |",
        flush=True,
      )
      last = many


if __name__ == "__main__":
  main()
