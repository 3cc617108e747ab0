"""Data sets as the library `datasets` saves them.

As a script it writes fixtures/saved_images and fixtures/saved_texts, where
datasets is installed: python tests/data/datasets_oracle.py
"""

import pathlib
import shutil

import numpy as np
from PIL import Image

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CLASSES = ["cat", "dog"]
LABELS = [0, 1] * 5
TEXTS = [("It is lovely.", "good"), ("It is not.", "bad"), ("Nö\n", "bad")]


def images():
  """Ten small images of two classes."""
  return np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), np.uint8)


def write(directory):
  """Saves the images, and the texts with a test part, below a directory."""
  import datasets

  features = {
    "img": datasets.Image(),
    "label": datasets.ClassLabel(names=CLASSES),
  }
  pictures = [Image.fromarray(image) for image in images()]
  data = datasets.Dataset.from_dict(
    {"img": pictures, "label": LABELS}, features=datasets.Features(features)
  )
  data.save_to_disk(directory / "saved_images", num_shards=2)
  text, label = map(list, zip(*TEXTS))
  features = {
    "sentence": datasets.Value("string"),
    "label": datasets.ClassLabel(names=["bad", "good"]),
  }
  numbers = [features["label"].str2int(word) for word in label]
  table = datasets.Dataset.from_dict(
    {"sentence": text, "label": numbers}, features=datasets.Features(features)
  )
  both = {"train": table, "test": table.select([1])}
  datasets.DatasetDict(both).save_to_disk(directory / "saved_texts")


if __name__ == "__main__":
  shutil.rmtree(FIXTURES, ignore_errors=True)
  write(FIXTURES)
