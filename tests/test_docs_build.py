"""The documentation builds without a warning, its links lead somewhere, and a
browser shows it: without the network, with its equations and its search.

Notebooks are not run here but by test_notebooks.py.
"""

import importlib
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import figs_jax
from tests import browser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOK = Path("colabs/engine_explorer.html")
ROOMS = figs_jax._ROOMS
LANGUAGES = {
  "{image} quickstart.png",
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
  """The ids that a page offers, the links that it follows, and their texts."""

  def __init__(self, path):
    super().__init__()
    self.ids, self.links, self.texts = set(), [], []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids |= {attrs["id"]} if "id" in attrs else set()
    self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]
    self.texts += [""] if tag == "a" else []

  def handle_data(self, data):
    if self.texts:
      self.texts[-1] += data if not self.texts[-1] else ""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  """Where the pages were built; a warning fails.

  The two tests that need it stand together, so that one worker builds for both.
  """
  for library in ("sphinx", "myst_nb", "sphinx_design", "furo"):
    pytest.importorskip(library, reason="pip install 'figs_jax[docs]'")
  out = tmp_path_factory.mktemp("docs")
  done = subprocess.run(
    [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    + ["-d", str(out / "trees"), str(DOCS), str(out / "html")],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=600,
    env={**os.environ, "OWNER": "some-owner"},
  )
  assert done.returncode == 0, done.stderr
  return out / "html"


@pytest.mark.slow
def test_the_pages_lead_somewhere(out):
  built = {path.relative_to(out): Page(path) for path in out.rglob("*.html")}
  every_public_name_is_on_the_page_of_its_room(built)
  the_page_of_the_package_has_its_names(built)
  what_users_call_beside_the_rooms_is_on_a_page(built)
  internal_links_and_anchors_lead_somewhere(built, out)
  links_have_titles(built)
  the_owner_is_a_variable(built, out)


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


def internal_links_and_anchors_lead_somewhere(built, out):
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
        assert (out / target).exists(), f"{path}: {link}"
        continue
      assert target in root, f"{path}: {link}"
      if parts.fragment and parts.fragment not in ("", "#"):
        assert parts.fragment in built[target].ids, f"{path}: {link}"
      checked += 1
  assert checked > 1000


def links_have_titles(built):
  named = [text for page in built.values() for text in page.texts]
  assert not [text for text in named if re.search(r"\.(md|ipynb)$", text)]


def the_owner_is_a_variable(built, out):
  for path in built:
    assert "OWNER/" not in (out / path).read_text(), path
  assert any("some-owner/figs_jax" in link for link in built[NOTEBOOK].links)
  assert "git+https://github.com/some-owner" in (out / "index.html").read_text()


# What a page shows once it is loaded.
SHOWN = """({
  equations: document.querySelectorAll(".math").length,
  rendered: document.querySelectorAll(".math mjx-container > svg").length,
  faulty: [...document.querySelectorAll("[data-mml-node=merror]")]
    .map(node => node.textContent),
  code: document.querySelectorAll(".highlight-python span[class]").length,
  broken: [...document.images]
    .filter(image => !image.complete || !image.naturalWidth)
    .map(image => image.src),
  wide: document.documentElement.scrollWidth > innerWidth,
})"""
RESULTS = """new Promise(done => {
  const look = () => {
    const links = document.querySelectorAll("#search-results ul.search li > a");
    document.querySelector("#search-results .search-summary")?.textContent
      ? done([...links].map(link => link.href)) : setTimeout(look, 50);
  };
  look();
})"""


@pytest.mark.slow
def test_a_browser_shows_the_pages(out):
  """All pages in one Chromium, at the width of a phone."""
  if browser.executable() is None:
    pytest.skip("no Chromium: apt-get install chromium-headless-shell")
  shown = {}
  with browser.served(out) as address, browser.chromium() as tab:
    tab.call(
      "Emulation.setDeviceMetricsOverride",
      width=390, height=844, deviceScaleFactor=1, mobile=True,
    )  # fmt: skip
    for path in sorted(out.rglob("*.html")):
      page = str(path.relative_to(out))
      tab.open(f"{address}/{page}")
      shown[page] = tab.value(SHOWN)
    tab.open(f"{address}/search.html?q=transposable")
    results = tab.value(RESULTS)
  for page, has in shown.items():
    assert has["rendered"] == has["equations"], page
    assert not has["faulty"] and not has["broken"] and not has["wide"], page
  assert shown["recipes_decay.html"]["rendered"] > 20
  assert shown["engine.html"]["rendered"] > 10
  assert shown["index.html"]["code"] > 10
  assert shown[str(NOTEBOOK)]["code"] > 10
  assert f"{address}/recipes_scratch.html#transposable" in results
  assert not [
    (method, params)
    for method, params in tab.events
    if method in ("Runtime.exceptionThrown", "Log.entryAdded")
    or (method, params.get("type")) == ("Runtime.consoleAPICalled", "error")
    or method == "Network.loadingFailed"
  ]
  asked = {
    params["request"]["url"]
    for method, params in tab.events
    if method == "Network.requestWillBeSent"
  }
  assert f"{address}/_static/tex-svg.js" in {u.partition("?")[0] for u in asked}
  assert all(url.startswith((address, "data:")) for url in asked)


def test_printed_text_is_joined_as_it_was():
  pytest.importorskip("myst_nb", reason="pip install 'figs_jax[docs]'")
  joined = runpy.run_path(str(DOCS / "conf.py"))["joined_streams"]
  texts = [("stdout", "a 1\nb"), ("stdout", " 2\n"), ("stderr", "c\n")]
  printed = [
    {"output_type": "stream", "name": name, "text": text}
    for name, text in texts
  ]
  figure = {"output_type": "display_data"}
  outputs = joined([*printed, figure])
  assert [output.get("text") for output in outputs] == [
    "a 1\nb 2\n", "c\n", None,
  ]  # fmt: skip


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_pages_are_short_and_their_blocks_say_what_they_are(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 400
  fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
  assert len(fences) % 2 == 0
  assert set(fences[::2]) <= LANGUAGES
  assert set(fences[1::2]) <= {""}
