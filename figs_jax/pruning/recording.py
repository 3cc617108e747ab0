"""Layers that add up the second moment of their inputs as they are called.

A layer of our own copy of a model becomes a recorder by its class, as
`sparsify` makes layers sparse. The moment is a variable of the layer, so that
it is carried out of `nnx.remat` and other transforms.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array, Bool
from figs_jax.pruning.layouts import Layout, input_rows
from figs_jax.pruning.moments import product


class Moment(nnx.Variable):
  """X^T X of the rows of a batch, float32 [stack, K, K]."""


class Count(nnx.Variable):
  """Number of rows of a batch, int32."""


class Counted(nnx.Variable):
  """Boolean mask of the rows that count; of padding it is False."""


class Place:
  """The static part of a recorder; compared by identity.

  Attributes:
    path: Path of the kernel.
    layout: Layout of the kernel.
    calls: Inputs of the calls of a trace, or None if they are not listed.
  """

  def __init__(self, path: str, layout: Layout, calls: list[Any] | None = None):
    self.path, self.layout, self.calls = path, layout, calls


class Recorder(nnx.Module):
  """Adds the recording to the layer that follows in the bases of the class."""

  place: Place
  moment: Moment
  count: Count
  counted: Counted

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    x = args[0] if args else kwargs["inputs"]
    place = self.place
    if place.calls is not None:
      place.calls.append((place.path, x))
    else:
      rows, lead = input_rows(place.path, self, jnp.asarray(x))
      rows = place.layout.columns(rows)
      counted = getattr(self, "counted", None)
      number = jnp.asarray(rows.shape[1], jnp.int32)
      if counted is not None:
        mask = _fitting(place.path, counted[...], lead)
        rows = jnp.where(mask[None, :, None], rows, 0)
        number = mask.sum(dtype=jnp.int32)
      each = jnp.stack([product(r.T, r) for r in rows])
      self.moment.set_value(self.moment[...] + each)
      self.count.set_value(self.count[...] + number)
    return super().__call__(*args, **kwargs)


@functools.cache
def recorder_type(kind: type[nnx.Module]) -> type[Recorder]:
  """The recording version of a layer class."""
  return type(f"Recorded{kind.__name__}", (Recorder, kind), {})


def record(layer: Any, place: Place, sizes: tuple[int, int] | None) -> None:
  """Turns a layer of our own copy into a recorder, in place.

  Args:
    layer: Layer.
    place: Its path and layout.
    sizes: (stack, K) of the moment; None if calls are listed.
  """
  object.__setattr__(layer, "__class__", recorder_type(type(layer)))
  layer.place = place
  if sizes is not None:
    stack, k = sizes
    layer.moment = Moment(jnp.zeros((stack, k, k), jnp.float32))
    layer.count = Count(jnp.zeros((), jnp.int32))


def counted_of(path: str, masks: Mapping[str, Any]) -> Any:
  """The mask of a layer's rows: that of the first regex of its whole path.

  Without a match it is None, and all rows count.

  >>> mask = jnp.ones((1, 2), bool)
  >>> counted_of("head/kernel", {"encoder/.*": mask}) is None
  True
  """
  for regex, mask in masks.items():
    if re.fullmatch(regex, path.removesuffix("/kernel")):
      return mask
  return None


def _fitting(
  path: str, mask: Bool[Array, "*shape"], lead: tuple[int, ...]
) -> Bool[Array, " rows"]:
  """The mask of flattened rows; extra axes of the rows share their token's."""
  if lead[: mask.ndim] != mask.shape:
    raise ValueError(
      f"{path}: expected rows of shape {mask.shape}, as its mask of padding,"
      f" got {lead}; leave it out of counted_rows"
    )
  wide = mask.reshape(*mask.shape, *[1] * (len(lead) - mask.ndim))
  return jnp.broadcast_to(wide, lead).reshape(-1)
