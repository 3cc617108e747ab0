"""Sweeps against a plain product of Python's integers, point by point."""

import csv
import dataclasses
import functools
import inspect
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.engine import Layers, cost, parse
from figs_jax.engine.sweeps._sweep import FLOAT32_ERROR, Sweep, sweep
from figs_jax.engine.sweeps.axes import as_axes
from figs_jax.engine.sweeps.device import Grid

GEMM = {"M": [196, 7], "N": [3072, 100], "K": [768, 40]}
PATTERNS = ["dense", "1:2", "1:8"]
CASES = {
  "ws:8x8": {"pattern": PATTERNS, "rows": range(3, 40, 5), "cols": [1, 8]},
  "figs:32x16:overlap=full": {
    "alpha": [0, 3, 7],
    "pattern": PATTERNS,
    "rows,cols": [(32, 16), (8, 8), (4, 64), (16, 5)],
  },
  "vegeta:overlap=full": {"alpha,beta": [(1, 2), (4, 2), (16, 4)],
                          "pattern": PATTERNS, "cols": [16, 48]},
  "tensorcore:h200": {"pattern": PATTERNS, "hbm": [100, 4800]},
  "csr:h200": {"hbm": [100, 4800], "index_bytes": [2, 4]},
}  # fmt: skip


def ws_cycles(M, N, K, R, C):
  return -(-K // R) * -(-N // C) * (2 * R + C + M - 2)


def brute(spec, axes):
  """One dictionary per possible point, in order; a cost for each design."""
  engine = parse(spec)
  gemms = list(itertools.product(*(axes[name] for name in GEMM)))
  rest = {name: axes[name] for name in axes if name not in GEMM}
  points = [[] for _ in gemms]
  for values in itertools.product(*rest.values()):
    point = {}
    for name, value in zip(rest, values):
      pairs = zip(name.split(","), value) if "," in name else [(name, value)]
      point |= dict(pairs)
    fields = {k: v for k, v in point.items() if k != "pattern"}
    rows = [
      dict(zip("MNK", gemm), name="a", pattern=point.get("pattern"))
      for gemm in gemms
    ]
    try:
      here = vars(cost(rows, dataclasses.replace(engine, **fields, name="")))
    except ValueError:
      continue
    for i, row in enumerate(rows):
      points[i].append(row | point | {name: x[i] for name, x in here.items()})
  return [point for each in points for point in each]


@pytest.fixture(scope="module", params=CASES)
def case(request):
  axes = GEMM | CASES[request.param]
  return sweep(request.param, axes), brute(request.param, axes)


def test_columns_are_the_plain_product(case):
  designs, expected = case
  names = ["M", "cycles", "stall_dram", "dram_bytes", "utilisation"]
  chunks = list(designs.chunks(names, chunk=1))
  for name in names:
    got = np.concatenate([chunk[name] for chunk in chunks])
    want = np.array([point[name] for point in expected])
    if name == "utilisation":
      np.testing.assert_allclose(got, want, rtol=1e-14)
    else:
      assert got.dtype == np.int64
      np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("k", [1, 5, 10**4])
def test_the_smallest_are_those_of_the_product(case, k):
  designs, expected = case
  got = designs.smallest("cycles", k, where=lambda p: p["M"] > 100, steps=1)
  want = sorted(
    (point["cycles"], number, point["pattern"])
    for number, point in enumerate(expected)
    if point["M"] > 100
  )[:k]
  assert got["cycles"].tolist() == [cycles for cycles, _, _ in want]
  if "pattern" in got:
    assert got["pattern"].tolist() == [pattern for _, _, pattern in want]
  assert (got["M"] == 196).all()


def test_the_front_is_that_of_the_product(case):
  designs, expected = case
  got = designs.pareto("cycles", "-dram_bytes", steps=1)
  points = [(point["cycles"], -point["dram_bytes"]) for point in expected]
  front = {
    (x, y)
    for x, y in points
    if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
  }
  assert list(zip(got["cycles"], -got["dram_bytes"])) == sorted(front)


def test_a_summary_is_that_of_the_product(case):
  designs, expected = case
  values = [int(point["cycles"]) for point in expected]
  got = designs.summary("cycles")
  assert (got["count"], got["min"], got["max"]) == (
    len(values), min(values), max(values)
  )  # fmt: skip
  np.testing.assert_allclose(got["mean"], np.mean(values), rtol=1e-14)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 40))
def test_blocks_hold_every_point_once(sizes, most):
  grid = Grid.of(sizes, most)
  assert grid.slots <= most
  block, slot = np.indices((grid.blocks, grid.slots))
  number = grid.number(block, slot)
  real = number >= 0
  assert sorted(number[real].tolist()) == list(range(np.prod(sizes)))
  # What blocks see of a table is what the host reads at those numbers.
  for axis, size in enumerate(sizes):
    shape = [1] * len(sizes)
    shape[axis] = size
    table = grid.filled(np.arange(size).reshape(shape))
    place = functools.partial(grid.place, table)
    seen = jax.vmap(place)(np.arange(grid.blocks, dtype=np.int32))
    seen = np.broadcast_to(seen.reshape(grid.blocks, -1), real.shape)
    index = np.unravel_index(number[real], sizes)[axis]
    np.testing.assert_array_equal(seen[real], index)
    if grid.stays(table):
      assert (seen == seen[:1]).all()


@pytest.mark.parametrize("devices", [3, 8])
def test_devices_share_the_points_and_agree(devices):
  # 11 x 3000 x 7 points: blocks and devices leave remainders.
  axes = {"M": range(1, 12), "N": range(1, 3001), "K": range(5, 40, 5)}
  designs = sweep("ws:16x8", axes, devices=jax.devices()[:devices])
  points = list(itertools.product(*axes.values()))
  values = [ws_cycles(M, N, K, 16, 8) for M, N, K in points]
  for steps in (1, 64):
    best = designs.smallest("-cycles", 3, steps=steps)
    assert best["cycles"].tolist() == sorted(values)[:-4:-1]
  assert designs.summary("cycles")["count"] == len(points)
  chunks = [c["cycles"] for c in designs.chunks(["cycles"], chunk=10_000)]
  assert np.concatenate(chunks).tolist() == values


ROWS = [
  {"name": "qkv", "M": 196, "N": 768, "K": 768, "count": 36},
  {"name": "ff", "M": 196, "N": 3072, "K": 768, "pattern": "2:4", "count": 12},
  {"name": "big", "M": 2**16, "N": 2**16, "K": 2**12, "pattern": "1:8"},
]


def test_layers_are_summed_and_only_sparse_ones_take_the_pattern():
  axes = {"pattern": ["1:2", "1:4", "1:16"], "rows": [8, 16, 128]}
  designs = sweep("ws", axes, layers=ROWS)
  got = designs.smallest("cycles", k=9)
  for at in range(9):
    pattern = got["pattern"][at]
    rows = [r | {"pattern": pattern} if "pattern" in r else r for r in ROWS]
    want = cost(rows, f"ws:{got['rows'][at]}x16")
    for name in ("cycles", "dram_bytes", "energy_pj"):
      np.testing.assert_allclose(got[name][at], want.total(name), rtol=1e-15)
    time = want.cycles * want.count
    mean = (want.utilisation * time).sum() / time.sum()
    np.testing.assert_allclose(got["utilisation"][at], mean, rtol=1e-14)
  chunk = next(designs.chunks(["m", "rows", "cycles", "utilisation"]))
  order = np.lexsort((np.arange(9), chunk["cycles"]))
  for name in ("rows", "cycles"):
    assert chunk[name][order].tolist() == got[name].tolist()
  np.testing.assert_allclose(
    chunk["utilisation"][order], got["utilisation"], rtol=1e-14
  )


def test_functions_see_axes_and_fields_as_floats():
  designs = sweep("ws", {"M": [64], "N": [64], "K": [64], "rows": range(1, 65)})
  area = lambda p: p["rows"] * p["rows"] * p["cycles"]  # noqa: E731
  got = designs.smallest(area)
  want = min(range(1, 65), key=lambda r: r * r * ws_cycles(64, 64, 64, r, 16))
  assert got["rows"].tolist() == [want]
  none = designs.smallest(area, where=lambda p: p["rows"] > 64)
  assert len(none["cycles"]) == len(none["rows"]) == 0


def test_past_2_to_the_51_sweeps_stay_exact():
  axes = {"M": [2**40 + 1, 2**41 + 3], "N": [2**13 + 1], "rows": [1, 3]}
  designs = sweep("ws:1x1", axes | {"K": [2**5 + 1]}, itemsize=1)
  got = np.concatenate([c["cycles"] for c in designs.chunks(["cycles"])])
  want = [
    ws_cycles(M, 2**13 + 1, 2**5 + 1, R, 1) for M in axes["M"] for R in (1, 3)
  ]
  assert got.tolist() == want and min(want) > 2**53
  low, high = (designs.summary("cycles")[name] for name in ("min", "max"))
  assert (low, high) == (min(want), max(want))


def test_overflow_is_refused_before_anything_runs():
  axes = {"M": [2**20, 2**50], "N": [1, 2**20], "K": [1]}
  message = r"sweep at M=1125899906842624, N=1048576, K=1: \w+ = \d+ does not"
  with pytest.raises(ValueError, match=message):
    sweep("ws:1x1", axes)
  # Bounds that combine the extremes are too wide here; no point is too large.
  pairs = [(2**20, 2**40), (2**40, 2**20), (2**30, 2**30)]
  designs = sweep("ws:1x1", {"M,N": pairs, "K": [1]}, itemsize=1)
  want = [ws_cycles(M, N, 1, 1, 1) for M, N in pairs]
  got = np.concatenate([c["cycles"] for c in designs.chunks(["cycles"])])
  assert got.tolist() == want


def test_float32_is_as_near_as_it_says():
  axes = {"M": [1, 196, 2**22], "N": [64, 3072, 2**22 - 1], "K": [768, 99991],
          "pattern": ["1:2", "1:8", "dense"], "rows": [8, 32, 128],
          "bw_in": [1, 2**31 - 1], "dram_bw": [1, 100]}  # fmt: skip
  for spec in ("figs:exchange=swap", "vegeta", "os"):
    names = ["cycles", "dram_bytes", "stall_dram", "stall_input", "fill"]
    names += ["utilisation", "energy_pj", "metadata_bytes", "ofmap_writes"]
    designs = sweep(spec, axes, precision="float32")
    rough = next(designs.chunks(names, chunk=2**30))
    points = designs.parts[0].points
    number = np.arange(points.count)
    exact = points.at(number[points.allowed(number)])
    assert {x.dtype for x in rough.values()} == {np.dtype(np.float32)}
    for name in names:
      part = name.startswith("stall") or name == "fill"
      scale = (
        exact["cycles"] if part else np.maximum(np.abs(exact[name]), 1e-30)
      )
      error = np.abs(rough[name].astype(float) - exact[name]) / scale
      assert error.max() < FLOAT32_ERROR
  best = sweep(spec, axes, precision="float32").smallest("cycles")
  assert best["cycles"].dtype == np.int64


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_files_hold_the_columns(tmp_path, kind):
  designs = sweep("ws", GEMM | {"rows": [8, 16]})
  path, names = tmp_path / f"sweep.{kind}", ["rows", "cycles", "utilisation"]
  assert designs.write(path, names, where=lambda p: p["rows"] < 10) == 8
  expected = next(designs.chunks(names, where=lambda p: p["rows"] < 10))
  if kind == "csv":
    with open(path) as file:
      rows = list(csv.DictReader(file))
    read = {name: [float(row[name]) for row in rows] for name in names}
  else:
    with np.load(path) as arrays:
      read = {name: arrays[f"{name}.0"].tolist() for name in names}
  assert read == {name: expected[name].tolist() for name in names}


SEVERAL = "pattern=1:2,1:4; overlap=none,full; sigma=0,1; rows=8,16,...,24"


@pytest.fixture(scope="module")
def several():
  """Two engines on two workloads, and a plain product of the same."""
  half = [row | {"M": 100} for row in ROWS]
  tables = {"all": Layers.of(ROWS), "half": Layers.of(half)}
  points = sweep(["ws:8x8", "figs"], SEVERAL, tables)
  plain = []
  for spec, overlap, label, pattern, sigma, rows in itertools.product(
    ("ws:8x8", "figs"), ("none", "full"), tables, ("1:2", "1:4"), (0, 1),
    (8, 16, 24),
  ):  # fmt: skip
    engine = dataclasses.replace(
      parse(spec), rows=rows, overlap=overlap, name=""
    )
    if spec == "figs":
      engine = dataclasses.replace(engine, sigma=sigma, name="")
    elif sigma:
      continue  # a systolic array lacks it and stands still
    total = cost(tables[label].with_pattern(pattern), engine).total
    plain.append(
      {"design": engine.spec(shown=("overlap", "sigma", "rows")),
       "workload": label, "engine": spec, "rows": rows,
       "overlap": overlap, "pattern": pattern, "cols": engine.cols,
       "sigma": sigma if spec == "figs" else -1}
      | {name: total(name) for name in ("cycles", "dram_bytes", "energy_pj")}
    )  # fmt: skip
  return points, plain


def test_several_engines_choices_and_workloads_are_one_product(several):
  points, plain = several
  assert len(points) == len(plain) == 72
  got = points.smallest("cycles", 72)
  want = sorted(plain, key=lambda point: point["cycles"])
  assert set(got) > {*plain[0]} - {"cols"}
  for name in {*plain[0]} - {"cols"}:
    if name == "energy_pj":
      np.testing.assert_allclose(got[name], [p[name] for p in want], 1e-14)
    else:
      assert got[name].tolist() == [point[name] for point in want]
  names = [
    "workload",
    "engine",
    "overlap",
    "pattern",
    "sigma",
    "rows",
    "cycles",
  ]
  chunks = list(points.chunks(names))
  for name in names:
    column = np.concatenate([chunk[name] for chunk in chunks])
    assert column.tolist() == [point[name] for point in plain]
  summary = points.summary("cycles")
  assert summary["count"] == 72 and summary["max"] == want[-1]["cycles"]


@pytest.mark.parametrize(
  ("y", "where"),
  [("energy_pj", None), ("rows*cols", "rows<=16; m>=4"),
   ("-dram_bytes", "cycles > 300000; cols=8")],
)  # fmt: skip
def test_fronts_and_conditions_as_text(several, y, where):
  axes = {name: x for name, x in as_axes(SEVERAL).items() if name != "overlap"}
  points = sweep(["ws:8x8", "figs"], axes, ROWS)
  here = {"overlap": "none", "workload": "all"}
  plain = [p for p in several[1] if p | here == p]
  assert len(points) == len(plain) == 18
  allowed = {
    None: lambda p: True,
    "rows<=16; m>=4": lambda p: p["rows"] <= 16 and p["pattern"] == "1:4",
    "cycles > 300000; cols=8": lambda p: p["cycles"] > 3e5 and p["cols"] == 8,
  }[where]
  aim = {
    "energy_pj": lambda p: p["energy_pj"],
    "rows*cols": lambda p: p["rows"] * p["cols"],
    "-dram_bytes": lambda p: -p["dram_bytes"],
  }[y]
  x = np.array([p["cycles"] for p in plain if allowed(p)], float)
  z = np.array([aim(p) for p in plain if allowed(p)], float)
  # Each point beside each other: O(n^2).
  beats = (x[:, None] <= x) & (z[:, None] <= z)
  equal = (x[:, None] == x) & (z[:, None] == z)
  front = sorted(set(x[~(beats & ~equal).any(0)]))
  got = points.pareto("cycles", y, where=where, steps=1)
  assert len(front) > 0 and got["cycles"].tolist() == front


def test_choices_alone_are_axes():
  points = sweep("os:8x8", "overlap=none,weights,full", ROWS)
  got = points.smallest("cycles", 3)
  want = [
    f"os:8x8{x}" for x in (":overlap=full", ":overlap=none", ":overlap=weights")
  ]
  assert sorted(got["design"].tolist()) == sorted(want)
  assert got["cycles"].tolist() == sorted(
    int(cost(ROWS, spec).total("cycles")) for spec in want
  )


def test_what_an_engine_lacks_stands_still():
  points = sweep(["ws", "figs"], "sparse=true,false; rows=8,16", ROWS)
  got = points.smallest("cycles", 9)
  assert len(points) == len(got["design"]) == 6
  for spec, sparse, cycles in zip(got["design"], got["sparse"], got["cycles"]):
    assert cycles == cost(ROWS, str(spec)).total("cycles")
    assert sparse == (
      ""
      if spec.startswith("figs")
      else "false"
      if "sparse=false" in spec
      else "true"
    )


def test_equal_layers_are_evaluated_once():
  many = [row | {"name": str(i)} for i in range(20) for row in ROWS]
  one, twenty = (sweep("figs", "rows=8,16", rows) for rows in (ROWS, many))
  a, b = (designs.smallest("cycles", 2) for designs in (one, twenty))
  assert (20 * a["cycles"]).tolist() == b["cycles"].tolist()
  assert twenty.parts[0].points.layers == len(ROWS)


SIZES = {"M": [8], "N": [8], "K": [8]}


def test_a_file_is_replaced_whole_and_only_when_asked(tmp_path):
  designs, path = sweep("ws", SIZES), tmp_path / "sweep.csv"
  path.write_text("mine")
  with pytest.raises(ValueError, match="exists; name another"):
    designs.write(path, ["cycles"])

  def fail(points):
    raise RuntimeError("in the middle")

  with pytest.raises(RuntimeError):
    designs.write(path, ["cycles"], where=fail, overwrite=True)
  assert path.read_text() == "mine"
  for names, message in [
    (["cycle"], "did you mean 'cycles'"),
    ([], "give a list"),
    ("cycles", "give a list"),
  ]:
    with pytest.raises(ValueError, match=message):
      designs.write(tmp_path / "new.csv", names)
  assert [file.name for file in tmp_path.iterdir()] == ["sweep.csv"]
  assert designs.write(path, ["cycles"], overwrite=True) == 1
  assert path.read_text().split()[0] == "cycles"


@pytest.mark.parametrize(
  "spec, axes, message",
  [
    ("ws", {}, "no axes; give at least one"),
    ("ws", {"M": [8], "K": [8]}, "'N' is missing"),
    ("ws", SIZES | {"row": [8]}, "axis 'row' of ws: did you mean 'rows'"),
    ("ws", SIZES | {"rows": []}, "axis 'rows': no values"),
    ("ws", SIZES | {"rows": [8, 0]}, "'rows': got 0; expected integers from 1"),
    ("ws", SIZES | {"rows": [8.5]}, r"'rows': got 8\.5; expected integers"),
    ("ws", SIZES | {"rows,cols": [(8, 8), 3]}, "'rows,cols': got 3"),
    ("ws", SIZES | {"rows,M": [(8, 8)]}, "M is an axis twice"),
    ("ws", SIZES | {"pattern": ["3:2"]}, "axis 'pattern': .* '3:2'"),
    ("figs", SIZES | {"pattern": ["1:8", "1:3"], "alpha": [1]},
     "'pattern': n=1, m=3 is possible with no value .*does not fit"),
    ("vegeta", SIZES | {"cols": [16, 17]}, "cols=17 is possible with no value"),
    ("figs:4x4", SIZES | {"pattern": ["1:8"]}, "longer than rows=4"),
  ],
)  # fmt: skip
def test_a_bad_sweep_is_one_line_with_the_fix(spec, axes, message):
  with pytest.raises(ValueError, match=message) as caught:
    sweep(spec, axes)
  assert "\n" not in str(caught.value)


def test_layers_that_do_not_go_with_a_sweep_are_refused():
  with pytest.raises(ValueError, match="'M': the layers have it"):
    sweep("ws", {"M": [8]}, layers=ROWS)
  with pytest.raises(ValueError, match="no layer is sparse"):
    sweep("ws", {"pattern": ["1:2"]}, layers=ROWS[:1])
  masked = Layers.of([ROWS[0] | {"mask": np.ones((768, 768), bool)}])
  with pytest.raises(ValueError, match="real masks.*masks=None"):
    sweep("figs:exchange=swap", {"rows": [8]}, layers=masked)
  with pytest.raises(ValueError, match="'cycle': did you mean 'cycles'"):
    sweep("ws", SIZES).smallest("cycle")
  for k in (0, -1, 1.5, True):
    with pytest.raises(ValueError, match="expected an integer from 1"):
      inspect.unwrap(Sweep.smallest)(sweep("ws", SIZES), "cycles", k)
  with pytest.raises(ValueError, match="chunk=0: expected an integer from 1"):
    next(sweep("ws", SIZES).chunks(["cycles"], chunk=0))
  with pytest.raises(ValueError, match="float16.*[Kk]nown: exact, float32"):
    sweep("ws", SIZES, precision="float16")


def test_patterns_are_read_as_elsewhere():
  got = sweep("ws", SIZES | {"pattern": [NM(1, 2), "dense", "2:2"]})
  want = ["1:2", "dense", "dense"]
  assert got.smallest("cycles", 3)["pattern"].tolist() == want
