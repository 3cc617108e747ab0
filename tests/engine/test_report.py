"""Reports: Amdahl over the whole model, and three formats of one table."""

import csv
import io

import numpy as np
import pytest

import figs_jax
from figs_jax.engine import Systolic, cost, report


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
    assert total.dense_cycles == int((dense.cycles * dense.count).sum())
    share = (dense.cycles * dense.count) / total.dense_cycles
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
  names = "name,engine,M,N,K,pattern,cycles,utilisation,speedup,count"
  assert ",".join(rows[0]) == names
  for text, row in zip(rows, made.rows):
    assert int(text["cycles"]) == row.cycles
    assert float(text["utilisation"]) == pytest.approx(
      row.utilisation, rel=1e-5
    )
  assert rows[3]["pattern"] == "1:8" and rows[0]["pattern"] == "dense"
  assert int(rows[3]["cycles"]) == 3 * 192 * (2 * 32 + 16 + 196 - 2)


def test_table_and_markdown_say_that_they_are_modelled():
  table, md = (str(report(ROWS, ["ws"], fmt=fmt)) for fmt in ("table", "md"))
  for text in (table, md):
    assert text.startswith("Modelled cycles, not measured.")
    assert "fc1" in text and "1:8" in text
  blocks = md.split("\n\n")[1:]
  for block in blocks:
    assert len({line.count("|") for line in block.splitlines()}) == 1
  # Columns of the plain table line up.
  head, *body = table.split("\n\n")[2].splitlines()
  at = head.index("cycles") + len("cycles")
  assert all(line[at - 1].isdigit() and line[at] == " " for line in body)


def test_bad_requests_are_one_line_errors():
  with pytest.raises(ValueError, match="no engines"):
    report(ROWS, [])
  with pytest.raises(ValueError, match="fmt 'cvs': did you mean 'csv'"):
    report(ROWS, ["ws"], fmt="cvs")
  with pytest.raises(ValueError, match="array of values"):
    report(ROWS, [Systolic("ws", np.array([8, 16]), 8)])


def test_the_functions_are_not_hidden_by_their_modules():
  for name in ("report", "cost", "parse"):
    assert callable(getattr(figs_jax.engine, name))
