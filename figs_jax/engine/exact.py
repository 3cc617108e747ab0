"""Integer formulas evaluated exactly in int64, whatever the process runs in.

An 8 x 8 array takes 4e12 cycles on a 64k cube: int32 wraps and float32 keeps 24
bits. So formulas run under an `enable_x64` scoped to the call, and a result
that would not fit int64 is refused before anything can wrap.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INT64_MAX = 2**63 - 1
# An estimate in float64 below this proves that the integer fits.
_SURE = 2.0**60


def array_dataclass(*static: str) -> Callable[[type], type]:
  """Registers a dataclass as a pytree whose `static` fields are metadata.

  Unflattening skips `__init__`: a JAX transform may put anything in a leaf, so
  only what a caller constructs is validated.
  """

  def register(cls: type) -> type:
    data = [f.name for f in dataclasses.fields(cls) if f.name not in static]

    def flatten(obj):
      pairs = [
        (jax.tree_util.GetAttrKey(name), getattr(obj, name)) for name in data
      ]
      return pairs, tuple(getattr(obj, name) for name in static)

    def unflatten(metadata, children):
      obj = object.__new__(cls)
      for name, value in (*zip(static, metadata), *zip(data, children)):
        object.__setattr__(obj, name, value)
      return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls

  return register


def is_traced(*values: Any) -> bool:
  """Whether any value has no concrete numbers yet (jit, vmap)."""
  return any(isinstance(value, jax.core.Tracer) for value in values)


def ceil_div(a: Any, b: Any) -> Any:
  """ceil(a / b) in whichever numbers a and b are."""
  return -(-a // b)


def smaller(a: Any, b: Any) -> Any:
  """The elementwise minimum in whichever numbers a and b are."""
  return _numbers(a, b).minimum(a, b)


def larger(a: Any, b: Any) -> Any:
  """The elementwise maximum in whichever numbers a and b are."""
  return _numbers(a, b).maximum(a, b)


def _numbers(*values: Any) -> Any:
  return jnp if any(isinstance(x, jax.Array) for x in values) else np


def exact(
  formula: Callable[..., dict[str, Any]],
  limits: Mapping[str, tuple[int, int]] | None = None,
  least: int = 1,
) -> Callable[..., dict[str, Any]]:
  """Lifts a formula over integers to exact, broadcasting int64.

  The formula maps positional sizes and keyword-only static options to named
  results. It uses operators, `ceil_div`, `smaller` and `larger` only, so that
  the same lines run in float64 (does it fit?), in Python's integers (near the
  limit) and in int64 under jit.

  Concrete sizes give NumPy arrays, because operations on an int64 `jax.Array`
  outside `enable_x64` truncate to int32. Traced sizes give int64 tracers;
  whether they fit cannot be checked.

  Args:
    formula: the formula.
    limits: the least and the largest legal value by size.
    least: the least legal value of a size without limits.

  Raises:
    ValueError: (the lifted function) a size is not an integer within its
      limits, or a result does not fit int64.

  >>> area = exact(lambda M, N: {"area": M * N})
  >>> int(area(2**31, 2**31)["area"]) == 2**62
  True
  >>> area(2**32, 2**32)
  Traceback (most recent call last):
  ValueError: area[0] = 18446744073709551616 does not fit int64; ...
  """
  limits = limits or {}
  parameters = inspect.signature(formula).parameters.values()
  names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
  static = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  compiled = jax.jit(formula, static_argnames=static)

  def call(*sizes: Any, **options: Any) -> dict[str, Any]:
    checked = [
      size
      if is_traced(size)
      else _host(name, size, *limits.get(name, (least, INT64_MAX)))
      for name, size in zip(names, sizes, strict=True)
    ]
    rank = max(size.ndim for size in checked)
    # Leading axes of one: rank promotion may be an error in the caller.
    aligned = [x.reshape((1,) * (rank - x.ndim) + x.shape) for x in checked]
    traced = is_traced(*aligned)
    if not traced:
      _refuse_overflow(functools.partial(formula, **options), aligned)
    with jax.enable_x64(True):
      integers = (jnp.asarray(x).astype(jnp.int64) for x in aligned)
      out = compiled(*integers, **options)
    return out if traced else jax.device_get(out)

  return call


def _host(name: str, size: Any, least: int, limit: int) -> np.ndarray:
  """A concrete size as int64 on the host, or the error that says why not."""
  array = np.asarray(size)
  if array.dtype.kind not in "iuO":
    raise ValueError(f"{name}: got {array.dtype} values; give integers")
  for value in (array.min(), array.max()) if array.size else ():
    if not least <= value <= limit:
      raise ValueError(
        f"{name}: got {value}; give integers from {least} to {limit}"
      )
  return array.astype(np.int64)


def _refuse_overflow(formula: Callable, sizes: list[np.ndarray]) -> None:
  """Raises ValueError where a result of the formula exceeds int64."""
  # One axis at least: NumPy's scalar operations leave Python's integers.
  sizes = [np.atleast_1d(x) for x in sizes]
  estimate = formula(*(x.astype(np.float64) for x in sizes))
  if all(np.max(x, initial=0) < _SURE for x in estimate.values()):
    return
  for name, value in formula(*(x.astype(object) for x in sizes)).items():
    value = np.asarray(value, object)
    at = np.unravel_index(value.argmax(), value.shape)
    if isinstance(value[at], int) and value[at] > INT64_MAX:
      raise ValueError(
        f"{name}[{', '.join(map(str, at))}] = {value[at]} does not fit int64;"
        " split the layer into smaller ones or use a larger array"
      )
