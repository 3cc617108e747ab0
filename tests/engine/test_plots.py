"""Pictures: what is drawn is what the report says."""

import io
import sys

import numpy as np
import pytest

from figs_jax.engine import Report, parse, plots, report
from figs_jax.engine.layers import Forward, Layers, NonGemm
from figs_jax.engine.plots import breakdown, roofline, speedup
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
  specs = ["ws:16x16:dram_bw=8", "figs:16x16", "tensorcore:h200", "csr:a100"]
  figure = roofline(report(ROWS, specs))
  for ax, spec in zip(figure.axes, specs):
    engine = parse(spec)
    marks = [line for line in ax.lines if line.get_linestyle() == "None"]
    roofs = [line for line in ax.lines if line.get_linestyle() != "None"]
    assert ax.get_title() == spec
    labels = [mark.get_label() for mark in marks]
    assert labels == ["qk (dense)", "fc1 (1:2)", "fc2 (1:2)"]
    top = max(roof.get_ydata().max() for roof in roofs)
    texts = [text.get_text() for text in ax.texts]
    assert texts == (["no memory limit"] if spec == "figs:16x16" else [])
    if spec.startswith(("ws", "figs")):
      assert top == pytest.approx(2 * engine.rows * engine.cols)
      assert ax.get_ylabel() == "useful FLOP per cycle"
    else:
      assert ax.get_ylabel() == "useful FLOP per ns"
    bandwidth = {"ws": 8, "fi": np.inf}.get(spec[:2]) or engine.hbm
    for mark in marks:
      (x,), (y,) = mark.get_data()
      assert y <= min(top, x * bandwidth) * (1 + 1e-6)
    slopes = [
      r.get_ydata() / r.get_xdata() for r in roofs if np.ptp(r.get_ydata())
    ]
    assert len(slopes) == (spec != "figs:16x16")
    for slope in slopes:
      np.testing.assert_allclose(slope, bandwidth)


def test_roofline_shows_knees_on_axes_that_engines_share():
  """Slope and roof meet inside every panel, at peak / bandwidth."""
  specs = ["ws:16x16:dram_bw=8", "figs", "tpu:v5e", "tensorcore:h200"]
  figure = roofline(report(ROWS, specs), "a_run")
  assert figure.get_suptitle() == "Rooflines: a_run"
  tpu, core = (parse(spec) for spec in specs[2:])
  knees = [2 * 256 / 8, None, tpu.peak / tpu.hbm, core.peak / core.hbm]
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
    sizes = {
      label.get_size()
      for minor in (False, True)
      for label in ax.yaxis.get_ticklabels(minor=minor)
    }
    assert sizes == {8}
  ends = [ax.get_ylim() for ax in figure.axes]
  assert ends[0] == ends[1] != ends[2] == ends[3]
  assert roofline(report(ROWS, ["ws"])).get_suptitle() == ""
  named = report(ROWS, ["ws"], workload="vit:B/16")
  assert roofline(named).get_suptitle() == "Rooflines: vit:B/16"


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
