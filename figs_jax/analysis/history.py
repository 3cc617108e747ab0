"""What a run has left behind, as the numbers that pictures are drawn from.

Curves come from `metrics.jsonl`, masks from the checkpoints; nothing in the
workdir is written.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.groups import normalized
from figs_jax.core.tree import Leaf, flatten
from figs_jax.train import seeds
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import completed
from figs_jax.train.experiment import Experiment
from figs_jax.train.log_writer import read
from figs_jax.train.run_rows import layers_of
from figs_jax.train.state import TrainState
from figs_jax.train.workdir import restore


class Curve(NamedTuple):
  """Values over steps: int[T], float[T]."""

  steps: np.ndarray
  values: np.ndarray


class Band(NamedTuple):
  """Mean, smallest and largest of several curves at each step: float[T]."""

  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


@dataclasses.dataclass(frozen=True)
class History:
  """A run's configuration and metrics, and its newest state on demand.

  Attributes:
    path: the workdir.
    label: its name among the runs of one picture.
    config: as it was saved, newer fields with their default.
    rows: of `metrics.jsonl`.
  """

  path: Path
  label: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]

  @property
  def recipe(self) -> str:
    return self.config["recipe"]["name"]

  def curve(self, name: str) -> Curve:
    """A metric over the steps that have it; empty if none has."""
    found = [(row["step"], row[name]) for row in self.rows if name in row]
    steps, values = zip(*found) if found else ((), ())
    return Curve(np.asarray(steps, int), np.asarray(values, float))

  def layer_curves(self, statistic: str) -> dict[str, Curve]:
    """A statistic of `core.diagnostics.layer_table`, by path of the kernel.

    Raises:
      ValueError: the run has none; the line says how to get them.
    """
    start, end = "layers/", f"/{statistic}"
    names = dict.fromkeys(
      name
      for row in self.rows
      for name in row
      if name.startswith(start) and name.endswith(end)
    )
    if not names:
      raise ValueError(f"{self.path}: {self._why_no_statistics(statistic)}")
    return {name[len(start) : -len(end)]: self.curve(name) for name in names}

  def _why_no_statistics(self, statistic: str) -> str:
    if self.recipe == "dense":
      return (
        f"no {statistic}, since a dense run has no masks; take a sparse run"
      )
    every = self.config["diagnose_every"]
    if every:
      return (
        f"no {statistic} in {len(self.rows)} rows of metrics; it is written"
        f" every {every} steps (config.diagnose_every), so train on, or anew"
        " with fewer"
      )
    return (
      f"no {statistic}, since it was trained with diagnose_every=0; train with"
      " --config.diagnose_every=10 in a new workdir"
    )

  def accuracies(self) -> list[float]:
    """Of the last evaluation, in [0, 1], one per seed.

    Raises:
      ValueError: the run was not evaluated yet.
    """
    row = self.last_evaluation
    each = {
      int(name.removeprefix("eval/accuracy/seed")): value
      for name, value in row.items()
      if name.startswith("eval/accuracy/seed")
    }
    return [each[i] for i in sorted(each)] or [row["eval/accuracy"]]

  @property
  def evaluated(self) -> int:
    """Step of the last evaluation; a run that was stopped is further on.

    Raises:
      ValueError: as of `accuracies`.
    """
    return self.last_evaluation["step"]

  @property
  def last_evaluation(self) -> dict[str, Any]:
    """The row of the log with it.

    Raises:
      ValueError: the run was not evaluated yet.
    """
    for row in reversed(self.rows):
      if "eval/accuracy" in row:
        return row
    raise ValueError(
      f"{self.path}: no evaluation yet; it comes with every checkpoint"
      " (config.checkpoint_every) and with the last step, so train on"
    )

  @functools.cached_property
  def restored(self) -> tuple[Experiment, TrainState, int]:
    """(experiment, state, step) of the newest good checkpoint."""
    return restore(self.path)

  @property
  def states(self) -> list[TrainState]:
    """That state, seed by seed."""
    experiment, state, _ = self.restored
    if not experiment.seeds:
      return [state]
    return [seeds.take(state, i) for i in range(len(experiment.seeds))]

  @functools.cached_property
  def model(self) -> nnx.Module:
    """The finished model of the first seed."""
    return self.states[0].finished()

  @functools.cached_property
  def layers(self) -> list[dict[str, Any]]:
    """Its matrix products for one image or sequence, with their masks."""
    return layers_of(self.model, batch=1)


def histories(workdirs: Sequence[str | Path]) -> list[History]:
  """The runs of these directories, each with a label of its own.

  Raises:
    ValueError: none given, one given twice, or one that is no run.
  """
  paths = [Path(workdir) for workdir in workdirs]
  if not paths:
    raise ValueError("no workdir: give the directory of a run")
  places = [path.resolve() for path in paths]
  for i, place in enumerate(places):
    if place in places[:i]:
      raise ValueError(f"{paths[i]}: given twice; name each run once")
  return [
    History(path, label, _config(path), read(path))
    for path, label in zip(paths, _labels(places))
  ]


def _labels(places: Sequence[Path]) -> list[str]:
  """The last parts of each path, as many as tell all apart."""
  for length in range(1, max(len(place.parts) for place in places) + 1):
    labels = ["/".join(place.parts[-length:]) for place in places]
    if len(set(labels)) == len(labels):
      break
  return labels


def _config(path: Path) -> dict[str, Any]:
  if (path / "checkpoints").is_dir():
    with Checkpointer(path) as checkpoints:
      if checkpoints.steps():
        return completed(checkpoints.meta()["config"])
  try:
    saved = json.loads((path / "config.json").read_text())
    return completed(saved)
  except FileNotFoundError as error:
    raise ValueError(
      f"{path}: no run here; give the --workdir of launch/train.py"
    ) from error
  except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
    raise ValueError(
      f"{path}/config.json: cannot be read as a run's configuration"
      f" ({type(error).__name__}); give the --workdir of launch/train.py"
    ) from error


def kind_of(path: str) -> str:
  """What layers at several depths have in common: the name before the leaf's.

  >>> kind_of("blocks/0/mlp/fc1/kernel"), kind_of("kernel")
  ('fc1', 'kernel')
  """
  parts = path.split("/")
  return parts[-2] if len(parts) > 1 else path


def by_kind(curves: Mapping[str, Curve]) -> dict[str, Band]:
  """One band per kind of layer.

  >>> one = Curve(np.array([1, 2]), np.array([0.0, 1.0]))
  >>> two = Curve(np.array([1, 2]), np.array([0.0, 3.0]))
  >>> by_kind({"0/fc1/kernel": one, "1/fc1/kernel": two})["fc1"].mean.tolist()
  [0.0, 2.0]
  """
  kinds: dict[str, list[Curve]] = {}
  for path, curve in curves.items():
    kinds.setdefault(kind_of(path), []).append(curve)
  return {kind: band(found) for kind, found in kinds.items()}


def band(curves: Sequence[Curve]) -> Band:
  """Mean, smallest and largest over the curves; all have the same steps."""
  values = np.stack([curve.values for curve in curves])
  return Band(curves[0].steps, values.mean(0), values.min(0), values.max(0))


class Evolution(NamedTuple):
  """Masks over the checkpoints of a run; T of them, one seed.

  steps: of the checkpoints, int[T]. layer: path of the kernel that is shown,
  with its pattern at each of them ("dense" while all is kept), `shape` and
  `window`: Bool[T, rows, columns], the first entries of its masks, True = kept,
  groups down the columns. changed: by path of every masked kernel, the share of
  its entries that differ from the checkpoint before, a curve over steps[1:].
  """

  steps: np.ndarray
  layer: str
  patterns: tuple[str, ...]
  shape: tuple[int, int]
  window: np.ndarray
  changed: dict[str, Curve]


def evolution(
  history: History,
  layer: str | None = None,
  *,
  seed: int = 0,
  window: tuple[int, int] = (48, 48),
) -> Evolution:
  """Which entries are kept, checkpoint by checkpoint.

  Args:
    history: of a sparse run that kept two checkpoints or more.
    layer: path of a masked kernel; None takes the first.
    seed: the place of one, of a run with several.
    window: rows and columns that are shown at most.

  Raises:
    ValueError: too few checkpoints, no masks, no such layer or seed, or
      (`CheckpointError`) a damaged checkpoint.
  """
  experiment, _, _ = history.restored
  if not experiment.recipe.sparse:
    raise ValueError(f"{history.path}: a dense run has no masks")
  steps, patterns, found, changed = [], [], [], {}
  before: dict[str, np.ndarray] = {}
  bound = experiment.abstract_state.bound
  leaves: Mapping[str, Leaf] = bound.leaves
  layer, shape = _chosen(history, leaves, layer), (0, 0)
  (chain,) = (each.chain for each in bound.kernels if each.path == layer)
  for step, masks, switched in _masks(history, experiment, seed):
    steps.append(step)
    stage = bound.recipe.timeline.stage(len(chain), jnp.asarray(step), switched)
    patterns.append(("dense", *map(str, chain))[int(stage)])
    table = _table(masks[layer], leaves[layer])
    shape = table.shape
    found.append(table[: window[0], : window[1]])
    for path, mask in masks.items():
      if path in before:
        share = float(np.mean(mask != before[path]))
        changed.setdefault(path, []).append(share)
    before = masks
  if len(steps) < 2:
    raise ValueError(
      f"{history.path}: {len(steps)} checkpoint; masks over steps want two or"
      " more: train with --config.keep=20 and a --config.checkpoint_every that"
      " is a twentieth of the steps"
    )
  return Evolution(
    np.asarray(steps),
    layer,
    tuple(patterns),
    shape,
    np.stack(found),
    {
      p: Curve(np.asarray(steps[1:]), np.asarray(v)) for p, v in changed.items()
    },
  )


def _chosen(
  history: History, leaves: Mapping[str, Leaf], layer: str | None
) -> str:
  if layer is None:
    return next(iter(leaves))
  if layer not in leaves:
    known = ", ".join(leaves)
    raise ValueError(
      f"{history.path}: no masked kernel {layer!r}; there are {known}"
    )
  return layer


def _masks(
  history: History, experiment: Experiment, seed: int
) -> Iterator[tuple[int, dict[str, np.ndarray], bool]]:
  """(step, masks by path, STEP's flag) of each checkpoint, as in training."""
  count = max(len(experiment.seeds), 1)
  if not 0 <= seed < count:
    raise ValueError(
      f"{history.path}: no seed {seed}; this run has {count}, counted from 0"
    )
  with Checkpointer(history.path) as checkpoints:
    for step in checkpoints.steps():
      state, _, _ = checkpoints.restore(experiment.abstract_state, step)
      masks = flatten(state.masks)
      switched = experiment.recipe.switched(state.opt_state)
      yield (
        step,
        {
          path: np.asarray(mask[seed] if experiment.seeds else mask)
          for path, mask in masks.items()
          if mask is not None
        },
        bool(switched[seed] if np.ndim(switched) else switched),
      )


def _table(mask: np.ndarray, leaf: Leaf) -> np.ndarray:
  """A mask as a matrix whose groups run down the columns."""
  axes = normalized(mask.shape, leaf.axis)
  rest = [axis for axis in range(mask.ndim) if axis not in axes]
  rows = math.prod(mask.shape[axis] for axis in axes)
  return mask.transpose(*axes, *rest).reshape(rows, -1)
