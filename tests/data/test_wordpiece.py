"""WordPiece: ids of another library, its files, and files that are none."""

import json
import pickle

import pytest

from figs_jax.data.wordpiece import WordPiece, read_wordpiece

from . import wordpiece_oracle as oracle

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize("lower", [True, False])
def test_ids_are_those_of_the_library(lower):
  stored = json.loads(oracle.TARGET.read_text())
  vocabulary = WordPiece(oracle.PIECES, lower=lower)
  for text, want in zip(oracle.TEXTS, stored["uncased" if lower else "cased"]):
    assert vocabulary.encode(text).tolist() == want, text


def test_ids_are_those_of_the_library_now():
  pytest.importorskip("tokenizers", reason="needs tokenizers")
  for lower in (True, False):
    vocabulary = WordPiece(oracle.PIECES, lower=lower)
    got = [vocabulary.encode(text).tolist() for text in oracle.TEXTS]
    assert got == oracle.ids(lower)


def test_a_copy_in_another_process_is_the_same():
  vocabulary = WordPiece([*SPECIAL, "A", "b"], lower=False)
  copy = pickle.loads(pickle.dumps(vocabulary))
  assert (
    copy.encode("A b").tolist() == [5, 6] == vocabulary.encode("A b").tolist()
  )
  assert copy.ordinary().tolist() == [5, 6]


def json_of(pieces, lower=True, **changes):
  fields = {
    "model": {
      "type": "WordPiece",
      "vocab": {p: i for i, p in enumerate(pieces)},
    },
    "normalizer": {
      "type": "BertNormalizer",
      "clean_text": True,
      "handle_chinese_chars": True,
      "strip_accents": None,
      "lowercase": lower,
    },
  }
  return json.dumps(fields | changes)


@pytest.mark.parametrize("lower", [True, False])
def test_both_files_are_one_vocabulary(lower, tmp_path):
  pieces = [*SPECIAL, "a", "A"]
  (tmp_path / "vocab.txt").write_text("\r\n".join(pieces) + "\r\n")
  (tmp_path / "tokenizer.json").write_text(json_of(pieces, lower))
  config = json.dumps({"do_lower_case": lower})
  (tmp_path / "tokenizer_config.json").write_text(config)
  for name in ("vocab.txt", "tokenizer.json"):
    vocabulary = read_wordpiece(tmp_path / name)
    assert (vocabulary.size, vocabulary.lower) == (7, lower)
    assert vocabulary.encode("A").tolist() == [5 if lower else 6]


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("vocab.txt", "a\nb\n", r"expected the piece \[PAD\], got none"),
    ("vocab.txt", "\n".join(["a", *SPECIAL]), r"\[PAD\] as id 0, got 1"),
    ("vocab.bin", "", "expected vocab.txt or tokenizer.json"),
    ("none.txt", None, "No such file"),
    ("tokenizer.json", "{", "Expecting property name"),
    ("tokenizer.json", "{}", "'model'"),
    ("tokenizer.json", json_of(SPECIAL, model={"type": "BPE"}), "got BPE with"),
    (
      "tokenizer.json",
      json_of(SPECIAL, model={"vocab": dict.fromkeys(SPECIAL, 0)}),
      "each id from 0 once",
    ),
  ],
)
def test_other_files_are_refused_in_one_line(name, text, message, tmp_path):
  path = tmp_path / name
  if text is not None:
    path.write_text(text)
  with pytest.raises(ValueError, match=message) as error:
    read_wordpiece(path)
  assert str(error.value).startswith(f"vocabulary 'wordpiece:{path}': ")
  assert "\n" not in str(error.value)
