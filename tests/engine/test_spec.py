"""The spec grammar, and the errors of engines and layer tables."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from figs_jax.core.pattern import NM
from figs_jax.engine import Figs, Layers, Systolic, Vegeta, parse
from figs_jax.engine.figs import EXCHANGES
from figs_jax.engine.spec import OVERLAPS
from figs_jax.engine.spec_text import _CLASSES
from figs_jax.engine.sweeps.axes import design, designs, fields_of
from figs_jax.engine.systolic import DATAFLOWS


@given(st.sampled_from(DATAFLOWS), st.integers(1, 999), st.integers(1, 999),
       st.sampled_from(OVERLAPS), st.booleans())  # fmt: skip
def test_an_engines_default_name_parses_to_itself(
  dataflow, rows, cols, overlap, sparse
):
  engine = Systolic(dataflow, rows, cols, overlap, sparse=sparse)
  assert parse(str(engine)) == engine
  assert hash(parse(str(engine))) == hash(engine)
  assert parse(engine) is engine


SPECS = (
  "ws", "is:8x8", "os", "vegeta", "vegeta-d-1-2", "figs", "tensorcore:h200",
  "tensorcore:mine:peak=1000:hbm=10", "gpu:h100", "gpu:x:peak=5:hbm=6",
  "tpu:v5e", "trainium2", "trainium3", "nm-spmm:a100", "csr:h200",
)  # fmt: skip
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 32, 64, 200, 5000)


def variants(spec):
  """(field, value) of every legal value of every field of an engine."""
  engine = parse(spec)
  for name, field in fields_of(engine).items():
    values = engine.CHOICES.get(name, NUMBERS)
    if field.type in ("bool", bool):
      values = (True, False)
    for value in (*values, getattr(engine, name)):
      try:
        yield name, value, dataclasses.replace(engine, name="", **{name: value})
      except ValueError:
        continue


@pytest.mark.parametrize("spec", SPECS)
def test_names_hold_all_that_differs_and_all_that_is_swept(spec):
  engine, fields = parse(spec), set()
  for name, value, made in variants(spec):
    fields.add(name)
    assert parse(str(made)) == made
    swept = design(engine, {name: value})
    assert parse(str(swept)) == swept
    assert dataclasses.replace(swept, name=str(made)) == made
    if name in ("rows", "cols"):
      assert swept.sides() in str(swept)
    elif value != "" and name not in engine.PREFIX:
      assert f":{name}=" in str(swept)
  # No field of the kind was left out of this test.
  assert fields == {*fields_of(engine)}


def test_every_kind_is_among_the_specs():
  kinds = {re.sub(r"-$", "", kind) for kind in _CLASSES}
  assert kinds == {re.split(":|-[sd]-", spec)[0] for spec in SPECS}


def test_points_of_a_sweep_differ_in_their_names():
  made = designs(
    [parse("figs"), parse("gpu:h100")],
    {"alpha": [7, 15], "rows,cols": [(32, 16), (64, 16)], "overhead": [0, 5]},
  )
  assert list(map(str, made)) == [
    "figs:32x16:alpha=7", "figs:64x16:alpha=7", "figs:32x16:alpha=15",
    "figs:64x16:alpha=15", "gpu:h100:overhead=0", "gpu:h100:overhead=5",
  ]  # fmt: skip
  sides = designs([parse("vegeta")], {"rows": [16, 32]})
  assert list(map(str, sides)) == [
    "vegeta-s-16-2:16x16", "vegeta-s-16-2:32x16"
  ]  # fmt: skip


def test_text_is_kept_as_the_name_and_options_are_read():
  engine = parse("ws:32x32:overlap=none")
  assert engine == Systolic("ws", 32, 32, name="ws:32x32:overlap=none")
  assert parse("os:16x64:sparse=false:name=mine").name == "mine"
  assert not parse("is:8x8:sparse=false").sparse
  assert parse("is:overlap=full").overlap == "full"


@pytest.mark.parametrize("kind", DATAFLOWS)
def test_a_bare_kind_is_the_preset_of_512_multipliers(kind):
  assert parse(kind) == Systolic(kind, 32, 16, name=kind)


@pytest.mark.parametrize(
  "spec, message",
  [
    ("wss:32x32", "unknown kind 'wss', did you mean 'ws:32x32'"),
    (
      "vgeta-s-16-2",
      "unknown kind 'vgeta-s-16-2'.*[Kk]nown: .*is, nm-spmm, os",
    ),
    ("", "unknown kind ''"),
    ("vgeta-s-16-2", "did you mean 'vegeta-s-16-2'"),
    (
      "h100",
      "before chip 'h100', did you mean 'tensorcore:h100' or 'gpu:h100'",
    ),
    (
      "H200:side=8",
      "did you mean 'tensorcore:h200:side=8' or 'gpu:h200:side=8'",
    ),
    ("h20", "did you mean 'gpu:h20'"),
    ("v5e", "did you mean 'tpu:v5e'"),
    ("trillium", "did you mean 'tpu:v6e'"),
    ("trn2", "did you mean 'trainium2'"),
    ("h10", "unknown kind 'h10', did you mean 'tensorcore:h100' or 'gpu:h100'"),
    ("tensorcor:h100", "did you mean 'tensorcore:h100'"),
    (
      "gpu:v5e",
      "unknown chip 'v5e', did you mean 'tpu:v5e'.* or give your own :peak=",
    ),
    (
      "tpu:h100",
      "did you mean 'tensorcore:h100' or 'gpu:h100'. Known: ironwood",
    ),
    ("ws:32", "expected a size ROWSxCOLS, as in 'ws:32x16', got '32'"),
    ("ws:32x", "got '32x'"),
    ("ws:-1x4", "got '-1x4'"),
    ("ws:0x4", "rows: expected integers from 1 .*got 0"),
    ("ws:4x99999999999999999999", "cols: expected integers from 1 .*got 9+"),
    ("ws:8x8:overlp=none", "unknown key 'overlp', did you mean 'overlap'"),
    ("ws:8x8:overlap=ful", "unknown overlap='ful', did you mean 'full'"),
    ("ws:8x8:sparse=yes", "sparse='yes'.*[Kk]nown: false, true"),
    ("ws:8x8:overlap", "cannot read 'overlap'; write key=value"),
    ("ws:8x8:overlap=", "cannot read 'overlap='"),
    ("ws:8x8:", "cannot read ''"),
    ("ws:8x8:overlap=none:overlap=full", "'overlap' is given twice"),
  ],
)
def test_a_bad_spec_names_itself_and_the_fix_in_one_line(spec, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse(spec)
  assert repr(spec) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_bad_engine_is_refused_at_construction():
  with pytest.raises(
    ValueError, match="unknown dataflow 'sw', did you mean 'ws'"
  ):
    Systolic("sw", 8, 8)
  with pytest.raises(ValueError, match="unknown overlap 'all'"):
    Systolic("ws", 8, 8, overlap="all")
  with pytest.raises(ValueError, match="rows: expected integers .*got 0"):
    Systolic("ws", np.array([8, 0]), 8)
  with pytest.raises(ValueError, match="cols: .*got 1.5"):
    Systolic("ws", 8, 1.5)


powers = st.sampled_from([1, 2, 4, 8])


@given(st.booleans(), powers, powers, st.integers(1, 9), st.integers(1, 9),
       st.sampled_from(OVERLAPS), st.integers(1, 99))  # fmt: skip
def test_a_vegeta_engines_name_parses_to_itself(
  sparse, alpha, beta, down, across, overlap, tile
):
  sides = beta * down, alpha * across
  engine = Vegeta(sparse, alpha, beta, *sides, overlap, tile=tile)
  assert parse(str(engine)) == engine
  assert parse(f"vegeta-{'ds'[sparse]}-{alpha}-{beta}").sparse is sparse


@given(st.integers(1, 9), st.integers(1, 99), powers, powers,
       st.sampled_from(EXCHANGES), st.booleans(),
       st.integers(0, 3))  # fmt: skip
def test_a_figs_engines_name_parses_to_itself(
  down, cols, beta, block, exchange, shared, sigma
):
  engine = Figs(
    *(block * down, cols, block - 1, beta, block, exchange),
    mask_group=beta if shared else 1,
    sigma=sigma,
  )
  assert parse(str(engine)) == engine


def test_presets_have_512_multipliers():
  assert parse("vegeta") == Vegeta(True, 16, 2, name="vegeta")
  assert parse("figs") == Figs(32, 16, alpha=7, beta=1, name="figs")
  for spec in ("vegeta", "figs", "ws"):
    assert parse(spec).rows * parse(spec).cols == 512


@pytest.mark.parametrize(
  "spec, message",
  [
    ("figs:32x16:block=16", "alpha=7: .* at most alpha . 1.*set alpha=15"),
    ("figs:30x16:block=8", "rows=30 is not a multiple of block=8; set rows=32"),
    ("figs:alpha=5:exchange=swap", "expected blocks of a power of two, got 6"),
    ("figs:30x16:block=6:exchange=swap", "power of two.*exchange='mux'"),
    ("figs:beta=2:mask_group=3", "mask_group=3: expected 1, or the beta=2"),
    ("figs:exchange=swop", "exchange='swop', did you mean 'swap'"),
    ("figs:32x16:alpha=x", "alpha='x': expected an integer"),
    ("figs:32x16:load=0", "load: expected integers from 1 .*got 0"),
    ("figs:gamma=2", "unknown key 'gamma', did you mean 'sigma'"),
    ("vegeta-s-3-2", "cols=16 is not a multiple of alpha=3"),
    ("vegeta-d-1-5", "rows=32 is not a multiple of beta=5"),
    ("vegeta-x-1-2", "expected vegeta-d-ALPHA-BETA .*got 'vegeta-x-1-2'"),
    ("vegeta-s-1-2:sparse=false", "unknown key 'sparse'"),
    ("tpu", "expected a chip, as in 'tpu:v3'"),
    ("tpu:v9", "unknown chip 'v9'"),
  ],
)
def test_an_impossible_engine_is_one_line_with_the_fix(spec, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse(spec)
  assert repr(spec) in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [None, 7, ["ws:8x8"]])
def test_other_types_than_text_are_refused(spec):
  with pytest.raises(ValueError, match="engine: expected one spec.*got"):
    inspect.unwrap(parse)(spec)  # The suite's type checks come first.


chips = st.sampled_from(
  ["tpu:v5e", "tpu:v7x", "gpu:a100", "tensorcore:h200", "tensorcore:h100"]
)
changes = st.fixed_dictionaries(
  {},
  optional={
    "peak": st.integers(1, 10**6),
    "hbm": st.integers(1, 10**5),
    "side": st.sampled_from([1, 16, 128, 256]),
    "dtype": st.sampled_from(["", "bf16", "fp8", "int8"]),
    "overhead": st.integers(0, 10**6),
    "sparse_overhead": st.integers(0, 10**6),
    "fallback": st.booleans(),
  },
)


@given(chips, changes)
def test_a_changed_chips_name_parses_to_itself(spec, values):
  engine = dataclasses.replace(parse(spec), name="")
  values = {key: x for key, x in values.items() if hasattr(engine, key)}
  engine = dataclasses.replace(engine, name="", **values)
  assert parse(engine.spec()) == engine
  preset = dataclasses.replace(parse(spec), name="")
  assert (engine.spec() == spec) == (engine == preset)


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.booleans())
def test_a_changed_csr_engines_name_parses_to_itself(peak, hbm, reuse):
  engine = dataclasses.replace(
    parse("csr:h200"), name="", peak=peak, hbm=hbm, reuse=reuse
  )
  assert parse(engine.spec()) == engine


def test_many_designs_are_checked_together():
  Figs(np.array([8, 16]), 4, alpha=np.array([3, 7]), block=np.array([4, 8]))
  with pytest.raises(ValueError, match="rows=.* not a multiple of block"):
    Figs(np.array([8, 12]), 4, block=np.array([4, 8]))
  with pytest.raises(ValueError, match=r"rows=\* is not a multiple of beta=2"):
    Vegeta(True, 1, 2, np.array([4, 5]))


def row(**changes):
  return {"name": "ff", "M": 4, "N": 8, "K": 16} | changes


def test_rows_become_columns():
  layers = Layers.of(
    [
      row(),
      row(pattern="2:4", count=3),
      row(pattern=NM(1, 8)),
      row(pattern="dense"),
    ]
  )
  assert layers.n.tolist() == [1, 2, 1, 1]
  assert layers.m.tolist() == [1, 4, 8, 1]
  assert layers.count.tolist() == [1, 3, 1, 1]
  assert layers.M.dtype == np.int64
  assert [layers.pattern(i) for i in range(4)] == [
    "dense",
    "2:4",
    "1:8",
    "dense",
  ]
  assert layers.dense().m.tolist() == [1, 1, 1, 1]
  assert Layers.of(layers) is layers and len(layers) == 4


@pytest.mark.parametrize(
  "bad, message",
  [
    (row(M=0), "row 1 'ff', column 'M': expected an integer from 1 .*got 0"),
    (row(N=-8), "column 'N': .*got -8"),
    (row(K=1.5), "column 'K': .*got 1.5"),
    (row(K="16"), "column 'K': .*got '16'"),
    (row(M=True), "column 'M': .*got True"),
    (row(M=2**60), "column 'M': .*got 1152921504606846976"),
    (row(count=0), "column 'count': .*got 0"),
    (row(pattern="5:4"), "row 1 'ff', column 'pattern': .*'5:4'"),
    (row(pattern="half"), "column 'pattern': Invalid N:M pattern 'half'"),
    (row(pattern=7), "column 'pattern': Invalid N:M pattern 7"),
    (row(pattern=f"1:{2**31}"), "column 'pattern': .* above"),
    (row(patern="1:8"), "unknown column 'patern', did you mean 'pattern'"),
    ({"name": "x", "M": 1, "N": 1}, "row 1 'x': column 'K' is missing"),
    ({"M": 1, "N": 1, "K": 1}, "row 1 '.': column 'name' is missing"),
    (
      row(mask=np.ones((8, 16), bool)),
      "column 'mask': expected bool .*got bool .8, 16",
    ),
    (row(mask=np.ones((16, 8))), "column 'mask': .*got float64"),
    (
      row(mask=np.ones((16, 8), bool), pattern="2:4"),
      "column 'mask': expected at most 2 .*got 4",
    ),
    (7, "row 1: expected a mapping .*got int"),
    ("ff", "row 1: expected a mapping .*got str"),
  ],
)
def test_a_bad_row_is_named_with_its_column(bad, message):
  with pytest.raises(ValueError, match=message):
    Layers.of([row(), bad])


def test_no_rows_are_refused():
  with pytest.raises(ValueError, match="no rows"):
    Layers.of([])


def test_columns_are_rows_too():
  columns = {"M": np.array([4, 5]), "N": [8, 8], "K": (16, 32)}
  table = Layers.of(columns | {"pattern": ["1:8", None]})
  assert table.names == ("0", "1")
  assert (table.M.tolist(), table.K.tolist()) == ([4, 5], [16, 32])
  assert [table.pattern(i) for i in (0, 1)] == ["1:8", "dense"]
  with pytest.raises(ValueError, match=r"columns of one length, got \[1, 2\]"):
    Layers.of(columns | {"name": ["a"]})
  with pytest.raises(ValueError, match="row 0 '0': unknown column 'kk'"):
    Layers.of(columns | {"kk": [1, 2]})


def test_a_table_made_by_hand_is_checked():
  ones = np.ones(2, np.int64)
  table = Layers(("a", "b"), ones.astype(np.int32), *[ones] * 5)
  assert table.M.dtype == np.int64
  with pytest.raises(ValueError, match="Layers K: .*got float64"):
    Layers(("a", "b"), ones, ones, ones / 2, ones, ones, ones)
  with pytest.raises(ValueError, match="got 2 names and columns of .1, 3"):
    Layers(("a", "b"), ones[:1], *[np.ones(3, int)] * 5)
