"""The English of the package: entries that stand alone, and plain words.

Every docstring entry names its argument by a noun phrase, every `Raises:` entry
says when ("If ..."), and words that a reader of optax or diffrax would stumble
over do not return.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
  path
  for place in ("figs_jax", "launch", "configs", "benchmarks", "docs")
  for path in (ROOT / place).rglob("*.py")
)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# `name: of ...`, `name: as in ...`: entries that dangle.
ENTRY = re.compile(
  r"^ *\**[a-z_]\w*(?:, \**[a-z_]\w*)*:"
  r" (?:of|as|that|whose|where|those|what|which|how|who)\b.*",
  re.MULTILINE,
)
RAISES = re.compile(r"^ +\w*Error: (?!If |Always|When ).*", re.MULTILINE)
WORDS = re.compile(r"\b(?:is no|told|said|strange|none of our)\b", re.I)
NAMES = {"found", "said", "strange", "told"}


def docstrings(tree: ast.AST) -> Iterator[str]:
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      yield ast.get_docstring(node, clean=False) or ""


def names(tree: ast.AST) -> Iterator[str]:
  """Variables, arguments, functions and classes that a file defines."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      yield node.id
    elif isinstance(node, ast.arg):
      yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      yield node.name


def flaws(text: str) -> list[str]:
  """Everything about a Python file's English that the house refuses."""
  tree = ast.parse(text)
  entries = [
    match.group().strip()
    for doc in docstrings(tree)
    for pattern in (ENTRY, RAISES)
    for match in pattern.finditer(doc)
  ]
  strings = [
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  ]
  comments = re.findall(r"^ *(#.*)", text, re.MULTILINE)
  words = [
    passage.strip() for passage in strings + comments if WORDS.search(passage)
  ]
  return entries + words + sorted(NAMES & set(names(tree)))


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_speaks_plain_english(path):
  assert flaws(path.read_text()) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_pages_speak_plain_english(path):
  lines = path.read_text().splitlines()
  assert [line for line in lines if WORDS.search(line)] == []


@pytest.mark.parametrize(
  "text",
  [
    '"""A.\n\n  Args:\n    seed: of the weights.\n  """',
    '"""A.\n\n  Args:\n    a, b: as in `load`.\n  """',
    '"""A.\n\n  Raises:\n    ValueError: no such file.\n  """',
    "raise ValueError('8 is no pattern')",
    "x = 1\n# as we said",
    "found = 1",
    "def f(told):\n  pass",
  ],
)
def test_flaws_are_seen(text):
  assert flaws(text)


def test_good_entries_pass():
  assert not flaws(
    '"""Trains.\n\n  Args:\n    seed: Seed for initialization.\n\n  Raises:\n'
    '    ValueError: If the seed is negative.\n  """'
  )
