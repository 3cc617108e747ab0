"""Exactness: int64 scoped to the call, refused past it, under any transform."""

import dataclasses
import functools
import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import Cost, Layers, Systolic, cost, parse
from figs_jax.engine.int64 import (
  Interval,
  array_dataclass,
  ceil_div,
  exact,
  is_traced,
)
from tests.engine.counting import counts

ROWS = [
  {"name": "qkv", "M": 196, "N": 768, "K": 768, "count": 3},
  {"name": "ff", "M": 196, "N": 3072, "K": 768, "pattern": "1:8"},
  {"name": "big", "M": 2**16, "N": 2**16, "K": 2**16, "pattern": "2:4"},
]
INTEGERS = [
  field.name
  for field in dataclasses.fields(Cost)
  if field.name not in ("utilisation", "energy_pj", "count")
]


@pytest.fixture(autouse=True)
def x64_stays_off():
  assert not jax.config.jax_enable_x64
  yield
  assert not jax.config.jax_enable_x64
  assert jnp.arange(3).dtype == jnp.int32


def ws(M, N, K, R, C):
  return -(-K // R) * -(-N // C) * (2 * R + C + M - 2)


def test_a_64k_cube_on_a_small_array_is_exact():
  side = 2**16
  got = counts(side, side, side, Systolic("ws", 8, 8))["cycles"]
  assert got.dtype == np.int64
  assert int(got) == ws(side, side, side, 8, 8) > 4e12


def test_totals_weigh_by_count_and_are_numpy():
  got = cost(ROWS, "ws:32x16")
  assert isinstance(got.cycles, np.ndarray)
  by_hand = sum(
    c * row.get("count", 1) for c, row in zip(got.cycles.tolist(), ROWS)
  )
  assert int(got.total("cycles")) == by_hand
  assert int(cost(ROWS[:1], "ws").total("metadata_bytes")) == 0


big = st.integers(1, 2**53)


@settings(deadline=None, max_examples=100)
@given(big, big, big, st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_a_result_is_exact_or_refused(M, N, K, R, C):
  expected = ws(M, N, K, R, C)
  try:
    got = counts(M, N, K, Systolic("ws", R, C))
  except ValueError as error:
    assert "does not fit int64" in str(error)
    words = (-(-N // C) * M * K, K * N, -(-K // R) * M * N)
    bytes_ = 2 * (M * K + K * N + M * N)
    assert max(expected, *words, bytes_) > 2**63 - 1
  else:
    assert int(got["cycles"]) == expected


def test_the_limit_itself_is_exact():
  M, array = 2**53 - 1, Systolic("ws", 1, 1)
  fits = counts(M, 1023, 1, array, itemsize=1)
  assert int(fits["cycles"]) == 1023 * (M + 1)
  assert int(fits["dram_bytes"]) == 1024 * M + 1023 == 2**63 - 1
  with pytest.raises(ValueError, match=r"cycles\[0\] = 9223372036854775808"):
    counts(M, 1024, 1, array, itemsize=1)  # 2^63, one too many


def test_a_total_past_int64_is_refused():
  row = {"name": "a", "M": 2**50, "N": 1, "K": 1024, "count": 2**10}
  got = cost([row], "ws:1x1", itemsize=1)
  with pytest.raises(ValueError, match="total.*does not fit int64"):
    got.total("cycles")


@pytest.mark.parametrize("wrong", [0, -1, 2**53 + 1, 2**64, 1.5])
def test_a_size_out_of_range_is_refused(wrong):
  with pytest.raises(ValueError, match="^K: expected integers"):
    counts(8, 8, wrong, Systolic("ws", 8, 8))


@pytest.mark.parametrize("spec", ["ws:8x8", "is:8x8:overlap=full", "os:8x8"])
def test_jit_vmap_and_eager_agree_in_int64(spec):
  layers, engine = Layers.of(ROWS), parse(spec)
  eager = cost(layers, engine)
  jitted = jax.jit(cost)(layers, engine)
  mapped = jax.vmap(cost, in_axes=(0, None))(layers, engine)
  both = jax.jit(jax.vmap(cost, in_axes=(0, None)))(layers, engine)
  for name in INTEGERS:
    for other in (jitted, mapped, both):
      assert getattr(other, name).dtype == np.int64
      np.testing.assert_array_equal(
        np.asarray(getattr(other, name)), getattr(eager, name)
      )
  total = jax.jit(lambda c: c.total("cycles"))(eager)
  assert int(jitted.total("cycles")) == int(eager.total("cycles"))
  assert total.dtype == np.int64


def test_a_total_inside_jit_is_exact():
  layers = Layers.of(ROWS)
  inside = jax.jit(lambda t: cost(t, "ws:8x8").total("cycles"))(layers)
  assert int(inside) == int(cost(layers, "ws:8x8").total("cycles"))


def test_designs_and_patterns_broadcast_and_map():
  layers = Layers.of(ROWS)
  R, C = np.array([8, 16, 32]), np.array([32, 16, 8])
  designs = Systolic("ws", R[:, None], C[:, None])
  grid = cost(layers, designs)
  assert grid.cycles.shape == (3, 3)
  singly = [cost(layers, Systolic("ws", int(r), int(c))) for r, c in zip(R, C)]
  np.testing.assert_array_equal(grid.cycles, [one.cycles for one in singly])
  np.testing.assert_array_equal(
    grid.total("cycles"), [int(one.total("cycles")) for one in singly]
  )
  mapped = jax.vmap(lambda r, c: cost(layers, Systolic("ws", r, c)))(R, C)
  np.testing.assert_array_equal(np.asarray(mapped.cycles), grid.cycles)
  n = np.array([1, 2, 4, 8])[:, None]
  sweep = cost(
    dataclasses.replace(layers, n=n, m=np.full_like(n, 8)), "ws:32x16"
  )
  assert sweep.cycles.shape == (4, 3)
  assert (np.diff(sweep.cycles, axis=0) > 0).all()


def test_a_second_call_does_not_recompile():
  traces = []
  table = Layers.of(ROWS)
  call = jax.jit(lambda t, e: (traces.append(1), cost(t, e))[1])
  call(table, Systolic("ws", 8, 8, name="array"))
  call(table, Systolic("ws", 16, 4, name="array"))
  assert len(traces) == 1


def test_works_and_is_left_alone_when_the_process_has_x64_on():
  with jax.enable_x64(True):
    got = cost(ROWS, "ws:8x8")
    assert jnp.arange(3).dtype == jnp.int64
  np.testing.assert_array_equal(got.cycles, cost(ROWS, "ws:8x8").cycles)


# Doubles hold all of the first sizes, and none of the chunks of the second.
@pytest.mark.parametrize("size", [1, 2**44])
@pytest.mark.parametrize("shape", [(7, 5), (3, 50), (1, 101)])
def test_chunks_agree_with_the_whole(shape, size, monkeypatch):
  rng = np.random.default_rng(0)
  M = size * rng.integers(1, 99, shape)
  engine = Systolic("ws", rng.integers(1, 99, (shape[0], 1)), 16)
  whole = counts(M, 64, 64, engine)
  monkeypatch.setattr("figs_jax.engine.int64._CHUNK", 16)
  parts = counts(M, 64, 64, engine)
  assert whole.keys() == parts.keys()
  for name, value in whole.items():
    assert parts[name].dtype == value.dtype
    np.testing.assert_array_equal(parts[name], value)


def test_an_error_inside_leaves_x64_off():
  with pytest.raises(ValueError):
    counts(2**53, 2**53, 2**53, Systolic("ws", 1, 1))
  with pytest.raises((TypeError, ValueError)):
    jax.jit(lambda x: counts(x, x, jnp.ones((2, 3)), Systolic("ws", 1, 1)))(
      jnp.ones((5,), jnp.int32)
    )


def test_a_concrete_cost_needs_neither_a_device_nor_a_config():
  code = (
    "import json, sys, jax, figs_jax.engine as e;"
    "from jax._src import xla_bridge;"
    "got = e.cost([dict(name='a', M=65536, N=65536, K=65536)], 'ws:8x8');"
    "got = int(got.total('cycles'));"
    "used = bool(xla_bridge._backends);"
    "rooms = [m for m in sys.modules if m.startswith('figs_jax.')];"
    "print(json.dumps([used, got, jax.config.jax_enable_x64, rooms]))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  used, got, x64, rooms = json.loads(done.stdout)
  assert not used and not x64
  assert got == ws(65536, 65536, 65536, 8, 8)
  ours = ("figs_jax.engine", "figs_jax.core")
  assert all(room.startswith(ours) for room in rooms)


@array_dataclass()
@dataclasses.dataclass(frozen=True)
class Gemm:
  M: Any
  K: Any


@array_dataclass("doubled", labels=("name",))
@dataclasses.dataclass(frozen=True)
class Toy:
  rows: Any
  gemm: Gemm = Gemm(1, 1)
  doubled: bool = False
  name: str = "toy"

  def __post_init__(self):
    if not is_traced(self.rows):
      assert isinstance(self.rows, int | np.ndarray)


seen = []


@functools.partial(exact, limits={"rows": (1, 99), "n": (0, 7), "M": (1, 9)})
def toy_counts(gemm, toy, n, *, itemsize):
  seen.append((toy.name, toy.doubled))
  folds = ceil_div(gemm.K, toy.rows) * (2 if toy.doubled else 1)
  return {
    "cycles": folds * gemm.M + n,
    "inner": toy.gemm.M,
    "bytes": itemsize * n,
  }


def test_a_formula_takes_dataclasses_beside_sizes():
  rows = np.array([[2], [3]])
  gemm, toy = Gemm(np.array([4, 5, 6]), 7), Toy(rows, Gemm(1, 2), True)
  got = toy_counts(gemm, toy, 1, itemsize=3)
  want = -(-7 // rows) * 2 * np.array([4, 5, 6]) + 1
  np.testing.assert_array_equal(got["cycles"], want)
  assert int(got["inner"].max()) == 1 and int(got["bytes"].max()) == 3
  traced = jax.jit(lambda g, t: toy_counts(g, t, 1, itemsize=3))(gemm, toy)
  np.testing.assert_array_equal(traced["cycles"], want)
  bound = toy_counts(Gemm(Interval.of(4), 7), toy, 1, itemsize=3)
  assert isinstance(bound["cycles"], Interval)


@pytest.mark.parametrize(
  ("args", "field"),
  [
    ((Gemm(4, 7), Toy(100), 1), "rows"),
    ((Gemm(10, 7), Toy(3), 1), "M"),
    ((Gemm(4, 0), Toy(3), 1), "K"),
    ((Gemm(4, 7), Toy(3, Gemm(10, 1)), 1), "M"),
    ((Gemm(4, 7), Toy(3), 8), "n"),
  ],
)
def test_a_field_is_checked_by_its_name(args, field):
  with pytest.raises(ValueError, match=f"^{field}: expected integers"):
    toy_counts(*args, itemsize=1)


def test_a_label_makes_nothing_anew_and_static_fields_do():
  args = Gemm(4, 7), Toy(3, name="first"), 1
  toy_counts(*args, itemsize=1)
  seen.clear()
  toy_counts(Gemm(4, 7), Toy(3, name="second"), 1, itemsize=1)
  bounded = len(seen)
  assert all(name == "" for name, _ in seen)
  toy_counts(Gemm(4, 7), Toy(3, doubled=True), 1, itemsize=1)
  assert len(seen) > 2 * bounded and seen[-1] == ("", True)


def test_a_formula_neither_keeps_nor_changes_its_sizes():
  def grow(x):
    x += 1
    return {"x": x}

  size = np.array([1, 2])
  exact(lambda x: {"x": x})(size)["x"][:] = 7
  with pytest.raises(ValueError, match="read-only"):
    exact(grow)(size)
  assert size.tolist() == [1, 2]


def test_no_sizes_give_no_results():
  none = counts(np.zeros(0, int), 4, 4, Systolic("ws", 8, 8))
  assert none["cycles"].shape == (0,) and none["cycles"].dtype == np.int64


@pytest.mark.parametrize(
  "wrong", [True, np.array([1.0]), np.array([1, 1.5], object), None, "8"]
)
def test_what_is_not_an_integer_is_refused(wrong):
  with pytest.raises(ValueError, match="^K: expected integers, got .* values"):
    counts(8, 8, wrong, Systolic("ws", 8, 8))


def test_tables_within_the_same_powers_of_two_share_their_bounds():
  runs = []
  area = exact(lambda a, b: (runs.append(type(a)), {"area": a * b})[1])
  for a, b in ((5, 9), (6, 11), (7, 15)):
    assert area(a, np.array([b]))["area"].tolist() == [a * b]
  assert runs.count(Interval) == 1
