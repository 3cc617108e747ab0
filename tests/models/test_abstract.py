"""Models of shapes alone: their rows are those of the built ones."""

import jax
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.train.run_rows import layers_of

RULES = {"resnet": "hidden: 1:4"}  # of families without ff
# family -> variant, sizes, and another value for every option.
CASES = {
  "vit": (
    "custom/4",
    {"width": 8, "depth": 2, "heads": 2, "image_size": 8, "num_classes": 4},
    {
      "patch": 2, "width": 16, "depth": 1, "heads": 1, "mlp_dim": 24,
      "num_classes": 8, "image_size": 16, "in_channels": 4, "pool": "gap",
      "pos": "sincos", "dropout": 0.1, "attention_dropout": 0.1,
      "drop_path": 0.1, "scan": True, "remat": True,
      "remat_policy": "dots", "relu2": True, "qkv_bias": False,
      "norm_epsilon": 1e-12, "gelu": "tanh", "swiglu": True,
      "layer_scale": 0.1, "registers": 2, "distillation": "heads",
      "dtype": "bfloat16", "param_dtype": "bfloat16",
    },
  ),
  "resnet": (
    "custom",
    {"block": "basic", "depths": (2, 1), "width": 8, "image_size": 16,
     "num_classes": 4},
    {
      "block": "bottleneck", "depths": (1, 1), "width": 16, "stem": "cifar",
      "shortcut": "identity", "zero_init": True, "num_classes": 8,
      "image_size": 32, "in_channels": 4, "norm_momentum": 0.5,
      "norm_epsilon": 1e-3, "scan": True, "remat": True, "dtype": "bfloat16",
      "param_dtype": "bfloat16",
    },
  ),
  "swin_v2": (
    "custom/2",
    {"width": 8, "depths": (2, 1), "heads": 1, "window": 4,
     "image_size": 16, "num_classes": 4},
    {
      "patch": 4, "width": 16, "depths": (1, 1), "heads": 2, "window": 2,
      "pretrained_windows": (2, 2), "mlp_ratio": 2.0, "num_classes": 8,
      "image_size": 32, "in_channels": 4, "dropout": 0.1,
      "attention_dropout": 0.1, "drop_path": 0.1, "scan": True, "remat": True,
      "remat_policy": "dots",
      "qkv_bias": False, "dtype": "bfloat16", "param_dtype": "bfloat16",
    },
  ),
  "bert": (
    "custom",
    {"width": 8, "depth": 2, "heads": 2, "mlp_dim": 16, "vocab": 16,
     "length": 8},
    {
      "width": 16, "depth": 1, "heads": 1, "mlp_dim": 24, "output": "classes",
      "num_classes": 8, "vocab": 24, "length": 12, "token_types": 3,
      "dropout": 0.1, "attention_dropout": 0.1, "input_length": 6,
      "scan": True, "remat": True,
      "remat_policy": "dots", "relu2": True, "norm_epsilon": 1e-6,
      "gelu": "tanh",
      "dtype": "bfloat16", "param_dtype": "bfloat16",
    },
  ),
  "gpt2": (
    "custom",
    {"width": 8, "depth": 2, "heads": 2, "vocab": 16, "length": 8},
    {
      "width": 16, "depth": 1, "heads": 1, "mlp_dim": 24, "vocab": 24,
      "length": 12, "dropout": 0.1, "attention_dropout": 0.1,
      "norm_epsilon": 1e-6, "input_length": 6, "scan": True, "remat": True,
      "remat_policy": "dots", "relu2": True,
      "dtype": "bfloat16", "param_dtype": "bfloat16",
    },
  ),
  "llama": (
    "custom",
    {"width": 8, "depth": 2, "heads": 2, "vocab": 16, "length": 8},
    {
      "width": 16, "depth": 1, "heads": 4, "kv_heads": 2, "head_dim": 8,
      "mlp_dim": 24, "tied": True, "vocab": 24, "length": 12,
      "rope_theta": 1e3, "rope_factor": 8.0, "rope_low": 2.0, "rope_high": 3.0,
      "rope_length": 16, "attention_dropout": 0.1, "norm_epsilon": 1e-6,
      "input_length": 6, "scan": True, "remat": True,
      "remat_policy": "dots", "relu2": True, "dtype": "bfloat16",
      "param_dtype": "bfloat16",
    },
  ),
  "t5": (
    "custom",
    {"width": 8, "depth": 2, "heads": 2, "head_dim": 4, "mlp_dim": 16,
     "vocab": 16, "input_length": 8, "target_length": 4},
    {
      "width": 16, "depth": 1, "decoder_depth": 1, "heads": 1, "head_dim": 8,
      "mlp_dim": 24, "gated": True, "tied": False, "scaled": True, "vocab": 24,
      "num_buckets": 8, "max_distance": 64, "dropout": 0.1, "input_length": 6,
      "target_length": 6, "scan": True, "remat": True,
      "remat_policy": "dots", "relu2": True, "dtype": "bfloat16",
      "param_dtype": "bfloat16",
    },
  ),
}  # fmt: skip
# Options that exclude one another: each is left out once.
APART = {"vit": (("pool", "relu2"), ("distillation", "swiglu"))}


def test_every_family_is_here():
  assert sorted(CASES) == sorted(models.FAMILIES)


def same(family, variant, options):
  """Whether rows, paths and shapes are those of the model with arrays."""
  shapes = models.abstract(family, variant, **options)
  built = nnx.eval_shape(lambda: models.create(family, variant, **options))
  for rules in (None, RULES.get(family, "ff: 1:4")):
    if rules:
      shapes, built = (nn.sparsify(model, rules) for model in (shapes, built))
    assert layers_of(shapes, 3) == layers_of(built, 3)
  a, b = (nnx.state(model, nnx.Param) for model in (shapes, built))
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("family", CASES)
def test_rows_are_those_of_the_built_model_for_every_option(family):
  variant, sizes, options = CASES[family]
  assert {*options} == {*models.options_of(family)}
  if "patch" in options:
    variant = f"custom/{options['patch']}"
  for without in APART.get(family, ((),)):
    left = {
      name: x for name, x in options.items() if name not in ("patch", *without)
    }
    same(family, variant, sizes | left)
    same(family, variant, sizes | left | {"scan": False})


@pytest.mark.parametrize("family", CASES)
def test_rows_are_those_of_the_model_with_arrays(family):
  variant, sizes, _ = CASES[family]
  arrays = models.create(family, variant, **sizes)
  assert isinstance(jax.tree.leaves(nnx.state(arrays))[0], jax.Array)
  shapes = models.abstract(family, variant, **sizes)
  assert layers_of(shapes, 2) == layers_of(arrays, 2)
  rules = RULES.get(family, "ff: 1:4")
  sparse = nn.sparsify(arrays, rules)
  for row, want in zip(
    layers_of(nn.sparsify(shapes, rules)), layers_of(sparse), strict=True
  ):
    mask = want.pop("mask", None)
    assert row == want and (mask is None or np.size(mask))


def test_a_published_size():
  same("vit", "B/16", {"depth": 2})


def test_bad_models_are_refused_alike():
  with pytest.raises(ValueError, match="did you mean 'depth'"):
    models.abstract("vit", "B/16", dept=1)
