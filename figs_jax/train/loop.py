"""The whole training program, readable from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from figs_jax.core.pattern import NM
from figs_jax.data import python_data
from figs_jax.train import (
  data_position,
  distributed,
  machine,
  schema,
  seeds,
  teacher,
  watchdog,
  workdir_lock,
)
from figs_jax.train._evaluate import Evaluator, evaluator
from figs_jax.train.checkpoint import Checkpointer, SaveError
from figs_jax.train.compilation import (
  check_mesh,
  compiled_step,
  in_turn,
)
from figs_jax.train.config import (
  ConfigError,
  changes,
  completed,
  other_model,
  other_recipe,
  plain,
  stream_seed,
  with_model,
)
from figs_jax.train.experiment import Experiment, build
from figs_jax.train.log_writer import MetricLog, known_costs, open_log
from figs_jax.train.mask_health import MaskHealth, layer_means, mean_over_seeds
from figs_jax.train.progress import summary
from figs_jax.train.recalibration import at_the_end
from figs_jax.train.sharding import make_mesh, process_share
from figs_jax.train.state import TrainState, with_fresh_masks
from figs_jax.train.stopwatch import CHECKPOINT, EVALUATION, Stopwatch
from figs_jax.train.workdir import initial_config, initial_weights
from figs_jax.train.writers import Writer, check_writers

_log = logging.getLogger("figs_jax")
# Steps dispatched ahead hold their batches, and delay a stop. But waiting costs
# quick steps a tenth of their time, so they wait at every eighth only.
_AHEAD, _WAIT_EVERY = 2, 8
_QUICK, _SMALL = 0.05, 2**23  # seconds of a step, bytes of a batch


class Diverged(RuntimeError):
  """The loss became NaN or infinite; the message names the last good step."""


@dataclasses.dataclass
class Run:
  """Mutable parts of a run."""

  experiment: Experiment
  checkpoints: Checkpointer
  lock: workdir_lock.WorkdirLock
  log: MetricLog
  watch: Stopwatch
  evaluator: Evaluator
  batches: Any
  state: TrainState | list[TrainState]  # of all seeds, or of each in turn
  shardings: Any
  mesh: Mesh
  losses: list[tuple[int, Any]] = dataclasses.field(default_factory=list)
  lost: set[int] = dataclasses.field(default_factory=set)
  waits_every: int = 1
  waited: float = 0.0

  @property
  def whole(self) -> TrainState:
    """The state, with a leading seed axis if there are seeds."""
    if isinstance(self.state, TrainState):
      return self.state
    return seeds.together(self.state, self.shardings)


def train(
  config: config_dict.ConfigDict,
  workdir: str | Path,
  *,
  data: Any = None,
  writers: Sequence[Writer] = (),
  model: type | None = None,
) -> dict[str, Any]:
  """Trains to the last step, resuming if the workdir holds a checkpoint.

  With several processes, each one calls `distributed.initialize` and then this
  function with the same arguments, and gets the same result.

  Args:
    config: Configuration, see `figs_jax.train.config.default_config`.
    workdir: Directory for config.json, metrics.jsonl, TensorBoard events and
      checkpoints.
    data: Examples in the place of the data set config.data.name, which is saved
      as "python": by split, as {"train": ..., "test": ...}, as a tuple (train,
      test), or alone; see `figs_jax.data.python_data.PythonData`.
    writers: Writers of your own, which get every row of metrics.jsonl and are
      closed at the end of the run; see `figs_jax.train.Writer`.
    model: Model class of your own, from which the configuration started, as in
      `default_config("figs", Net)`. May be left out if it is registered.

  Returns:
    {"step", "finished", and the values of the last evaluation}. `finished` is
    False after SIGTERM or SIGUSR1, upon which the run saves and returns.

  Raises:
    ValueError: If the configuration is invalid, or differs from that of the
      run to resume.
    LockedError: If another process trains in the workdir.
    LockLostError: If another process has taken over the workdir, because this
      one was suspended for a minute.
    SaveError: If the disk refuses a file after the run has begun; before, it is
      a ConfigError.
    Diverged: If the loss becomes NaN or infinite (in every seed).
  """
  config = with_model(config, model)  # a copy, see `_keep_order`
  schema.check(config)
  check_writers(config.log.tensorboard, config.log.wandb, writers)
  if data is not None:
    config.data.name = python_data.NAME
  mesh = make_mesh(**config.mesh)
  check_mesh(config, mesh)
  checkpoints = Checkpointer(workdir, keep=config.keep)
  experiment = build(initial_config(config, checkpoints), data)
  experiment = teacher.taught(experiment, teacher.read(config, data))
  config = experiment.config  # see `_keep_order`
  shardings = experiment.shardings(mesh)
  runs: list[Run] = []
  with (
    # Outermost, since the last save may take a while.
    distributed.preemption() as stopped,
    contextlib.ExitStack() as opened,
    # Before the workdir is made, since data may be refused.
    contextlib.closing(_train_batches(experiment, mesh)) as batches,
    contextlib.nullcontext(evaluator(experiment, mesh)) as evaluation,
    _refusals_of_disk(checkpoints, runs),
    workdir_lock.held(workdir) as lock,
    checkpoints,
  ):
    order = config.data.order
    state, position = _begin(experiment, checkpoints, shardings, mesh, data)
    if config.data.order != order:  # see `_keep_order`
      batches = opened.enter_context(
        contextlib.closing(_train_batches(experiment, mesh))
      )
    if position is not None and data_position.is_of(position, batches):
      batches.set_state(position)
    start = int(state.step)
    _write_config(workdir, config)  # after all checks: errors change nothing
    with (
      Stopwatch(
        start,
        total=config.total_steps,
        every=config.checkpoint_every,
        known=known_costs(workdir) if start else {},
      ) as watch,
      open_log(config, workdir, start, watch, writers) as log,
    ):
      run = Run(
        experiment,
        checkpoints,
        lock,
        log,
        watch,
        evaluation,
        batches,
        state if not in_turn(experiment, mesh) else seeds.apart(state),
        shardings,
        mesh,
      )
      runs.append(run)
      del state  # donated
      step_fn = compiled_step(experiment, shardings, mesh)
      return _loop(run, start, step_fn, stopped)


@contextlib.contextmanager
def _refusals_of_disk(
  checkpoints: Checkpointer, runs: list[Run]
) -> Iterator[None]:
  """Raises an OSError in one line: a ConfigError until there is a run."""
  try:
    yield
  except OSError as error:
    of_writer = any(run.log.raised is error for run in runs)
    if of_writer or distributed.may_be_of_peer(error):
      raise
    if runs:
      raise SaveError(
        f"{checkpoints.path.parent}: {error}; {checkpoints.last_good(error)}"
      ) from error
    raise ConfigError(
      f"{checkpoints.path.parent}: cannot be written ({error}); set --workdir"
      " to a directory in which files can be created"
    ) from error


def _loop(run: Run, start: int, step_fn, stopped) -> dict[str, Any]:
  config = run.experiment.config
  health = MaskHealth(run.experiment.abstract_state.bound)
  result: dict[str, Any] = {}
  step = start
  for step in range(start + 1, config.total_steps + 1):
    watchdog.alive()
    with run.watch.input():
      batch = next(run.batches)
    first = step == start + 1
    with run.log.compiling() if first else contextlib.nullcontext():
      run.state, metrics = step_fn(run.state, batch)
    run.losses.append((step, _loss(metrics)))
    if step % run.waits_every == 0:
      _wait(run, batch)
    last = step == config.total_steps
    stopping = stopped(step)
    if step % config.log_every == 0 or _diagnosed(config, step) or last:
      _check_finite(run)
      run.lock.check()
      _log_step(run, step, metrics, health)
    run.log.progress(step)
    if step % config.checkpoint_every == 0 or last:
      _check_finite(run)
      if last:
        _recalibrate(run)
      result = _evaluate(run, step)
      _save(run, step, {"accuracy": result["eval/accuracy"]})
    elif stopping:  # without an evaluation, to be quick
      _check_finite(run)
      _save(run, step, None)
    if stopping and not last:
      _log.warning("stopped by a signal: saved step %d", step)
      run.log.note(summary(step, config.total_steps, run.watch))
      return {"step": step, "finished": False, **result}
  if not result:
    result = _evaluate(run, step, write=False)
  run.log.note(summary(step, config.total_steps, run.watch))
  return {"step": step, "finished": True, **result}


def _recalibrate(run: Run) -> None:
  """Gives the last state batch statistics of its finished weights."""
  # From the start of the data, so that a resumed run reads the same.
  with contextlib.closing(_train_batches(run.experiment, run.mesh)) as batches:
    run.state = at_the_end(
      run.experiment, run.state, batches, run.mesh, run.shardings
    )


def _loss(metrics: Any) -> Any:
  """The loss of a step; with seeds in turn, that of each."""
  if isinstance(metrics, list):
    return [each["loss"] for each in metrics]
  return metrics["loss"]


def _wait(run: Run, batch: Any) -> None:
  """Waits for the steps before the last two, and decides on the next wait."""
  if len(run.losses) > _AHEAD:
    finished, loss = run.losses[-1 - _AHEAD]
    jax.block_until_ready(loss)
    run.watch.done(finished)
  now = time.monotonic()
  quick = now - run.waited < _QUICK * run.waits_every
  small = sum(x.nbytes for x in jax.tree.leaves(batch)) < _SMALL
  run.waits_every = _WAIT_EVERY if quick and small else 1
  run.waited = now


# Fields that decide the dtypes and shapes of arrays in a checkpoint.
_OF_ARRAYS = {"mask_storage": "masks", "param_dtype": "parameters"}
# Fields that decide the masks of a step.
_OF_MASKS = ("recipe", "recipe_sha256", "pattern", "total_steps")


def _begin(experiment, checkpoints, shardings, mesh, data=None):
  """(state, data position): restored, or a new state; None is the start."""
  distributed.check_same(checkpoints.path, checkpoints.steps)
  if not checkpoints.steps():
    place = experiment.weight_placer(shardings)
    weights = initial_weights(experiment, place, mesh, data)
    state = experiment.placed_state(shardings, weights)
    _log.info(
      "training for %d steps in %s",
      experiment.config.total_steps,
      checkpoints.path,
    )
    return state, None
  changed: list[str] = []
  saved: dict[str, Any] = {}

  def check(config: dict[str, Any]) -> None:
    _keep_order(config, experiment.config)
    changed[:] = _changes(config, experiment.config, checkpoints.path)
    saved.update(config)

  state, position, step = checkpoints.restore(
    experiment.abstract_on(shardings), check=check
  )
  checkpoints.set_aside_after(step)
  saved_on = checkpoints.meta(step).get("machine", {})  # since 0.2.0
  if differs := machine.changed(saved_on, machine.current()):
    _log.warning(
      "resuming on another machine: %s; results may differ in rounding from"
      " those of an uninterrupted run",
      differs,
    )
  if any(name.split(".")[0] in _OF_MASKS for name in changed):
    fresh: Any = with_fresh_masks
    if experiment.seeds:
      fresh = functools.partial(seeds.with_fresh_masks, mesh=mesh)
    state = jax.jit(fresh, out_shardings=shardings)(state)
  if step < experiment.config.total_steps:
    _log.info("resuming from step %d of %s", step, checkpoints.path)
  else:
    _log.info("all %d steps of %s are done", step, checkpoints.path)
  order = experiment.config.data.order
  return state, data_position.moved(
    position, saved["batch_size"], changed, order
  )


def _keep_order(saved: dict[str, Any], config: config_dict.ConfigDict) -> None:
  """Keeps a shared order, also of runs from before the field, when resuming.

  The default is "own", so that the command of such a run may not name it.
  """
  if (
    schema.flat(saved).get("data.order", "shared") == "shared"
    and "data.order" not in config.allow_change
    and config.data.order == "own"
  ):
    _log.warning(
      "all seeds of this run read the stream of data.seed: going on with"
      " data.order=shared"
    )
    config.data.order = "shared"


def _train_batches(experiment: Experiment, mesh: Mesh) -> Any:
  """Batches of this process; raises a ConfigError if one has too many."""
  config, share = experiment.config, process_share(mesh)
  stream: Any = stream_seed(config)
  if experiment.batch_axis == 0:
    stream = share.of_seeds(stream, mesh)
  batches = experiment.task.train_batches(
    config.batch_size // share.count,
    seed=stream,
    shard_index=share.index,
    num_shards=share.count,
  )
  count = batches.num_examples
  if count is not None and config.batch_size > count:
    batches.close()
    raise ConfigError(
      "--config.batch_size: expected at most the"
      f" {count} examples of split {config.data.train_split!r}"
      f" of {config.data.name!r}, got {config.batch_size}"
    )
  return batches


def _changes(saved, config, path) -> list[str]:
  """Fields that differ from the saved ones.

  Raises:
    ConfigError: If one of them is not in `config.allow_change`, or decides
      which arrays are saved.
  """
  changed, refused = changes(saved, config)
  for name, arrays in _OF_ARRAYS.items():  # allowed or not
    if name in changed:
      kept = completed(saved)[name]
      raise ConfigError(
        f"{path}: expected --config.{name}={kept}, in which this run saved its"
        f" {arrays}, got {config[name]!r}; set it so, or use a new --workdir"
      )
  if refused:
    what = f"this run was started with another {', '.join(refused)}"
    if refused == ["recipe_sha256"]:
      what = other_recipe(saved, config.recipe_sha256)
    if refused == ["model_sha256"]:
      what = f"{other_model(saved)}, since the file was changed"
    if refused == ["teacher_sha256"]:
      what = teacher.other(saved, config)
    raise ConfigError(
      f"{path}: {what}; use a new --workdir, or allow the change with"
      f" --config.allow_change=\"('{refused[0]}',)\""
    )
  return changed


def _diagnosed(config, step: int) -> bool:
  every = config.diagnose_every
  return bool(every) and step % every == 0


def _log_step(run: Run, step: int, metrics: Any, health: MaskHealth) -> None:
  """Logs the metrics of a step, with seeds their mean and the loss of each."""
  if isinstance(metrics, list):
    metrics = jax.tree.map(lambda *each: np.stack(each), *metrics)
  metrics = distributed.all_whole(dict(metrics))
  diagnosed = metrics.pop("layers", {})
  row = {name: mean_over_seeds(value) for name, value in metrics.items()}
  if metrics["loss"].ndim:
    row |= {f"loss/seed{i}": float(v) for i, v in enumerate(metrics["loss"])}
  if not _diagnosed(run.experiment.config, step):
    diagnosed = {}
  layers = {
    path: {name: mean_over_seeds(value) for name, value in each.items()}
    for path, each in diagnosed.items()
  }
  for path, each in layers.items():
    row |= {f"layers/{path}/{name}": value for name, value in each.items()}
  run.log.write(step, row | layer_means(layers))
  for line in health.verdicts(step, layers, float(metrics["stage"].min())):
    run.log.warn(line)


def _check_finite(run: Run) -> None:
  """Raises Diverged at the first step without a finite loss."""
  losses, run.losses = run.losses, []
  values = distributed.all_whole([loss for _, loss in losses])
  for (step, _), loss in zip(losses, values):
    bad = ~np.isfinite(np.atleast_1d(loss))
    for i in set(np.flatnonzero(bad).tolist()) - run.lost:
      run.lost.add(i)
      _log.warning("seed %d: the loss is not finite at step %d", i, step)
    if bad.all():
      raise _diverged(run, f"the loss is not finite at step {step}")
  if losses:
    run.watch.done(losses[-1][0])


def _diverged(run: Run, what: str) -> Diverged:
  run.checkpoints.wait()
  return Diverged(f"{what}; {run.checkpoints.last_good()}")


def _evaluate(run: Run, step: int, write: bool = True) -> dict[str, float]:
  row = {}
  with run.watch.apart(EVALUATION) as lap:
    state, points = run.whole, run.experiment.recipe.points
    prefixes: dict[str, NM | None] = {"eval": None}
    if points is not None:  # "eval" is the first one
      prefixes |= {f"eval/{nm}": nm for nm in points.patterns[1:]}
    if state.ema is not None:
      prefixes["eval_ema"] = None
    for prefix, point in prefixes.items():
      values = run.evaluator.run(state, ema=prefix == "eval_ema", point=point)
      for name, value in values:
        mean, error = seeds.mean_and_se(np.atleast_1d(value).tolist())
        row[f"{prefix}/{name}"] = mean
        if isinstance(value, list):
          row[f"{prefix}/{name}_se"] = error
          row |= {f"{prefix}/{name}/seed{i}": v for i, v in enumerate(value)}
  run.log.evaluated(step, row, lap, run.evaluator.headline)
  # The training losses are from before the last update, this one is after it.
  if not np.isfinite(row["eval/loss"]):
    raise _diverged(run, f"the evaluation loss is not finite at step {step}")
  if write:
    run.log.write(step, row)
  return row


def _save(run: Run, step: int, metrics: dict[str, float] | None) -> None:
  with run.watch.apart(CHECKPOINT):
    state = run.whole
    leaves = jax.tree.leaves(state.params)
    if not all(bool(jnp.isfinite(leaf).any()) for leaf in leaves):
      raise _diverged(run, f"a whole parameter is not finite at step {step}")
    config = plain(run.experiment.config)
    run.lock.check()
    data = run.batches.get_state() | data_position.data_set(run.batches)
    run.checkpoints.save(step, state, data, config, metrics)


def _write_config(workdir: str | Path, config) -> None:
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
  path = Path(workdir) / "config.json"
  if distributed.is_first():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  distributed.check_shared(path)
