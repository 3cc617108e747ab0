"""Kernels that a model overwrites in its call, which no mask can serve.

`nnx.WeightNorm` and `nnx.SpectralNorm` divide a kernel by a norm of all of its
entries, those that a mask prunes included. The finished model has zeros there,
so its norms, and with them its outputs, are others than in training.
"""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx

from figs_jax.nn.layers import Masked

_WRAPPERS = (nnx.WeightNorm, nnx.SpectralNorm)


def recomputed(model: nnx.Module) -> dict[int, str]:
  """id of a parameter -> name of the Flax wrapper that overwrites it.

  >>> rngs = nnx.Rngs(0)
  >>> norm = nnx.WeightNorm(nnx.Linear(8, 4, rngs=rngs), rngs=rngs)
  >>> recomputed(norm)[id(norm.layer_instance.kernel)]
  'WeightNorm'
  """
  return {
    id(param): type(wrapper).__name__
    for _, wrapper in nnx.iter_modules(model)
    if isinstance(wrapper, _WRAPPERS)
    for _, param in nnx.iter_graph(wrapper.layer_instance)
    if isinstance(param, nnx.Param)
  }


def refusal(path: str, what: str) -> ValueError:
  """The error for a masked kernel that `what` overwrites."""
  return ValueError(
    f"{path}: {what} recomputes this kernel from all of its entries in each"
    " call, so that the finished model would be another function than the"
    f' trained one; leave it dense with the rule ("{path}", None)'
  )


def refuse_writes(model: nnx.Module) -> None:
  """Makes every write to a masked kernel raise ValueError, in place.

  Args:
    model: Model for one trace, from `figs_jax.nn.merge`.
  """
  for path, layer in nnx.iter_modules(model):
    if isinstance(layer, Masked) and layer.pattern is not None:
      name = "/".join(map(str, (*path, "kernel")))
      hook = functools.partial(_refuse, name)
      layer.kernel.set_metadata(on_set_value=hook)


def _refuse(path: str, variable: nnx.Variable, value: Any) -> Any:
  del variable, value
  raise refusal(path, "the model")
