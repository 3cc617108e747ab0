"""Names of T5's parameters in published files, and keys of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from figs_jax.models import stack
from figs_jax.models.pretrained.files import PretrainedError, Tensor
from figs_jax.models.pretrained.keys import (
  COUNT,
  FLAG,
  NUMBER,
  Fields,
  Fixed,
  Follows,
  Form,
  Given,
  Key,
  Table,
  words,
)
from figs_jax.models.pretrained.names import (
  Dialect,
  Fix,
  Row,
  is_copy_of,
  under,
)
from figs_jax.models.t5 import EOS, PAD

_STACKS = ("encoder", "decoder")
_SHARED = "shared.weight"


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
  return tuple(
    ("dense", f"{theirs}.{part}", f"{ours}/{part}") for part in "qkvo"
  )


def _mlp(theirs: str) -> tuple[Row, ...]:
  return tuple(
    ("dense", f"{theirs}.DenseReluDense.{part}", f"mlp/{part}")
    for part in ("wi", "wi_0", "wi_1", "wo")
  )


def _bias(stack: str) -> Row:
  """The table of a stack, which files store in its first block."""
  name = "block.0.layer.0.SelfAttention.relative_attention_bias"
  return "embed", f"{stack}.{name}", f"{stack}/position_bias"


_is_shared = is_copy_of(_SHARED, *(f"{x}.embed_tokens.weight" for x in _STACKS))
_HUGGING_FACE = Dialect(
  "Hugging Face",
  (
    ("embed", "shared", "shared"),
    _bias("encoder"),
    *under(
      "encoder.block.{i}.layer.",
      "encoder/blocks/{i}/",
      ("norm", "0.layer_norm", "attn_norm"),
      *_attention("0.SelfAttention", "attn"),
      ("norm", "1.layer_norm", "mlp_norm"),
      *_mlp("1"),
    ),
    ("norm", "encoder.final_layer_norm", "encoder/norm"),
    _bias("decoder"),
    *under(
      "decoder.block.{i}.layer.",
      "decoder/blocks/{i}/",
      ("norm", "0.layer_norm", "attn_norm"),
      *_attention("0.SelfAttention", "attn"),
      ("norm", "1.layer_norm", "cross_norm"),
      *_attention("1.EncDecAttention", "cross"),
      ("norm", "2.layer_norm", "mlp_norm"),
      *_mlp("2"),
    ),
    ("norm", "decoder.final_layer_norm", "decoder/norm"),
    ("dense", "lm_head", "head"),
  ),
  # torch's `save_model` keeps one name of a shared tensor, the first.
  aliases=((_SHARED, tuple(f"{x}.embed_tokens.weight" for x in _STACKS)),),
  fixes=(
    Fix("^head/", file_lacks={"tied": True}),
    Fix("mlp/wi_", {"gated": False}, {"gated": True}),
    Fix("mlp/wi/", {"gated": True}, {"gated": False}),
    Fix("^shared/embedding", *({"vocab": ...},) * 3),
  ),
  duplicates=(
    (r"(?:en|de)coder\.embed_tokens\.weight", _is_shared),
    # Only in tied models; otherwise it is a parameter.
    (r"lm_head\.weight", _is_shared),
    # In the first published files; cross-attention has no position bias.
    (
      r"decoder\.block\.0\.layer\.1\.EncDecAttention"
      r"\.relative_attention_bias\.weight",
      None,
    ),
  ),
  hint=lambda wording: (
    f"it differs from shared.weight; set {wording(tied=False)} for an untied"
    " head"
  ),
)

DIALECTS = (_HUGGING_FACE,)


def _tied(
  fields: Fields, options: Mapping[str, Given], tensors: Mapping[str, Tensor]
) -> dict[str, Given]:
  """Whether the head is the embedding, which the tensors say.

  transformers 5 ties a head unless the file has another one, whatever
  `tie_word_embeddings` says; transformers 4 does what it says. The scale of the
  logits is that of both, or the file is refused.

  Raises:
    PretrainedError: If the two compute different functions.
  """
  name = "lm_head.weight"
  tied = name not in tensors or _is_shared(None, tensors, name)
  says_tied = fields.get("tie_word_embeddings")
  scale = "scale_decoder_outputs"
  if fields.get("model_type") == "mt5":
    if options["scaled"].value:
      raise PretrainedError(f"{scale}: expected false in an MT5, got true")
    major = str(fields.get("transformers_version", "")).partition(".")[0]
    is_new = major.isdecimal() and int(major) >= 5
    if says_tied and not is_new:
      raise PretrainedError(
        "tie_word_embeddings: expected false, got true in an MT5 of"
        " transformers 4, which scales its logits, unlike transformers 5; set"
        " it to false for logits without a scale"
      )
  elif not tied and says_tied is not False and scale not in fields:
    raise PretrainedError(
      f"tie_word_embeddings: expected false, since {name} is not"
      f" shared.weight; set it, or {scale} as transformers 5 does"
    )
  return {"tied": options["tied"]._replace(value=tied)}


def _is_scaled(fields: Fields) -> bool:
  """Whether logits are scaled, in files of transformers 4, which do not say."""
  return fields.get("tie_word_embeddings") is not False


def _dense_act(fields: Fields) -> str:
  """The activation that the library derives; "gelu" is its tanh form."""
  word = fields["feed_forward_proj"].removeprefix("gated-")
  return "gelu_new" if word == "gelu" else word


_PROJ = ("relu", "gated-gelu", "gated-gelu_new", "relu2", "gated-relu2")


def _of_proj(value: Callable[[str], bool]) -> Form:
  """A Boolean that the word for the feed-forward layers stands for."""
  return words({word: value(word) for word in _PROJ})


def _proj(model: Any) -> str:
  if model.relu2:
    return "gated-relu2" if model.gated else "relu2"
  return "gated-gelu" if model.gated else "relu"


def _dropout(model: Any) -> float:
  ((_, block, _), *_) = stack.named("blocks", model.encoder.blocks)
  return float(block.dropout.rate)


CONFIG = Table(
  architecture="T5ForConditionalGeneration",
  types={
    "t5": {},
    "mt5": {
      "vocab_size": 250112,
      "d_ff": 1024,
      "num_layers": 8,
      "num_decoder_layers": lambda fields: fields.get("num_layers", 8),
      "num_heads": 6,
      "feed_forward_proj": "gated-gelu",
      "tie_word_embeddings": False,
      "scale_decoder_outputs": False,
    },
  },
  keys=(
    Key("vocab_size", "vocab", 32128, COUNT),
    Key("d_model", "width", 512, COUNT),
    Key("d_kv", "head_dim", 64, COUNT),
    Key("d_ff", "mlp_dim", 2048, COUNT),
    Key("num_layers", "depth", 6, COUNT),
    Key(
      "num_decoder_layers",
      "decoder_depth",
      lambda fields: fields.get("num_layers", 6),
      COUNT,
    ),
    Key("num_heads", "heads", 8, COUNT),
    Key("relative_attention_num_buckets", "num_buckets", 32, COUNT),
    Key("relative_attention_max_distance", "max_distance", 128, COUNT),
    Key(
      "feed_forward_proj",
      "gated",
      "relu",
      _of_proj(lambda word: word.startswith("gated-")),
    ),
    Key(
      "feed_forward_proj",
      "relu2",
      "relu",
      _of_proj(lambda word: word.endswith("relu2")),
      _proj,
    ),
    Key("tie_word_embeddings", "tied", lambda fields: True, FLAG),
    Key("scale_decoder_outputs", "scaled", _is_scaled, FLAG),
    Key("dropout_rate", "dropout", 0.1, NUMBER, _dropout, trains=True),
  ),
  fixed=(
    Fixed("layer_norm_epsilon", 1e-6),
    Fixed("is_encoder_decoder", True),
    Fixed("is_decoder", False),
    Fixed("tie_encoder_decoder", False),
    Fixed("pad_token_id", PAD),
    Fixed("eos_token_id", EOS, ([EOS],)),
    Fixed("decoder_start_token_id", PAD, (None,)),
  ),
  follows=(
    Follows("dense_act_fn", _dense_act),
    Follows(
      "is_gated_act",
      lambda fields: fields["feed_forward_proj"].startswith("gated-"),
    ),
  ),
  # Of models with a classifier, and of old files.
  harmless=("classifier_dropout", "n_positions", "num_labels"),
  more=_tied,
)
