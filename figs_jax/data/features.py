"""What the bytes of a record mean: tf.train.Example messages, or JSON objects.

See `record_files` for the description of the features.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from figs_jax.data import feature_classes
from figs_jax.data.opened import Options

_FILE = "features.json"
_NAMES = ("image", "label", "target", "text")
_OPTIONS = {
  "image": {"key", "shape"},
  "label": {"key", "classes", "names", "first"},
  "target": {"key"},
  "text": {"key"},
}
_MESSAGES: Any = tf_example_pb2  # its classes are made when it is imported
First = Callable[[], tuple[str, bytes] | None]


@runtime_checkable
class Features(Protocol):
  """Reads examples from the bytes of their records."""

  @property
  def spec(self) -> Any:
    """Features of an example: a `FeaturesDict` of tfds."""

  def example(self, where: str, raw: bytes) -> dict[str, Any]:
    """An example from its bytes.

    Args:
      where: Place of the record, for errors.
      raw: Bytes of the record.

    Raises:
      ValueError: If the bytes do not fit the features.
    """
    ...


def features_of(
  path: Path, options: Options, first: First, *, lines: bool
) -> Features:
  """What records mean by their description, or their columns.

  Args:
    path: Directory or file of the records.
    options: Names of the columns of JSON lines.
    first: Function that returns the place and the bytes of the first record;
      None if there is none.
    lines: Whether they are JSON lines.

  Raises:
    ValueError: If the description is missing or wrong, or the first of some
      JSON lines lacks a column.
    OSError: If the description cannot be read.

  >>> options = Options(text_column="body")
  >>> line = b'{"body": "so good", "stars": 5}'
  >>> features = features_of(
  ...   Path("a.jsonl"), options, lambda: ("a.jsonl: 0", line), lines=True)
  >>> list(features.spec), features.example("a.jsonl: 0", line)
  (['text'], {'text': 'so good'})
  """
  if lines:
    return _Columns.of(path, options, first)
  file = (path.parent if path.is_file() else path) / _FILE
  if not file.exists():
    raise ValueError(
      f'{path}: expected {_FILE} beside the files, as {{"image":'
      f' "image/encoded", "label": {{"key": ..., "classes": ...}}}}, got none;'
      f" the records have {_keys(first())}"
    )
  try:
    described = json.loads(file.read_bytes())
  except (RecursionError, ValueError) as error:
    raise ValueError(f"{file}: invalid JSON ({error})") from error
  if isinstance(described, dict) and not set(described) <= set(_NAMES):
    feature_classes.check(file)
    try:
      spec = tfds.features.FeaturesDict.from_config(str(file.parent))
    except Exception as error:  # tfds raises many kinds
      raise ValueError(
        f"{file}: expected features of tfds, or of {', '.join(_NAMES)}, got"
        f" {', '.join(map(str, described))[:80]}"
      ) from error
    return _OfTfds(spec)
  return _Named.of(file, described)


def _parsed(where: str, raw: bytes) -> Mapping[str, Any]:
  try:
    return _MESSAGES.Example.FromString(raw).features.feature
  except DecodeError as error:
    raise ValueError(
      f"{where}: expected a tf.train.Example, got other bytes; write the"
      " records as such"
    ) from error


def _keys(first: tuple[str, bytes] | None) -> str:
  features = _parsed(*first) if first else {}
  kinds = {name: each.WhichOneof("kind") for name, each in features.items()}
  named = (f"{name} ({kind})" for name, kind in sorted(kinds.items()))
  return ", ".join(named) or "no features"


@dataclasses.dataclass(frozen=True)
class _OfTfds:
  """Examples as tfds has written them."""

  spec: Any

  def example(self, where: str, raw: bytes) -> dict[str, Any]:
    try:
      return self.spec.deserialize_example_np(raw)
    except Exception as error:  # tfds, protobuf and PIL raise many kinds
      line = (str(error).splitlines() or [type(error).__name__])[0]
      raise ValueError(
        f"{where}: expected an example of {_FILE}, got one that cannot be read"
        f" ({line})"
      ) from error


@dataclasses.dataclass(frozen=True)
class _Named:
  """Examples whose features have keys of their own.

  Attributes:
    options: Options of each feature by name, with the key.
  """

  spec: Any
  options: Mapping[str, Mapping[str, Any]]

  @classmethod
  def of(cls, file: Path, described: Any) -> _Named:
    wrong = ValueError(
      f"{file}: expected an object with text, text and target, or image and"
      f" label, each with its key, got {json.dumps(described)[:80]}"
    )
    if not isinstance(described, dict):
      raise wrong
    options = {
      name: {"key": value} if isinstance(value, str) else value
      for name, value in described.items()
    }
    for name, each in options.items():
      if not isinstance(each, dict) or not isinstance(each.get("key"), str):
        raise wrong
      if unknown := set(each) - _OPTIONS[name]:
        raise ValueError(
          f"{file}: {name}: expected {', '.join(sorted(_OPTIONS[name]))}, got"
          f" {', '.join(sorted(unknown))}"
        )
    if not ({"image", "label"} == set(options) or "text" in options):
      raise wrong
    return cls(
      tfds.features.FeaturesDict(
        {name: _spec(file, name, each) for name, each in options.items()}
      ),
      options,
    )

  def example(self, where: str, raw: bytes) -> dict[str, Any]:
    features = _parsed(where, raw)
    return {
      name: self._value(f"{where}: {each['key']}", name, each, features)
      for name, each in self.options.items()
    }

  def _value(
    self, where: str, name: str, options: Mapping[str, Any], features: Any
  ) -> Any:
    feature = features.get(options["key"])
    kind = feature.WhichOneof("kind") if feature is not None else None
    values = getattr(feature, kind).value if kind else ()
    wanted = "int64_list" if name == "label" else "bytes_list"
    if name == "label" and kind != "int64_list" and "names" in options:
      wanted = "bytes_list"
    if kind != wanted or len(values) != 1:
      got = "none" if not kind else f"{len(values)} of {kind}"
      raise ValueError(f"{where}: expected one value of {wanted}, got {got}")
    if name == "label":
      return _label(where, values[0], self.spec["label"], options)
    if name == "image":
      return _image(where, values[0], self.spec["image"])
    return values[0]


def _spec(file: Path, name: str, options: Mapping[str, Any]) -> Any:
  """The feature of tfds."""
  if name in ("text", "target"):
    return tfds.features.Text()
  if name == "image":
    shape = options.get("shape", [None, None, 3])
    if not isinstance(shape, list) or len(shape) != 3 or shape[2] not in (1, 3):
      raise ValueError(
        f"{file}: image: expected shape [height, width, 1 or 3], got {shape}"
      )
    return tfds.features.Image(shape=tuple(shape))
  names, classes = options.get("names"), options.get("classes")
  if isinstance(names, list) and all(isinstance(x, str) for x in names):
    return tfds.features.ClassLabel(names=names)
  if not isinstance(classes, int) or classes < 2:
    raise ValueError(
      f"{file}: label: expected classes, an integer of 2 or more, or names, a"
      f" list, got {json.dumps(options)[:80]}"
    )
  return tfds.features.ClassLabel(num_classes=classes)


def _label(where: str, value: Any, spec: Any, options: Any) -> int:
  if isinstance(value, bytes):
    word = value.decode(errors="replace")
    if word not in spec.names:
      raise ValueError(
        f"{where}: expected one of {', '.join(spec.names[:8])}, got {word!r}"
      )
    return spec.names.index(word)
  first = options.get("first", 0)
  if not 0 <= value - first < spec.num_classes:
    raise ValueError(
      f"{where}: expected a label from {first} to"
      f" {first + spec.num_classes - 1}, got {value}"
    )
  return int(value - first)


def _image(where: str, value: bytes, spec: Any) -> np.ndarray:
  shape = spec.shape
  if None not in shape and len(value) == np.prod(shape):
    return np.frombuffer(value, np.uint8).reshape(shape)
  try:
    image = spec.decode_example_np(value)
  except Exception as error:  # Pillow raises many kinds
    raise ValueError(
      f"{where}: expected an encoded image, or bytes of shape {list(shape)},"
      f" got {len(value)} bytes that cannot be decoded"
    ) from error
  if any(x not in (None, y) for x, y in zip(shape, image.shape)):
    raise ValueError(
      f"{where}: expected an image of shape {list(shape)}, got"
      f" {list(image.shape)}"
    )
  return image


@dataclasses.dataclass(frozen=True)
class _Columns:
  """Texts, and perhaps targets, in the columns of JSON objects."""

  spec: Any
  columns: Mapping[str, str]

  @classmethod
  def of(cls, path: Path, options: Options, first: First) -> _Columns:
    record = first()
    if record is None:
      raise ValueError(f"{path}: expected lines, got an empty file")
    row = _row(*record)
    text = options.text_column or "text"
    columns = {"text": text}
    if options.target_column is not None:
      columns["target"] = options.target_column
    for column in columns.values():
      if column not in row:
        raise ValueError(
          f"{record[0]}: expected a column {column}, got"
          f" {', '.join(row) or 'none'}; name yours with"
          " --config.data.text_column"
        )
    return cls(
      tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in columns}
      ),
      columns,
    )

  def example(self, where: str, raw: bytes) -> dict[str, Any]:
    row = _row(where, raw)
    values = {name: row.get(column) for name, column in self.columns.items()}
    for name, value in values.items():
      if not isinstance(value, str):
        raise ValueError(
          f"{where}: {self.columns[name]}: expected text, got"
          f" {repr(value)[:40]}"
        )
    return values


def _row(where: str, raw: bytes) -> dict[str, Any]:
  try:
    row = json.loads(raw)
  except (RecursionError, ValueError) as error:
    raise ValueError(
      f"{where}: expected a JSON object, got invalid JSON ({error})"
    ) from error
  if not isinstance(row, dict):
    raise ValueError(
      f"{where}: expected a JSON object, got {type(row).__name__}"
    )
  return row
