"""Compiled programs are kept for the next start, and never stop a run."""

import os
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as of_jax

from figs_jax.cli import compilation_cache
from figs_jax.train import loop, machine
from figs_jax.train.log_writer import read_log
from figs_jax.train.workdir import restore
from tests.programs import REPO, call

NAME = "JAX_COMPILATION_CACHE_DIR"
_NAMES = (
  "jax_compilation_cache_dir",
  "jax_enable_compilation_cache",
  *compilation_cache._OPTIONS,
)


@pytest.fixture
def user(tmp_path, monkeypatch):
  """The cache directory of a user whose programs start here."""
  before = {name: getattr(jax.config, name) for name in _NAMES}
  monkeypatch.delenv(NAME)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  of_jax.reset_cache()
  with warnings.catch_warnings():  # which restores what shows them, too
    warnings.simplefilter("always")
    yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)
  of_jax.reset_cache()


@pytest.fixture(scope="module")
def hits():
  """Counts the programs that JAX finds compiled."""
  events = []
  jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
  return lambda: events.count("/jax/compilation_cache/cache_hits")


def compiled(x=3.0):
  """Compiles and runs a function as a new process would."""

  def seventh_power(x):
    return x**7

  return float(jax.jit(seventh_power)(np.float32(x)))


def test_a_program_is_compiled_once(user, hits):
  directory = compilation_cache.enable()
  assert directory.parent == user / "figs_jax" / "programs"
  for path in (directory, directory.parent, directory.parent.parent):
    assert path.stat().st_mode & 0o777 == 0o700
  before = hits()
  assert compiled() == 3.0**7
  (entry,) = directory.glob("jit_seventh_power-*")
  assert hits() == before
  assert compiled() == 3.0**7
  assert hits() == before + 1
  entry.write_bytes(entry.read_bytes()[:100])  # as a kill would leave it
  assert compiled() == 3.0**7
  assert hits() == before + 1
  assert compiled() == 3.0**7  # written anew
  assert hits() == before + 2


def test_another_process_compiles_nothing(tmp_path):
  script = (
    "import jax, numpy as np\n"
    "from figs_jax.cli import compilation_cache\n"
    "compilation_cache.enable()\n"
    "jax.monitoring.register_event_listener(lambda name, **_: print(name))\n"
    "jax.jit(lambda x: x * 3)(np.float32(2))\n"
  )
  variables = {"XDG_CACHE_HOME": str(tmp_path)}
  first, second = (
    call("-c", f"import os; del os.environ[{NAME!r}]\n{script}", **variables)
    for _ in range(2)
  )
  assert "cache_misses" in first.stdout and "cache_hits" not in first.stdout
  assert "cache_hits" in second.stdout and "cache_misses" not in second.stdout
  assert not first.stderr + second.stderr


def test_programs_that_train_or_read_runs_keep_what_they_compile():
  for path in REPO.glob("launch/*.py"):
    # A plan is compiled for devices that are not there.
    others = {"again", "own_model", "cluster", "engine", "fetch_examples"}
    others |= {"plan"}
    compiles = path.stem not in others
    assert ("compilation_cache.enable()" in path.read_text()) == compiles, path


def test_each_processor_and_number_of_cores_has_its_own(user, monkeypatch):
  paths = {compilation_cache.enable()}
  monkeypatch.setattr(machine, "usable_cores", lambda: 77)
  paths.add(compilation_cache.enable())
  monkeypatch.setattr(machine, "processor_features", lambda: "fpu")
  paths.add(compilation_cache.enable())
  assert len(paths) == 3


def test_the_users_own_settings_win(user, monkeypatch):
  monkeypatch.setenv(NAME, "elsewhere")
  assert compilation_cache.enable() is None
  monkeypatch.delenv(NAME)
  variable = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
  monkeypatch.setenv(variable, "2")
  jax.config.update(variable.lower(), 2.0)  # as JAX does when imported
  assert compilation_cache.enable()
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 2
  jax.config.update("jax_enable_compilation_cache", False)
  assert compilation_cache.enable() is None


def _writable(user, monkeypatch):
  (user / "figs_jax").mkdir()
  (user / "figs_jax").chmod(0o777)
  return "could be written by others"


def _of_another(user, monkeypatch):
  monkeypatch.setattr(os, "getuid", lambda: 4242)
  return "belongs to user"


def _not_a_directory(user, monkeypatch):
  (user / "figs_jax").write_text("")
  return "File exists"


def _homeless(user, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "relative")
  monkeypatch.setattr(Path, "home", lambda: Path("/proc/none"))
  return "No such file"


@pytest.mark.parametrize(
  "case", [_writable, _of_another, _not_a_directory, _homeless]
)
def test_a_directory_that_cannot_be_trusted_or_used_is_left(
  user, monkeypatch, caplog, case
):
  reason = case(user, monkeypatch)
  assert compilation_cache.enable() is None
  assert jax.config.jax_compilation_cache_dir != str(user)
  (record,) = caplog.records
  assert reason in record.getMessage()
  assert compiled() == 3.0**7


def test_others_lose_their_rights_to_read(user):
  (user / "figs_jax").mkdir(mode=0o755)
  compilation_cache.enable()
  assert (user / "figs_jax").stat().st_mode & 0o777 == 0o700


def test_a_refusing_disk_is_one_remark(user, caplog):
  directory = compilation_cache.enable()
  partial = directory / "jit_other-0123-cache"
  partial.write_text("what a full disk has cut short")
  warnings.warn(
    "Error writing persistent compilation cache entry for 'jit_other':"
    " OSError: [Errno 28] No space left on device",
    stacklevel=1,
  )
  assert not partial.exists()
  assert "No space left" in caplog.text
  caplog.clear()
  compiled(2.0)  # opens the cache
  for entry in directory.iterdir():
    entry.unlink()
  directory.rmdir()
  directory.write_text("a file")
  jax.jit(lambda x: x * 5)(np.float32(2))
  jax.jit(lambda x: x * 6)(np.float32(2))
  assert not caplog.records  # the writing was remarked on before


def test_other_warnings_are_shown(user):
  compilation_cache.enable()
  with pytest.warns(UserWarning, match="hello"):
    warnings.warn("hello", stacklevel=1)


def test_the_programs_used_longest_ago_are_removed(tmp_path):
  (tmp_path / "key").mkdir()
  for i in (3, 1, 2):
    path = tmp_path / "key" / str(i)
    path.write_bytes(bytes(10))
    os.utime(path, (i, i))
  compilation_cache._remove_oldest(tmp_path, 25)
  assert sorted(path.name for path in tmp_path.glob("*/*")) == ["2", "3"]


@pytest.mark.standard_promotion
def test_a_resumed_run_is_the_same_with_kept_programs(user, tiny_config, hits):
  config = tiny_config(
    "sr_ste", total_steps=4, checkpoint_every=2, diagnose_every=0, log_every=1
  )

  def trained(name):
    jax.clear_caches()
    loop.train(config, user / name)
    params = jax.tree.map(np.asarray, restore(user / name)[1].params)
    log = [
      {k: v for k, v in row.items() if not k.startswith("time/")}
      for row in read_log(user / name)
    ]
    return log, params

  jax.config.update("jax_enable_compilation_cache", False)
  log, params = trained("without")
  for name in ("written", "read"):
    shutil.copytree(user / "without", user / name)
    for path in (user / name / "checkpoints").glob("4*"):
      shutil.rmtree(path)
    jax.config.update("jax_enable_compilation_cache", True)
    of_jax.reset_cache()
    compilation_cache.enable()
    before = hits()
    resumed, same = trained(name)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert resumed == log
  assert hits() > before
