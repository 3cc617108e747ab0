"""The documentation builds without a warning, and its links lead somewhere."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import figs_jax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ROOMS = figs_jax._ROOMS
LANGUAGES = {
  "python",  # run by test_docs.py
  "py",  # for other libraries, not run here
  "bash",
  "json",
  "yaml",
  "",  # equations and what programs print
  "{eval-rst}",
  "{toctree}",
  "{include} ../CHANGELOG.md",
}


class Page(HTMLParser):
  """The ids that a page offers and the links that it follows."""

  def __init__(self, path):
    super().__init__()
    self.ids, self.links = set(), []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids |= {attrs["id"]} if "id" in attrs else set()
    self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]


@pytest.mark.slow
def test_the_pages_build_and_lead_somewhere(tmp_path):
  """One test, since workers that share the suite would each build again."""
  built = build(tmp_path)
  every_public_name_is_on_the_page_of_its_room(built)
  the_page_of_the_package_has_its_names(built)
  what_users_call_beside_the_rooms_is_on_a_page(built)
  internal_links_and_anchors_lead_somewhere(built)


def build(out):
  """The pages of HTML by path; a warning fails."""
  for library in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(library, reason="pip install 'figs_jax[docs]'")
  done = subprocess.run(
    [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    + ["-d", str(out / "trees"), str(DOCS), str(out / "html")],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  return {
    path.relative_to(out / "html"): Page(path)
    for path in (out / "html").rglob("*.html")
  }


def every_public_name_is_on_the_page_of_its_room(built):
  for room in ROOMS:
    page = built[Path(f"api/{room}.html")]
    module = importlib.import_module(f"figs_jax.{room}")
    wanted = {
      f"figs_jax.{room}.{name}"
      for name in module.__all__
      if callable(getattr(module, name))  # plain constants explain themselves
    }
    assert wanted <= page.ids, sorted(wanted - page.ids)


def the_page_of_the_package_has_its_names(built):
  text = (DOCS / "api" / "figs_jax.md").read_text()
  named = set(re.findall(r"^\| `figs\.(\w+)`", text, re.MULTILINE))
  named |= set(re.findall(r":: figs_jax\.(\w+)$", text, re.MULTILINE))
  assert named == set(figs_jax._EXPORTS)
  for name, target in re.findall(r"`figs\.(\w+)` \| {.*?}`(.+?)`", text):
    room, _, last = target.removeprefix("figs_jax.").partition(".")
    assert getattr(figs_jax, name) is getattr(getattr(figs_jax, room), last)
    assert target in built[Path(f"api/{room}.html")].ids


def what_users_call_beside_the_rooms_is_on_a_page(built):
  """Names that pages and notebooks import from a module inside a room."""
  text = "\n".join(
    path.read_text().replace("\\n", "\n")
    for path in [*PAGES, ROOT / "README.md", *ROOT.glob("colabs/*.ipynb")]
  )
  ids = set().union(*(page.ids for page in built.values()))
  used = set()
  for module, names in re.findall(
    r"^[ \"]*from (figs_jax\.\w+\.\w+) import ([\w, ]+)", text, re.MULTILINE
  ):
    used |= {(module, name.strip()) for name in names.split(",")}
  assert ("figs_jax.train.loop", "train") in used
  lost = {
    f"{module}.{name}"
    for module, name in used
    if f"{module}.{name}" not in ids
    and name not in importlib.import_module(_room(module)).__all__
  }
  assert not lost, sorted(lost)


def _room(module):
  return module.rpartition(".")[0]


def internal_links_and_anchors_lead_somewhere(built):
  root = built.keys()
  checked = 0
  for path, page in built.items():
    for link in page.links:
      parts = urlsplit(link)
      if parts.scheme or parts.netloc:
        continue
      target = path
      if parts.path:
        target = (Path("/") / path.parent / unquote(parts.path)).resolve()
        target = target.relative_to("/")
      if target.suffix != ".html":
        continue  # pictures and downloads are copied by the build or refused
      assert target in root, f"{path}: {link}"
      if parts.fragment and parts.fragment not in ("", "#"):
        assert parts.fragment in built[target].ids, f"{path}: {link}"
      checked += 1
  assert checked > 1000


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_pages_are_short_and_their_blocks_say_what_they_are(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 400
  fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
  assert len(fences) % 2 == 0
  assert set(fences[::2]) <= LANGUAGES
  assert set(fences[1::2]) <= {""}
