"""What a kind of engine is, and the product of matrices that it runs.

Each kind is a subclass of `Engine` in a file of its own, which holds all that
is particular to it: fields, text, checks and the closed form of its counts.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from figs_jax.engine.area import Parts
from figs_jax.engine.blocks import Masks, fit, fits_blocks, kept_depth
from figs_jax.engine.int64 import (
  array_dataclass,
  ceil_div,
  exact,
  is_traced,
  smaller,
)
from figs_jax.engine.timing import bytes_of

MAX_SIDE = 2**31 - 1
CLOCK = 1000  # MHz of an array by default: a cycle takes a nanosecond
UNLIMITED = MAX_SIDE  # a bandwidth, or the length of a tile, without a bound
OVERLAPS = ("none", "weights", "full")
# Sizes stay exact in float64, patterns and counts in int32.
LIMITS = {
  **dict.fromkeys(("M", "N", "K"), (1, 2**53)),
  **dict.fromkeys(("n", "m", "count"), (1, 2**31 - 1)),
  "v": (0, 2**31 - 1),
}


@array_dataclass()
@dataclasses.dataclass(frozen=True)
class Gemm:
  """A product (M x K) times (K x N) whose weight, K x N, is n:m along K.

  Attributes:
    M: Rows of the activations (tokens, summed over the batch).
    N: Columns of the weight (outputs).
    K: Length of the contraction, along which the groups lie.
    n: Weights kept of every m; n = m is dense.
    m: Length of a group.
    v: Outputs that share the 4 columns of each group which hold their n, as in
      V:N:M (VENOM, arXiv 2310.02065); 0 without.

  Raises:
    ValueError: If n is above m. Traced patterns go unchecked.

  >>> int(Gemm(M=196, N=3072, K=770, n=1, m=4).kept)
  193
  """

  M: Any
  N: Any
  K: Any
  n: Any = 1
  m: Any = 1
  v: Any = 0

  def __post_init__(self):
    n, m = self.n, self.m
    if not is_traced(n, m) and np.any(np.asarray(n) > np.asarray(m)):
      raise ValueError(f"pattern n={n}, m={m}: expected n <= m")

  @property
  def kept(self) -> Any:
    """Weights kept along K, at most n of a last part."""
    return kept_depth(self.K, self.n, self.m)

  def narrow(self) -> Gemm:
    """V:N:M as the n:4 that remains of 4 columns of each group, others as is.

    >>> thin = Gemm(M=8, N=64, K=32, n=2, m=8, v=64).narrow()
    >>> int(thin.K), int(thin.n), int(thin.m)
    (16, 2, 4)
    """
    if isinstance(self.v, int) and not self.v:
      return self
    shared = smaller(self.v, 1)
    K = self.K + shared * (kept_depth(self.K, 4, self.m) - self.K)
    return Gemm(self.M, self.N, K, self.n, self.m + shared * (4 - self.m))


@typing.dataclass_transform(
  frozen_default=True, field_specifiers=(dataclasses.field,)
)
@dataclasses.dataclass(frozen=True)
class Engine:
  """Base class of all kinds of engines.

  A subclass is made a frozen dataclass and a JAX pytree; it takes no decorator
  but `figs_jax.engine.register`, which lets `figs_jax.engine.parse` read it.
  Fields of type `str` or `bool` are static. All others hold an integer, or an
  integer array that describes many designs at once and broadcasts against the
  other fields and the layers. Bandwidths count per cycle: values at the ports
  of an array, bytes at its memory.

  A subclass declares its fields, `KINDS` and `formula`. The rest defaults to a
  clocked array of rows x cols multipliers that runs every pattern.

  Attributes:
    KINDS: First words of its specs. One that ends in a dash stands for all
      words that begin with it.
    PREFIX: Fields that a spec gives before its keys.
    CHOICES: Legal values of fields of type `str`.
    FROM_ZERO: Numeric fields that may be 0; the others start at 1.
    LABELS: Static fields that do not change any count.
    NARROWS: Whether V:N:M runs as `Gemm.narrow`; the others run it as n:m.
    BLOCK: Rows of the blocks in which patterns run, if the field `sparse` is
      set; 0 for an engine without such blocks.
    unit: Unit of its cycles, "cycles" or "ns".
    is_array: Whether it is a clocked array of multipliers whose field `dram_bw`
      bounds the memory, as opposed to the roofline of a processor.
    name: Name in tables. Defaults to the spec.

  Raises:
    ValueError: If a choice is unknown, a number is out of range, or fields do
      not go together.
  """

  name: str = dataclasses.field(default="", kw_only=True)

  KINDS: ClassVar[tuple[str, ...]] = ()
  PREFIX: ClassVar[tuple[str, ...]] = ("rows", "cols")
  CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}
  FROM_ZERO: ClassVar[tuple[str, ...]] = ()
  LABELS: ClassVar[tuple[str, ...]] = ("name",)
  NARROWS: ClassVar[bool] = False
  BLOCK: ClassVar[int] = 0
  unit: ClassVar[str] = "cycles"
  is_array: ClassVar[bool] = True
  _exact: ClassVar[exact]

  def __init_subclass__(cls):
    dataclasses.dataclass(frozen=True)(cls)
    numeric = cls.numeric()
    static = [f.name for f in dataclasses.fields(cls) if f not in numeric]
    static = [name for name in static if name not in cls.LABELS]
    array_dataclass(*static, labels=cls.LABELS)(cls)
    run = {"run": (0, MAX_SIDE)}
    cls._exact = exact(cls.formula, LIMITS | cls.limits() | run)

  def __post_init__(self):
    kind = type(self).__name__
    for field, legal in self.CHOICES.items():
      value = getattr(self, field)
      if value not in legal:
        raise ValueError(
          f"{kind}: unknown {field} {value!r}, {nearest(value, legal)}"
        )
    for field, (least, most) in self.limits().items():
      check_integers(field, getattr(self, field), least, most)
    for where, why in self.invalid():
      if np.any(where):
        raise ValueError(f"{kind} {why}")
    if not self.name:
      object.__setattr__(self, "name", self.spec())

  def formula(
    self, gemm: Gemm, run: Any, *, itemsize: int | Fraction
  ) -> dict[str, Any]:
    """What a GEMM costs, in numbers of any kind.

    Only operators and the functions of `figs_jax.engine.int64` may be used, so
    that the same lines run on NumPy arrays, on tracers and on bounds.

    Args:
      gemm: Sizes and pattern.
      run: The most weights that any block runs; 0 for an engine without blocks.
      itemsize: Bytes per value of every operand off chip, 1/2 of fp4;
        `figs_jax.engine.timing.bytes_of` counts them.

    Returns:
      Integers: `cycles` and the parts of `timing.PARTS`, which add up to them;
      `ifmap_reads`, `filter_reads` and `ofmap_writes`, in words moved on chip;
      `metadata_bytes`; `dram_bytes`, every operand moved once.
      Floats: `utilisation`, the share of multiplier cycles spent on kept
      weights. A kind may add results of its own; `macs` are then the useful
      multiplications that energy is charged for.
    """
    raise NotImplementedError

  def counts(
    self,
    gemm: Gemm,
    itemsize: int | Fraction | None = None,
    masks: Masks | None = None,
  ) -> dict[str, Any]:
    """The formula, exact in int64; sizes, patterns and fields broadcast.

    It runs under jit and vmap, where sizes are traced and overflow goes
    unchecked. Concrete sizes give NumPy arrays. Engines without blocks ignore
    the masks of the layers, which lie on the last axis.

    Raises:
      ValueError: If the engine cannot run the pattern, a size is below 1, or a
        result does not fit int64.
    """
    run = self.occupancy(gemm, masks)
    return self.occupied(gemm, run, itemsize)

  def occupancy(
    self, gemm: Gemm, masks: Masks | None = None, *, check: bool = True
  ) -> Any:
    """What the masks decide, `run` of `formula`, for `occupied`.

    Args:
      gemm: Sizes and patterns.
      masks: Real masks of the layers; the worst that n:m allows without.
      check: Whether to refuse patterns that the engine cannot run.

    Raises:
      ValueError: If the engine cannot run a pattern.
    """
    if self._has_blocks:
      pattern = gemm.narrow() if self.NARROWS else gemm
      return fit(pattern.n, pattern.m, self.BLOCK, masks, check=check)
    return self.BLOCK

  def occupied(
    self, gemm: Gemm, run: Any, itemsize: int | Fraction | None = None
  ) -> dict[str, Any]:
    """The counts under a known `occupancy`."""
    size = self.itemsize if itemsize is None else itemsize
    return self._exact(self, gemm, run, itemsize=size)

  def activation_bytes(self, gemm: Gemm, itemsize: int | Fraction) -> Any:
    """The part of `dram_bytes` that inputs and outputs take, each once."""
    return bytes_of(gemm.M * gemm.K + gemm.M * gemm.N, itemsize)

  @property
  def sweeps_masks(self) -> bool:
    """Whether `occupancy` is all that the masks decide, so that sweeps can."""
    return True

  @property
  def _has_blocks(self) -> bool:
    return self.BLOCK > 0 and getattr(self, "sparse", True)

  @property
  def itemsize(self) -> int | Fraction:
    """Bytes per value where the caller gives neither size nor data type."""
    return 2

  def at(self, dtype: str) -> Engine:
    """The engine for operands of a data type.

    Arrays have no rates of their own: to them a type is the size of its values.

    Raises:
      ValueError: If its chip has no such type, or it is set to another one.
    """
    del dtype
    return self

  def invalid(self) -> Iterator[tuple[Any, str]]:
    """Where fields do not go together, and why; traced ones go unchecked."""
    yield from ()

  def runs(self, n: Any, m: Any) -> np.ndarray:
    """Whether the designs run patterns n:m; all three broadcast."""
    return fits_blocks(n, m, self.BLOCK if self._has_blocks else 1)

  def note(self, sparse: int, known: int) -> str:
    """What a report must say about the engine's assumptions, or "".

    Args:
      sparse: Number of sparse layers.
      known: Number of those whose real mask is known.
    """
    del sparse, known
    return ""

  def silicon(self) -> Engine | None:
    """The same engine at the rates of its silicon, if it models lower ones."""
    return None

  def port_values(self, n: Any = 1, m: Any = 1) -> dict[str, Any]:
    """Values that cross the ports for each vector, if those are wide enough.

    Returns:
      `inputs`, distinct activations, and `outputs`, partial sums.

    Raises:
      ValueError: If the engine cannot run the pattern n:m, or its kind has no
        model of ports.
    """
    raise ValueError(f"{self}: expected an engine with ports: FIGS or VEGETA")

  def roofs(
    self, itemsize: int | Fraction, patterns: Iterable[Gemm] = ()
  ) -> dict[str, float]:
    """Peaks in FLOP per cycle by pattern, left-out weights counted as run.

    "dense" comes first. A pattern has a peak of its own if it is higher: at 2:4
    an engine that skips zeros passes for twice as fast.

    Args:
      itemsize: Bytes per value.
      patterns: Products of any size with the patterns (n, m and v).

    >>> from figs_jax.engine import parse
    >>> parse("ws:8x4").roofs(2, [Gemm(1, 1, 1, 1, 4)])
    {'dense': 64.0, '1:4': 256.0}
    """
    rows, cols = (getattr(self, side, 128) for side in ("rows", "cols"))
    peaks: dict[str, float] = {}
    for one in (Gemm(1, 1, 1), *patterns):
      # So large that all tiles are whole. Stalls are left out.
      sizes = 8 * rows, 8 * cols * one.m, 8 * rows * one.m
      large = Gemm(*sizes, one.n, one.m, one.v)
      flops = 2.0 * large.M * large.N * large.K
      peak = flops / float(self.counts(large, itemsize)["compute"])
      vector = f"{one.v}:" if one.v else ""
      name = f"{vector}{one.n}:{one.m}" if peaks else "dense"
      if not peaks or peak > 1.001 * peaks["dense"]:
        peaks[name] = peak
    return peaks

  def parts(self) -> Parts | None:
    """What the area is made of (`figs_jax.engine.area`), or None if unknown.

    Only operators and the functions of `figs_jax.engine.int64` may be used.
    """
    return None

  def nanoseconds(self, cycles: Any) -> Any:
    """The duration of cycles, float64, in numbers of any kind.

    A field `clock` holds the MHz of an array; a roofline counts nanoseconds.

    >>> from figs_jax.engine import parse
    >>> parse("ws:clock=500").nanoseconds(3)
    6.0
    """
    return cycles / 1 / (getattr(self, "clock", CLOCK) / CLOCK)

  @property
  def input_width(self) -> Any:
    """Values that may enter an array per cycle, or None if unknown."""
    return None

  @property
  def is_ideal(self) -> bool:
    """Whether it runs N:M as no hardware can, so that it is a bound alone."""
    return False

  @property
  def memory_bandwidth(self) -> Any:
    """Bytes per cycle between chip and memory, or `UNLIMITED`."""
    return getattr(self, "dram_bw", UNLIMITED)

  def memory_cycles(self, dram_bytes: Any, bandwidth: Any) -> Any:
    """Cycles in which the memory moves the bytes of one product.

    Args:
      dram_bytes: Bytes to and from memory.
      bandwidth: Bytes per cycle in place of `memory_bandwidth`.
    """
    return ceil_div(dram_bytes, bandwidth)

  def with_unlimited_memory(self) -> Engine:
    """The same engine, which never waits for its memory."""
    if not hasattr(self, "dram_bw"):
      return self
    return dataclasses.replace(self, dram_bw=UNLIMITED)

  @property
  def stream_values(self) -> Any:
    """Values per cycle that can stream through it, or `UNLIMITED`.

    Norms, softmax and the like take this rate where the memory has no limit. An
    array has its input ports, one value for each row.
    """
    if not self.is_array:
      return UNLIMITED
    ports = getattr(self, "bw_in", UNLIMITED)
    return np.minimum(getattr(self, "rows", UNLIMITED), ports)

  @classmethod
  def read_prefix(cls, kind: str, size: str | None) -> dict[str, Any]:
    """Fields from the start of a spec.

    Args:
      kind: First word, as in "ws".
      size: Second word, as in "32x16", or None, which leaves the fields at
        their defaults.

    Raises:
      ValueError: If the words cannot be read.
    """
    del cls
    if size is None:
      return {}
    rows, times, cols = size.partition("x")
    if not (times and rows.isdecimal() and cols.isdecimal()):
      raise ValueError(
        f"expected a size ROWSxCOLS, as in '{kind}:32x16', got {size!r}"
      )
    return {"rows": int(rows), "cols": int(cols)}

  @classmethod
  def missing(cls, kind: str, size: str | None, keys: Sequence[str]) -> str:
    """What to tell the author of a spec that leaves fields without a value.

    Args:
      kind: First word.
      size: Second word, or None.
      keys: The fields.
    """
    del cls, size
    return f"{kind} needs {' and '.join(f':{key}=' for key in keys)}"

  def prefix(self) -> str:
    """The spec without its keys, as in "ws:32x16"."""
    return f"{self.KINDS[0]}:{self.sides()}"

  def sides(self) -> str:
    """The size of an array, as in "32x16"."""
    return "x".join(text_of(getattr(self, side)) for side in ("rows", "cols"))

  def defaults(self) -> dict[str, Any]:
    """Values of all other fields for a spec without keys, or `MISSING`."""
    return {
      field.name: field.default
      for field in dataclasses.fields(self)
      if field.name not in (*self.PREFIX, "name")
    }

  def spec(self, shown: Collection[str] = ()) -> str:
    """The text that `parse` reads back; arrays are written as a star.

    Args:
      shown: Fields to write although they have their defaults.
    """
    prefix = self.prefix()
    if {"rows", "cols"} & {*shown} and not prefix.endswith(self.sides()):
      prefix = f"{prefix}:{self.sides()}"
    values = {name: getattr(self, name) for name in self.defaults()}
    return prefix + "".join(
      f":{name}={text_of(value)}"
      for name, value in values.items()
      if name in shown
      and value != ""
      or not is_default(value, self.defaults()[name])
    )

  @classmethod
  def numeric(cls) -> tuple[dataclasses.Field, ...]:
    """The fields that hold integers or integer arrays."""
    static = ("str", "bool", str, bool)
    return tuple(f for f in dataclasses.fields(cls) if f.type not in static)

  @classmethod
  def limits(cls) -> dict[str, tuple[int, int]]:
    """Least and largest legal value of each numeric field."""
    return {
      field.name: (0 if field.name in cls.FROM_ZERO else 1, MAX_SIDE)
      for field in cls.numeric()
    }

  @property
  def leaves(self) -> tuple[Any, ...]:
    """Values of the numeric fields, in their order."""
    return tuple(getattr(self, field.name) for field in self.numeric())

  def __str__(self) -> str:
    return self.name


def check_itemsize(itemsize: Any) -> None:
  """Raises ValueError unless bytes per value are an integer from 1, or 1/2."""
  whole = isinstance(itemsize, Integral) and not isinstance(itemsize, bool)
  if itemsize != Fraction(1, 2) and (not whole or itemsize < 1):
    raise ValueError(
      f"itemsize: expected bytes per value, an integer from 1, got {itemsize!r}"
    )


def check_integers(field: str, value: Any, least: int, most: int) -> None:
  """Raises ValueError unless a value is traced or integers within limits."""
  if is_traced(value):
    return
  array = np.asarray(value)
  got = value
  if array.dtype.kind in "iu" and array.size:
    if least <= array.min() and array.max() <= most:
      return
    got = array.min() if array.min() < least else array.max()
  elif array.ndim:
    got = f"{array.dtype} of shape {array.shape}"
  raise ValueError(
    f"{field}: expected integers from {least} to {most}, got {got}"
  )


def indivisible(
  engine: Engine, name: str, divisor: str
) -> Iterator[tuple[Any, str]]:
  """Where a field is not a multiple of another, for `Engine.invalid`."""
  value, unit = getattr(engine, name), getattr(engine, divisor)
  if not is_traced(value, unit):
    yield (
      np.asarray(value) % np.asarray(unit),
      f"{name}={text_of(value)} is not a multiple of {divisor}={text_of(unit)};"
      f" choose {name} = {divisor} times an integer",
    )


def unboxed(value: Any) -> Any:
  """A single number of NumPy as Python's, everything else as it is.

  >>> unboxed(np.float64(0.25)), unboxed(np.array(3)), unboxed(np.arange(2))
  (0.25, 3, array([0, 1]))
  """
  is_single = isinstance(value, np.generic | np.ndarray) and value.ndim == 0
  return value.item() if is_single else value


def is_default(value: Any, default: Any) -> bool:
  """Whether a field holds its default; an array never does."""
  return not is_traced(value) and np.ndim(value) == 0 and value == default


def text_of(value: Any) -> str:
  """A field's value as specs write it; an array as a star."""
  if isinstance(value, bool):
    return "true" if value else "false"
  return "*" if is_traced(value) or np.ndim(value) else str(value)


def nearest(word: object, choices: Iterable[str]) -> str:
  """A hint for an error message: the closest choice, then all of them."""
  choices = sorted(filter(None, choices))
  close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
  hint = f"did you mean {close[0]!r}? Known" if close else "known"
  return f"{hint}: {', '.join(choices)}"
