"""Rate and time left, by a clock of the test's own."""

import jax
import pytest

from figs_jax.data import stream
from figs_jax.train import log_writer, loop, progress, stopwatch
from figs_jax.train.stopwatch import (
  CHECKPOINT,
  COMPILATION,
  EVALUATION,
  Stopwatch,
)
from figs_jax.train.writers import is_installed

COMPILE, STEP, EVALUATE, SAVE = 300.0, 1.0, 200.0, 50.0
SPAN = "/jax/core/compile/backend_compile_duration"


class Clock:
  def __init__(self):
    self.now = 1000.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  for module in (stopwatch, progress):
    monkeypatch.setattr(module, "time", clock)
  return clock


def compile_for(clock, seconds):
  """As JAX reports it: what a program calls is traced inside of its trace."""
  start, end = clock.now, clock.now + seconds
  for first, last in ((start + 1, end - 1), (start, end)):
    jax.monitoring.record_event_time_span(SPAN, first, last, fun_name="f")
  clock.now = end


def run(clock, watch, start, total, every):
  """Yields each step of a run; the last one is done then."""
  compile_first = True
  with watch.apart(COMPILATION):
    compile_for(clock, COMPILE)
  for step in range(start + 1, total + 1):
    clock.now += STEP
    watch.done(step)
    yield step
    if step % every == 0 or step == total:
      with watch.apart(EVALUATION):
        if compile_first:
          compile_for(clock, COMPILE)
        compile_first = False
        clock.now += EVALUATE
      with watch.apart(CHECKPOINT):
        clock.now += SAVE


@pytest.mark.parametrize("total", [600, 650])
@pytest.mark.parametrize("start", [0, 200])
def test_time_left_is_steps_evaluations_and_checkpoints(clock, start, total):
  known = {EVALUATION: EVALUATE, CHECKPOINT: SAVE} if start else {}
  lefts = {}
  with Stopwatch(start, total=total, every=100, known=known) as watch:
    for step in run(clock, watch, start, total, 100):
      lefts[step] = watch.left(step), watch.cost(EVALUATION), clock.now
  end = clock.now
  for step, (left, cost, now) in lefts.items():
    compiles = COMPILE * (step <= start + 100)  # for the first evaluation
    events = watch.events_left(step)
    unknown = 0 if cost is not None else events * (EVALUATE + SAVE)
    assert left == pytest.approx(end - now - compiles - unknown, rel=0.01)
  assert watch.rate == pytest.approx(1 / STEP)
  events = (total - start) // 100 + (total % 100 > 0)
  assert watch.seconds == pytest.approx(
    {
      COMPILATION: 2 * COMPILE,
      "steps": (total - start) * STEP,
      EVALUATION: events * EVALUATE,
      CHECKPOINT: events * SAVE,
    }
  )


def test_the_rate_follows_steps_that_become_slower(clock):
  with Stopwatch(total=10_000) as watch:
    for step in range(1, 2001):
      clock.now += 0.1 if step <= 1000 else 0.4
      watch.done(step)
  assert watch.rate == pytest.approx(2.5, rel=0.05)
  assert watch.left(2000) == pytest.approx(8000 * 0.4, rel=0.05)
  assert len(watch._marks) < 40, "a long run is not remembered step by step"


def test_steps_ahead_do_not_count_before_they_are_done(clock):
  with Stopwatch(total=100) as watch:
    assert watch.rate == 0 and watch.left(1) is None
    clock.now += 30
    watch.done(3)
    watch.done(2)
    assert watch.rate == pytest.approx(0.1)


def test_the_share_of_input_is_that_from_row_to_row(clock):
  with Stopwatch(total=10_000, every=100) as watch:
    assert watch.share_input() == 0
    with watch.input():
      clock.now += 40  # of the first batch, before the steps begin
    with watch.apart(COMPILATION):
      clock.now += COMPILE
    for step in range(1, 401):
      wait = 0.25 if step <= 200 else 0.75
      with watch.input():
        clock.now += wait
      clock.now += 1 - wait
      if step > 2:
        watch.done(step - 2)  # later batches are waited for already
      if step % 20 == 0:
        watch.done(step)
        assert watch.share_input() == pytest.approx(wait)
      if step % 100 == 0:
        with watch.apart(EVALUATION):
          clock.now += EVALUATE
        assert watch.share_input() == pytest.approx(wait)
    assert watch.input_share == pytest.approx(0.75)


def test_a_listener_goes_with_its_stopwatch():
  from jax._src import monitoring

  before = monitoring.get_event_time_span_listeners()
  with Stopwatch() as watch:
    jax.monitoring.record_event_time_span("/another/event", 0.0, 5.0)
    assert watch._compiling == 0
    assert len(monitoring.get_event_time_span_listeners()) == len(before) + 1
  assert monitoring.get_event_time_span_listeners() == before


class Interruption:
  """A writer that ends a run."""

  def __init__(self, at):
    self.at = at

  def write(self, step, scalars):
    if step == self.at:
      raise InterruptedError("enough")

  def close(self):
    pass


@pytest.mark.standard_promotion
@pytest.mark.parametrize("seeds", [0, 2])
def test_the_lines_of_a_run_and_of_its_resumption(
  tmp_path, tiny_config, clock, monkeypatch, seeds
):
  """Every ETA that is shown, against the end that came."""
  lines = []

  def note(shown, line):
    lines.append((clock.now, line))

  def slower(function, seconds):
    def slow(*args, **kwargs):
      clock.now += seconds
      return function(*args, **kwargs)

    return slow

  compiled = loop.compiled_step

  def steps(*args):
    step = compiled(*args)
    clock.now += 7  # setting up

    def timed(state, batch):
      clock.now += COMPILE if not timed.calls else 7.5 * STEP
      timed.calls += 1
      return step(state, batch)

    timed.calls = 0
    return timed

  measured, save = loop.Evaluator.measured, loop.Checkpointer.save
  monkeypatch.setattr(progress.Progress, "note", note)
  monkeypatch.setattr(loop, "compiled_step", steps)
  fetch = stream.TrainBatches.__next__
  monkeypatch.setattr(
    stream.TrainBatches, "__next__", slower(fetch, 2.5 * STEP)
  )
  # What JAX compiles takes seconds of another clock.
  monkeypatch.setattr(Stopwatch, "_compiled", lambda *_, **__: None)
  monkeypatch.setattr(loop, "_QUICK", 0.0)
  monkeypatch.setattr(loop, "_AHEAD", 0)  # each step is done when it returns
  monkeypatch.setattr(loop.Evaluator, "measured", slower(measured, EVALUATE))
  monkeypatch.setattr(loop.Checkpointer, "save", slower(save, SAVE))
  config = tiny_config(
    "ste",
    seeds=seeds,
    total_steps=90,
    checkpoint_every=30,
    log_every=5,
    diagnose_every=0,
    progress=True,
  )
  with pytest.raises(InterruptedError, match="enough"):
    loop.train(config, tmp_path, writers=[Interruption(50)])
  (evaluated,) = (line for _, line in lines if line.startswith("step 30: "))
  assert evaluated.endswith(" (evaluated in 200.0 s)")
  assert "±" in evaluated or not seeds
  if is_installed("tensorboardX"):
    command = lines.pop(0)[1]
    assert command == f"to watch it: tensorboard --logdir {tmp_path}"
  assert lines[0][1] == "compiling the step ..."
  assert lines[1][1] == "compiled the step in 300.0 s"
  first = next(line for _, line in lines if line.startswith("step 3/"))
  assert "accuracy" not in first and first.endswith(" plus 3 evaluations")

  del lines[:]
  loop.train(config, tmp_path)
  end, last = lines[-1]
  assert last.startswith("finished step 90 of 90 in 00:")
  shown = [(now, line) for now, line in lines if " ETA " in line]
  assert len(shown) >= 4
  for now, line in shown:
    hours, minutes, seconds = map(int, line.rpartition(" ")[2].split(":"))
    left = 3600 * hours + 60 * minutes + seconds
    assert left == pytest.approx(end - now, rel=0.05), line
    share = ", input 25 %" * ("loss" in line)  # as of the last row
    assert f", 10.0 s/step{share}, " in line
  rows = log_writer.read_log(tmp_path)
  shares = [row["time/input_share"] for row in rows]
  assert shares == pytest.approx([0.25] * len(shares))
  assert ", accuracy " in shown[-1][1]
