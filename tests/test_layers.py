"""The house's floors: who may import whom, and what imports without what."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import figs_jax

ROOT = Path(figs_jax.__file__).parent
_BELOW_TRAIN = {
  "core", "data", "engine", "export", "models", "nn", "optim", "pruning",
  "recipes",
}  # fmt: skip
ROOMS = {
  "core": set(),
  "engine": {"core.pattern"},
  "data": {"core.legal"},
  "export": {"core"},
  "optim": {"core"},
  "recipes": {"core", "optim"},
  "nn": {"core"},
  "models": {"core", "export", "nn", "optim", "recipes"},
  "pruning": {"core", "models", "nn"},
  "train": _BELOW_TRAIN,
  "analysis": {*_BELOW_TRAIN, "train"},
  "cli": {*_BELOW_TRAIN, "train", "analysis"},
}


def imports(path: Path) -> set[str]:
  """Names of ours that a file imports, inside functions and type checks too."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return {name for name in names if name.split(".")[0] == "figs_jax"}


def modules() -> dict[str, Path]:
  """Every module of the package by its dotted name."""
  paths = sorted(ROOT.rglob("*.py"))
  return {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
      ".__init__"
    ): p
    for p in paths
  }


def graph() -> dict[str, set[str]]:
  """The modules that each module imports."""
  known = modules()
  return {
    module: {
      name if name in known else name.rpartition(".")[0]
      for name in imports(path)
    }
    & set(known) - {module}
    for module, path in known.items()
  }


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_downwards_only(room):
  allowed = {f"figs_jax.{name}" for name in ROOMS[room] | {room}}
  for path in sorted((ROOT / room).rglob("*.py")):
    for name in imports(path):
      fits = any(name == ok or name.startswith(ok + ".") for ok in allowed)
      assert fits, f"{path.relative_to(ROOT)} imports {name}"


def test_no_circle_of_imports():
  arrows = graph()
  # Remove modules that import nothing which is left, until none is removed.
  while free := [m for m, below in arrows.items() if not below & set(arrows)]:
    for module in free:
      del arrows[module]
  assert not arrows


def test_engine_and_train_keep_few_floors():
  """The longest chain of imports inside a room, from its top to its bottom."""
  arrows = graph()

  def height(module: str, room: str) -> int:
    below = [name for name in arrows[module] if name.startswith(room)]
    return 1 + max((height(name, room) for name in below), default=0)

  floors = {
    room: max(
      height(module, f"figs_jax.{room}.")
      for module in arrows
      if module.startswith(f"figs_jax.{room}.")
    )
    for room in ("engine", "train")
  }
  assert floors["engine"] <= 8
  assert floors["train"] <= 8


def test_no_module_is_hidden_by_a_name_of_its_package():
  for module in modules():
    package, _, name = module.rpartition(".")
    bound = getattr(importlib.import_module(package or module), name, None)
    assert bound is None or bound is importlib.import_module(module), module


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
import figs_jax.models, figs_jax.engine, figs_jax.pruning
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


def test_the_top_of_the_engine_stays_small():
  assert len(list((ROOT / "engine").glob("*.py"))) <= 24


def test_no_page_is_overlong():
  for path in sorted(ROOT.rglob("*.py")):
    assert len(path.read_text().splitlines()) <= 600, path
