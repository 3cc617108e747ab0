"""Names of ResNet's parameters in published files, and keys of its config.json.

torchvision's and timm's names are the same. They have no identity shortcut, and
their files do not say whether a stride is in the 3x3 convolution, as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figs_jax.models.pretrained.files import PretrainedError
from figs_jax.models.pretrained.keys import (
  CLASS_COUNT,
  CLASSES,
  COUNT,
  INTEGERS,
  Fixed,
  Given,
  Key,
  Table,
  text,
  words,
)
from figs_jax.models.pretrained.names import Dialect, Row, under
from figs_jax.models.resnet_stage import EXPANSION

_CONVS = ("conv3x3_1", "conv1x1_1", "conv3x3_2", "conv1x1_3")
# PyTorch counts batches for another kind of average, which nothing here has.
_COUNTERS = ((r".*\.num_batches_tracked", None),)


def _blocks(theirs: str, *rows: Row) -> tuple[Row, ...]:
  """Rows of a block, which the file numbers from the first one of the stage."""
  return (
    *under(theirs.format(i="0"), "stages/{s}/first/", *rows),
    *under(theirs.format(i="{i+1}"), "stages/{s}/blocks/{i}/", *rows),
  )


_HUGGING_FACE = Dialect(
  "Hugging Face",
  (
    ("conv", "resnet.embedder.embedder.convolution", "stem_conv"),
    ("batch_norm", "resnet.embedder.embedder.normalization", "stem_norm"),
    *_blocks(
      "resnet.encoder.stages.{{s}}.layers.{i}.",
      *(
        ("conv", f"layer.{int(name[-1]) - 1}.convolution", name)
        for name in _CONVS
      ),
      *(
        ("batch_norm", f"layer.{i - 1}.normalization", f"norm{i}")
        for i in (1, 2, 3)
      ),
      ("conv", "shortcut.convolution", "downsample"),
      ("batch_norm", "shortcut.normalization", "downsample_norm"),
    ),
    ("dense", "classifier.1", "head"),
  ),
  duplicates=_COUNTERS,
)
_TORCHVISION = Dialect(
  "torchvision and timm",
  (
    ("conv", "conv1", "stem_conv"),
    ("batch_norm", "bn1", "stem_norm"),
    *_blocks(
      "layer{{s+1}}.{i}.",
      *(("conv", f"conv{name[-1]}", name) for name in _CONVS),
      *(("batch_norm", f"bn{i}", f"norm{i}") for i in (1, 2, 3)),
      ("conv", "downsample.0", "downsample"),
      ("batch_norm", "downsample.1", "downsample_norm"),
    ),
    ("dense", "fc", "head"),
  ),
  duplicates=_COUNTERS,
)
DIALECTS = (_HUGGING_FACE, _HUGGING_FACE.bare("resnet."), _TORCHVISION)


def _of_sizes(
  fields: Mapping[str, Any], options: Mapping[str, Given], tensors: Any
) -> dict[str, Given]:
  """The width, of which the sizes of the stages follow here, but not there."""
  sizes, stem = options["width"], fields.get("embedding_size", 64)
  first = stem * EXPANSION[options["block"].value]
  want = [first << i for i in range(len(options["depths"].value))]
  if list(sizes.value) != want:
    raise PretrainedError(
      f"{sizes.key}: expected {text(want)}, which follow from embedding_size,"
      f" depths and layer_type in our ResNet, got {text(sizes.theirs)}"
    )
  return {"width": Given("embedding_size", stem, stem)}


def _hidden_sizes(model: Any) -> list[int]:
  return [stage.outputs for stage in model.stages]


CONFIG = Table(
  architecture="ResNetForImageClassification",
  types={"resnet": {}},
  keys=(
    Key("num_channels", "in_channels", 3, COUNT),
    Key("depths", "depths", [3, 4, 6, 3], INTEGERS),
    Key("embedding_size", "width", 64, COUNT),
    Key(
      "hidden_sizes",
      "width",
      [256, 512, 1024, 2048],
      INTEGERS,
      _hidden_sizes,
    ),
    Key(
      "layer_type",
      "block",
      "bottleneck",
      words({"basic": "basic", "bottleneck": "bottleneck"}),
    ),
    CLASSES,
  ),
  fixed=(
    Fixed("hidden_act", "relu"),
    Fixed("downsample_in_first_stage", False),
    Fixed("downsample_in_bottleneck", False),
  ),
  follows=(CLASS_COUNT,),
  # Of backbones.
  harmless=("out_features", "out_indices", "stage_names"),
  implied={
    "stem": "imagenet",
    "shortcut": "projection",
    "norm_epsilon": 1e-5,
  },
  more=_of_sizes,
)
