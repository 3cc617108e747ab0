"""Flags to one call: what every program in launch/ shares.

A mistake of the user's ends in one line on standard error and exit code 2; a
mistake of ours keeps its traceback.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import logging.handlers
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import absl.logging
from absl import app, flags

from figs_jax.core.rules import nearest
from figs_jax.export import atomic_write

_EXAMPLE = "configs/digits_vit.py:figs"
_HELP = ("--help", "-help", "-h")
flags.disclaim_key_flags()  # a flag defined here belongs to the program


class _Held(logging.handlers.MemoryHandler):
  """Holds back what recipes remark until work begins, or the program ends.

  A recipe remarks on a pattern while a run is still being checked, and a
  mistake that is then found is to be the only line. What anything else says,
  as that training begins, brings the remarks with it.
  """

  def shouldFlush(self, record: logging.LogRecord) -> bool:
    return not record.name.startswith("figs_jax.recipes")


def fail(message: str, code: int = 2) -> NoReturn:
  """One line on standard error, then exit."""
  for handler in logging.getLogger("figs_jax").handlers:
    if isinstance(handler, _Held):
      handler.buffer.clear()
  name = sys.argv[0].rsplit("/", 1)[-1]
  words = atomic_write.printable(" ".join(str(message).split()))
  print(f"{name}: {words}", file=sys.stderr)
  sys.exit(code)


def run(
  main: Callable[..., Any],
  more_help: Callable[[], str] | None = None,
  *,
  words: bool = False,
) -> None:
  """Parses the flags and runs `main()`; its ValueErrors are the user's.

  With `words`, it is `main(words)`, what the command line has beside flags, as
  in `--workdir runs/a runs/b`; else there may be none.

  Programs call only code whose ValueErrors speak to the user (building,
  restoring); the training loop raises its own types for everything else.

  `--help` prints the program's docstring, its flags and what `more_help` gives,
  and exits 0. The other flags are read first, wherever they stand, so that what
  a configuration file registers is listed too.
  """
  parser = functools.partial(_parse, more_help=more_help, words=words)

  def begin(argv: list[str]) -> None:
    try:
      main(*([argv[1:]] if words else []))
    except KeyboardInterrupt:
      fail("interrupted", code=130)

  app.run(begin, flags_parser=parser)


def quiet() -> None:
  """Our own messages on standard error; the libraries' only from ERROR on."""
  absl.logging.set_verbosity(absl.logging.ERROR)
  logger = logging.getLogger("figs_jax")
  if not logger.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(_Held(capacity=0, target=handler))
    logger.setLevel(logging.INFO)
    logger.propagate = False
  show = sys.excepthook

  def hook(kind, error, trace):
    from figs_jax.train.distributed import is_stray

    if not is_stray(error):
      show(kind, error, trace)

  sys.excepthook = hook


def define_user_file(noun: str) -> flags.FlagHolder[str | None]:
  """Defines `--{noun}_file`: a Python file that registers a `noun`."""
  article = "an" if noun[0] in "aeiou" else "a"
  return flags.DEFINE_string(
    f"{noun}_file",
    None,
    f"Python file to run first, which registers {article} {noun} of your own.",
  )


def run_user_file(flag: flags.FlagHolder[str | None] | flags.Flag) -> None:
  """Runs the Python file that a flag names, if it names one.

  What the file registers (a recipe, an engine) is known from then on. If the
  file is missing or raises, the program ends with the line that failed.
  """
  path = flag.value
  if not path:
    return
  if not os.path.isfile(path):
    fail(f"--{flag.name} {path}: there is no such file")
  try:
    runpy.run_path(path)
  # Whatever is wrong, it is wrong in the user's file.
  except Exception as error:
    fail(f"--{flag.name} {_located(path, error)}")


def config_of(flag: flags.FlagHolder) -> Any:
  """The configuration of a config-file flag, or one line and exit code 2."""
  try:
    config = flag.value
    if config is None:
      fail(f"--{flag.name} is missing; try --{flag.name}={_EXAMPLE}")
    config.to_dict()
  except (OSError, AttributeError) as error:
    first = str(error).strip().splitlines()[-1].strip()
    fail(f"--{flag.name}: no file with get_config(); {first}; try {_EXAMPLE}")
  return config


def say(*lines: str) -> None:
  """Lines to standard output, as `emit` writes."""
  emit("".join(f"{line}\n" for line in lines).encode())


def emit(data: bytes) -> None:
  """Data to standard output; where it cannot be written, the program ends.

  Without a word where its reader has left.
  """
  left = memoryview(data)
  try:
    while left:
      # A part only, where Python runs unbuffered.
      left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.flush()
  except OSError as error:
    # Nothing is left to flush when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
      sys.exit(1)
    fail(f"standard output: {error.strerror}; send it elsewhere", code=1)


def check_output(path: str, *, overwrite: bool, flag: str = "--output") -> None:
  """Fails before any work where `save` would fail after it."""
  try:
    atomic_write.check_free(path, overwrite=overwrite)
  except atomic_write.ExportError as error:
    fail(f"{flag} {error}")


def save(
  path: str, data: bytes, *, overwrite: bool, flag: str = "--output"
) -> None:
  """Writes a whole file or none; what it replaces stays until then.

  Where `path` is a link, what it leads to is written.
  """
  try:
    with atomic_write.replacing(path, overwrite=overwrite) as part:
      part.write_bytes(data)
  except atomic_write.ExportError as error:
    fail(f"{flag} {error}")


def _parse(
  argv: list[str],
  more_help: Callable[[], str] | None = None,
  words: bool = False,
) -> list[str]:
  wanted = any(word in _HELP for word in argv[1:])
  argv = [word for word in argv if word not in _HELP]
  if "config" in flags.FLAGS:
    # Its get_config looks the recipe up.
    run_user_file(_early(argv, "recipe_file"))
  rest = _read(argv)
  if wanted:
    with contextlib.redirect_stdout(io.StringIO()) as text:
      app.usage(shorthelp=True, writeto_stdout=True)
    say(text.getvalue(), *([] if more_help is None else [more_help()]))
    sys.exit(0)
  if len(rest) > 1 and not words:
    fail(f"unexpected argument {rest[1]!r}; flags start with --")
  return rest


def _early(argv: list[str], name: str) -> flags.Flag:
  """A flag with its value, before all flags are read."""
  alone = flags.FlagValues()
  flags.DEFINE_string(name, None, "", flag_values=alone)
  alone.set_gnu_getopt(True)  # wherever the flag stands
  with contextlib.suppress(flags.Error):  # reported when all flags are read
    alone(argv, known_only=True)
  return alone[name]


def _read(argv: list[str]) -> list[str]:
  """Sets the flags; returns what is none. A mistake ends the program."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    fail(f"{_last_line(error)}; see --help")
  except (AttributeError, KeyError) as error:
    fail(_unknown_field(argv, error))
  except (ValueError, OSError) as error:
    fail(f"the configuration cannot be read: {error}")
  # Only the file of --config has code that runs here.
  except Exception as error:
    path = (_early(argv, "config").value or "").partition(":")[0]
    if not path:
      raise
    fail(f"--config {_located(path, error)}")


def _located(path: str, error: Exception) -> str:
  """The line of a file that raised an error, and the error.

  >>> try:
  ...   compile("a = = b", "mine.py", "exec")
  ... except SyntaxError as error:
  ...   print(_located("mine.py", error))
  mine.py, line 1: SyntaxError: invalid syntax
  """
  if isinstance(error, SyntaxError) and error.filename == path:
    line, reason = error.lineno, error.msg
  else:
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in frames[::-1] if f.filename == path), None)
    reason = str(error)
  where = path if line is None else f"{path}, line {line}"
  return f"{where}: {type(error).__name__}: {reason}"


def _last_line(error: Exception) -> str:
  """What went wrong, without the traceback that a flag's error may hold."""
  text = str(error)
  if "Traceback" not in text:
    return text
  flag = text.partition(": Error")[0]
  reason = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1].strip())
  return f"{flag}: {reason}"


def _unknown_field(argv: list[str], error: Exception) -> str:
  """Which --config.FIELD does not exist, and the nearest that does."""
  known = _known_fields()
  given = re.findall(r"^--?(config\.[\w.]+)", "\n".join(argv), re.MULTILINE)
  for name in given:
    field = name.removeprefix("config.")
    if field not in known:
      return f"--{name}: no such field; {nearest(field, known)}"
  return f"the configuration refuses a field: {error}"


def _known_fields() -> list[str]:
  from figs_jax import models
  from figs_jax.train.config import default_config

  fields: dict[str, None] = {}

  def walk(tree, prefix):
    for key, value in tree.items():
      if hasattr(value, "items"):
        walk(value, f"{prefix}{key}.")
      else:
        fields[prefix + key] = None

  try:
    config = flags.FLAGS["config"].value
  except KeyError:
    config = None
  # While a flag is read, the file's own configuration is not to be had.
  several = [default_config(family=family) for family in models.names()]
  for one in several if config is None else [config]:
    walk(one, "")
  return list(fields)
