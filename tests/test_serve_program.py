"""launch/serve.py as a user meets it."""

import csv
import io
import json

import pytest

from tests.programs import assert_one_clear_line, in_one_process

TABLE = """name,M,N,K,pattern
fc1,16,64,256,1:8
fc2,16,256,64,1:8
head,1,10,64,
"""
PNGS = "buffer", "frontier", "latency_cdf", "misses", "served_accuracy"


@pytest.fixture
def given(tmp_path):
  """The words of a small study."""
  path = tmp_path / "t.csv"
  path.write_text(TABLE)
  return [
    *("--layers", path, "--engines", "ws:8x8:dram_bw=4:clock=1"),
    *("--accuracies", "1:8=.8,2:8=.85,8:8=.9", "--buffer", "2KiB"),
    *("--queries", 200, "--seeds", 2, "--slo", "latency<=400ms"),
    *("--arrivals", "poisson:12", "--loads", "1,2"),
  ]


def test_tables_and_files_say_the_same(given, tmp_path):
  pytest.importorskip("matplotlib")
  out, json_of = tmp_path / "out", tmp_path / "a.json"
  points = {"1:8": {"accuracy": 0.8}, "2:8": {"accuracy": 0.85}}
  json_of.write_text(json.dumps({"accuracy": 0.9, "points": points}))
  trace = tmp_path / "q.csv"
  trace.write_text("arrival,latency\n0,.4\n.1,.2\n.11,.01\n.12,.4\n")
  table, as_csv, again, traced, several = in_one_process(
    "launch/serve.py",
    [*given, "--out", out],
    [*given, "--format", "csv"],
    [*given, "--out", out],
    [
      *given[:4], "--accuracies", json_of, "--trace", trace, "--order", "edf",
      "--policy", "fixed:2:8", "--format", "json", "--loads", "1",
    ],
    [*given, "--engines", "ws:8x8,figs:8x8", "--out", tmp_path / "two"],
  )  # fmt: skip
  assert table[0] == 0, table[2]
  assert "nested queue" in table[1] and "missed by load" in table[1]
  names = {path.name for path in out.iterdir()}
  assert names == {"serving.csv", "serving.json", *(f"{x}.png" for x in PNGS)}
  assert (out / "serving.csv").read_text() == as_csv[1]
  rows = list(csv.DictReader(io.StringIO(as_csv[1])))
  assert len(rows) == 7 * 2  # four policies and three models, two loads
  held = json.loads((out / "serving.json").read_text())
  assert [x["contender"] for x in held["rows"]] == [
    x["contender"] for x in rows
  ]
  assert_one_clear_line(again, "serving.csv", "--overwrite")
  assert traced[0] == 0, traced[2]
  nested, *fixed = json.loads(traced[1])["rows"]
  assert nested["contender"] == "nested fixed:2:8" and len(fixed) == 2
  assert nested["accuracy"] == 0.85 and nested["missed_ci95"] is None
  assert several[0] == 0, several[2]
  names = {path.name for path in (tmp_path / "two").iterdir()}
  assert {"misses-1.png", "misses-2.png"} < names


def test_each_mistake_is_one_line(given, tmp_path):
  rest = given[:2]
  path = tmp_path / "bad.csv"
  path.write_text("time\n1\n")
  calls = {
    ("--model", "vit:Ti/16"): "--model has no accuracies; give --accuracies",
    (): "give one of --workdir, --model and --layers, not none",
    (*given, "--model", "vit:Ti/16"): "not --model and --layers",
    (*rest, "--accuracies", "1:8"): "each n:m once with an accuracy",
    (*rest, "--accuracies", "1:8=.8,1:8=.9"): "each n:m once",
    (*rest, "--accuracies", "2:8=.8,1:8=.9"): "ascending n of one m",
    (*rest, "--accuracies", "no.json"): "no.json: No such file",
    (*given, "--fixed_accuracies", "1:8=.8"): "expected one of 2:8, got 1:8",
    (*given, "--buffer", "many"): "--buffer 'many': expected bytes",
    (*given, "--loads", "0,1"): "--loads '0,1': expected positive factors",
    (*given, "--arrivals", "uniform:3"): "expected poisson:RATE",
    (*given, "--arrivals", "poisson:-3"): "expected poisson:RATE",
    (*given, "--slo", "latency<5ms"): "expected 'latency<=5ms'",
    (*given, "--policy", "fast"): "policy 'fast': expected latency, queue",
    (*given, "--policy", "fixed:3:8"): "expected a point of the model",
    (*given, "--engines", "wss"): "engine 'wss'",
    (*given, "--trace", path): "give one of --arrivals and --trace",
    (*given[:4], *given[4:6], "--trace", path): "expected the columns arrival",
    (*given, "--batch", "2"): "the batch is part of M in a table",
    (*given, "--dtype", "int3"): "unknown dtype 'int3'",
    (*given, "--out", path): "bad.csv: File exists; name another directory",
    ("--workdir", tmp_path / "none"): "none",
    ("--workdir", ""): "--workdir is empty",
  }
  results = in_one_process("launch/serve.py", *calls)
  for result, words in zip(results, calls.values()):
    assert_one_clear_line(result, words)
