"""Sphinx: the pages of this folder, and the API from the docstrings.

bash launch/docs.sh

OWNER=name is whose repository the pages link to; without it they keep the
placeholder OWNER, and the notebooks have no link to Colab. Notebooks are shown
without outputs unless `-D nb_execution_mode=cache` runs them, as launch/docs.sh
does.
"""

import hashlib
import json
import os
import re
from importlib import metadata
from pathlib import Path

from myst_nb.core import render

ROOT = Path(__file__).resolve().parents[1]
OWNER = os.environ.get("OWNER", "OWNER")

project = "figs_jax"
author = "The figs_jax authors"
try:
  release = metadata.version("figs_jax")
except metadata.PackageNotFoundError:  # a checkout on the path
  release = "from source"

extensions = [
  "myst_nb",
  "sphinx_design",
  "sphinx.ext.autodoc",
  "sphinx.ext.mathjax",
  "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = f"figs_jax {release}"
html_css_files = ["style.css"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
# What programs print are plain blocks; Python is always marked as such.
highlight_language = "text"
# Docstrings are plain text in which `name` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
napoleon_custom_sections = [("Options", "params_style")]


def mathjax() -> str:
  """MathJax 3.2.2 in one file with its fonts, from `sphinx-mathjax-offline`.

  The digest is that of es5/tex-svg.js in npm's package mathjax 3.2.2.
  """
  package = metadata.distribution("sphinx-mathjax-offline")
  path = package.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")
  digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
  wanted = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"
  if digest != wanted:
    raise ValueError(
      f"{path}: expected MathJax 3.2.2 with SHA-256 {wanted}, got {digest};"
      " pip install sphinx-mathjax-offline==0.0.2"
    )
  return str(path)


html_static_path = ["_static", mathjax()]
mathjax_path = "tex-svg.js"


def code_digest() -> str:
  """Digest of what notebooks import: outputs are kept while it is the same."""
  digest = hashlib.sha256()
  for path in sorted(ROOT.glob("figs_jax/**/*.py")):
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


nb_execution_mode = "off"
nb_execution_cache_path = str(ROOT / "build" / "notebooks" / code_digest())
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 3600  # seconds a cell
nb_merge_streams = True


def joined_streams(outputs):
  """A cell's outputs with its printed text in one piece.

  In place of myst-nb's own function, which puts a line break wherever the
  kernel flushed in the middle of a line.
  """
  joined = []
  for output in outputs:
    previous = joined[-1] if joined else {"output_type": None}
    if (
      output["output_type"] == previous["output_type"] == "stream"
      and output["name"] == previous["name"]
    ):
      previous["text"] += output["text"]
    else:
      joined.append(output)
  return joined


render.coalesce_streams = joined_streams


def own_pages(app, name, source):
  """Puts in the owner and links to notebooks as pages (docs/colabs is colabs).

  Of notebooks, drops the badge, a picture from the network, and the cell that
  installs figs_jax.
  """
  del app
  if name.startswith("colabs/"):
    notebook = json.loads(source[0])
    first, install = notebook["cells"][:2]
    badge, _, rest = "".join(first["source"]).partition("\n")
    link = re.search(r"\((https://colab[^)]+ipynb)\)", badge)[1]
    colab = "" if OWNER == "OWNER" else f"\n\n[Open in Colab]({link})"
    first["source"] = re.sub(r"(# .+)", rf"\1{colab}", rest.strip(), count=1)
    install["metadata"]["tags"] = ["remove-cell"]
    source[0] = json.dumps(notebook)
  source[0] = source[0].replace("OWNER/figs_jax", f"{OWNER}/figs_jax")
  link = r"\[([^]]+)\]\(\.\./(colabs/\w+)\.ipynb\)"
  source[0] = re.sub(link, r"{doc}`\1 </\2>`", source[0])


def plain_text(app, what, name, obj, options, lines):
  """Escapes a docstring's |w| and `names` that RST would read as markup."""
  del app, what, name, obj, options
  for number, line in enumerate(lines):
    if not line.lstrip().startswith((">>>", "...")):
      parts = re.split(r"(`[^`]*`)", line)
      parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
      line = "".join(parts)
      lines[number] = re.sub(r"(`[^`]+`)(?=[a-z])", r"\1\\ ", line)


def short_types(app, what, name, obj, options, signature, returned):
  """Writes JAX's array type as the user knows it."""
  del app, what, name, obj, options
  return [
    text and text.replace("jaxlib._jax.Array", "Array")
    for text in (signature, returned)
  ]


def setup(app):
  app.connect("source-read", own_pages)
  app.connect("autodoc-process-docstring", plain_text, priority=100)
  app.connect("autodoc-process-signature", short_types)
