"""Bounds enclose what formulas reach; quotients in floating point are exact."""

import copy
import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from figs_jax.engine import Gemm, parse
from figs_jax.engine._cost import gemm_cost
from figs_jax.engine.int64 import (
  INT64_MAX,
  Doubles,
  Interval,
  Longs,
  _Doubles,
  ceil_div,
  exact,
  fastest,
  larger,
  smaller,
)

laws = settings(deadline=None, max_examples=40)
ENGINES = [
  "ws:overlap=weights", "is", "os:overlap=full", "figs", "csr:h200",
  "figs:overlap=full:exchange=swap", "vegeta:overlap=full", "tensorcore:h200",
  "tensorcore:a100:fallback=true",
]  # fmt: skip
OPS = [operator.add, operator.sub, operator.mul, min, max]
DIVISIONS = [operator.floordiv, operator.mod, operator.truediv]


def point(x):
  return Interval(x, x)


def with_leaves(engine, make):
  """The engine with each numeric field replaced; designs go unchecked."""
  engine = copy.copy(engine)
  for field in engine.numeric():
    value = make(field.name, getattr(engine, field.name))
    object.__setattr__(engine, field.name, value)
  return engine


@laws
@given(
  st.sampled_from(ENGINES),
  st.lists(st.lists(st.integers(1, 2**14), min_size=3, max_size=3),
           min_size=1, max_size=4),
  st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)),
           min_size=4, max_size=4),
  st.lists(st.sampled_from([16, 32, 48, 64]), min_size=4, max_size=4),
)  # fmt: skip
def test_bounds_enclose_every_result_and_all_on_the_way(
  spec, gemms, patterns, rows
):
  engine = parse(spec)
  M, N, K = (np.array(column, object) for column in zip(*gemms))
  m = np.array([2 ** max(a, b) for a, b in patterns[: len(M)]], object)
  n = np.array([2**a for a, _ in patterns[: len(M)]], object)
  rows = np.array(rows[: len(M)], object)

  def run(number):
    def leaf(name, value):
      return number(rows if name == "rows" else np.array([value], object))

    sizes = [number(x) for x in (M, N, K, n, m)]
    return gemm_cost(Gemm(*sizes), with_leaves(engine, leaf))

  bounds, points = run(Interval.of), run(point)
  assert bounds.keys() == points.keys()
  for name, bound in bounds.items():
    assert np.max(points[name].peak) <= bound.peak
    low, high = np.min(points[name].least), np.max(points[name].most)
    assert bound.least <= low and high <= bound.most
    assert isinstance(bound.most, int) == bound.whole == points[name].whole


numbers = st.integers(-(2**70), 2**70)


@settings(deadline=None, max_examples=200)
@given(st.lists(numbers, min_size=1, max_size=4), st.data())
def test_an_operation_encloses_its_points(xs, data):
  op = data.draw(st.sampled_from(OPS + DIVISIONS))
  positive = st.integers(1, data.draw(st.sampled_from([3, 2**70])))
  ys = data.draw(
    st.lists(positive if op in DIVISIONS else numbers, min_size=1, max_size=4)
  )
  x, y = (Interval.of(np.array(v, object)) for v in (xs, ys))
  got = Interval.apply(op, x, y)
  for value in (op(a, b) for a in xs for b in ys):
    assert got.least <= value <= got.most
    assert op is operator.truediv or got.peak >= abs(value)
  if op in (operator.floordiv, operator.mod):
    assert got.divisor == max(ys)
  if len(xs) == len(ys) == 1:  # of points, bounds are exact
    assert got.least == got.most == op(xs[0], ys[0])


@functools.cache
def divider(kind, divisor=None):
  """Jitted quotient and remainder; XLA multiplies by a constant's inverse."""

  def divide(a, b):
    a, b = kind(a), kind(b) if divisor is None else divisor
    return [x.x.astype(jnp.int64) for x in (a // b, a % b, ceil_div(a, b))]

  return jax.jit(divide)


LIMITS = {Doubles: 2**51, Longs: 2**62}


@st.composite
def near_multiples(draw, most):
  """(a, b) with a within 2 of a multiple of b, both up to the limits."""
  b = draw(st.integers(1, 2**51) | st.sampled_from([1, 2, 3, 49, 2**51]))
  q = draw(st.integers(0, most // b) | st.just(most // b))
  return min(max(q * b + draw(st.integers(-2, 2)), 0), most), b


@pytest.mark.parametrize("kind", [Doubles, Longs])
@pytest.mark.parametrize("sign", [1, -1])
def test_quotients_are_exact_up_to_the_limits(kind, sign):
  @settings(deadline=None, max_examples=300)
  @given(near_multiples(LIMITS[kind]))
  @example((49 * 10**6, 49))
  @example((LIMITS[kind], 1))
  @example((LIMITS[kind] - 1, 2**51))
  def check(pair):
    a, b = sign * pair[0], pair[1]
    want = [a // b, a % b, -(-a // b)]
    with jax.enable_x64(True):
      for shape in ((), (3,)):  # a scalar divisor is inverted
        args = np.full(3, a, np.int64), np.full(shape, b, np.int64)
        got = divider(kind)(*args)
        assert [x.tolist() for x in got] == [[x] * 3 for x in want]

  check()


@settings(deadline=None, max_examples=500)
@given(
  st.integers(1, 2**53 - 1) | st.sampled_from([1, 2, 3, 49, 2**52]), st.data()
)
def test_doubles_of_numpy_divide_exactly(b, data):  # fmt: skip
  most = 2**53 - 1 - b  # |a| + b < 2^53
  near = data.draw(st.integers(0, most // b) | st.just(most // b)) * b
  a = min(max(near + data.draw(st.integers(-2, 2)), 0), most)
  a *= data.draw(st.sampled_from([1, -1]))
  x, y = (np.full(2, value, float).view(_Doubles) for value in (a, b))
  for quotient in (x // y, x // b, a // y, -ceil_div(-x, y)):
    assert quotient.tolist() == [a // b] * 2
  for rest in (x % y, x % b, a % y):
    assert rest.tolist() == [a % b] * 2


@pytest.mark.parametrize("kind", [Doubles, Longs])
@pytest.mark.parametrize("divisor", [1, 3, 4, 49, 10**6 + 3])
def test_quotients_by_a_constant_are_exact(kind, divisor):
  rng = np.random.default_rng(0)
  q = rng.integers(0, LIMITS[kind] // divisor, 10**4)
  a = np.concatenate([q * divisor, q * divisor - 1, np.arange(10**4)])
  with jax.enable_x64(True):
    quotient, rest, up = divider(kind, divisor)(a, np.int64(1))
  np.testing.assert_array_equal(quotient, a // divisor)
  np.testing.assert_array_equal(rest, a % divisor)
  np.testing.assert_array_equal(up, -(-a // divisor))


def test_the_kind_follows_from_peak_and_divisor():
  kinds = {2**51: Doubles, 2**51 + 1: Longs, 2**62: Longs, 2**62 + 1: None}
  for peak, kind in kinds.items():
    assert fastest([Interval.of(3), Interval.of(peak)]) is kind
  assert fastest([Interval(0, 1, 2**52, 2**51)]) is Longs
  assert fastest([Interval(0, 1, 2**52, 2**51 + 1)]) is None


@pytest.mark.parametrize("spec", ENGINES)
@pytest.mark.parametrize("scale", [1, 2**19, 2**27])
def test_all_kinds_agree_with_python_integers(spec, scale, monkeypatch):
  rng, size = np.random.default_rng(scale), 32
  M, N, K = rng.integers(1, [[2048], [max(4096 // scale, 2)], [64]], (3, size))
  M = M * scale + rng.integers(0, 7, size)
  m = 2 ** rng.integers(0, 5, size)
  n = np.maximum(m // 2, 1)

  def run(number):
    leaves = with_leaves(parse(spec), lambda name, value: number(value))
    return gemm_cost(Gemm(*map(number, (M, N, K, n, m))), leaves)

  want = run(lambda x: point(np.atleast_1d(x).astype(object)))
  results = [run(lambda x: x)]
  monkeypatch.setattr("figs_jax.engine.int64._CHUNK", 8)
  results.append(run(lambda x: x))
  kind = {1: Doubles, 2**19: Longs}.get(scale)
  if kind is not None:
    with jax.enable_x64(True):
      numbers = run(kind)
    results.append({k: getattr(x, "x", x) for k, x in numbers.items()})
  for result, (name, value) in itertools.product(results, want.items()):
    have = np.asarray(result[name])
    if value.whole:
      np.testing.assert_array_equal(have, value.most.astype(np.int64), name)
    else:
      expected = value.most.astype(float)
      np.testing.assert_allclose(have, expected, rtol=1e-13, err_msg=name)


def test_what_wraps_only_on_the_way_is_refused():
  area = exact(lambda a, b: {"one": a, "half": a * b // (b + b)})
  assert int(area(2**40, 2**21)["half"]) == 2**39
  with pytest.raises(ValueError, match=r"half\[1\] needs 18446744\d+ on the"):
    area(np.array([1, 2**40]), 2**24)


@pytest.mark.parametrize("limit", [2**40, 2**62])
def test_elements_below_their_common_bound_are_exact(limit):
  # The bound takes the largest of a with the largest of b.
  a = np.array([1, 2**20, limit, 3])
  b = np.array([limit, 2**20, 1, 2**61])
  product = exact(lambda a, b: {"c": a * b, "d": smaller(a, b) // larger(b, 7)})
  got = product(a, b)
  assert got["c"].tolist() == [x * y for x, y in zip(a.tolist(), b.tolist())]
  b[3] = (INT64_MAX + 3) // 3
  with pytest.raises(ValueError, match=r"c\[3\] = 9223372036854775809"):
    product(a, b)
