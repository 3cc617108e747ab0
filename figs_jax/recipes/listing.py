"""The recipes as text, for `--help`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import Counter
from typing import Any

from figs_jax.recipes import registry


def summary(name: str) -> str:
  """The first line of a recipe's docstring; "" where it has none.

  Raises:
    ValueError: no recipe has that name.

  >>> summary("ste")
  'Hard N:M masks from |w|, straight-through gradients, nothing else.'
  """
  text = inspect.getdoc(registry.builder_of(name)) or ""
  return text.partition("\n")[0]


def meanings(name: str) -> dict[str, str]:
  """What each option of a recipe means; "" where nothing says so.

  Its builder's docstring says it, and that of `create` for the options that
  every recipe has.

  Raises:
    ValueError: no recipe has that name.

  >>> meanings("one_shot")["grad_mode"], meanings("dense")["finetune"]
  ('`masked` or `ste`.', 'share of the steps at the end with strictly binary\
 masks.')
  """
  said = listed(inspect.getdoc(registry.create)) | _own(name)
  return {key: said.get(key, "") for key in registry.options(name)}


def _own(name: str) -> dict[str, str]:
  text = inspect.getdoc(registry.builder_of(name)) or ""
  if found := listed(text):
    return found
  other = re.search(r"Options as (?:in `(\w+)`|there)", text)
  if other is None:
    return {}
  return _own(other[1] or re.findall(r"`(\w+)`", text)[0])


def listed(text: str | None, heading: str = "Options:") -> dict[str, str]:
  """The lines "a, b: meaning" below a docstring's heading, name by name.

  Args:
    text: of a docstring; what goes on is indented deeper.
    heading: after which the lines stand.

  >>> listed("Options:\\n  a, b: one\\n    meaning.\\n  c: another.")
  {'a': 'one meaning.', 'b': 'one meaning.', 'c': 'another.'}
  """
  lines = (text or "").partition(heading)[2].splitlines()[1:]
  depth = min((_depth(line) for line in lines[:1]), default=0)
  found: dict[str, str] = {}
  keys: list[str] = []
  for line in lines:
    if not line.strip() or _depth(line) < depth:
      break
    head = re.match(r"\s*([a-z_]+(?:, [a-z_]+)*): (.*)", line)
    if head and _depth(line) == depth:
      keys = head[1].split(", ")
      found |= dict.fromkeys(keys, head[2])
    else:
      found |= {key: f"{found[key]} {line.strip()}" for key in keys}
  return found


def _depth(line: str) -> int:
  return len(line) - len(line.lstrip())


def catalogue(width: int = 80) -> str:
  """Every registered recipe: what it is, and its options with defaults.

  Options that all recipes have are listed once, and again where a recipe's
  default differs.

  Args:
    width: characters per line.

  >>> lines = catalogue().splitlines()
  >>> lines[lines.index("  figs") + 2].strip()
  "k=8, grad_mode='ste', nested=False"
  """
  known = {name: registry.options(name) for name in registry.names()}
  shared = _shared(list(known.values()))
  lines = ["recipes (--config=FILE:RECIPE, options as --config.recipe.NAME):"]
  lines += _block("every recipe", "", shared, width)
  for name, options in known.items():
    own = {
      key: default
      for key, default in options.items()
      if key not in shared or shared[key] != default
    }
    lines += _block(name, summary(name), own, width)
  return "\n".join(lines)


def _shared(known: list[dict[str, Any]]) -> dict[str, Any]:
  """Options that all recipes have, with the default that most give them."""
  if not known:
    return {}
  return {
    key: Counter(options[key] for options in known).most_common(1)[0][0]
    for key in known[0]
    if all(key in options for options in known)
  }


def _block(
  name: str, text: str, options: dict[str, Any], width: int
) -> list[str]:
  """A recipe's name, and indented what it is and its options."""
  listed = ", ".join(f"{key}={value!r}" for key, value in options.items())
  lines = [f"  {name}"]
  for row in filter(None, (text, listed)):
    lines += textwrap.wrap(
      row,
      width,
      initial_indent=" " * 4,
      subsequent_indent=" " * 6,
      break_long_words=False,
      break_on_hyphens=False,
    )
  return lines
