"""Published weights into our models, and our models' weights out.

`load` is strict: every tensor of the file is used once and every parameter is
filled, or a line says which one is not. Weights are cast to the dtype of the
model's parameters. What files call the parameters is in the tables of
`pretrained_vit`, `pretrained_swin_v2` and `pretrained_t5`; `save` writes the
names of Hugging Face files. Nothing is downloaded and nothing is unpickled.

Not read from a file are the options of the model: of a ViT `norm_epsilon`
(1e-12 in Hugging Face files, 1e-6 in the others) and `gelu` ("tanh" in .npz
files), of a Swin-V2 `pretrained_windows`, of a T5 `gated` and `tied`.
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
  opened,
  write,
)
from figs_jax.models.pretrained.matching import (
  matched,
  parameters,
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
  """The same model with the weights of a file; the input is untouched.

  Masks become the N:M masks of the loaded |kernel|, as `sparsify` takes them.

  Args:
    model: a ViT, Swin-V2 or T5, sparse or not, scanned or not. Parameters may
      be abstract (`nnx.eval_shape`), but for those of a fresh head.
    path: a .safetensors file, its .json index, a directory with either, or an
      .npz file of big_vision or vision_transformer.
    head: "fresh" keeps the model's own classifier, whatever the file's is.
    resize_positions: a ViT's positions may be of another square grid, and are
      then interpolated linearly from corner to corner (arXiv 2010.11929).

  Raises:
    PretrainedError: a file that is damaged, of another family, or that does
      not fit; it says which tensor, and the fix.

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

  Kernels are written as they are stored: those of `finished()` have their
  zeros, those in training their pruned entries too. Dtypes are kept.

  Raises:
    PretrainedError: a model of no known family, or a path that cannot be.
  """
  write(path, published(model))


def read(
  model: nnx.Module,
  path: str | Path,
  *,
  head: str = "strict",
  resize_positions: bool = False,
) -> dict[str, np.ndarray]:
  """`load` without the model: parameters by our path; see `fill`."""
  with opened(path) as tensors:
    return matched(
      model,
      tensors,
      head=head,
      resize_positions=resize_positions,
      where=str(path),
    )


def fill(model: M, weights: Mapping[str, Any]) -> M:
  """The same model with these parameters, by path; others stay as they are.

  Masks are taken anew from the kernels. Works inside a trace.
  """
  model = nnx.clone(model)
  leaves = parameters(model)
  for path, value in weights.items():
    leaves[path].set_value(jnp.asarray(value))
  for _, layer in nnx.iter_modules(model):
    if isinstance(layer, Masked) and layer.pattern and layer.group_axis:
      scores = jnp.abs(layer.kernel[...])
      mask = nm_mask(scores, layer.pattern, layer.group_axis)
      layer.kernel_mask.set_value(mask)
  return model
