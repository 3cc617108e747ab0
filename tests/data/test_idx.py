"""Idx files are read exactly, prepared once, and refused by file and row."""

import gzip
import hashlib
import io
import struct
import zipfile

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from figs_jax.data import DataError, idx, load, sources


def idx_bytes(values):
  header = bytes([0, 0, 8, values.ndim])
  return (
    header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
  )


@pytest.fixture
def files(tmp_path):
  """Four small files, two of them gzipped, and what they hold."""
  rng = np.random.default_rng(0)
  held = {}
  for split, stem, count in (("train", "train", 12), ("test", "t10k", 5)):
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    held[split] = (images, labels)
    (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(
      gzip.compress(idx_bytes(images))
    )
    (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
  return tmp_path, held


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_a_prepared_set_has_the_pixels_of_the_files(files, name, tmp_path):
  directory, held = files
  data_dir = str(tmp_path / "data")
  info = sources.describe(name, data_dir=data_dir, source=str(directory))
  assert info.splits == {"train": 12, "test": 5}
  assert (info.num_classes, info.image_shape) == (10, (28, 28, 1))
  for path in directory.glob("*ubyte*"):
    path.unlink()  # It is found in the data directory from now on.
  for split, (images, labels) in held.items():
    source = load(name, split, data_dir=data_dir)
    assert pairs_of(source) == {
      (x.tobytes(), int(y)) for x, y in zip(images, labels)
    }


def pairs_of(source):
  return {
    (source[i]["image"].tobytes(), int(source[i]["label"]))
    for i in range(len(source))
  }


@pytest.mark.parametrize(
  ("name", "config", "classes", "labels"),
  [
    ("emnist/letters", "letters", 37, (1, 26)),
    ("emnist", "byclass", 62, (0, 61)),
  ],
)
def test_emnist_has_the_values_of_its_files(
  tmp_path, name, config, classes, labels
):
  rng, held = np.random.default_rng(0), {}
  (tmp_path / "files").mkdir()
  for split in ("train", "test"):
    images = rng.integers(0, 256, (2, 28, 28), np.uint8)
    values = np.array(labels, np.uint8)
    held[split] = {(x.tobytes(), int(y)) for x, y in zip(images, values)}
    for kind, array in (("images-idx3", images), ("labels-idx1", values)):
      file = tmp_path / f"files/emnist-{config}-{split}-{kind}-ubyte.gz"
      file.write_bytes(gzip.compress(idx_bytes(array)))
  data_dir = str(tmp_path / "data")
  files = str(tmp_path / "files")
  info = sources.describe(name, data_dir=data_dir, source=files)
  assert (info.num_classes, info.splits) == (classes, {"train": 2, "test": 2})
  for split, pairs in held.items():
    # By the builder of tfds, under its own name.
    source = load(f"emnist/{config}", split, data_dir=data_dir)
    assert pairs_of(source) == pairs
  with pytest.raises(DataError, match="emnist-digits-train-images-idx3-ubyte"):
    sources.find("emnist/digits", data_dir=data_dir, source=files)


class _Response:
  """The answer to a download."""

  status_code = 200

  def __init__(self, url, content):
    self.url, self._content = url, content
    self.headers = {"Content-length": str(len(content))}

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass

  def iter_content(self, chunk_size):
    del chunk_size
    yield self._content


@pytest.fixture
def served(monkeypatch):
  """Serves files by address, whose SHA-256 tfds knows for a data set."""
  contents = {}

  def serve(name, files):
    contents.update(files)
    infos = {
      url: tfds.core.download.checksums.UrlInfo(
        size=len(content),
        checksum=hashlib.sha256(content).hexdigest(),
        filename=url.rpartition("/")[2],
      )
      for url, content in files.items()
    }
    monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)

  def get(session, url, **options):
    del session, options
    return _Response(url, contents[url])

  monkeypatch.setattr(requests.Session, "get", get)
  monkeypatch.setattr(idx, "INSTALLED", {})
  serve.contents = contents
  return serve


def test_a_download_is_compared_with_the_sha256_of_tfds(
  files, served, tmp_path, no_network
):
  directory, held = files
  url = tfds.builder_cls("fashion_mnist").URL
  contents = {
    f"{url}{path.name.removesuffix('.gz')}.gz": path.read_bytes()
    for path in directory.glob("*ubyte*")
  }
  served("fashion_mnist", contents)
  wrong = f"{url}t10k-labels-idx1-ubyte.gz"
  served.contents[wrong] = contents[wrong][:-1] + b"\1"
  data_dir = str(tmp_path / "data")
  line = "fashion_mnist.*t10k-labels-idx1-ubyte.gz, has wrong checksum; try"
  with pytest.raises(DataError, match=line) as raised:
    sources.find("fashion_mnist", data_dir=data_dir, download=True)
  assert "\n" not in str(raised.value)
  assert not list((tmp_path / "data").iterdir())
  served.contents[wrong] = contents[wrong]
  sources.find("fashion_mnist", data_dir=data_dir, download=True)
  for split, (images, labels) in held.items():
    source = load("fashion_mnist", split, data_dir=data_dir)
    pairs = {(x.tobytes(), int(y)) for x, y in zip(images, labels)}
    assert pairs_of(source) == pairs


def test_emnist_is_read_from_its_zip_file(served, tmp_path, no_network):
  buffer = io.BytesIO()
  images = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
  with zipfile.ZipFile(buffer, "w") as file:
    for stem in ("train", "test"):
      for kind, array in (
        ("images-idx3", images),
        ("labels-idx1", np.array([1, 26], np.uint8)),
      ):
        name = f"gzip/emnist-letters-{stem}-{kind}-ubyte.gz"
        file.writestr(name, gzip.compress(idx_bytes(array)))
  served("emnist", {tfds.builder_cls("emnist").URL: buffer.getvalue()})
  name, data_dir = "emnist/letters", str(tmp_path)
  sources.find(name, data_dir=data_dir, download=True)
  source = load(name, "test", data_dir=data_dir)
  assert pairs_of(source) == {
    (images[0].tobytes(), 1), (images[1].tobytes(), 26)
  }  # fmt: skip


def replaced(directory, name, content):
  (directory / name).unlink()
  (directory / name).write_bytes(content)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    (
      "train-labels-idx1-ubyte",
      idx_bytes(np.array([0, 1, 10] + [0] * 9, np.uint8)),
      "train-labels-idx1-ubyte: row 2: expected a label from 0 to 9, got 10",
    ),
    (
      "t10k-labels-idx1-ubyte",
      idx_bytes(np.zeros(4, np.uint8)),
      "t10k-labels-idx1-ubyte: expected 5 labels",
    ),
    (
      "t10k-labels-idx1-ubyte",
      idx_bytes(np.zeros(5, np.uint8))[:-1],
      "expected 5 bytes after the header",
    ),
    ("t10k-labels-idx1-ubyte", b"PNG", "expected an idx file of bytes"),
    ("train-images-idx3-ubyte.gz", b"\x1f\x8b\x08", "damaged gzip file"),
    (
      "train-images-idx3-ubyte.gz",
      idx_bytes(np.zeros((12, 27, 28), np.uint8)),
      r"expected images of shape \[n, 28, 28\], got \[12, 27, 28\]",
    ),
  ],
)
def test_wrong_files_are_refused(files, name, content, message, tmp_path):
  directory, _ = files
  replaced(directory, name, content)
  data_dir = tmp_path / "data"
  with pytest.raises(DataError, match=message) as raised:
    sources.find("mnist", data_dir=str(data_dir), source=str(directory))
  assert "\n" not in str(raised.value)
  assert not data_dir.exists()


def test_a_missing_file_and_a_wrong_name_are_refused(files, tmp_path):
  directory, _ = files
  (directory / "t10k-labels-idx1-ubyte").unlink()
  data_dir = str(tmp_path / "data")
  with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz, got none"):
    sources.find("mnist", data_dir=data_dir, source=str(directory))
  for name in ("cifar10", "digits"):
    with pytest.raises(DataError, match="expected a data set of idx files"):
      sources.find(name, data_dir=data_dir, source=str(directory))


def test_without_any_file_the_package_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(idx.INSTALLED, "fashion_mnist", tmp_path / "none")
  with pytest.raises(DataError, match="dataset-fashion-mnist, or prepare"):
    load("fashion_mnist", "test", data_dir=str(tmp_path))


@pytest.mark.skipif(
  idx.directory_of("fashion_mnist") is None,
  reason=f"needs Debian's {idx.PACKAGE}",
)
def test_the_package_holds_a_thousand_test_images_of_each_class():
  directory = idx.directory_of("fashion_mnist")
  images, labels = idx.read_split(directory, "t10k")
  assert images.shape == (10_000, 28, 28)
  assert np.bincount(labels).tolist() == [1000] * 10
