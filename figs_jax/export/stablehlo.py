"""A function with its weights as StableHLO.

`write_program` writes the artifact of `jax.export`, for any batch size and
several platforms, followed by its SHA-256: a container of JAX's, which holds
StableHLO but is not a module that other compilers read. `write_module` writes
such a module, for one batch size and one platform. Both are programs: only run
files of people whose code you would run.
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
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from figs_jax.export.atomic_write import ExportError, line, replacing
from figs_jax.export.files import check_readable

PLATFORMS = ("cpu", "cuda", "tpu")
_MOST_BYTES = 2**31 - 1
_MARK = b"figs_jax SHA-256 "
_END = len(_MARK) + hashlib.sha256().digest_size
# Exceptions that flatbuffers and jax raise for damaged files.
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
  """Writes `fn` as a `jax.export` artifact, with the arrays it closes over.

  Before the file gets its name, it is run on the examples and must agree with
  `fn` up to 1e-5 of the largest value.

  Args:
    path: Path of the file.
    fn: Function from arrays to an array; axis 0 of each is the batch.
    examples: Example arguments with two samples or more.
    platforms: Platforms of the program: cpu, cuda, rocm, tpu. It is verified if
      the platform of this machine is among them.
    overwrite: Whether to replace an existing file.

  Raises:
    ExportError: If a platform is unknown or none is given, the program is
      larger than 2 GB or computes other values, or the path cannot be written.
    TypeError: If the function depends on the batch size (from jax).

  >>> import tempfile
  >>> weight = np.eye(3, dtype=np.float32)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write_program(f"{folder}/a.stablehlo", lambda x: x @ weight, [weight])
  ...   read_program(f"{folder}/a.stablehlo")(weight[:2]).shape
  (2, 3)
  """
  if not platforms:
    raise ExportError(f"Expected platforms among {PLATFORMS}, got none")
  for platform in platforms:
    _check_platform(platform)
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
    _check_values(path, read_program(part), jitted, examples, platforms)


def write_module(
  path: str | Path,
  fn: Callable[..., Any],
  examples: Sequence[np.ndarray],
  *,
  platform: str,
  overwrite: bool = False,
) -> None:
  """Writes `fn` as a plain StableHLO module, with the arrays it closes over.

  The file is a portable artifact: bytecode of StableHLO's versioned dialect, as
  `stablehlo.deserialize_portable_artifact` and compilers of StableHLO read it.
  Its function `main` maps arrays of the examples' shapes to the result. Before
  the file gets its name, it is deserialized, and must agree with `fn` as in
  `write_program`.

  Args:
    path: Path of the file.
    fn: Function from arrays to an array.
    examples: Example arguments, of the batch size that the module is for.
    platform: Platform of the module: cpu, cuda, rocm or tpu.
    overwrite: Whether to replace an existing file.

  Raises:
    ExportError: If the platform is unknown, the program computes other values,
      or the path cannot be written.

  >>> import tempfile
  >>> weight = np.eye(3, dtype=np.float32)
  >>> with tempfile.TemporaryDirectory() as folder, ir.Context() as context:
  ...   file = Path(folder, "a.mlir")
  ...   write_module(file, lambda x: x @ weight, [weight], platform="cpu")
  ...   data = file.read_bytes()
  ...   module = stablehlo.deserialize_portable_artifact(context, data)
  ...   print(module.body.operations[0].type)
  (tensor<3x3xf32>) -> tensor<3x3xf32>
  """
  _check_platform(platform)
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in examples]
  jitted = jax.jit(fn)
  program = jax.export.export(jitted, platforms=(platform,))(*shapes)
  data = program.mlir_module_serialized
  with replacing(path, overwrite=overwrite) as part:
    part.write_bytes(data)
    if part.read_bytes() != data:
      raise ExportError(f"{path}: not what was written; check the disk")
    with ir.Context() as context:
      stablehlo.deserialize_portable_artifact(context, data)
    _check_values(path, program.call, jitted, examples, (platform,))


def _check_platform(platform: str) -> None:
  if platform not in (*PLATFORMS, "rocm"):
    raise ExportError(f"Unknown platform {platform!r}. Known: {PLATFORMS}")


def _check_values(
  path: str | Path,
  program: Callable[..., Any],
  fn: Callable[..., Any],
  examples: Sequence[np.ndarray],
  platforms: Sequence[str],
) -> None:
  """Raises if a program for this machine does not compute what `fn` does."""
  here = jax.default_backend()
  if not {"gpu": {"cuda", "rocm"}}.get(here, {here}) & set(platforms):
    return
  want = np.asarray(fn(*examples), np.float32)
  got = np.asarray(program(*map(jnp.asarray, examples)), np.float32)
  most = np.max(np.abs(want), initial=1e-30)
  if not np.isfinite(want).all():
    raise ExportError(
      f"{path}: the function returns infinities or NaN; check its weights"
    )
  if not np.allclose(got, want, rtol=0, atol=1e-5 * most):
    raise ExportError(f"{path}: the program differs from the function")


def read_program(path: str | Path) -> Callable[..., Any]:
  """Reads the function of a file that `write_program` wrote.

  Args:
    path: Path of the file, which must be trusted (see the module).

  Returns:
    A function from arrays to an array, compiled on the first call.

  Raises:
    ExportError: If the file is missing, was not written by `write_program`, or
      has changed since.

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
    data = bytearray(path.read_bytes())  # up to 2 GB, as deserialize expects it
    end = bytes(data[-_END:])
    del data[-_END:]
    if not end.startswith(_MARK):
      raise ValueError("no SHA-256 at its end")
    if hashlib.sha256(data).digest() != end.removeprefix(_MARK):
      raise ValueError("its SHA-256 differs")
    return jax.export.deserialize(data).call
  except ImportError as error:
    raise _needs_flatbuffers(path) from error
  except _BROKEN as error:
    raise ExportError(
      f"{path}: not a whole program of write_program ({line(error)}); fetch it"
      " again"
    ) from error


def _needs_flatbuffers(path: str | Path) -> ExportError:
  return ExportError(
    f"{path}: jax.export needs flatbuffers: pip install 'figs_jax[stablehlo]'"
  )
