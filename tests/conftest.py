"""The whole suite runs strict: eight CPU devices, types checked, no promotion.

The package is imported under jaxtyping's hook, so that beartype checks every
annotated shape and dtype. Implicit dtype promotion is an error except in tests
marked `standard_promotion`; implicit rank promotion is one everywhere.

Programs are compiled once for all workers and all that they start: in a cache
which is new for every run of the suite and goes with it.
"""

import atexit
import gc
import os
import shutil
import tempfile

from tests.programs import DEVICES, known_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit all of this
  _flags = (os.environ.get("XLA_FLAGS", ""), DEVICES, *known_flags())
  os.environ["XLA_FLAGS"] = " ".join(_flags)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="figs_jax_programs_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

install_import_hook("figs_jax", "beartype.beartype")


def pytest_collection_finish():
  """Makes collections rare: traced programs are many objects that stay."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 100)


_MOST_PROGRAMS = 4_000  # that a worker keeps; each takes about half a megabyte
_compiled = 0


def _count(event, duration, **_):
  global _compiled
  _compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def pytest_runtest_teardown(item, nextitem):
  """Forgets programs between files, which would fill the memory."""
  global _compiled
  if _compiled > _MOST_PROGRAMS and nextitem and nextitem.path != item.path:
    jax.clear_caches()
    _compiled = 0


@pytest.fixture(autouse=True)
def strict_jax(request):
  standard = request.node.get_closest_marker("standard_promotion")
  with (
    jax.numpy_dtype_promotion("standard" if standard else "strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    yield


@pytest.fixture
def unchecked():
  """Without the run-time type check of the tests, which would speak first."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  from figs_jax import data

  path = tmp_path_factory.mktemp("data")
  data.load("digits", "train", data_dir=str(path))
  return str(path)


@pytest.fixture(scope="session")
def tiny_config(data_dir):
  """A factory: recipe, overrides -> a configuration that trains in seconds."""
  from figs_jax.train.config import default_config

  def make(recipe="figs", **overrides):
    config = default_config(recipe)
    config.family, config.variant = "vit", "custom/4"
    config.model.update(
      {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64, "pool": "gap"}
    )
    config.pattern = "ff: 1:4"
    config.total_steps = 40
    config.batch_size = 16
    config.data.data_dir = data_dir
    config.data.eval_batch_size = 90
    config.log_every = 5
    config.diagnose_every = 10
    config.checkpoint_every = 10
    config.progress = False
    config.update_from_flattened_dict(overrides)
    return config

  return make
