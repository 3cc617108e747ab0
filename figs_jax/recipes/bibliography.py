"""What to cite: the entries of bibliography.bib, by arXiv number or DOI."""

from __future__ import annotations

import functools
import re
from importlib import resources

from figs_jax.core.rules import nearest

_ENTRY = re.compile(r"^@\w+\{(\w+),\n.*?^\}$", re.MULTILINE | re.DOTALL)


def bibtex(*ids: str) -> str:
  """The BibTeX entries of sources, in the order given, each once.

  Args:
    *ids: arXiv numbers such as "2102.04010", a DOI, or the key of an entry that
      has neither; a whole entry, "@article{...}", stands for itself.

  Returns:
    The entries with an empty line between them.

  Raises:
    ValueError: If an id is unknown; the message names the nearest one.

  >>> print(bibtex("1710.01878"))
  @misc{zhu2017prune,
    author = {Zhu, Michael and Gupta, Suyog},
    title = {To prune, or not to prune: exploring the efficacy of pruning for\
 model compression},
    year = {2017},
    eprint = {1710.01878},
    archivePrefix = {arXiv},
  }
  """
  chosen = []
  for source in dict.fromkeys(ids):
    if source.lstrip().startswith("@"):
      chosen.append(source.strip())
    elif source in _entries():
      chosen.append(_entries()[source])
    else:
      raise ValueError(f"Unknown source {source!r}, {nearest(source, known())}")
  return "\n\n".join(chosen)


def known() -> tuple[str, ...]:
  """Every id that `bibtex` takes, sorted.

  >>> "2402.04744" in known()
  True
  """
  return tuple(sorted(_entries()))


@functools.cache
def _entries() -> dict[str, str]:
  """Id -> entry of the file."""
  file = resources.files("figs_jax.recipes").joinpath("bibliography.bib")
  matches = _ENTRY.finditer(file.read_text(encoding="utf-8"))
  return {_id(match): match[0] for match in matches}


def _id(entry: re.Match[str]) -> str:
  """The arXiv number of an entry, else its DOI, else its key."""
  for field in ("eprint", "doi"):
    if value := re.search(rf"\n  {field} = \{{(.+)\}},\n", entry[0]):
      return value[1]
  return entry[1]
