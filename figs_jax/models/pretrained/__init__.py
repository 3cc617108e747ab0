"""Loads published weights into our models and saves our models' weights.

`load` is strict: every tensor of the file is used once and every parameter is
filled, or an error names the one that is not. Weights are cast to the dtype of
the model's parameters. The tables in `vit`, `swin_v2` and `t5` hold the names
of the parameters in files; `save` writes the names of Hugging Face files.
Nothing is downloaded and nothing is unpickled.

Files do not hold the options of a model: `norm_epsilon` (1e-12 in Hugging Face
files, 1e-6 in the others) and `gelu` ("tanh" in .npz files) of a ViT,
`pretrained_windows` of a Swin-V2, `gated` and `tied` of a T5. Nor do they hold
the scale of the pixels, (pixel / 255 - mean) / std: .5 and .5 for the ViT of
`vision_transformer` and big_vision, ImageNet's statistics for Swin-V2 and DeiT,
see `figs_jax.data.pixels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.masks import nm_mask
from figs_jax.models.pretrained.files import (
  PretrainedError,
  Tensor,
  opened_weights,
  write_weights,
)
from figs_jax.models.pretrained.matching import (
  matched,
  parameters_of,
  published,
)
from figs_jax.nn import Masked

M = TypeVar("M", bound=nnx.Module)

__all__ = [
  "PretrainedError",
  "Tensor",
  "fill",
  "load",
  "matched",
  "published",
  "read",
  "save",
]


def load(
  model: M,
  path: str | Path,
  *,
  head: str = "strict",
  resize_positions: bool = False,
) -> M:
  """Returns the model with the weights of a file; the input is unchanged.

  Masks become the N:M masks of the loaded |kernel|, as in `sparsify`.

  Args:
    model: A ViT, Swin-V2 or T5, sparse or dense, scanned or not. Parameters may
      be abstract (`nnx.eval_shape`), except those of a fresh head.
    path: A .safetensors file, its .json index, a directory with either, or an
      .npz file of big_vision or vision_transformer.
    head: "strict", or "fresh" to keep the model's own classifier.
    resize_positions: Whether to interpolate a ViT's positions linearly from
      another square grid, corner to corner (arXiv 2010.11929).

  Raises:
    PretrainedError: If the file is damaged, of another family, or does not fit;
      the message names the tensor and the fix.

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
    model, read(model, path, head=head, resize_positions=resize_positions)
  )


def save(model: nnx.Module, path: str | Path) -> None:
  """Writes a .safetensors file with the names of Hugging Face.

  Kernels are written as stored: with zeros after `finished()`, with all their
  entries during training. Dtypes are kept.

  Raises:
    PretrainedError: If the model's family is unknown or the path is invalid.
  """
  write_weights(path, published(model))


def read(
  model: nnx.Module,
  path: str | Path,
  *,
  head: str = "strict",
  resize_positions: bool = False,
) -> dict[str, np.ndarray]:
  """Reads the parameters by our paths, as for `load`; see `fill`."""
  with opened_weights(path) as tensors:
    return matched(
      model,
      tensors,
      head=head,
      resize_positions=resize_positions,
      where=str(path),
    )


def fill(model: M, weights: Mapping[str, Any]) -> M:
  """Returns the model with these parameters, by path; others are kept.

  Masks are recomputed from the kernels. Works inside a trace.
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
