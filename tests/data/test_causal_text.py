"""Rows for a model that predicts the next token."""

from types import SimpleNamespace

import numpy as np
import pytest

from figs_jax.data.causal_text import CausalText, find_causal_text
from figs_jax.data.python_data import PythonData
from figs_jax.data.vocabulary import EOS, byte_vocabulary

CODEC = byte_vocabulary()


def documents(length):
  info = SimpleNamespace(features={"text": None})
  return CausalText((SimpleNamespace(info=info, name="x"),), CODEC, length)


def test_targets_of_a_segment_are_its_inputs_one_place_later(unchecked):
  row = np.arange(3, 9, dtype=np.int32)
  inputs, targets, _ = documents(5).pair(row, np.random.default_rng(0))
  assert inputs.tolist() == [3, 4, 5, 6, 7]
  assert targets.tolist() == [4, 5, 6, 7, 8]
  long = np.arange(3, 60, dtype=np.int32)  # a whole document: a part of it
  inputs, targets, _ = documents(5).pair(long, np.random.default_rng(0))
  assert (targets == inputs + 1).all() and len(inputs) == 5


@pytest.mark.parametrize("kind", ["label", "target"])
def test_of_a_pair_the_target_counts(kind):
  rows = [{"text": "so so", kind: "bad"}, {"text": "lovely", kind: "good"}] * 5
  texts = find_causal_text(PythonData((rows, rows[:2])), input_length=12)
  examples = texts.examples("test", ordered=True)
  assert len(examples) == 2
  inputs, targets, _ = texts.pair(examples[0], np.random.default_rng(0))
  prompt, answer = CODEC.encode("so so"), CODEC.encode("bad")
  row = [*prompt, EOS, *answer, EOS]
  assert inputs.tolist() == row[:-1]
  assert targets.tolist() == [0] * len(prompt) + [*answer, EOS]


def test_a_long_text_is_cut_and_the_target_kept():
  rows = [{"text": "a" * 50, "target": "yes"}] * 5
  texts = find_causal_text(PythonData((rows, rows)), input_length=8)
  example = texts.examples("train", ordered=True)[0]
  inputs, targets, _ = texts.pair(example, np.random.default_rng(0))
  assert len(inputs) == len(targets) == 8
  assert CODEC.decode(targets[targets != 0]) == "yes"
  assert CODEC.decode(inputs) == "aaaa"


def test_a_row_of_one_token_is_refused():
  with pytest.raises(ValueError, match="input_length of 2 or more, got 1"):
    find_causal_text("stdlib_text", input_length=1)
