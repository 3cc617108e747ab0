"""The closed forms against SCALE-Sim's rows, simulated arrays and laws.

data/scalesim*.csv hold what SCALE-Sim 3.0.0 reported, data/llmcompass.csv some
rows of LLMCompass' look-up tables (PrincetonUniversity/LLMCompass, 2e015fd),
which SCALE-Sim filled. It counts one cycle less than the closed form.
"""

import csv
import itertools
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.engine import Gemm, cost, parse, sweep
from figs_jax.engine.spec import OVERLAPS
from figs_jax.engine.systolic import DATAFLOWS, Systolic
from tests.engine.counting import counts

DATA = pathlib.Path(__file__).parent / "data"
sizes = st.integers(1, 40)
sides = st.integers(1, 12)
laws = settings(deadline=None, max_examples=60)


@st.composite
def patterns(draw, limit=16):
  m = draw(st.integers(1, limit))
  return NM(draw(st.integers(1, m)), m)


def read(name):
  """The columns of a CSV: text, or floats where all of it is numbers."""
  with open(DATA / name) as file:
    rows = list(csv.DictReader(file))
  columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
  for key, column in columns.items():
    try:
      columns[key] = column.astype(float)
    except ValueError:
      continue
  return columns


def integers(table, *keys):
  return [table[key].astype(np.int64) for key in keys]


@pytest.mark.parametrize("dataflow, rows", [("ws", 45), ("is", 56), ("os", 49)])
def test_scalesim_dense_rows_are_exact(dataflow, rows):
  table = read("scalesim.csv")
  here = table["dataflow"] == dataflow
  table = {key: column[here] for key, column in table.items()}
  M, N, K, R, C = integers(table, "M", "N", "K", "R", "C")
  got = counts(M, N, K, Systolic(dataflow, R, C))
  assert len(M) == rows
  np.testing.assert_array_equal(got["cycles"] - 1, table["cycles_total"])
  np.testing.assert_array_equal(got["ifmap_reads"], table["ifmap_sram_reads"])
  np.testing.assert_array_equal(got["filter_reads"], table["filter_sram_reads"])
  # The tool adds R + C per fold to the outputs of os: an artefact.
  artefact = -(-M // R) * -(-N // C) * (R + C) * (dataflow == "os")
  reported = table["ofmap_sram_writes"]
  np.testing.assert_array_equal(got["ofmap_writes"], reported - artefact)
  # The tool's percentages have four decimals, its utilisation one cycle less.
  np.testing.assert_allclose(
    got["mapping_efficiency"] * 100, table["mapping_eff_pct"], atol=6e-5
  )
  fewer = got["utilisation"] * got["cycles"] / (got["cycles"] - 1)
  np.testing.assert_allclose(fewer * 100, table["overall_util_pct"], atol=6e-5)


def patterns_of(column):
  """n and m of a column of texts."""
  nm = [NM.parse(str(text)) for text in column]
  return np.array([p.n for p in nm]), np.array([p.m for p in nm])


def test_scalesim_layer_wise_sparse_rows_are_exact():
  table = read("scalesim_sparse.csv")
  M, N, K, R, C = integers(table, "M", "N", "K", "R", "C")
  n, m = patterns_of(table["NM"])
  got = counts(M, N, K, Systolic("ws", R, C), n, m)
  assert len(M) == 36
  np.testing.assert_array_equal(got["cycles"] - 1, table["cycles_total"])
  reads = np.minimum(-(-N // C) * M * K, table["ifmap_sram_reads"])
  np.testing.assert_array_equal(got["ifmap_reads"], reads)
  np.testing.assert_array_equal(got["filter_reads"], table["filter_sram_reads"])
  np.testing.assert_allclose(
    got["mapping_efficiency"] * 100, table["mapping_eff_pct"], atol=6e-4
  )
  # Words of 32 bits. The tool stores indices for 4:4 too; we do not.
  stored = np.where(n < m, np.ceil(table["metadata_words"] * 4), 0)
  np.testing.assert_array_equal(got["metadata_bytes"], stored)


@pytest.mark.parametrize("dataflow, rows", [("ws", 14), ("is", 9), ("os", 16)])
def test_scalesim_rows_of_any_depth_are_exact(dataflow, rows):
  table = read("scalesim_ragged.csv")
  here = table["dataflow"] == dataflow
  table = {key: column[here] for key, column in table.items()}
  M, N, K, R, C = integers(table, "M", "N", "K", "R", "C")
  n, m = patterns_of(table["pattern"])
  got = counts(M, N, K, Systolic(dataflow, R, C), n, m)
  assert len(M) == rows and (K % m > 0).sum() > rows / 2
  np.testing.assert_array_equal(got["cycles"] - 1, table["cycles_total"])
  np.testing.assert_array_equal(table["stalls"], 0)
  np.testing.assert_array_equal(got["filter_reads"], table["filter_reads"])
  artefact = -(-M // R) * -(-N // C) * (R + C) * (dataflow == "os")
  reported = table["ofmap_writes"]
  np.testing.assert_array_equal(got["ofmap_writes"], reported - artefact)
  np.testing.assert_allclose(
    got["mapping_efficiency"] * 100, table["mapping_eff_pct"], rtol=1e-12
  )
  stored = np.where(n < m, np.ceil(table["metadata_words"] * 4), 0)
  np.testing.assert_array_equal(got["metadata_bytes"], stored)
  # Each activation once per fold of columns, though the tool reads m / n for
  # each kept weight ("ws"), or the kept ones alone.
  dense = counts(M, N, K, Systolic(dataflow, R, C))
  np.testing.assert_array_equal(got["ifmap_reads"], dense["ifmap_reads"])
  larger = np.where(dataflow == "ws", table["ifmap_reads"], np.inf)
  assert (got["ifmap_reads"] <= larger).all()


@pytest.mark.parametrize(
  "spec, M, N, K, pattern, reported",
  [
    ("ws:4x4", 2, 1, 5, "3:4", 11),
    ("ws:16x24", 20, 67, 100, "5:8", 887),
    ("os:16x24", 44, 41, 93, "3:4", 647),
  ],
)
def test_a_last_part_keeps_no_more_than_it_has(
  spec, M, N, K, pattern, reported
):
  row = {"name": "a", "M": M, "N": N, "K": K, "pattern": pattern}
  assert cost([row], spec).cycles[0] == reported + 1
  # A sweep and traced sizes agree.
  axes = {"M": [M], "N": [N], "K": [K, 2 * K + 1], "pattern": pattern}
  assert sweep(spec, axes).smallest("cycles")["cycles"].item() == reported + 1
  array, (n, m) = parse(spec), patterns_of([pattern])
  with jax.enable_x64(True):
    traced = jax.jit(lambda *sizes: array.counts(Gemm(*sizes)))
    got = traced(M, N, K, n[0], m[0])
  want = array.counts(Gemm(M, N, K, n[0], m[0]))
  assert {key: float(x) for key, x in got.items()} == pytest.approx(
    {key: float(x) for key, x in want.items()}, rel=1e-15
  )


def test_a_sparse_layer_reads_no_more_activations_than_a_dense_one():
  dense = {"name": "a", "M": 64, "N": 64, "K": 33}
  reads = cost([dense, dense | {"pattern": "1:32"}], "ws:32x32").ifmap_reads
  assert reads.tolist() == [4224, 4224]


def test_look_up_tables_of_llmcompass_are_exact():
  table = read("llmcompass.csv")
  sizes = integers(table, "M", "N", "K", "R", "C")
  assert len(set(table["table"])) == 6
  for dataflow, reported, util, M, N, K, R, C in zip(
    table["dataflow"], table["cycles_total"], table["overall_util_pct"], *sizes
  ):
    got = counts(M, N, K, Systolic(str(dataflow), R, C))
    assert got["cycles"] == reported + 1
    share = got["utilisation"] * got["cycles"] / reported
    assert 100 * share == pytest.approx(util, abs=6e-4)


def by_folds(M, N, K, R, C, dataflow, overlap):
  """Walks the folds one after the other, with what each of them uses."""
  down, across, T = {"ws": (K, N, M), "is": (K, M, N), "os": (M, N, K)}[
    dataflow
  ]
  load = 0 if dataflow == "os" else R
  fill = R + C - 2
  clock = {"none": 0, "weights": load, "full": load + fill}[overlap]
  used, words = [], np.zeros(3, int)
  for top, left in itertools.product(range(0, down, R), range(0, across, C)):
    r, c = min(R, down - top), min(C, across - left)
    clock += {
      "none": load + T + fill, "weights": T + fill, "full": max(T, load)
    }[overlap]  # fmt: skip
    used.append(r * c / (R * C))
    words += {
      "ws": (r * T, r * c, c * T),  # activations, weights, partial sums
      "is": (r * c, r * T, c * T),
      "os": (r * T, c * T, r * c),
    }[dataflow]
  return clock, np.mean(used), words


@laws
@given(sizes, sizes, sizes, sides, sides, st.sampled_from(DATAFLOWS),
       st.sampled_from(OVERLAPS))  # fmt: skip
@example(2, 5, 30, 8, 3, "ws", "full")  # a stream shorter than the load
@example(5, 2, 30, 8, 3, "is", "full")
def test_closed_form_is_the_sum_over_folds(M, N, K, R, C, dataflow, overlap):
  got = counts(M, N, K, Systolic(dataflow, R, C, overlap))
  clock, mapping, words = by_folds(M, N, K, R, C, dataflow, overlap)
  assert got["cycles"] == clock
  np.testing.assert_allclose(got["mapping_efficiency"], mapping, rtol=1e-12)
  np.testing.assert_allclose(
    got["utilisation"], M * N * K / (clock * R * C), rtol=1e-12
  )
  names = ("ifmap_reads", "filter_reads", "ofmap_writes")
  assert [got[name] for name in names] == words.tolist()


def run_stationary(held, index, stream):
  """Clocks one fold of an array that holds R x C values.

  Args:
    held: (R, C) stationary values.
    index: (R, C), which entry of a row's payload a cell multiplies with.
    stream: (T, R, payload), entered at column 0, row r one cycle after r - 1.

  Returns:
    (T, C) sums leaving the last row, and the cycles taken.
  """
  R, C = held.shape
  T = len(stream)
  cells, clock = np.zeros((R, C)), 0
  for row in held[::-1]:  # one row of values enters from above per cycle
    cells = np.vstack([row, cells[:-1]])
    clock += 1
  step = np.full((R, C), -1)  # which streamed step a cell works on
  sums, out, left = np.zeros((R, C)), np.zeros((T, C)), T * C
  for tick in itertools.count():
    if not left:
      return out, clock
    enters = np.array([tick - r if 0 <= tick - r < T else -1 for r in range(R)])
    step = np.hstack([enters[:, None], step[:, :-1]])
    above = np.vstack([np.zeros(C), sums[:-1]])
    payload = stream[step, np.arange(R)[:, None], index]
    sums = np.where(step >= 0, above + cells * payload, 0)
    for c in np.flatnonzero(step[-1] >= 0):
      out[step[-1, c], c] = sums[-1, c]
      left -= 1
    clock += 1


def compressed(rng, K, N, nm):
  """A weight (K, N) and, per column, the values and places that it keeps.

  Returns:
    w, (K, N); values and places, (kept, N): places count within a group; and
    the group of each row of these.
  """
  w, values, places, groups = np.zeros((K, N)), [], [], []
  for start in range(0, K, nm.m):
    length = min(nm.m, K - start)
    kept = min(nm.n, length)
    place = rng.random((length, N)).argsort(0)[:kept]
    value = rng.integers(1, 9, (kept, N)).astype(float)
    w[start + place, np.arange(N)] = value
    values.append(value)
    places.append(place)
    groups += [start // nm.m] * kept
  return w, np.concatenate(values), np.concatenate(places), np.array(groups)


def grouped(x, nm):
  """(M, groups, m), the last one padded."""
  M, K = x.shape
  padded = np.pad(x, [(0, 0), (0, -K % nm.m)])
  return padded.reshape(M, -1, nm.m)


ragged = (
  st.integers(1, 9), st.integers(1, 9), st.integers(1, 13), st.integers(1, 5),
  st.integers(1, 5), patterns(5), st.integers(0, 99),
)  # fmt: skip


@laws
@given(*ragged)
@example(2, 1, 5, 4, 4, NM(3, 4), 0)
def test_a_clocked_ws_array_computes_the_product_in_these_cycles(
  M, N, K, R, C, nm, seed
):
  rng = np.random.default_rng(seed)
  x = rng.integers(-9, 9, (M, K)).astype(float)
  w, values, places, groups = compressed(rng, K, N, nm)
  # A row streams its whole group, from which each cell selects.
  payload = grouped(x, nm)[:, groups]
  out, clock = np.zeros((M, N)), 0
  for top, left in itertools.product(range(0, len(values), R), range(0, N, C)):
    part = np.s_[top : top + R, left : left + C]
    r, c = values[part].shape
    held, index = np.zeros((R, C)), np.zeros((R, C), int)
    held[:r, :c], index[:r, :c] = values[part], places[part]
    stream = np.zeros((M, R, nm.m))
    stream[:, :r] = payload[:, top : top + R]
    sums, taken = run_stationary(held, index, stream)
    out[:, left : left + C] += sums[:, :c]
    clock += taken
  np.testing.assert_array_equal(out, x @ w)
  got = counts(M, N, K, Systolic("ws", R, C), nm.n, nm.m)
  assert got["cycles"] == clock


@laws
@given(*ragged)
@example(2, 1, 5, 4, 4, NM(3, 4), 0)
def test_a_clocked_is_array_computes_the_product_in_these_cycles(
  M, N, K, R, C, nm, seed
):
  rng = np.random.default_rng(seed)
  x = rng.integers(-9, 9, (M, K)).astype(float)
  w, values, places, groups = compressed(rng, K, N, nm)
  # A cell holds its whole group; a weight that passes brings its place in it,
  # as one number of the payload.
  spread = np.zeros((N, len(groups), nm.m))
  np.put_along_axis(spread, places.T[..., None], values.T[..., None], 2)
  out, clock = np.zeros((N, M)), 0
  for top, left in itertools.product(range(0, len(groups), R), range(0, M, C)):
    held = grouped(x, nm)[left : left + C, groups[top : top + R]]
    c, r, _ = held.shape
    stream, taken = np.zeros((N, R, nm.m)), 0
    stream[:, :r] = spread[:, top : top + R]
    for place in range(nm.m):
      cells = np.zeros((R, C))
      cells[:r, :c] = held[..., place].T
      sums, taken = run_stationary(cells, np.full((R, C), place), stream)
      out[:, left : left + C] += sums[:, :c]
    clock += taken
  np.testing.assert_array_equal(out, (x @ w).T)
  got = counts(M, N, K, Systolic("is", R, C), nm.n, nm.m)
  assert got["cycles"] == clock


@laws
@given(*ragged)
@example(5, 6, 7, 4, 4, NM(3, 4), 0)
def test_a_clocked_os_array_computes_the_product_in_these_cycles(
  M, N, K, R, C, nm, seed
):
  rng = np.random.default_rng(seed)
  x = rng.integers(-9, 9, (M, K)).astype(float)
  w, values, places, groups = compressed(rng, K, N, nm)
  payload, T = grouped(x, nm)[:, groups], len(groups)
  out, clock = np.zeros((M, N)), 0
  for top, left in itertools.product(range(0, M, R), range(0, N, C)):
    a, b = np.zeros((R, T, nm.m)), np.zeros((T, C))
    place = np.zeros((T, C), int)
    a[: len(x[top : top + R])] = payload[top : top + R]
    c = w[:, left : left + C].shape[1]
    b[:, :c], place[:, :c] = (y[:, left : left + C] for y in (values, places))
    # Registers move one cell per cycle: steps and groups of activations east,
    # weights and their places south.
    east, south, sums = np.zeros((R, C, nm.m)), np.zeros((R, C)), 0
    step, chosen = np.full((R, C), -1), np.zeros((R, C), int)
    tick = 0
    while step[-1, -1] < T - 1:
      k = tick - np.arange(R)
      k = np.where((k >= 0) & (k < T), k, -1)
      step = np.hstack([k[:, None], step[:, :-1]])
      west = a[np.arange(R), k] * (k >= 0)[:, None]
      east = np.concatenate([west[:, None], east[:, :-1]], 1)
      k = tick - np.arange(C)
      here = (k >= 0) & (k < T)
      south = np.vstack([here * b[k % T, np.arange(C)], south[:-1]])
      chosen = np.vstack([place[k % T, np.arange(C)], chosen[:-1]])
      sums += np.take_along_axis(east, chosen[..., None], 2)[..., 0] * south
      tick += 1
    r, c = out[top : top + R, left : left + C].shape
    out[top : top + R, left : left + C] = sums[:r, :c]
    clock += tick
  np.testing.assert_array_equal(out, x @ w)
  got = counts(M, N, K, Systolic("os", R, C), nm.n, nm.m)
  assert got["cycles"] == clock


@laws
@given(st.integers(1, 2**20), st.integers(1, 2**20), st.integers(1, 2**20),
       st.integers(1, 512), st.integers(1, 512), patterns(300),
       st.sampled_from(DATAFLOWS), st.sampled_from(OVERLAPS),
       st.booleans())  # fmt: skip
def test_utilisation_never_passes_one_and_mapping_bounds_it(
  M, N, K, R, C, nm, dataflow, overlap, sparse
):
  array = Systolic(dataflow, R, C, overlap, sparse=sparse)
  got = counts(M, N, K, array, nm.n, nm.m)
  assert 0 < got["utilisation"] <= got["mapping_efficiency"] <= 1
  kept = K // nm.m * nm.n + min(K % nm.m, nm.n)
  useful = M * N * kept / (int(got["cycles"]) * R * C)
  np.testing.assert_allclose(got["utilisation"], useful, rtol=1e-12)


@laws
@given(sizes, sizes, st.integers(1, 99), sides, sides, patterns(),
       st.sampled_from(DATAFLOWS), st.sampled_from(OVERLAPS))  # fmt: skip
@example(9, 9, 2, 4, 4, NM(3, 4), "ws", "none")  # K shorter than n
@example(9, 9, 3, 4, 4, NM(1, 4), "os", "none")  # and than m
@example(9, 9, 5, 4, 4, NM(4, 4), "is", "none")
def test_an_nm_weight_takes_the_cycles_of_what_it_keeps(
  M, N, K, R, C, nm, dataflow, overlap
):
  array = Systolic(dataflow, R, C, overlap)
  got = counts(M, N, K, array, nm.n, nm.m)
  kept = (np.arange(K) % nm.m < nm.n).sum()
  short, dense = counts(M, N, kept, array), counts(M, N, K, array)
  for name in ("cycles", "filter_reads", "ofmap_writes"):
    assert got[name] == short[name], name
  assert got["cycles"] <= dense["cycles"]
  assert got["ifmap_reads"] == dense["ifmap_reads"]
  skips_nothing = Systolic(dataflow, R, C, overlap, sparse=False)
  zeros = counts(M, N, K, skips_nothing, nm.n, nm.m)
  assert zeros["cycles"] == dense["cycles"]
  assert zeros["metadata_bytes"] == 0
  assert zeros["dram_bytes"] == dense["dram_bytes"]


def test_n_above_m_is_refused():
  with pytest.raises(ValueError, match="n <= m"):
    counts(8, 8, 8, Systolic("ws", 8, 8), 5, 4)
