"""GLUE's scores and BLEU against the formulas and against the texts."""

import builtins
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu
from flax import nnx
from sklearn import metrics

from figs_jax.data.vocabulary import byte_vocabulary
from figs_jax.models import decode
from figs_jax.train import text_scores
from figs_jax.train._evaluate import Evaluator
from figs_jax.train.config import default_config
from figs_jax.train.experiment import build
from figs_jax.train.metrics import kept, per_example
from figs_jax.train.text_scores import Bleu, ExactMatch, GlueScore

pytestmark = pytest.mark.standard_promotion

LABELS = {
  "cola": ("unacceptable", "acceptable"),
  "mrpc": ("not_equivalent", "equivalent"),
  "stsb": tuple(f"{i / 10:.1f}" for i in range(51)),
  "mnli": ("entailment", "neutral", "contradiction"),
}
LENGTH = 16


def ids_of(texts, length=LENGTH):
  vocabulary = byte_vocabulary()
  rows = np.zeros((len(texts), length), np.int32)
  for row, text in zip(rows, texts):
    ids = [*vocabulary.encode(text), 1][:length]
    row[: len(ids)] = ids
  return rows


ANSWERS = {task: ids_of(labels) for task, labels in LABELS.items()}


@pytest.fixture
def decoded(monkeypatch):
  """Replaces decoding: a batch holds the texts that the model gives."""
  monkeypatch.setattr(
    text_scores, "_decoded", lambda model, batch, beams: batch["given"]
  )


class Model(nnx.Module):
  """A model whose outputs are in the batch, see `decoded`."""

  def __call__(self, inputs, targets):
    return jnp.zeros((*targets.shape, 300))


def counted(measure, batch):
  return measure.count(measure.each(Model(), batch))


def tallied(measure, batches):
  """The sums of batches, as an evaluation makes them."""
  count = jax.jit(lambda batch: counted(measure, batch))
  sums = [measure.tally(jax.device_get(count(batch))) for batch in batches]
  return jax.tree.map(
    lambda *leaves: np.sum(leaves, axis=0, dtype=float), *sums
  )


def measured(measure, batches):
  return {k: float(v) for k, v in measure.values(tallied(measure, batches))}


def batches_of(examples, size=7):
  """Batches of (task number, given, wanted), the last one padded."""
  for at in range(0, len(examples), size):
    some = list(examples[at : at + size])
    padding = size - len(some)
    valid = np.arange(size) < len(some)
    some += [(0, "acceptable", "acceptable")] * padding
    number, given, wanted = zip(*some)
    yield {
      "inputs": np.ones((size, 4), np.int32),
      "targets": ids_of(wanted),
      "given": ids_of(given),
      "task": np.array(number, np.int32),
      "valid": valid,
    }


def test_scores_are_the_formulas_on_the_texts(decoded):
  rng = np.random.default_rng(3)
  examples = []
  for number, (task, labels) in enumerate(LABELS.items()):
    some = labels[::2] if task == "stsb" else labels
    for _ in range(40):
      wanted = rng.choice(some)
      given = wanted if rng.random() < 0.5 else rng.choice(labels)
      # Sometimes an answer of mrpc, which other tasks do not have.
      given = "equivalent" if rng.random() < 0.1 else given
      examples.append((number, str(given), str(wanted)))
  order = rng.permutation(len(examples))
  values = measured(
    GlueScore(ANSWERS), batches_of([examples[i] for i in order])
  )

  def classes(task):
    number, labels = list(LABELS).index(task), list(LABELS[task])
    rows = [(s, w) for n, s, w in examples if n == number]
    index = [[labels.index(x) if x in labels else -1 for x in r] for r in rows]
    return np.array(index, float).T

  given, wanted = classes("cola")
  # Of several classes (Gorodkin 2004), since -1 is a third one.
  right, total = (given == wanted).sum(), len(given)
  kinds = (-1, 0, 1)
  p = np.array([(given == k).sum() for k in kinds], float)
  t = np.array([(wanted == k).sum() for k in kinds], float)
  matthews = (right * total - p @ t) / np.sqrt(
    (total**2 - p @ p) * (total**2 - t @ t)
  )
  assert values["matthews/cola"] == pytest.approx(matthews)

  given, wanted = classes("mrpc")
  both = ((given == 1) & (wanted == 1)).sum()
  f1 = 2 * both / ((given == 1).sum() + (wanted == 1).sum())
  assert values["f1/mrpc"] == pytest.approx(f1)
  assert values["accuracy/mrpc"] == pytest.approx((given == wanted).mean())

  given, wanted = classes("stsb")
  assert (given == -1).any()
  given = np.where(given == -1, -10, given) / 10
  pearson = np.corrcoef(given, wanted)[0, 1]

  def ranks(x):
    return np.array([((x < v).sum() + (x <= v).sum() + 1) / 2 for v in x])

  spearman = np.corrcoef(ranks(given), ranks(wanted))[0, 1]
  assert values["pearson/stsb"] == pytest.approx(pearson)
  assert values["spearman/stsb"] == pytest.approx(spearman)

  given, wanted = classes("mnli")
  accuracy = (given == wanted).mean()
  assert values["accuracy/mnli"] == pytest.approx(accuracy)
  each = [
    matthews,
    (f1 + values["accuracy/mrpc"]) / 2,
    (pearson + spearman) / 2,
    accuracy,
  ]
  assert values["glue_score"] == pytest.approx(np.mean(each))


def test_a_task_without_examples_does_not_count(decoded):
  examples = [(3, "neutral", "neutral"), (3, "neutral", "entailment")]
  values = measured(GlueScore(ANSWERS), batches_of(examples))
  assert values["glue_score"] == values["accuracy/mnli"] == 0.5
  assert not [name for name in values if "cola" in name]


def test_a_correlation_with_a_constant_is_zero(decoded):
  examples = [
    *[(2, "3.0", wanted) for wanted in ("1.0", "3.0", "5.0")],
    *[(0, "acceptable", wanted) for wanted in LABELS["cola"]],
  ]
  values = measured(GlueScore(ANSWERS), batches_of(examples))
  assert values["pearson/stsb"] == values["spearman/stsb"] == 0
  assert values["matthews/cola"] == values["glue_score"] == 0
  assert values["accuracy/stsb"] == pytest.approx(1 / 3)


def test_scores_of_tables_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  for most in (1, 5, 10**6):
    table = rng.integers(0, most, (3, 2), endpoint=True)
    # Row 2 stands for all other texts, which are -1 for scikit-learn.
    given, wanted = np.indices(table.shape).reshape(2, -1)
    given = np.where(given == 2, -1, given)
    times = {"sample_weight": table.ravel()}
    matthews = metrics.matthews_corrcoef(wanted, given, **times)
    f1 = metrics.f1_score(wanted == 1, given == 1, zero_division=0, **times)
    assert text_scores._matthews(table) == pytest.approx(matthews)
    assert text_scores._f1(table) == pytest.approx(f1)
  assert text_scores._f1(np.array([[7, 0], [0, 0], [1, 0]])) == 0


def test_exact_matches_are_shares_of_all_texts(decoded):
  pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "bb"), ("c", "c")]
  values = measured(ExactMatch(), batches_of([(0, *pair) for pair in pairs]))
  assert values["accuracy"] == pytest.approx(3 / 5)
  assert sorted(values) == ["accuracy", "loss"]


GIVEN = [
  "the cat sat on the mat .",
  "a dog , which barks !",
  "",
  "It is 3.5 metres long, no?",
  "nothing in common here",
]
WANTED = [
  "the cat is on the mat .",
  "a dog, which barks!",
  "empty",
  "It is 3.5 meters long, isn't it?",
  "something else over there",
]


# The last two have no four words in a row in common: they are smoothed.
@pytest.mark.parametrize("first", [0, 3])
def test_bleu_is_that_of_all_texts_at_once(decoded, first):
  length = 40
  batches = []
  for at in range(first, 6, 2):
    given, wanted = GIVEN[at : at + 2], WANTED[at : at + 2]
    padding = [""] * (2 - len(given))
    batches.append(
      {
        "inputs": np.ones((2, 4), np.int32),
        "targets": ids_of(wanted + padding, length),
        "given": ids_of(given + padding, length),
        "task": np.zeros(2, np.int32),
        "valid": np.arange(2) < len(given),
      }
    )
  values = measured(Bleu(byte_vocabulary().decode), batches)
  expected = sacrebleu.corpus_bleu(GIVEN[first:], [WANTED[first:]]).score
  assert values["bleu"] == pytest.approx(expected) and 3 < expected < 60
  assert values["accuracy"] == 0


def test_seeds_are_scored_one_by_one(decoded):
  """Counts have a leading seed axis; the batch has none."""
  given = np.stack([ids_of(GIVEN, 40), ids_of(WANTED, 40)])
  targets, valid = ids_of(WANTED, 40), np.ones(5, bool)
  measure = Bleu(byte_vocabulary().decode)

  def count(given):
    return counted(
      measure,
      {
        "inputs": np.ones((5, 4), np.int32),
        "targets": targets,
        "given": given,
        "task": np.zeros(5, np.int32),
        "valid": valid,
      },
    )

  sums = measure.tally(jax.device_get(jax.vmap(count)(given)))
  values = dict(measure.values(sums))
  expected = sacrebleu.corpus_bleu(GIVEN, [WANTED]).score
  np.testing.assert_allclose(values["bleu"], [expected, 100])
  np.testing.assert_allclose(values["accuracy"], [0, 1])
  sums["losses"] = np.array([np.nan, 1.0])
  values = dict(measure.values(sums))
  np.testing.assert_array_equal(np.isnan(values["bleu"]), [True, False])


def test_a_diverged_seed_has_no_score(decoded):
  (batch,) = batches_of([(3, "neutral", "neutral")] * 3)
  measure = GlueScore(ANSWERS)
  sums = jax.tree.map(lambda x: np.stack([x, x]), tallied(measure, [batch]))
  sums["losses"] = np.array([2.0, np.nan])
  values = dict(measure.values(sums))
  for name in ("accuracy", "glue_score", "accuracy/mnli"):
    np.testing.assert_array_equal(values[name], [1.0, np.nan])


@pytest.fixture
def small():
  config = default_config("dense", "t5")
  config.variant = "custom"
  config.model.update({"width": 8, "depth": 1, "heads": 2, "head_dim": 4})
  config.data.update({"name": "glue", "input_length": 16})
  config.data.target_length = 4
  return config


@pytest.mark.parametrize("beams", [1, 3])
def test_tasks_are_decoded_by_the_model(small, tmp_path, beams):
  small.data.data_dir = str(tmp_path)
  small.data.beams = beams
  experiment = build(small)
  measure = experiment.task.measure
  assert list(measure.answers)[:2] == ["cola", "sst2"]
  assert len(measure.answers) == 8 and measure.beams == beams
  state = experiment.state()
  rng = np.random.default_rng(0)
  inputs = rng.integers(3, 200, (12, 16)).astype(np.int32)
  model = state.finished()
  given = decode.greedy(model, inputs, 4)
  if beams > 1:
    given = decode.beam_search(model, inputs, beams, 4)[0]
  targets = np.asarray(given).copy()
  # Of cola 4 of 6 are right, of sst2 1 of 4; two examples are padding.
  task = np.array([0] * 6 + [1] * 4 + [0, 1], np.int32)
  for wrong in (0, 3, 6, 7, 8):
    targets[wrong, 3] += 1
  valid = np.arange(12) < 10
  batch = {"inputs": inputs, "targets": targets, "task": task, "valid": valid}
  # All targets are answers here, so that each belongs to a class.
  answers = dict.fromkeys(measure.answers, np.unique(targets, axis=0))
  measure = dataclasses.replace(measure, answers=answers)
  values = dict(Evaluator(measure, [batch] * 2, has_seeds=False).run(state))
  assert values.keys() == {
    "accuracy", "loss", "accuracy/cola", "accuracy/sst2", "matthews/cola",
    "glue_score",
  }  # fmt: skip
  assert values["accuracy/cola"] == pytest.approx(4 / 6)
  assert values["accuracy/sst2"] == pytest.approx(1 / 4)
  assert values["accuracy"] == pytest.approx((4 / 6 + 1 / 4) / 2)


def test_answers_that_are_cut_to_the_same_are_refused(small, tmp_path):
  small.data.data_dir = str(tmp_path)
  small.data.target_length = 3
  message = (
    "target_length=3 cannot distinguish the answers of stsb; set it to 4"
  )
  with pytest.raises(ValueError, match=message):
    _ = build(small).task.measure


def test_translations_need_sacrebleu(monkeypatch):
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name == "sacrebleu":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ValueError, match=r"pip install 'figs_jax\[text\]'"):
    Bleu(byte_vocabulary().decode)


def test_examples_of_text_from_text(decoded):
  pairs = [("neutral", "neutral"), ("entailment", "neutral")] * 4
  data = list(batches_of([(3, *pair) for pair in pairs]))
  measure = GlueScore(ANSWERS)
  each_of = jax.jit(lambda batch: measure.each(Model(), batch))
  values = [each_of(batch) for batch in data]
  rows = [{k: np.asarray(v)[None] for k, v in kept(x).items()} for x in values]
  each = per_example(
    {k: np.concatenate([row[k] for row in rows], axis=1) for k in rows[0]}
  )
  # All logits are 0: each of the tokens, "neutral" and an end, costs ln 300.
  assert each["correct"].tolist() == [[True, False] * 4]
  np.testing.assert_allclose(each["loss"], np.full((1, 8), np.log(300)))
  assert each["weight"].tolist() == 8 * [8.0]
  sums = tallied(measure, data)
  assert sums["hits"].tolist() == [0, 0, 0, 4] and sums["tokens"] == 64
