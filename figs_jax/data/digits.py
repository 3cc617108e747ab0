"""scikit-learn's bundled digits as a tensorflow-datasets builder.

1,797 grey 8x8 images of handwritten digits by 13 people, in the order of
writing. Every fifth image of each digit is the test split: fixed, balanced, and
comparable with the shuffled splits that others report, since the same hands are
on both sides. (It is easier than holding out the last fifth of all images,
mostly of other people: there one nearest neighbour reaches 95.5 %.)

Nothing is downloaded; preparing takes under a second.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NUM_TRAIN, NUM_TEST = 1442, 355
# scikit-learn's 0..16 as 8 bits: pixel = 15 * value, value = pixel // 15.
PIXEL_SCALE = 15

_DESCRIPTION = """\
The test half of the UCI handwritten digits (E. Alpaydin, C. Kaynak, 1998), as
bundled with scikit-learn: 8x8 counts 0..16, stored as 15 * count. Test is
every fifth image of each digit, in the original order of writers.
"""
_INCOMPLETE = ".incomplete.digits."
_STALE_SECONDS = 3600.0


class Digits(tfds.core.GeneratorBasedBuilder):
  """The builder; `prepare` is the safe way to run it."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      homepage="https://archive.ics.uci.edu/dataset/80",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
      # The order is the point of the split; training shuffles by itself.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {
      "train": self._generate_examples(held_out=False),
      "test": self._generate_examples(held_out=True),
    }

  def _generate_examples(
    self, held_out: bool
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    from sklearn import datasets

    bunch: Any = datasets.load_digits()
    counts, labels = bunch.data, bunch.target
    pixels = (PIXEL_SCALE * counts.reshape(-1, 8, 8)).astype(np.uint8)
    for i in np.flatnonzero(is_test(labels) == held_out).tolist():
      # A PIL image: tfds encodes arrays through TensorFlow only.
      yield i, {"image": Image.fromarray(pixels[i]), "label": int(labels[i])}


def is_test(labels: np.ndarray) -> np.ndarray:
  """True for the 5th, 10th, ... image of each label.

  >>> is_test(np.array([0] * 4 + [1, 0] + [1] * 4)).nonzero()[0].tolist()
  [5, 9]
  """
  seen = np.zeros(labels.max() + 1, np.int64)
  found = np.zeros(len(labels), bool)
  for i, label in enumerate(labels):
    seen[label] += 1
    found[i] = seen[label] % 5 == 0
  return found


def prepare(data_dir: str) -> Digits:
  """Prepares digits below `data_dir`, unless a sound copy is there.

  Each caller builds in a directory of its own and renames the result into
  place, so a kill at any moment leaves either nothing or a whole data set, and
  of two processes at once one wins and the other uses the winner's. A damaged
  or half-written copy is replaced: nothing in it is the user's own.

  Args:
    data_dir: a local directory; made if missing.

  Returns:
    The builder of a prepared data set.

  Raises:
    ValueError: `data_dir` is a remote address.
    OSError: the directory cannot be written.
  """
  if "://" in data_dir:
    raise ValueError(
      f"digits: data_dir {data_dir!r} is remote, and digits is prepared on"
      " the fly; give it a local directory"
    )
  builder = Digits(data_dir=data_dir)
  if _is_sound(builder):
    return builder
  _remove_stale(data_dir)
  os.makedirs(data_dir, exist_ok=True)
  scratch = tempfile.mkdtemp(prefix=_INCOMPLETE, dir=data_dir)
  try:
    fresh = Digits(data_dir=scratch, file_format="array_record")
    with _silent():
      fresh.download_and_prepare()
    _move_into_place(fresh.data_dir, builder.data_dir, scratch)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  # Metadata is read at construction, so a new builder sees the new files.
  return Digits(data_dir=data_dir)


def _is_sound(builder: Digits) -> bool:
  """Whether every record is there and passes array_record's own checksums."""
  if not (builder.data_path.exists() and builder.is_prepared()):
    return False
  try:
    for split, expected in (("train", NUM_TRAIN), ("test", NUM_TEST)):
      raw = builder.as_data_source(split).data_source
      if len(raw.__getitems__(range(len(raw)))) != expected:
        return False
  except Exception:  # Whatever a damaged file raises, the cure is the same.
    return False
  return True


def _move_into_place(source: str, target: str, scratch: str) -> None:
  os.makedirs(os.path.dirname(target), exist_ok=True)
  for attempt in range(10):
    try:
      os.rename(source, target)  # Fails when a non-empty target is there.
      return
    except OSError:
      root = os.path.dirname(os.path.dirname(target))
      if _is_sound(Digits(data_dir=root)):
        return
      # Somebody else may have moved the damaged copy first.
      with contextlib.suppress(FileNotFoundError):
        os.rename(target, os.path.join(scratch, f"damaged{attempt}"))
  raise OSError(f"digits: cannot replace {target}; delete it and try again")


def _remove_stale(data_dir: str) -> None:
  """Removes what killed preparations left behind, when old enough."""
  with contextlib.suppress(FileNotFoundError):
    for entry in os.scandir(data_dir):
      if entry.name.startswith(_INCOMPLETE):
        with contextlib.suppress(FileNotFoundError):
          if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Hides tfds's progress bars and its praise; errors still raise."""
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    yield
