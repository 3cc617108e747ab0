"""The log is strict JSON, exact, and forgets what a killed run wrote."""

import json
import math
import os
import signal
import struct
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.train import log_writer as log_module
from figs_jax.train.log_writer import MetricLog, read_log
from tests.programs import call


def timeless(rows):
  return [
    {k: v for k, v in row.items() if not k.startswith("time/")} for row in rows
  ]


def write_steps(workdir, first, last, **options):
  with MetricLog(workdir, first - 1, **options) as log:
    for step in range(first, last + 1):
      log.write(step, {"loss": 1 / step, "count": step})


def strict(text):
  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  return json.loads(text, parse_constant=refuse)


@settings(deadline=None, max_examples=20)
@given(values=st.lists(st.floats(), min_size=1, max_size=5))
def test_floats_come_back_bit_for_bit(tmp_path_factory, values):
  workdir = tmp_path_factory.mktemp("run")
  names = [f"x{i}" for i in range(len(values))]
  with MetricLog(workdir) as log:
    log.write(1, dict(zip(names, values)))
  (row,) = read_log(workdir)
  for name, value in zip(names, values):
    if math.isnan(value):
      assert math.isnan(row[name])
    else:
      assert struct.pack("d", row[name]) == struct.pack("d", value)
  (line,) = (workdir / log_module.FILE).read_text().splitlines()
  assert next(iter(strict(line))) == "step"


def test_numbers_of_every_library_are_taken(tmp_path):
  with MetricLog(tmp_path) as log:
    log.write(
      3,
      {
        "float32": np.float32(0.1),
        "array": jnp.asarray(0.5),
        "one": np.ones((1,)),
        "bfloat16": jnp.asarray(1.5, jnp.bfloat16),
        "int": np.int32(7),
        "bool": True,
        "nan": jnp.asarray(jnp.nan),
      },
    )
  (row,) = read_log(tmp_path)
  assert math.isnan(row.pop("nan"))
  assert timeless([row]) == [
    {
      "step": 3,
      "float32": float(np.float32(0.1)),
      "array": 0.5,
      "one": 1.0,
      "bfloat16": 1.5,
      "int": 7,
      "bool": 1,
    }
  ]


@pytest.mark.parametrize("value", [np.ones(2), "high", None, 1j])
def test_other_values_are_refused(tmp_path, value):
  with (
    MetricLog(tmp_path) as log,
    pytest.raises(ValueError, match="metric 'x'.*expected a single number"),
  ):
    log.write(1, {"x": value})
  assert read_log(tmp_path) == []


@pytest.mark.parametrize("saved", [0, 4, 7, 10])
def test_a_resumed_run_has_the_rows_of_an_unbroken_one(tmp_path, saved):
  write_steps(tmp_path / "whole", 1, 10)
  write_steps(tmp_path / "broken", 1, 7)
  write_steps(tmp_path / "broken", saved + 1, 10)
  wanted = timeless(read_log(tmp_path / "whole"))
  rows = timeless(read_log(tmp_path / "broken"))
  assert rows == (wanted if saved <= 7 else wanted[:7])


def test_time_lies_below_its_prefix(tmp_path):
  write_steps(tmp_path, 1, 3)
  row = read_log(tmp_path)[-1]
  assert row["time/elapsed"] > 0
  assert row["time/steps_per_second"] > 0
  assert set(timeless([row])[0]) == {"step", "loss", "count"}


@pytest.mark.parametrize("cut", range(1, 90, 7))
def test_a_line_cut_short_is_dropped(tmp_path, cut):
  write_steps(tmp_path, 1, 5)
  path = tmp_path / log_module.FILE
  os.truncate(path, path.stat().st_size - cut)
  assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3, 4]
  write_steps(tmp_path, 5, 6)
  assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]
  for line in path.read_text().splitlines():
    strict(line)


def test_a_damaged_line_is_skipped_and_said(tmp_path, caplog):
  write_steps(tmp_path, 1, 3)
  path = tmp_path / log_module.FILE
  lines = path.read_text().splitlines()
  lines[1] = lines[1][:9]
  path.write_text("\n".join(lines) + "\n")
  assert [row["step"] for row in read_log(tmp_path)] == [1, 3]
  assert "skipped line 2" in caplog.text


def test_truncation_is_one_move(tmp_path, monkeypatch):
  write_steps(tmp_path, 1, 5)
  before = (tmp_path / log_module.FILE).read_bytes()

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      MetricLog(tmp_path, 2)
  assert (tmp_path / log_module.FILE).read_bytes() == before
  MetricLog(tmp_path, 2).close()
  assert [row["step"] for row in read_log(tmp_path)] == [1, 2]


def test_every_written_row_survives_a_kill(tmp_path):
  code = """
    import os, signal, sys
    from figs_jax.train.log_writer import MetricLog
    log = MetricLog(sys.argv[1])
    for step in range(1, 6):
      log.write(step, {"loss": 0.1 * step})
    os.kill(os.getpid(), signal.SIGKILL)
    """
  run = call("-c", textwrap.dedent(code), tmp_path)
  assert run.returncode == -signal.SIGKILL
  assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_disabled_log_touches_nothing(tmp_path):
  with MetricLog(tmp_path / "run", enabled=False) as log:
    log.write(1, {"loss": 1.0})
    log.progress(1)
  assert not (tmp_path / "run").exists()
  assert read_log(tmp_path / "run") == []


def test_closing_twice_and_writing_after_do_nothing(tmp_path):
  log = MetricLog(tmp_path)
  log.write(1, {"loss": 1.0})
  log.close()
  log.close()
  log.write(2, {"loss": 1.0})
  assert len(read_log(tmp_path)) == 1
