"""TFRecord files of others: checksums, random access, descriptions, damage."""

import io
import json
import pickle

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from figs_jax import data
from figs_jax.data import (
  crc32c,
  opened,
  record_files,
  sources,
  text,
  text_batches,
  tfrecord,
)
from tests.data import tfrecords

CATS = {"label": {"key": "class", "names": ["cat", "dog"]}, "image": "png"}


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=2000), st.integers(0, 5))
def test_crc32c_is_that_of_its_definition(raw, more):
  raw = raw + bytes(512 * more)
  wanted = tfrecords.crc32c(raw)
  assert crc32c.crc32c(raw) == wanted
  rows = np.stack([np.frombuffer(raw, np.uint8)] * 2)
  assert crc32c.crc32c_of_rows(rows).tolist() == [wanted] * 2
  assert crc32c.masked(wanted).to_bytes(4, "little") == tfrecords.masked(raw)


@pytest.mark.parametrize(
  ("raw", "wanted"),  # RFC 3720, appendix B.4
  [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
  ],
)
def test_crc32c_is_that_of_the_standard(raw, wanted):
  assert crc32c.crc32c(raw) == wanted


def test_records_are_those_of_grain(tmp_path):
  records = [bytes([i]) * (37 * i) for i in range(20)]
  path = tfrecords.write(tmp_path / "a.tfrecord", records)
  assert list(grain.experimental.TFRecordIterDataset(str(path))) == records
  index = tfrecord.scan(path)
  places, raw = zip(index.starts, index.lengths), path.read_bytes()
  parts = [
    raw[start : start + size + tfrecord.FOOTER] for start, size in places
  ]
  assert [tfrecord.checked("", part) for part in parts] == records
  for name in ("a.tfrecord", "b.tfrecord.gz"):
    reader = tfrecord.Reader(tfrecords.write(tmp_path / name, records))
    assert reader.skip(3) == 3
    rest = [tfrecord.checked("", raw) for raw in reader]
    assert rest == records[3:]
    assert reader.skip(1) == 0
    reader.close()
  assert not tfrecord.scan(tfrecords.write(tmp_path / "none", [])).starts.size


def png(value, side=4):
  file = io.BytesIO()
  Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(file, "PNG")
  return file.getvalue()


def cats(root, count=24, shards=3, **more):
  """Images of 4 x 4 pixels, of which number i has the value i."""
  described = {**CATS, "image": {"key": "png", "shape": [4, 4, 3]}, **more}
  root.mkdir(parents=True, exist_ok=True)
  (root / "features.json").write_text(json.dumps(described))
  rows = [
    tfrecords.example(png=png(i), **{"class": "cat" if i % 2 else "dog"})
    for i in range(count)
  ]
  size = -(-count // shards)
  for i in range(shards):
    part = rows[i * size : (i + 1) * size]
    tfrecords.write(root / f"train-{i:05}-of-{shards:05}", part)
  tfrecords.write(root / "test.tfrecord", rows[:5])
  return f"tfrecord:{root}"


def test_images_are_read_and_counted_exactly(tmp_path, monkeypatch):
  name = cats(tmp_path / "cats")
  options = {"data_dir": str(tmp_path / "data")}
  described = data.describe(name, **options)
  assert described.splits == {"test": 5, "train": 24}
  assert (described.num_classes, described.image_shape) == (2, (4, 4, 3))
  source = data.load(name, "train[3:20]", **options)
  assert len(source) == 17
  for i in (0, 9, 16):
    assert (source[i]["image"] == i + 3).all()
    assert source[i]["label"] == (i + 3 + 1) % 2
  again = pickle.loads(pickle.dumps(source))
  assert (again[16]["image"] == 19).all()
  # The index is built once; other files have another.
  monkeypatch.setattr(tfrecord, "scan", None)
  assert data.describe(name, **options).splits["train"] == 24
  monkeypatch.undo()
  cats(tmp_path / "cats", count=27)
  assert data.describe(name, **options).splits["train"] == 27
  batches = data.train_batches(name, "train", 27, seed=0, **options)
  image = next(batches)["image"]
  values = np.sort(((image[:, 0, 0, 0] + 1) * 127.5).round())
  np.testing.assert_array_equal(values, np.arange(27))
  assert "tfrecord/cats/" in batches.data_set


def test_labels_sizes_and_splits_of_others(tmp_path):
  root = tmp_path / "net"
  described = {
    "image": "image/encoded",
    "label": {"key": "image/class/label", "classes": 10, "first": 1},
  }
  root.mkdir()
  (root / "features.json").write_text(json.dumps(described))
  for split in ("train", "val"):
    rows = [
      tfrecords.example(image__encoded=png(i, 3 + i), image__class__label=i + 1)
      for i in range(10)
    ]
    tfrecords.write(root / split / "part.tfrecord", rows)
  options = {"data_dir": str(tmp_path)}
  assert data.describe(f"tfrecord:{root}", **options).image_shape[0] is None
  source = data.load(f"tfrecord:{root}", "validation", **options)
  assert source[9]["label"] == 9 and source[9]["image"].shape == (12, 12, 3)


def test_sets_of_tfds_keep_their_features(tmp_path, digits_dir):
  """The records of array_record are those of tfrecord."""
  builder = sources.find("digits", data_dir=digits_dir)
  raw = builder.as_data_source("test").data_source
  root = tmp_path / "digits"
  records = raw.__getitems__(range(3))
  tfrecords.write(root / "digits-test.tfrecord-00000-of-00001", records)
  features = (builder.data_path / "features.json").read_text()
  (root / "features.json").write_text(features)
  name, wanted = f"tfrecord:{root}", builder.as_data_source("test")
  source = data.load(name, "test", data_dir=str(tmp_path))
  for got, want in zip(source, wanted):
    np.testing.assert_array_equal(got["image"], want["image"])
    assert got["label"] == want["label"]
  (root / "features.json").write_text(
    '{"pythonClassName": "evil.module.Class"}'
  )
  with pytest.raises(data.DataError, match="evil.module.Class"):
    data.load(name, "test", data_dir=str(tmp_path))


def test_texts_and_pairs(tmp_path):
  for described, kind in (
    ({"text": "a"}, text.Denoising),
    ({"text": "a", "target": "b"}, text.TextToText),
  ):
    root = tmp_path / kind.__name__
    root.mkdir()
    (root / "features.json").write_text(json.dumps(described))
    rows = [tfrecords.example(a=f"good day {i}", b="yes") for i in range(8)]
    tfrecords.write(root / "x-train.tfrecord.gz", rows)
    texts = text.find_texts(
      f"tfrecord:{root}",
      input_length=8,
      target_length=8 if kind is text.TextToText else None,
      data_dir=str(tmp_path),
    )
    assert isinstance(texts, kind)
    batch = next(text_batches.train_batches(texts, "train", 2, seed=0))
    assert batch["inputs"].shape == (2, 8)


def broken(path, place, value=b"\xff"):
  raw = bytearray(path.read_bytes())
  raw[place : place + len(value)] = value
  path.write_bytes(raw)


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    (lambda p: broken(p, 40), "record 0: expected a data that fits its CRC"),
    (lambda p: broken(p, 3), "record 0: expected a length that fits its CRC"),
    (lambda p: p.write_bytes(p.read_bytes()[:-7]), "record 7: .* 7 more bytes"),
    (lambda p: p.write_bytes(p.read_bytes()[:300]), "record [0-7]: .*more"),
    (lambda p: p.write_text("hello, this is text"), "record 0: .*a length"),
    (
      lambda p: p.unlink(),
      "expected 3 files of train in train, got 2, without",
    ),
    (
      lambda p: tfrecords.write(p, [b"\xff" * 9]),
      "record 0: expected a tf.train.Example",
    ),
    (
      lambda p: tfrecords.write(p, [tfrecords.example(png=b"x")]),
      "record 0: class: expected one value of bytes_list, got none",
    ),
    (
      lambda p: tfrecords.write(
        p, [tfrecords.example(png=b"x", **{"class": "cat"})]
      ),
      "record 0: png: expected an encoded image",
    ),
    (
      lambda p: tfrecords.write(
        p, [tfrecords.example(png=png(0), **{"class": "cow"})]
      ),
      "record 0: class: expected one of cat, dog, got 'cow'",
    ),
  ],
)
def test_bad_files_are_one_clear_line(tmp_path, harm, message):
  name = cats(tmp_path / "cats", count=24)
  harm(tmp_path / "cats/train-00000-of-00003")
  with pytest.raises(data.DataError, match=message) as error:
    data.load(name, "train", data_dir=str(tmp_path))
  assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
  ("described", "message"),
  [
    (None, r"expected features.json .* class \(bytes_list\), png"),
    ("[]", "expected an object with text"),
    ("{", "invalid JSON"),
    ('{"image": "png"}', "expected an object with text"),
    ('{"image": "png", "label": {"key": "class"}}', "expected classes"),
    ('{"text": {"key": "a", "shape": 3}}', "text: expected key, got shape"),
    ('{"text": "a", "other": "b"}', "expected features of tfds, or of image"),
  ],
)
def test_bad_descriptions_are_one_clear_line(tmp_path, described, message):
  name = cats(tmp_path / "cats")
  (tmp_path / "cats/features.json").unlink()
  if described is not None:
    (tmp_path / "cats/features.json").write_text(described)
  with pytest.raises(data.DataError, match=message) as error:
    data.describe(name, data_dir=str(tmp_path))
  assert "\n" not in str(error.value)


def test_compressed_files_have_a_limit(tmp_path, monkeypatch):
  root = tmp_path / "a"
  tfrecords.write(root / "a.tfrecord.gz", [tfrecords.example(a="x" * 99)] * 9)
  (root / "features.json").write_text('{"text": "a"}')
  monkeypatch.setattr(record_files, "_MOST_BYTES", 500)
  records = record_files.RecordFiles(root, str(tmp_path), opened.DEFAULTS)
  with pytest.raises(data.DataError, match="at most 500 bytes"):
    sources.source_of(records, "train")
