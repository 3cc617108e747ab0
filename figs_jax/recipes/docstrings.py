"""Docstrings in Google's form: the entries below a heading such as "Args:"."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

_ENTRY = re.compile(r"\s*((?:\*\*)?\w+(?:, \w+)*): (.*)")


def entries(text: str | None, heading: str = "Args:") -> dict[str, str]:
  """Name -> meaning, of the lines "a, b: meaning" below a heading.

  Args:
    text: A docstring, indented or not.
    heading: The line above the entries.

  >>> entries("Args:\\n  a, b: One\\n    meaning.\\n  c: Another.")
  {'a': 'One meaning.', 'b': 'One meaning.', 'c': 'Another.'}
  """
  lines = (text or "").partition(heading)[2].splitlines()[1:]
  depth = min((_depth(line) for line in lines[:1]), default=0)
  meanings: dict[str, str] = {}
  keys: list[str] = []
  for line in lines:
    if not line.strip() or _depth(line) < depth:
      break
    head = _ENTRY.match(line)
    if head and _depth(line) == depth:
      keys = head[1].split(", ")
      meanings |= dict.fromkeys(keys, head[2])
    else:
      meanings |= {key: f"{meanings[key]} {line.strip()}" for key in keys}
  return meanings


def with_entries(text: str, meanings: Mapping[str, str], raises: str) -> str:
  """A docstring whose sections "Args:" and "Raises:" are written anew.

  Args:
    text: The docstring, without indentation.
    meanings: Entries of "Args:", in order.
    raises: Entry of "Raises:", unless the docstring has its own.

  >>> print(with_entries("One line.", {"a": "A number."}, "KeyError: If not."))
  One line.
  <BLANKLINE>
  Args:
    a: A number.
  <BLANKLINE>
  Raises:
    KeyError: If not.
  """
  before, _, after = text.partition("Args:\n")
  section, _, rest = after.partition("\n\n")
  parts = [before.rstrip()]
  parts.append("Args:\n" + "\n".join(_wrapped(*m) for m in meanings.items()))
  if "Raises:" not in rest:
    parts.append("Raises:\n" + _wrapped(*raises.split(": ", 1)))
  if section and rest.strip():
    parts.append(rest.strip())
  return "\n\n".join(parts)


def _wrapped(key: str, meaning: str) -> str:
  return textwrap.fill(
    f"{key}: {meaning}",
    78,
    initial_indent="  ",
    subsequent_indent="    ",
    break_long_words=False,
    break_on_hyphens=False,
  )


def _depth(line: str) -> int:
  return len(line) - len(line.lstrip())
