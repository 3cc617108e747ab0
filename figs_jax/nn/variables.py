"""The variables that a masked layer carries beside its kernel."""

from __future__ import annotations

from typing import Any

from flax import nnx

_PLACEMENT = ("out_sharding", "sharding_rules", "mesh", "eager_sharding")


class Mask(nnx.Variable):
  """Bool, of the kernel's shape; True = kept."""


class Leak(nnx.Variable):
  """float32, the share D in [0, 1] that pruned entries keep; 0 = hard mask.

  A scalar, with one leading axis more for every leading axis that the kernel
  of a stacked (vmapped or scanned) layer has.
  """


class Scale(nnx.Variable):
  """float32, the factor beta of a soft kernel; fixed when it is given.

  Shaped as the leak is.
  """


def placement(kernel: nnx.Variable) -> dict[str, Any]:
  """The kernel's sharding metadata, which its mask has to share."""
  metadata = kernel.get_metadata()
  return {key: metadata[key] for key in _PLACEMENT if key in metadata}
