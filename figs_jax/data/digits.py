"""The handwritten digits of UCI as a tensorflow-datasets builder.

The test half of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, doi:10.24432/C50P49, CC BY 4.0), which scikit-learn bundles as
well: 1,797 grey 8x8 images by 13 people, in the order of writing. Every fifth
image of each digit belongs to the test split, which is fixed, balanced and
comparable with the shuffled splits that others report, since the same writers
occur in both splits. (Holding out the last fifth of all images, mostly of other
writers, is harder: one nearest neighbour reaches 95.5 % there.)

`digits.npz` beside this file holds them as `counts`, uint8 [1797, 8, 8] of
0..16, and `labels`, uint8 [1797]. Preparing takes under a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from figs_jax.data import bundled

_FILE = Path(__file__).with_name("digits.npz")
# Counts of 0..16 as 8 bits: pixel = 15 * value, value = pixel // 15.
PIXEL_SCALE = 15

_DESCRIPTION = """\
The test half of the UCI handwritten digits (E. Alpaydin, C. Kaynak, 1998):
8x8 counts 0..16, stored as 15 * count. Test is every fifth image of each digit,
in the original order of writers.
"""


class Digits(tfds.core.GeneratorBasedBuilder):
  """The builder of the data set; call `prepare` to run it safely."""

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
      # The split depends on the order; training shuffles by itself.
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
    with np.load(_FILE) as file:
      pixels, labels = PIXEL_SCALE * file["counts"], file["labels"]
    for i in np.flatnonzero(is_test(labels) == held_out).tolist():
      # A PIL image: tfds encodes arrays through TensorFlow only.
      yield i, {"image": Image.fromarray(pixels[i]), "label": int(labels[i])}


def is_test(labels: np.ndarray) -> np.ndarray:
  """True for the 5th, 10th, ... image of each label.

  >>> is_test(np.array([0] * 4 + [1, 0] + [1] * 4)).nonzero()[0].tolist()
  [5, 9]
  """
  seen = np.zeros(labels.max() + 1, np.int64)
  held_out = np.zeros(len(labels), bool)
  for i, label in enumerate(labels):
    seen[label] += 1
    held_out[i] = seen[label] % 5 == 0
  return held_out


def prepare(data_dir: str) -> tfds.core.GeneratorBasedBuilder:
  """Prepares digits below `data_dir`; see `figs_jax.data.bundled.prepare`."""
  return bundled.prepare(Digits, data_dir)
