"""The words' table for models that do not bring their own."""

import re

import pytest

from figs_jax.nn.kernel_names import foreign_words

PATHS = {
  "ff": [
    "mlp/fc1/kernel",
    "blocks/0/mlp/fc2/kernel",
    "encoder/0/wi/kernel",
    "layer/ffn/lin1/kernel",
    "feed_forward/w1/kernel",
    "h/3/mlp/c_fc/kernel",
    "layers/0/feedforward/linear2/kernel",
    "decoder/1/DenseReluDense/wo/kernel",
    "layers/1/up_proj/kernel",
    "layers/2/linear1/kernel",
    "mlp/wo/kernel",
    "encoder/layers/0/wo/kernel",
  ],
  "q": ["query/kernel", "a/attn/q/kernel", "self_attn/q_proj/kernel"],
  "k": ["key/kernel", "layers/3/k_proj/kernel", "attention/wk/kernel"],
  "v": ["value/kernel", "attn/to_v/kernel"],
  "o": [
    "attention/out/kernel",
    "attn/o/kernel",
    "self_attn/out_proj/kernel",
    "attention/wo/kernel",
    "blocks/0/attn/proj/kernel",
    "out/kernel",
    "attention/output/dense/kernel",
  ],
  "embed": ["patch_embed/kernel", "embeddings/patch/kernel", "embed/kernel"],
  "head": ["head/kernel", "lm_head/kernel", "classifier/kernel"],
}


@pytest.mark.parametrize(
  ("word", "path"), [(word, path) for word in PATHS for path in PATHS[word]]
)
def test_a_path_belongs_to_one_word(word, path):
  table = foreign_words()
  matched = {w for w in PATHS if re.fullmatch(table[w], path)}
  assert matched == {word}


def test_unions_and_convolutions():
  table = foreign_words(["stem.0/kernel"])
  assert re.fullmatch(table["qk"], "a/key/kernel")
  assert re.fullmatch(table["qkv"], "a/value/kernel")
  assert re.fullmatch(table["conv"], "stem.0/kernel")
  assert not re.fullmatch(table["conv"], "stem_0/kernel")
  assert "conv" not in foreign_words()
