"""Integer formulas evaluated exactly in int64, whatever the process runs in.

An 8 x 8 array takes 4e12 cycles on a 64k cube: int32 wraps and float32 keeps 24
bits. So formulas run under an `enable_x64` scoped to the call, and what would
not fit int64, a result or an integer on the way to it, is refused before
anything can wrap.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from figs_jax.engine.interval import Interval, Number, Watched
from figs_jax.engine.whole import Whole, fastest

INT64_MAX = 2**63 - 1
# An estimate in float64 below this proves that the integer fits.
_SURE = 2.0**60
# Elements of a result that are computed at a time.
_CHUNK = 2**16
# The structures of a formula's arguments, and its options.
Options = tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]
# What a size of a formula may be.
Size = ArrayLike | Number


class LayerError(ValueError):
  """What one layer of many did; `layer` is its place on the last axis."""

  def __init__(self, message: str, layer: int):
    super().__init__(message)
    self.layer = layer


# Of an `array_dataclass`: its leaves, static fields and labels.
_FIELDS: dict[type, tuple[tuple[str, ...], ...]] = {}


def array_dataclass(
  *static: str, labels: tuple[str, ...] = ()
) -> Callable[[type], type]:
  """Registers a dataclass as a pytree of its fields.

  Unflattening skips `__init__`: a JAX transform may put anything in a leaf, so
  only what a caller constructs is validated.

  Args:
    *static: Fields that are metadata of the pytree, not leaves.
    labels: Further metadata that no formula reads, such as a name: `exact`
      leaves them out of what it caches, and gives a formula an empty text.
  """

  def register(cls: type) -> type:
    metadata = (*static, *labels)
    data = tuple(
      f.name for f in dataclasses.fields(cls) if f.name not in metadata
    )
    _FIELDS[cls] = data, static, labels

    def flatten(obj):
      pairs = [
        (jax.tree_util.GetAttrKey(name), getattr(obj, name)) for name in data
      ]
      return pairs, tuple(getattr(obj, name) for name in metadata)

    def unflatten(values, children):
      return _build(cls, zip(metadata, values), zip(data, children))

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls

  return register


def _build(cls: type, *fields: Iterable[tuple[str, Any]]) -> Any:
  obj = object.__new__(cls)
  for name, value in itertools.chain(*fields):
    object.__setattr__(obj, name, value)
  return obj


def _flatten(name: str, value: Any) -> tuple[Any, list[tuple[str, Any]]]:
  """The structure of an argument, None for a size, and its named leaves."""
  cls = type(value)
  if cls not in _FIELDS:
    return None, [(name, value)]
  data, static, _ = _FIELDS[cls]
  inner, leaves = [], []
  for field in data:
    structure, own = _flatten(field, getattr(value, field))
    inner.append(structure)
    leaves += own
  return (
    cls, tuple(getattr(value, field) for field in static), tuple(inner)
  ), leaves  # fmt: skip


def _unflatten(structure: Any, leaves: Iterator[Any]) -> Any:
  """The argument of a structure, from the next leaves."""
  if structure is None:
    return next(leaves)
  cls, metadata, inner = structure
  data, static, labels = _FIELDS[cls]
  children = [_unflatten(x, leaves) for x in inner]
  return _build(
    cls,
    zip(static, metadata),
    zip(labels, ("",) * len(labels)),
    zip(data, children),
  )


def is_traced(*values: Any) -> bool:
  """Whether any value has no concrete numbers yet (jit, vmap, bounds)."""
  return any(isinstance(x, jax.core.Tracer | Number) for x in values)


def traceable(*values: Any) -> tuple[Any, ...]:
  """Values as they go with tracers, or with a `Number` among them."""
  if any(isinstance(value, Number) for value in values):
    return values
  return tuple(jnp.asarray(value) for value in values)


def ceil_div(a: Any, b: Any) -> Any:
  """ceil(a / b) in whichever numbers a and b are."""
  return -(-a // b)


def smaller(a: Any, b: Any) -> Any:
  """The elementwise minimum in whichever numbers a and b are."""
  return _extreme(min, a, b)


def larger(a: Any, b: Any) -> Any:
  """The elementwise maximum in whichever numbers a and b are."""
  return _extreme(max, a, b)


def _extreme(op: Any, a: Any, b: Any) -> Any:
  for x in (a, b):
    if isinstance(x, Number):
      return x.apply(op, a, b)
  numbers = jnp if any(isinstance(x, jax.Array) for x in (a, b)) else np
  return {min: numbers.minimum, max: numbers.maximum}[op](a, b)


class exact:
  """A formula over integers, lifted to exact, broadcasting int64.

  The formula maps positional arguments, each a size or an `array_dataclass`
  of sizes, and keyword-only static options to named results. It uses
  operators, `ceil_div`, `smaller` and `larger` only, so that the same lines run
  on bounds and in Python's integers (does it fit?) and, under jit, in the
  fastest numbers that are exact within the bounds
  (`figs_jax.engine.whole`).

  Concrete sizes give NumPy arrays, because operations on an int64 `jax.Array`
  outside `enable_x64` truncate to int32. Traced sizes give int64 tracers;
  whether they fit cannot be checked. A `Number` gives the same kind of number.

  Args:
    formula: the formula.
    limits: Least and largest legal value of each size, by the name of its
      parameter or field.
    least: the least legal value of a size without limits.
    elementwise: whether the formula is, so that bounds of its sizes bound its
      results. One that also sums along axes is not.

  Raises:
    ValueError: (on a call) a size is not an integer within its limits, or a
      result, or an integer on the way to it, does not fit int64.

  >>> area = exact(lambda M, N: {"area": M * N})
  >>> int(area(2**31, 2**31)["area"]) == 2**62
  True
  >>> area(2**32, 2**32)
  Traceback (most recent call last):
  figs_jax.engine.int64.LayerError: area[0] = 1844... does not fit int64; ...
  """

  def __init__(
    self,
    formula: Callable[..., dict[str, Any]],
    limits: Mapping[str, tuple[int, int]] | None = None,
    least: int = 1,
    elementwise: bool = True,
  ):
    self.formula, self.elementwise = formula, elementwise
    self._limits, self._legal = limits or {}, (least, INT64_MAX)
    self._names = [
      p.name
      for p in inspect.signature(formula).parameters.values()
      if p.kind is not p.KEYWORD_ONLY
    ]
    self._compiled = jax.jit(self._run, static_argnums=(0, 1))
    self._bounds = functools.lru_cache(maxsize=1024)(self._bound)

  def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
    flat = [_flatten(*pair) for pair in zip(self._names, args, strict=True)]
    structures = tuple(structure for structure, _ in flat)
    sizes = [leaf for _, leaves in flat for leaf in leaves]
    if any(isinstance(size, Number) for _, size in sizes):
      return self.formula(*args, **options)
    checked = [
      size
      if is_traced(size)
      else _host(name, size, *self._limits.get(name, self._legal))
      for name, size in sizes
    ]
    rank = max(size.ndim for size in checked)
    # Leading axes of one: rank promotion may be an error in the caller.
    aligned = [x.reshape((1,) * (rank - x.ndim) + x.shape) for x in checked]
    static = structures, tuple(sorted(options.items()))
    if is_traced(*aligned) or not all(x.size for x in aligned):
      out = self._compute(None, static, aligned)
      return out if is_traced(*aligned) else jax.device_get(out)
    return self._chunked(self._kind(aligned, static), static, aligned)

  def _compute(
    self, kind: type[Whole] | None, options: Options, sizes: Iterable[Any]
  ) -> dict[str, jax.Array]:
    with jax.enable_x64(True):
      integers = [jnp.asarray(x).astype(jnp.int64) for x in sizes]
      return self._compiled(kind, options, *integers)

  def _chunked(
    self, kind: type[Whole] | None, options: Options, sizes: list[np.ndarray]
  ) -> dict[str, Any]:
    """NumPy results, long ones chunk by chunk along their longest axis.

    The results of a chunk fit a cache and take the memory of the last one's.
    NumPy then puts large arrays on large pages, where writing to fresh small
    ones would take longer than the formula.
    """
    shape = np.broadcast_shapes(*(x.shape for x in sizes))
    axis = int(np.argmax(shape)) if shape else 0
    length = max(_CHUNK * max((1, *shape)) // math.prod(shape), 2)
    if not shape or length >= shape[axis] or not self.elementwise:
      return jax.device_get(self._compute(kind, options, sizes))
    last = shape[axis] - length  # overlaps, so that all are of one length
    out: dict[str, Any] = {}
    for first in range(0, shape[axis], length):
      first = min(first, last)
      part = (slice(None),) * axis + (slice(first, first + length),)
      chunk = (x[part] if x.shape[axis] > 1 else x for x in sizes)
      found = jax.device_get(self._compute(kind, options, chunk))
      for name, x in found.items():
        if x.ndim <= axis or x.shape[axis] == 1:
          out[name] = x
          continue
        full = (*x.shape[:axis], shape[axis], *x.shape[axis + 1 :])
        if name not in out:
          out[name] = np.empty(full, x.dtype)
        out[name][part] = x
    return out

  def _run(
    self, kind: type[Whole] | None, options: Options, *sizes: Any
  ) -> dict[str, Any]:
    """The formula on int64 arrays, computed in numbers of a kind."""
    numbers = [x if kind is None else kind(x) for x in sizes]
    found = self._evaluate(options, numbers)
    return {
      name: x.x.astype(jnp.int64) if isinstance(x, Whole) else x
      for name, x in found.items()
    }

  def _evaluate(
    self, options: Options, numbers: Iterable[Any]
  ) -> dict[str, Any]:
    structures, keywords = options
    leaves = iter(numbers)
    args = [_unflatten(structure, leaves) for structure in structures]
    return self.formula(*args, **dict(keywords))

  def _kind(
    self, sizes: list[np.ndarray], options: Options
  ) -> type[Whole] | None:
    """The numbers to compute in.

    Raises:
      ValueError: something does not fit int64.
    """

    def formula(*numbers):
      return self._evaluate(options, numbers)

    if not self.elementwise:
      _largest(formula, sizes, elementwise=False)
      return None
    ranges = tuple((int(x.min()), int(x.max())) for x in sizes)
    bounds = self._bounds(ranges, options)
    if all(bound.peak <= INT64_MAX for bound in bounds):
      return fastest(bounds)
    # Elements may stay below a bound that combines all of their extremes.
    peak = _largest(formula, sizes, elementwise=True)
    divisor = max(bound.divisor for bound in bounds)
    return fastest([Interval(0, peak, peak, divisor)])

  def _bound(self, ranges: Any, options: Options) -> list[Interval]:
    """Of each result, where sizes vary freely within ranges."""
    sizes = [Interval.of(x) for x in ranges]
    found = self._evaluate(options, sizes)
    return [Interval.of(x) for x in found.values()]


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
  return array.astype(np.int64, copy=False)


def _largest(
  formula: Callable, sizes: Iterable[np.ndarray], elementwise: bool
) -> int:
  """Not below any integer on the way to a result, all of which fit int64.

  Raises:
    ValueError: one does not; it names a result and its index.
  """
  # One axis at least: NumPy's scalar operations leave Python's integers.
  sizes = [np.atleast_1d(x) for x in sizes]
  shape = np.broadcast_shapes(*(x.shape for x in sizes))
  estimate = _watched(formula, sizes, np.float64)
  over = functools.reduce(np.maximum, (x.peak for x in estimate.values()))
  if np.max(over) < _SURE:
    return int(2 * np.max(over))
  index = None
  if elementwise:  # only those in doubt
    chosen = np.broadcast_to(over >= _SURE, shape)
    index = np.argwhere(chosen)
    sizes = [np.broadcast_to(x, shape)[chosen] for x in sizes]
  found = _watched(formula, sizes, object)
  for name, value in found.items():
    if value.whole:
      _refuse(name, value.x, index, "= {} does not fit int64")
  for name, value in found.items():
    _refuse(name, value.peak, index, "needs {} on the way, past int64")
  return INT64_MAX


def _watched(formula, sizes, dtype) -> dict[str, Watched]:
  found = formula(*(Watched(x.astype(dtype)) for x in sizes))
  return {name: Watched.of(value) for name, value in found.items()}


def _refuse(name: str, values: Any, index: np.ndarray | None, why: str) -> None:
  values = np.atleast_1d(values)
  at = values.argmax()
  if values.flat[at] <= INT64_MAX:
    return
  where = np.unravel_index(at, values.shape) if index is None else index[at]
  raise LayerError(
    f"{name}[{', '.join(map(str, where))}] {why.format(values.flat[at])};"
    " split the layer into smaller ones or use a larger array",
    int(where[-1]),
  )
