"""The time of a run: that of its steps, and apart from it everything else.

    time left = steps left / rate + evaluations left * seconds of an evaluation
                + checkpoints left * seconds of a checkpoint

The rate is that of recent steps; an evaluation and a checkpoint take as long as
the last ones. Compilation is in none of the terms, as it is over after the
first step and the first evaluation.

The share of input is the part of the steps' time in which the program waited
for batches, from one row of the log to the next: only there are all batches
used that were waited for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

import jax

# Seconds of steps that the rate is taken over, and their share of the run.
_WINDOW, _SHARE = 10.0, 0.05
_MARKS = 16  # of a window
COMPILATION, EVALUATION, CHECKPOINT = "compilation", "evaluation", "checkpoint"


@dataclasses.dataclass
class Lap:
  """The time of one evaluation, checkpoint or compilation.

  Attributes:
    seconds: Seconds, without those in which JAX compiled.
    compiling: Seconds in which JAX traced and compiled.
  """

  seconds: float = 0.0
  compiling: float = 0.0


class Stopwatch:
  """Measures a run, and estimates the time left.

  Use it as a context manager: in it, JAX reports what it compiles.

  Attributes:
    total: Last step, or None.
    seconds: Seconds so far of steps, evaluations, ..., by name.
    input_share: Share of input at the last row of the log, in [0, 1].

  >>> with Stopwatch(total=100, every=50) as watch:
  ...   with watch.apart("evaluation") as lap:
  ...     pass
  ...   watch.events_left(49), watch.events_left(51)
  (2, 1)
  """

  def __init__(
    self,
    step: int = 0,
    *,
    total: int | None = None,
    every: int | None = None,
    known: Mapping[str, float] | None = None,
  ):
    """Starts at once.

    Args:
      step: Restored step; 0 for a new run.
      total: Last step.
      every: Steps between checkpoints, each with an evaluation; there is one
        after the last step too.
      known: Seconds of an evaluation and of a checkpoint, by name, from before
        the run was resumed.
    """
    self.total, self._every = total, every
    self._started = self._begun = time.monotonic()
    self._apart = 0.0  # since the steps have begun
    self._spans: list[tuple[float, float]] = []  # of compilation, disjoint
    self.seconds: dict[str, float] = collections.defaultdict(float)
    self._costs = dict(known or {})
    self._input = 0.0  # seconds of waiting since the steps have begun
    self._shared = (0.0, 0.0)  # seconds of steps and of waiting, at a row
    self.input_share = 0.0
    self._done = (0.0, step)
    self._marks = collections.deque([self._done])

  def __enter__(self) -> Stopwatch:
    jax.monitoring.register_event_time_span_listener(self._compiled)
    return self

  def __exit__(self, *_: object) -> None:
    jax.monitoring.unregister_event_time_span_listener(self._compiled)

  @property
  def elapsed(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self._started

  @contextlib.contextmanager
  def apart(self, name: str) -> Iterator[Lap]:
    """Times what is not a step; the steps begin where compilation ends.

    Args:
      name: COMPILATION, EVALUATION or CHECKPOINT.
    """
    start, compiled, lap = time.monotonic(), self._compiling, Lap()
    yield lap
    wall = time.monotonic() - start
    lap.compiling = min(self._compiling - compiled, wall)
    lap.seconds = wall - lap.compiling
    self._apart += wall
    if name == COMPILATION:
      self.seconds[name] += wall
      self._begun, self._apart, self._input = time.monotonic(), 0.0, 0.0
      return
    self.seconds[COMPILATION] += lap.compiling
    self.seconds[name] += lap.seconds
    self._costs[name] = lap.seconds

  @contextlib.contextmanager
  def input(self) -> Iterator[None]:
    """Times the wait for a batch, a part of the steps' time."""
    start = time.monotonic()
    yield
    self._input += time.monotonic() - start

  def done(self, step: int) -> None:
    """Notes that all steps up to `step` are finished, not just dispatched."""
    if step <= self._done[1]:
      return
    now = time.monotonic() - self._begun - self._apart
    self.seconds["steps"] += max(now - self._done[0], 0.0)
    self._done = now, step
    window = max(_WINDOW, _SHARE * now)
    if now - self._marks[-1][0] >= window / _MARKS:
      self._marks.append(self._done)
    while len(self._marks) > 1 and now - self._marks[1][0] >= window:
      self._marks.popleft()

  def share_input(self) -> float:
    """The share of input since the last call, when all steps are done.

    Returns:
      Share in [0, 1], kept as `input_share`; that of before without a new step.
    """
    (start, before), end = self._shared, self._done[0]
    if end > start:
      self.input_share = min((self._input - before) / (end - start), 1.0)
      self._shared = end, self._input
    return self.input_share

  @property
  def rate(self) -> float:
    """Recent steps per second; 0 before the first."""
    (start, first), (end, last) = self._marks[0], self._done
    return (last - first) / (end - start) if end > start else 0.0

  def cost(self, name: str) -> float | None:
    """Seconds of the last evaluation or checkpoint; None if none was timed."""
    return self._costs.get(name)

  def events_left(self, step: int) -> int:
    """Evaluations after `step` or a later one; as many checkpoints."""
    if self.total is None or self._every is None or step > self.total:
      return 0
    before = (step - 1) // self._every
    return self.total // self._every - before + bool(self.total % self._every)

  def left(self, step: int) -> float | None:
    """Seconds left after a step; None if they cannot be estimated yet.

    Evaluations are left out while none was timed, and so are checkpoints.
    """
    if self.total is None or not self.rate:
      return None
    each = sum(self.cost(name) or 0.0 for name in (EVALUATION, CHECKPOINT))
    steps = (self.total - self._done[1]) / self.rate
    return steps + self.events_left(step) * each

  @property
  def _compiling(self) -> float:
    return sum((end - start for start, end in self._spans), 0.0)

  def _compiled(
    self, event: str, start_time: float, end_time: float, **_: object
  ) -> None:
    """Listener of `jax.monitoring`; outer spans come after their inner ones."""
    if event.startswith("/jax/core/compile/"):
      while self._spans and self._spans[-1][0] >= start_time:
        self._spans.pop()
      self._spans.append((start_time, end_time))
