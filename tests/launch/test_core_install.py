"""The programs with the core requirements alone: help, or one line, code 2."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.floors import SETUP, core_requirements
from tests.programs import REPO, all_in_one_process, assert_one_clear_line

PROGRAMS = sorted(
  str(path.relative_to(REPO))
  for path in Path(REPO, "launch").glob("*.py")
  if "cli.run(main" in path.read_text()
)
# Hides modules from a process, as if they were not installed.
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}

class Others(PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.partition(".")[0] in HIDDEN:
      return None
    return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Others
"""
NEEDS = {
  "plots": [
    [
      "launch/plot.py",
      "--workdir=runs",
      "--out=a.png",
      "--plot=pareto",
    ],
    [
      "launch/engine.py",
      "--model=vit:S/16",
      "--format=png",
      "--out=a.png",
    ],
  ],
  "study": [
    ["launch/quickstart.py"],
    ["launch/study.py", "--config=configs/study_digits.py"],
  ],
}


def core():
  """Names of the distributions that the core requires, at any depth."""
  names = set()
  todo = [
    (Requirement(line), "") for line in core_requirements(SETUP.read_text())
  ]
  while todo:
    requirement, extra = todo.pop()
    marker = requirement.marker
    if marker is not None and not marker.evaluate({"extra": extra}):
      continue
    name = canonicalize_name(requirement.name)
    for each in ("", *requirement.extras):
      if (name, each) not in names:
        names.add((name, each))
        inner = metadata.requires(name) or ()
        todo += [(Requirement(line), each) for line in inner]
  return {name for name, _ in names}


@pytest.fixture(scope="module")
def hidden():
  """Modules that belong to no distribution of the core."""
  kept = core()
  return {
    module
    for module, owners in metadata.packages_distributions().items()
    if module != "figs_jax"
    if not kept & {canonicalize_name(owner) for owner in owners}
  }


@pytest.fixture(scope="module")
def ends(hidden, tmp_path_factory):
  """Words -> [code, output, errors], in a process with the core alone."""
  where = tmp_path_factory.mktemp("core")
  calls = [[program, "--help"] for program in PROGRAMS]
  calls += [[program, "--colour=red"] for program in PROGRAMS]
  calls += [call for several in NEEDS.values() for call in several]
  results = all_in_one_process(
    [[word.replace("=a.png", f"={where}/a.png") for word in c] for c in calls],
    before=HIDE.format(hidden=hidden),
  )
  return dict(zip(map(tuple, calls), results, strict=True))


def test_the_core_lacks_what_the_extras_have(hidden):
  assert {
    "matplotlib", "pandas", "pytest", "sacrebleu", "sentencepiece", "sklearn",
    "statsmodels", "tensorboardX",
  } <= hidden  # fmt: skip
  assert not {"jax", "numpy", "orbax", "scipy", "tensorflow_datasets"} & hidden


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_a_wrong_flag_need_no_extra(program, ends):
  code, output, errors = ends[program, "--help"]
  assert (code, errors) == (0, "")
  assert f"{program}:" in output
  assert_one_clear_line(ends[program, "--colour=red"], "colour", "--help")


@pytest.mark.parametrize(
  ("extra", "call"),
  [(extra, call) for extra, several in NEEDS.items() for call in several],
  ids=lambda value: value if isinstance(value, str) else Path(value[0]).stem,
)
def test_a_command_that_needs_an_extra_names_it(extra, call, ends):
  assert_one_clear_line(ends[tuple(call)], f"pip install 'figs_jax[{extra}]'")


def test_every_hint_names_an_extra_that_exists():
  setup = SETUP.read_text()
  hints = {
    extra
    for path in Path(REPO, "figs_jax").rglob("*.py")
    for extra in re.findall(
      r"pip install '?figs_jax\[(\w+)\]", path.read_text()
    )
  }
  assert {"plots", "stablehlo", "study", "text"} <= hints
  for extra in hints:
    assert re.search(rf"^{extra} =$", setup, re.MULTILINE), extra
