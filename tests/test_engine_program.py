"""launch/engine.py as a user meets it."""

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from figs_jax import cli
from figs_jax.engine import cost, report
from figs_jax.engine.layer_csv import read_layers
from tests.programs import (
  assert_one_clear_line,
  call,
  environment,
  in_one_process,
)

COLUMNS = (
  "name,engine,M,N,K,pattern,count,cycles,utilisation,speedup,energy_pj,"
  "dram_bytes"
)
TABLE = """name,M,N,K,pattern,count
qk,197,197,64,,12
fc1,197,3072,768,1:8,1
"""


def program(*arguments, before=""):
  code = ["launch/engine.py"]
  if before:
    run = (
      "import runpy; runpy.run_path('launch/engine.py', run_name='__main__')"
    )
    code = ["-c", f"{before}\n{run}"]
  return call(*code, *arguments)


@pytest.fixture
def table(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text(TABLE)
  return path


def test_csv_of_a_table_needs_no_flax(table):
  # Imports of what only models and checkpoints need would fail.
  blocked = "import sys\nfor name in ('flax', 'optax', 'orbax', 'grain'):\n"
  done = program(
    "--layers", table, "--engines", "ws:32x32,vegeta-s-16-2", "--format", "csv",
    before=f"{blocked}  sys.modules[name] = None",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0] == COLUMNS and len(lines) == 5
  rows = list(csv.DictReader(io.StringIO(done.stdout)))
  # 24 folds of rows over K = 96, 96 of columns.
  assert int(rows[1]["cycles"]) == 3 * 96 * (2 * 32 + 32 + 197 - 2)
  made = report(read_layers(table), ["ws:32x32", "vegeta-s-16-2"], fmt="csv")
  assert done.stdout == f"{made}\n"
  assert "not measured" in done.stderr


def test_a_sweep_over_a_model_into_a_file(tmp_path):
  out = tmp_path / "a.json"
  flags = (
    "--model", "vit:Ti/16:depth=1", "--pattern", "ff: 1:2", "--engines",
    "ws:8x8,figs", "--sweep", "pattern=1:2,...,1:8; batch=1,2", "--sweep",
    "alpha=3,7", "--itemsize", 1, "--energy", "int8", "--format", "json",
    "--baseline", "ws:8x8:sparse=false", "--out", out,
  )  # fmt: skip
  done = program(*flags)
  assert done.returncode == 0, done.stderr
  assert done.stdout == ""
  made = json.loads(out.read_text())
  assert len(made["totals"]) == 2 * 3 * 3
  assert len(made["rows"]) == 2 * 3 * 3 * 10
  points = {(t["workload"], t["pattern"], t["engine"]) for t in made["totals"]}
  label = "vit:Ti/16:depth=1, batch 2"
  assert (label, "1:8", "figs:32x16:alpha=3") in points
  assert "over ws:8x8:sparse=false running the same layers" in made["caption"]
  before = out.read_bytes()
  assert_one_clear_line(program(*flags), "a.json", "--overwrite")
  assert out.read_bytes() == before
  assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_data_type_decides_the_rate_or_is_refused(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text("name,M,N,K,pattern\ncube,4096,4096,4096,64:2:8\n")
  flags = ("--layers", path, "--format", "csv", "--engines")
  wide, half, old, chips, lacks, contradicts, unknown = in_one_process(
    "launch/engine.py",
    (*flags, "gpu:a100", "--dtype", "float32"),
    (*flags, "gpu:a100", "--dtype", "bf16"),
    (*flags, "gpu:a100", "--itemsize", 4),
    (*flags, "tensorcore:b200,gpu:mi300x,tpu:ironwood,tpu:trillium,trainium2,"
     "trainium3,nm-spmm:a100", "--dtype", "bf16"),
    (*flags, "tpu:v5e", "--dtype", "float32"),
    (*flags, "gpu:a100", "--dtype", "int8", "--itemsize", 2),
    (*flags, "gpu:h3000"),
  )  # fmt: skip
  cycles = [
    int(next(csv.DictReader(io.StringIO(output)))["cycles"])
    for _, output, _ in (wide, half, old)
  ]
  assert cycles[0] == cycles[2] == pytest.approx(16 * cycles[1], rel=1e-4)
  assert chips[0] == 0 and len(chips[1].splitlines()) == 8
  for (code, output, errors), words in (
    (lacks, "tpu:v5e has no float32; choose one of bf16, int8"),
    (contradicts, "dtype int8 has itemsize 1, got itemsize 2"),
    (unknown, "unknown chip 'h3000'"),
  ):
    assert (code, output) == (2, "") and words in errors
  assert ":peak= and :hbm=" in unknown[2]


def test_every_layer_goes_to_a_file_of_its_own(table, tmp_path):
  out, layers = tmp_path / "a.txt", tmp_path / "layers.csv"
  flags = ("--layers", table, "--engines", "ws,gpu:h100")
  kept, again, same, source = in_one_process(
    "launch/engine.py",
    (*flags, "--layers_out", layers, "--out", out),
    (*flags, "--layers_out", layers),
    (*flags, "--layers-out", out, "--out", out, "--overwrite"),
    (*flags, "--layers_out", table, "--overwrite"),
  )
  assert kept == [0, "", ""]
  rows = list(csv.DictReader(layers.read_text().splitlines()))
  assert [row["count"] for row in rows] == ["12", "1"] * 2
  assert [row["energy_pj"] for row in rows[2:]] == ["n/a"] * 2
  assert "qk × 12" in out.read_text()
  for (code, output, errors), words in (
    (again, "--layers_out"),
    (same, f"--layers_out {out} is the file of --out"),
    (source, "is the file of --layers; name another"),
  ):
    assert (code, output) == (2, "") and words in errors
  assert table.read_text() == TABLE


def test_a_picture(table, tmp_path):
  pytest.importorskip("matplotlib")
  out = tmp_path / "a.png"
  out.write_text("old")
  done = program(
    "--layers", table, "--sweep", "pattern=1:2,1:4", "--format", "png",
    "--out", out, "--overwrite", "--plot", "pareto", "--area", "float16",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert out.read_bytes().startswith(b"\x89PNG")


def select(table, *several):
  """(code, output, errors) of a sweep of `table` with each list of flags."""
  common = ("--layers", table, "--sweep", "rows=8,16,...,48; cols=8,16,32")
  return in_one_process(
    "launch/engine.py", *((*common, "--engines", "ws", *f) for f in several)
  )


def test_points_of_a_sweep_can_be_selected(table, tmp_path):
  csv_file, npz_file = tmp_path / "a.csv", tmp_path / "a.npz"
  million = ("--sweep", "bw_in=1,2,...,1000; bw_out=1,2,...,60")
  own = "colabs/own_engine.py"
  front, top, many, columns, arrays, several = select(
    table,
    ("--pareto", "cycles, rows*cols", "--format", "json"),
    ("--smallest=-utilisation", "--top", 3, "--where", "rows*cols<=512; m>1",
     "--format", "csv", "--sweep", "pattern=1:2,1:4,...,1:8"),
    ("--smallest", "cycles", *million, "--format", "csv"),
    ("--points", "all", "--out", csv_file),
    ("--points", "rows,cycles", "--out", npz_file, "--where", "rows<17"),
    ("--engine_file", own, "--engines", "vector,ws", "--smallest", "cycles",
     "--sweep", "latency=1,2"),
  )  # fmt: skip
  for code, _, errors in (front, top, many, columns, arrays, several):
    assert code == 0, errors
  # Beside the brute force: the total of the layers on each design.
  layers = read_layers(table)
  plain = []
  for rows, cols in itertools.product(range(8, 49, 8), (8, 16, 32)):
    total = cost(layers, f"ws:{rows}x{cols}").total
    plain.append((rows, cols, total("cycles"), total("energy_pj")))
  made = json.loads(front[1])
  best = [
    (rows, cols)
    for rows, cols, cycles, _ in plain
    if not any(
      a * b <= rows * cols
      and c <= cycles
      and (a * b, c) != (rows * cols, cycles)
      for a, b, c, _ in plain
    )
  ]
  got = [(point["rows"], point["cols"]) for point in made["points"]]
  areas = {rows * cols for rows, cols in best}
  assert {rows * cols for rows, cols in got} == areas and set(got) <= set(best)
  assert "not measured" in made["caption"]
  assert f"{len(got)} of 18 points, those that no other" in made["caption"]
  assert "Swept 18 points (rows 6, cols 3; engines 1)." in front[2]
  rows = list(csv.DictReader(io.StringIO(top[1])))
  assert len(rows) == 3 and "Swept 54 points" in top[2]
  assert all(int(row["rows"]) * int(row["cols"]) <= 512 for row in rows)
  (fastest,) = csv.DictReader(io.StringIO(many[1]))
  assert "Swept 1,080,000 points" in many[2]
  assert (fastest["rows"], fastest["cols"]) == ("48", "32")
  read = list(csv.DictReader(io.StringIO(csv_file.read_text())))
  assert [(int(x["rows"]), int(x["cols"]), int(x["cycles"])) for x in read] == [
    point[:3] for point in plain
  ]
  with np.load(npz_file) as file:
    assert file["rows.0"].tolist() == [8, 8, 8, 16, 16, 16]
    assert file["cycles.0"].tolist() == [x[2] for x in plain[:6]]
  assert "vector" in several[1] or "ws" in several[1]
  # Nothing is replaced unasked.
  before = csv_file.read_bytes()
  (again,) = select(table, ("--points", "rows", "--out", csv_file))
  assert_one_clear_line(again, "a.csv", "--overwrite")
  assert csv_file.read_bytes() == before
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "a.csv", "a.npz", "t.csv"
  ]  # fmt: skip


def test_bad_selections_are_one_line(table, tmp_path):
  out, broken = tmp_path / "x.csv", tmp_path / "broken.py"
  broken.write_text("import figs_jax\n1 / 0\n")
  cases = {
    ("--pareto", "cycles"): "two quantities",
    ("--pareto", "cycles,energy"): "did you mean 'energy_pj'",
    ("--pareto", "cycles,rows+cols"): "expected a product of fields",
    ("--smallest", "5"): "expected a field in the product",
    ("--smallest", "cycles", "--where", "rows"): "expected one of <= >=",
    ("--smallest", "cycles", "--where", "row<8"): "did you mean 'rows'",
    ("--smallest", "cycles", "--pareto", "a,b"): "give one of --pareto and",
    ("--smallest", "cycles", "--plot", "speedup"): "--plot does not go with",
    ("--smallest", "cycles", "--baseline", "ws"): "--baseline does not go",
    ("--smallest", "cycles", "--format", "png"): "--format png does not go",
    ("--pareto", "cycles,rows", "--top", 3): "--top goes with --smallest",
    ("--where", "rows<8"): "--where needs --pareto, --smallest or --points",
    ("--points", "all"): "add --out FILE.csv or --out FILE.npz",
    ("--points", "rows", "--out", tmp_path / "x.json"): "--out FILE.npz",
    ("--points", "row", "--out", out): "did you mean 'rows'",
    ("--smallest=",): "--smallest is empty",
    ("--sweep", "alpha=3"): "axis 'alpha' of ws",
    ("--sweep", "sparse=8,...,64"): "one number before the dots",
    ("--sweep", "bw_in=1,2,...,6000"): "108,000 designs are more than",
    ("--engines", "ws,tpu:v5e", "--smallest", "cycles"): "do not compare",
    ("--engine_file", broken): f"{broken}, line 2: ZeroDivisionError",
    ("--engine_file", tmp_path / "no.py"): "no.py: no such file",
  }  # fmt: skip
  flags = [words if isinstance(words, tuple) else (words,) for words in cases]
  for done, words in zip(select(table, *flags), cases.values()):
    assert_one_clear_line(done, words)
  assert not out.exists()


def model(*several):
  """(code, output, errors) of the program with each list of flags."""
  return in_one_process("launch/engine.py", *several)


def test_models_by_length_phase_and_fusion(tmp_path):
  out = tmp_path / "a.png"
  llama = ("--model", "llama:8b:depth=1", "--phase", "decode", "--batch", 8)
  chips = ("--engines", "gpu:h100,tpu:v5e")
  bert = ("--model", "bert:base:depth=1", "--engines", "gpu:h100")
  seqs = "seq=64,128,256,...,1024"
  done = model(
    (*llama, "--context", 4096, *chips, "--pattern", "ff: 2:4",
     "--format", "json"),
    (*llama, "--sweep", "context=512,4096", *chips, "--format", "json"),
    (*bert, "--sweep", f"{seqs};fuse=none,flat;buffer=524288", "--format",
     "json"),
    (*bert, "--seq", 128, "--fuse", "flat", "--format", "json"),
    (*bert, "--sweep", seqs, "--fuse", "flat", "--format", "png", "--out", out),
    (*bert, "--sweep", "seq=64,128;hbm=1000,2000", "--smallest", "cycles",
     "--format", "json"),
  )  # fmt: skip
  for code, _, errors in done:
    assert code == 0, errors
  decode, contexts, swept, flat, _, points = (x[1] for x in done)
  (gpu, tpu) = json.loads(decode)["totals"]
  assert gpu["workload"] == "llama:8b:depth=1, batch 8, decode, context 4096"
  assert gpu["cache_bytes"] == 8 * 4096 * 2 * 8 * 128 * 2
  assert gpu["memory_bound"] == tpu["memory_bound"] == 1
  assert gpu["whole_cycles"] > gpu["cycles"]
  cache = [total["cache_bytes"] for total in json.loads(contexts)["totals"]]
  assert cache[2] == 8 * cache[0]
  totals = json.loads(swept)["totals"]
  assert [(total["seq"], total["fuse"]) for total in totals] == [
    (n, fuse)
    for n in (64, 128, 256, 512, 1024)
    for fuse in ("none", "flat:buffer=524288")
  ]
  (one,) = json.loads(flat)["totals"]
  assert one["fuse"] == "flat" and one["fused"] == 1
  assert one["whole_speedup"] == totals[3]["whole_speedup"] > 1
  assert out.read_bytes().startswith(b"\x89PNG")
  assert "Swept 5 points (seq 5; engines 1)" in done[4][2]
  assert "Products alone." in json.loads(points)["caption"]


def test_bad_lengths_and_phases_are_one_line(table):
  vit = ("--model", "vit:Ti/16:depth=1")
  cases = {
    (*vit, "--phase", "decode"): "ViT: expected no phase",
    (*vit, "--context", "8"): "ViT: expected no context",
    (*vit, "--seq", "1"): "ViT: expected seq of 2 or more",
    (*vit, "--seq", "8", "--sweep", "seq=8,16"): "--seq and --sweep seq=",
    (*vit, "--sweep", "seq=8,x"): "seq 'x': expected an integer",
    (*vit, "--sweep", "buffer=8"): "expected fuse=flat with it",
    ("--model", "swin_v2:T/w8-256", "--seq", "8"): "set image_size= instead",
    ("--model", "bert:base", "--phase", "prefill"): "does not decode",
    ("--model", "gpt2:xl", "--phase", "decode", "--seq", "8"): "give context",
    ("--model", "gpt2:xl", "--context", "8"): "expected a phase with it",
    ("--model", "gpt3:xl"): "did you mean 'gpt2'",
    ("--layers", table, "--seq", "8"): "--seq is of --model",
    ("--layers", table, "--phase", "decode"): "--phase is of --model",
    ("--layers", table, "--sweep", "seq=8,9"): "--seq is of --model",
    ("--layers", table, "--fuse", "flat"): "its partner 'av' is missing",
    (*vit, "--fuse", "flat", "--sweep", "rows=8,9", "--smallest", "cycles"):
      "fuse: expected a report",
  }  # fmt: skip
  for done, words in zip(model(*cases), cases.values()):
    assert_one_clear_line(done, words)


def test_help_explains_engines_and_sweeps():
  done = program("--help")
  assert done.returncode == 0
  for words in (
    "vegeta-s-16-2",
    "tensorcore:h200",
    "--sweep",
    "1:2,1:4,...,1:128",
  ):
    assert words in done.stdout


def test_junk_is_one_line(tmp_path):
  path = tmp_path / "junk.csv"
  path.write_text(",".join(f"junk{i}" for i in range(10**6)))
  done = program("--layers", path)
  assert_one_clear_line(done, "junk.csv, row 1, column 1", "name,M,N,K")
  assert len(done.stderr) < 400


def test_one_source_is_needed(table):
  done = program("--layers", table, "--model", "vit:B/16")
  assert_one_clear_line(done, "give one of --layers, --model and --workdir")


def test_output_is_whole_or_ends_with_its_reader():
  code = "from figs_jax import cli; cli.emit(b'line\\n' * 10**5); exit(9)"
  shell = f'{sys.executable} -c "{code}"; echo $? >&2'
  cases = (("wc -l", "100000", "9"), ("head -1", "line", "1"))
  for reader, want, code in cases:
    done = subprocess.run(
      f"({shell}) | {reader}",
      shell=True,
      env=environment(PYTHONUNBUFFERED="1"),
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert done.stdout.strip() == want
    assert done.stderr.strip() == code


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
  code = "from figs_jax import cli; cli.emit(b'line\\n' * 10**5)"
  done = subprocess.run(
    f'ulimit -f 0; {sys.executable} -c "{code}" > {tmp_path}/out',
    shell=True,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 1
  assert "standard output: File too large" in done.stderr
  assert len(done.stderr.splitlines()) == 1


def test_an_interruption_is_one_line():
  code = (
    "from figs_jax import cli\n"
    "def main(): raise KeyboardInterrupt\n"
    "cli.run(main)"
  )
  done = call("-c", code)
  assert done.returncode == 130
  assert done.stderr.splitlines() == ["-c: interrupted"]


def test_only_files_are_replaced_and_links_lead_to_them(tmp_path, capsys):
  pipe, link, loop = (tmp_path / name for name in ("pipe", "link", "loop"))
  os.mkfifo(pipe)
  loop.symlink_to("loop")
  for path in (pipe, loop):
    with pytest.raises(SystemExit) as caught:
      cli.write_output(str(path), b"one", overwrite=True)
    assert caught.value.code == 2
    assert "not a regular file" in capsys.readouterr().err
  assert pipe.is_fifo() and loop.is_symlink()
  link.symlink_to("file")
  cli.write_output(str(link), b"two", overwrite=False)
  cli.write_output(str(link), b"three", overwrite=True)
  assert link.is_symlink() and (tmp_path / "file").read_bytes() == b"three"


@pytest.mark.parametrize("flag", ["--energy", "--model", "--out", "--sweep"])
def test_an_empty_flag_is_refused(table, flag):
  done = program("--layers", table, f"{flag}=")
  assert_one_clear_line(done, f"{flag} is empty")


def test_files_are_written_whole_or_not_at_all(tmp_path, capsys, monkeypatch):
  out = tmp_path / "a.csv"
  cli.write_output(str(out), b"one", overwrite=False)
  assert out.read_bytes() == b"one"
  cli.write_output(str(out), b"two", overwrite=True)
  assert out.read_bytes() == b"two"
  for path, words in (
    (out, "it exists"),
    (tmp_path, "got a directory"),
    (tmp_path / "no" / "a.csv", "no such directory"),
    (tmp_path / ("x" * 300), "too long"),
  ):
    with pytest.raises(SystemExit) as caught:
      cli.write_output(str(path), b"three", overwrite=False)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
  # A disk that fails in the middle.
  monkeypatch.setattr(Path, "replace", lambda *_: os.stat(tmp_path / "no"))
  with pytest.raises(SystemExit):
    cli.write_output(str(out), b"four", overwrite=True)
  assert out.read_bytes() == b"two"
  assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def pruned_weights(path):
  """A tiny ViT with a tenth of the weights of its feed-forward."""
  import jax.numpy as jnp
  from flax import nnx

  from figs_jax import models
  from figs_jax.models import pretrained

  sizes = {"depth": 1, "image_size": 32, "num_classes": 3}
  model = models.create("vit", "Ti/16", rngs=nnx.Rngs(0), **sizes)
  keep = np.random.default_rng(0)
  masks = {}
  for name in ("fc1", "fc2"):
    kernel = getattr(model.blocks[0].mlp, name).kernel
    masks[name] = keep.random(kernel.shape) < 0.1
    kernel.set_value(jnp.where(masks[name], kernel[...], 0.0))
  pretrained.save(model, path)
  return masks


def test_weights_give_real_masks_and_engines_have_an_area(table, tmp_path):
  weights, png = tmp_path / "w.safetensors", tmp_path / "a.png"
  masks = pruned_weights(weights)
  model = ("--model", "vit:Ti/16:depth=1:image_size=32:num_classes=3")
  real = (*model, "--weights", weights)
  rows = "vegeta-s-16-2:granularity=row"
  sweep = (
    "--layers",
    table,
    "--engines",
    "figs",
    "--sweep",
    "rows=8,16,...,64",
  )
  cover, swept, area, drawn, front = in_one_process(
    "launch/engine.py",
    (*real, "--cover", "--batch", 8, "--format", "csv"),
    (*real, "--batch", 8, "--engines", rows, "--sweep", "rows=32,64",
     "--smallest", "cycles", "--format", "json"),
    ("--layers", table, "--engines", "figs,tpu:v5e", "--area", "int8"),
    (*sweep, "--pareto", "time_ns,area_mm2", "--format", "png", "--out", png),
    (*sweep, "--pareto", "time_ns,area_mm2", "--area", "int8,scale=2",
     "--format", "csv"),
  )  # fmt: skip
  for code, _, errors in (cover, swept, area, drawn, front):
    assert code == 0, errors
  lines = {row["name"]: row for row in csv.DictReader(io.StringIO(cover[1]))}
  for name, mask in masks.items():
    row = lines[f"blocks/0/mlp/{name}"]
    assert float(row["density"]) == pytest.approx(mask.mean())
    blocks = mask.reshape(-1, 16, 4, mask.shape[1]).sum(2).max(1)
    n = np.array([1, 1, 2, 4, 4])[blocks]
    assert float(row["cover"]) == pytest.approx(n.mean())
    assert float(row["row_speedup"]) > 2 > float(row["layer_speedup"]) == 1
  assert lines["blocks/0/attn/q"]["density"] == ""
  whole = lines["whole model"]
  (point,) = json.loads(swept[1])["points"]
  assert "at their worst" not in swept[2]
  assert float(whole["row_speedup"]) > 1 and point["rows"] == 64
  assert "area, mm²" in area[1] and "reconstructed" in area[1]
  assert png.read_bytes()[1:4] == b"PNG"
  best = list(csv.DictReader(io.StringIO(front[1])))
  assert [float(row["area_mm2"]) for row in best] == sorted(
    (float(row["area_mm2"]) for row in best), reverse=True
  )
  assert "reconstructed from counted parts" in front[2]


def test_flags_of_masks_and_areas_that_do_not_go_together(table):
  layers = ("--layers", table)
  mistakes = {
    (*layers, "--cover"): "--cover needs real masks",
    (*layers, "--weights", "a"): "--weights are of --model",
    (*layers, "--area", "int8", "--format", "csv"): "--area is shown in",
    (*layers, "--area", "fp4"): "Area of 'fp4'",
    ("--model", "vit:Ti/16", "--cover"): "no layer has a real mask",
    ("--model", "vit:Ti/16", "--cover", "--area", "int8"): "--area does not go",
    (*layers, "--baseline", "densest"): "unknown kind 'densest'",
  }
  done = in_one_process("launch/engine.py", *mistakes)
  for one, words in zip(done, mistakes.values(), strict=True):
    assert_one_clear_line(one, words)
