"""What every engine must satisfy: one contract, one table of engines."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import Cost, Layers, cost, parse
from figs_jax.engine.timing import PARTS

ENGINES = [
  "ws:8x4",
  "is:8x4:overlap=weights:bw_in=3",
  "os:8x4:overlap=full:bw_out=3",
  "ws:8x4:dram_bw=1",
  "vegeta-s-2-2:8x4",
  "vegeta-d-1-2:8x4:overlap=weights",
  "vegeta-s-4-1:8x4:overlap=full:tile=5:bw_in=7",
  "figs:8x4:alpha=7",
  "figs:8x4:alpha=3:beta=2:sigma=1:overlap=full:bw_out=3",
  "figs:8x4:alpha=3:exchange=swap:overlap=weights:load=2",
  "figs:8x4:alpha=3:block=4:bw_in=3:dram_bw=2",
  "tpu:v5e",
  "gpu:a100",
  "tensorcore:h200",
  "csr:h200",
  "csr:a100:reuse=false",
]
# Each fits blocks of 2, 4 and 8.
PATTERNS = ["dense", "1:2", "2:4", "1:4", "3:4", "1:8", "5:8", "1:16", "6:16"]
every = pytest.mark.parametrize("spec", ENGINES)
# One of each class, for what must be compiled.
one_of_each = pytest.mark.parametrize(
  "spec",
  [
    "is:8x4:overlap=weights:bw_in=3",
    "vegeta-s-4-1:8x4:overlap=full:tile=5:bw_in=7",
    "figs:8x4:alpha=3:exchange=swap:overlap=weights:load=2",
    "tensorcore:h200",
    "csr:h200",
  ],
)
laws = settings(deadline=None, max_examples=20)
sizes = st.integers(1, 60)


def integers(costs):
  return {
    field.name: getattr(costs, field.name)
    for field in dataclasses.fields(Cost)
    if field.name not in ("utilisation", "energy_pj", "count")
  }


def rows(M=13, N=21, K=48):
  sizes = {"M": M, "N": N, "K": K}
  return [{"name": p, "pattern": p} | sizes for p in PATTERNS]


@every
@laws
@given(sizes, sizes, sizes)
def test_parts_add_up_and_nothing_is_used_twice(spec, M, N, K):
  costs = cost(rows(M, N, K), spec)
  parts = [getattr(costs, name) for name in PARTS]
  np.testing.assert_array_equal(sum(parts), costs.cycles)
  assert min(part.min() for part in parts) >= 0
  assert (costs.utilisation > 0).all() and (costs.utilisation <= 1).all()
  assert (costs.energy_pj > 0).all()
  for name, value in integers(costs).items():
    assert value.dtype == np.int64 and value.shape == (len(PATTERNS),), name


@one_of_each
def test_jit_and_vmap_agree_with_eager(spec):
  table, engine = Layers.of(rows()), parse(spec)
  eager = cost(table, engine)
  with jax.enable_x64(True):
    jitted = jax.jit(cost)(table, engine)
    mapped = jax.vmap(lambda M: cost(dataclasses.replace(table, M=M), engine))(
      jnp.asarray([[13], [5]])
    )
    jitted, mapped = jax.device_get((jitted, mapped))
  for name, value in integers(eager).items():
    np.testing.assert_array_equal(getattr(jitted, name), value, name)
    np.testing.assert_array_equal(getattr(mapped, name)[0], value, name)
  np.testing.assert_allclose(jitted.energy_pj, eager.energy_pj, rtol=1e-12)
  other = cost(rows(M=5), spec)
  np.testing.assert_array_equal(mapped.cycles[1], other.cycles)


@every
def test_arrays_of_designs_are_the_designs_one_by_one(spec):
  engine = parse(spec)
  # Twice, four times every number that has no bound from another one.
  grow = [
    name
    for name in ("rows", "cols", "peak", "hbm", "bw_in", "bw_out", "dram_bw")
    if getattr(engine, name, 2**30) < 2**30
  ]
  factors = [1, 2, 4]
  scaled = {
    name: np.array([[getattr(engine, name) * f] for f in factors])
    for name in grow
  }
  grid = cost(rows(), dataclasses.replace(engine, **scaled))
  assert grid.cycles.shape == (3, len(PATTERNS))
  for i in range(3):
    one = {name: int(value[i, 0]) for name, value in scaled.items()}
    alone = cost(rows(), dataclasses.replace(engine, **one))
    for name, value in integers(alone).items():
      np.testing.assert_array_equal(getattr(grid, name)[i], value, name)


@every
def test_more_work_never_takes_less_time(spec):
  base = cost(rows(), spec).cycles
  for name in ("M", "N", "K"):
    more = {"M": 13, "N": 21, "K": 48}
    more[name] *= 3
    assert (cost(rows(**more), spec).cycles >= base).all(), name


@every
def test_a_kept_weight_more_never_saves_traffic(spec):
  table = [{"name": p, "M": 9, "N": 16, "K": 64, "pattern": p}
           for p in ("1:8", "2:8", "4:8", "dense")]  # fmt: skip
  assert (np.diff(cost(table, spec).dram_bytes) >= 0).all()


@one_of_each
def test_a_second_call_does_not_recompile(spec):
  traces, engine = [], parse(spec)
  call = jax.jit(lambda table: (traces.append(1), cost(table, engine))[1])
  call(Layers.of(rows()))
  call(Layers.of(rows(M=7)))
  assert len(traces) == 1


@every
def test_an_overflow_is_refused_and_never_wrapped(spec):
  side = 2**50
  row = {"name": "huge", "M": side, "N": side, "K": side}
  with pytest.raises(ValueError, match="^layer 'huge': .*(fit|past) int64"):
    cost([*rows(), row], spec)


@pytest.mark.parametrize(
  "spec, pattern, message",
  [
    ("vegeta-s-1-2", "1:6", "pattern 1:6 does not fit .*blocks of 4"),
    ("tensorcore:a100", "2:5", "pattern 2:5 does not fit .*blocks of 4"),
    ("figs:alpha=3", "1:6", "pattern 1:6 does not fit .*blocks of 4"),
    ("figs:4x4", "1:8", "block of 8 rows is longer than rows=4; set rows=8"),
    ("figs:exchange=swap", "1:6", "not a power of two.*exchange='mux'"),
  ],
)
def test_a_pattern_that_does_not_fit_names_its_layer(spec, pattern, message):
  bad = {"name": "odd", "M": 4, "N": 4, "K": 24, "pattern": pattern}
  with pytest.raises(ValueError, match=f"^layer 'odd': .*{message}") as caught:
    cost([*rows(), bad] if "4x4" not in spec else [bad], spec)
  assert "\n" not in str(caught.value)


def test_masks_beside_traced_sizes_are_refused():
  mask = np.tile([[True], [False]], (4, 8))
  table = Layers.of(
    [{"name": "a", "M": 4, "N": 8, "K": 8, "pattern": "1:2", "mask": mask}]
  )
  with pytest.raises(ValueError, match="masks are read on the host"):
    jax.jit(lambda M: cost(dataclasses.replace(table, M=M), "figs:8x4").cycles)(
      jnp.array([4])
    )
