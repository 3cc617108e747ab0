"""A file that registers a recipe of one's own, run by name."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path


class RecipeFileError(ValueError):
  """The file is not there, or ends with an error; one line says where."""


def run(path: str | Path) -> None:
  """Runs a Python file, so that the recipes it registers are known.

  Args:
    path: of the file; running one again is no error.

  Raises:
    RecipeFileError: there is none, or it fails; the line is named.

  >>> run("mine.py")
  Traceback (most recent call last):
    ...
  figs_jax.cli.recipe_file.RecipeFileError: mine.py: there is no such file
  """
  if not Path(path).is_file():
    raise RecipeFileError(f"{path}: there is no such file")
  try:
    runpy.run_path(str(path))
  # Whatever is wrong, it is wrong in the user's file.
  except Exception as error:
    raise RecipeFileError(told(str(path), error)) from error


def told(path: str, error: Exception) -> str:
  """Which line of a file failed, and how.

  >>> try:
  ...   compile("a = = b", "mine.py", "exec")
  ... except SyntaxError as error:
  ...   print(told("mine.py", error))
  mine.py, line 1: SyntaxError: invalid syntax
  """
  if isinstance(error, SyntaxError) and error.filename == path:
    line, what = error.lineno, error.msg
  else:
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in frames[::-1] if f.filename == path), None)
    what = str(error)
  where = path if line is None else f"{path}, line {line}"
  return f"{where}: {type(error).__name__}: {what}"
