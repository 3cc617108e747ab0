"""What a run shows: lines without a terminal, a bar on one."""

import math
import sys
import types

import pytest

from figs_jax.train import progress, stopwatch
from figs_jax.train.log_writer import MetricLog
from figs_jax.train.progress import Progress, evaluation_line
from figs_jax.train.stopwatch import Lap, Stopwatch


@pytest.fixture
def now(monkeypatch):
  now = [0.0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  for module in (stopwatch, progress):
    monkeypatch.setattr(module, "time", clock)
  return now


def logged(workdir, step, total):
  watch = Stopwatch(step, total=total, every=total)
  return MetricLog(workdir, step, watch=watch, progress=Progress(watch, step))


def test_lines_without_a_terminal(tmp_path, capsys, now):
  with logged(tmp_path, 100, 3700) as log:
    for step in range(101, 3701):
      now[0] += 0.5
      if step % 10 == 0:
        log.write(step, {"loss": 0.125})
      log.progress(step)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == (
    "step 120/3700, loss 0.125, 2.0 steps/s, ETA 00:29:50 plus 1 evaluation"
  )
  assert len(lines) < 80, "rarer as the run goes on"


def test_slow_steps_are_seconds_per_step(tmp_path, capsys, now):
  with logged(tmp_path, 0, 10) as log:
    now[0] += 25.0
    log.write(2, {"loss": 3.0})
    log.progress(2)
  line = capsys.readouterr().err
  assert "12.5 s/step, ETA 00:01:40 plus 1 evaluation" in line


def test_an_evaluation_has_its_line_and_stays_in_later_ones(
  tmp_path, capsys, now
):
  row = {"eval/accuracy": 0.25, "eval/loss": 2.0, "eval/bits_per_byte": 2.5}
  with logged(tmp_path, 0, 100) as log:
    log.evaluated(10, row, Lap(3.0, 1.0), "bits_per_byte")
    now[0] += 11
    log.progress(11)
  first, second = capsys.readouterr().err.splitlines()
  assert first == (
    "step 10: accuracy 25.0 %, loss 2, bits_per_byte 2.5 (evaluated in 3.0 s,"
    " compiled in 1.0 s)"
  )
  assert second == "step 11/100, bits_per_byte 2.5"


def test_seeds_and_averaged_weights_in_one_line():
  row = {
    "eval/accuracy": 0.5,
    "eval/accuracy_se": 0.0123,
    "eval/accuracy/seed0": 0.5,
    "eval/loss": 1.0,
    "eval/loss_se": math.nan,  # of one seed that is left
    "eval_ema/accuracy": 0.625,
    "eval_ema/accuracy_se": 0.02,
  }
  assert evaluation_line(7, row, Lap(0.5)) == (
    "step 7: accuracy 50.0 ± 1.2 %, loss 1; averaged weights: accuracy 62.5 ±"
    " 2.0 % (evaluated in 0.5 s)"
  )


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch, now):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  with logged(tmp_path, 5, 20) as log:
    log.note("compiling the step ...")
    for step in range(6, 21):
      now[0] += 1.0
      log.write(step, {"loss": 0.5})
      log.progress(step)
    log.warn("a warning beside the bar")
  shown = capsys.readouterr().err
  assert "20/20, loss 0.5, 1.0 steps/s" in shown
  # Alone in its line: the bar was cleared.
  assert "\rcompiling the step ...\n" in shown


def test_nothing_is_shown_without_progress(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  with MetricLog(tmp_path) as log:
    with log.compiling():
      log.note("a line")
    log.evaluated(1, {"eval/accuracy": 0.5}, Lap(1.0), "accuracy")
    log.progress(1)
  captured = capsys.readouterr()
  assert captured.err == captured.out == ""
