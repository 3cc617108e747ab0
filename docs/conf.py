"""Sphinx: the pages of this folder, and the API from the docstrings.

bash launch/docs.sh
"""

import re
from importlib import metadata

project = "figs_jax"
author = "The figs_jax authors"
try:
  release = metadata.version("figs_jax")
except metadata.PackageNotFoundError:  # a checkout on the path
  release = "from source"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"figs_jax {release}"
myst_heading_anchors = 3
# Equations are plain blocks; Python is always marked as such.
highlight_language = "text"
# Docstrings are plain text in which `name` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
napoleon_custom_sections = [("Options", "params_style")]


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
  app.connect("autodoc-process-docstring", plain_text, priority=100)
  app.connect("autodoc-process-signature", short_types)
