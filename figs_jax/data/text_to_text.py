"""Supervised tasks as text-to-text pairs, worded as for T5.

After Raffel et al. (arXiv 1910.10683, appendix D): the inputs are the task's
name or instruction, then every field after its name; the target is the name of
a label, a number, or the translation.

| data set        | inputs                                 | targets   |
|-----------------|----------------------------------------|-----------|
| glue/sst2       | sst2 sentence: it is so lovely         | positive  |
| glue/mnli       | mnli hypothesis: ... premise: ...      | entailment|
| glue/stsb       | stsb sentence1: ... sentence2: ...     | 3.8       |
| wmt14_translate | translate English to German: Good day. | Guten Tag.|
| text:FILE       | it is so lovely                        | positive  |

`glue` without a task mixes the eight tasks of its score in proportion to their
sizes (concatenated, then shuffled).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_datasets as tfds

from figs_jax.data.python_data import Builder
from figs_jax.data.sources import as_text

Texts = tuple[str, str]
Reader = Callable[[Mapping[str, Any]], Texts]

# Without wnli and ax, which published averages leave out.
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
OWN = ("text", "python", "tfrecord")  # the builders of data of one's own
_LANGUAGES = {
  "cs": "Czech", "de": "German", "en": "English", "es": "Spanish",
  "fi": "Finnish", "fr": "French", "hi": "Hindi", "lv": "Latvian",
  "ro": "Romanian", "ru": "Russian", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip


# Valid predictions of a similarity: any number with one decimal.
_SIMILARITIES = tuple(f"{tenth / 10:.1f}" for tenth in range(51))


class HiddenLabel(Exception):
  """Raised for an example of a split whose labels are not published."""


def reader(builder: Builder) -> Reader | None:
  """The function from an example to (inputs, targets); None for other sets.

  Args:
    builder: Builder of a data set.

  >>> from figs_jax.data.python_data import PythonData
  >>> rows = [{"text": "so", "label": label} for label in ("yes", "no")] * 5
  >>> builder = PythonData((rows, rows))
  >>> reader(builder)({"text": b"so", "label": 0}), labels(builder)
  (('so', 'no'), ('no', 'yes'))
  """
  features = builder.info.features
  if is_translation(builder):
    return _translation(list(features.languages))
  if builder.name == "glue":
    return _glue(builder.builder_config.name, features)
  if builder.name in OWN and {"label", "target"} & set(features):
    return _own(features)
  return None


def has_labels(builder: Builder) -> bool:
  """Whether the targets are the names of labels."""
  return not is_translation(builder) and "label" in builder.info.features


def labels(builder: Builder) -> tuple[str, ...]:
  """The possible targets if there are labels, in the order of the classes.

  stsb has the similarities 0.0, 0.1, ..., 5.0; its own targets are the even
  ones, 0.0, 0.2, ..., 5.0.
  """
  names = getattr(builder.info.features["label"], "names", None)
  return _SIMILARITIES if names is None else tuple(names)


def is_translation(builder: Builder) -> bool:
  """Whether the data set is a translation."""
  return isinstance(builder.info.features, tfds.features.Translation)


def _translation(languages: list[str]) -> Reader:
  """Translates from English if it is one of the languages, else the first."""
  source = "en" if "en" in languages else languages[0]
  (target,) = (language for language in languages if language != source)
  names = [_LANGUAGES.get(code, code) for code in (source, target)]
  wish = f"translate {names[0]} to {names[1]}: "

  def read(example: Mapping[str, Any]) -> Texts:
    return wish + as_text(example[source]), as_text(example[target])

  return read


def _own(features: Any) -> Reader:
  names = features["label"].names if "label" in features else None

  def read(example: Mapping[str, Any]) -> Texts:
    text = as_text(example["text"])
    if names is None:
      return text, as_text(example["target"])
    return text, names[int(example["label"])]

  return read


def _glue(task: str, features: Any) -> Reader:
  fields = sorted(set(features.keys()) - {"label", "idx"})
  labels = getattr(features["label"], "names", None)

  def read(example: Mapping[str, Any]) -> Texts:
    words = [task]
    for field in fields:
      words += [f"{field}:", as_text(example[field])]
    label = example["label"]
    if label < 0:
      raise HiddenLabel
    if labels is None:
      # Round similarities to the nearest 0.2, as T5 does.
      return " ".join(words), f"{round(float(label) * 5) / 5:.1f}"
    return " ".join(words), labels[int(label)]

  return read
