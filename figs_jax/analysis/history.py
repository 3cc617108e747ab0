"""The history of a run: metrics and masks over its steps.

Metrics are read from `metrics.jsonl`, masks from the checkpoints. Nothing is
written to the workdir.
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
from figs_jax.core.mask_bits import unpack_masks
from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.train import seeds
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import completed
from figs_jax.train.experiment import Experiment
from figs_jax.train.log_writer import read_log
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
  """The configuration and metrics of a run; its state is restored on demand.

  Attributes:
    path: The workdir.
    label: Name that is unique among the runs read together.
    config: The saved configuration; fields it lacks have their default.
    rows: The rows of `metrics.jsonl`.
    data_dir: Directory of the data sets, in place of the configured one.
  """

  path: Path
  label: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]
  data_dir: str | None = None

  @property
  def recipe(self) -> str:
    """Name of the run's recipe, as in `figs_jax.recipes.names`."""
    return self.config["recipe"]["name"]

  def curve(self, name: str) -> Curve:
    """The values of a metric; empty if it was never logged.

    Args:
      name: Name of a field in the rows, such as "loss" or "eval/accuracy".

    >>> rows = [{"step": 5, "loss": 2.5}, {"step": 10, "loss": 1.5}]
    >>> steps, losses = History(Path("run"), "run", {}, rows).curve("loss")
    >>> steps.tolist(), losses.tolist()
    ([5, 10], [2.5, 1.5])
    """
    points = [(row["step"], row[name]) for row in self.rows if name in row]
    steps, values = zip(*points) if points else ((), ())
    return Curve(np.asarray(steps, int), np.asarray(values, float))

  def layer_curves(self, statistic: str) -> dict[str, Curve]:
    """A statistic of `core.diagnostics.layer_table` by path of the kernel.

    Args:
      statistic: Name of a column of that table, such as "flip_rate".

    Raises:
      ValueError: If the run did not log it. The message says how to.
    """
    start, end = "layers/", f"/{statistic}"
    names = dict.fromkeys(
      name
      for row in self.rows
      for name in row
      if name.startswith(start) and name.endswith(end)
    )
    if not names:
      raise ValueError(f"{self.path}: no {statistic}, {self._why_none_logged}")
    return {name[len(start) : -len(end)]: self.curve(name) for name in names}

  @property
  def _why_none_logged(self) -> str:
    if self.recipe == "dense":
      return "since a dense run has no masks; use a sparse run"
    if every := self.config["diagnose_every"]:
      return (
        f"since none of the {len(self.rows)} logged steps was a multiple of"
        f" config.diagnose_every={every}; train on, or again with a smaller"
        " value"
      )
    return (
      "since the run was trained with diagnose_every=0; train with"
      " --config.diagnose_every=10 in a new workdir"
    )

  @property
  def last_evaluation(self) -> dict[str, Any]:
    """The last row with an evaluation.

    Raises:
      ValueError: If the run was not evaluated yet.
    """
    for row in reversed(self.rows):
      if "eval/accuracy" in row:
        return row
    raise ValueError(
      f"{self.path}: no evaluation yet; train until the next checkpoint"
      " (config.checkpoint_every) or the last step"
    )

  @property
  def accuracies(self) -> list[float]:
    """Accuracies in [0, 1] of the last evaluation, one per seed."""
    return _each_seed(self.last_evaluation, "eval/accuracy")

  @property
  def losses(self) -> list[float]:
    """Losses in nats of the last evaluation, one per seed."""
    return _each_seed(self.last_evaluation, "eval/loss")

  @property
  def final_losses(self) -> list[float]:
    """Losses of the evaluation after the last step, one per seed.

    Raises:
      ValueError: If the run is not finished.
    """
    row, total = self.last_evaluation, self.config["total_steps"]
    if row["step"] != total:
      raise ValueError(
        f"{self.path}: expected an evaluation after step {total}, the last one,"
        f" got one after step {row['step']}; train the run to the end"
      )
    return self.losses

  @functools.cached_property
  def restored(self) -> tuple[Experiment, TrainState, int]:
    """(experiment, state, step) of the newest valid checkpoint."""
    return restore(self.path, data_dir=self.data_dir)

  @property
  def versions(self) -> dict[str, str]:
    """Versions of the libraries that trained the run."""
    with Checkpointer(self.path) as checkpoints:
      return checkpoints.meta()["versions"]

  @property
  def states(self) -> list[TrainState]:
    """The restored state of each seed."""
    return list(seeds.singles(self.restored[1]))

  @functools.cached_property
  def model(self) -> nnx.Module:
    """The finished model of the first seed."""
    return self.states[0].finished()

  @functools.cached_property
  def layers(self) -> list[dict[str, Any]]:
    """Rows for the engine: the model's GEMMs for one image or sequence."""
    return layers_of(self.model, batch=1)

  @functools.cached_property
  def batch_layers(self) -> list[dict[str, Any]]:
    """Rows for the engine: the model's GEMMs for a batch of the run."""
    return layers_of(self.model, batch=self.config["batch_size"])


def _each_seed(row: Mapping[str, Any], name: str) -> list[float]:
  """A metric of each seed; of a run without a seed axis the metric itself."""
  start = f"{name}/seed"
  by_seed = {
    int(key.removeprefix(start)): value
    for key, value in row.items()
    if key.startswith(start)
  }
  return [by_seed[seed] for seed in sorted(by_seed)] or [row[name]]


def histories(
  workdirs: Sequence[str | Path], *, data_dir: str | None = None
) -> list[History]:
  """Reads runs, each with a label of its own.

  Args:
    workdirs: Workdirs of `launch/train.py`, each with at least a configuration.
    data_dir: Directory of the data sets, in place of the configured ones.

  Raises:
    ValueError: If no workdir is given, or one of them twice or without a run.
  """
  paths = [Path(workdir) for workdir in workdirs]
  if not paths:
    raise ValueError("Expected at least one workdir, got none")
  resolved = [path.resolve() for path in paths]
  for i, path in enumerate(resolved):
    if path in resolved[:i]:
      raise ValueError(f"{paths[i]}: given twice; name each run once")
  return [
    History(path, label, _config(path), read_log(path), data_dir)
    for path, label in zip(paths, _labels(resolved))
  ]


def _labels(paths: Sequence[Path]) -> list[str]:
  """The last parts of each path, as many as make them unique."""
  longest = max(len(path.parts) for path in paths)
  labels = [str(path) for path in paths]
  for length in range(1, longest + 1):
    labels = ["/".join(path.parts[-length:]) for path in paths]
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
      f"{path}: no run here; expected the --workdir of launch/train.py"
    ) from error
  except (
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    json.JSONDecodeError,
    UnicodeDecodeError,
  ) as error:
    raise ValueError(
      f"{path}/config.json: cannot be read as a run's configuration"
      f" ({type(error).__name__}); expected the --workdir of launch/train.py"
    ) from error


def bands_by_kind(curves: Mapping[str, Curve]) -> dict[str, Band]:
  """One band per kind of layer: the part of the path before the leaf's name.

  >>> one = Curve(np.array([1, 2]), np.array([0.0, 1.0]))
  >>> two = Curve(np.array([1, 2]), np.array([0.0, 3.0]))
  >>> bands = bands_by_kind({"0/fc1/kernel": one, "1/fc1/kernel": two})
  >>> bands["fc1"].mean.tolist()
  [0.0, 2.0]
  """
  kinds: dict[str, list[Curve]] = {}
  for path, curve in curves.items():
    kinds.setdefault(path.split("/")[-2:][0], []).append(curve)
  return {kind: band_of(each) for kind, each in kinds.items()}


def band_of(curves: Sequence[Curve]) -> Band:
  """Mean, smallest and largest value of curves over the same steps."""
  values = np.stack([curve.values for curve in curves])
  return Band(curves[0].steps, values.mean(0), values.min(0), values.max(0))


class MaskEvolution(NamedTuple):
  """Masks of one seed over the T checkpoints of a run.

  Attributes:
    steps: Steps of the checkpoints, int[T].
    layer: Path of the kernel in `window`.
    patterns: Its pattern at each step, "dense" while all entries are kept.
    shape: Rows and columns of its mask, with groups along the columns.
    window: The first entries of its masks, Bool[T, rows, columns], True = kept.
    changed: Share of entries that differ from the checkpoint before, by path of
      every masked kernel; curves over steps[1:].
  """

  steps: np.ndarray
  layer: str
  patterns: tuple[str, ...]
  shape: tuple[int, int]
  window: np.ndarray
  changed: dict[str, Curve]


def mask_evolution(
  history: History,
  layer: str | None = None,
  *,
  seed: int = 0,
  window: tuple[int, int] = (48, 48),
) -> MaskEvolution:
  """Reads the masks of every checkpoint.

  Args:
    history: A sparse run with two checkpoints or more.
    layer: Path of a masked kernel. Defaults to the first.
    seed: Index of the seed in a run with several.
    window: The most rows and columns to return.

  Raises:
    ValueError: If there are fewer than two checkpoints, no masks, no such layer
      or seed, or (`CheckpointError`) a checkpoint is damaged.
  """
  experiment, _, _ = history.restored
  if not experiment.recipe.sparse:
    raise ValueError(f"{history.path}: a dense run has no masks")
  bound = experiment.abstract_state.bound
  leaves: Mapping[str, MaskedKernel] = bound.leaves
  layer = next(iter(leaves)) if layer is None else layer
  if layer not in leaves:
    raise ValueError(
      f"{history.path}: no masked kernel {layer!r}; known: {', '.join(leaves)}"
    )
  (stages,) = (each.stages for each in bound.kernels if each.path == layer)
  steps, patterns, windows = [], [], []
  changed: dict[str, list[float]] = {}
  before: dict[str, np.ndarray] = {}
  shape = (0, 0)
  for step, masks, switched in _saved_masks(history, experiment, seed):
    steps.append(step)
    stage = bound.recipe.timeline.stage(
      len(stages), jnp.asarray(step), switched
    )
    patterns.append(("dense", *map(str, stages))[int(stage)])
    table = _table(masks[layer], leaves[layer])
    shape = table.shape
    windows.append(table[: window[0], : window[1]])
    for path in before:
      share = float(np.mean(masks[path] != before[path]))
      changed.setdefault(path, []).append(share)
    before = masks
  if len(steps) < 2:
    raise ValueError(
      f"{history.path}: expected two checkpoints or more, got {len(steps)};"
      " train with --config.keep=20 and a --config.checkpoint_every of a"
      " twentieth of the steps"
    )
  return MaskEvolution(
    np.asarray(steps),
    layer,
    tuple(patterns),
    shape,
    np.stack(windows),
    {
      path: Curve(np.asarray(steps[1:]), np.asarray(shares))
      for path, shares in changed.items()
    },
  )


def _saved_masks(
  history: History, experiment: Experiment, seed: int
) -> Iterator[tuple[int, dict[str, np.ndarray], bool]]:
  """(step, masks by path, whether STEP has switched) of each checkpoint."""
  count = max(len(experiment.seeds), 1)
  if not 0 <= seed < count:
    raise ValueError(
      f"{history.path}: no seed {seed}; this run has {count}, counted from 0"
    )
  with Checkpointer(history.path) as checkpoints:
    for step in checkpoints.steps():
      state, _, _ = checkpoints.restore(experiment.abstract_state, step)
      switched = experiment.recipe.switched(state.opt_state)
      masks = {
        path: np.asarray(mask[seed] if experiment.seeds else mask)
        for path, mask in flatten(
          unpack_masks(state.masks, state.params)
        ).items()
        if mask is not None
      }
      yield step, masks, bool(switched[seed] if np.ndim(switched) else switched)


def _table(mask: np.ndarray, leaf: MaskedKernel) -> np.ndarray:
  """A mask as a matrix with groups along the columns."""
  axes = normalized(mask.shape, leaf.axis)
  rest = [axis for axis in range(mask.ndim) if axis not in axes]
  rows = math.prod(mask.shape[axis] for axis in axes)
  return mask.transpose(*axes, *rest).reshape(rows, -1)
