"""Integer formulas evaluated exactly, in the numbers that suit their sizes.

An 8 x 8 array takes 4e12 cycles on a 64k cube: int32 wraps, and float32 keeps
24 bits. A formula uses operators (none in place), `ceil_div`, `smaller` and
`larger` only, so that the same lines run in several kinds of numbers:

  NumPy's int64 or float64   concrete sizes, by `exact`
  JAX's int64                traced sizes, by `exact`
  Interval                   before that: does every integer fit int64?
  Doubles, Longs, Singles    the points of a sweep, on a device

No vector unit divides 64-bit integers, so that long tables and sweeps divide in
float64, where a rounding changes a number by a factor within 1 +- p, p = 2^-53.

NumPy rounds a / b once. Where |a| + b < 2^53, its floor is q = floor(a / b): a
quotient that is not whole differs from the next whole number w by at least
1 / b, and rounds to it only if |w| p >= 1 / b, but |w| b p <= (|a| + b) p < 1.

XLA may multiply by 1 / b instead, and 49 (1 / 49) < 1. Where |a| <= 2^52 and
b <= 2^51, two roundings change a / b by at most |a / b| (2 p + p^2) < 1 for
b >= 2, and not at all for b = 1. So its floor q' is q - 1, q or q + 1. Both
q' b, at most |a| + 2 b <= 2^53, and r' = a - q' b, in [-b, 2 b), are integers
that float64 holds: r' >= b shows that q' = q - 1, and r' < 0 that q' = q + 1.

`Longs` divide twice. float64 rounds a <= 2^62 too, so that the first quotient
differs from a / b by at most 3.01 p |a / b| + 1, and what is left, a - q' b, is
at most 1542 + b: an integer to which the above applies.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

INT64_MAX = 2**63 - 1
# The largest integers of `Doubles` and `Longs`.
_DOUBLES_MAX, _LONGS_MAX = 2**51, 2**62
# An estimate in float64 below this proves that the integer fits int64.
_SURE = 2.0**60
# Elements of a result that are computed at a time, so that a cache holds them.
_CHUNK = 2**14


class LayerError(ValueError):
  """An error about one layer of many; `layer` is its place on the last axis."""

  def __init__(self, message: str, layer: int):
    super().__init__(message)
    self.layer = layer


# The leaves, static fields and labels of each array dataclass.
_FIELDS: dict[type, tuple[tuple[str, ...], ...]] = {}


def array_dataclass(*static: str, labels: tuple[str, ...] = ()) -> Any:
  """Registers a dataclass as a pytree of its fields.

  Unflattening skips `__init__`: a JAX transform may put anything in a leaf, so
  only what a caller constructs is validated.

  Args:
    *static: Fields that are metadata of the pytree, not leaves.
    labels: Further metadata that no formula reads, such as a name. `exact`
      leaves them out of its caches; a formula sees an empty text instead.
  """

  def register(cls: type) -> type:
    metadata = (*static, *labels)
    names = [field.name for field in dataclasses.fields(cls)]
    data = tuple(name for name in names if name not in metadata)
    _FIELDS[cls] = data, static, labels

    def flatten(obj):
      keys = map(jax.tree_util.GetAttrKey, data)
      return tuple(zip(keys, _values(obj, data))), _values(obj, metadata)

    def unflatten(values, children):
      return _build(cls, (*metadata, *data), (*values, *children))

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls

  return register


def _values(obj: Any, names: Iterable[str]) -> tuple[Any, ...]:
  return tuple(getattr(obj, name) for name in names)


def _build(cls: type, names: Iterable[str], values: Iterable[Any]) -> Any:
  obj = object.__new__(cls)
  for name, value in zip(names, values):
    object.__setattr__(obj, name, value)
  return obj


def _flatten(name: str, value: Any, leaves: list[tuple[str, Any]]) -> Any:
  """Appends the named leaves of an argument; returns its structure, if any."""
  fields = _FIELDS.get(type(value))
  if fields is None:
    leaves.append((name, value))
    return None
  data, static, _ = fields
  inner = [_flatten(field, getattr(value, field), leaves) for field in data]
  return type(value), _values(value, static), tuple(inner)


def _unflatten(structure: Any, leaves: Iterator[Any]) -> Any:
  """The argument with a structure and the next leaves."""
  if structure is None:
    return next(leaves)
  cls, metadata, inner = structure
  data, static, labels = _FIELDS[cls]
  children = [_unflatten(part, leaves) for part in inner]
  empty = [""] * len(labels)
  return _build(cls, (*data, *static, *labels), (*children, *metadata, *empty))


def is_traced(*values: Any) -> bool:
  """Whether any value has no concrete numbers yet (jit, vmap, bounds)."""
  return any(isinstance(value, _TRACED) for value in values)


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
  if isinstance(a, _PLAIN) and isinstance(b, _PLAIN):
    return op(a, b)
  for x in (a, b):
    if isinstance(x, Number):
      return x.apply(op, a, b)
  on_host = isinstance(a, _HOST) and isinstance(b, _HOST)
  numbers: Any = np if on_host else jnp
  return {min: numbers.minimum, max: numbers.maximum}[op](a, b)


class exact:
  """A formula over integers, lifted to exact, broadcasting int64.

  The formula maps positional arguments, each a size or an `array_dataclass` of
  sizes, and keyword-only static options to named results. Concrete sizes are
  computed in NumPy, without a device. Traced sizes give int64 tracers; whether
  they fit cannot be checked. A `Number` in any argument gives such numbers.

  Args:
    formula: The formula.
    limits: Least and largest legal value of each size, by the name of its
      parameter or field.
    least: Least legal value of a size without limits, 0 or more.
    elementwise: Whether the formula is, so that bounds of its sizes bound its
      results. A formula that also sums along axes is not.

  Raises:
    ValueError: If (on a call) a size is not an integer within its limits, or an
      integer on the way to a result does not fit int64.

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
    parameters = inspect.signature(formula).parameters.values()
    self._names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    self._compiled = jax.jit(self._run, static_argnums=0)
    self._reach = functools.lru_cache(maxsize=4096)(self._reach_within)

  def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
    named: list[tuple[str, Any]] = []
    pairs = zip(self._names, args, strict=True)
    structures = tuple(_flatten(*pair, named) for pair in pairs)
    if any(isinstance(size, Number) for _, size in named):
      return self.formula(*args, **options)
    legal = (self._limits.get(name, self._legal) for name, _ in named)
    sizes, ranges = zip(*map(_read, named, legal))
    static = structures, tuple(sorted(options.items()))
    if is_traced(*sizes):
      return self._traced(static, sizes)
    whole = None if None in ranges else self._fit(static, sizes, ranges)
    return self._concrete(static, sizes, whole)

  def _run(self, static: Any, *numbers: Any) -> dict[str, Any]:
    structures, options = static
    leaves = iter(numbers)
    args = [_unflatten(structure, leaves) for structure in structures]
    return self.formula(*args, **dict(options))

  def _traced(self, static: Any, sizes: Any) -> dict[str, Any]:
    # Leading axes of one: rank promotion may be an error in the caller.
    rank = max(map(np.ndim, sizes))
    with jax.enable_x64(True):
      arrays = [jnp.asarray(x).astype(jnp.int64) for x in sizes]
      return self._compiled(static, *(_ranked(x, rank) for x in arrays))

  def _fit(self, static: Any, sizes: Any, ranges: Any) -> Any:
    """Shows that all fits int64; names the integer results if doubles do.

    Raises:
      LayerError: If something does not fit.
    """
    if self.elementwise:
      # First for wider ranges, which many tables have in common.
      for within in (tuple(map(_outward, ranges)), ranges):
        peak, whole = self._reach(within, static)
        if peak <= INT64_MAX:
          return whole
    # Elements may stay below a bound that combines all of their extremes.
    run = functools.partial(self._run, static)
    _refuse_overflow(run, sizes, self.elementwise)
    return None

  def _reach_within(self, ranges: Any, static: Any) -> tuple[int, Any]:
    """The largest integer; the integer results, if doubles are exact."""
    results = self._run(static, *(Interval(*ends) for ends in ranges))
    bounds = {name: Interval.of(x) for name, x in results.items()}
    peak = max(bound.peak for bound in bounds.values())
    divisor = max(bound.divisor for bound in bounds.values())
    whole = (name for name, bound in bounds.items() if bound.whole)
    return peak, frozenset(whole) if peak + divisor < 2**53 else None

  def _concrete(self, static: Any, sizes: Any, whole: Any) -> dict[str, Any]:
    """Results in NumPy, long ones chunk by chunk along their longest axis."""
    shape = np.broadcast_shapes(*map(np.shape, sizes))
    rank, count = len(shape), math.ceil(math.prod(shape) / _CHUNK)
    if not self.elementwise:
      sizes = [_ranked(np.asarray(x), rank) for x in sizes]
      rank = count = 0
    if count < 2:
      results = self._run(static, *sizes)
      return {name: _own(x, rank) for name, x in results.items()}
    axis, length = shape.index(max(shape)), max(shape)
    count = min(count, length // 2)  # so that no part has a length of one
    sizes = [_ranked(x, rank) if np.ndim(x) else x for x in sizes]
    out: dict[str, np.ndarray] = {}
    for i in range(count):
      part = slice(length * i // count, length * (i + 1) // count)
      here = (slice(None),) * axis + (part,)
      chunk = [
        x[here] if np.ndim(x) and x.shape[axis] > 1 else x for x in sizes
      ]
      if whole is not None:
        chunk = [
          x.astype(float).view(_Doubles) if np.ndim(x) else x for x in chunk
        ]
      for name, x in self._run(static, *chunk).items():
        x = _ranked(np.asarray(x), rank)
        along = x.shape[axis] > 1
        if name not in out:
          full = (*x.shape[:axis], length, *x.shape[axis + 1 :])
          dtype = np.int64 if name in (whole or ()) else x.dtype
          out[name] = np.empty(full if along else x.shape, dtype)
        out[name][here if along else ...] = x
    return out


def _read(named: tuple[str, Any], legal: tuple[int, int]) -> tuple[Any, Any]:
  """A size as an integer, a read-only int64 array or a tracer, and its range.

  Raises:
    ValueError: If it is not an integer within its limits.
  """
  name, size = named
  if is_traced(size):
    return size, None
  array = least = most = size
  if type(size) is not int:
    array = np.asarray(size)
    is_whole = array.dtype.kind in "iu"
    if not is_whole and not all(isinstance(x, int) for x in array.flat):
      raise ValueError(f"{name}: expected integers, got {array.dtype} values")
    if not array.size:
      return array.astype(np.int64), None
    least, most = int(array.min()), int(array.max())
  for value in (least, most):
    if not legal[0] <= value <= legal[1]:
      raise ValueError(
        f"{name}: expected integers from {legal[0]} to {legal[1]}, got {value}"
      )
  if not np.ndim(array):
    return least, (least, most)
  array = array.astype(np.int64, copy=False).view()
  array.flags.writeable = False
  return array, (least, most)


def _outward(ends: tuple[int, int]) -> tuple[int, int]:
  """A range that reaches to the next powers of two."""
  least, most = ends
  return (1 << least.bit_length()) >> 1, 1 << max(most - 1, 0).bit_length()


def _ranked(x: Any, rank: int) -> Any:
  """An array with leading axes of one up to a rank."""
  return x if x.ndim == rank else x.reshape((1,) * (rank - x.ndim) + x.shape)


def _own(x: Any, rank: int) -> np.ndarray:
  """A result as an array that is not part of a size."""
  array = np.asarray(x)
  return _ranked(array if array.flags.writeable else array.copy(), rank)


def _refuse_overflow(run: Callable, sizes: Any, elementwise: bool) -> None:
  """Shows element by element that all integers fit int64.

  Raises:
    LayerError: If one does not; it names a result and its index.
  """
  # One axis at least: NumPy's scalar operations leave Python's integers.
  sizes = [np.atleast_1d(x) for x in sizes]
  shape = np.broadcast_shapes(*(x.shape for x in sizes))

  def reach(dtype):
    results = run(*(Interval(x, x) for x in (x.astype(dtype) for x in sizes)))
    return {name: Interval.of(x) for name, x in results.items()}

  peaks = (x.peak for x in reach(float).values())
  doubtful = functools.reduce(np.maximum, peaks) >= _SURE
  if not np.any(doubtful):
    return
  index = None
  if elementwise:
    chosen = np.broadcast_to(doubtful, shape)
    index = np.argwhere(chosen)
    sizes = [np.broadcast_to(x, shape)[chosen] for x in sizes]
  results = reach(object)
  for part, why in (
    ("most", "= {} does not fit int64"),
    ("peak", "needs {} on the way, past int64"),
  ):
    for name, result in results.items():
      x = np.atleast_1d(getattr(result, part))
      at = x.argmax()
      if x.flat[at] > INT64_MAX and (result.whole or part == "peak"):
        where = np.unravel_index(at, x.shape) if index is None else index[at]
        raise LayerError(
          f"{name}[{', '.join(map(str, where))}] {why.format(x.flat[at])};"
          " split the layer into smaller ones or use a larger array",
          int(where[-1]),
        )


class _Doubles(np.ndarray):
  """Integers in float64, floor-divided by `/`, which is a vector operation."""

  def __floordiv__(self, other):
    return np.floor(self / other)

  def __rfloordiv__(self, other):
    return np.floor(other / self)

  def __mod__(self, other):
    return self - self // other * other

  def __rmod__(self, other):
    return other - other // self * self


def _reflected(op: Any) -> tuple[Any, Any]:
  return (
    lambda self, other: self.apply(op, self, other),
    lambda self, other: self.apply(op, other, self),
  )


class Number:
  """Operators, each of which is handed to `apply`."""

  __array_ufunc__ = None  # NumPy's numbers leave operators to ours.

  @classmethod
  def apply(cls, op: Any, a: Any, b: Any) -> Any:
    """op(a, b) in numbers of this kind, `min` and `max` among the ops."""
    raise NotImplementedError

  __add__, __radd__ = _reflected(operator.add)
  __sub__, __rsub__ = _reflected(operator.sub)
  __mul__, __rmul__ = _reflected(operator.mul)
  __floordiv__, __rfloordiv__ = _reflected(operator.floordiv)
  __mod__, __rmod__ = _reflected(operator.mod)
  __truediv__, __rtruediv__ = _reflected(operator.truediv)

  def __neg__(self) -> Any:
    return self.apply(operator.sub, 0, self)


Size = ArrayLike | Number
_TRACED = (jax.core.Tracer, Number)
_PLAIN = (int, float)
_HOST = (np.ndarray, np.generic, *_PLAIN)


@dataclasses.dataclass(slots=True)
class Interval(Number):
  """All numbers that an expression can be where its arguments vary freely.

  One run of a formula bounds all results and intermediates, in Python's
  integers, whatever the arrays' length; an argument that occurs twice may widen
  the bounds. Divisors are taken to be positive integers: a formula that divides
  by anything else has no meaning. Where `least` and `most` are one array, its
  elements are bounded one by one, exactly if they are Python's integers.

  Attributes:
    least: Least value, an integer or (after a true division) a float.
    most: Largest value, the same object if there is only one.
    peak: Largest magnitude of an integer on the way to it, itself included.
    divisor: Largest divisor of a floor division or a remainder.
    whole: Whether it is an integer, not a ratio.

  >>> x = Interval.of(range(3, 10))
  >>> y = x * x - 100
  >>> y.least, y.most, y.peak
  (-91, -19, 100)
  >>> (x // 4).most, (x % 4).most, (x / 4).most, (x // 4).divisor
  (2, 3, 2.25, 4)
  """

  least: Any
  most: Any
  peak: Any = 0
  divisor: Any = 1
  whole: bool = True

  def __post_init__(self):
    if self.whole:
      self.peak = larger(self.peak, larger(-self.least, self.most))

  @classmethod
  def of(cls, values: Any) -> Interval:
    """The interval of a number, or of integers that are not empty."""
    if isinstance(values, Interval):
      return values
    if isinstance(values, _PLAIN):
      return cls(values, values, whole=isinstance(values, int))
    values = np.asarray(values)
    return cls(int(values.min()), int(values.max()))

  @classmethod
  def apply(cls, op: Any, a: Any, b: Any) -> Interval:
    a, b = cls.of(a), cls.of(b)
    is_point = a.least is a.most and b.least is b.most
    op = _OPS.get(op, op)
    divisor, ends = larger(a.divisor, b.divisor), (b.least, b.most)
    if b.whole and op in (operator.floordiv, operator.mod, operator.truediv):
      ends = larger(b.least, 1), larger(b.most, 1)
      divisor = divisor if op is operator.truediv else larger(divisor, ends[1])
    if is_point:
      least = most = op(a.least, ends[0])
    elif op in (operator.add, smaller, larger):
      least, most = op(a.least, b.least), op(a.most, b.most)
    elif op is operator.sub:
      least, most = a.least - b.most, a.most - b.least
    elif op is operator.mod:
      least, most = _remainder(a.least, a.most, *ends)
    else:
      # Monotone in each argument, so that an extreme lies at a corner.
      corners = [op(x, y) for x in (a.least, a.most) for y in ends]
      least, most = min(corners), max(corners)
    whole = a.whole and b.whole and op is not operator.truediv
    return cls(least, most, larger(a.peak, b.peak), divisor, whole)

  def sum(self, axis: int) -> Interval:
    """The sum of points along an axis, which their `peak` must have, too."""
    peak = np.broadcast_to(self.peak, np.shape(self.least)).max(axis)
    total = np.asarray(self.least.sum(axis), self.least.dtype)
    return Interval(total, total, peak, whole=self.whole)


_OPS: dict[Any, Any] = {min: smaller, max: larger}


def _remainder(least: int, most: int, low: int, high: int) -> tuple[int, int]:
  """The range of a % b for a and b within ranges."""
  if low == high and least // high == most // high or 0 <= least <= most < low:
    return least % high, most % high
  return 0, high - 1 if least < 0 else min(most, high - 1)


class Whole(Number):
  """Integers in a JAX array `x` of `dtype`; a true division leaves floats."""

  dtype: ClassVar[Any]

  def __init__(self, x: Any):
    self.x = jnp.asarray(x).astype(self.dtype)

  @classmethod
  def apply(cls, op: Any, a: Any, b: Any) -> Any:
    is_power = isinstance(b, int) and b > 0 and b & (b - 1) == 0
    a, b = (x.x if isinstance(x, Whole) else cls(x).x for x in (a, b))
    if op is operator.truediv:
      return a.astype(float) / b.astype(float)
    if op not in (operator.floordiv, operator.mod):
      return cls(_OPS.get(op, op)(a, b))
    quotient, rest = (cls._scaled if is_power else cls._divided)(a, b)
    return cls(quotient if op is operator.floordiv else rest)

  @classmethod
  def _scaled(cls, a: Any, b: Any) -> tuple[Any, Any]:
    """Quotient and remainder by a power of two, which only scales a."""
    quotient = jnp.floor(a / b)
    return quotient, a - quotient * b

  @classmethod
  def _divided(cls, a: Any, b: Any) -> tuple[Any, Any]:
    """Quotient and remainder, corrected as proved above."""
    quotient = jnp.floor(a / b)
    rest = a - quotient * b
    quotient += (rest >= b).astype(a.dtype) - (rest < 0).astype(a.dtype)
    return quotient, a - quotient * b


class Doubles(Whole):
  """Integers in float64, where none on the way is above 2^51."""

  dtype = jnp.float64


class Longs(Whole):
  """Integers in int64, up to 2^62 with divisors up to 2^51."""

  dtype = jnp.int64

  @classmethod
  def _scaled(cls, a: Any, b: Any) -> tuple[Any, Any]:
    return a // b, a % b  # which the compiler turns into shifts

  @classmethod
  def _divided(cls, a: Any, b: Any) -> tuple[Any, Any]:
    by = b.astype(jnp.float64)
    first = jnp.floor(a.astype(jnp.float64) / by).astype(jnp.int64)
    left = (a - first * b).astype(jnp.float64)
    second, rest = super()._divided(left, by)
    return first + second.astype(jnp.int64), rest.astype(jnp.int64)


class Singles(Whole):
  """Integers in float32, rounded above 2^24; so are quotients of such."""

  dtype = jnp.float32

  @classmethod
  def _divided(cls, a: Any, b: Any) -> tuple[Any, Any]:
    quotient, rest = super()._divided(a, b)
    is_exact = jnp.abs(a) + 2 * b <= 2**24
    rough = jnp.floor(a / b)
    left = jnp.clip(a - rough * b, 0, b)
    return jnp.where(is_exact, quotient, rough), jnp.where(is_exact, rest, left)


def fastest(bounds: Iterable[Interval]) -> type[Whole] | None:
  """The fastest kind that is exact within bounds; None: int64 as it is.

  >>> [fastest([Interval.of(2**bits)]).__name__ for bits in (50, 60)]
  ['Doubles', 'Longs']
  """
  bounds = list(bounds)
  # Elsewhere float64 is put together from narrower numbers.
  if jax.default_backend() not in ("cpu", "gpu"):
    return None
  peak = max((bound.peak for bound in bounds), default=0)
  divisor = max((bound.divisor for bound in bounds), default=0)
  if peak <= _DOUBLES_MAX:
    return Doubles
  return Longs if peak <= _LONGS_MAX and divisor <= _DOUBLES_MAX else None
