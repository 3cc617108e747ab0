"""Images and labels of one's own in an npz file, `npz:FILE`.

Without a test part, every fifth example of a class is held out, as for digits.
"""

from __future__ import annotations

import functools
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from figs_jax.data.opened import Opened, Options, digest_of, held_out

_ARRAYS = "image, label, and optionally test_image and test_label"
# What NumPy raises for damaged files, beside ValueError.
_DAMAGE = (
  EOFError, MemoryError, RuntimeError, SyntaxError, tokenize.TokenError,
  zipfile.BadZipFile, zlib.error,
)  # fmt: skip


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
    test = held_out(f"{path}: label", labels, "test_image and test_label")
    parts = {
      "train": (images[~test], labels[~test]),
      "test": (images[test], labels[test]),
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


def open_file(path: Path, options: Options) -> Opened:
  """Opens and checks an npz file.

  Args:
    path: File, see `read`.
    options: Not used.

  Raises:
    ValueError: If the file is wrong, see `read`.
    OSError: If the file cannot be read.
  """
  del options
  status = path.stat()
  return _opened(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _opened(path: Path, size: int, changed_ns: int) -> Opened:
  del size, changed_ns  # parts of the key
  digest = digest_of(path)
  parts, num_classes = read(path)
  _, height, width, channels = parts["train"][0].shape
  features = {
    "image": tfds.features.Image(
      shape=(height, width, channels), encoding_format="png"
    ),
    "label": tfds.features.ClassLabel(num_classes=num_classes),
  }
  return Opened(path, digest, features, lambda: _examples(path))


def _examples(path: Path) -> dict[str, Iterator[dict[str, Any]]]:
  parts, _ = read(path)
  return {name: _of_part(*part) for name, part in parts.items()}


def _of_part(
  images: np.ndarray, labels: np.ndarray
) -> Iterator[dict[str, Any]]:
  gray = images.shape[-1] == 1
  for image, label in zip(images, labels.tolist()):
    # A PIL image: tfds encodes arrays through TensorFlow only.
    pixels = Image.fromarray(image[..., 0] if gray else image)
    yield {"image": pixels, "label": label}
