"""Names of Llama's parameters in published files, and keys of its config."""

from __future__ import annotations

from typing import Any

from figs_jax.models.pretrained.files import PretrainedError
from figs_jax.models.pretrained.keys import (
  COUNT,
  FLAG,
  NUMBER,
  Fields,
  Fixed,
  Key,
  Table,
  attention_dropout,
  text,
  with_end,
  words,
)
from figs_jax.models.pretrained.names import Dialect, Fix, is_copy_of, under

_HUGGING_FACE = Dialect(
  "Hugging Face",
  (
    ("embed", "model.embed_tokens", "embed"),
    *under(
      "model.layers.{i}.",
      "blocks/{i}/",
      ("norm", "input_layernorm", "norm1"),
      *(("dense", f"self_attn.{x}_proj", f"attn/{x}") for x in "qkvo"),
      ("norm", "post_attention_layernorm", "norm2"),
      *(("dense", f"mlp.{x}_proj", f"mlp/{x}") for x in ("gate", "up", "down")),
    ),
    ("norm", "model.norm", "norm"),
    ("dense", "lm_head", "head"),
  ),
  fixes=(
    Fix("^head/", file_lacks={"tied": True}),
    Fix("^embed/embedding", *({"vocab": ...},) * 3),
  ),
  duplicates=(
    # Only in tied models; otherwise it is a parameter.
    (
      r"lm_head\.weight",
      is_copy_of("model.embed_tokens.weight", "embed_tokens.weight"),
    ),
    # The rates of rotary positions, in files of before 2024.
    (r"(?:model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", None),
  ),
  hint=lambda wording: (
    f"it differs from embed_tokens.weight; set {wording(tied=False)} for an"
    " untied head"
  ),
)

DIALECTS = (_HUGGING_FACE, _HUGGING_FACE.bare("model."))
# Key of the scaling of rotary positions -> (option, value without scaling).
_SCALING = {
  "factor": ("rope_factor", 1.0, NUMBER),
  "low_freq_factor": ("rope_low", 1.0, NUMBER),
  "high_freq_factor": ("rope_high", 4.0, NUMBER),
  "original_max_position_embeddings": ("rope_length", 8192, COUNT),
}
_NESTED = "rope_scaling."


def _flat(fields: Fields) -> Fields:
  """The fields with the entries of rope_scaling beside the others.

  transformers 4 has rope_theta and rope_scaling, version 5 rope_parameters.

  Raises:
    PretrainedError: If there are both, or positions are scaled in another way
      than those of Llama 3.
  """
  flat = dict(fields)
  names = [x for x in ("rope_parameters", "rope_scaling") if flat.get(x)]
  if len(names) == 2:
    raise PretrainedError(
      "rope_scaling: expected none beside rope_parameters, got"
      f" {text(flat['rope_scaling'])}; remove one of them"
    )
  scaling = flat[names[0]] if names else {}
  for name in ("rope_parameters", "rope_scaling"):
    flat.pop(name, None)
  if not isinstance(scaling, dict):
    raise PretrainedError(
      f"{names[0]}: expected a JSON object, got {text(scaling)}"
    )
  kind = scaling.get("rope_type", scaling.get("type", "default"))
  if "rope_theta" in scaling:
    flat["rope_theta"] = scaling["rope_theta"]
  named = ("rope_type", "type", "rope_theta")
  rest = {key: v for key, v in scaling.items() if key not in named}
  wanted = set(_SCALING) if kind == "llama3" else set()
  if kind not in ("default", "llama3") or rest.keys() != wanted:
    raise PretrainedError(
      f"{names[0]}: expected rope_type default, or llama3 with"
      f" {', '.join(_SCALING)}, got {text(scaling)}"
    )
  return flat | {f"{_NESTED}{key}": value for key, value in rest.items()}


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
  """The fields of a file, as transformers 4 and 5 read them."""
  scaling = {key: fields.pop(f"{_NESTED}{key}") for key in _SCALING}
  if scaling["factor"] != 1:
    fields["rope_scaling"] = {"rope_type": "llama3", **scaling}
  return fields


CONFIG = Table(
  architecture="LlamaForCausalLM",
  types={"llama": {}},
  keys=(
    Key("vocab_size", "vocab", 32000, COUNT),
    Key("max_position_embeddings", "length", 2048, COUNT),
    Key("hidden_size", "width", 4096, COUNT),
    Key("num_hidden_layers", "depth", 32, COUNT),
    Key("num_attention_heads", "heads", 32, COUNT),
    Key(
      "num_key_value_heads",
      "kv_heads",
      lambda fields: fields.get("num_attention_heads", 32),
      COUNT,
    ),
    Key(
      "head_dim",
      "head_dim",
      lambda fields: (
        fields.get("hidden_size", 4096) // fields.get("num_attention_heads", 32)
      ),
      COUNT,
    ),
    Key("intermediate_size", "mlp_dim", 11008, COUNT),
    Key("rms_norm_eps", "norm_epsilon", 1e-6, NUMBER),
    Key(
      "hidden_act",
      "relu2",
      "silu",
      words({"silu": False, "swish": False, "relu2": True}),
    ),
    Key("tie_word_embeddings", "tied", False, FLAG),
    Key("rope_theta", "rope_theta", 10000.0, NUMBER),
    *(Key(f"{_NESTED}{key}", *each) for key, each in _SCALING.items()),
    Key(
      "attention_dropout",
      "attention_dropout",
      0.0,
      NUMBER,
      attention_dropout,
      trains=True,
    ),
  ),
  fixed=(
    Fixed("attention_bias", False),
    Fixed("mlp_bias", False),
  ),
  # How products were split when it was trained.
  harmless=("pretraining_tp",),
  flat=_flat,
  nested=lambda fields: with_end(_nested(fields)),
)
