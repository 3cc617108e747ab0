"""Measures of text: bits per byte, GLUE's scores, exact matches and BLEU.

The last three decode every example, greedily or by beam search, and count exact
matches. `figs_jax.train.metrics` has the protocol of a measure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.types import Array
from figs_jax.data.labels import padded
from figs_jax.models import decode
from figs_jax.train.losses import (
  NextToken,
  TeacherForcing,
  label_losses,
  token_losses,
)
from figs_jax.train.metrics import (
  Sums,
  Values,
  accuracy_and_loss,
  as_counted,
  total,
)
from figs_jax.train.regression import squared_errors

# The scores of GLUE's tasks (Wang et al., arXiv 1804.07461, table 1).
_SCORES = {
  "cola": ("matthews",),
  "mrpc": ("f1", "accuracy"),
  "qqp": ("f1", "accuracy"),
  "stsb": ("pearson", "spearman"),
}
_BLEU_ORDERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLoss:
  """Loss and accuracy per target token, and bits per byte of raw text.

    bits per byte = nats of all target tokens / ln 2 / bytes of the masked spans

  The numerator includes the sentinels, which encode the length of each span,
  and the end token; the denominator counts raw text only. So the number
  compares models of any vocabulary at one density and mean span. Both sides of
  a masked byte are known, unlike for a left-to-right language model.

  Attributes:
    byte_lengths: Bytes of raw text of each id, int [vocabulary].
  """

  headline: ClassVar[str] = "bits_per_byte"
  byte_lengths: np.ndarray

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    targets = jnp.where(batch["valid"][:, None], padded(batch["targets"]), 0)
    logits = model(*self.arguments(batch["inputs"], targets))
    losses, hits, counted = token_losses(logits, targets)
    lengths = jnp.asarray(self.byte_lengths, jnp.float32)
    return {
      "hits": hits.sum(-1),
      "losses": losses.sum(-1),
      "seen": counted.sum(-1),
      "bytes": lengths[targets].sum(-1),
    }

  count = staticmethod(total)
  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    yield from accuracy_and_loss(sums)
    yield "bits_per_byte", sums["losses"] / math.log(2) / sums["bytes"]

  arguments = staticmethod(TeacherForcing.arguments)


class NextTokenLoss(TokenLoss):
  """Loss and accuracy per next token, and bits per byte of raw text.

    bits per byte = nats of all target tokens / ln 2 / bytes of these tokens

  The numerator includes the tokens that end a document. Only the text before a
  token is known, and of that no more than its row.
  """

  arguments = staticmethod(NextToken.arguments)


@dataclasses.dataclass(frozen=True, eq=False)
class GlueScore:
  """GLUE's score of each task, and their mean `glue_score`.

  Scores are in [-1, 1]: Matthews' correlation for cola; F1 of the second class
  and accuracy for mrpc and qqp; Pearson's and Spearman's correlation for stsb;
  accuracy for the others. A task with two scores counts with their mean.
  `accuracy` is the mean over tasks of exact matches, `loss` per target token.

  As in T5's evaluation, a text that is not one of the task's answers is wrong,
  and -1 as a similarity. The correlation with a constant is 0.

  Attributes:
    answers: Ids of the answers of each task, int32 [classes, target_length].
    beams: Beams of the search; 1 decodes greedily.
  """

  headline: ClassVar[str] = "glue_score"
  answers: dict[str, np.ndarray]
  beams: int = 1

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    decoded = _decoded(model, batch, self.beams)
    wanted = batch["targets"]
    return _matches(model, batch, decoded) | {
      "task": batch["task"],
      "decoded": decoded,
      "wanted": wanted,
    }

  def count(self, each: Sums) -> Sums:
    tasks, most = len(self.answers), max(map(len, self.answers.values()))
    confusion = jnp.zeros((tasks, most + 1, most), jnp.float32)
    for number, table in enumerate(self.answers.values()):
      asked = jnp.where(each["task"] == number, each["seen"], 0.0)
      # Index of the answer; `most` for any other text.
      given = _class_of(each["decoded"], table, most)
      wanted = _class_of(each["wanted"], table, most)
      pair = confusion.at[number, given, wanted]
      confusion = pair.add(asked, mode="drop")
    return _match_counts(each, each["task"], tasks) | {"confusion": confusion}

  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    """Yields accuracy, loss, glue_score, SCORE/TASK and accuracy/TASK."""
    tasks = tuple(self.answers)
    yield from _match_values(sums, tasks)
    seen = [tasks[i] for i in _seen(sums)]
    confusion, finite = sums["confusion"], np.isfinite(sums["losses"])
    means = []
    for name in seen:
      number, classes = tasks.index(name), len(self.answers[name])
      counts = confusion[..., number, :, :classes]
      tables = counts.reshape(-1, *counts.shape[-2:]).astype(np.int64)
      scores = {}
      for score, flat in scores_of(name, tables).items():
        value = np.reshape(flat, counts.shape[:-2])
        scores[score] = np.where(finite, value, np.nan)
        if score != "accuracy":
          yield f"{score}/{name}", scores[score]
      means.append(np.mean(list(scores.values()), axis=0))
    yield "glue_score", np.mean(means, axis=0)


@dataclasses.dataclass(frozen=True)
class ExactMatch:
  """Share of decoded texts that equal their target, and loss per target token.

  A target that is cut to its length is cut in the comparison too.

  Attributes:
    beams: Beams of the search; 1 decodes greedily.
  """

  headline: ClassVar[str] = "accuracy"
  beams: int = 1

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    return _matches(model, batch, _decoded(model, batch, self.beams))

  def count(self, each: Sums) -> Sums:
    one = jnp.zeros(len(each["seen"]), jnp.int32)
    return _match_counts(each, one, 1)

  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    yield from _match_values(sums, ("",))


@dataclasses.dataclass(frozen=True, eq=False)
class Bleu:
  """Corpus BLEU of translations, as sacrebleu computes it, in [0, 100].

  Texts are detokenized; tokens (13a), case and smoothing are sacrebleu's
  defaults. A target that is cut to its length is cut in the reference too.
  `accuracy` counts exact matches, `loss` is per target token.

  Attributes:
    decode: Function from ids up to the end token to text.
    beams: Beams of the search, at length penalty 1; 1 decodes greedily.
  """

  headline: ClassVar[str] = "bleu"
  decode: Callable[[np.ndarray], str]
  beams: int = 1

  def __post_init__(self):
    _sacrebleu()

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    decoded = _decoded(model, batch, self.beams)
    wanted = batch["targets"]
    return _matches(model, batch, decoded) | {
      "decoded": decoded,
      "wanted": wanted,
    }

  def count(self, each: Sums) -> Sums:
    texts = {name: each[name] for name in ("decoded", "wanted")}
    one = jnp.zeros(len(each["seen"]), jnp.int32)
    return _match_counts(each, one, 1) | texts | {"valid": each["seen"] > 0}

  def tally(self, counts: Sums) -> Sums:
    """Replaces the texts by their n-gram counts."""
    counts = dict(counts)
    decoded, wanted, valid = (
      np.asarray(counts.pop(name)) for name in ("decoded", "wanted", "valid")
    )
    lead = decoded.shape[:-2]
    flat = decoded.reshape(-1, *decoded.shape[-2:])
    wanted = np.broadcast_to(wanted, decoded.shape).reshape(flat.shape)
    valid = np.broadcast_to(valid, decoded.shape[:-1]).reshape(flat.shape[:-1])
    grams = [
      self._grams(seed[rows], right[rows])
      for seed, right, rows in zip(flat, wanted, valid)
    ]
    return counts | {"grams": np.reshape(grams, (*lead, -1))}

  def _grams(self, decoded: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Matching n-grams, all n-grams, and the lengths of both in words."""
    texts, right = (
      [self.decode(row) for row in rows] for rows in (decoded, wanted)
    )
    if not texts:
      return [0] * (2 * _BLEU_ORDERS + 2)
    score = _sacrebleu().corpus_bleu(texts, [right])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]

  def values(self, sums: Sums) -> Values:
    yield from _match_values(sums, ("",))
    grams, finite = sums["grams"], np.isfinite(sums["losses"])
    flat = [_bleu_of(row) for row in grams.reshape(-1, grams.shape[-1])]
    yield "bleu", np.where(finite, np.reshape(flat, grams.shape[:-1]), np.nan)


@dataclasses.dataclass(frozen=True)
class MaskedAccuracy:
  """Accuracy and loss per masked token."""

  headline: ClassVar[str] = "accuracy"

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    targets = jnp.where(batch["valid"][:, None], padded(batch["targets"]), 0)
    logits = model(batch["inputs"], batch["types"])
    losses, hits, counted = token_losses(logits, targets)
    return {
      "hits": hits.sum(-1),
      "losses": losses.sum(-1),
      "seen": counted.sum(-1),
    }

  count = staticmethod(total)
  tally = staticmethod(as_counted)
  values = staticmethod(accuracy_and_loss)


@dataclasses.dataclass(frozen=True)
class TextLabelScore:
  """Accuracy and loss of labels of texts, and the score of a task of GLUE.

  The scores are those of `GlueScore`.

  Attributes:
    classes: Number of classes.
    task: Name of the task of GLUE, or "" for other data.
  """

  classes: int
  task: str = ""

  @property
  def headline(self) -> str:
    return "glue_score" if self.task else "accuracy"

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    logits = model(batch["inputs"], batch["types"])
    losses, hits, weights = label_losses(logits, batch["label"])
    valid = jnp.where(batch["valid"], weights, 0.0)
    return {
      "hits": hits * valid,
      "losses": losses * valid,
      "seen": valid,
      "given": jnp.argmax(logits, -1),
      "label": batch["label"],
    }

  def count(self, each: Sums) -> Sums:
    table = jnp.zeros((self.classes, self.classes), jnp.float32)
    table = table.at[each["given"], each["label"]].add(each["seen"])
    sums = {name: each[name].sum() for name in ("hits", "losses", "seen")}
    return sums | {"confusion": table}

  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    """Yields accuracy, loss and, of GLUE, SCORE/TASK and glue_score."""
    yield from accuracy_and_loss(sums)
    if not self.task:
      return
    confusion, finite = sums["confusion"], np.isfinite(sums["losses"])
    tables = confusion.reshape(-1, *confusion.shape[-2:]).astype(np.int64)
    scores = {
      name: np.where(finite, np.reshape(flat, confusion.shape[:-2]), np.nan)
      for name, flat in scores_of(self.task, tables).items()
    }
    for name, value in scores.items():
      if name != "accuracy":
        yield f"{name}/{self.task}", value
    yield "glue_score", np.mean(list(scores.values()), axis=0)


@dataclasses.dataclass(frozen=True)
class ScoreCorrelation:
  """Pearson's and Spearman's correlation of outputs with scores, and the loss.

  `loss` is the mean squared error, `accuracy` the share of errors of at most
  1/2. The correlation with a constant is 0.

  Attributes:
    task: "stsb" of GLUE, whose `glue_score` is the mean of both, or "".
  """

  listed: ClassVar[tuple[str, ...]] = ("given", "wanted", "valid")
  task: str = ""

  @property
  def headline(self) -> str:
    return "glue_score" if self.task else "pearson"

  def each(self, model: nnx.Module, batch: dict[str, Any]) -> Sums:
    outputs = model(batch["inputs"], batch["types"])
    losses, near = squared_errors(outputs, batch["score"])
    valid = batch["valid"].astype(jnp.float32)
    return {
      "hits": near * valid,
      "losses": losses * valid,
      "seen": valid,
      "given": outputs[:, 0].astype(jnp.float32),
      "wanted": batch["score"],
      "valid": valid,
    }

  def count(self, each: Sums) -> Sums:
    sums = {name: each[name].sum() for name in ("hits", "losses", "seen")}
    return sums | {name: each[name] for name in self.listed}

  tally = staticmethod(as_counted)

  def values(self, sums: Sums) -> Values:
    """Yields accuracy, loss and both correlations, of GLUE as SCORE/stsb."""
    yield from accuracy_and_loss(sums)
    given, wanted, valid = (
      sums[name].reshape(-1, sums[name].shape[-1]) for name in self.listed
    )
    scores = {}
    for name in ("pearson", "spearman"):
      flat = [
        correlation(left[kept > 0], right[kept > 0], name)
        for left, right, kept in zip(wanted, given, valid)
      ]
      scores[name] = np.reshape(flat, np.shape(sums["losses"]))
      yield name + f"/{self.task}" * bool(self.task), scores[name]
    if self.task:
      yield "glue_score", np.mean(list(scores.values()), axis=0)


def _decoded(model: Any, batch: dict[str, Any], beams: int) -> Array:
  """Ids [batch, target_length], with 0 after the end token."""
  length = batch["targets"].shape[1]
  if beams == 1:
    return decode.greedy(model, batch["inputs"], length)
  return decode.beam_search(model, batch["inputs"], beams, length)[0]


def _matches(model: Any, batch: dict[str, Any], decoded: Array) -> Sums:
  """Whether each decoded text is the target, and the loss of its tokens."""
  valid = batch["valid"]
  targets = jnp.where(valid[:, None], padded(batch["targets"]), 0)
  losses, _, counted = token_losses(model(batch["inputs"], targets), targets)
  hits = (decoded == targets).all(-1) & valid
  return {
    "hits": hits.astype(jnp.float32),
    "seen": valid.astype(jnp.float32),
    "losses": losses.sum(-1),
    "tokens": counted.sum(-1),
  }


def _match_counts(each: Sums, task: Array, tasks: int) -> Sums:
  """Exact matches and examples of each task, and the loss of all examples."""
  of_task = (task[:, None] == jnp.arange(tasks)[None]).astype(jnp.float32)
  return {
    "hits": (of_task * each["hits"][:, None]).sum(0),
    "seen": (of_task * each["seen"][:, None]).sum(0),
    "losses": each["losses"].sum(),
    "tokens": each["tokens"].sum(),
  }


def _match_values(sums: Sums, tasks: tuple[str, ...]) -> Values:
  """Yields accuracy, loss, and the accuracy of each task with examples."""
  seen = _seen(sums)
  shares = sums["hits"][..., seen] / sums["seen"][..., seen]
  shares = np.where(np.isfinite(sums["losses"])[..., None], shares, np.nan)
  yield "accuracy", shares.mean(-1)
  yield "loss", sums["losses"] / sums["tokens"]
  if len(tasks) > 1:
    for i, task in enumerate(seen):
      yield f"accuracy/{tasks[task]}", shares[..., i]


def _seen(sums: Sums) -> list[int]:
  """Indices of the tasks with examples, which all seeds share."""
  return np.flatnonzero(np.atleast_2d(sums["seen"])[0]).tolist()


def _class_of(ids: Array, table: np.ndarray, none: int) -> Array:
  """Index of the table's row that equals each row of ids, else `none`."""
  same = (ids[:, None] == jnp.asarray(table)[None]).all(-1)
  return jnp.where(same.any(1), jnp.argmax(same, 1), none)


def _pairs(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(wanted, given) class of every example; -1 for any other text."""
  given, wanted = np.nonzero(table)
  times = table[given, wanted]
  given = np.where(given == len(table) - 1, -1, given)
  return np.repeat(wanted, times), np.repeat(given, times)


def _matthews(table: np.ndarray) -> float:
  """R_K of J. Gorodkin (2004), equation 8; 0 if a margin is one class."""
  given, wanted = table.sum(1), table.sum(0)
  n, right = table.sum(), np.trace(table)
  # Rows of other texts have no column.
  joint = n * right - given[: len(wanted)] @ wanted
  # Two roots: the product may exceed int64.
  spread = np.sqrt(n * n - given @ given) * np.sqrt(n * n - wanted @ wanted)
  return float(joint / spread) if spread else 0.0


def _f1(table: np.ndarray) -> float:
  """2 TP / (2 TP + FP + FN) of class 1; 0 if it occurs nowhere."""
  either = table[1].sum() + table[:, 1].sum()
  return float(2 * table[1, 1] / either) if either else 0.0


def _accuracy(table: np.ndarray) -> float:
  return float(np.trace(table) / table.sum())


def _correlation(table: np.ndarray, name: str) -> float:
  wanted, given = _pairs(table)
  # A class is ten times its similarity, and -1 stands for any other text.
  return correlation(wanted, np.where(given < 0, -10, given), name)


def correlation(wanted: np.ndarray, given: np.ndarray, name: str) -> float:
  """Correlation of two sequences; 0 with a constant, NaN if one is not finite.

  Args:
    wanted: Numbers [n].
    given: Numbers [n].
    name: "pearson", or "spearman" for that of their ranks, where equal numbers
      share the mean of their ranks.

  >>> correlation(np.array([1, 2, 3]), np.array([1, 8, 27]), "spearman")
  1.0
  """
  from scipy import stats  # takes a second to import

  if not (np.isfinite(wanted).all() and np.isfinite(given).all()):
    return math.nan
  if wanted.min() == wanted.max() or given.min() == given.max():
    return 0.0
  return float(getattr(stats, f"{name}r")(wanted, given).statistic)


_SCORE = {
  "matthews": _matthews,
  "f1": _f1,
  "accuracy": _accuracy,
  "pearson": partial(_correlation, name="pearson"),
  "spearman": partial(_correlation, name="spearman"),
}


def scores_of(task: str, tables: np.ndarray) -> dict[str, list[float]]:
  """The scores of a task of GLUE by name, one for each table.

  Args:
    task: Name of the task; unknown ones have an accuracy.
    tables: Examples by given and wanted class, int [tables, given, wanted].

  >>> scores_of("mrpc", np.array([[[2, 1], [0, 3]]]))["accuracy"]
  [0.8333333333333334]
  """
  return {
    name: [_SCORE[name](table) for table in tables]
    for name in _SCORES.get(task, ("accuracy",))
  }


def _bleu_of(grams: np.ndarray) -> float:
  right, total, lengths = np.split(
    grams.astype(np.int64), [_BLEU_ORDERS, 2 * _BLEU_ORDERS]
  )
  compute = _sacrebleu().BLEU.compute_bleu
  counts = right.tolist(), total.tolist(), *lengths.tolist()
  return compute(*counts, smooth_method="exp").score


def _sacrebleu() -> Any:
  """The module `sacrebleu`.

  Raises:
    ValueError: If it is not installed.
  """
  try:
    import sacrebleu
  except ImportError as error:
    raise ValueError(
      "scoring translations needs sacrebleu: pip install 'figs_jax[text]'"
    ) from error
  return sacrebleu
