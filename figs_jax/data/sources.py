"""From a name to prepared examples, or to one clear error.

`digits` and `stdlib_text` prepare themselves. Everything else is looked up in
the user's data directory, and the network stays untouched unless
`download=True`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from figs_jax.data import digits, stdlib_text

_BUNDLED = {"digits": digits.prepare, "stdlib_text": stdlib_text.prepare}
# Without TensorFlow, tfds knows c4 and translations only once these are there.
_REGISTERING = ("text", "translate")


class DataError(Exception):
  """The data cannot be had as asked; one line says where and what to do."""


@dataclasses.dataclass(frozen=True)
class Description:
  """What is known of an image set without reading an image.

  Attributes:
    name: as tfds knows it.
    num_classes: labels are 0..num_classes-1.
    image_shape: (height, width, channels); None where it varies.
    splits: split -> number of examples; empty while not prepared.
  """

  name: str
  num_classes: int
  image_shape: tuple[int | None, int | None, int]
  splits: dict[str, int]


def describe(name: str, *, data_dir: str | None = None) -> Description:
  """Facts about an image set. Prepares `digits`; reads no image.

  Args:
    name: of a tfds image classification set, as in `load`.
    data_dir: as in `load`.

  Raises:
    DataError: an unknown name, or a set without images and labels.

  >>> describe("cifar10").num_classes, describe("cifar10").image_shape
  (10, (32, 32, 3))
  """
  return describe_builder(find(name, data_dir=data_dir))


def describe_builder(builder: tfds.core.DatasetBuilder) -> Description:
  """The same of a builder, as `find` gives it."""
  features = builder.info.features
  is_dict = isinstance(features, tfds.features.FeaturesDict)
  names = sorted(features.keys()) if is_dict else []
  if "image" not in names or "label" not in names:
    raise DataError(
      f"data set {builder.name!r} has no 'image' and 'label' (it has"
      f" {', '.join(names) or 'no named features'}); choose an image"
      " classification set"
    )
  splits = {k: v.num_examples for k, v in builder.info.splits.items()}
  return Description(
    builder.name,
    features["label"].num_classes,
    tuple(features["image"].shape),
    splits,
  )


def load(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  download: bool = False,
) -> Sequence[Any]:
  """A split as random-access examples {"image": uint8 [h, w, c], "label"}.

  Args:
    name: "digits", or any data set of tfds, as "name[/config][:version]".
    split: "train", "test", "validation", ..., or a slice, "train[:90%]".
    data_dir: where data sets are prepared; None is $TFDS_DATA_DIR, or else
      ~/tensorflow_datasets.
    download: whether to download and prepare what is not there.

  Returns:
    A tfds data source: `len(source)`, `source[i]`.

  Raises:
    DataError: unknown name or split, not prepared, not in a format with
      random access, or damaged.
  """
  builder = find(name, data_dir=data_dir, download=download)
  return source_of(builder, split)


def source_of(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[Any]:
  """A split of a builder that `find` found; for the rest see `load`."""
  _check_prepared(builder)
  known = builder.info.splits
  for part in re.findall(r"(?:^|\+)\s*(\w+)", split):
    if known and part not in known:
      raise DataError(
        f"data set {builder.name!r} has no split {part!r};"
        f" {_nearest(part, known)}"
      )
  try:
    source = builder.as_data_source(split)
    length = len(source)
  except NotImplementedError:
    raise DataError(
      f"data set {builder.name!r} at {builder.data_dir} is stored as"
      f" {builder.info.file_format.value}, which has no random access; prepare"
      " it as array_record in another data_dir: --config.data.data_dir=DIR"
      " --config.data.download=True"
    ) from None
  except ValueError as error:
    raise DataError(
      f"data set {builder.name!r}: cannot read split {split!r}"
      f" ({_first_line(error)}); write 'train', 'train[:90%]', 'train+test'"
    ) from error
  if not length:
    raise DataError(f"data set {builder.name!r}: split {split!r} is empty")
  try:
    source[0]  # Files are opened late: better here than in a thread later.
  except Exception as error:  # array_record, tfds and PIL raise many kinds.
    raise DataError(
      f"data set {builder.name!r} at {builder.data_dir}: damaged files"
      f" ({_first_line(error)}); delete the directory and prepare it again"
    ) from error
  return source


def find(
  name: str, *, data_dir: str | None = None, download: bool = False
) -> tfds.core.DatasetBuilder:
  """The builder of a data set; see `load` for arguments and errors."""
  root = root_of(data_dir)
  if name in _BUNDLED:
    try:
      return _BUNDLED[name](root)
    except (OSError, ValueError) as error:
      raise DataError(
        f"{_first_line(error)}; choose a writable directory with"
        " --config.data.data_dir"
      ) from error
  builder = _builder(name, root)
  if download and not os.path.exists(builder.data_dir):
    # stdout belongs to the programs' results.
    with contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare(file_format="array_record")
    # Metadata is read at construction, so a new builder sees the new files.
    builder = _builder(name, root)
  if download:
    _check_prepared(builder)
  return builder


def _builder(name: str, root: str) -> tfds.core.DatasetBuilder:
  for module in _REGISTERING:
    importlib.import_module(f"tensorflow_datasets.{module}")
  try:
    return tfds.builder(name, data_dir=root)
  except tfds.core.DatasetNotFoundError:
    known = [*_BUNDLED, *tfds.list_builders(with_community_datasets=False)]
    base = re.split("[/:]", name)[0]
    raise DataError(
      f"unknown data set {name!r}; {_nearest(base, known, show=8)}"
    ) from None
  except Exception as error:  # tfds raises many kinds, on many lines.
    raise DataError(f"data set {name!r}: {_first_line(error)}") from error


def _check_prepared(builder: tfds.core.DatasetBuilder) -> None:
  path = builder.data_path
  if not path.exists():
    raise DataError(
      f"data set {builder.name!r} is not prepared: looked in {path}; give the"
      " directory that has it with --config.data.data_dir, or prepare it"
      " there with --config.data.download=True"
    )
  if not builder.is_prepared():
    raise DataError(
      f"data set {builder.name!r} at {path} is incomplete: delete this"
      " directory and prepare it again, with --config.data.download=True"
    )


def root_of(data_dir: str | None) -> str:
  """Where data sets are: what is given, or tfds's own default."""
  if data_dir is None:
    data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return os.path.expanduser(os.fspath(data_dir))


def as_text(value: str | bytes) -> str:
  """A text feature's value, which tfds reads as bytes and its mock as text."""
  return value if isinstance(value, str) else value.decode()


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def _nearest(word: str, choices: Any, show: int = 40) -> str:
  """A hint for an error: the closest choices, and a few of all."""
  close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
  known, near = "known", "near it"
  if close:
    known, near = (
      f"did you mean {close[0]!r}? {word.capitalize()}"
      for word in (known, near)
    )
  listed = sorted(choices)
  if len(listed) > show:
    listed = difflib.get_close_matches(word, choices, n=show, cutoff=0.0)
    return f"{near}: {', '.join(listed)}"
  return f"{known}: {', '.join(listed)}"
