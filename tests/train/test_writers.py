"""Writers get the rows of metrics.jsonl; what they raise is not swallowed."""

import importlib
import json
import logging
import math
import struct
import sys
import textwrap

import pytest

from figs_jax.train import loop, writers
from figs_jax.train.config import ConfigError
from figs_jax.train.log_writer import MetricLog, read_log
from figs_jax.train.writers import TensorBoard, check_writers, is_installed
from tests.programs import call

# What figs_jax calls of wandb 0.31, and what it wrote.
WANDB = """
import json, pathlib
class Error(Exception): pass
class UsageError(Error): pass
class Run:
  def __init__(self, path): self.path = path
  def record(self, **what):
    with open(self.path, "a") as file: file.write(json.dumps(what) + "\\n")
  def define_metric(self, name, step_metric):
    self.record(define=[name, step_metric])
  def log(self, row): self.record(log=row)
  def finish(self, exit_code): self.record(finish=exit_code)
def init(*, project, dir, id, name, resume, config):
  if project == "refused": raise UsageError("No API key configured.")
  run = Run(pathlib.Path(dir, "fake_wandb.jsonl"))
  run.record(init=[project, id, name, resume], recipe=config["recipe"]["name"])
  return run
"""


class Recorder:
  """A user's own writer."""

  def __init__(self, error=None):
    self.rows, self.closed, self.error = [], 0, error

  def write(self, step, scalars):
    if self.error is not None and step > 1:
      raise self.error
    self.rows.append({"step": step, **scalars})

  def close(self):
    self.closed += 1


def test_a_writer_gets_every_row_and_is_closed_once(tmp_path):
  mine, other = Recorder(), Recorder()
  log = MetricLog(tmp_path, writers=[mine, other])
  log.write(1, {"loss": 0.1, "bad": math.inf})
  log.write(2, {"loss": 0.2})
  log.close()
  log.close()
  assert mine.rows == other.rows == read_log(tmp_path)
  assert mine.closed == other.closed == 1


def test_other_processes_call_no_writer(tmp_path):
  mine = Recorder()
  with MetricLog(tmp_path, writers=[mine], enabled=False) as log:
    log.write(1, {"loss": 0.1})
  assert mine.rows == [] and not mine.closed


def test_all_are_closed_whatever_one_raises(tmp_path):
  class Broken(Recorder):
    def close(self):
      raise RuntimeError("cannot close")

  first, last = Recorder(), Recorder()
  with pytest.raises(RuntimeError, match="cannot close"):
    MetricLog(tmp_path, writers=[first, Broken(), last]).close()
  assert first.closed == last.closed == 1


@pytest.fixture
def wandb(tmp_path, monkeypatch):
  """A module in the place of wandb."""
  folder = tmp_path / "packages"
  folder.mkdir()
  (folder / "wandb.py").write_text(WANDB)
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  monkeypatch.syspath_prepend(folder)
  importlib.invalidate_caches()
  yield
  sys.modules.pop("wandb", None)


def lines(workdir):
  text = (workdir / "fake_wandb.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.standard_promotion
def test_a_run_its_writers_and_their_errors(
  tmp_path, tiny_config, wandb, monkeypatch, caplog
):
  """W&B, a writer that fails, and no tensorboardX; then the run goes on."""
  monkeypatch.setattr(
    writers, "is_installed", lambda name: name != "tensorboardX"
  )
  monkeypatch.setattr(logging.getLogger("figs_jax"), "propagate", True)
  caplog.set_level(logging.INFO, "figs_jax")
  config = tiny_config(
    "ste",
    total_steps=4,
    checkpoint_every=2,
    log_every=1,
    diagnose_every=3,
    **{"log.wandb": "project"},
  )
  workdir = tmp_path / "run"

  class Fails(Recorder):
    def write(self, step, scalars):
      super().write(step, scalars)
      if step == 3:
        raise ConnectionResetError("by the server")  # an OSError

  mine = Fails()
  # Not a SaveError, although the disk's own errors become one.
  with pytest.raises(ConnectionResetError, match="by the server") as raised:
    loop.train(config, workdir, writers=[mine])
  assert raised.value.__notes__ == ["raised by Fails.write, step 3"]
  assert mine.closed == 1
  assert "no TensorBoard events without tensorboardX" in caplog.text
  assert not (workdir / "tensorboard").exists()
  means = {name for name in mine.rows[-1] if name.startswith("masks/")}
  assert means == {
    f"masks/{name}"
    for name in (
      "density",
      "flip_rate",
      "kept_magnitude",
      "grad_snr_kept",
      "grad_snr_pruned",
    )
  }
  layers = [
    value
    for name, value in mine.rows[-1].items()
    if name.startswith("layers/") and name.endswith("/kept_magnitude")
  ]
  assert len(layers) == 2
  wanted = pytest.approx(sum(layers) / 2)
  assert mine.rows[-1]["masks/kept_magnitude"] == wanted

  again = Recorder()
  result = loop.train(config, workdir, writers=[again])
  assert result["step"] == 4 and "masks" not in " ".join(result)
  assert [row["step"] for row in again.rows] == [3, 4, 4]
  assert [*mine.rows[:3], *again.rows] == read_log(workdir)
  calls = lines(workdir)
  starts = [line for line in calls if "init" in line]
  assert len(starts) == 2 and starts[0] == starts[1], "one W&B run for both"
  project, _, name, resume = starts[0]["init"]
  assert (project, name, resume) == ("project", "run", "allow")
  assert starts[0]["recipe"] == "ste"
  assert {"define": ["*", "step"]} in calls
  assert [line["finish"] for line in calls if "finish" in line] == [1, 0]
  logged = [line["log"] for line in calls if "log" in line]
  assert logged == [*mine.rows, *again.rows]


def test_what_wandb_refuses_is_one_line(tmp_path, wandb):
  with pytest.raises(
    ConfigError, match=r"refused: No API key configured; or set WANDB"
  ):
    writers.WeightsAndBiases("refused", tmp_path, {})


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path):
  """In a process of its own, since it starts threads and another process."""
  pytest.importorskip("wandb", reason="pip install 'figs_jax[wandb]'")
  script = f"""
  import os
  os.environ |= {{"WANDB_MODE": "offline", "WANDB_SILENT": "true"}}
  from figs_jax.train.writers import WeightsAndBiases
  for step in (1, 2):  # resumed at 2
    run = WeightsAndBiases("project", {str(tmp_path)!r}, {{"seed": "figs"}})
    run.write(step, {{"masks/density": 0.25, "loss": float("nan")}})
    run.close()
  """
  done = call("-c", textwrap.dedent(script))
  assert done.returncode == 0, done.stderr
  runs = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
  (name,) = {path.name for path in runs}
  run_id = (tmp_path / "wandb_run_id").read_text().strip()
  assert len(runs) in (1, 2) and name == f"run-{run_id}.wandb"
  content = b"".join(path.read_bytes() for path in runs)
  assert b"masks/density" in content and b"figs" in content


@pytest.mark.parametrize(
  "asked, package, command",
  [
    (("auto", "project"), "wandb", "pip install 'figs_jax[wandb]'"),
    (("on", ""), "tensorboardX", "pip install 'figs_jax[tensorboard]'"),
  ],
)
def test_a_missing_package_is_named_before_anything_is_made(
  tmp_path, tiny_config, monkeypatch, asked, package, command
):
  monkeypatch.setattr(writers, "is_installed", lambda name: name != package)
  config = tiny_config(**dict(zip(("log.tensorboard", "log.wandb"), asked)))
  with pytest.raises(ConfigError) as error:
    loop.train(config, tmp_path / "run")
  assert command in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_a_folder_is_not_a_package(tmp_path, monkeypatch):
  """W&B leaves folders named wandb, which Python would import."""
  (tmp_path / "a_folder").mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  assert not is_installed("a_folder")


@pytest.mark.parametrize("wrong", [print, Recorder])
def test_other_objects_are_refused(unchecked, wrong):
  with pytest.raises(ConfigError, match=r"writers\[1\]: expected an object"):
    check_writers("auto", "", [Recorder(), wrong])


def events(workdir):
  """TensorBoard's files, by their published framing."""
  from tensorboardX.proto import event_pb2

  for path in sorted((workdir / "tensorboard").iterdir()):
    content = path.read_bytes()
    at = 0
    while at < len(content):
      (length,) = struct.unpack("<Q", content[at : at + 8])
      event = event_pb2.Event()
      event.ParseFromString(content[at + 12 : at + 12 + length])
      yield event
      at += length + 16


def test_tensorboard_sees_the_same_numbers(tmp_path):
  pytest.importorskip("tensorboardX")
  from tensorboardX.proto import event_pb2

  with MetricLog(tmp_path, writers=[TensorBoard(tmp_path)]) as log:
    for step in range(1, 4):
      log.write(step, {"loss": 1 / step, "count": step})
  with MetricLog(tmp_path, 2, writers=[TensorBoard(tmp_path, 2)]) as log:
    log.write(3, {"loss": 0.25, "bad": math.nan})
  scalars = [
    (event.step, value.tag, value.simple_value)
    for event in events(tmp_path)
    for value in event.summary.value
    if not value.tag.startswith("time/")
  ]
  assert (1, "loss", 1.0) in scalars
  assert (3, "count", 3.0) in scalars
  assert (3, "loss", 0.25) in scalars
  assert "tensorflow" not in sys.modules
  restarts = [
    event.step
    for event in events(tmp_path)
    if event.session_log.status == event_pb2.SessionLog.START
  ]
  assert restarts == [1, 3], "what a viewer shows from there on is forgotten"


def test_writing_imports_no_torch(tmp_path):
  """tensorboardX would, where it is installed: seconds at the first row."""
  pytest.importorskip("tensorboardX")
  (tmp_path / "torch.py").write_text("raise SystemExit('imported torch')")
  script = f"""
  import sys
  from figs_jax.train.writers import TensorBoard
  sys.path.insert(0, {str(tmp_path)!r})
  writer = TensorBoard({str(tmp_path / "run")!r})
  writer.write(1, {{"loss": 1.0}})
  writer.close()
  assert "torch" not in sys.modules
  """
  done = call("-c", textwrap.dedent(script))
  assert done.returncode == 0, done.stderr
