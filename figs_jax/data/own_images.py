"""Images of one's own, `npz:FILE`, as a data set.

They are written once as array_record, under a name that holds the SHA-256 of
the file, so that a changed file is prepared again. Without a test part, every
fifth example of a class is held out, as for digits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from figs_jax.data import bundled, digits

PREFIX = "npz:"
_ARRAYS = "image, label, and optionally test_image and test_label"
# What NumPy raises for damaged files, beside ValueError.
_DAMAGE = (
  EOFError, MemoryError, RuntimeError, SyntaxError, tokenize.TokenError,
  zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_log = logging.getLogger("figs_jax")


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The base of the builders, one class for each state of a file."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  file: _File

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"Images of {self.file.path.name}.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=self.file.shape, encoding_format="png"
          ),
          "label": tfds.features.ClassLabel(num_classes=self.file.num_classes),
        }
      ),
      supervised_keys=("image", "label"),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    splits, _ = read(self.file.path)
    return {
      name: self._generate_examples(*part) for name, part in splits.items()
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    gray = images.shape[-1] == 1
    for i, label in enumerate(labels.tolist()):
      # A PIL image: tfds encodes arrays through TensorFlow only.
      pixels = images[i, ..., 0] if gray else images[i]
      yield i, {"image": Image.fromarray(pixels), "label": label}


@dataclasses.dataclass(frozen=True)
class _File:
  """A checked file: its path, digest, image shape and number of classes."""

  path: Path
  digest: str
  shape: tuple[int, int, int]
  num_classes: int

  @property
  def stem(self) -> str:
    """The file's name in letters that a directory may have."""
    return re.sub(r"\W+", "_", self.path.stem, flags=re.ASCII)


def read(
  path: str | Path,
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
  """Reads and checks the arrays of an npz file.

  Args:
    path: File with the arrays `image`, uint8 [n, h, w] or [n, h, w, 1 or 3],
      and `label`, integers [n] that use every class from 0; optionally
      `test_image` and `test_label`. Arrays of objects are refused.

  Returns:
    Images [n, h, w, c] and labels int64 [n] by split, "train" and "test", and
    the number of classes.

  Raises:
    ValueError: If an array is missing or has another type, shape or range; the
      message names the array and the row.
    OSError: If the file cannot be read.
  """
  arrays = _load(path)
  missing = {"image", "label"} - arrays.keys()
  if ("test_image" in arrays) != ("test_label" in arrays):
    missing |= {"test_image", "test_label"} - arrays.keys()
  if missing:
    raise ValueError(
      f"{path}: expected the arrays {_ARRAYS}, got"
      f" {', '.join(sorted(arrays)) or 'none'}; add {min(missing)}"
    )
  images, labels = _checked(path, arrays, "")
  counts = np.bincount(labels)
  if (empty := np.flatnonzero(counts == 0)).size:
    raise ValueError(
      f"{path}: label: expected examples of every class from 0 to"
      f" {labels.max()}, got none of class {empty[0]}"
    )
  if "test_image" not in arrays:
    held_out = digits.is_test(labels)
    if not held_out.any():
      raise ValueError(
        f"{path}: label: expected a class with at least 5 examples, of which"
        f" the fifth is for testing, got {counts.max()}; add test_image and"
        " test_label"
      )
    parts = {
      "train": (images[~held_out], labels[~held_out]),
      "test": (images[held_out], labels[held_out]),
    }
    return parts, len(counts)
  test_images, test_labels = _checked(path, arrays, "test_")
  if test_images.shape[1:] != images.shape[1:]:
    raise ValueError(
      f"{path}: test_image: expected images of shape {list(images.shape[1:])},"
      f" as in image, got {list(test_images.shape[1:])}"
    )
  if (wrong := np.flatnonzero(test_labels >= len(counts))).size:
    raise ValueError(
      f"{path}: test_label: row {wrong[0]}: expected a label from 0 to"
      f" {len(counts) - 1}, as in label, got {test_labels[wrong[0]]}"
    )
  return {
    "train": (images, labels),
    "test": (test_images, test_labels),
  }, len(counts)


def _load(path: str | Path) -> dict[str, np.ndarray]:
  """The four arrays that the file has."""
  names = ("image", "label", "test_image", "test_label")
  name = ""
  arrays = {}
  with open(path, "rb") as stream:  # NumPy leaves damaged files open.
    try:
      file = np.load(stream, allow_pickle=False)
      if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array; save it with np.savez")
      for name in names:
        if name in file.files:
          arrays[name] = file[name]
    except (*_DAMAGE, OSError, ValueError) as error:
      where = f"{path}: {name}" if name else f"{path}"
      raise ValueError(
        f"{where}: expected an npz file of plain arrays, got one that cannot be"
        f" read ({(str(error) or type(error).__name__).splitlines()[0]})"
      ) from error
  return arrays


def _checked(
  path: str | Path, arrays: dict[str, np.ndarray], prefix: str
) -> tuple[np.ndarray, np.ndarray]:
  """Images [n, h, w, c] and labels of a part."""
  images, labels = arrays[f"{prefix}image"], arrays[f"{prefix}label"]
  where = f"{path}: {prefix}"
  shape = images.shape if images.ndim == 4 else (*images.shape, 1)
  if (
    images.dtype != np.uint8
    or len(shape) != 4
    or shape[-1] not in (1, 3)
    or not images.size
  ):
    raise ValueError(
      f"{where}image: expected uint8 [n, h, w] or [n, h, w, 1 or 3], got"
      f" {images.dtype} {list(images.shape)}"
    )
  if labels.dtype.kind not in "iu" or labels.shape != shape[:1]:
    raise ValueError(
      f"{where}label: expected integers of shape [{shape[0]}], one per image,"
      f" got {labels.dtype} {list(labels.shape)}"
    )
  # Every class has an example, so a label is below the number of images.
  limit = len(arrays["image"])
  if (wrong := np.flatnonzero((labels < 0) | (labels >= limit))).size:
    raise ValueError(
      f"{where}label: row {wrong[0]}: expected a label from 0 to the number of"
      f" classes - 1, got {labels[wrong[0]]}"
    )
  return images.reshape(shape), labels.astype(np.int64)


@functools.lru_cache(maxsize=8)
def _checked_file(path: Path, size: int, changed_ns: int) -> _File:
  del size, changed_ns  # parts of the key
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  parts, num_classes = read(path)
  _, *shape = parts["train"][0].shape
  return _File(path, digest, (shape[0], shape[1], shape[2]), num_classes)


def builder_class(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
  """The class of builders for the present content of a file.

  Args:
    name: "npz:FILE".

  Raises:
    ValueError: If the file is wrong, see `read`.
    OSError: If the file cannot be read.
  """
  path = Path(name.removeprefix(PREFIX)).expanduser().absolute()
  status = path.stat()
  file = _checked_file(path, status.st_size, status.st_mtime_ns)
  config = tfds.core.BuilderConfig(
    name=f"{file.stem}_{file.digest[:16]}", version=_Builder.VERSION
  )
  fields = {"name": "npz", "file": file, "BUILDER_CONFIGS": [config]}
  with tfds.core.registered.skip_registration():
    return type("Npz", (_Builder,), {"__module__": __name__, **fields})


def prepare(name: str, data_dir: str) -> tfds.core.GeneratorBasedBuilder:
  """Prepares one's own images; see `figs_jax.data.bundled.prepare`.

  Args:
    name: "npz:FILE".
    data_dir: Local directory of the data sets.

  Raises:
    ValueError: If the file is wrong, see `read`.
    OSError: If a file cannot be read or written.
  """
  kind = builder_class(name)
  own = kind.BUILDER_CONFIGS[0].name
  copies = Path(data_dir) / "npz"
  same_stem = re.compile(re.escape(own[:-16]) + "[0-9a-f]{16}")
  if not (copies / own).exists() and any(
    same_stem.fullmatch(copy)
    for copy in (os.listdir(copies) if copies.is_dir() else ())
  ):
    _log.info("%s: another file than that prepared before; preparing it", name)
  return bundled.prepare(kind, data_dir)
