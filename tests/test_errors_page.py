"""docs/errors.md quotes lines that the code still has."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "errors.md").read_text()
LINES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def literals(path):
  """Every text of a file, with the parts of f-strings joined by …."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.JoinedStr):
      yield "".join(
        part.value if isinstance(part, ast.Constant) else "…"
        for part in node.values
      )
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.value


TEXTS = "\n".join(
  text
  for place in ("figs_jax", "launch")
  for path in (REPO / place).rglob("*.py")
  for text in literals(path)
)


def missing(line):
  """The parts of a quoted line, between its …, that no text has."""
  parts = [part.strip() for part in line.split("…")]
  return [part for part in parts if part and part not in TEXTS]


def test_the_page_quotes_lines_of_every_kind():
  assert len(LINES) > 40
  assert PAGE.count("\n## ") == 8
  assert missing("expected a unicorn, got …") == ["expected a unicorn, got"]


@pytest.mark.parametrize("line", LINES)
def test_a_quoted_line_is_in_the_code(line):
  assert missing(line) == []
