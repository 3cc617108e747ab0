"""Layer tables from files: what is read, and what is refused in one line."""

import csv
import io
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine import Layers, report
from figs_jax.engine.layer_csv import read_layers
from figs_jax.engine.sweeps._sweep import sweep

CONV = (
  "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width,"
  " Channels, Num Filter, Strides,"
)


@pytest.fixture
def table(tmp_path):
  """content -> the layers of a file with it."""

  def read(content):
    path = tmp_path / "t.csv"
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
    return read_layers(path)

  return read


def rows(layers):
  """(name, M, N, K, pattern, count) per layer."""
  sizes = zip(layers.M, layers.N, layers.K)
  return [
    (name, *map(int, size), layers.pattern(i), int(layers.count[i]))
    for i, (name, size) in enumerate(zip(layers.names, sizes))
  ]


def test_our_columns_in_any_order(table):
  want = [("q", 1, 2, 3, "dense", 12), ("ff, wide", 4, 5, 6, "1:8", 1)]
  text = 'name,M,N,K,pattern,count\nq,1,2,3,dense,12\n"ff, wide",4,5,6,1:8,\n'
  assert rows(table(text)) == want
  mixed = 'count,K,pattern,N,name,M\n12,3,,2,q,1\n,6,1:8,5,"ff, wide",4\n'
  assert rows(table(mixed)) == want
  assert rows(table("name,M,N,K\nq,1,2,3\n")) == [("q", 1, 2, 3, "dense", 1)]


def test_what_spreadsheets_write(table):
  plain = "name,M,N,K,pattern\nq,1,2,3,1:2\n\nv,4,5,6,\n"
  want = rows(table(plain))
  assert len(want) == 2
  for text in (plain.replace("\n", "\r\n"), plain.replace("\n", "\r")):
    assert rows(table(b"\xef\xbb\xbf" + text.encode())) == want
  quoted = '"name","M","N","K","pattern"\n"q","1","2","3","1:2"\nv,4,5,6,""'
  assert rows(table(quoted)) == want
  assert rows(table("name,M,N,K\nälv→,1,2,3\n"))[0][0] == "älv→"


names = st.text(
  st.characters(codec="utf-8", exclude_categories=("C",)), max_size=9
)
sizes = st.integers(1, 2**53)


@settings(deadline=None, max_examples=50)
@given(
  st.lists(
    st.tuples(
      names.filter(lambda name: name.strip()),
      sizes,
      sizes,
      sizes,
      st.sampled_from(["dense", "1:8", "2:4", "3:128"]),
      st.integers(1, 2**31 - 1),
    ),
    min_size=1,
  ),
  st.permutations(range(6)),
)
def test_what_is_written_is_read(tmp_path_factory, layers, order):
  header = ("name", "M", "N", "K", "pattern", "count")
  path = tmp_path_factory.mktemp("tables") / "t.csv"
  out = io.StringIO()
  writer = csv.writer(out)
  for row in (header, *layers):
    writer.writerow([row[i] for i in order])
  path.write_text(out.getvalue(), "utf-8", newline="")
  assert rows(read_layers(path)) == [(x[0].strip(), *x[1:]) for x in layers]


def test_topologies_of_products(table):
  # As SCALE-Sim ships them: with and without commas at the end.
  text = "Layer,M,N,K\nQKT,1024,1024,64\nQKTV,1024,64,1024\n"
  want = [
    ("QKT", 1024, 1024, 64, "dense", 1),
    ("QKTV", 1024, 64, 1024, "dense", 1),
  ]
  assert rows(table(text)) == want
  assert rows(table(text.replace("\n", ",\n"))) == want
  sparse = "Layer Name, M, N, K, Sparsity,\nG, 3, 5, 16, 3:4,\nH, 1, 5, 16,"
  assert [row[4] for row in rows(table(sparse))] == ["3:4", "dense"]
  # Without a header of its own, a pattern or a count of products.
  bare = "Layer Name, M, N, K,\nG, 3, 5, 16, 3:4,\nH, 1, 5, 16, 12,\n"
  assert [row[4:] for row in rows(table(bare))] == [("3:4", 1), ("dense", 12)]
  bare = "Layer Name, M, N, K,\nG, 3, 5, 16, dense,\n"
  assert [row[4:] for row in rows(table(bare))] == [("dense", 1)]


@pytest.mark.parametrize("text", ["dense", "Dense", "1:1", "2:4", "4:4", "all"])
def test_a_pattern_is_read_alike_everywhere(table, text):
  size = {"M": 4, "N": 2, "K": 8}
  readers = [
    lambda: table(f"name,M,N,K,pattern\nff,4,2,8,{text}\n"),
    lambda: table(f"Layer,M,N,K,Sparsity,\nff,4,2,8,{text},\n"),
    lambda: Layers.of([{"name": "ff", **size, "pattern": text}]),
  ]
  layers = Layers.of([{"name": "ff", **size, "pattern": "1:2"}])
  sweeps = [
    lambda: sweep("ws", {"pattern": [text]}, layers),
    lambda: report(layers, ["ws"], axes=f"pattern={text}"),
  ]
  if text in ("Dense", "all"):
    for read in (*readers, *sweeps):
      with pytest.raises(ValueError, match="n:m"):
        read()
    return
  (one,) = {read().pattern(0) for read in readers}
  grid, made = (read() for read in sweeps)
  assert grid.smallest("cycles")["pattern"].tolist() == [one]
  assert made.totals[0].pattern == one


def patches(length, taps, stride):
  """Places of a window until one reaches the end, by walking."""
  places, start = 1, 0
  while start + taps < length:
    places, start = places + 1, start + stride
  return places


def test_convolutions_are_products_of_patches(table):
  text = f"{CONV}\n\nConv1 ,224 ,224 ,11 ,11 ,3 ,96 ,4 ,\n"
  # AlexNet's first layer has 55 x 55 places.
  assert rows(table(text)) == [("Conv1", 55 * 55, 96, 11 * 11 * 3, "dense", 1)]
  sizes = [(9, 7, 3, 2, 5, 8, 2), (5, 8, 5, 3, 1, 1, 3), (6, 6, 1, 1, 7, 4, 4)]
  lines = (",".join(map(str, ("c", *size, "2:4", ""))) for size in sizes)
  table_rows = rows(table("\n".join((f"{CONV} Sparsity,", *lines))))
  for (ih, iw, fh, fw, c, filters, s), row in zip(sizes, table_rows):
    m = patches(ih, fh, s) * patches(iw, fw, s)
    assert row == ("c", m, filters, fh * fw * c, "2:4", 1)


def test_habits_of_topologies(table):
  text = f"{CONV}\nConv2_dw, 112, 112, 3, 3, 1, 1, 1,#dw\n\tfc,1,1,1,1,7,9,1\n"
  assert rows(table(text)) == [
    ("Conv2_dw", 110 * 110, 1, 9, "dense", 1),
    ("fc", 1, 9, 7, "dense", 1),
  ]
  # SCALE-Sim repeats a layer with DP in its name for each of the channels.
  deep = rows(table(f"{CONV}\nDP2, 14, 14, 3, 3, 64, 1, 1,\n"))
  assert deep == [("DP2", 144, 1, 9, "dense", 64)]
  two = CONV.replace("Strides,", "Stride height,Stride_Width")
  assert rows(table(f"{two}\nc,10,12,3,3,3,4,1,2"))[0][1] == 8 * 6


def test_places_decide_where_names_of_a_topology_do_not(table, caplog):
  # Headers of SCALE-Sim v3's topologies: deepbench, dlrm, ispass25_models.
  doubled = (
    "Layer, IFMAP Width, IFMAP Width, Filter Height, Filter Width, Channels,"
    " Num Filter, Strides,"
  )
  row = "DeepSpeech_1,700,161,20,5,1,32,2,"
  want = [("DeepSpeech_1", 341 * 79, 32, 100, "dense", 1)]
  headers = {
    doubled: "column 2: 'IFMAP Width' is read as 'IFMAP Height', by its place",
    CONV.replace("Channels", "channel"): "'channel' is read as 'Channels'",
    CONV.replace("Layer name", "L").lower(): "'l' is read as 'name'",
    CONV.replace("IFMAP H", "H").replace("Filter", "Kernel", 2): "'H",
  }
  assert rows(table(f"{CONV}\n{row}")) == want
  assert not caplog.records
  for header, note in headers.items():
    caplog.clear()
    assert rows(table(f"{header}\n{row}")) == want
    assert note in caplog.text and "t.csv, row 1, column" in caplog.text
  caplog.clear()
  products = "L,M,N,K,Sparsity,\nL0,256,768,762,1:4,\n"
  assert rows(table(products)) == [("L0", 256, 768, 762, "1:4", 1)]
  assert "column 1: 'L' is read as 'name', by its place" in caplog.text


def test_a_topology_ends_at_a_column_without_a_name(table, caplog):
  # As conv_nets/Resnet50.csv of SCALE-Sim v3.
  text = f"{CONV},,Eh,Ew,e2\n,,,,,\nConv1,224,224,7,7,3,64,2,,,110,110,12100\n"
  want = [("Conv1", 110 * 110, 64, 147, "dense", 1)]
  assert rows(table(text)) == want
  assert "column 9 has no name" in caplog.text
  assert "('Eh', 'Ew', 'e2') are left out" in caplog.text


@pytest.mark.parametrize(
  "header, words",
  [
    # A name in another's place: both may be meant.
    ("Layer,M,K,NN,", ["column 4: unknown column 'NN', did you mean 'N'"]),
    ("Layer,M,N,K,K,", ["column 5: column 'K' is given twice"]),
    ("Layer,X,N,K,M,", ["column 2: unknown column 'X'"]),
    (f"{CONV[:-1]}, IFMAP Height", ["'IFMAP Height' is given twice"]),
    ("name,M,N,KK", ["unknown column 'KK', did you mean 'K'? Known: K, M, N"]),
    ("name,M,N,K,,count", ["column 5: unknown column ''"]),
    # The names of a table of their kind, and no others.
    ("name,M,N,K,sparsty", ["known: K, M, N, count, name, pattern"]),
    ("Layer,M,N,K,sparsty,", ["'sparsty', did you mean 'Sparsity'? Known: Ba"]),
    (f"{CONV}sparsty,", ["'sparsty', did you mean 'Sparsity'? Known: Batch"]),
    ("Layer,ifmap_hight,IFMAP Width,x,y", ["did you mean 'IFMAP Height'"]),
    (f"{CONV}K,strids,", ["did you mean 'Strides'?", ", Layer Name, Num Filt"]),
  ],
)
def test_unknown_columns_are_refused_with_names_of_their_kind(
  table, header, words
):
  with pytest.raises(ValueError) as caught:
    table(f"{header}\na,3,3,3,3,3,3,3,3,\n")
  message = str(caught.value)
  for word in words:
    assert word in message
  if "IFMAP" in header:
    assert " K," not in message
  assert "\n" not in message
  assert len(message) - message.index("t.csv") < 300


def test_a_pattern_replaces_patterns_and_their_masks():
  mask = np.zeros((8, 2), bool)
  given = [
    {"name": "qk", "M": 4, "N": 2, "K": 8},
    {"name": "a", "M": 4, "N": 2, "K": 8, "pattern": "1:4", "mask": mask},
    {"name": "b", "M": 4, "N": 2, "K": 8, "pattern": "2:4", "mask": mask},
  ]
  layers = Layers.of(given)
  changed = layers.with_pattern("1:4")
  assert [changed.pattern(i) for i in range(3)] == ["dense", "1:4", "1:4"]
  assert changed.masks[1] is mask and changed.masks[2] is None
  assert [layers.pattern(i) for i in range(3)] == ["dense", "1:4", "2:4"]
  plain = layers.dense().with_pattern("1:8")
  assert [plain.pattern(i) for i in range(3)] == ["1:8"] * 3


GOOD = "name,M,N,K,pattern,count\nq,1,2,3,1:2,4\n"
JUNK = ",".join(f"junk{i}" for i in range(10**6))
CASES = {
  "empty": ("", "the file is empty", "name,M,N,K,pattern,count"),
  "blank": ("\n \n", "the file is empty"),
  "no rows": ("name,M,N,K\n", "no row below the header"),
  "no header": ("ff,64,64,64\n", "row 1, column 1", "'ff'", "name the columns"),
  "missing": ("name,M,N\nx,1,2\n", "row 1", "column 'K' is missing"),
  "twice": ("name,M,N,K,m\n", "row 1, column 5", "'m' is given twice"),
  "unknown": ("name,M,N,K,patern\n", "column 5", "did you mean 'pattern'"),
  "semicolons": ("name;M;N;K\n", "'name;M;N;K'", "separated by commas"),
  "negative": (f"{GOOD}x,-5,1,1,,\n", "row 3, column 'M'", "'-5'", "from 1 to"),
  "zero": (f"{GOOD}x,1,0,1,,\n", "row 3, column 'N'", "'0'"),
  "fraction": (f"{GOOD}x,1,1,1.5,,\n", "row 3, column 'K'", "'1.5'"),
  "blank size": (f"{GOOD}x,1,1,,,\n", "row 3, column 'K'", "got ''"),
  "huge": (f"{GOOD}x,1,1,{2**53 + 1},,\n", "'K'", "9007199254740993"),
  "digits": (f"{GOOD}x,{'9' * 9999},1,1,,\n", "'M'", "999...'"),
  "count": (f"{GOOD}x,1,1,1,,{2**31}\n", "column 'count'", "2147483648"),
  "no pattern": (f"{GOOD}x,1,1,1,8,\n", "row 3, column 'pattern'", "got '8'"),
  "bad pattern": (f"{GOOD}x,1,1,1,9:8,\n", "row 3, column 'pattern'", "'9:8'"),
  "wide m": (f"{GOOD}x,1,1,1,1:{2**31},\n", "'pattern'", "up to 2147483647"),
  "padded": (f"{GOOD}x,1,1,1,1:8{' ' * 99}9,\n", "'pattern'", "n:m with"),
  "no name": (f"{GOOD} ,1,1,1,,\n", "row 3, column 'name'", "name the layer"),
  "short": (f"{GOOD}x,1,1,1\n", "row 3, column 5 ('pattern')", "4 of 6"),
  "short topology": ("Layer,M,N,K,\nx,1,1,\n", "row 2, column 'K'", "got ''"),
  "long": (f"{GOOD}a,b,1,1,1,,\n", "row 3, column 'M'", "'b'"),
  "longer": ("name,M,N,K\nx,1,1,1,1:2\n", "row 2, column 5", "'1:2'", "beyond"),
  "two extras": ("Layer,M,N,K\nx,1,1,1,2,3\n", "row 2, column 5", "beyond"),
  "blank lines": ("\nname,M,N,K\n\n\nx,0,1,1\n", "row 5, column 'M'"),
  "lines in a name": ('name,M,N,K\n"a\nb",1,1,1\nx,0,1,1\n', "row 4"),
  "open quote": (f'name,M,N,K\n"{GOOD * 9999}', "row 2", "close every quote"),
  "bytes": (bytes(range(256)), "row 1, character 1", "byte 0x00", "UTF-8"),
  "latin-1": (b"name,M,N,K\nl\xe4,1,1,1", "row 2, character 2", "byte 0xe4"),
  "utf-16": (GOOD.encode("utf-16"), "row 1, character 1", "UTF-8"),
  "junk": (JUNK, "row 1, column 1", "'junk0'", "name,M,N,K,pattern,count"),
  "junk header": (f"name,M,N,K,{JUNK}", "row 1, column 5", "'junk0'"),
  "junk row": (f"name,M,N,K\nx,1,1,1,{JUNK}", "row 2, column 5", "'junk0'"),
  "commas": ("," * 10**6, "row 1", "longer than 65536 characters"),
  "one cell": ("x" * 10**7, "row 1, column 1", "xxx...'"),
  "wide filter": (f"{CONV}\nc,3,3,5,3,1,1,1,", "'Filter Height'", "got 5"),
  "no strides": (f"{CONV[:-9]}\nc,3,3,1,1,1,1,", "'Strides' is missing"),
  "mixed": (f"{CONV}M\nc,3,3,1,1,1,1,1,1", "'M' does not belong"),
  "vast": (f"{CONV}\nc,{10**9},1,{10**9},1,{10**9},1,1,", f"K = {10**18}"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_tables_are_one_short_line(table, case):
  content, *words = CASES[case]
  tracemalloc.start()
  try:
    with pytest.raises(ValueError) as caught:
      table(content)
    # What the file itself takes here, and little more.
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  message = str(caught.value)
  assert "t.csv" in message and "\n" not in message
  assert len(message) - message.index("t.csv") < 300
  for word in words:
    assert word in message
  assert peak < len(content) + 12e6


def test_what_is_no_file(tmp_path):
  for path, words in (
    (tmp_path, "is a directory"),
    (tmp_path / "no.csv", "no such file"),
    (f"{tmp_path}/{'x' * 999}.csv", "file name too long"),
  ):
    with pytest.raises(ValueError, match=f"{words}.*; give the path"):
      read_layers(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_an_endless_file_is_refused():
  with pytest.raises(
    ValueError, match="row 1, character 1: expected text, got byte 0x00"
  ):
    read_layers("/dev/zero")
