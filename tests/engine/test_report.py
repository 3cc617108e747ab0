"""Reports: Amdahl over the whole model, and three formats of one table."""

import csv
import dataclasses
import functools
import io
import json
import re

import numpy as np
import pytest

import figs_jax
from figs_jax.engine import (
  Energy,
  Forward,
  Fusion,
  Layers,
  Report,
  Systolic,
  Total,
  cost,
  non_gemm_cycles,
  parse,
  report,
)
from figs_jax.engine.figs import checkpoint_stall_factor
from figs_jax.engine.reports.rows import Row
from figs_jax.engine.reports.tables import alike
from figs_jax.engine.reports.text import columns_text
from figs_jax.engine.timing import PARTS


def vit_base(pattern=None, tokens=196):
  """The GEMMs of ViT-Base's twelve blocks."""
  d, heads = 768, 12
  attend = {"M": tokens, "count": 12 * heads}
  return [
    {"name": "qkvo", "M": tokens, "N": d, "K": d, "count": 48},
    {"name": "q k^T", "N": tokens, "K": d // heads, **attend},
    {"name": "attend", "N": d // heads, "K": tokens, **attend},
    {"name": "fc1", "M": tokens, "N": 4 * d, "K": d, "pattern": pattern,
     "count": 12},
    {"name": "fc2", "M": tokens, "N": d, "K": 4 * d, "pattern": pattern,
     "count": 12},
  ]  # fmt: skip


ROWS = vit_base("1:8")


def test_the_whole_speed_up_is_amdahls():
  made = report(ROWS, ["ws:32x16", "is:16x16"])
  for engine, total in zip(("ws:32x16", "is:16x16"), made.totals):
    sparse, dense = cost(ROWS, engine), cost(vit_base(), engine)
    assert total.cycles == int((sparse.cycles * sparse.count).sum())
    assert total.baseline_cycles == int((dense.cycles * dense.count).sum())
    share = (dense.cycles * dense.count) / total.baseline_cycles
    layers = np.array([r.speedup for r in made.rows if r.engine == engine])
    np.testing.assert_allclose(total.speedup, 1 / (share / layers).sum())
    assert layers[:3].tolist() == [1, 1, 1] and (layers[3:] > 4).all()
    assert 1 < total.speedup < layers.max()
    macs = sum(
      r["M"] * r["N"] * r["K"] * r["count"] * (1 / 8 if "pattern" in r else 1)
      for r in ROWS
    )
    sides = Systolic(engine[:2], *map(int, engine[3:].split("x")))
    np.testing.assert_allclose(
      total.utilisation, macs / (total.cycles * sides.rows * sides.cols)
    )


def test_a_dense_model_and_a_dense_array_gain_nothing():
  assert report(vit_base(), ["ws"]).totals[0].speedup == 1
  assert report(ROWS, ["ws:sparse=false"]).totals[0].speedup == 1


def test_csv_has_a_row_per_layer_and_engine():
  made = report(ROWS, ["ws:32x16", "os:16x64"], fmt="csv")
  rows = list(csv.DictReader(io.StringIO(str(made))))
  assert len(rows) == 10
  names = "name,engine,M,N,K,pattern,count,cycles,utilisation,speedup,energy_pj"
  assert ",".join(rows[0]) == f"{names},dram_bytes"
  for text, row in zip(rows, made.rows):
    assert text["name"] == row.name and text["engine"] == row.engine
    for name in ("M", "N", "K", "cycles", "dram_bytes"):
      assert int(text[name]) == getattr(row, name)
    for name in ("utilisation", "speedup", "energy_pj"):
      assert float(text[name]) == pytest.approx(getattr(row, name), rel=1e-8)
  assert rows[3]["pattern"] == "1:8" and rows[0]["pattern"] == "dense"
  # Of one instance: the count weighs the totals alone.
  assert int(rows[3]["cycles"]) == 3 * 192 * (2 * 32 + 16 + 196 - 2)


def test_totals_weigh_by_count_and_their_parts_add_up():
  for spec in ("ws:32x16:dram_bw=64", "vegeta", "figs", "tensorcore:h200"):
    total = report(ROWS, [spec]).totals[0]
    costs = cost(ROWS, spec)
    assert sum(total.parts.values()) == total.cycles
    for part in PARTS:
      weighed = (getattr(costs, part) * costs.count).sum()
      assert total.parts[part] == int(weighed)
    assert total.dram_bytes == int((costs.dram_bytes * costs.count).sum())
    if spec != "tensorcore:h200":
      assert total.energy_pj == pytest.approx(
        (costs.energy_pj * costs.count).sum()
      )
    assert total.unit == ("ns" if "tensor" in spec else "cycles")
    assert total.pattern == "1:8"
  assert report(vit_base(), ["ws"]).totals[0].pattern == "dense"
  mixed = vit_base("1:8")
  mixed[0]["pattern"] = "2:4"
  assert report(mixed, ["ws"]).totals[0].pattern == "mixed"


def test_designs_together_cost_what_they_cost_alone():
  specs = [
    "figs:8x8:alpha=3", "ws:32x16", "figs:16x4", "figs:8x8:exchange=swap",
    "ws:16x16:overlap=full", "ws:8x8", "tpu:v5e", "vegeta-d-1-2", "tpu:v4",
    "vegeta-s-16-2", "vegeta-s-2-2", "csr:a100", "tensorcore:h200", "gpu:a100",
  ]  # fmt: skip
  made = report(ROWS, specs)
  assert [total.engine for total in made.totals] == specs
  for place, spec in enumerate(specs):
    alone = report(ROWS, [spec])
    assert made.totals[place] == alone.totals[0]
    assert made.rows[5 * place : 5 * place + 5] == alone.rows


def test_another_engine_as_the_baseline():
  made = report(ROWS, ["ws:32x16", "figs"], baseline="ws:32x16:sparse=false")
  dense = cost(vit_base(), "ws:32x16")
  for row, cycles in zip(made.rows, [*dense.cycles, *dense.cycles]):
    assert row.speedup == pytest.approx(cycles / row.cycles)
  for total in made.totals:
    assert total.baseline_cycles == int((dense.cycles * dense.count).sum())
    assert total.speedup == total.baseline_cycles / total.cycles
  # One that exploits patterns runs them.
  same = report(ROWS, ["ws:32x16"], baseline="ws:32x16")
  assert {row.speedup for row in same.rows} == {1}
  assert "over ws:32x16 running the same layers" in same.caption
  message = "tpu:v5e counts ns and ws cycles, which do not compare"
  with pytest.raises(ValueError, match=message):
    report(ROWS, ["ws"], baseline="tpu:v5e")


def test_options_reach_the_cost():
  free = report(ROWS, ["ws"], energy=Energy(0.0, 0.0, 0.0, 0.0))
  assert {row.energy_pj for row in free.rows} == {0}
  two, four = (report(ROWS, ["ws"], itemsize=size).rows[0] for size in (2, 4))
  assert four.dram_bytes == 2 * two.dram_bytes


def test_swap_registers_stall_as_the_real_masks_say():
  rows = vit_base("1:8")
  for row in rows[3:]:
    # One index per block in turn: eight outputs of a column want all eight.
    mask = np.arange(row["K"])[:, None] % 8 == np.arange(row["N"]) % 8
    row["mask"] = mask
  engine = parse("figs:32x16:exchange=swap")
  made, worst = report(rows, [engine, "ws"]), report(ROWS, [engine])
  want = checkpoint_stall_factor(Layers.of(rows), engine)
  assert made.totals[0].stall_factor == pytest.approx(want) == 1
  assert worst.totals[0].stall_factor == pytest.approx(
    checkpoint_stall_factor(Layers.of(ROWS), engine)
  )
  assert worst.totals[0].stall_factor > 2
  assert "in 2 of 2 sparse layers" in made.caption
  assert "in 0 of 2 sparse layers" in worst.caption
  assert "stall_factor" in str(worst) and "stall_factor" not in str(made)
  assert "Swap" not in str(report(rows, ["figs"]))


def test_ideal_compression_is_named_where_it_gives_the_numbers():
  words = "N:M is ideally compressed on"
  shown = str(report(ROWS, ["os:8x8", "ws", "os", "figs"]))
  sentence = f"{words} systolic arrays; :sparse=false is the plain array."
  assert shown.count(sentence) == 1
  plain = [(ROWS, "ws:sparse=false"), (ROWS, "vegeta"), (vit_base(), "ws")]
  assert not any(words in str(report(rows, [spec])) for rows, spec in plain)


def test_json_says_what_the_table_says():
  made = report(ROWS, ["ws", "figs"], fmt="json", workload="ViT-B")
  read = json.loads(str(made))
  assert read["caption"].startswith("Modelled cycles")
  assert [Row(**row) for row in read["rows"]] == list(made.rows)
  assert [Total(**total) for total in read["totals"]] == list(made.totals)
  assert read["totals"][1]["workload"] == "ViT-B"


def test_table_and_markdown_say_that_they_are_modelled():
  table, md = (
    str(report(ROWS, ["ws", "figs:8x8"], fmt=fmt)) for fmt in ("table", "md")
  )
  for text in (table, md):
    assert text.startswith("Modelled cycles (ns on rooflines), not measured.")
    assert "fc1" in text and "1:8" in text and "stall_weights" in text
    assert "stall_exchange" not in text  # a part that never occurs
  for text in (table, md):
    blocks = text.split("\n\n")
    # The whole model first and last.
    assert len(blocks) == 7 and blocks[1] == blocks[6]
  for block in (x for x in md.split("\n\n") if x.startswith("|")):
    assert len({line.count("|") for line in block.splitlines()}) == 1
  # Columns of the plain table line up.
  head, *body = table.split("\n\n")[1].splitlines()
  at = head.index("cycles", head.index("unit")) + len("cycles")
  assert len(body) == 2
  assert all(line[at - 2].isdigit() and line[at] == " " for line in body)


def vit_large(blocks=24, tokens=197):
  sizes = {"M": tokens, "N": 1024, "K": 1024}
  rows = [{"name": "patch_embed", "M": tokens - 1, "N": 1024, "K": 768}]
  for i in range(blocks):
    name = f"blocks/{i}"
    rows += [{"name": f"{name}/attn/{x}", **sizes} for x in "qkvo"]
    rows += [
      {"name": f"{name}/attn/qk", "M": tokens, "N": tokens, "K": 64,
       "count": 16},
      {"name": f"{name}/attn/av", "M": tokens, "N": 64, "K": tokens,
       "count": 16},
      {"name": f"{name}/mlp/fc1", **sizes | {"N": 4096}, "pattern": "2:4"},
      {"name": f"{name}/mlp/fc2", **sizes | {"K": 4096}, "pattern": "2:4"},
    ]  # fmt: skip
  return [*rows, {"name": "head", "M": 1, "N": 1000, "K": 1024}]


@pytest.mark.parametrize(
  "specs",
  [
    ("ws:32x16", "vegeta-s-16-2", "figs", "tensorcore:h100"),
    ("tensorcore:b200", "trainium2", "tpu:v5e", "nm-spmm:a100"),
  ],
)
def test_a_report_of_vit_large_has_40_lines(specs):
  passes = [
    {"name": "x", "kind": kind, "reads": 9, "writes": 9}
    for kind in ("norm", "softmax", "activation", "residual", "embedding")
  ]
  table = Layers.of(vit_large(), Forward.of(passes))
  made = report(table, specs, workload="vit:L/16, batch 1", dtype="bf16")
  text = str(made)
  assert len(text.splitlines()) <= 40
  for label in ("patch_embed ", "q, k, v, o × 24", "qk × 384", "fc1 × 24"):
    assert sum(line.startswith(label) for line in text.splitlines()) == 1
  # Every layer is in the file of layers.
  rows = list(csv.DictReader(io.StringIO(made.layers_csv)))
  assert len(rows) == 4 * (2 + 24 * 8)
  assert sum(int(row["count"]) for row in rows) == 4 * (2 + 24 * 38)


def kinds(rows, spec="ws"):
  table = Layers.of([{"M": 8, "N": 8, "K": 8} | row for row in rows])
  return [x for x, _ in alike(report(table, [spec]).layers)]


def test_alike_layers_are_one_with_their_count():
  names = [f"stages/{i}/blocks/{j}/{x}" for i in "01" for j in "01"
           for x in "qk"]  # fmt: skip
  rows = [{"name": name} for name in names]
  assert kinds(rows) == ["q, k × 4"]
  for row in rows[4:]:
    row["N"] = 16
  assert kinds(rows) == ["stages/0: q, k × 2", "stages/1: q, k × 2"]
  rows = [{"name": f"encoder/{i}/q"} for i in range(3)]
  rows += [{"name": "decoder/0/q", "count": 2}, {"name": "decoder/0/k"}]
  assert kinds(rows) == ["q × 5, k × 1"]
  assert kinds([{"name": f"conv{i}"} for i in range(9)]) == [
    "conv0, conv1, conv2, conv3, conv4, conv5, 3 more"
  ]
  assert kinds([{"name": f"ff[{i}]"} for i in range(3)]) == ["ff × 3"]
  # Masks that cost differently are not alike.
  two = np.arange(256)[:, None] % 4 < np.full((1, 8), 2)
  masked = [
    {"name": f"{i}/ff", "K": 256, "pattern": "2:4", "mask": mask}
    for i, mask in enumerate(
      (two, two & (np.arange(256)[:, None] % 4 < 1), two)
    )
  ]
  assert kinds(masked, "vegeta") == ["ff × 2", "1: ff"]
  assert kinds(masked, "ws") == ["ff × 3"]


def test_layers_of_many_designs_are_left_out():
  made = report(ROWS, ["ws"], axes={"rows": range(1, 15)})
  assert "70 rows of layers are left out" in str(made)
  assert len(made.layers) == 14 and "fc1" in made.layers_csv
  assert "fc1" in str(report(ROWS, ["ws"], axes={"rows": range(1, 10)}))


def test_the_45_nm_table_is_no_processor():
  for fmt in ("table", "md", "csv", "json"):
    text = str(report(ROWS, ["ws", "gpu:h100", "tpu:v5e"], fmt=fmt))
    if fmt == "json":
      read = json.loads(text)
      energies = [x["energy_pj"] for x in read["rows"] + read["totals"]]
      assert energies.count(None) == 2 * (5 + 1)
    else:
      assert text.count("n/a") >= 2
    if fmt != "csv":
      assert "energy_pj is n/a on gpu:h100, tpu:v5e" in " ".join(text.split())
  made = report(ROWS, ["gpu:h100"], energy=Energy(mult=0.5))
  want = cost(ROWS, "gpu:h100", energy=Energy(mult=0.5))
  assert made.rows[0].energy_pj == want.energy_pj[0]
  assert "n/a" not in str(made)


def test_values_are_plain_numbers():
  # The axis of one engine leaves the silicon of another as it is.
  made = report(ROWS, ["ws", "tensorcore:h100", "figs"], axes="alpha=7,15")
  assert [x.ideal_speedup is None for x in made.totals] == [1, 0, 1, 1]
  for item in (*made.rows, *made.totals):
    for value in item:
      values = value.values() if isinstance(value, dict) else [value]
      assert {type(x) for x in values} <= {int, float, str, type(None)}
  vast = [row | {"M": row["M"] * 10**6} for row in ROWS]
  for line in str(report(vast, ["ws", "figs"])).splitlines():
    assert not re.search(r"(?<!0\.)\d{8}|e[+-]\d", line)
  assert "np." not in repr(made.totals)


def test_several_workloads_in_one():
  parts = [
    report(vit_base(p), ["ws", "is"], workload=p) for p in ("1:2", "1:4")
  ]
  both = Report.joined(parts)
  assert both.rows == parts[0].rows + parts[1].rows
  names = [(total.workload, total.engine) for total in both.totals]
  assert names == [("1:2", "ws"), ("1:2", "is"), ("1:4", "ws"), ("1:4", "is")]
  assert [str(engine) for engine in both.engines] == ["ws", "is", "ws", "is"]
  assert "workload" in str(both) and "workload" not in str(report(ROWS, ["ws"]))


def test_bad_requests_are_one_line_errors():
  with pytest.raises(ValueError, match="no engines"):
    report(ROWS, [])
  with pytest.raises(ValueError, match="fmt 'cvs': did you mean 'csv'"):
    report(ROWS, ["ws"], fmt="cvs")
  with pytest.raises(ValueError, match="array of values"):
    report(ROWS, [Systolic("ws", np.array([8, 16]), 8)])
  vast = [{"name": "x", "M": 2**22, "N": 2**22, "K": 2**22}]
  with pytest.raises(ValueError, match="engine ws:1x1: .* does not fit int64"):
    report(vast, ["ws:4096x4096", "ws:1x1"])


def test_the_functions_are_not_hidden_by_their_modules():
  for name in ("report", "cost", "parse"):
    assert callable(getattr(figs_jax.engine, name))


def test_axes_give_a_report_per_workload_and_pattern():
  rows = [
    {"name": n, "M": 8, "N": 8, "K": 32, "count": 3} for n in ("qk", "ff")
  ]
  table = Layers.of([rows[0], rows[1] | {"pattern": "1:2"}])
  both = {"a": table, "b": table}
  made = report(both, ["ws"], axes="pattern=dense,1:4;rows=8,16", itemsize=4)
  assert [(t.workload, t.pattern, t.engine) for t in made.totals] == [
    (label, pattern, f"ws:{side}x16")
    for label in "ab"
    for pattern in ("dense", "1:4")
    for side in (8, 16)
  ]
  assert [row.pattern for row in made.rows[4:8]] == ["dense", "1:4"] * 2
  alone = report(table.with_pattern("1:4"), ["ws:16x16"], itemsize=4)
  assert made.rows[6:8] == alone.rows
  with pytest.raises(ValueError, match="sweep axis 'pattern': .*'4'"):
    report(table, ["ws"], axes={"pattern": ("4",)})
  many = {"pattern": ("1:2",) * 1001, "rows": range(1, 1001)}
  with pytest.raises(ValueError, match="1,000 designs are more than the 999"):
    report(table, ["ws"], axes=many)


def test_columns_are_text_in_every_format():
  columns = {"design": np.array(["ws", "figs"]), "alpha": np.array([-1, 7])}
  show = functools.partial(columns_text, columns, "Some.")
  assert show("csv") == "design,alpha\nws,\nfigs,7"
  assert show("table").splitlines()[2:] == [
    "design  alpha", "ws          -", "figs        7"
  ]  # fmt: skip
  assert show("md").splitlines()[-2:] == ["| ws | - |", "| figs | 7 |"]
  assert json.loads(show("json")) == {
    "caption": "Some.",
    "points": [{"design": "ws", "alpha": None}, {"design": "figs", "alpha": 7}],
  }
  none = columns_text({"a": np.zeros(0)}, "None.", "table")
  assert none == "None.\n\na"


@pytest.mark.parametrize(
  ("spec", "parts"),
  [
    ("tensorcore:a100", ("a factor of 1.2", "ideal=true", ":fallback=true")),
    ("tensorcore:a100:fallback=true", ("a factor of 1.2", "ideal=true")),
    ("tensorcore:a100:ideal=true", ()),
  ],
)
def test_the_caption_tells_what_kernels_reach_of_the_silicon(spec, parts):
  row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  caption = report([row], [spec]).caption
  for words in parts:
    assert words in caption
  assert ("silicon" in caption) == bool(parts)
  advises = "runs a layer dense" in caption
  assert advises == (bool(parts) and "fallback" not in spec)
  assert "silicon" not in report([row | {"pattern": "dense"}], [spec]).caption


def test_the_silicons_speed_up_stands_beside_the_expected_one():
  rows = [{"name": "ff", "M": 12288, "N": 768, "K": 3072, "pattern": "2:4"}]
  specs = ["ws:32x32:bw_in=9", "tensorcore:a100", "tensorcore:a100:ideal=true"]
  axes = "pattern=2:4,dense"
  made = report(rows, specs, axes=axes)
  silicon = report(rows, specs[2:], axes=axes).totals
  pairs = [(total.ideal_speedup, total.engine) for total in made.totals]
  assert pairs == [
    pair
    for total in silicon
    for pair in ((None, specs[0]), (total.speedup, specs[1]), (None, specs[2]))
  ]
  assert [total.speedup for total in silicon] == [2, 1]
  assert [row.ideal_speedup for row in made.rows] == [x for x, _ in pairs]
  # Over a baseline, the silicon's own; a column where there is one.
  over = report(rows, specs[1:2], baseline="tensorcore:h100")
  dense = report(rows, specs[2:], baseline="tensorcore:h100:ideal=true")
  assert over.totals[0].ideal_speedup == dense.totals[0].speedup
  for fmt in ("table", "csv", "json", "md"):
    for engines in (specs[:1], specs[:2]):
      text = str(report(rows, engines, fmt))
      assert (fmt == "json" or len(engines) > 1) == ("ideal_speedup" in text)


@pytest.mark.parametrize(
  "spec, words",
  [
    ("tpu:v5e", "tpu:v5e runs patterns dense."),
    ("gpu:h200", "gpu:h200 runs patterns dense; tensorcore:h200 runs 2:4."),
    ("gpu:h20", "gpu:h20 runs patterns dense."),
    ("nm-spmm:a100", "nm-spmm:a100 is a prediction"),
  ],
)
def test_the_caption_tells_where_patterns_run_dense(spec, words):
  row = {"name": "ff", "M": 64, "N": 64, "K": 64, "pattern": "2:4"}
  assert words in report([row], [spec]).caption
  dense = report([row | {"pattern": "dense"}], [spec]).caption
  assert words not in dense


def attention(tokens=64, heads=4):
  """Both products of heads of 32 and a sparse layer, with their passes."""
  many = {"M": tokens, "count": heads}
  rows = [
    {"name": "b/attn/qk", "N": tokens, "K": 32, **many},
    {"name": "b/attn/av", "N": 32, "K": tokens, **many},
    {"name": "b/fc", "M": tokens, "N": 512, "K": 128, "pattern": "2:4"},
  ]
  logits, wide = heads * tokens**2, tokens * 512
  passes = [
    ("b/norm", "norm", tokens * 128 + 256, tokens * 128),
    ("b/attn/softmax", "softmax", logits, logits),
    ("b/gelu", "activation", wide, wide),
  ]
  names = ("name", "kind", "reads", "writes")
  beside = [dict(zip(names, one)) for one in passes]
  return Layers.of(rows, Forward.of(beside, seq=tokens))


SPECS = ["ws:16x16", "os:16x16:overlap=full:dram_bw=4", "gpu:h100"]


def test_a_whole_model_has_both_figures():
  table = attention()
  made = report(table, SPECS)
  for spec, total in zip(SPECS, made.totals):
    passes = table.forward.non_gemms
    cycles = non_gemm_cycles(passes, parse(spec)).tolist()
    assert total.non_gemm == dict(
      zip(("norm", "softmax", "activation"), cycles)
    )
    assert total.whole_cycles == total.cycles + sum(cycles)
    assert total.whole_speedup == pytest.approx(
      (total.baseline_cycles + sum(cycles)) / total.whole_cycles
    )
    assert 1 < total.whole_speedup < total.speedup or spec == "gpu:h100"
    # The products are what they are without the rest.
    alone = report(dataclasses.replace(table, forward=None), [spec]).totals[0]
    for name in ("cycles", "speedup", "parts", "dram_bytes", "memory_bound"):
      assert getattr(alone, name) == getattr(total, name)
    assert alone.whole_cycles == alone.cycles and not alone.non_gemm
    assert alone.whole_speedup == alone.speedup
  text = str(made)
  shares = text.split("\n\n")[2]
  assert "whole_speedup" in text and "softmax" in shares
  assert "Where no memory is given (ws:16x16), that is the input ports" in (
    made.caption
  )
  for line in shares.splitlines()[1:]:
    assert sum(map(float, line.split()[2:])) == pytest.approx(1, abs=0.004)
  assert "whole" not in str(report(ROWS, SPECS))
  # A baseline of another kind has its own bandwidth.
  over = report(table, SPECS[:1], baseline=SPECS[1]).totals[0]
  base = made.totals[1]
  assert over.whole_speedup * over.whole_cycles == pytest.approx(
    base.whole_cycles
  )


def test_fused_attention_has_no_softmax_of_its_own():
  table = attention(1024)
  fusions = report(table, SPECS, axes="fuse=none,flat;buffer=64,1048576")
  plain = report(table, SPECS)
  flat = report(table, SPECS, fuse=Fusion("flat", buffer=2**20))
  # No buffer without fusing, so that 3 of 4 points are left.
  assert [t.fuse for t in fusions.totals[::3]] == [
    "none", "flat:buffer=64", "flat:buffer=1048576"
  ]  # fmt: skip
  assert fusions.totals[:3] == plain.totals
  assert fusions.totals[6:] == flat.totals
  # Nothing fits in 64 bytes, as the report says.
  for got, want in zip(fusions.totals[3:6], plain.totals):
    assert got._replace(fuse="none") == want and got.fused == 0
  for got, want in zip(flat.totals[1:], plain.totals[1:]):
    assert got.fused == 1 and got.non_gemm["softmax"] == 0
    assert got.non_gemm["norm"] == want.non_gemm["norm"]
    # Over the unfused model, dense: fusing is part of the gain.
    assert got.baseline_cycles == want.baseline_cycles
    assert got.whole_speedup > want.whole_speedup
    assert got.dram_bytes < want.dram_bytes
  words = "over the same engine running the dense model, attention unfused"
  assert words in flat.caption and "fused is the share" in flat.caption
  assert "unfused" not in plain.caption
  assert "fused" in str(flat) and "fused" not in str(plain)
  rows = report(table, SPECS, "csv", fuse="flat")
  assert len(rows.rows) == len(plain.rows)
  with pytest.raises(ValueError, match="'buffer': expected fuse=flat with it"):
    report(table, SPECS, axes="buffer=64")
  with pytest.raises(ValueError, match="sweep axis: fuse 'flt': did you mean"):
    report(table, SPECS, axes="fuse=flt")
  with pytest.raises(
    ValueError, match="sweep axis: sram_bw: expected integers"
  ):
    report(table, SPECS, axes="fuse=flat; sram_bw=0")
  with pytest.raises(ValueError, match="expected products of attention"):
    report(ROWS[3:], SPECS, fuse="flat")


def test_what_waits_for_memory_is_memory_bound():
  fast = [{"name": "a", "M": 4096, "N": 4096, "K": 4096, "count": 2}]
  slow = [{"name": "b", "M": 8, "N": 4096, "K": 4096, "count": 3}]
  total = report(fast + slow, ["gpu:h100", "ws:sparse=false"]).totals
  a, b = (cost(rows, "gpu:h100").cycles[0] for rows in (fast, slow))
  assert total[0].memory_bound == pytest.approx(3 * b / (2 * a + 3 * b))
  assert total[1].memory_bound == 0
  assert "memory_bound" in str(report(slow, ["gpu:h100"]))
  assert "memory_bound" not in str(report(fast, ["gpu:h100", "ws"]))


def test_decoding_shows_what_the_cache_takes():
  from figs_jax import models

  shape = models.shape_of("llama", "8b").with_rules("ff: 2:4")
  lengths = {"phase": "decode", "context": 4096}
  rows = models.gemms_of(shape, 8, **lengths)
  beside = models.non_gemms_of(shape, 8, **lengths)
  table = Layers.of(rows, Forward.of(beside, 4096, "decode"))
  spec = "tensorcore:h100:ideal=true"
  dense = report(table.dense(), [spec], itemsize=2).totals[0]
  half = report(table, [spec], itemsize=2).totals[0]
  assert (
    dense.cache_bytes == half.cache_bytes == 8 * 4096 * 32 * 2 * 8 * 128 * 2
  )
  # All waits for memory, and the gain is what is not read: of each pair of
  # 2-byte weights one, with 4 bits of indices for two of four.
  assert dense.memory_bound == half.memory_bound == 1
  ff = 32 * 3 * 4096 * 14336
  assert dense.dram_bytes - half.dram_bytes == ff * 2 - ff - ff // 8
  assert half.speedup == pytest.approx(
    dense.dram_bytes / half.dram_bytes, rel=1e-3
  )
  assert "cache_bytes" in str(report(table, [spec]))
  assert "cache_bytes" not in str(report(attention(), [spec]))
