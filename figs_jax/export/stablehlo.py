"""A function with its weights as StableHLO, for any number of samples.

The file is what `jax.export` serializes, which reads it too, and after that a
SHA-256 of it. It is a program: run only those of people whom you would let run
code on your machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from figs_jax.export.atomic_write import ExportError, line, replacing
from figs_jax.export.files import check_readable

PLATFORMS = ("cpu", "cuda", "tpu")
_MOST_BYTES = 2**31 - 1
_MARK = b"figs_jax SHA-256 "
_END = len(_MARK) + hashlib.sha256().digest_size
# Whatever a damaged file makes flatbuffers and jax raise.
_BROKEN = (
  ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError,
  AssertionError, OSError, StopIteration, struct.error,
)  # fmt: skip


def write_program(
  path: str | Path,
  fn: Callable[..., Any],
  examples: Sequence[np.ndarray],
  *,
  platforms: Sequence[str] = PLATFORMS,
  overwrite: bool = False,
) -> None:
  """Writes `fn` as StableHLO, what it closes over inside.

  Before the file has its name, it is run on the examples, and has to give what
  `fn` gives to 1e-5 of the largest value.

  Args:
    path: of the file.
    fn: arrays -> an array; axis 0 of all of them is the batch.
    examples: arguments, two samples or more.
    platforms: where the program may run: cpu, cuda, rocm, tpu. Verified on
      this machine's own, if it is among them, and else not run.
    overwrite: replaces a file of that name.

  Raises:
    ExportError: an unknown platform or none, a program beyond 2 GB or that
      computes something else, or a place that cannot be written.
    TypeError: from jax: a function that needs to know its batch.

  >>> import tempfile
  >>> weight = np.eye(3, dtype=np.float32)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write_program(f"{folder}/a.stablehlo", lambda x: x @ weight, [weight])
  ...   read_program(f"{folder}/a.stablehlo")(weight[:2]).shape
  (2, 3)
  """
  if not platforms:
    raise ExportError(f"platforms: none given; give some of {PLATFORMS}")
  for platform in platforms:
    if platform not in (*PLATFORMS, "rocm"):
      raise ExportError(f"platform {platform!r}: give some of {PLATFORMS}")
  if len(set(platforms)) < len(platforms):
    raise ExportError(f"platforms {', '.join(platforms)}: name each once")
  (batch,) = jax.export.symbolic_shape("batch")
  shapes = [
    jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in examples
  ]
  jitted = jax.jit(fn)
  try:
    program = jax.export.export(jitted, platforms=tuple(platforms))(*shapes)
    data = bytes(program.serialize())
  except ImportError as error:
    raise _needs_flatbuffers(path) from error
  if len(data) > _MOST_BYTES:
    raise ExportError(
      f"{path}: {len(data)} bytes of program, the format holds {_MOST_BYTES};"
      " cast the weights (--dtype) or write another format"
    )
  with replacing(path, overwrite=overwrite) as part:
    with part.open("wb") as file:
      file.writelines((data, _MARK, hashlib.sha256(data).digest()))
    again = read_program(part)
    here = jax.default_backend()
    if not {"gpu": {"cuda", "rocm"}}.get(here, {here}) & set(platforms):
      return
    want = np.asarray(jitted(*examples), np.float32)
    got = np.asarray(again(*map(jnp.asarray, examples)), np.float32)
    most = np.max(np.abs(want), initial=1e-30)
    if not np.isfinite(want).all():
      raise ExportError(
        f"{path}: the function gives no finite numbers; look at its weights"
      )
    if not np.allclose(got, want, rtol=0, atol=1e-5 * most):
      raise ExportError(f"{path}: the program does not compute what it should")


def read_program(path: str | Path) -> Callable[..., Any]:
  """The function of a file that `write_program` wrote; see the module.

  Args:
    path: of the file.

  Returns:
    Arrays -> an array, compiled on the first call.

  Raises:
    ExportError: no such file, none that `write_program` wrote, or one that has
      changed since.

  >>> import tempfile
  >>> x = np.ones((2, 3), np.float32)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = f"{folder}/a.stablehlo"
  ...   write_program(file, lambda x: 2 * x, [x], platforms=["cpu"])
  ...   float(read_program(file)(x)[0, 0])
  2.0
  """
  path = Path(path)
  check_readable(path)
  try:
    data = bytearray(path.read_bytes())  # up to 2 GB, as deserialize wants it
    end = bytes(data[-_END:])
    del data[-_END:]
    if not end.startswith(_MARK):
      raise ValueError("no SHA-256 at its end")
    if hashlib.sha256(data).digest() != end.removeprefix(_MARK):
      raise ValueError("its SHA-256 is another")
    return jax.export.deserialize(data).call
  except ImportError as error:
    raise _needs_flatbuffers(path) from error
  except _BROKEN as error:
    raise ExportError(
      f"{path}: no whole program of write_program ({line(error)}); fetch it"
      " again"
    ) from error


def _needs_flatbuffers(path: str | Path) -> ExportError:
  return ExportError(
    f"{path}: jax.export needs flatbuffers; pip install figs_jax[stablehlo]"
  )
