"""Finds prepared data sets by name.

`digits` and `stdlib_text` are prepared on first use, and so are idx files and
one's own images. All others are looked up in the user's data directory; the
network is used only with `download=True`.

A prepared set may come from somebody else, so its `features.json` is checked
before tfds reads it, see `feature_classes`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from figs_jax.data import (
  bundled,
  digits,
  feature_classes,
  idx,
  own_data,
  python_data,
  stdlib_text,
)
from figs_jax.data.opened import DEFAULTS, Options
from figs_jax.data.python_data import Builder, PythonData
from figs_jax.data.record_files import PREFIX, RecordFiles

_BUNDLED = {"digits": digits.prepare, "stdlib_text": stdlib_text.prepare}
# Without TensorFlow, tfds finds c4 and translations only after these imports.
_REGISTERING = ("text", "translate")
# tfds finds the sets of a namespace on the network.
_NAMESPACE = re.compile(r"[\w-]+:(?!(\d+|\*)(\.(\d+|\*)){2}(/|$))")


class DataError(Exception):
  """Raised if data cannot be read; the message names the place and the fix."""


@dataclasses.dataclass(frozen=True)
class Description:
  """Metadata of an image data set.

  Attributes:
    name: Name of the data set in tfds.
    num_classes: Number of classes; labels are 0..num_classes-1.
    image_shape: Shape (height, width, channels); None where it varies.
    splits: Number of examples by split; empty if the set is not prepared.
  """

  name: str
  num_classes: int
  image_shape: tuple[int | None, int | None, int]
  splits: dict[str, int]


def describe(
  name: str | PythonData,
  *,
  data_dir: str | None = None,
  source: str | None = None,
  options: Options = DEFAULTS,
) -> Description:
  """Describes an image data set without reading images.

  Prepares sets that need no network, such as `digits`.

  Args:
    name: Name of an image classification set, see `load`.
    data_dir: Directory of the data sets, see `load`.
    source: Directory of idx files, see `find`.
    options: How data of one's own are read.

  Raises:
    DataError: If the name is unknown or the set lacks images or labels.

  >>> describe("cifar10").num_classes, describe("cifar10").image_shape
  (10, (32, 32, 3))
  """
  builder = find(name, data_dir=data_dir, source=source, options=options)
  return describe_builder(builder)


def describe_builder(builder: Builder) -> Description:
  """Describes the image data set of a builder from `find`.

  Args:
    builder: Builder.

  Raises:
    DataError: If the data set lacks images or labels.

  >>> describe_builder(find("cifar10")).image_shape
  (32, 32, 3)
  """
  features = builder.info.features
  is_dict = isinstance(features, tfds.features.FeaturesDict)
  names = sorted(features.keys()) if is_dict else []
  if "image" not in names or "label" not in names:
    raise DataError(
      f"Data set {builder.name!r}: expected features 'image' and 'label', got"
      f" {', '.join(names) or 'no named features'}; choose an image"
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
  """Opens a split with random access to its examples.

  Args:
    name: "digits", "npz:FILE" or "folder:DIR" for images of one's own,
      "tfrecord:DIR" for files prepared elsewhere, or any data set of tfds as
      "name[/config][:version]".
    split: "train", "test", "validation", ..., or a slice such as "train[:90%]".
    data_dir: Directory of the prepared data sets. Defaults to $TFDS_DATA_DIR,
      or else to ~/tensorflow_datasets.
    download: Whether to download and prepare a missing data set.

  Returns:
    A tfds data source of `len(source)` examples; `source[i]` is a dict, with
    "image" uint8 [h, w, c] and "label" for images.

  Raises:
    DataError: If the name or split is unknown, or the data set is not prepared,
      not stored in a format with random access, or damaged.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   source = load("digits", "train", data_dir=folder, download=True)
  ...   len(source), source[0]["image"].shape
  (1442, (8, 8, 1))
  """
  builder = find(name, data_dir=data_dir, download=download)
  return source_of(builder, split)


def source_of(builder: Builder, split: str) -> Sequence[Any]:
  """Opens a split of a builder from `find`; see `load`.

  Args:
    builder: Builder.
    split: Split, or a slice of one.

  Raises:
    DataError: If the split is unknown or empty, or cannot be read.

  >>> rows = [{"text": "so", "target": word} for word in ("yes", "no")]
  >>> len(source_of(PythonData((rows, rows)), "train[:50%]"))
  1
  """
  if isinstance(builder, tfds.core.DatasetBuilder):
    _check_prepared(builder)
  known = builder.info.splits
  for part in re.findall(r"(?:^|\+)\s*(\w+)", split):
    if known and part not in known:
      raise DataError(
        f"Data set {builder.name!r}: unknown split {part!r};"
        f" {_nearest(part, known)}"
      )
  if isinstance(builder, RecordFiles):
    with _as_data_errors(f"{builder.name}:{builder.path}"):
      source = builder.as_data_source(split)
      if len(source):
        source[0]  # fail here, not in a thread
        return source
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
    source[0]  # Files are opened lazily: fail here, not in a thread.
  except Exception as error:  # array_record, tfds and PIL raise many kinds.
    raise DataError(
      f"data set {builder.name!r} at {builder.data_dir}: damaged files"
      f" ({_first_line(error)}); delete the directory and prepare it again"
    ) from error
  return source


def find(
  name: str | PythonData,
  *,
  data_dir: str | None = None,
  download: bool = False,
  source: str | None = None,
  options: Options = DEFAULTS,
) -> Builder:
  """Finds the builder of a data set; see `load` for arguments and errors.

  Args:
    name: Data set, see `load`; data of a program are their own builder.
    data_dir: Directory of the data sets, see `load`.
    download: Whether to download a missing data set, see `load`.
    source: Directory of the idx files of a data set that is not prepared yet.
      Defaults to that of Debian's package.
    options: How data of one's own are read.

  >>> find("mnist").info.features["label"].num_classes
  10
  """
  if isinstance(name, PythonData):
    return name
  if name == python_data.NAME:
    raise DataError(
      "data set 'python': expected the data of the program that trained on"
      " them; give them as data= to train, or to restore of"
      " figs_jax.train.workdir"
    )
  if source and name not in idx.NAMES:
    raise DataError(
      "--config.data.source: expected a data set of idx files"
      f" ({', '.join(idx.NAMES)}), got data set {name!r}; unset it"
    )
  root = root_of(data_dir)
  if is_of_records(name, options):
    kind, _, place = name.partition(":")
    path = Path(os.path.abspath(Path(place).expanduser()))
    with _as_data_errors(name):
      return RecordFiles(path, root, options, lines=kind == "text")
  if options.stream:
    raise DataError(
      f"data set {name!r}: expected text:DIR or tfrecord:DIR to stream, got"
      " another; set --config.data.stream=False"
    )
  if name.startswith(own_data.PREFIXES):
    with _as_data_errors(name):
      return own_data.prepare(name, root, options)
  if not download:
    _check_local(name, root)
  if name in _BUNDLED:
    try:
      return _BUNDLED[name](root)
    except (OSError, ValueError) as error:
      raise DataError(
        f"{_first_line(error)}; choose a writable directory with"
        " --config.data.data_dir"
      ) from error
  builder = _builder(name, root)
  files = source or idx.directory_of(name)
  missing = not os.path.exists(builder.data_dir)
  if files and missing:
    with _as_data_errors(name):
      return idx.prepare(name, root, files)
  if download and missing:
    # Standard output is reserved for the programs' results.
    with _as_download_errors(name), contextlib.redirect_stdout(sys.stderr):
      if name in idx.NAMES:
        return idx.prepare(name, root, None)
      builder.download_and_prepare(file_format="array_record")
    # Metadata is read at construction, so a new builder sees the new files.
    builder = _builder(name, root)
  if download:
    _check_prepared(builder)
  return builder


@contextlib.contextmanager
def _as_download_errors(name: str) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # tfds raises many kinds, on many lines.
    line = _first_line(error)
    fix = "try again"
    if "No module named" in str(error):
      fix = f"install {str(error).rpartition(' ')[2]} to prepare it"
    raise DataError(f"data set {name!r}: {line.rstrip(':')}; {fix}") from error


@contextlib.contextmanager
def _as_data_errors(name: str) -> Iterator[None]:
  try:
    yield
  except (OSError, ValueError) as error:
    raise DataError(f"data set {name!r}: {_first_line(error)}") from error


def is_of_records(name: str, options: Options) -> bool:
  """Whether a data set is read from its files as they are.

  >>> is_of_records("tfrecord:imagenet", DEFAULTS)
  True
  """
  return name.startswith(PREFIX) or (
    options.stream and name.startswith("text:")
  )


def is_prepared(name: str, data_dir: str, options: Options = DEFAULTS) -> bool:
  """Whether `find` would write nothing; always so for sets of tfds, but
  those that are made of idx files.

  >>> is_prepared("digits", "nowhere"), is_prepared("cifar10", "nowhere")
  (False, True)
  """
  kinds = {"digits": digits.Digits, "stdlib_text": stdlib_text.StdlibText}
  root = root_of(data_dir)
  if is_of_records(name, options):
    return True
  if name.startswith(own_data.PREFIXES):
    with _as_data_errors(name):
      kind = own_data.builder_class(name, options)
    return bundled.sound(kind, root) is not None
  if name in idx.NAMES:
    return _builder(name, root).data_path.exists()
  return name not in kinds or bundled.sound(kinds[name], root) is not None


def _check_local(name: str, root: str) -> None:
  """Raises if a name or directory would use the network."""
  what = None
  if _NAMESPACE.match(name):
    what = f"Data set {name!r}"
  elif "://" in root:
    what = f"data_dir {root!r}"
  if what is not None:
    raise DataError(
      f"{what} is not on this machine; the network is used only if you ask for"
      " it with --config.data.download=True (training) or --download"
    )


def _check_features(name: str, root: str) -> None:
  """Raises if a prepared set names a feature class that is not of tfds."""
  base = Path(root, re.split("[/:]", name)[0])
  for pattern in ("*/features.json", "*/*/features.json"):
    for path in base.glob(pattern):
      with _as_data_errors(name):
        feature_classes.check(path)


# Data sets by what others call them.
_MEANT = {
  "imagenet": "imagenet2012",
  "imagenet1k": "imagenet2012",
  "ilsvrc2012": "imagenet2012",
  "cifar": "cifar10",
  "fashionmnist": "fashion_mnist",
  "sst2": "glue/sst2",
  "mnli": "glue/mnli",
  "wmt14": "wmt14_translate/de-en",
}


def _builder(name: str, root: str) -> tfds.core.DatasetBuilder:
  _check_features(name, root)
  for module in _REGISTERING:
    importlib.import_module(f"tensorflow_datasets.{module}")
  try:
    return tfds.builder(name, data_dir=root)
  except tfds.core.DatasetNotFoundError:
    _check_no_path(name)
    if meant := _MEANT.get(re.sub("[-_/:]", "", name.lower())):
      raise DataError(
        f"Unknown data set {name!r}; did you mean {meant!r}?"
      ) from None
    known = [*_BUNDLED, *tfds.list_builders(with_community_datasets=False)]
    base = re.split("[/:]", name)[0]
    raise DataError(
      f"Unknown data set {name!r}; {_nearest(base, known, show=5)}; data of"
      " your own are folder:DIR, npz:FILE, text:FILE or tfrecord:DIR"
    ) from None
  except Exception as error:  # tfds raises many kinds, on many lines.
    _check_no_path(name)
    raise DataError(f"data set {name!r}: {_first_line(error)}") from error


def _check_no_path(name: str) -> None:
  """Raises DataError if the name of an unknown data set is a path."""
  path = Path(name)
  if path.exists():
    kind = "npz" if path.suffix == ".npz" else "text"
    kind = "folder" if path.is_dir() else kind
    raise DataError(
      f"data set {name!r}: expected a name, got a path; write {kind}:{name}"
    )


def _check_prepared(builder: tfds.core.DatasetBuilder) -> None:
  path = builder.data_path
  if not path.exists():
    package = f" install Debian's {idx.PACKAGE}," * (
      builder.name in idx.INSTALLED
    )
    raise DataError(
      f"Data set {builder.name!r} is not prepared in {path}; set"
      f" --config.data.data_dir to the directory that holds it,{package} or"
      " prepare it with --config.data.download=True"
    )
  if not builder.is_prepared():
    raise DataError(
      f"Data set {builder.name!r} at {path} is incomplete; delete this"
      " directory and prepare it again with --config.data.download=True"
    )


def root_of(data_dir: str | None) -> str:
  """The directory of the data sets: `data_dir`, or the default of tfds."""
  if data_dir is None:
    data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return os.path.expanduser(os.fspath(data_dir))


def as_text(value: str | bytes) -> str:
  """Decodes a text feature; tfds reads bytes, its mock gives text."""
  return value if isinstance(value, str) else value.decode()


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def _nearest(word: str, choices: Any, show: int = 40) -> str:
  """A hint for an error message: the closest choice, then known ones."""
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
