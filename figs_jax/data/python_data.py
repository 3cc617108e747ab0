"""Data that a program gives to `train(config, workdir, data=...)`."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from figs_jax.data.opened import DEFAULTS, Options, held_out
from figs_jax.data.record_files import Info, RecordFiles
from figs_jax.data.text_rows import Columns, in_splits

NAME = "python"  # in the place of a data set's name


@dataclasses.dataclass(frozen=True)
class _Split:
  num_examples: int


class PythonData:
  """Stands for a builder of tfds, where a program gives the examples.

  All examples are read once when it is made, to check them and to count the
  classes; images are read again in training, and not kept.

  Args:
    data: Examples of each split by name, such as {"train": ..., "test": ...}, a
      tuple (train, test), or training examples alone, of which every fifth of
      a class is held out. Examples are a sequence or a `grain.MapDataset`: they
      have a length, and entry i is a dict of `image`, uint8 [h, w],
      [h, w, 1] or [h, w, 3], and `label`, an integer from 0; or a dict of
      `text` and either `label`, a word or an integer of 0 or more, or `target`,
      a text.
    options: Whether images may differ in size.

  Raises:
    ValueError: If an example is wrong; the message names the split and its
      number.

  >>> image = np.zeros((4, 4, 1), np.uint8)
  >>> data = PythonData([{"image": image, "label": i % 2} for i in range(10)])
  >>> {name: split.num_examples for name, split in data.info.splits.items()}
  {'train': 8, 'test': 2}
  """

  name = NAME
  builder_config = None
  data_dir = "a program"

  def __init__(self, data: Any, options: Options = DEFAULTS):
    splits = _splits(data)
    first = _example("train", splits["train"], 0)
    read = _of_texts if "text" in first else _of_images
    self._sources, features, digest, size = read(splits, options)
    self.version = digest[:16]
    self.info = Info(
      tfds.features.FeaturesDict(features),
      {name: _Split(len(part)) for name, part in self._sources.items()},
      f"{NAME}/{self.version}",
      size,
    )

  def as_data_source(self, split: str) -> Sequence[Any]:
    """The examples of a split, or of a slice such as "train[:90%]"."""
    rows = []
    for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(
      self.info.splits
    ):
      source = self._sources[part.splitname]
      numbers = range(*slice(part.from_, part.to).indices(len(source)))
      rows += [(source, i) for i in numbers]
    return _Rows(rows)


# What finds data: a builder of tfds, or what stands for one.
Builder = tfds.core.DatasetBuilder | PythonData | RecordFiles


@dataclasses.dataclass(frozen=True)
class _Rows(Sequence):
  """Entries of some sources."""

  rows: Sequence[tuple[Any, int]]

  def __repr__(self) -> str:
    return NAME

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: Any) -> Any:
    source, i = self.rows[index]
    return source[i]


@dataclasses.dataclass(frozen=True)
class _Images:
  """Some examples of a split in the form that the pipeline reads."""

  split: str
  source: Any
  numbers: Sequence[int]

  def __len__(self) -> int:
    return len(self.numbers)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return _image_of(self.split, self.source, self.numbers[index])


def _splits(data: Any) -> dict[str, Any]:
  """Examples by split, checked to have a length and entries."""
  if isinstance(data, Mapping):
    splits = dict(data)
  elif isinstance(data, tuple) and len(data) == 2:
    splits = dict(zip(("train", "test"), data))
  else:
    splits = {"train": data}
  if "train" not in splits:
    raise ValueError(
      "data: expected a split train, or a tuple (train, test), got"
      f" {', '.join(map(str, splits)) or 'none'}"
    )
  for name, part in splits.items():
    if not (hasattr(part, "__len__") and hasattr(part, "__getitem__")):
      raise ValueError(
        f"data: {name}: expected examples with a length and indices, such as a"
        f" list or a grain.MapDataset, got {type(part).__name__}"
      )
    if not 0 < len(part) < sys.maxsize:
      raise ValueError(
        f"data: {name}: expected examples, got"
        f" {'an endless data set; do not repeat it' if len(part) else 'none'}"
      )
  return splits


def _example(split: str, source: Any, number: int) -> Mapping[str, Any]:
  example = source[number]
  if not isinstance(example, Mapping):
    raise ValueError(
      f"data: {split}: example {number}: expected a dict, got"
      f" {type(example).__name__}"
    )
  return example


def _field(where: str, example: Mapping[str, Any], name: str) -> Any:
  if name not in example:
    raise ValueError(
      f"{where}: expected an entry {name}, got"
      f" {', '.join(map(str, example)) or 'none'}"
    )
  return example[name]


def _image_of(split: str, source: Any, number: int) -> dict[str, Any]:
  """A checked example: image uint8 [h, w, 1 or 3], and its label."""
  example = _example(split, source, number)
  where = f"data: {split}: example {number}"
  image = np.asarray(_field(where, example, "image"))
  shape = image.shape if image.ndim == 3 else (*image.shape, 1)
  if image.dtype != np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3):
    raise ValueError(
      f"{where}: image: expected uint8 [h, w] or [h, w, 1 or 3], got"
      f" {image.dtype} {list(image.shape)}"
    )
  label = np.asarray(_field(where, example, "label"))
  if label.dtype.kind not in "iu" or label.size != 1 or label < 0:
    raise ValueError(
      f"{where}: label: expected an integer of 0 or more, got"
      f" {repr(example['label'])[:40]}"
    )
  return {"image": image.reshape(shape), "label": int(label.item())}


def _of_images(splits: dict[str, Any], options: Options) -> Any:
  """(examples by split, features, digest, bytes)."""
  digest, size = hashlib.sha256(), 0
  shapes: dict[tuple[int, ...], str] = {}
  labels: dict[str, np.ndarray] = {}
  for split, source in splits.items():
    values = []
    for i in range(len(source)):
      example = _image_of(split, source, i)
      shapes.setdefault(example["image"].shape, f"{split}: example {i}")
      values.append(example["label"])
      digest.update(example["image"].tobytes())
      size += example["image"].nbytes
    labels[split] = np.array(values)
    digest.update(labels[split].tobytes())
  first, *others = shapes
  for other in others:
    if not options.mixed_sizes or other[-1] != first[-1]:
      raise ValueError(
        f"data: {shapes[other]}: expected an image of shape {list(first)}, as"
        f" in {shapes[first]}, got {list(other)}; give all one shape, or set"
        " config.data.mixed_sizes=True if only their sizes differ"
      )
  shape = (None, None, first[-1]) if others else first
  counts = np.bincount(labels["train"])
  if not counts.all():
    raise ValueError(
      f"data: train: expected examples of every class from 0 to"
      f" {len(counts) - 1}, got none of class {np.argmin(counts)}"
    )
  for split, values in labels.items():
    if (wrong := np.flatnonzero(values >= len(counts))).size:
      raise ValueError(
        f"data: {split}: example {wrong[0]}: expected a label from 0 to"
        f" {len(counts) - 1}, as in train, got {values[wrong[0]]}"
      )
  numbers = {split: np.arange(len(x)) for split, x in labels.items()}
  if len(numbers) == 1:
    test = held_out("data: train", labels["train"], "a split test")
    numbers = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
  sources = {
    split: _Images(split, splits.get(split, splits["train"]), some.tolist())
    for split, some in numbers.items()
  }
  features = {
    "image": tfds.features.Image(shape=shape, encoding_format="png"),
    "label": tfds.features.ClassLabel(num_classes=len(counts)),
  }
  return sources, features, digest.hexdigest(), size


def _of_texts(splits: dict[str, Any], options: Options) -> Any:
  """(examples by split, features, digest, bytes)."""
  del options
  other = "label" if "label" in splits["train"][0] else "target"
  columns = Columns("text", other, other == "label")

  def rows(split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for i in range(len(splits[split])):
      yield f"data: {split}: example {i}", _example(split, splits[split], i)

  order = sorted(splits, key=lambda split: split != "train")
  tables = {split: rows(split) for split in order}
  names, parts = in_splits("data", tables, columns, "a split test")
  digest, size = hashlib.sha256(), 0
  sources = {}
  for split, pairs in parts.items():
    for pair in pairs:
      raw = "\0".join(pair).encode()
      digest.update(raw + b"\0")
      size += len(raw)
    sources[split] = [
      {"text": text, other: names.index(value) if names else value}
      for text, value in pairs
    ]
  features: dict[str, Any] = {"text": tfds.features.Text()}
  if names:
    features["label"] = tfds.features.ClassLabel(names=names)
  else:
    features["target"] = tfds.features.Text()
  return sources, features, digest.hexdigest(), size
