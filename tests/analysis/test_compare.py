"""The comparison of recipes: its rows, its table and its plot."""

import dataclasses
import functools
import json
import re
import shutil
import struct

import pytest
from flax import nnx

import figs_jax
from figs_jax.analysis import plot_style
from figs_jax.analysis._compare import (
  ComparisonRow,
  compare,
  comparison_table,
  plot_comparison,
  training_shares,
  write_json,
)
from figs_jax.analysis.history import histories
from figs_jax.train._evaluate import speedups
from figs_jax.train.experiment import build

pytestmark = pytest.mark.standard_promotion
DENSE = ComparisonRow(
  recipe="dense",
  pattern="dense",
  step=10,
  accuracy=0.9,
  accuracy_se=None,
  accuracies=[0.9],
  exact_nm=True,
  sparsity=0.0,
  bytes_dense=800,
  bytes_packed=800,
  flops=100.0,
  flops_dense=100.0,
  engine="ws:8x8",
  speedup=1.0,
  train_flops=1.0,
  train_time=1.0,
)
SPARSE = dataclasses.replace(
  DENSE, recipe="figs", pattern="ff: 1:8", accuracy_se=0.01, speedup=2.5,
  flops=25.0, train_flops=0.75, train_time=0.8125,
)  # fmt: skip


@pytest.mark.parametrize("recipe", ["dense", "figs", "mdgf_exp", "step"])
def test_training_shares_are_those_of_the_run(tiny_config, recipe):
  config = tiny_config(recipe)
  shares = training_shares(config, "ws:8x8")
  experiment = build(config)
  model = nnx.eval_shape(lambda: experiment.model(0))
  wanted = figs_jax.train_flops(model, experiment.recipe, batch=16)
  assert shares["train_flops"] == wanted.share
  if recipe == "dense":
    assert shares["train_time"] == 1
  else:
    assert shares["train_flops"] < shares["train_time"] < 1


def get(tiny_config):
  return lambda recipe: tiny_config(recipe, total_steps=10, checkpoint_every=10)


@pytest.mark.parametrize(
  ("run", "engine_spec", "message"),
  [
    (("figss", None), "ws:8x8", "Unknown recipe 'figss', did you mean 'figs'"),
    (("figs", "ff: 1:7"), "ws:8x8", "not a multiple of m=7"),
    (("figs", "fff: 1:4"), "ws:8x8", "fff"),
    (("figs", None), "wss:8x8", "unknown kind 'wss', did you mean 'ws'"),
    (("dense", None), "ws:8x8", "dense is given twice"),
  ],
)
def test_errors_are_raised_before_anything_is_trained(
  run, engine_spec, message, tiny_config, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    "figs_jax.analysis._compare.train", lambda *_: pytest.fail()
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    compare(
      get(tiny_config), [("dense", None), run], tmp_path / "runs",
      engine_spec=engine_spec,
    )  # fmt: skip
  assert not (tmp_path / "runs").exists()


def test_directories_are_made_before_anything_is_trained(
  tiny_config, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    "figs_jax.analysis._compare.train", lambda *_: pytest.fail()
  )
  (tmp_path / "figs").write_text("in the way")
  runs = [("dense", None), ("figs", None)]
  with pytest.raises(ValueError, match=r"/figs: File exists; use another"):
    compare(get(tiny_config), runs, tmp_path, engine_spec="ws:8x8")


def test_every_run_has_its_own_pattern(tiny_config, tmp_path, monkeypatch):
  shared = tiny_config("figs")
  seen = []
  monkeypatch.setattr(
    "figs_jax.analysis._compare.train",
    lambda config, _: seen.append(config.pattern) or {"finished": True},
  )
  monkeypatch.setattr(
    "figs_jax.analysis._compare.evaluate",
    lambda *_, **__: dataclasses.asdict(SPARSE),
  )
  runs = [("figs", "ff: 1:4"), ("figs", "ff: 1:8")]
  compare(lambda _: shared, runs, tmp_path, engine_spec="ws:8x8")
  assert seen == ["ff: 1:4", "ff: 1:8"]


def test_sigterm_ends_the_comparison(tiny_config, tmp_path, monkeypatch):
  seen = []

  def stopped(config, where):
    seen.append(where.name)
    return {"step": 3, "finished": False}

  monkeypatch.setattr("figs_jax.analysis._compare.train", stopped)
  runs = [("dense", None), ("figs", "ff: 1:4")]
  assert not compare(get(tiny_config), runs, tmp_path, engine_spec="ws:8x8")
  assert seen == ["dense"]


@pytest.mark.slow
def test_a_trained_run_has_its_cost_beside_its_accuracy(
  short_workdir, tiny_config, tmp_path, monkeypatch
):
  def config_of(recipe, **options):
    options = {"total_steps": 2, "checkpoint_every": 2, "seed": 1} | options
    return tiny_config(recipe, keep=1, diagnose_every=1, **options)

  shutil.copytree(short_workdir, tmp_path / "ste-ff-1-4")
  log = (tmp_path / "ste-ff-1-4" / "metrics.jsonl").read_text()
  runs = [("ste", "ff: 1:4")]
  (row,) = compare(config_of, runs, tmp_path, engine_spec="ws:8x8")
  # A finished run is not trained again.
  assert (tmp_path / "ste-ff-1-4" / "metrics.jsonl").read_text() == log
  (history,) = histories([short_workdir])
  assert row.accuracies == pytest.approx(history.accuracies)
  shares = training_shares(config_of("ste"), "ws:8x8")
  assert {name: getattr(row, name) for name in shares} == shares
  gain = speedups(history.batch_layers, "ws:8x8")
  assert {name: getattr(row, name) for name in gain} == gain and row.step == 2
  # Another configuration is refused, unless it is allowed by name.
  monkeypatch.setattr(
    "figs_jax.analysis._compare.train", lambda *_: pytest.fail()
  )
  runs = [("dense", None), *runs]
  longer = functools.partial(config_of, total_steps=3)
  with pytest.raises(ValueError, match=r"ste-ff-1-4: .* total_steps; use"):
    compare(longer, runs, tmp_path, engine_spec="ws:8x8")
  allowed = functools.partial(longer, allow_change=("total_steps",))
  with pytest.raises(pytest.fail.Exception):  # training would begin
    compare(allowed, runs, tmp_path, engine_spec="ws:8x8")


def test_the_table_has_a_cell_for_every_column():
  head, rule, *body = comparison_table([DENSE, SPARSE]).splitlines()
  assert len({line.count("|") for line in (head, rule, *body)}) == 1
  columns = [cell.strip() for cell in head.split("|")]
  cells = [cell.strip() for cell in body[1].split("|")]
  cell = dict(zip(columns, cells, strict=True))
  assert cell["training FLOPs, share"] == "0.750"
  assert cell["training time, share"] == "0.812"
  assert cell["speed-up"] == "2.50×"
  tiny = dataclasses.replace(SPARSE, speedup=0.000412)
  assert "| 0.00041× |" in comparison_table([tiny])
  assert cell["FLOPs, share of dense"] == "0.250"


def test_rows_are_written_whole(tmp_path):
  write_json([DENSE, SPARSE], tmp_path / "rows.json")
  read = json.loads((tmp_path / "rows.json").read_text())
  assert [ComparisonRow(**row) for row in read] == [DENSE, SPARSE]


@pytest.mark.parametrize("rows", [[DENSE], [DENSE, SPARSE], [SPARSE] * 3])
def test_pictures_of_few_and_of_equal_runs(rows, tmp_path):
  pytest.importorskip("matplotlib")
  plot_comparison(rows, tmp_path / "report.png", "title")
  header = (tmp_path / "report.png").read_bytes()[:24]
  assert header.startswith(b"\x89PNG")
  width, height = struct.unpack(">II", header[16:])
  assert width > 2 * height > 1000


def test_each_panel_has_positions_and_patterns(tmp_path, monkeypatch):
  pytest.importorskip("matplotlib")
  figures, image = [], plot_style.image_bytes
  monkeypatch.setattr(
    plot_style, "image_bytes", lambda *a: figures.append(a[0]) or image(*a)
  )
  several = [
    dataclasses.replace(
      SPARSE, recipe=recipe, pattern=f"ff: {pattern}", speedup=speedup,
      accuracy=0.9 + place / 1000, train_flops=0.7 + place / 20,
    )
    for place, recipe in enumerate(("sr_ste", "figs", "step"))
    for pattern, speedup in (("1:4", 1.9), ("1:8", 2.3), ("1:16", 2.3001))
  ]  # fmt: skip
  rows = [DENSE, *several]
  plot_comparison(rows, tmp_path / "report.png", "title")
  axes = figures[0].axes
  for ax, field in zip(
    axes, ("speedup", "train_flops", "train_time"), strict=True
  ):
    marks = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [tuple(mark.get_xydata()[0]) for mark in marks] == [
      (getattr(row, field), 100 * row.accuracy) for row in rows
    ]
    assert [text.get_text() for text in ax.texts] == [r.pattern for r in rows]
    colours = [mark.get_markeredgecolor() for mark in marks]
    assert colours == [
      plot_style.RUNS[place]
      for place in (0, *(p for p in (1, 2, 3) for _ in range(3)))
    ]


def test_what_some_tasks_measure_has_its_column():
  glue = dataclasses.replace(DENSE, glue_score=0.8125, glue_score_se=0.015)
  translation = dataclasses.replace(SPARSE, bleu=27.5)
  head, _, first, second = comparison_table([glue, translation]).splitlines()
  columns = head.split(" | ")
  for name, cells in {
    "GLUE score, % (± s.e.)": ("81.25 ± 1.50", "–"),
    "BLEU (± s.e.)": ("–", "27.50"),
  }.items():
    column = columns.index(name)
    assert first.split(" | ")[column] == cells[0]
    assert second.split(" | ")[column] == cells[1]
  assert "GLUE" not in comparison_table(
    [SPARSE]
  ) and "BLEU" not in comparison_table([glue])
