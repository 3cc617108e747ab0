"""Pictures: what is drawn is what the report says."""

import io
import sys

import numpy as np
import pytest

from figs_jax.engine import Area, Report, parse, plots, report
from figs_jax.engine.layers import Forward, Layers, NonGemm
from figs_jax.engine.plots import breakdown, pareto, roofline, speedup
from figs_jax.engine.spec import Gemm
from figs_jax.engine.timing import PARTS

pytest.importorskip("matplotlib")

ROWS = [
  {"name": "blocks/0/qk", "M": 64, "N": 64, "K": 32, "count": 4},
  {"name": "blocks/0/fc1", "M": 64, "N": 256, "K": 128, "pattern": "1:2"},
  {"name": "blocks/1/fc1", "M": 64, "N": 256, "K": 128, "pattern": "1:2"},
  {"name": "blocks/0/fc2", "M": 64, "N": 128, "K": 256, "pattern": "1:2"},
]
SPECS = ["ws:16x16", "figs", "tpu:v5e"]


@pytest.fixture(scope="module")
def sweep():
  axes = "pattern=dense,1:2,...,1:8,2:4"
  return report({"net": Layers.of(ROWS)}, SPECS, axes=axes)


def test_speedup_draws_a_line_per_engine_over_the_patterns(sweep):
  ax = speedup(sweep).axes[0]
  lines = {line.get_label(): line for line in ax.lines}
  assert list(lines) == [*SPECS, "m/n"]
  for spec in SPECS:
    totals = [total for total in sweep.totals if total.engine == spec]
    want = sorted(
      (1 if t.pattern == "dense" else int(t.pattern[-1]) / int(t.pattern[0]), t)
      for t in totals
    )
    x, y = lines[spec].get_data()
    assert x.tolist() == [ratio for ratio, _ in want]
    assert sorted(y) == sorted(total.speedup for total in totals)
    low, high = ax.get_ylim()
    assert low < min(y) and max(y) < high
  assert ax.get_xscale() == ax.get_yscale() == "log"
  ticks = [label.get_text() for label in ax.get_xticklabels()]
  assert ticks == ["dense", "1:2\n2:4", "1:4", "1:8"]
  assert "the same engine running the dense model" in ax.get_title()


def test_workloads_that_differ_are_lines_of_their_own():
  tables = {name: Layers.of(ROWS) for name in ("batch 1", "batch 8")}
  made = report(tables, ["ws"], axes={"pattern": ("1:2", "1:4")})
  labels = [line.get_label() for line in speedup(made).axes[0].lines]
  assert labels == ["ws, batch 1", "ws, batch 8", "m/n"]
  bars = breakdown(made).axes[0].get_yticklabels()
  assert bars[1].get_text() == "ws, batch 1, 1:4"


def test_breakdown_bars_add_up_to_all_cycles():
  made = report(ROWS, ["ws:16x16:dram_bw=4", "figs", "tpu:v5e"])
  ax = breakdown(made).axes[0]
  widths = np.array([[bar.get_width() for bar in c] for c in ax.containers])
  np.testing.assert_allclose(widths.sum(0), 100)
  starts = np.array([[bar.get_x() for bar in c] for c in ax.containers])
  np.testing.assert_allclose(starts[1:], widths.cumsum(0)[:-1])
  parts = [part for part in PARTS if any(t.parts[part] for t in made.totals)]
  assert len(parts) == len(widths) >= 4
  names = [container.get_label() for container in ax.containers]
  assert names == [part.replace("_", " ") for part in parts]
  for row, part in zip(widths, parts):
    shares = [100 * t.parts[part] / t.cycles for t in made.totals]
    np.testing.assert_allclose(row, shares)
  texts = [text.get_text() for text in ax.texts]
  assert texts[2].endswith(f" ns, {made.totals[2].speedup:.2f}×")


def test_roofline_has_no_layer_above_its_roof():
  specs = ["ws:16x16:dram_bw=8:clock=500", "figs:16x16", "tensorcore:h200",
           "gpu:h200", "csr:a100"]  # fmt: skip
  figure = roofline(report(ROWS, specs, dtype="bf16"))
  assert figure.get_supylabel() == "TFLOP/s, as if dense"
  # In TFLOP/s: 512 FLOP per cycle, 989 of the data sheet; at 1:2 twice that.
  peaks = [[0.256, 0.512], [0.512, 1.024], [989, 1978], [989, 1979], None]
  slopes = [8 * 0.5e-3, np.inf, 4.8, 4.8, 2.039]
  for ax, spec, known, slope in zip(figure.axes, specs, peaks, slopes):
    marks = [line for line in ax.lines if line.get_linestyle() == "None"]
    flat = [
      line for line in ax.lines
      if line not in marks and not np.ptp(line.get_ydata())
    ]  # fmt: skip
    rising = [line for line in ax.lines if line not in [*marks, *flat]]
    assert ax.get_title().split(",")[0] == spec
    assert ("GHz" in ax.get_title()) == ("16x16" in spec)
    labels = [mark.get_label() for mark in marks]
    assert labels == ["qk (dense)", "fc1 (1:2)", "fc2 (1:2)"]
    tops = [line.get_ydata()[0] for line in flat]
    assert known is None or tops == pytest.approx(known, rel=1e-3)
    assert [line.get_linestyle() for line in flat][:2] == ["-", "--"]
    (text,) = (text.get_text() for text in ax.texts)
    assert ("no memory limit" in text) == (spec == "figs:16x16")
    assert ("2:4 (dashed) 1979" in text) == ("h200" in spec)
    for mark in marks:
      (x,), (y,) = mark.get_data()
      assert y <= min(max(tops), x * slope) * (1 + 1e-6)
    assert len(rising) == (spec != "figs:16x16")
    for line in rising:
      np.testing.assert_allclose(line.get_ydata() / line.get_xdata(), slope)
  # A mark counts the weights that its pattern leaves out.
  row = report(ROWS, specs[:1]).rows[1]
  (x,), (y,) = figure.axes[0].lines[1].get_data()
  flops = 2 * row.M * row.N * row.K
  assert (x, y) == pytest.approx(
    (flops / row.dram_bytes, flops / (2 * row.cycles) / 1000)
  )


def test_roofline_shows_knees_on_axes_that_engines_share():
  """Slope and roof meet inside every panel, at peak / bandwidth."""
  specs = ["ws:16x16:dram_bw=8", "figs", "tpu:v5e", "tensorcore:h200"]
  figure = roofline(report(ROWS, specs), "a_run")
  assert figure.get_suptitle() == "Rooflines: a_run"
  tpu, core = (parse(spec) for spec in specs[2:])
  knees = [4 * 256 / 8, None, tpu.peak / tpu.hbm, 1_979_000 / core.hbm]
  for ax, knee in zip(figure.axes, knees):
    slopes = [
      line for line in ax.lines
      if line.get_linestyle() != "None" and np.ptp(line.get_ydata())
    ]  # fmt: skip
    assert len(slopes) == (knee is not None)
    for slope in slopes:
      assert slope.get_xdata()[-1] == pytest.approx(knee, rel=1e-5)
      low, high = ax.get_xlim()
      assert low < knee < high
  assert len({ax.get_ylim() for ax in figure.axes}) == 1
  assert roofline(report(ROWS, ["ws"])).get_suptitle() == ""
  named = report(ROWS, ["ws"], workload="vit:B/16")
  assert roofline(named).get_suptitle() == "Rooflines: vit:B/16"


@pytest.mark.parametrize(
  ("spec", "want"),
  [
    ("ws:8x4", {"dense": 64, "1:2": 128, "2:8": 256}),
    ("ws:8x4:sparse=false", {"dense": 64}),
    ("os:8x4:overlap=full:dram_bw=1", {"dense": 64, "1:2": 128, "2:8": 256}),
    ("vegeta-s-2-2:8x4", {"dense": 64, "1:2": 128, "2:8": 128}),
    ("vegeta-d-2-2:8x4", {"dense": 64}),
    ("figs:8x4", {"dense": 64, "1:2": 128, "2:8": 256}),
    ("tpu:v5e", {"dense": 197_000}),
    ("gpu:h100", {"dense": 989_000, "2:4": 1_979_000}),
    ("gpu:h20", {"dense": 148_000}),
    ("tensorcore:h100:dtype=int8", {"dense": 1_979_000, "2:4": 3_958_000}),
    ("trainium2", {"dense": 667_000, "4:16 to 1:2": 2_563_000}),
    ("nm-spmm:a100", {"dense": 312_000, "1:2": 624_000, "2:8": 1_248_000}),
    ("gpu:mine:peak=1000:hbm=10", {"dense": 1000}),
  ],
)
def test_roofs_of_every_kind(spec, want):
  engine = parse(spec)
  patterns = [Gemm(1, 1, 1, n, m) for n, m in ((1, 2), (2, 8))]
  roofs = engine.roofs(1 if "int8" in spec else 2, patterns)
  assert roofs == pytest.approx(want, rel=2e-3)


def brute_front(points):
  return {
    i for i, (x, y) in enumerate(points)
    if not any(
      a <= x and b <= y and (a, b) != (x, y) for a, b in points
    )
  }  # fmt: skip


def fronts(ax):
  """x and y of the filled points, per group."""
  filled = [line for line in ax.lines if line.get_markeredgecolor() == "black"]
  return [set(zip(*line.get_data())) for line in filled]


@pytest.mark.parametrize("area", [None, Area()])
def test_pareto_marks_the_fronts(area):
  axes = "pattern=1:2,1:4; rows=8,16,32,64; cols=8,16,32"
  made = report(ROWS, ["ws", "figs"], axes=axes, area=area)
  figure = pareto(made)
  left, right = figure.axes
  assert right.get_ylabel() == "memory traffic, bytes"
  assert left.get_ylabel() == ("area, mm²" if area else "multipliers")
  for ax in figure.axes:
    assert ax.get_xlabel() == "cycles"
    for pattern, front in zip(("1:2", "1:4"), fronts(ax), strict=True):
      points = []
      for total, engine in zip(made.totals, made.engines):
        size = engine.rows * engine.cols
        if area:
          size = sum(area.square_millimetres(engine.parts()).values())
        y = size if ax is left else total.dram_bytes
        if total.pattern == pattern:
          points.append((total.cycles, y))
      assert front == {points[i] for i in brute_front(points)}
  # Every numbered point is named.
  numbers = {t.get_text() for ax in figure.axes for t in ax.texts}
  names = [t.get_text() for t in figure.legends[0].texts]
  assert names[:2] == ["1:2", "1:4"]
  assert numbers == {name.split()[0] for name in names[2:]}


def test_pareto_of_few_engines_names_all():
  figure = pareto(report(ROWS, ["gpu:h100", "tpu:v5e", "tensorcore:h100"]))
  (ax,) = figure.axes  # of processors no multipliers are known
  assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]
  names = [t.get_text() for t in figure.legends[0].texts]
  assert names == ["1  gpu:h100", "2  tpu:v5e", "3  tensorcore:h100"]
  assert ax.get_xlabel() == "ns"
  # Beside arrays in ns, at the clocks of those.
  made = report(ROWS, ["ws:clock=500", "gpu:h100"])
  left, right = pareto(made).axes
  assert left.get_xlabel() == right.get_xlabel() == "ns"
  assert fronts(left) == [{(2 * made.totals[0].cycles, 512)}]


def test_a_tiny_speed_up_keeps_its_digits():
  spec = "tensorcore:h200:sparse_overhead=200000"
  (total,) = report(ROWS, [spec]).totals
  (text,) = breakdown(report(ROWS, [spec])).axes[0].texts
  assert 0 < total.speedup < 0.005
  assert text.get_text().endswith(f" {total.speedup:.2g}×")


def test_pictures_can_be_written(sweep):
  others = {roofline: report(ROWS, SPECS)}
  others[plots.length] = report(whole(64), SPECS)
  for draw in plots.PLOTS.values():
    made = others.get(draw, sweep)
    out = io.BytesIO()
    draw(made).savefig(out, format="png")
    assert out.getvalue().startswith(b"\x89PNG")


def test_what_cannot_be_drawn():
  mixed = [*ROWS, ROWS[1] | {"pattern": "1:4"}]
  with pytest.raises(ValueError, match="ws ran layers of several patterns"):
    speedup(report(mixed, ["ws"]))
  many = Report.joined([report(ROWS, ["ws"])] * 41)
  with pytest.raises(ValueError, match="picture of 41 bars cannot be read"):
    breakdown(many)
  with pytest.raises(ValueError, match="picture of 41 engines .* at most 9"):
    roofline(many)


def whole(tokens, label="net"):
  """A model of one head, a sparse layer and a norm."""
  rows = [
    {"name": "a/qk", "M": tokens, "N": tokens, "K": 32},
    {"name": "a/av", "M": tokens, "N": 32, "K": tokens},
    {"name": "fc", "M": tokens, "N": 128, "K": 128, "pattern": "1:2"},
  ]
  size = tokens * 128
  passes = [
    NonGemm("norm", "norm", size, size),
    NonGemm("a/softmax", "softmax", tokens**2, tokens**2),
  ]
  return {
    f"{label}, seq {tokens}": Layers.of(rows, Forward(tuple(passes), tokens))
  }


def test_both_figures_of_a_whole_model_are_drawn():
  made = report(whole(64), ["ws:8x8", "tpu:v5e"], axes="pattern=1:2,1:4")
  for draw in (speedup, plots.length):
    lines = draw(made).axes[0].lines
    for place, spec in enumerate(["ws:8x8", "tpu:v5e"]):
      totals = [total for total in made.totals if total.engine == spec]
      marked, thin = lines[2 * place : 2 * place + 2]
      if draw is speedup:
        assert marked.get_label() == spec
        assert list(marked.get_ydata()) == [t.whole_speedup for t in totals]
        assert list(thin.get_ydata()) == [t.speedup for t in totals]
        assert thin.get_color() == marked.get_color()
    assert "products alone" in [line.get_label() for line in lines]
  ax = breakdown(made).axes[0]
  widths = np.array([[bar.get_width() for bar in c] for c in ax.containers])
  np.testing.assert_allclose(widths.sum(0), 100)
  hatched = [c.get_label() for c in ax.containers if c[0].get_hatch()]
  assert hatched == ["norm", "softmax"]
  first = made.totals[0]
  assert (
    ax.texts[0]
    .get_text()
    .endswith(f"{first.whole_speedup:.2f}× ({first.speedup:.2f}×)")
  )


def test_length_draws_a_line_per_engine_and_fusion():
  tables = whole(1024) | whole(64) | whole(256)
  specs = ["os:8x8:overlap=full:dram_bw=4", "tpu:v5e"]
  made = report(tables, specs, axes="fuse=none,flat")
  ax = plots.length(made).axes[0]
  lines = {line.get_label(): line for line in ax.lines}
  for spec in specs:
    for fuse in ("none", "flat"):
      x, y = lines[f"{spec}, {fuse}"].get_data()
      assert list(x) == [64, 256, 1024]
      totals = {
        t.seq: t.whole_speedup
        for t in made.totals
        if (t.engine, t.fuse) == (spec, fuse)
      }
      assert list(y) == [totals[place] for place in x]
  assert max(lines["tpu:v5e, flat"].get_ydata()) > 1
  ticks = [label.get_text() for label in ax.get_xticklabels()]
  assert ticks == ["64", "256", "1K"]
  assert ax.get_title().startswith("net\nover the same engine")
  with pytest.raises(ValueError, match="expected workloads of known length"):
    plots.length(report(ROWS, ["ws"]))


def test_without_matplotlib_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  for draw in plots.PLOTS.values():
    with pytest.raises(ValueError, match=r"pip install 'figs_jax\[plots\]'"):
      draw(report(whole(64), ["ws:8x8"]))
