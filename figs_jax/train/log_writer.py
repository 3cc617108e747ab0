"""Metrics of a run: JSON lines, TensorBoard events and a progress bar.

`metrics.jsonl` holds one strict JSON object per line, "step" first. Floats are
written with all their digits, so that reading them gives the same bits. JSON
lacks NaN and infinities: they are written as the strings "NaN", "Infinity" and
"-Infinity", which `read_log` converts back. Keys under "time/" depend on the
machine; all others of a resumed run equal those of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FILE = "metrics.jsonl"
_log = logging.getLogger("figs_jax")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# Without a terminal: seconds to the first line, then a share of the run so far.
_FIRST_LINE = 10.0
_LINE_SHARE = 0.05


def read_log(workdir: str | Path) -> list[dict[str, Any]]:
  """All complete rows of a run in order; [] if there are none.

  A last line that was cut short by a kill is left out.
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
    total: int | None = None,
    progress: bool = True,
    enabled: bool = True,
  ):
    """Opens metrics.jsonl, and creates the directory if needed.

    Args:
      workdir: Directory for `metrics.jsonl` and `tensorboard/`.
      step: Restored step; 0 for a new run.
      total: Last step, for the remaining time.
      progress: Whether to show progress on stderr: a bar on a terminal, else a
        line from time to time.
      enabled: Whether to do anything; False in all processes but one.
    """
    self._enabled = enabled
    if not enabled:
      return
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    _truncate(workdir / FILE, step)
    self._file = open(workdir / FILE, "a", encoding="utf-8")  # noqa: SIM115
    self._events, self._restored = workdir / "tensorboard", step
    self._started = time.monotonic()
    self._clock = _Clock(step, self._started)
    self._progress = _Progress(step, total) if progress else None

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends a row and flushes it.

    Args:
      step: Optimizer step, from 1.
      metrics: Numbers by name; arrays of one element are allowed.

    Raises:
      ValueError: If a metric is not a single number.
    """
    if not self._enabled:
      return
    row: dict[str, Any] = {"step": int(step)}
    row |= {name: _number(name, value) for name, value in metrics.items()}
    now = time.monotonic()
    row["time/elapsed"] = now - self._started
    row["time/steps_per_second"] = self._clock.rate(step, now)
    text = {
      name: _spell(value) if isinstance(value, float) else value
      for name, value in row.items()
    }
    self._file.write(json.dumps(text, allow_nan=False) + "\n")
    self._file.flush()
    for name, value in row.items():
      if name != "step" and math.isfinite(value):
        self._board.add_scalar(name, value, step)
    self._board.flush()
    if self._progress is not None and "loss" in row:
      self._progress.loss = float(row["loss"])

  @functools.cached_property
  def _board(self) -> Any:
    # At the first write: tensorboardX takes a while to import.
    with _without_torch():
      from tensorboardX import SummaryWriter

    # Purges later events of a run that was killed. The names of event files
    # only differ in seconds, so the suffix keeps them apart.
    return SummaryWriter(
      str(self._events),
      purge_step=self._restored + 1,
      max_queue=0,  # without bound: a full one waits forever on a full disk
      filename_suffix=f".{self._restored}",
    )

  def progress(self, step: int) -> None:
    """Shows that `step` is done; cheap enough for every step."""
    if self._enabled and self._progress is not None:
      self._progress.update(step)

  def close(self) -> None:
    """Closes files and bar; a second call does nothing."""
    if self._enabled:
      self._enabled = False
      self._file.close()
      if "_board" in self.__dict__:
        self._board.close()
      if self._progress is not None:
        self._progress.close()

  def __enter__(self) -> MetricLog:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


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


class _Clock:
  """Steps per second between the last two distinct steps."""

  def __init__(self, step: int, now: float):
    self._step, self._time, self._rate = step, now, 0.0

  def rate(self, step: int, now: float) -> float:
    if step > self._step and now > self._time:
      self._rate = (step - self._step) / (now - self._time)
      self._step, self._time = step, now
    return self._rate


class _Progress:
  """A bar on a terminal, lines elsewhere."""

  def __init__(self, step: int, total: int | None):
    self.loss: float | None = None
    self._step, self._total = step, total
    self._started = self._last = time.monotonic()
    self._clock = _Clock(step, self._started)
    self._bar = None
    if sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(
        total=total, initial=step, unit="step", dynamic_ncols=True
      )

  def update(self, step: int) -> None:
    if self._bar is not None:
      if self.loss is not None:
        self._bar.set_postfix_str(f"loss {self.loss:.4g}", refresh=False)
      self._bar.update(step - self._step)
      self._step = step
      return
    now = time.monotonic()
    wait = max(_FIRST_LINE, _LINE_SHARE * (now - self._started))
    if now - self._last >= wait:
      self._last = now
      line = _line(step, self._total, self.loss, self._clock.rate(step, now))
      print(line, file=sys.stderr, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def _line(step: int, total: int | None, loss: float | None, rate: float) -> str:
  """
  >>> _line(400, 1000, 0.5, 10.0)
  'step 400/1000, loss 0.5, 10.0 steps/s, ETA 00:01:00'
  """
  parts = [f"step {step}" + (f"/{total}" if total else "")]
  if loss is not None:
    parts.append(f"loss {loss:.4g}")
  parts.append(f"{rate:.1f} steps/s")
  if total and rate:
    left = round((total - step) / rate)
    hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
    parts.append(f"ETA {hours:02}:{minutes:02}:{seconds:02}")
  return ", ".join(parts)


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
