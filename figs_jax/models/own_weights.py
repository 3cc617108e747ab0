"""Weights of any NNX model under its own paths, with batch statistics.

The families have names of other libraries in `figs_jax.models.pretrained`. A
class of one's own has its paths alone, as in `blocks/0/conv/kernel`. Beside its
parameters it may have other variables that decide its outputs, such as the mean
and variance of `nnx.BatchNorm`; they belong to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import nnx

from figs_jax import export
from figs_jax.models.pretrained import PretrainedError, fill
from figs_jax.models.pretrained.files import opened_weights
from figs_jax.nn import Leak, Mask
from figs_jax.nn.variables import Scale

M = TypeVar("M", bound=nnx.Module)


def own_weights(
  model: nnx.Module, on_host: Callable[[Any], np.ndarray] = np.asarray
) -> dict[str, np.ndarray]:
  """Every parameter and batch statistic by path.

  Random streams, masks and what else sparse layers hold are left out.

  Args:
    model: Any NNX model.
    on_host: Function that fetches an array of the model.

  >>> layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
  >>> sorted(own_weights(layer))
  ['bias', 'mean', 'scale', 'var']
  """
  return {
    path: on_host(variable[...]) for path, variable in _variables(model).items()
  }


def fitted(
  model: nnx.Module, weights: Mapping[str, Any], where: str
) -> dict[str, np.ndarray]:
  """The weights in the dtypes of a model that they have to fit.

  Args:
    model: Any NNX model, possibly abstract.
    weights: Arrays by path, as from `own_weights`.
    where: Place of the weights, for errors.

  Raises:
    PretrainedError: If one is missing, left over or of another shape.

  >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
  >>> weights = {"kernel": np.ones((2, 3), np.float64), "bias": np.ones(2)}
  >>> fitted(layer, weights, "a.npz")
  Traceback (most recent call last):
    ...
  figs_jax.models.pretrained.files.PretrainedError: a.npz: expected the weights
  of a Linear with bias of shape [3], got [2]; build it with the same options
  """
  own = _variables(model)
  for path in sorted(own.keys() | weights.keys()):
    shapes = [
      list(each[path].shape) if path in each else "none"
      for each in (own, weights)
    ]
    if shapes[0] != shapes[1]:
      raise PretrainedError(
        f"{where}: expected the weights of a {type(model).__name__} with"
        f" {path} of shape {shapes[0]}, got {shapes[1]}; build it with the same"
        " options"
      )
  return {
    path: np.asarray(weights[path]).astype(variable.dtype)
    for path, variable in own.items()
  }


def read_own(model: nnx.Module, path: str | Path) -> dict[str, np.ndarray]:
  """The weights of a file that fit a model, by path.

  Args:
    model: Any NNX model, possibly abstract.
    path: A .safetensors file, packed or not, a directory with
      model.safetensors, or an .npz file.

  Raises:
    PretrainedError: If the file cannot be read, or `fitted` raises it.

  >>> import tempfile
  >>> layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   np.savez(f"{folder}/a.npz", **own_weights(layer))
  ...   read_own(layer, f"{folder}/a.npz")["var"]
  array([1., 1., 1., 1.], dtype=float32)
  """
  path = Path(path)
  if path.suffix == ".npz":
    with opened_weights(path) as tensors:
      weights = {name: tensor.read() for name, tensor in tensors.items()}
  else:
    file = path / export.DENSE[0] if path.is_dir() else path
    try:
      weights = export.read(file)
    except export.ExportError as error:
      raise PretrainedError(str(error)) from error
  return fitted(model, weights, str(path))


def fill_own(model: M, weights: Mapping[str, Any]) -> M:
  """The model with these weights, by path; traceable.

  Masks are computed from the kernels, as in `figs_jax.sparsify`.

  Args:
    model: Any NNX model.
    weights: Arrays by path, as from `fitted`.

  >>> layer = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
  >>> fill_own(layer, {"mean": np.arange(4.0)}).mean[...].tolist()
  [0.0, 1.0, 2.0, 3.0]
  """
  params = {
    path
    for path, variable in _variables(model).items()
    if isinstance(variable, nnx.Param)
  }
  model = fill(model, {path: weights[path] for path in weights.keys() & params})
  for path, variable in _variables(model).items():
    if path in weights and path not in params:
      variable.set_value(weights[path])
  return model


def load_own(model: M, path: str | Path) -> M:
  """The model with the weights of a file; the input is unchanged.

  Args:
    model: Any NNX model.
    path: File, as for `read_own`.

  Raises:
    PretrainedError: If `read_own` raises it.

  >>> import tempfile
  >>> make = lambda seed: nnx.BatchNorm(4, rngs=nnx.Rngs(seed))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   np.savez(f"{folder}/a.npz", **own_weights(make(0)))
  ...   sorted(own_weights(load_own(make(1), f"{folder}/a.npz")))
  ['bias', 'mean', 'scale', 'var']
  """
  return fill_own(model, read_own(model, path))


def _variables(model: nnx.Module) -> dict[str, Any]:
  """The variables that weights consist of, by path."""
  left_out = (nnx.RngState, Mask, Leak, Scale)
  return {
    "/".join(map(str, path)): node
    for path, node in nnx.iter_graph(model)
    if isinstance(node, nnx.Variable) and not isinstance(node, left_out)
  }
