"""Loads published weights into our models and saves our models' weights.

`load` is strict: every tensor of the file is used once and every parameter is
filled, or an error names the one that is not. Weights are cast to the dtype of
the model's parameters. A module for each family holds the names of the
parameters in files; `save` writes the names of Hugging Face files.
Nothing is downloaded and nothing is unpickled.

The config.json of `transformers` is read where it lies beside the weights: a
model with another function (heads, activation, epsilon, windows, ...) is
refused. Its keys are in the same tables, and a key that is in none of them is
refused as well. Files of other libraries do not say `norm_epsilon` (1e-6) and
`gelu` ("tanh" in .npz files) of a ViT, nor `pretrained_windows` of a Swin-V2.

None of them holds the scale of the pixels, (pixel / 255 - mean) / std: .5 and
.5 for the ViT of `vision_transformer` and big_vision, ImageNet's statistics for
Swin-V2 and DeiT, see `figs_jax.data.pixels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

from figs_jax.core.masks import nm_mask
from figs_jax.models.pretrained.config import Config, read_config
from figs_jax.models.pretrained.files import (
  PretrainedError,
  Tensor,
  opened_weights,
  write_weights,
)
from figs_jax.models.pretrained.matching import (
  Keep,
  matched,
  parameters_of,
  published,
  to_publish,
)
from figs_jax.models.pretrained.names import Wording, arguments
from figs_jax.nn import Masked

M = TypeVar("M", bound=nnx.Module)

__all__ = [
  "Config",
  "PretrainedError",
  "Tensor",
  "config_of",
  "fill",
  "load",
  "matched",
  "published",
  "read",
  "save",
  "to_publish",
]


def load(
  model: M,
  path: str | Path,
  *,
  head: str = "strict",
  resize_positions: bool = False,
  interpolation: str = "linear",
  convert_channels: bool = False,
) -> M:
  """Returns the model with the weights of a file; the input is unchanged.

  Masks become the N:M masks of the loaded |kernel|, as in `sparsify`.

  Args:
    model: Model of our families, sparse or dense, scanned or not. Parameters
      may be abstract (`nnx.eval_shape`), except those of a fresh head.
    path: A .safetensors file, its .json index, a directory with either, or an
      .npz file of big_vision or vision_transformer.
    head: "strict", or "fresh" to keep the model's own classifier.
    resize_positions: Whether to interpolate a ViT's positions from another
      square grid. A Swin-V2 may then have another image size and window, if its
      `pretrained_windows` are the windows of the file.
    interpolation: "linear", corner to corner (arXiv 2010.11929); "bicubic", as
      `transformers` does for ViT, DeiT, MAE and DINOv2; or
      "bicubic_antialias", as it does for DINOv2 with registers.
    convert_channels: Whether to convert the patch kernel for images with
      another number of channels: from 3 to 1 its sum over the channels, from 1
      to 3 a third of it for each. The logits are those of a gray image with
      three equal channels, if all have the same pixel scale.

  Raises:
    PretrainedError: If the file is damaged, of another family, or does not fit,
      or the config.json beside it says another function. It is a ValueError;
      the message names the tensor or the options, and the fix.

  >>> import tempfile
  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> make = lambda seed: models.create(
  ...   "vit", "custom/2", rngs=nnx.Rngs(seed), **sizes)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save(make(0), f"{folder}/model.safetensors")
  ...   loaded = load(make(1), folder)
  >>> bool((loaded.head.kernel[...] == make(0).head.kernel[...]).all())
  True
  """
  return fill(
    model,
    read(
      model,
      path,
      head=head,
      resize_positions=resize_positions,
      interpolation=interpolation,
      convert_channels=convert_channels,
    ),
  )


def save(model: nnx.Module, path: str | Path) -> None:
  """Writes a .safetensors file with the names of Hugging Face.

  Kernels are written as stored: with zeros after `finished()`, with all their
  entries during training. Dtypes are kept.

  Args:
    model: Model of our families.
    path: A .safetensors file, which is replaced if it exists.

  Raises:
    PretrainedError: If the model's family is unknown or the path is invalid.

  >>> import tempfile
  >>> from figs_jax import models
  >>> from safetensors.numpy import load_file
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> model = models.create("vit", "custom/2", **sizes)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save(model, f"{folder}/model.safetensors")
  ...   load_file(f"{folder}/model.safetensors")["classifier.weight"].shape
  (1000, 8)
  """
  write_weights(path, published(model))


def read(
  model: nnx.Module,
  path: str | Path,
  *,
  wording: Wording = arguments,
  keep: Keep | None = None,
  **options: Any,
) -> dict[str, Any]:
  """Reads the parameters by our paths; see `fill`.

  Args:
    model: Model, as for `load`.
    path: Weights, as for `load`.
    wording: How error messages name the options to set.
    keep: Function of the path and the array of a parameter, whose result takes
      the place of the array; only one array is held at a time.
    **options: The other arguments of `load`.

  Raises:
    PretrainedError: If `load` raises it.

  >>> import tempfile
  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> model = models.create("vit", "custom/2", **sizes)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save(model, f"{folder}/model.safetensors")
  ...   read(model, folder, keep=lambda path, x: x.shape)["head/kernel"]
  (8, 1000)
  """
  with opened_weights(path) as tensors:
    config = read_config(path, tensors, type(model).__name__)
    if config is not None:
      config.check(model, wording=wording, **options)
    where = str(path)
    return matched(
      model, tensors, where=where, wording=wording, keep=keep, **options
    )


def config_of(path: str | Path, family: str | None = None) -> Config | None:
  """The options in the config.json of `transformers` beside weights.

  Args:
    path: Weights, as for `load`.
    family: Name of the class of the model, as in "ViT". Defaults to that of the
      file.

  Returns:
    The options; None without a config.json, or for one of another program.

  Raises:
    PretrainedError: If a file is damaged, or config.json has an unknown key, or
      a value that our models lack.

  >>> import tempfile
  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   model = models.create("vit", "custom/2", **sizes)
  ...   save(model, f"{folder}/model.safetensors")
  ...   config_of(folder)  # no config.json
  """
  with opened_weights(path) as tensors:
    return read_config(path, tensors, family)


def fill(model: M, weights: Mapping[str, Any]) -> M:
  """Returns the model with these parameters, by path; others are kept.

  Masks are recomputed from the kernels. Works inside a trace.

  Args:
    model: Model of our families, or any NNX model.
    weights: Parameters and batch statistics by path, as from `read`.

  >>> layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
  >>> fill(layer, {"bias": [1.0, 2.0]}).bias[...].tolist()
  [1.0, 2.0]
  """
  model = nnx.clone(model)
  leaves = parameters_of(model)
  for path, value in weights.items():
    leaves[path].set_value(jnp.asarray(value))
  for _, layer in nnx.iter_modules(model):
    if isinstance(layer, Masked) and layer.pattern and layer.group_axis:
      scores = jnp.abs(layer.kernel[...])
      mask = nm_mask(scores, layer.pattern, layer.group_axis)
      layer.kernel_mask.set_value(mask)
  return model
