"""The variables that a masked layer holds beside its kernel."""

from __future__ import annotations

from typing import Any

from flax import nnx

_PLACEMENT = ("out_sharding", "sharding_rules", "mesh", "eager_sharding")


class Mask(nnx.Variable):
  """Mask of the kernel, True = kept: Boolean, or packed by `core.pack_mask`."""


class Leak(nnx.Variable):
  """Factor D in [0, 1] on pruned entries, float32; 0 is a hard mask.

  A scalar, or one value per layer of a stack (vmapped or scanned layers).
  """


class Scale(nnx.Variable):
  """Factor beta of a soft kernel, float32, fixed when it is created.

  Shaped like the leak.
  """


def placement(kernel: nnx.Variable) -> dict[str, Any]:
  """The sharding metadata of the kernel, which its mask shares."""
  metadata = kernel.get_metadata()
  return {key: metadata[key] for key in _PLACEMENT if key in metadata}
