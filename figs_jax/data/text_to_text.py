"""Supervised tasks as text in, text out, worded as for T5.

From Raffel et al. (arXiv 1910.10683, appendix D): the task's name or wish
first, then every field under its name; the answer is a label's name, a number,
or the translation.

| data set        | inputs                                 | targets   |
|-----------------|----------------------------------------|-----------|
| glue/sst2       | sst2 sentence: it is so lovely         | positive  |
| glue/mnli       | mnli hypothesis: ... premise: ...      | entailment|
| glue/stsb       | stsb sentence1: ... sentence2: ...     | 3.8       |
| wmt14_translate | translate English to German: Good day. | Guten Tag.|

`glue` alone is all eight tasks that count in its score, in proportion to their
sizes (that is, one after the other, then shuffled).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_datasets as tfds

from figs_jax.data.sources import as_text

Texts = tuple[str, str]
Reader = Callable[[Mapping[str, Any]], Texts]

# Without wnli and ax, which the published averages leave out.
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
_LANGUAGES = {
  "cs": "Czech", "de": "German", "en": "English", "es": "Spanish",
  "fi": "Finnish", "fr": "French", "hi": "Hindi", "lv": "Latvian",
  "ro": "Romanian", "ru": "Russian", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip


# Predictions of a similarity: any number of one decimal.
_SIMILARITIES = tuple(f"{tenth / 10:.1f}" for tenth in range(51))


class HiddenLabel(Exception):
  """An example of a split whose answers were not published."""


def reader(builder: tfds.core.DatasetBuilder) -> Reader | None:
  """example -> (inputs, targets) of a data set; None if it is no such task."""
  features = builder.info.features
  if is_translation(builder):
    return _translation(list(features.languages))
  if builder.name == "glue":
    return _glue(builder.builder_config.name, features)
  return None


def labels(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
  """The answers that a task of `glue` knows, in the order of its classes.

  Those of stsb are the similarities 0.0, 0.1, ..., 5.0, of which its own
  answers take every other one.
  """
  names = getattr(builder.info.features["label"], "names", None)
  return _SIMILARITIES if names is None else tuple(names)


def is_translation(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether the pairs of `reader` are two languages."""
  return isinstance(builder.info.features, tfds.features.Translation)


def _translation(languages: list[str]) -> Reader:
  """From English if it is one of the two, else from the first."""
  source = "en" if "en" in languages else languages[0]
  (target,) = (language for language in languages if language != source)
  names = [_LANGUAGES.get(code, code) for code in (source, target)]
  wish = f"translate {names[0]} to {names[1]}: "

  def read(example: Mapping[str, Any]) -> Texts:
    return wish + as_text(example[source]), as_text(example[target])

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
      # Similarities from 0 to 5, as 21 classes: to the nearest fifth.
      return " ".join(words), f"{round(float(label) * 5) / 5:.1f}"
    return " ".join(words), labels[int(label)]

  return read
