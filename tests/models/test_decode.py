"""Decoding: the best of all sequences, one by one, and without a cache."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.models import decode
from figs_jax.models.decode import EOS
from tests.compilations import compilations

from . import families

VOCAB, LENGTH = 5, 4
VARIANTS = [(1.0, False), (-0.7, False), (2.0, True), (2.0, "never")]


class Markov(nnx.Module):
  """The next id's scores depend on the row's input, the place and the last."""

  vocab = VOCAB

  def __init__(self, seed=0, ends=0.0):
    table = jax.random.normal(jax.random.key(seed), (3, LENGTH, VOCAB, VOCAB))
    table = jax.nn.log_softmax(2 * table.at[..., EOS].add(ends))
    self.table = nnx.Param(table)

  def ids(self, name, ids):
    return jnp.asarray(ids)

  def start(self, inputs, max_length, beams, mask):
    first = jnp.zeros(len(inputs), jnp.int32)
    return first, Rows(jnp.repeat(inputs[:, 0], beams))

  def step(self, cache, tokens, place):
    jax.debug.callback(lambda place: TAKEN.append(int(place)), place)
    return self.table[...][cache.inputs, place, tokens], cache


class Rows(NamedTuple):
  inputs: jax.Array

  def take(self, rows):
    return Rows(self.inputs[rows])


TAKEN = []
"""Places that were computed."""


def step_by_step(scores, beams, length, penalty=1.0, early=False):
  """(ids, score): the search for one row, with lists; scores of a prefix."""
  running, ended = [(0.0, ())], []
  for count in range(1, length + 1):
    best = sorted(
      (
        (total + float(each), (*ids, token))
        for total, ids in running
        for token, each in enumerate(scores(ids))
      ),
      reverse=True,
    )[: 2 * beams]
    ends = [ids[-1] == EOS or count == length for _, ids in best]
    full = len(ended) == beams
    if not (full and early is True):
      ended += [
        (total / count**penalty, ids)
        for (total, ids), end in list(zip(best, ends))[:beams]
        if end
      ]
      ended = sorted(ended, reverse=True)[:beams]
    running = [each for each, end in zip(best, ends) if not end][:beams]
    if not running or (len(ended) == beams and early is True):
      break
    long = length if early == "never" and penalty > 0 else count
    if len(ended) == beams and running[0][0] / long**penalty <= ended[-1][0]:
      break
  return ended[0][1], ended[0][0]


def padded(ids, length=LENGTH):
  return [*ids, *[0] * (length - len(ids))]


def prefix_scores(model, row):
  table = np.asarray(model.table[...][row])
  return lambda ids: table[len(ids), ids[-1] if ids else 0]


def test_enough_beams_find_the_best_of_all_sequences():
  model = Markov()
  for penalty in (0.0, 1.5, -1.0):
    tokens, scores = decode.beam_search(
      model, np.arange(3)[:, None], 70, LENGTH, penalty, "never"
    )
    for row in range(3):
      best = (-np.inf, ())
      following = prefix_scores(model, row)
      for ids in itertools.product(range(VOCAB), repeat=LENGTH):
        if EOS in ids:
          ids = ids[: ids.index(EOS) + 1]
        total = sum(following(ids[:i])[token] for i, token in enumerate(ids))
        best = max(best, (total / len(ids) ** penalty, ids))
      np.testing.assert_allclose(scores[row], best[0], rtol=1e-5)
      assert tokens[row].tolist() == padded(best[1])


@pytest.mark.parametrize(("penalty", "early"), VARIANTS)
def test_beams_follow_the_search_with_lists(penalty, early):
  for beams in (1, 3):
    for seed in range(4):
      model = Markov(seed, ends=seed / 3)
      tokens, scores = decode.beam_search(
        model, np.arange(3)[:, None], beams, LENGTH, penalty, early
      )
      for row in range(3):
        following = prefix_scores(model, row)
        want = step_by_step(following, beams, LENGTH, penalty, early)
        assert tokens[row].tolist() == padded(want[0])
        np.testing.assert_allclose(scores[row], want[1], rtol=1e-5)


def test_one_beam_that_stops_early_is_greedy():
  ended = 0
  for seed in range(4):
    model = Markov(seed, ends=0.5)
    inputs = np.arange(3)[:, None]
    tokens = decode.greedy(model, inputs, LENGTH)
    stops = np.bool_(True) if seed % 2 else True
    again, _ = decode.beam_search(model, inputs, 1, LENGTH, 0.0, stops)
    np.testing.assert_array_equal(tokens, again)
    for row in np.asarray(tokens).tolist():
      ended += EOS in row
      assert EOS not in row or not any(row[row.index(EOS) + 1 :])
  assert 0 < ended < 12


def test_a_head_that_is_transposed_once_changes_nothing():
  """It is from 20 steps and two rows on; no token ends a sequence here."""
  options = {"t5": {"tied": True, "scan": True}, "gpt2": {"length": 32}}
  for family, given in options.items():
    model = families.create(family, **given)
    inputs = np.asarray(families.TINY[family].args(2)[0])[:, :2]
    short, long = (
      np.asarray(decode.greedy(model, inputs, steps, eos=99))
      for steps in (19, 20)
    )
    np.testing.assert_array_equal(short, long[:, :19])
    heads = [
      model.start(inputs[:rows], steps)[1].head is not None
      for rows, steps in ((2, 19), (2, 20), (1, 20))
    ]
    assert heads == [False, True, False]


def test_the_loop_ends_when_every_row_has():
  for ends, steps in ((50.0, 1), (-50.0, LENGTH)):
    for search in (
      lambda *args: decode.greedy(*args, LENGTH),
      lambda *args: decode.beam_search(*args, 1, LENGTH, 1.0, True),
    ):
      TAKEN.clear()
      jax.block_until_ready(search(Markov(ends=ends), np.arange(3)[:, None]))
      jax.effects_barrier()
      assert sorted(TAKEN) == list(range(steps))


def test_a_second_call_compiles_nothing():
  model = Markov()
  decode._beam_search.clear_cache()
  with compilations("_beam_search") as compiled:
    decode.beam_search(model, np.zeros((2, 1), np.int32), 2, LENGTH)
    decode.beam_search(Markov(3), np.ones((2, 1), np.int32), 2, LENGTH, 0.3)
  assert len(compiled) == 1


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_the_cache_changes_nothing(scan):
  """A sparse T5 with dropout, against its own teacher forcing."""
  rngs, length = nnx.Rngs(params=3, dropout=1), 6
  model = models.create(
    "t5", "custom", width=8, depth=1, decoder_depth=2, heads=2, head_dim=4,
    vocab=12, tied=False, dropout=0.1, scan=scan, rngs=rngs,
  )  # fmt: skip
  model = nn.sparsify(model, "ff: 1:4, qk: 2:4")
  inputs = np.array([[5, 6, 7, 8, 1], [9, 3, 1, 0, 0]], np.int32)
  view = nnx.view(model, deterministic=True)
  graphdef, state = nnx.split(view)

  @jax.jit
  def forced(state, inputs, targets):
    return jax.nn.log_softmax(nnx.merge(graphdef, state)(inputs, targets))

  def following(row):
    def scores(ids):
      targets = np.array([padded(ids, length)], np.int32)
      return forced(state, inputs[row : row + 1], targets)[0, len(ids)]

    return scores

  tokens = decode.greedy(model, inputs, length)
  searched, scores = decode.beam_search(model, inputs, 3, length, 0.6)
  for row in range(2):
    want = step_by_step(following(row), 1, length, 0.0, True)
    assert tokens[row].tolist() == padded(want[0], length)
    want = step_by_step(following(row), 3, length, 0.6)
    assert searched[row].tolist() == padded(want[0], length)
    np.testing.assert_allclose(scores[row], want[1], rtol=1e-4)
  assert not np.array_equal(*searched)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"beams": 0}, "beams of 1 or more, got 0"),
    ({"max_length": 0}, "max_length of 1 or more, got 0"),
    ({"early_stopping": "always"}, "of False, True or 'never', got 'always'"),
    ({"early_stopping": 1}, "of False, True or 'never', got 1"),
  ],
)
def test_errors_say_what_and_the_fix(options, message, unchecked):
  options = {"beams": 2, "max_length": 3, **options}
  with pytest.raises(ValueError, match=message):
    decode.beam_search(Markov(), np.zeros((1, 1), np.int32), **options)


def test_ids_are_checked_before_the_search():
  sizes = {"width": 4, "depth": 1, "heads": 1, "vocab": 8}
  model = models.abstract("t5", "custom", **sizes)
  with pytest.raises(ValueError, match="with ids from 0 to 7, got 8"):
    decode.greedy(model, np.array([[8, 1]]), 3)
