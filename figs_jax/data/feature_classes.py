"""Checks the feature classes that a features.json of tfds names.

A prepared set may come from somebody else, and tfds imports the module of every
class in this file, so it may name the classes of tfds only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Classes of tfds by module, below tensorflow_datasets.core.features.
_FEATURES = {
  f"tensorflow_datasets.core.features.{module}.{name}"
  for module, names in {
    "audio_feature": "Audio",
    "bounding_boxes": "BBoxFeature",
    "class_label_feature": "ClassLabel",
    "dataset_feature": "Dataset",
    "feature": "Tensor",
    "features_dict": "FeaturesDict",
    "image_feature": "Image",
    "labeled_image": "LabeledImage",
    "scalar": "Scalar",
    "sequence_feature": "Sequence",
    "tensor_feature": "Tensor",
    "text_feature": "Text",
    "translation_feature": "Translation TranslationVariableLanguages",
    "video_feature": "Video",
  }.items()
  for name in names.split()
}
# Keys of features.json under which a text names a class.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def check(path: Path) -> None:
  """Raises ValueError, with the path, if a file names a class not of tfds.

  Args:
    path: A features.json.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = Path(folder) / "features.json"
  ...   _ = file.write_text('{"pythonClassName": "os.system"}')
  ...   try:
  ...     check(file)
  ...   except ValueError as error:
  ...     print(error)
  /...: expected feature classes of tfds, got 'os.system'; use a data set of ...
  """
  try:
    for kind in _class_names(json.loads(path.read_bytes())):
      if kind not in _FEATURES:
        raise ValueError(f"expected feature classes of tfds, got {kind[:80]!r}")
  except (OSError, ValueError, RecursionError) as error:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f"{path}: {line}; use a data set of tfds's own features"
    ) from error


def _class_names(value: Any) -> Iterator[str]:
  """The classes in a value of features.json, at any depth.

  >>> inner = {"features": {"a": {"type": "x.B"}}}
  >>> list(_class_names({"pythonClassName": "x.A", "featuresDict": inner}))
  ['x.A', 'x.B']
  """
  if isinstance(value, list):
    for each in value:
      yield from _class_names(each)
  elif isinstance(value, dict):
    for key, each in value.items():
      if key in _CLASS_KEYS and isinstance(each, str):
        yield each
      elif key == "json" and isinstance(each, str):  # JSON in a text
        yield from _class_names(json.loads(each))
      else:
        yield from _class_names(each)
