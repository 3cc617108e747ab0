"""Metrics of a run: JSON lines, and what writers make of them.

`metrics.jsonl` holds one strict JSON object per line, "step" first. Floats are
written with all their digits, so that reading them gives the same bits. JSON
lacks NaN and infinities: they are written as the strings "NaN", "Infinity" and
"-Infinity", which `read_log` converts back. Keys under "time/" depend on the
machine; all others of a resumed run equal those of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import config_dict

from figs_jax.train import distributed
from figs_jax.train.progress import Progress
from figs_jax.train.stopwatch import (
  CHECKPOINT,
  COMPILATION,
  EVALUATION,
  Lap,
  Stopwatch,
)
from figs_jax.train.writers import TensorBoard, Writer, configured

FILE = "metrics.jsonl"
_log = logging.getLogger("figs_jax")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read_log(workdir: str | Path) -> list[dict[str, Any]]:
  """All complete rows of a run in order; [] if there are none.

  A last line that was cut short by a kill is left out.

  Args:
    workdir: Directory of the run.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as workdir:
  ...   _ = Path(workdir, FILE).write_text('{"step": 1, "loss": 2.0}\\n{"st')
  ...   read_log(workdir)
  [{'step': 1, 'loss': 2.0}]
  """
  return [row for _, row in _lines(Path(workdir) / FILE)]


class MetricLog:
  """Writes the metrics of a run, from a restored step on.

  Rows after `step`, which a killed run wrote after its last checkpoint, are
  removed at once (by atomic replacement of the file): they are written again.

  >>> import tempfile
  >>> workdir = tempfile.mkdtemp()
  >>> with MetricLog(workdir) as log:
  ...   log.write(1, {"loss": 0.1})
  ...   log.write(2, {"loss": float("inf")})
  >>> [(row["step"], row["loss"]) for row in read_log(workdir)]
  [(1, 0.1), (2, inf)]
  """

  def __init__(
    self,
    workdir: str | Path,
    step: int = 0,
    *,
    watch: Stopwatch | None = None,
    progress: Progress | None = None,
    writers: Sequence[Writer] = (),
    enabled: bool = True,
  ):
    """Opens metrics.jsonl, and creates the directory if needed.

    Args:
      workdir: Directory for `metrics.jsonl`.
      step: Restored step; 0 for a new run.
      watch: Clock of the run. Defaults to a new one.
      progress: What is shown on standard error. Defaults to nothing.
      writers: Writers that get every row too; they are closed with the log.
      enabled: Whether to do anything; False in all processes but one.
    """
    self.raised: Exception | None = None  # by a writer beside TensorBoard's
    self._enabled = enabled
    self._watch = watch or Stopwatch(step)
    if not enabled:
      return
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    _truncate(workdir / FILE, step)
    self._file = open(workdir / FILE, "a", encoding="utf-8")  # noqa: SIM115
    self._progress, self._writers = progress, tuple(writers)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends a row, flushes it and hands it to the writers.

    Args:
      step: Optimizer step, from 1.
      metrics: Numbers by name; arrays of one element are allowed.

    Raises:
      ValueError: If a metric is not a single number.
    """
    if not self._enabled:
      return
    row = {name: _number(name, value) for name, value in metrics.items()}
    self._watch.done(step)
    row["time/elapsed"] = self._watch.elapsed
    row["time/steps_per_second"] = self._watch.rate
    row["time/input_share"] = self._watch.share_input()
    for name in (EVALUATION, CHECKPOINT):
      if (seconds := self._watch.cost(name)) is not None:
        row[f"time/{name}"] = seconds
    text = {
      name: _spell(value) if isinstance(value, float) else value
      for name, value in row.items()
    }
    line = json.dumps({"step": int(step), **text}, allow_nan=False)
    self._file.write(line + "\n")
    self._file.flush()
    for writer in self._writers:
      try:
        writer.write(int(step), row)
      except Exception as error:
        if not isinstance(writer, TensorBoard):  # its errors are the disk's
          self.raised = error
        error.add_note(f"raised by {type(writer).__name__}.write, step {step}")
        raise
    if self._progress is not None and "loss" in row:
      self._progress.loss = float(row["loss"])

  def progress(self, step: int) -> None:
    """Shows that `step` is done; cheap enough for every step."""
    if self._enabled and self._progress is not None:
      self._progress.update(step)

  def compiling(self) -> contextlib.AbstractContextManager[Any]:
    """A context for the first step, which compiles it."""
    if self._enabled and self._progress is not None:
      return self._progress.compiling("the step")
    return self._watch.apart(COMPILATION)

  def evaluated(
    self, step: int, row: Mapping[str, float], lap: Lap, headline: str
  ) -> None:
    """Shows an evaluation; see `Progress.evaluated`."""
    if self._enabled and self._progress is not None:
      self._progress.evaluated(step, row, lap, headline)

  def note(self, line: str) -> None:
    """Shows a line beside the progress bar."""
    if self._enabled and self._progress is not None:
      self._progress.note(line)

  def warn(self, line: str) -> None:
    """Logs a warning beside the progress bar, in the first process alone."""
    if not self._enabled:
      return
    bar = self._progress
    with bar.aside() if bar else contextlib.nullcontext():
      _log.warning("%s", line)

  def close(self) -> None:
    """Closes the file, the writers and the bar; a second call does nothing."""
    if not self._enabled:
      return
    self._enabled = False
    with contextlib.ExitStack() as closing:  # each one, whatever others raise
      closing.callback(self._file.close)
      if self._progress is not None:
        closing.callback(self._progress.close)
      for writer in reversed(self._writers):
        closing.callback(writer.close)

  def __enter__(self) -> MetricLog:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _number(name: str, value: Any) -> int | float:
  array = np.asarray(value)
  # The names of NumPy's floats and of others, such as bfloat16.
  is_float = "float" in array.dtype.name
  if array.size != 1 or array.dtype.kind not in "biu" and not is_float:
    raise ValueError(
      f"metric {name!r}: expected a single number, got {value!r}; reduce it"
    )
  item = array.item()
  return int(item) if isinstance(item, (bool, int)) else float(item)


def _spell(value: float) -> float | str:
  if math.isfinite(value):
    return value
  return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"


def open_log(
  config: config_dict.ConfigDict,
  workdir: str | Path,
  start: int,
  watch: Stopwatch,
  writers: Sequence[Writer],
) -> MetricLog:
  """The log of a run with all its writers; only the first process writes it.

  Args:
    config: Configuration of the run.
    workdir: Directory of the run.
    start: Restored step; 0 for a new run.
    watch: Clock of the run.
    writers: Writers beside those of the configuration.

  Raises:
    ConfigError: If a writer of the configuration refuses; in all processes.
  """
  every: list[Writer] = []

  def attempt() -> bool:
    every.extend(configured(config, workdir, start))
    return True

  distributed.by_first(attempt)
  first = distributed.is_first()
  log = MetricLog(
    workdir,
    start,
    watch=watch,
    progress=Progress(watch, start) if first and config.progress else None,
    writers=[*every, *writers],
    enabled=first,
  )
  if any(isinstance(writer, TensorBoard) for writer in every):
    log.note(f"to watch it: tensorboard --logdir {shlex.quote(str(workdir))}")
  return log


def known_costs(workdir: str | Path) -> dict[str, float]:
  """Seconds of the last evaluation and checkpoint that a run has logged.

  Args:
    workdir: Directory of the run.

  >>> known_costs("no run")
  {}
  """
  last = (read_log(workdir) or [{}])[-1]
  names = (EVALUATION, CHECKPOINT)
  return {
    name: last[f"time/{name}"] for name in names if f"time/{name}" in last
  }


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
  """(text, row) of every complete line."""
  if not path.exists():
    return []
  rows = []
  lines = path.read_bytes().split(b"\n")
  for i, line in enumerate(lines):
    try:
      # Without a newline, a number that parses may have been cut short.
      row = json.loads(line) if i < len(lines) - 1 else None
    except (ValueError, RecursionError):
      row = None
    if isinstance(row, dict) and isinstance(row.get("step"), int):
      values = {
        name: _SPECIAL.get(value, value) if isinstance(value, str) else value
        for name, value in row.items()
      }
      rows.append((line.decode(), values))
    elif i < len(lines) - 1:
      _log.warning("%s: skipped line %d, which is damaged", path, i + 1)
  return rows


def _truncate(path: Path, step: int) -> None:
  """Keeps complete rows up to `step`; replaces the file atomically."""
  kept = [text for text, row in _lines(path) if row["step"] <= step]
  content = "".join(f"{text}\n" for text in kept).encode()
  if path.exists() and content != path.read_bytes():
    from figs_jax.export.atomic_write import replacing  # to resume only

    with replacing(path, overwrite=True) as part:
      part.write_bytes(content)
