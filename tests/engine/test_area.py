"""Areas: parts counted one by one, and summed by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from figs_jax.engine import Area, parse, report, sweep
from figs_jax.engine.area import Parts
from figs_jax.engine.sweeps.front_plot import pareto_front

FREE = Area(*[0.0] * 4, 16.0, 32.0)
GEMM = {"M": [196], "N": [300], "K": [100], "pattern": ["1:2", "1:4"]}


def test_the_default_is_a_16_bit_array_at_45_nm():
  area = sum(Area().square_millimetres(parse("ws:2x3").parts()).values())
  one = 1640 + 4184 + 2 * 16 * 4.522 + 32 * 4.522
  np.testing.assert_allclose(area, 6 * one * 1e-6, rtol=1e-12)


def figs_parts(R, C, alpha, beta, group, swap, hidden):
  """Walks every register and MAC of a FIGS array."""
  macs = values = muxes = bits = 0
  for _ in range(R * C):
    values += 2 if swap else 1  # what passes, and what was exchanged
    muxes += alpha if swap else 0
    for lane in range(beta):
      macs += 1
      values += 2 if hidden else 1
      if lane % group == 0:
        muxes += 0 if swap else alpha
        bits += int(np.ceil(np.log2(alpha + 1))) * (2 if hidden else 1)
  return Parts(macs, macs, values, macs, muxes, bits)


def vegeta_parts(R, C, alpha, beta, sparse, hidden):
  """Walks every PE, PU and MAC of a VEGETA engine."""
  macs = values = sums = muxes = bits = 0
  for _ in itertools.product(range(R // beta), range(C // alpha)):
    values += 4 * beta if sparse else beta
    for _ in range(alpha):
      sums += 1
      for _ in range(beta):
        macs += 1
        values += 2 if hidden else 1
        muxes += 3 if sparse else 0
        bits += (4 if hidden else 2) if sparse else 0
  return Parts(macs, macs, values, sums, muxes, bits)


@pytest.mark.parametrize(
  "spec, expected",
  [
    ("figs:8x4:alpha=3", figs_parts(8, 4, 3, 1, 1, False, False)),
    (
      "figs:8x4:alpha=4:beta=3:overlap=full",
      figs_parts(8, 4, 4, 3, 1, False, True),
    ),
    (
      "figs:4x2:beta=4:mask_group=4:exchange=swap",
      figs_parts(4, 2, 7, 4, 4, True, False),
    ),
    ("vegeta-s-4-2:8x8", vegeta_parts(8, 8, 4, 2, True, False)),
    (
      "vegeta-s-2-4:8x8:overlap=weights",
      vegeta_parts(8, 8, 2, 4, True, True),
    ),
    ("vegeta-d-1-2:8x4", vegeta_parts(8, 4, 1, 2, False, False)),
    ("ws:3x5:overlap=full", Parts(15, 15, 45, 15)),
    ("os:3x5:overlap=full", Parts(15, 15, 30, 15)),
  ],
)
def test_parts_are_those_of_a_walk(spec, expected):
  assert parse(spec).parts() == expected


@pytest.mark.parametrize(
  "factor, part",
  [
    ("mult", lambda p: p.multipliers),
    ("add", lambda p: p.adders),
    ("mux_bit", lambda p: 16 * p.muxes),
    (
      "register_bit",
      lambda p: 16 * p.value_registers + 32 * p.sum_registers + p.index_bits,
    ),
  ],
)
def test_each_factor_counts_alone(factor, part):
  parts = parse("figs:8x4:beta=2").parts()
  area = dataclasses.replace(FREE, **{factor: 3.0}, scale=0.5)
  total = sum(area.square_millimetres(parts).values())
  np.testing.assert_allclose(total, 1.5e-6 * part(parts), rtol=1e-12)


def test_wider_exchange_costs_area_and_shared_inputs_save_it():
  def total(spec):
    return sum(Area().square_millimetres(parse(spec).parts()).values())

  wider = [total(f"figs:alpha={alpha}") for alpha in (0, 1, 3, 7, 15)]
  assert wider == sorted(wider) and wider[0] == total("ws:32x16")
  shared = [total(f"vegeta-s-{alpha}-2") for alpha in (1, 2, 4, 8, 16)]
  assert shared == sorted(shared, reverse=True)
  assert shared[-1] > total("vegeta-d-1-2")


def test_a_sweep_has_the_time_and_area_of_each_design():
  axes = GEMM | {"rows": [8, 16, 24], "alpha": [1, 3], "clock": [500, 1250]}
  area = Area.of("int8")
  designs = sweep(["figs:alpha=7", "vegeta-s-1-2:32x12"], axes, area=area)
  names = ["engine", "rows", "alpha", "clock", "cycles", "time_ns", "area_mm2"]
  for chunk in designs.chunks(names):
    for engine, rows, alpha, clock, cycles, time, mm2 in zip(
      *(chunk[name] for name in names)
    ):
      fields = {"rows": int(rows), "alpha": int(alpha)}
      one = dataclasses.replace(parse(str(engine)), **fields)
      whole = sum(area.square_millimetres(one.parts()).values())
      np.testing.assert_allclose(mm2, whole, rtol=1e-12)
      np.testing.assert_allclose(time, cycles * 1000 / clock, rtol=1e-12)


def test_the_area_of_a_design_is_not_summed_over_its_layers():
  rows = [
    {"name": "a", "M": 8, "N": 64, "K": 64, "pattern": "1:4", "count": 3},
    {"name": "b", "M": 9, "N": 32, "K": 64},
  ]
  designs = sweep("figs", "rows=8,16; clock=500,1000", rows)
  front = designs.pareto("time_ns", "area_mm2")
  mm2 = {
    f"figs:{r}x16:clock=1000": sum(
      Area().square_millimetres(parse(f"figs:{r}x16").parts()).values()
    )
    for r in (8, 16)
  }
  assert len(front["design"]) == 2  # the faster clock of each
  for design, area, time, cycles in zip(
    *(front[x] for x in ("design", "area_mm2", "time_ns", "cycles"))
  ):
    np.testing.assert_allclose(area, mm2[str(design)], rtol=1e-12)
    assert time == cycles
  # As a device computes it, too.
  ends = designs.summary("area_mm2")
  np.testing.assert_allclose([ends["min"], ends["max"]], sorted(mm2.values()))


def test_a_roofline_has_a_time_and_no_area():
  designs = sweep("tpu:v5e", {"M": [8], "N": [64], "K": [64]})
  assert "time_ns" in designs.results and "area_mm2" not in designs.results
  with pytest.raises(ValueError, match="'area_mm2'"):
    designs.smallest("area_mm2")


def test_a_report_names_the_area_of_each_array():
  row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "1:4"}
  made = report([row], ["figs", "tpu:v5e"], area=Area.of("int8"))
  assert "Areas are reconstructed" in made.caption
  line = next(x for x in str(made).splitlines() if x.startswith("area, mm²"))
  assert line.split()[2:4] == ["total", "multipliers"]
  assert "area, mm²" not in str(report([row], ["figs"]))


@pytest.mark.parametrize(
  "text, words",
  [
    ("fp4", "Area of 'fp4'.*float16"),
    ("mul=3", "Area 'mul=3'.*mult"),
    ("mult=big", "Area 'mult=big'.*'big'"),
    ("mult=-1", "Area mult.*-1.0"),
  ],
)
def test_bad_factors_are_named(text, words):
  with pytest.raises(ValueError, match=words):
    Area.parse(text)


def test_the_picture_holds_the_front_and_the_cloud():
  axes = GEMM | {"rows": range(8, 65, 8), "cols": range(8, 65, 8)}
  designs = sweep(["figs", "ws:sparse=false"], axes)
  front = designs.pareto("time_ns", "area_mm2", where="cols>8")
  (ax,) = pareto_front(designs, "time_ns", "area_mm2", where="cols>8").axes
  line = ax.lines[0].get_xydata()
  np.testing.assert_allclose(line[:, 0], front["time_ns"])
  np.testing.assert_allclose(line[:, 1], front["area_mm2"])
  shown = sum(len(dots.get_offsets()) for dots in ax.collections)
  assert shown == 2 * 2 * 8 * 7  # all points that are allowed, of both engines
  legend = [text.get_text() for text in ax.get_legend().get_texts()]
  assert legend == ["figs", "ws:sparse=false"]
  (ax,) = pareto_front(designs, "cycles", "-utilisation").axes
  assert ax.get_ylabel() == "utilisation"
  assert ax.lines[0].get_ydata().min() > 0
