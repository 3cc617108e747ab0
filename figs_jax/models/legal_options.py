"""Legal values of the options of our models."""

from __future__ import annotations

from figs_jax.core.legal import (
  BELOW_ONE,
  DTYPES,
  Integer,
  Legal,
  Number,
  Several,
  Typed,
  Word,
)

# Legal values of the models' options; flags are True or False.
MODEL: dict[str, Legal] = {
  "width": Integer("[1, 65536]"),
  "depth": Integer("[1, 512]"),
  "decoder_depth": Integer("[1, 512]"),
  "depths": Several(Integer("[1, 512]"), 1, 6),
  "heads": Integer("[1, 4096]"),
  "kv_heads": Integer("[1, 4096]"),
  "length": Integer("[1, 1048576]"),
  "rope_theta": Number("(0, 1e12]"),
  "rope_factor": Number("[1, 4096]"),
  "rope_low": Number("(0, 1e6]"),
  "rope_high": Number("(0, 1e6]"),
  "rope_length": Integer("[1, 1048576]"),
  "head_dim": Integer("[1, 4096]"),
  "mlp_dim": Integer("[1, 1048576]"),
  "mlp_ratio": Number("(0, 64]"),
  "window": Integer("[1, 64]"),
  "pretrained_windows": Several(Integer("[0, 64]"), 0, 6),
  "num_buckets": Integer("[4, 4096]"),
  "max_distance": Integer("[3, 1048576]"),
  "dropout": BELOW_ONE,
  "attention_dropout": BELOW_ONE,
  "drop_path": BELOW_ONE,
  "norm_epsilon": Number("(0, 1]"),
  "pool": Word(("cls", "gap", "gap_norm", "cls_gap")),
  "pos": Word(("learned", "sincos")),
  "gelu": Word(("exact", "tanh")),
  "block": Word(("basic", "bottleneck")),
  "stem": Word(("imagenet", "cifar")),
  "shortcut": Word(("projection", "identity")),
  "norm_momentum": BELOW_ONE,
  "token_types": Integer("[1, 4096]"),
  "dtype": DTYPES,
  "remat_policy": Word(("block", "dots")),
  "scaled": Typed(bool),
  "in_channels": Integer("[1, 4096]"),
  "registers": Integer("[0, 1024]"),
  "distillation": Word(("none", "token", "heads")),
  "layer_scale": Number("[0, 1]"),
}
# Model options that decide how a model is computed, rather than what. All
# others are unset until a run begins; see `config.with_defaults`.
OF_COMPUTATION = ("scan", "remat", "remat_policy", "dtype")
# Model options that follow from the variant or from the data.
DERIVED = (
  "output", "patch", "num_classes", "image_size", "vocab", "input_length",
  "target_length", "param_dtype",
)  # fmt: skip
