"""Names of GPT-2's parameters in published files, and keys of its config."""

from __future__ import annotations

from figs_jax.models.pretrained.keys import (
  COUNT,
  NUMBER,
  Fixed,
  Key,
  Table,
  attention_dropout,
  dropout,
  with_end,
  words,
)
from figs_jax.models.pretrained.names import Dialect, Fix, is_copy_of, under

_PREFIX = "transformer."
_HUGGING_FACE = Dialect(
  "Hugging Face",
  (
    ("embed", "transformer.wte", "embed"),
    ("embed", "transformer.wpe", "positions"),
    *under(
      "transformer.h.{i}.",
      "blocks/{i}/",
      ("norm", "ln_1", "norm1"),
      ("conv1d_fused", "attn.c_attn", ("attn/q", "attn/k", "attn/v")),
      ("conv1d", "attn.c_proj", "attn/o"),
      ("norm", "ln_2", "norm2"),
      ("conv1d", "mlp.c_fc", "mlp/fc1"),
      ("conv1d", "mlp.c_proj", "mlp/fc2"),
    ),
    ("norm", "transformer.ln_f", "norm"),
  ),
  fixes=(Fix("^embed/embedding", *({"vocab": ...},) * 3),),
  duplicates=(
    (
      r"lm_head\.weight",
      is_copy_of("transformer.wte.weight", "wte.weight"),
    ),
    # The causal mask and its value, in files of before 2023.
    (r"(?:transformer\.)?h\.\d+\.attn\.(?:masked_)?bias", None),
  ),
  hint=lambda wording: (
    "it differs from wte.weight, and the head of this family is the embedding"
  ),
)

DIALECTS = (_HUGGING_FACE, _HUGGING_FACE.bare(_PREFIX))


CONFIG = Table(
  architecture="GPT2LMHeadModel",
  types={"gpt2": {}},
  keys=(
    Key("vocab_size", "vocab", 50257, COUNT),
    Key("n_positions", "length", 1024, COUNT),
    Key("n_embd", "width", 768, COUNT),
    Key("n_layer", "depth", 12, COUNT),
    Key("n_head", "heads", 12, COUNT),
    Key(
      "n_inner",
      "mlp_dim",
      lambda fields: 4 * fields.get("n_embd", 768),
      COUNT,
    ),
    Key("layer_norm_epsilon", "norm_epsilon", 1e-5, NUMBER),
    Key(
      "activation_function",
      "relu2",
      "gelu_new",
      words({"gelu_new": False, "gelu_pytorch_tanh": False, "relu2": True}),
    ),
    Key("embd_pdrop", "dropout", 0.1, NUMBER, dropout, trains=True),
    Key("resid_pdrop", "dropout", 0.1, NUMBER, dropout, trains=True),
    Key(
      "attn_pdrop",
      "attention_dropout",
      0.1,
      NUMBER,
      attention_dropout,
      trains=True,
    ),
  ),
  fixed=(
    Fixed("scale_attn_weights", True),
    Fixed("scale_attn_by_inverse_layer_idx", False),
    Fixed("tie_word_embeddings", True),
    Fixed("add_cross_attention", False),
  ),
  nested=with_end,
  # Of a classifier; an order of operations; the old name of n_positions.
  harmless=(
    "n_ctx", "reorder_and_upcast_attn", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj",
  ),
)  # fmt: skip
