"""Masked tokens and labelled texts: the rule, rows, streams, and bad input."""

import json

import numpy as np
import pytest

from figs_jax.data import text, text_batches
from figs_jax.data.masked_text import (
  LabelledTexts,
  MaskedTokens,
  Special,
  find_masked_texts,
  joined,
  masked,
)
from figs_jax.data.sources import DataError
from figs_jax.data.vocabulary import byte_vocabulary

SPECIAL = Special.of(byte_vocabulary())
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day"]


def test_tokens_are_masked_as_the_paper_says():
  """15 % of them; of these 80 % masks, 10 % random and 10 % kept."""
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 259, 200).astype(np.int32)
  ids[50] = SPECIAL.end
  kinds, places = np.zeros(3), np.zeros(200)
  for _ in range(2000):
    inputs, targets = masked(ids, 0.15, rng, SPECIAL)
    chosen = targets != 0
    assert chosen.sum() == 30 and not chosen[50]
    np.testing.assert_array_equal(targets[chosen], ids[chosen])
    np.testing.assert_array_equal(inputs[~chosen], ids[~chosen])
    new = inputs[chosen]
    kinds += (
      (new == SPECIAL.mask).sum(),
      ((new != SPECIAL.mask) & (new != ids[chosen])).sum(),
      (new == ids[chosen]).sum(),
    )
    assert np.isin(new, [SPECIAL.mask, *SPECIAL.ordinary]).all()
    places += chosen
  # A random id is the old one once in 256 times.
  want = np.array([0.8, 0.1 * 255 / 256, 0.1 + 0.1 / 256])
  np.testing.assert_allclose(kinds / kinds.sum(), want, atol=0.006)
  rates = np.delete(places / 2000, 50)
  np.testing.assert_allclose(rates, 30 / 199, atol=0.04)


def test_a_short_text_has_one_masked_token():
  rng = np.random.default_rng(0)
  for ids in ([7], [7, SPECIAL.end]):
    _, targets = masked(np.array(ids, np.int32), 0.15, rng, SPECIAL)
    assert (targets != 0).sum() == 1
  # A row that is nothing but the end of a text has none to mask.
  _, targets = masked(np.array([SPECIAL.end], np.int32), 0.15, rng, SPECIAL)
  assert not targets.any()


@pytest.mark.parametrize("length", [5, 6, 7, 8, 20])
def test_pairs_are_cut_longest_first(length):
  first, second = np.arange(10, 16), np.arange(20, 23)
  ids, types = joined([first, second], length, SPECIAL)
  assert len(ids) == len(types) == min(length, 12)
  ends = np.flatnonzero(ids == SPECIAL.end)
  assert ids[0] == SPECIAL.begin and ends[-1] == len(ids) - 1
  sizes = [ends[0] - 1, ends[1] - ends[0] - 1]
  np.testing.assert_array_equal(ids[1 : ends[0]], first[: sizes[0]])
  np.testing.assert_array_equal(ids[ends[0] + 1 : -1], second[: sizes[1]])
  np.testing.assert_array_equal(
    types, [0] * (sizes[0] + 2) + [1] * (sizes[1] + 1)
  )
  # As many as fit, cut one by one from the longest: a brute force.
  want = [6, 3]
  while sum(want) > length - 3:
    want[0 if want[0] > want[1] else 1] -= 1
  assert sizes == want


@pytest.fixture
def table(tmp_path):
  """A table with labels, and the name of its data set."""
  rows = [
    {"text": f"{word} day" * (1 + i), "label": word}
    for i in range(5)
    for word in ("good", "bad")
  ]
  path = tmp_path / "mine.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  return tmp_path


def opened(table, name="mine.jsonl", **options):
  options = {
    "input_length": 8,
    "vocabulary": f"wordpiece:{table / 'vocab.txt'}",
    "data_dir": str(table / "tfds"),
  } | options
  return find_masked_texts(f"text:{table / name}", **options)


def test_labels_are_found_and_texts_are_cut(table):
  texts = opened(table)
  assert isinstance(texts, LabelledTexts) and texts.names == ("bad", "good")
  assert (texts.vocabulary.size, texts.task) == (8, "")
  batches = text_batches.eval_batches(texts, "test", 3)
  (batch,) = batches
  assert batch["valid"].tolist() == [True, True, False]
  assert sorted(batch["label"][:2].tolist()) == [0, 1]
  assert batch["inputs"].shape == batch["types"].shape == (3, 8)
  # "good day" five times, without a space before the next: [UNK] within.
  assert batch["inputs"][0, 0] == 2 and batch["inputs"][0, 7] == 3
  assert not batch["inputs"][2].any() and not batch["types"].any()


def test_the_same_table_gives_masked_rows(table):
  texts = opened(table, objective="masked")
  assert isinstance(texts, MaskedTokens)
  batch = next(iter(text_batches.eval_batches(texts, "train", 2)))
  assert set(batch) == {"inputs", "types", "targets", "valid"}
  assert (batch["inputs"][:, 0] == 2).all()
  assert ((batch["targets"] > 0).sum(1) == 1).all()  # of 6 tokens
  # A table of text alone needs no labels.
  (table / "plain.csv").write_text("text\n" + "good day\n" * 5)
  assert isinstance(opened(table, "plain.csv"), MaskedTokens)


@pytest.mark.parametrize("objective", ["masked", "labels"])
@pytest.mark.parametrize("seed", [3, [3, 4]])
def test_a_stream_goes_on_exactly(table, objective, seed):
  texts = opened(table, objective=objective)

  def stream(**options):
    return text_batches.train_batches(texts, "train", 2, seed=seed, **options)

  first = stream()
  batches = [next(first) for _ in range(7)]
  state = {"next_example": 8}
  again = stream()
  again.set_state(state)
  for want in batches[4:]:
    got = next(again)
    assert got.keys() == want.keys() and "valid" not in got
    for name, value in want.items():
      np.testing.assert_array_equal(got[name], value)
  # What a shard draws for an example does not depend on their number.
  parts = [stream(shard_index=i, num_shards=2) for i in range(2)]
  halves = [next(part)["inputs"] for part in parts]
  axis = 0 if isinstance(seed, int) else 1
  whole = np.concatenate([b["inputs"] for b in batches[:2]], axis)
  for index, half in enumerate(halves):
    rows = slice(2 * index, 2 * index + 2)
    np.testing.assert_array_equal(
      half, whole[rows] if axis == 0 else whole[:, rows]
    )
  # Seeds draw other masks and orders.
  if not isinstance(seed, int):
    assert any((b["inputs"][0] != b["inputs"][1]).any() for b in batches)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("plain.csv", {"objective": "labels"}, "texts with labels of classes"),
    ("pairs.csv", {"objective": "labels"}, "labels of classes, got target"),
    ("mine.jsonl", {"input_length": 4}, "input_length of 5 or more.*got 4"),
    ("mine.jsonl", {"vocabulary": "wordpiece:no.txt"}, "no.txt.*No such file"),
  ],
)
def test_what_does_not_fit_is_one_line(table, name, options, message):
  (table / "plain.csv").write_text("text\n" + "good day\n" * 5)
  (table / "pairs.csv").write_text("text,target\n" + "good,bad\n" * 5)
  with pytest.raises((DataError, ValueError), match=message) as error:
    opened(table, name, **options)
  assert "\n" not in str(error.value)


def test_other_families_refuse_wordpiece(table):
  with pytest.raises(ValueError, match="WordPiece is for the family bert"):
    text.find_texts(
      f"text:{table / 'mine.jsonl'}",
      input_length=8,
      vocabulary=f"wordpiece:{table / 'vocab.txt'}",
      data_dir=str(table / "tfds"),
    )
