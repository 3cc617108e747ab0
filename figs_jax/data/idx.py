"""MNIST-like data sets from their four idx files.

`fashion_mnist`, `mnist`, `kmnist` and `emnist` are prepared as the data sets of
tfds with these names, without TensorFlow. The idx files (gzipped or not) keep
the names of the original MNIST: train-images-idx3-ubyte,
train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte.
Debian's package dataset-fashion-mnist has those of Fashion-MNIST (H. Xiao,
K. Rasul and R. Vollgraf, arXiv:1708.07747; MIT licence).

EMNIST (G. Cohen et al., arXiv:1702.05373) has six sets of files, such as
emnist-letters-train-images-idx3-ubyte for `emnist/letters`; `emnist` alone is
`emnist/byclass`. As in tfds, values are those of the files: images are
transposed against mnist's, and the 26 letters are labels 1 to 26 of 37 classes.

An idx file is two zero bytes, the type (8 for uint8), the number of dimensions,
a big-endian uint32 for each, and the values in C order.
"""

from __future__ import annotations

import functools
import gzip
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from figs_jax.data import bundled

# Where Debian's package puts the files of each data set.
INSTALLED = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
_EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
NAMES = (
  "fashion_mnist",
  "kmnist",
  "mnist",
  "emnist",
  *(f"emnist/{config}" for config in _EMNIST),
)
PACKAGE = "dataset-fashion-mnist"
# How the names of the files of a split begin.
_PREFIXES = {"train": "train", "test": "t10k"}
_SIDE = 28


def read(path: str | Path | zipfile.Path) -> np.ndarray:
  """Reads an idx file of bytes, gzipped or not.

  Args:
    path: File to read, or a file in a zip file.

  Returns:
    The values, uint8 with the dimensions of the header.

  Raises:
    ValueError: If the file is not an idx file of bytes, or its length does not
      follow from its header.
    OSError: If the file cannot be read.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile() as file:
  ...   _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
  ...   file.flush()
  ...   read(file.name).tolist()
  [7, 8, 9]
  """
  raw = (Path(path) if isinstance(path, str) else path).read_bytes()
  if raw[:2] == b"\x1f\x8b":
    try:
      raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise ValueError(f"{path}: damaged gzip file ({error})") from error
  if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
    raise ValueError(
      f"{path}: expected an idx file of bytes, which begins with 00 00 08, got"
      f" {raw[:4].hex(' ') or 'an empty file'}"
    )
  start = 4 + 4 * raw[3]
  shape = np.frombuffer(raw, ">u4", raw[3], 4).tolist()
  if len(raw) - start != math.prod(shape):
    raise ValueError(
      f"{path}: expected {math.prod(shape)} bytes after the header of shape"
      f" {tuple(shape)}, got {len(raw) - start}"
    )
  return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_split(
  directory: str | Path, prefix: str, num_classes: int = 10
) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [n, 28, 28] and labels uint8 [n] of a split.

  Args:
    directory: Directory of the four files.
    prefix: Start of the names of the two files, such as "train" or "t10k".
    num_classes: Number of classes; labels are 0 to num_classes - 1.

  Raises:
    ValueError: If a file is missing or damaged, the shapes do not fit, or a
      label is out of range.
    OSError: If a file cannot be read.
  """
  return _read_pair(functools.partial(_find, directory), prefix, num_classes)


def _read_pair(
  find: Callable[[str], Path | zipfile.Path], prefix: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """`read_split`, where `find` gives a file by the start of its name."""
  image_file = find(f"{prefix}-images-idx3-ubyte")
  label_file = find(f"{prefix}-labels-idx1-ubyte")
  images, labels = read(image_file), read(label_file)
  if images.shape[1:] != (_SIDE, _SIDE):
    raise ValueError(
      f"{image_file}: expected images of shape [n, 28, 28], got"
      f" {list(images.shape)}"
    )
  if labels.shape != images.shape[:1]:
    raise ValueError(
      f"{label_file}: expected {len(images)} labels, as many as images, got"
      f" shape {list(labels.shape)}"
    )
  if (wrong := np.flatnonzero(labels >= num_classes)).size:
    raise ValueError(
      f"{label_file}: row {wrong[0]}: expected a label from 0 to"
      f" {num_classes - 1}, got {labels[wrong[0]]}"
    )
  return images, labels


def _find(directory: str | Path, stem: str) -> Path:
  for name in (stem, f"{stem}.gz"):
    if (path := Path(directory) / name).exists():
      return path
  raise ValueError(
    f"{directory}: expected a file {stem} or {stem}.gz, got none"
  )


def directory_of(name: str) -> Path | None:
  """Directory of a data set's installed idx files, or None."""
  directory = INSTALLED.get(name)
  return directory if directory and directory.is_dir() else None


def prepare(
  name: str, data_dir: str, directory: str | Path | None
) -> tfds.core.GeneratorBasedBuilder:
  """Prepares a data set from idx files; see `figs_jax.data.bundled.prepare`.

  Args:
    name: One of `NAMES`.
    data_dir: Local directory of the data sets.
    directory: Directory of the four files. None downloads them with tfds, which
      compares their SHA-256 with those that it knows.

  Raises:
    ValueError: If the files are wrong, see `read_split`.
    OSError: If a file cannot be read or written.
  """
  name, _, config_name = name.partition("/")
  base: Any = tfds.builder_cls(name)
  fields: dict[str, Any] = {"__module__": base.__module__, "name": name}
  prefixes, num_classes = _PREFIXES, 10
  if name == "emnist":
    configs = {config.name: config for config in base.BUILDER_CONFIGS}
    config = configs[config_name or "byclass"]
    fields["BUILDER_CONFIGS"] = [config]
    prefixes = {k: f"emnist-{config.name}-{k}" for k in _PREFIXES}
    num_classes = config.class_number

  def parts(find: Callable[[str], Any]) -> dict[str, Any]:
    return {
      split: _read_pair(find, prefix, num_classes)
      for split, prefix in prefixes.items()
    }

  local = parts(functools.partial(_find, directory)) if directory else None

  def split_generators(self: Any, dl_manager: Any) -> dict[str, Any]:
    pairs = local or parts(functools.partial(_download, self.URL, dl_manager))
    return {split: _examples(*pair) for split, pair in pairs.items()}

  with tfds.core.registered.skip_registration():
    fields["_split_generators"] = split_generators
    kind = type(base.__name__, (base,), fields)
  return bundled.prepare(kind, data_dir)


def _download(url: str, dl_manager: Any, stem: str) -> Path | zipfile.Path:
  """A file of tfds's address, which may be a zip file of all."""
  # tfds would unpack it with TensorFlow.
  if url.endswith(".zip"):
    return zipfile.Path(dl_manager.download(url), f"gzip/{stem}.gz")
  return Path(dl_manager.download(f"{url}{stem}.gz"))


def _examples(
  images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
  # A PIL image: tfds encodes arrays through TensorFlow only.
  for i, label in enumerate(labels.tolist()):
    yield i, {"image": Image.fromarray(images[i]), "label": label}
