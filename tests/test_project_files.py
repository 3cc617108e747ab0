"""Version, licence and pinned tools agree in every file that has them."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

from tests import floors

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_is_of_this_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == SETUP["metadata"]["version"]
  assert citation["license"] == SETUP["metadata"]["license"]
  assert citation["title"] == SETUP["metadata"]["name"]
  # What the format requires.
  assert citation["cff-version"] == "1.2.0"
  assert citation["message"] and citation["authors"]


def test_the_changelog_has_this_version_and_the_newest_first():
  version = SETUP["metadata"]["version"]
  head, *sections = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)
  assert "keepachangelog.com" in head
  assert version in sections[0].split("###")[0]
  kinds = set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE))
  assert kinds <= {
    "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security",
  }  # fmt: skip


def test_hooks_pin_tools_that_the_checks_also_use():
  text = (ROOT / ".pre-commit-config.yaml").read_text()
  (repo,) = yaml.safe_load(text)["repos"]
  extras = "\n".join(SETUP["options.extras_require"].values())
  for hook in repo["hooks"]:
    (tool,) = hook["additional_dependencies"]
    name, version = tool.split("==")
    assert hook["entry"].split()[0] == name
    floor = re.search(rf"^{name}>=([\d.]+)$", extras, re.MULTILINE)
    assert floor or name == "nbstripout"
    if floor:
      numbers = [tuple(map(int, v.split("."))) for v in (floor[1], version)]
      assert numbers == sorted(numbers)


def test_what_the_guide_names_exists():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  named = re.findall(r"`((?:tests|figs_jax|launch|docs)/[\w/.]+)`", text)
  assert len(named) > 4
  for path in named:
    assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_and_commands_of_a_page_exist(page):
  text = (ROOT / page).read_text()
  named = re.findall(r"\]\(([^)#:]+)\)", text)
  named += re.findall(r"(?:bash|python) ((?:launch|docs)/\w+\.\w+)", text)
  assert len(named) > 4
  for path in named:
    assert (ROOT / path).exists(), path


def test_a_wheel_holds_all_files_of_the_package():
  package = ROOT / "figs_jax"
  globs = SETUP["options.package_data"]["figs_jax"].split(", ")
  packed = {path for glob in globs for path in package.glob(glob)}
  others = {
    path
    for path in package.rglob("*.*")
    if path.suffix not in (".py", ".pyc") and path.is_file()
  }
  assert packed == others


def test_the_tables_of_extras_have_every_extra():
  for page in ("README.md", "docs/using.md"):
    rows = re.findall(r"^\| (`\w+`.*?) \|", (ROOT / page).read_text(), re.M)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    missing = SETUP["options.extras_require"].keys() - listed
    assert missing == {"oracles"}, page


def test_every_requirement_has_a_floor():
  declared = floors.requirements((ROOT / "setup.cfg").read_text())
  assert {"jax", "matplotlib", "ruff", "furo"} <= declared.keys()
  assert not {"torch", "figs_jax"} & declared.keys()
  assert not [name for name, floor in declared.items() if floor is None]


def test_a_version_that_is_not_the_floor_is_reported(monkeypatch, capsys):
  class Package:
    __path__ = ()

  monkeypatch.setattr(
    floors, "requirements", lambda text: {"pytest": floors.Version("0.1")}
  )
  monkeypatch.setattr(floors.importlib, "import_module", lambda name: Package)
  assert floors.main() == 1
  assert re.search(r"^pytest +0\.1 .* DIFFERS$", capsys.readouterr().out, re.M)
