"""Command line handling that the programs in launch/ share.

An error of the user ends in one line on standard error and exit code 2; a bug
keeps its traceback.
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

from figs_jax.cli import flag_errors
from figs_jax.core.legal import Legal, Unchecked
from figs_jax.export import atomic_write

_EXAMPLE = "configs/digits_vit.py:figs"
_HELP = ("--help", "-help", "-h")
flags.disclaim_key_flags()  # a flag defined here belongs to the program


class _DelayedRemarks(logging.handlers.MemoryHandler):
  """Delays the log records of recipes until another logger has a record.

  A recipe remarks on a pattern while a run is still being checked. If the check
  then fails, its error is the only line.
  """

  def shouldFlush(self, record: logging.LogRecord) -> bool:
    return not record.name.startswith("figs_jax.recipes")


def fail(message: str, code: int = 2) -> NoReturn:
  """Prints one line to standard error and exits.

  Args:
    message: What is wrong and how to mend it.
    code: Exit code.

  >>> fail("--workdir runs/a: no run here")
  Traceback (most recent call last):
    ...
  SystemExit: 2
  """
  for handler in logging.getLogger("figs_jax").handlers:
    if isinstance(handler, _DelayedRemarks):
      handler.buffer.clear()
  name = sys.argv[0].rsplit("/", 1)[-1]
  line = atomic_write.printable(" ".join(str(message).split()))
  print(f"{name}: {line}", file=sys.stderr)
  sys.exit(code)


def run(
  main: Callable[..., Any],
  more_help: Callable[[], str] | None = None,
  *,
  words: bool = False,
) -> None:
  """Parses the flags and runs the program.

  `--help` prints the docstring of the program, its flags and `more_help()`. The
  other flags are parsed first, so that help lists the recipes that files
  register.

  Args:
    main: The program. Takes the list of words if `words`, else nothing.
    more_help: Returns text to print after the flags.
    words: Whether the command line may have words beside flags, as in
      `--workdir runs/a runs/b`.
  """
  parser = functools.partial(_parse, more_help=more_help, words=words)

  def begin(argv: list[str]) -> None:
    try:
      main(*([argv[1:]] if words else []))
    except KeyboardInterrupt:
      fail("interrupted", code=130)

  app.run(begin, flags_parser=parser)


def quiet() -> None:
  """Logs figs_jax to standard error, and other libraries from ERROR on."""
  absl.logging.set_verbosity(absl.logging.ERROR)
  logger = logging.getLogger("figs_jax")
  if not logger.handlers:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(_DelayedRemarks(capacity=0, target=handler))
    logger.setLevel(logging.INFO)
    logger.propagate = False
  _hide_strays()


def _hide_strays() -> None:
  """Keeps Python from showing what Orbax's threads leave behind."""
  show, show_unraisable = sys.excepthook, sys.unraisablehook

  def hook(kind, error, trace):
    from figs_jax.train.distributed import is_stray

    if not is_stray(error):
      show(kind, error, trace)

  def unraisable(args):
    from figs_jax.train.distributed import is_stray

    if not is_stray(args.exc_value):
      show_unraisable(args)

  sys.excepthook, sys.unraisablehook = hook, unraisable


def define_user_file(noun: str) -> flags.FlagHolder[str | None]:
  """Defines `--{noun}_file`: a Python file that registers a `noun`.

  Args:
    noun: What the file registers, "recipe" or "engine".

  >>> flag = define_user_file("model")
  >>> flag.name
  'model_file'
  >>> del flags.FLAGS.model_file
  """
  article = "an" if noun[0] in "aeiou" else "a"
  return flags.DEFINE_string(
    f"{noun}_file",
    None,
    f"Python file to run first, which registers {article} {noun} of your own.",
  )


def run_user_file(flag: flags.FlagHolder[str | None] | flags.Flag) -> None:
  """Runs the Python file that a flag names, if it names one.

  Recipes or engines that the file registers are known afterwards. If the file
  is missing or raises, the program fails and names the line.

  Args:
    flag: Flag from `define_user_file`.

  >>> values = flags.FlagValues()
  >>> _ = flags.DEFINE_string("recipe_file", None, "", flag_values=values)
  >>> run_user_file(values["recipe_file"])
  >>> values["recipe_file"].value = "missing.py"
  >>> run_user_file(values["recipe_file"])
  Traceback (most recent call last):
    ...
  SystemExit: 2
  """
  if flag.value:
    _executed(flag.name, flag.value)


def _executed(name: str, path: str) -> dict[str, Any]:
  """The names of a Python file that a flag names, after running it."""
  if not os.path.isfile(path):
    fail(f"--{name} {path}: no such file")
  try:
    return runpy.run_path(path)
  # Whatever it raises is an error of the user's file.
  except Exception as error:
    fail(f"--{name} {_located(path, error)}")


def define_model_file() -> flags.FlagHolder[list[str]]:
  """Defines `--model_file`, which may be repeated: FILE:CLASS.

  >>> flag = define_model_file()
  >>> flag.name
  'model_file'
  >>> del flags.FLAGS.model_file
  """
  return flags.DEFINE_multi_string(
    "model_file",
    [],
    "Python file and class of a model of your own, as in mine.py:Net. It is"
    " never taken from a run, so give it again wherever the run is read.",
  )


def run_model_files(flag: flags.FlagHolder | flags.Flag) -> None:
  """Registers the model classes that a flag names, if it names any.

  If a file is missing or raises, or a class is missing or refused, the program
  fails and says why.

  Args:
    flag: Flag from `define_model_file`.

  >>> values = flags.FlagValues()
  >>> flag = flags.DEFINE_multi_string("model_file", [], "", flag_values=values)
  >>> run_model_files(values["model_file"])
  >>> values["model_file"].value = ["missing.py:Net"]
  >>> run_model_files(values["model_file"])
  Traceback (most recent call last):
    ...
  SystemExit: 2
  """
  for each in flag.value or ():
    path, colon, name = each.rpartition(":")
    path = path if colon else name
    content = _executed(flag.name, path)
    # Only now, since Flax takes a while.
    from flax import nnx

    from figs_jax import models
    from figs_jax.core.rules import nearest

    own = [
      key
      for key, value in content.items()
      if isinstance(value, type)
      and issubclass(value, nnx.Module)
      and value.__module__ == content["__name__"]
    ]
    if not colon:
      fail(
        f"--{flag.name} {each}: expected FILE:CLASS, got no class;"
        f" {nearest('', own)}"
      )
    if name not in content:
      fail(f"--{flag.name} {each}: no class {name}; {nearest(name, own)}")
    try:
      models.register(content[name], f"{os.path.abspath(path)}:{name}")
    except ValueError as error:
      fail(f"--{flag.name} {each}: {error}")


def config_of(flag: flags.FlagHolder, example: str = _EXAMPLE) -> Any:
  """The configuration of a config-file flag; fails if there is none.

  Args:
    flag: Flag of `ml_collections.config_flags`.
    example: Value of the flag that the error suggests.

  >>> from ml_collections import ConfigDict, config_flags
  >>> values = flags.FlagValues()
  >>> flag = config_flags.DEFINE_config_dict(
  ...   "config", ConfigDict({"seed": 0}), flag_values=values
  ... )
  >>> _ = values(["train.py"])
  >>> config_of(flag).seed
  0
  """
  try:
    config = flag.value
    if config is None:
      fail(f"--{flag.name} is missing; try --{flag.name}={example}")
    config.to_dict()
  except (OSError, AttributeError) as error:
    first = str(error).strip().splitlines()[-1].strip()
    fail(f"--{flag.name}: no file with get_config(); {first}; try {example}")
  return config


def say(*lines: str) -> None:
  """Writes lines to standard output.

  Args:
    *lines: Lines without their line ends.

  >>> out = io.TextIOWrapper(io.BytesIO())
  >>> with contextlib.redirect_stdout(out):
  ...   say("dense", "figs")
  >>> out.buffer.getvalue()
  b'dense\\nfigs\\n'
  """
  emit("".join(f"{line}\n" for line in lines).encode())


def emit(data: bytes) -> None:
  """Writes data to standard output; exits silently if its reader has closed.

  Args:
    data: Bytes to write, such as those of a PNG.

  >>> out = io.TextIOWrapper(io.BytesIO())
  >>> with contextlib.redirect_stdout(out):
  ...   emit(b"<svg/>")
  >>> out.buffer.getvalue()
  b'<svg/>'
  """
  left = memoryview(data)
  try:
    while left:
      # Unbuffered output may be written in parts.
      left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.flush()
  except OSError as error:
    # The interpreter flushes standard output once more when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
      sys.exit(1)
    fail(f"standard output: {error.strerror}; send it elsewhere", code=1)


def check_output(path: str, *, overwrite: bool, flag: str = "out") -> None:
  """Fails early if `write_output` would fail for the path of a flag.

  Args:
    path: Path of the file.
    overwrite: Whether an existing file may be replaced.
    flag: Name of the flag.

  >>> check_output("no/such/folder/plot.png", overwrite=False)
  Traceback (most recent call last):
    ...
  SystemExit: 2
  """
  try:
    atomic_write.check_free(path, overwrite=overwrite)
  except atomic_write.ExportError as error:
    fail(f"--{flag} {error}")


def write_output(
  path: str, data: bytes, *, overwrite: bool, flag: str = "out"
) -> None:
  """Writes the file of a flag atomically, or the target of a symbolic link.

  Args:
    path: Path of the file.
    data: Content of the file.
    overwrite: Whether to replace an existing file instead of failing.
    flag: Name of the flag.

  >>> import pathlib, tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, "plot.svg")
  ...   write_output(str(path), b"<svg/>", overwrite=False)
  ...   path.read_bytes()
  b'<svg/>'
  """
  try:
    with atomic_write.replacing(path, overwrite=overwrite) as part:
      part.write_bytes(data)
  except atomic_write.ExportError as error:
    fail(f"--{flag} {error}")


def unexpected(word: str, flag: str) -> str:
  """The message for a word among the flags.

  Args:
    word: The word.
    flag: Flag that may have been meant, if the program has it.

  >>> unexpected("runs/a", "no_such_flag")
  "Unexpected argument 'runs/a'; flags start with --"
  """
  meant = f", as in --{flag}={word}" if flag in flags.FLAGS else ""
  return f"Unexpected argument {word!r}; flags start with --{meant}"


def _parse(
  argv: list[str],
  more_help: Callable[[], str] | None = None,
  words: bool = False,
) -> list[str]:
  asks_for_help = any(word in _HELP for word in argv[1:])
  argv = [word for word in argv if word not in _HELP]
  if "config" in flags.FLAGS:
    run_own_files(argv)  # the configuration looks both up
  rest = _read(argv)
  if asks_for_help:
    with contextlib.redirect_stdout(io.StringIO()) as text:
      app.usage(shorthelp=True, writeto_stdout=True)
    say(text.getvalue(), *([] if more_help is None else [more_help()]))
    sys.exit(0)
  if len(rest) > 1 and not words:
    fail(unexpected(rest[1], "workdir"))
  return rest


def run_own_files(argv: list[str]) -> None:
  """Runs the files of `--recipe_file` and `--model_file` among some words.

  Args:
    argv: Words of a command line, the name of the program first.

  >>> run_own_files(["train.py", "--recipe_file=missing.py"])
  Traceback (most recent call last):
    ...
  SystemExit: 2
  """
  run_user_file(_early(argv, "recipe_file"))
  run_model_files(_early(argv, "model_file", flags.DEFINE_multi_string))


def _early(
  argv: list[str], name: str, define: Callable[..., Any] = flags.DEFINE_string
) -> flags.Flag:
  """A flag with its value, before all flags are read."""
  alone = flags.FlagValues()
  define(name, None, "", flag_values=alone)
  alone.set_gnu_getopt(True)  # wherever the flag stands
  with contextlib.suppress(flags.Error):  # reported when all flags are read
    alone(argv, known_only=True)
  return alone[name]


def _read(argv: list[str]) -> list[str]:
  """Sets the flags and returns all other words; fails on a wrong flag."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    fail(flag_errors.unread(error, _known_fields(argv)))
  except (AttributeError, KeyError) as error:
    fail(_unknown_field(argv, error))
  except (ValueError, OSError) as error:
    reason = str(error).strip().splitlines()[-1].strip()
    fail(f"--config cannot be read: {reason}; try --config={_EXAMPLE}")
  # Only the file of --config can raise anything else.
  except Exception as error:
    path = (_early(argv, "config").value or "").partition(":")[0]
    if not path:
      raise
    if not path.endswith(".py"):
      fail(f"--config {path}: expected a Python file, such as {_EXAMPLE}")
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


def _unknown_field(argv: list[str], error: Exception) -> str:
  """Names the --config.FIELD that does not exist, and the nearest that does."""
  known = _known_fields(argv)
  given = re.findall(r"^--?config\.([\w.]+)", "\n".join(argv), re.MULTILINE)
  for field in given:
    if field not in known:
      return flag_errors.unknown_field(field, known)
  return f"The configuration refuses a field: {error}"


def _known_fields(argv: list[str]) -> dict[str, Legal]:
  """Legal values of the fields of --config by name; {} without the flag."""
  from figs_jax import models
  from figs_jax.train import schema

  if "config" not in flags.FLAGS:
    return {}
  known: dict[str, Legal] = {}
  for family in models.names():
    known |= schema.legal_values(family, "figs")
  path, _, arg = (_early(argv, "config").value or "").partition(":")
  if not path:
    return known
  # Read once more, since the flag has no value while it is parsed.
  try:
    make = runpy.run_path(path)["get_config"]
    config = make(arg) if arg else make()
  except Exception as error:
    fail(f"--config {_located(path, error)}")
  fields = schema.flat(config.to_dict())
  return {x: legal for x, legal in known.items() if x in fields} | {
    x: Unchecked("another value") for x in fields if x not in known
  }
