"""Compares an environment with the floors that setup.cfg declares.

`launch/test.sh --floors` runs it in an environment of the lowest versions.
Prints requirement, floor and installed version of each, imports every module of
figs_jax, and exits with 1 if a version differs from its floor or an import
fails.
"""

import configparser
import importlib
import pkgutil
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

SETUP = Path(__file__).parents[1] / "setup.cfg"
# Extras that need an accelerator, or gigabytes that no test of ours requires.
NOT_INSTALLED = ("cuda", "tpu", "oracles")


def core_requirements(text: str) -> list[str]:
  """The requirements of a setup.cfg without extras."""
  setup = configparser.ConfigParser()
  setup.read_string(text)
  return [
    line
    for line in setup["options"]["install_requires"].splitlines()
    if line and not line.startswith("#")
  ]


def requirements(text: str) -> dict[str, Version | None]:
  """Floor of each distribution that a setup.cfg requires; None without one.

  Requirements of figs_jax itself, and of the extras in `NOT_INSTALLED`, are
  left out.
  """
  setup = configparser.ConfigParser()
  setup.read_string(text)
  lists = ["\n".join(core_requirements(text))]
  for extra, lines in setup["options.extras_require"].items():
    if extra not in NOT_INSTALLED:
      lists.append(lines)
  floors: dict[str, Version | None] = {}
  for line in "\n".join(lists).splitlines():
    if line and not line.startswith(("#", "figs_jax[")):
      requirement = Requirement(line)
      lowest = [s.version for s in requirement.specifier if s.operator == ">="]
      floors[requirement.name] = Version(lowest[0]) if lowest else None
  return floors


def main() -> int:
  failures = 0
  print(f"{'requirement':24}{'floor':12}installed")
  for name, floor in requirements(SETUP.read_text()).items():
    installed = Version(metadata.version(name))
    differs = installed != floor
    failures += differs
    print(f"{name:24}{floor!s:12}{installed}{' DIFFERS' if differs else ''}")
  figs_jax = importlib.import_module("figs_jax")
  modules = list(pkgutil.walk_packages(figs_jax.__path__, "figs_jax."))
  for module in modules:
    try:
      importlib.import_module(module.name)
    except Exception as error:  # Old packages raise many kinds.
      failures += 1
      print(f"{module.name}: {type(error).__name__}: {error}")
  print(f"{len(modules)} modules imported, {failures} failures")
  return int(failures > 0)


if __name__ == "__main__":
  sys.exit(main())
