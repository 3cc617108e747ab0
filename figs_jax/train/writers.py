"""Writers of metrics: TensorBoard, Weights & Biases, or your own.

A run's metrics are in metrics.jsonl in any case. A writer gets the same numbers
as they are written.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import math
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import config_dict

from figs_jax.train.schema import ConfigError

_log = logging.getLogger("figs_jax")


@runtime_checkable
class Writer(Protocol):
  """What `figs_jax.train.loop.train` calls with the metrics of a run.

  Any object with these two methods is a writer. With several processes, only
  the first one calls it. What it raises ends the run and is not caught.

  >>> class Printer:
  ...   def write(self, step, scalars):
  ...     print(step, scalars["loss"])
  ...   def close(self):
  ...     print("closed")
  >>> from figs_jax.train.log_writer import MetricLog
  >>> import tempfile
  >>> with MetricLog(tempfile.mkdtemp(), writers=[Printer()]) as log:
  ...   log.write(1, {"loss": 0.5})
  1 0.5
  closed
  """

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Takes one row, right after it was written to metrics.jsonl.

    A resumed run starts after its last checkpoint, so that steps which a killed
    run wrote after it come again.

    Args:
      step: Optimizer step, from 1.
      scalars: Numbers by name; some may be NaN or infinite.
    """

  def close(self) -> None:
    """Ends the log; called once, also if the run ends by an exception."""


class TensorBoard:
  """Writes event files for TensorBoard.

  Args:
    workdir: Directory of the run; events go to `tensorboard/` in it.
    step: Restored step; later events of a killed run are purged.
  """

  def __init__(self, workdir: str | Path, step: int = 0):
    self._events, self._restored = Path(workdir) / "tensorboard", step

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
      if math.isfinite(value):
        self._board.add_scalar(name, value, step)
    self._board.flush()

  def close(self) -> None:
    if "_board" in self.__dict__:
      self._board.close()

  @functools.cached_property
  def _board(self) -> Any:
    # At the first write: tensorboardX takes a while to import.
    with _without_torch():
      from tensorboardX import SummaryWriter

    # The names of event files only differ in seconds, so the suffix keeps them
    # apart.
    return SummaryWriter(
      str(self._events),
      purge_step=self._restored + 1,
      max_queue=0,  # without bound: a full one waits forever on a full disk
      filename_suffix=f".{self._restored}",
    )


class WeightsAndBiases:
  """Logs to a project of Weights & Biases; WANDB_* variables have their effect.

  The id of the W&B run is kept in the workdir, so that a resumed run goes on
  there. Metrics are drawn over "step".

  Args:
    project: Name of the project.
    workdir: Directory of the run, which also names the W&B run.
    config: Configuration of the run, as JSON can hold it.

  Raises:
    ConfigError: If W&B refuses, for example for want of an API key.
  """

  def __init__(
    self, project: str, workdir: str | Path, config: Mapping[str, Any]
  ):
    wandb = importlib.import_module("wandb")
    workdir = Path(workdir)
    file = workdir / "wandb_run_id"
    if not file.exists():
      workdir.mkdir(parents=True, exist_ok=True)
      file.write_text(secrets.token_hex(4) + "\n")
    try:
      self._run = wandb.init(
        project=project,
        dir=str(workdir),
        id=file.read_text().strip(),
        name=workdir.resolve().name,
        resume="allow",
        config=dict(config),
      )
    except wandb.Error as error:
      raise ConfigError(
        f"--config.log.wandb={project}: {str(error).rstrip('.')}; or set"
        " WANDB_MODE=offline"
      ) from error
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log({"step": step, **scalars})

  def close(self) -> None:
    failed = sys.exc_info()[0] is not None
    self._run.finish(exit_code=int(failed))


def is_installed(module: str) -> bool:
  """Whether a module can be imported; a mere folder of its name does not count.

  >>> is_installed("json"), is_installed("no_such_module")
  (True, False)
  """
  spec = importlib.util.find_spec(module)
  return spec is not None and spec.origin is not None


def check_writers(
  tensorboard: str, wandb: str, writers: Sequence[Any] = ()
) -> None:
  """Checks, before a run begins, that it can be logged as asked for.

  Args:
    tensorboard: The field `log.tensorboard`.
    wandb: The field `log.wandb`.
    writers: Writers of the user's own.

  Raises:
    ConfigError: If a package is missing, or an object is not a `Writer`.

  >>> check_writers("auto", "", [print])
  Traceback (most recent call last):
    ...
  figs_jax.train.schema.ConfigError: writers[0]: expected an object with \
write(step, scalars) and close(), got <built-in function print>
  """
  for i, writer in enumerate(writers):
    if isinstance(writer, type) or not isinstance(writer, Writer):
      raise ConfigError(
        f"writers[{i}]: expected an object with write(step, scalars) and"
        f" close(), got {writer!r}"
      )
  if wandb and not is_installed("wandb"):
    raise ConfigError(
      f"--config.log.wandb={wandb} needs wandb: pip install 'figs_jax[wandb]'"
    )
  if tensorboard == "on" and not is_installed("tensorboardX"):
    raise ConfigError(
      "--config.log.tensorboard=on needs tensorboardX: pip install"
      " 'figs_jax[tensorboard]'"
    )


def configured(
  config: config_dict.ConfigDict, workdir: str | Path, step: int
) -> list[Writer]:
  """The writers of a configuration, opened; logs a line if one is missing.

  Args:
    config: Configuration of the run.
    workdir: Directory of the run.
    step: Restored step; 0 for a new run.

  Raises:
    ConfigError: If W&B refuses.
  """
  opened: list[Writer] = []
  if config.log.wandb:
    opened.append(WeightsAndBiases(config.log.wandb, workdir, config.to_dict()))
  if config.log.tensorboard == "off":
    return opened
  if is_installed("tensorboardX"):
    opened.append(TensorBoard(workdir, step))
  else:
    _log.info(
      "no TensorBoard events without tensorboardX (pip install"
      " 'figs_jax[tensorboard]'); metrics are in %s/metrics.jsonl",
      workdir,
    )
  return opened


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """Keeps a library from importing torch, which it would do if it could."""
  if "torch" in sys.modules:
    yield
    return
  sys.modules["torch"] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    del sys.modules["torch"]
