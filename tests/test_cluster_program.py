"""launch/cluster.py as a user meets it."""

import csv
import io
import json

import numpy as np
import pytest

from figs_jax.cli import clusters
from figs_jax.cli.workloads import from_model
from figs_jax.engine import (
  Assumptions,
  Cluster,
  Decoder,
  Parallel,
  estimate,
  estimate_all,
)
from figs_jax.engine.studies.cluster.of_chips import cluster_of, engine_of
from tests.programs import assert_one_clear_line, in_one_process

SMALL = (
  "--model", "gpt:width=512,layers=8,heads=8,vocab=1000", "--seq", 128,
  "--batch", 64, "--devices", 16, "--chip", "a100",
)  # fmt: skip
LARGE = (
  "--model", "gpt:width=25600,layers=128,heads=160", "--seq", 2048,
  "--batch", 1024, "--devices", 1024, "--chip", "h100",
)  # fmt: skip


def cluster(*several):
  return in_one_process("launch/cluster.py", *several)


def test_a_report_in_every_format(tmp_path):
  out, picture = tmp_path / "a.json", tmp_path / "a.png"
  done = cluster(
    (*SMALL, "--format", "json", "--out", out, "--top", 3),
    (*SMALL, "--format", "csv", "--top", 2, "--where", "tensor==2; zero<2"),
    (*SMALL, "--format", "md"),
    (*SMALL, "--format", "png", "--out", picture),
    (*SMALL, "--pattern", "ff: 2:4", "--transposable", "--devices", "8,16",
     "--price", 2, "--format", "csv"),
    (*SMALL, "--out", out),
  )  # fmt: skip
  for code, _, errors in done[:-1]:
    assert code == 0, errors
  made = json.loads(out.read_text())
  model = Decoder(512, 8, 8, 128, vocab=1000)
  wanted = estimate_all(
    lambda batch: (1, model.rows(batch)), "tensorcore:a100",
    Cluster(16, intra=300, inter=25), 64, overlap=True,
    assume=Assumptions(embedding=model.embedding),
  )  # fmt: skip
  first, *_ = made["points"]
  assert [p["front"] for p in made["points"][:4]] == ["no"] * 3 + ["yes"]
  assert first["seconds"] == pytest.approx(wanted[0].ns / 1e9, rel=1e-12)
  assert first["memory_gb"] == pytest.approx(wanted[0].memory / 1e9)
  flops = 6.0 * sum(
    r["M"] * r["N"] * r["K"] * r.get("count", 1) for r in model.rows(64)
  )
  assert first["mfu"] == pytest.approx(flops / wanted[0].ns / 16 / 312_000)
  assert f"{len(wanted):,} placements" in made["caption"]
  assert "not measured" in made["caption"]
  rows = list(csv.DictReader(io.StringIO(done[1][1])))
  assert {(row["tensor"], row["zero"] < "2") for row in rows} == {("2", True)}
  assert "| part | seconds | percent |" in done[2][1]
  assert picture.read_bytes().startswith(b"\x89PNG")
  rows = list(csv.DictReader(io.StringIO(done[4][1])))
  assert {row["devices"] for row in rows} == {"8", "16"}
  for row in rows:
    hours = float(row["seconds"]) / 3600 * int(row["devices"])
    assert float(row["cost"]) == pytest.approx(2 * hours, rel=1e-6)
  # Nothing is replaced unasked.
  assert_one_clear_line(done[-1], "a.json", "--overwrite")


def test_a_trillion_weights_on_1024_devices():
  full, tight, tier = cluster(
    LARGE,
    (*LARGE, "--memory", 10),
    (*LARGE, "--memory", 16, "--tier_memory", 64, "--tier_bandwidth", 50,
     "--format", "json", "--top", 1),
  )  # fmt: skip
  assert full[0] == 0, full[2]
  assert "1,009 G weights" in full[1]
  for part in (
    "products", "tensor exchange", "bubble", "data exchange", "tier",
    "weights", "gradients", "optimizer", "activations", "Pareto front",
  ):  # fmt: skip
    assert part in full[1]
  assert_one_clear_line(
    tight, "the smallest excess is", "--memory", "--tier_memory", "--devices"
  )
  # Half of its memory with a slow tier: it fits, and takes longer.
  point = json.loads(tier[1])["points"][0]
  assert 16 < point["memory_gb"] <= 80
  assert point["tier_gb"] == pytest.approx(point["memory_gb"] - 16)
  assert point["seconds"] > float(full[1].split(" s a step")[0].split()[-1])


def test_help_names_the_columns():
  ((code, text, _),) = cluster(("--help",))
  assert code == 0 and "--tier_memory" in text
  assert "COLUMNS of --where" in text and "tensor_exchange" in text


def test_what_would_make_it_fit_does():
  common = (*SMALL, "--format", "csv", "--memory")
  ((_, _, errors),) = cluster((*common, 0.02))
  words = errors.replace(",", "").split()
  memory = words[words.index("--memory") + 1]
  tier = words[words.index("--tier_memory") + 1]
  assert "GB a device" in errors
  enough, spilled, less = cluster(
    (*common, memory),
    (*common, 0.02, "--tier_memory", tier),
    (*common, float(memory) * 0.97),
  )
  assert enough[0] == spilled[0] == 0 and less[0] == 2


def test_bad_flags_are_one_line(tmp_path):
  cases = {
    ("--chip", "h10"): "unknown chip 'h10', did you mean 'h100'",
    ("--chip", "gpu:x"): "unknown chip 'x', known: ",
    ("--chip", "rtx4090"): "within a node is not known; add --intra",
    ("--chip", "ws:8x8"): "ws:8x8: its bandwidth within a node is not",
    ("--dtype", "bf15"): "unknown 'bf15', did you mean 'bf16'",
    ("--dtype", "fp8"): "fp8",
    ("--devices", 11): "no way to use 11 devices",
    ("--devices", "16,0"): "--devices: expected integers from 1",
    ("--devices", "many"): "--devices: expected integers from 1",
    ("--devices", ""): "--devices is missing",
    ("--model", "gpt:width=512"): "layers is missing",
    ("--model", "gtp:width=512"): "gtp",
    ("--model", "swin_v2:T/w8-256"): "seq",
    ("--pattern", "fff: 2:4"): "did you mean 'ff'",
    ("--transposable",): "--transposable goes with --pattern",
    ("--packed",): "--packed goes with --pattern",
    ("--where", "tensors<2"): "unknown column 'tensors', did you mean",
    ("--where", "tensor<1"): "none of",
    ("--tiered", "cache"): "unknown state 'cache'",
    ("--efficiency", 2): "efficiency: expected a share from 0 to 1, got 2.0",
    ("--memory", -1): "memory: expected a number above 0",
    ("--format", "png"): "--format png: add --out FILE.png",
    ("--out", tmp_path / "no" / "a.txt"): "a.txt",
  }  # fmt: skip
  several = cluster(*((*SMALL, *flags) for flags in cases))
  for done, words in zip(several, cases.values()):
    assert_one_clear_line(done, words)


def test_models_by_name_and_chips_by_spec():
  work = clusters.workload("vit:Ti/16:depth=2", "ff: 2:4", transposable=True)
  phase = work.phase_at(4)
  names = dict(zip(phase.layers.names, phase.layers.m.tolist()))
  assert names["blocks/1/mlp/fc1"] == 4 and names["blocks/1/attn/q"] == 1
  assert phase.input_gradient and work.embedding == 0
  for batch in (3, 4):
    (table,) = from_model("vit:Ti/16:depth=2", [batch], "ff: 2:4").values()
    layers = work.phase_at(batch).layers
    for name in ("M", "N", "K", "count", "n", "m"):
      assert (getattr(layers, name) == getattr(table, name)).all()
  engine, efficiency = engine_of("h100")
  assert (str(engine), efficiency) == ("tensorcore:h100", 1)
  v5e, efficiency = engine_of("v5e")
  assert (str(v5e), efficiency) == ("tpu:v5e", 0.71)
  made = cluster_of(engine, 4, inter=10.0)
  assert (made.intra, made.inter, made.memory) == (450, 10, 80 * 10**9)
  assert cluster_of(v5e, 4).per_node == 256
  ways = estimate_all(work.phase_at, engine, made, 64)
  assert (ways.columns["masks"] > 0).all() and ways.fits.all()
  shares = clusters.fraction_of_peak(ways, work, 64, engine)
  assert np.all((shares > 0) & (shares < 1))
  for spec in ("t5:small", "swin_v2:T/w8-256"):
    work = clusters.workload(spec)
    ways = estimate_all(work.phase_at, engine, made, 8)
    assert len(np.unique(ways.columns["tensor"])) > 1
    assert len(np.unique(ways.columns["pipeline"])) > 1
  # A scanned stack of blocks is the same model.
  scanned = clusters.workload("t5:small:scan=true")
  again = estimate_all(scanned.phase_at, engine, made, 8)
  plain = estimate_all(clusters.workload("t5:small").phase_at, engine, made, 8)
  for name, column in plain.columns.items():
    np.testing.assert_allclose(again.columns[name], column, rtol=1e-12)


def test_vectors_of_a_pattern_reach_the_engine():
  work = clusters.workload("gpt:width=512,layers=2,heads=8", "ff: 64:2:8")
  phase = work.phase_at(2)
  vectors = dict(zip(phase.layers.names, phase.layers.v.tolist()))
  assert vectors["blocks/0/mlp/fc2"] == 64 and vectors["blocks/0/attn/o"] == 0
  times = [
    estimate(
      clusters.workload("gpt:width=4096,layers=2,heads=32", pattern).phase_at,
      "tensorcore:h100", Cluster(1), Parallel(), 8,
    ).times["products"]
    for pattern in ("ff: 64:2:8", "ff: 2:4", None)
  ]  # fmt: skip
  assert times[0] < times[1] < times[2]


def test_the_weights_of_language_models_are_the_published_numbers():
  for model, seq, count in (
    ("llama:8b", 4096, 8_030_261_248),
    ("gpt2:small", 1024, 124_439_808),
  ):
    made = clusters.workload(model, seq=seq)
    assert made.weights == count
    assert f"{seq:,} tokens" in made.label
