"""The house's floors: who may import whom, and what imports without what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import figs_jax

ROOT = Path(figs_jax.__file__).parent
_BELOW_TRAIN = {
  "core", "data", "engine", "export", "models", "nn", "optim", "recipes",
}  # fmt: skip
ROOMS = {
  "core": set(),
  "engine": {"core.pattern"},
  "data": set(),
  "export": {"core"},
  "optim": {"core"},
  "recipes": {"core", "optim"},
  "nn": {"core"},
  "models": {"core", "export", "nn", "optim", "recipes"},
  "train": _BELOW_TRAIN,
  "analysis": {*_BELOW_TRAIN, "train"},
  "cli": {*_BELOW_TRAIN, "train", "analysis"},
}


def imports(path: Path) -> set[str]:
  """Modules of ours that a file names, inside functions too."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      assert node.level == 0, f"{path}: relative import"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return {name for name in found if name.split(".")[0] == "figs_jax"}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_downwards_only(room):
  allowed = {f"figs_jax.{name}" for name in ROOMS[room] | {room}}
  for path in sorted((ROOT / room).rglob("*.py")):
    for name in imports(path):
      fits = any(name == ok or name.startswith(ok + ".") for ok in allowed)
      assert fits, f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_is_on_a_floor():
  rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")}
  assert rooms == set(ROOMS)


def _python(code: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
  )


def test_numerical_rooms_need_no_training_libraries():
  """core, recipes, optim, nn, models and engine run on a bare machine."""
  blocked = "orbax tensorflow_datasets grain jaxtyping beartype tensorboardX"
  done = _python(f"""
import sys
for name in {blocked.split()!r}:
  sys.modules[name] = None
import figs_jax.core, figs_jax.recipes, figs_jax.optim, figs_jax.nn
import figs_jax.models, figs_jax.engine
""")
  assert done.returncode == 0, done.stderr


def test_core_needs_jax_and_numpy_only_and_touches_no_device():
  done = _python("""
import sys
for name in ("flax", "optax", "orbax", "jaxtyping", "ml_collections"):
  sys.modules[name] = None
import jax
before = jax.config.values.copy()
import figs_jax.core
assert before == jax.config.values
assert not jax._src.xla_bridge.backends_are_initialized()
""")
  assert done.returncode == 0, done.stderr


def test_no_page_is_overlong():
  for path in sorted(ROOT.rglob("*.py")):
    assert len(path.read_text().splitlines()) <= 600, path
