"""What a step expects of a batch, and one line for what is unexpected.

Shapes and dtypes are checked whenever a step is traced. Values are checked in
the batch for which `train_step` is traced, since those of later ones are not
known without waiting for them.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_FIRST: contextvars.ContextVar[Any] = contextvars.ContextVar(
  "_FIRST", default=None
)


@contextlib.contextmanager
def traced_for(batch: Any, loss: Callable[..., Any]) -> Iterator[None]:
  """Lets the losses of figs_jax check the values of a batch when traced.

  A loss of one's own may hand them other values under the same names, so
  nothing is checked for it.

  Args:
    batch: Batch of the step that is traced inside the context.
    loss: Loss of the step.

  >>> from figs_jax.train.losses import cross_entropy
  >>> with traced_for({"label": np.array([0, 7])}, cross_entropy):
  ...   try:
  ...     check_range("label", 3)
  ...   except ValueError as error:
  ...     print(error)
  batch['label']: expected integers from 0 to 2, got 7; correct the data, ...
  """
  module = getattr(loss, "__module__", None) or ""
  own = module.startswith("figs_jax.") and isinstance(batch, Mapping)
  token = _FIRST.set(batch if own else None)
  try:
    yield
  finally:
    _FIRST.reset(token)


def entries(batch: Any, *names: str) -> list[Any]:
  """The entries of a batch that a loss of figs_jax reads, checked.

  Args:
    batch: Dict of arrays with one leading axis, the examples.
    *names: Names of the entries.

  Raises:
    ValueError: If an entry is missing or a list, has another length than the
      others, holds images of bytes, or is known to have a value that is not
      finite.

  >>> batch = {"image": jnp.ones((2, 4)), "label": jnp.array([0, 1])}
  >>> [x.shape for x in entries(batch, "image", "label")]
  [(2, 4), (2,)]
  """
  if not isinstance(batch, Mapping) or any(x not in batch for x in names):
    got = type_name(batch)
    if isinstance(batch, Mapping):
      got = f"a dict with {', '.join(map(str, batch)) or 'none'}"
    raise ValueError(
      f"batch: expected a dict with {' and '.join(names)}, got {got}; rename"
      " the entries, or pass a loss of your own to TrainState.create"
    )
  values = [batch[name] for name in names]
  for name, value in zip(names, values):
    if isinstance(value, (list, tuple)):
      raise ValueError(
        f"batch[{name!r}]: expected an array, got {type_name(value)}; pass it"
        " as numpy.array(...)"
      )
  lengths = [jnp.shape(value)[:1] for value in values]
  if len(set(lengths)) > 1:
    each = (f"{name} of {n[0] if n else 1}" for name, n in zip(names, lengths))
    raise ValueError(
      f"batch: expected entries of one length, got {', '.join(each)}"
    )
  for name, value in zip(names, values):
    if name == "image" and jnp.result_type(value) == jnp.uint8:
      raise ValueError(
        "batch['image']: expected floats, got uint8, which would be trained on"
        " unscaled; pass image.astype('float32') / 255, or as the model expects"
      )
    known = _known(name)
    if known is not None and not np.isfinite(known).all():
      raise ValueError(
        f"batch[{name!r}]: expected finite values, got NaN or infinity; remove"
        " them from the data"
      )
  return values


def segments_name(field: str) -> str:
  """Name of the segments of a field in packed rows.

  >>> segments_name("inputs")
  'inputs_segments'
  """
  return f"{field}_segments"


def segments(batch: Any) -> tuple[Any, ...]:
  """The segments of packed rows; see `figs_jax.data.packing`.

  Args:
    batch: Dict of arrays.

  Returns:
    The segments of the inputs, and of the targets if they have their own, each
    int32 [rows, length]; an empty tuple if the rows are not packed.

  Raises:
    ValueError: If `entries` raises it.

  >>> ids, rows = np.array([[5, 1, 6, 0]]), np.array([[1, 1, 2, 0]])
  >>> segments({"inputs": ids, "inputs_segments": rows})
  (array([[1, 1, 2, 0]]),)
  >>> segments({"inputs": ids})
  ()
  """
  names = map(segments_name, ("inputs", "targets"))
  return tuple(entries(batch, *(name for name in names if name in batch)))


def check_range(name: str, classes: int, ignored: int | None = None) -> None:
  """Raises ValueError if an entry is known to have an index out of range.

  The values are known inside `traced_for` alone, whose batch is read.

  Args:
    name: Name of the entry.
    classes: Number of classes, or of the vocabulary.
    ignored: A further index that is legal.
  """
  known = _known(name)
  if known is None:
    return
  wrong = known[((known < 0) | (known >= classes)) & (known != ignored)]
  if wrong.size:
    also = "" if ignored is None else f", or {ignored} for those to ignore"
    raise ValueError(
      f"batch[{name!r}]: expected integers from 0 to {classes - 1}{also}, got"
      f" {wrong[0]}; correct the data, or give the model more classes (vocab="
      " of T5)"
    )


def check_arrays(batch: Any) -> None:
  """Raises ValueError at an entry of a batch that JAX cannot read, as text.

  >>> check_arrays({"label": np.array([0, 1]), "scale": np.float32(2)})
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
    if isinstance(leaf, (jax.Array, int, float, complex)):
      continue
    known = isinstance(leaf, (np.ndarray, np.generic))
    if not known or leaf.dtype.kind in "OSUMm":
      fix = "turn text into integers, such as indices of classes"
      if not isinstance(leaf, (str, bytes, np.ndarray)):
        fix = "pass it as numpy.asarray(...)"
      raise ValueError(
        f"batch{jax.tree_util.keystr(path)}: expected an array of numbers, got"
        f" {type_name(leaf)}; {fix}"
      )


def _known(name: str) -> np.ndarray | None:
  """An entry of the batch that a step is traced for, if it has one."""
  value = (_FIRST.get() or {}).get(name)
  if value is None or isinstance(value, jax.core.Tracer):
    return None
  if isinstance(value, jax.Array) and not value.is_fully_addressable:
    return None  # other processes hold parts of it
  return np.asarray(value)


def type_name(value: Any) -> str:
  """The type of a value in an error message.

  >>> type_name(np.ones((8, 4))), type_name([1])
  ('float64[8, 4]', 'a list')
  """
  if hasattr(value, "dtype") and hasattr(value, "shape"):
    return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
  return f"a {type(value).__name__}"
