"""The words of rules for a model class without `words` of its own.

The table has the layer names of Flax, timm, Hugging Face and T5. For other
names set a class attribute `words`, or write path regexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from figs_jax.core.rules import word_table

_ANY = r"(?:.*/)?"
_ATTENTION = r"(?:\w*att\w*|\w*_?sa|mha|mixer)"
_FF_BLOCKS = r"(?:mlp\w*|ffn?\w*|feed_?forward\w*|DenseReluDense|intermediate)"
_FF_LAYERS = (
  r"(?:fc_?\d|wi(?:_\d)?|w[123]|linear_?[12]|dense_?[12]"
  r"|lin[12]|(?:up|down|gate)_proj|c_fc)"
)


def _leaf(names: str) -> str:
  return rf"{_ANY}(?:{names})/kernel"


def foreign_words(convolutions: Iterable[str] = ()) -> dict[str, str]:
  """Word -> path regex for common layer names.

  Args:
    convolutions: Kernel paths of the convolution layers, for the word `conv`.

  >>> import re
  >>> bool(re.fullmatch(foreign_words()["q"], "layers/3/attn/q_proj/kernel"))
  True
  """
  words = {
    "ff": (
      rf"{_ANY}{_FF_BLOCKS}/(?:.*/)?kernel|{_leaf(_FF_LAYERS)}"
      # `wo` ends the feed-forward block of T5, but the attention elsewhere.
      rf"|(?!{_ANY}{_ATTENTION}/){_leaf('wo')}"
    ),
    "q": _leaf(r"q|query|q_proj|query_proj|wq|to_q|linear_q"),
    "k": _leaf(r"k|key|k_proj|key_proj|wk|to_k|linear_k"),
    "v": _leaf(r"v|value|v_proj|value_proj|wv|to_v|linear_v"),
    "o": (
      rf"{_leaf(r'o|o_proj|out_proj|to_out|linear_out')}"
      rf"|{_ANY}(?:{_ATTENTION}/)?out/kernel"
      rf"|{_ANY}{_ATTENTION}/(?:.*/)?(?:wo|proj|c_proj|dense)/kernel"
    ),
    "embed": rf"{_ANY}\w*embed\w*/(?:.*/)?kernel",
    "head": _leaf(r"\w*head|classifier|lm_head|logits|fc"),
  }
  paths = "|".join(map(re.escape, convolutions))
  if paths:
    words["conv"] = paths
  return word_table(**words)
