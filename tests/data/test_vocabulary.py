"""Ids give back the text, and count its bytes."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.data import stdlib_text
from figs_jax.data.vocabulary import (
  EOS,
  PAD,
  Bytes,
  SentencePiece,
  Vocabulary,
  byte_vocabulary,
  piece_vocabulary,
  train_pieces,
)

CORPUS = [text for _, text in list(stdlib_text.documents().items())[:6]]


@pytest.fixture(scope="session")
def pieces(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("sp") / "deep" / "small.model")
  train_pieces(CORPUS, 400, path)
  return piece_vocabulary(path)


# Python strings without lone surrogates, which are not text.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(deadline=None)
@given(TEXT)
def test_bytes_give_back_any_text(text):
  vocabulary = byte_vocabulary()
  ids = vocabulary.encode(text)
  assert ids.dtype == np.int32
  assert (ids - 3).tolist() == list(text.encode())
  padded = [*ids.tolist(), EOS, PAD, 77]
  assert vocabulary.decode(padded) == text
  assert vocabulary.byte_lengths()[ids].sum() == len(text.encode())


@settings(deadline=None)
@given(TEXT.map(lambda text: text.replace("\u2581", "").replace("\0", "")))
def test_pieces_give_back_any_text(pieces, text):
  ids = pieces.encode(text)
  assert pieces.decode([*ids.tolist(), EOS, 77]) == text
  assert pieces.byte_lengths()[ids].sum() == len(text.encode())
  assert not len(ids) or 2 < ids.min() <= ids.max() < pieces.codec.size


def test_pieces_are_shorter_than_bytes(pieces):
  for text in CORPUS:
    assert pieces.decode(pieces.encode(text)) == text
  lengths = [len(pieces.encode(text)) for text in CORPUS]
  assert sum(lengths) < 0.7 * sum(len(text.encode()) for text in CORPUS)


def test_sentinels_are_the_last_ids(pieces):
  for vocabulary, size, count in (
    (byte_vocabulary(), 384, 125),
    (pieces, 500, 100),
  ):
    assert (vocabulary.size, vocabulary.sentinels) == (size, count)
    assert vocabulary.sentinel(0) == size - 1
    assert vocabulary.sentinel(count - 1) == vocabulary.codec.size
    with pytest.raises(ValueError, match=f"below {count}, got {count}"):
      vocabulary.sentinel(count)
    ids = [vocabulary.sentinel(1), *vocabulary.encode("ab").tolist(), EOS]
    assert vocabulary.decode(ids) == "<extra_id_1>ab"
    lengths = vocabulary.byte_lengths()
    assert lengths.shape == (size,)
    assert not lengths[[PAD, EOS, *range(size - count, size)]].any()


def test_broken_bytes_are_shown_as_such():
  vocabulary = Vocabulary(Bytes(), 1)
  assert vocabulary.decode([3 + 0xC3, 3 + 0x41]) == "\ufffdA"


def test_training_is_deterministic_and_done_once(pieces, tmp_path):
  path = tmp_path / "again.model"
  train_pieces(CORPUS, 400, str(path))
  again = piece_vocabulary(str(path))
  for text in CORPUS:
    np.testing.assert_array_equal(again.encode(text), pieces.encode(text))
  before = path.stat().st_mtime_ns
  train_pieces(["something else"], 300, str(path))
  assert path.stat().st_mtime_ns == before
  assert [p.name for p in tmp_path.iterdir()] == ["again.model"]


def test_vocabularies_travel_to_worker_processes(pieces):
  again = pickle.loads(pickle.dumps(pieces))
  np.testing.assert_array_equal(again.encode("def f"), pieces.encode("def f"))


def test_mistakes_are_one_line(tmp_path, pieces):
  wrong = tmp_path / "wrong.model"
  wrong.write_bytes(b"nothing of the kind")
  foreign = tmp_path / "foreign.model"
  import sentencepiece

  sentencepiece.SentencePieceTrainer.Train(
    sentence_iterator=iter(CORPUS[0].split("\n")),
    model_prefix=str(tmp_path / "foreign"),
    vocab_size=100,
    model_type="char",
    hard_vocab_limit=False,
    minloglevel=2,
  )
  for call, message in (
    (lambda: piece_vocabulary(str(wrong)), "not a sentencepiece model"),
    (lambda: piece_vocabulary(str(foreign)), r"ids \(0, 1, 2\), got"),
    (lambda: piece_vocabulary("no.model"), "'no.model': No such file"),
    (
      lambda: train_pieces(["ab"], 5000, str(tmp_path / "x")),
      "vocabulary of 5000: Vocabulary size",
    ),
  ):
    with pytest.raises(ValueError, match=message) as error:
      call()
    assert "\n" not in str(error.value)
  assert not (tmp_path / "x").exists()


def test_without_sentencepiece_bytes_work(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
  assert len(byte_vocabulary().encode("abc")) == 3
  with pytest.raises(ValueError, match=r"figs_jax\[text\].*'bytes'"):
    SentencePiece(b"")
