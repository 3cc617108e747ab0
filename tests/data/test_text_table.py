"""Tables of text: four formats read alike, and refused by file and line."""

import csv
import json
import sys

import numpy as np
import pytest

from figs_jax.data import DataError, find_texts, sources, text_to_text
from figs_jax.data.opened import Options

from .datasets_oracle import FIXTURES, TEXTS

ROWS = [
  (f"{word} film, “{i}”\nand\t\"they\"", label)
  for i in range(6)
  for word, label in (("bad", "neg"), ("good", "pos"))
]  # fmt: skip


def write(path, rows=ROWS, columns=("text", "label")):
  path.parent.mkdir(exist_ok=True)
  if path.suffix == ".jsonl":
    lines = [json.dumps(dict(zip(columns, row))) for row in rows]
    path.write_text("\n".join([*lines, ""]))
  elif path.suffix == ".parquet":
    import pyarrow
    from pyarrow import parquet

    values = [list(column) for column in zip(*rows)]
    parquet.write_table(pyarrow.table(dict(zip(columns, values))), path)
  else:
    with path.open("w", newline="") as file:
      tab = "\t" if path.suffix == ".tsv" else ","
      csv.writer(file, delimiter=tab).writerows([columns, *rows])
  return path


def find(path, **options):
  return sources.find(
    f"text:{path}",
    data_dir=str(path.parent / "data"),
    options=Options(**options),
  )


def read(builder, split):
  source = sources.source_of(builder, split)
  pair = text_to_text.reader(builder)
  return [pair(source[i]) for i in range(len(source))]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_formats_are_read_alike(tmp_path, suffix):
  builder = find(write(tmp_path / f"a{suffix}"))
  assert builder.info.features["label"].names == ["neg", "pos"]
  train = [row for i, row in enumerate(ROWS) if i // 2 != 4]
  assert read(builder, "train") == train
  assert read(builder, "test") == ROWS[8:10]


def test_a_byte_order_mark_blank_lines_and_spaces_are_left_out(tmp_path):
  rows = "\ufeff Text ,LABEL\r\n\r\n" + "x, b  c \r\ny,d\r\n" * 5
  (tmp_path / "a.csv").write_bytes(rows.encode())
  builder = find(tmp_path / "a.csv")
  assert read(builder, "test") == [("x", "b c"), ("y", "d")]
  (tmp_path / "a.jsonl").write_bytes(
    b"\xef\xbb\xbf"
    + '{"input": "x\u2028y", "class": true}\r\n\n'.encode() * 5
    + b'{"input": "z", "class": false}'
  )  # fmt: skip
  assert read(find(tmp_path / "a.jsonl"), "test") == [("x\u2028y", "true")]


def test_long_fields_are_read_and_the_limit_is_kept(tmp_path):
  limit = csv.field_size_limit()
  long = "x" * (limit + 1)
  path = write(tmp_path / "a.csv", [(long, "a"), ("y", "b")] * 5)
  assert read(find(path), "test")[0] == (long, "a")
  assert csv.field_size_limit() == limit


def test_a_refused_table_keeps_the_limit(tmp_path):
  limit = csv.field_size_limit()
  path = tmp_path / "a.csv"
  path.write_text("text,label\na,b\nc\n")
  with pytest.raises(sources.DataError) as caught:
    find(path)
  assert csv.field_size_limit() == limit  # while the traceback holds the rows
  del caught


def test_integers_are_labels_in_their_order(tmp_path):
  rows = [(f"t{i}", [10, 2, 1][i % 3]) for i in range(15)]
  for suffix in (".csv", ".jsonl", ".parquet"):
    builder = find(write(tmp_path / f"a{suffix}", rows))
    assert builder.info.features["label"].names == ["1", "2", "10"]
    assert read(builder, "test") == [("t12", "10"), ("t13", "2"), ("t14", "1")]


def test_targets_are_texts_of_their_own(tmp_path):
  rows = [(f"{i} and {i}", str(2 * i)) for i in range(10)]
  builder = find(write(tmp_path / "a.tsv", rows, ("input", "output")))
  assert read(builder, "test") == [rows[4], rows[9]]
  assert not text_to_text.has_labels(builder)


def test_options_name_the_columns(tmp_path):
  rows = [("x", "a", "X"), ("y", "b", "Y")] * 5
  path = write(tmp_path / "a.csv", rows, ("review", "label", "target"))
  with pytest.raises(DataError, match="column text, .*got review.*text_column"):
    find(path)
  with pytest.raises(DataError, match="labels or one of targets, got both"):
    find(path, text_column="review")
  by_label = find(path, text_column="review", label_column="label")
  by_target = find(path, text_column="review", target_column="target")
  both = {"text_column": "review", "label_column": "label"}
  assert read(by_label, "test") == [("x", "a"), ("y", "b")]
  assert read(by_target, "test") == [("x", "X"), ("y", "Y")]
  with pytest.raises(DataError, match="labels or one of targets, got both"):
    find(path, **both, target_column="target")
  with pytest.raises(DataError, match="a column stars, got review"):
    find(path, text_column="review", label_column="stars")


def test_a_directory_may_have_a_test_part(tmp_path):
  write(tmp_path / "d/train.csv")
  write(tmp_path / "d/test.csv", ROWS[1:2])
  (tmp_path / "d/README.md").write_text("about")
  builder = find(tmp_path / "d")
  assert read(builder, "train") == ROWS
  assert read(builder, "test") == ROWS[1:2]
  write(tmp_path / "d/test.csv", [("x", "odd")])
  line = r"test.csv: line 2: label: expected a label of train \(neg, pos\), got"
  with pytest.raises(DataError, match=line):
    find(tmp_path / "d")
  write(tmp_path / "d/test.csv", [("x", "odd")], ("text", "stars"))
  with pytest.raises(DataError, match="test.csv: expected a column text, lab"):
    find(tmp_path / "d")
  write(tmp_path / "d/test.jsonl")
  with pytest.raises(DataError, match="got test.csv and test.jsonl"):
    find(tmp_path / "d")


def test_what_datasets_saved_is_read(tmp_path):
  builder = sources.find(
    f"text:{FIXTURES / 'saved_texts'}", data_dir=str(tmp_path)
  )
  assert builder.info.features["label"].names == ["bad", "good"]
  assert read(builder, "train") == TEXTS
  assert read(builder, "test") == TEXTS[1:2]


def test_a_changed_file_is_another_copy(tmp_path):
  path = tmp_path / "a.csv"
  first = find(write(path))
  assert find(path).data_path == first.data_path
  second = find(write(path, ROWS[2:]))
  assert second.data_path != first.data_path
  assert len(read(second, "train")) == 8


TEXT = json.dumps({"text": "x", "label": "a"})


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.txt", "x", "in .csv, .tsv, .jsonl, .parquet, got .txt"),
    ("a.csv", "", "a column text, sentence, input, inputs, got none; name"),
    ("a.csv", "text,label\n", "a.csv: expected rows in train, got none"),
    ("a.csv", "text,stars\nx,1\n", "label, .* got text, stars; name yours"),
    ("a.csv", "text,label,text\n", "columns of distinct names"),
    ("a.csv", "text,label\nx,a\n\ny\n", "line 4: expected 2 fields, .* got 1"),
    ("a.csv", 'text,label\n"x\ny",a\nx,y,b\n', "line 4: .*first row, got 3"),
    ("a.csv", 'text,label\n"x" y,a\n', "line 2: expected fields in double q"),
    ("a.csv", 'text,label\nx,a\n"y,b\n', "line 3: .*unexpected end of data"),
    ("a.csv", "text,label\n ,a\n", "line 2: text: expected text, got an empty"),
    ("a.csv", "text,label\nx,a\ny, \n", "line 3: label: expected a label, a w"),
    ("a.csv", "text,label\nx,0\ny,-1\n", "line 3: label: .* or more, got '"),
    ("a.csv", "text,label\nx,a\ny,a\n", "two or more labels .* got only 'a'"),
    ("a.csv", "text,label\nx,a\ny,b\n", "a class with at least 5 .* got 1"),
    ("a.csv", b"text,label\nx,a\n\xff,b\n", "line 3: expected UTF-8.* ff"),
    ("a.csv", "text,label\nx,a\n".encode("utf-16"), "line 1: expected UTF-8"),
    ("a.jsonl", "\n", "a.jsonl: expected rows, got none"),
    ("a.jsonl", TEXT + "\n{\n", "line 2: .* invalid JSON .Expecting property"),
    ("a.jsonl", "[" * 10**5, "line 1: expected a JSON object, got invalid"),
    ("a.jsonl", "[1]\n", "line 1: expected a JSON object, got list"),
    ("a.jsonl", TEXT + '\n{"text": "x"}\n', "line 2: expected a column lab"),
    ("a.jsonl", '{"text": 3, "label": 0}', "line 1: text: expected .* got 3"),
    ("a.jsonl", '{"text": "x", "label": 0.5}', "or an integer .* got 0.5"),
    ("a.jsonl", '{"text": "x", "label": null}', "or an integer .* got None"),
    ("a.jsonl", '{"text": "\\ud800", "label": 0}', "got half a character"),
    ("a.jsonl", '{"text": "x", "target": 5}', "target: expected text, got 5"),
    ("a.parquet", "text", "expected a Parquet file, got one that pyarrow"),
  ],
)  # fmt: skip
def test_wrong_files_are_one_line(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(DataError, match=message) as raised:
    find(path)
  assert "\n" not in str(raised.value)
  assert name in str(raised.value)
  assert not (tmp_path / "data").exists()


def test_rows_of_parquet_and_of_datasets_are_named(tmp_path):
  path = write(tmp_path / "a.parquet", [("x", "a"), (None, "b")])
  with pytest.raises(DataError, match="a.parquet: row 1: text: .* got None"):
    find(path)
  with pytest.raises(DataError, match="expected a file train and others"):
    find(tmp_path)


def test_without_pyarrow_the_line_says_what_to_install(tmp_path, monkeypatch):
  path = write(tmp_path / "a.parquet")
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(DataError, match="needs pyarrow: pip install pyarrow"):
    find(path)


def test_the_longest_label_is_the_target_length(tmp_path):
  path = write(tmp_path / "a.csv", [("x", "ab"), ("y", "abcd")] * 5)
  options = {"data_dir": str(tmp_path / "data"), "input_length": 8}
  texts = find_texts(f"text:{path}", **options)
  assert texts.target_length == 5
  table = texts.answers()[texts.names[0]]
  np.testing.assert_array_equal(table[0], [100, 101, 1, 0, 0])
  cut = find_texts(f"text:{path}", target_length=3, **options)
  with pytest.raises(ValueError, match="cannot distinguish .* set it to 5"):
    cut.answers()
  path = write(tmp_path / "b.csv", [("x", "y")] * 5, ("text", "target"))
  with pytest.raises(ValueError, match="needs a target_length"):
    find_texts(f"text:{path}", **options)
