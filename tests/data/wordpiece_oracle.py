"""WordPiece of another library: ids of texts with a small vocabulary.

As a script it writes fixtures/wordpiece.json, where tokenizers is installed:

  python tests/data/wordpiece_oracle.py

The file holds the pieces, and for each text its ids without special tokens, of
the uncased and of the cased vocabulary.
"""

import json
import pathlib

TARGET = pathlib.Path(__file__).parent / "fixtures" / "wordpiece.json"
PIECES = (
  "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz",
  *"ABDEGINT0123456789.,:;!?()[]-_$^`~&#@'\"", *(f"##{c}" for c in
  "abcdefghijklmnopqrstuvwxyz0123456789"), "the", "un", "##able", "##ing",
  "run", "##n", "größe", "große", "ß", "中", "文", "σ", "##σ", "ς", "i̇", "é",
  "e\u0301", "hello", "world", "©", "€", "##€", "—",
)  # fmt: skip
TEXTS = (
  "", " ", "Hello, world!", "The runners are running unable.",
  "Größe GROSSE ΣΣ ς ΟΔΟΣ", "naïve café CAFÉ e\u0301", "İstanbul İ",
  "中文 abc中文def 𠀀", "a\tb\nc\rd\u00a0e\u2028f\u3000g",
  "x\x00y\ufffdz\u200bw",
  "a\x0bb\x0cc\x85d", "5€ 3$ 4^2 `~` $=^ ©", "[MASK] [CLS]#hash @name",
  "don't-do_it... (ok?!) \u2014 \u201cquoted\u201d", "a" * 100, "a" * 101,
  "ab" * 60, "zzz\u0301\u0302", "𝓗ello 😀", "\u00ad soft\u00adhyphen",
)  # fmt: skip


def ids(lower: bool) -> list[list[int]]:
  """What the library gives."""
  # Imported late: the doctest collector imports every file under tests.
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

  vocab = {piece: i for i, piece in enumerate(PIECES)}
  model = models.WordPiece(
    vocab, unk_token="[UNK]", max_input_chars_per_word=100
  )
  tokenizer = Tokenizer(model)
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  return [tokenizer.encode(text).ids for text in TEXTS]


def main() -> None:
  stored = {"uncased": ids(lower=True), "cased": ids(lower=False)}
  TARGET.write_text(f"{json.dumps(stored, separators=(',', ':'))}\n")
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
