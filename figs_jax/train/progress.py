"""What a run shows on standard error while it trains."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from figs_jax.train.stopwatch import COMPILATION, EVALUATION, Lap, Stopwatch

# Without a terminal: seconds to the first line, then a share of the run so far.
_FIRST_LINE = 10.0
_LINE_SHARE = 0.05
_REFRESH = 0.1  # seconds between two changes of the bar


class Progress:
  """A bar on a terminal, lines elsewhere, and a line per evaluation.

  Attributes:
    loss: Last training loss to show, or None.
    score: Last evaluation to show, such as "accuracy 93.1 %".
  """

  def __init__(self, watch: Stopwatch, step: int = 0):
    """Shows nothing yet, but for a bar.

    Args:
      watch: Clock of the run, which knows its last step.
      step: Restored step; 0 for a new run.
    """
    self.loss: float | None = None
    self.score = ""
    self._watch, self._step = watch, step
    self._started = self._last = time.monotonic()
    self._bar: Any = None
    if sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(
        total=watch.total,
        initial=step,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
      )

  def update(self, step: int) -> None:
    """Shows that `step` is done; cheap enough for every step."""
    now = time.monotonic()
    if self._bar is not None:
      if now - self._last >= _REFRESH or step == self._watch.total:
        self._last = now
        self._bar.set_postfix_str(self._state(step), refresh=False)
      self._bar.update(step - self._step)
      self._step = step
      return
    wait = max(_FIRST_LINE, _LINE_SHARE * (now - self._started))
    if now - self._last >= wait:
      self._last = now
      total = self._watch.total
      where = f"step {step}" + (f"/{total}" if total else "")
      self.note(", ".join(filter(None, (where, self._state(step)))))

  @contextlib.contextmanager
  def compiling(self, what: str) -> Iterator[None]:
    """Announces a compilation, and shows its seconds afterwards."""
    self.note(f"compiling {what} ...")
    with self._watch.apart(COMPILATION) as lap:
      yield
    self.note(f"compiled {what} in {lap.seconds + lap.compiling:.1f} s")
    self._last = time.monotonic()

  def evaluated(
    self, step: int, row: Mapping[str, float], lap: Lap, headline: str
  ) -> None:
    """Shows the result of an evaluation.

    Args:
      step: Step that was evaluated.
      row: Values by name, as in metrics.jsonl.
      lap: Time of the evaluation.
      headline: Name of the value that later lines repeat.
    """
    self.note(evaluation_line(step, row, lap))
    self.score = score(row, f"eval/{headline}")

  def note(self, line: str) -> None:
    """Shows a line."""
    with self.aside():
      print(line, file=sys.stderr, flush=True)

  def aside(self) -> contextlib.AbstractContextManager[Any]:
    """A context in which others write to standard error, beside the bar."""
    if self._bar is None:
      return contextlib.nullcontext()
    return self._bar.external_write_mode(file=sys.stderr)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()

  def _state(self, step: int) -> str:
    watch = self._watch
    parts = [] if self.loss is None else [f"loss {self.loss:.4g}"]
    parts += [self.score] if self.score else []
    if rate := watch.rate:
      parts.append(
        f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
      )
    if (share := watch.input_share) >= 0.005:
      parts.append(f"input {100 * share:.0f} %")
    if (left := watch.left(step)) is not None:
      events = watch.events_left(step)
      unknown = watch.cost(EVALUATION) is None and events
      plus = f" plus {events} evaluation{'s' * (events > 1)}"
      parts.append(f"ETA {clock(left)}{plus if unknown else ''}")
    return ", ".join(parts)


def clock(seconds: float) -> str:
  """A duration as hours, minutes and seconds.

  >>> clock(3723.4)
  '01:02:03'
  """
  whole = round(seconds)
  return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def score(row: Mapping[str, float], name: str) -> str:
  """A value of an evaluation, with its standard error over seeds.

  >>> row = {"eval/accuracy": 0.931, "eval/accuracy_se": 0.004}
  >>> score(row, "eval/accuracy")
  'accuracy 93.1 ± 0.4 %'
  >>> score({"eval/bits_per_byte": 2.25}, "eval/bits_per_byte")
  'bits_per_byte 2.25'
  """
  value, error = row[name], row.get(f"{name}_se", math.nan)
  short = name.partition("/")[2]
  if short == "accuracy":
    spread = f" ± {100 * error:.1f}" if math.isfinite(error) else ""
    return f"accuracy {100 * value:.1f}{spread} %"
  spread = f" ± {error:.2g}" if math.isfinite(error) else ""
  return f"{short} {value:.4g}{spread}"


def evaluation_line(step: int, row: Mapping[str, float], lap: Lap) -> str:
  """The line of an evaluation, without values of single seeds or tasks.

  >>> row = {"eval/accuracy": 0.931, "eval/loss": 0.25, "eval/loss/seed0": 0.2}
  >>> evaluation_line(200, row, Lap(1.25, 3.0))
  'step 200: accuracy 93.1 %, loss 0.25 (evaluated in 1.2 s, compiled in 3.0 s)'
  """
  groups = []
  for prefix, title in (("eval", ""), ("eval_ema", "averaged weights: ")):
    names = [
      name
      for name in row
      if name.startswith(f"{prefix}/") and name.count("/") == 1
      # A value with an error is followed by it.
      if not (name.endswith("_se") and name[: -len("_se")] in row)
    ]
    if names:
      groups.append(title + ", ".join(score(row, name) for name in names))
  times = f"evaluated in {lap.seconds:.1f} s"
  if lap.compiling >= 0.1:
    times += f", compiled in {lap.compiling:.1f} s"
  return f"step {step}: {'; '.join(groups)} ({times})"


def summary(step: int, total: int, watch: Stopwatch) -> str:
  """The line at the end of a run: where its time went.

  >>> summary(20, 20, Stopwatch(total=20))
  'finished step 20 of 20 in 00:00:00'
  """
  parts = [f"{name} {clock(s)}" for name, s in watch.seconds.items() if s >= 1]
  done = "finished" if step == total else "stopped after"
  line = f"{done} step {step} of {total} in {clock(watch.elapsed)}"
  return f"{line} ({', '.join(parts)})" if parts else line
