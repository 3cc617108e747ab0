"""What the axes of a kernel stand for, by the name of its layer.

A placement on a mesh speaks of these words and not of single layers:

* `embed`: width of the residual stream,
* `heads`: all heads of an attention layer side by side,
* `ff`: hidden width of a feed-forward layer,
* `vocab`: tokens or classes.
"""

from __future__ import annotations

import re

import jax
from jax.sharding import PartitionSpec

from figs_jax.core.types import Array

BATCH_AXES = ("data", "fsdp")  # mesh axes over which a batch is split
# (regex of the end of a path, the last axes of the array)
TABLE: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r"[qkv]/kernel", ("embed", "heads")),
  (r"o/kernel", ("heads", "embed")),
  # nnx.MultiHeadAttention
  (r"(?:query|key|value)/kernel", ("embed", "heads", None)),
  (r"out/kernel", ("heads", None, "embed")),
  (r"(?:fc1|wi|wi_0|wi_1|gate|up)/kernel", ("embed", "ff")),
  (r"(?:fc2|wo|down)/kernel", ("ff", "embed")),
  (r"(?:head|head_dist)/kernel", ("embed", "vocab")),
  (r"(?:shared|embed|token_embed)/embedding", ("vocab", "embed")),
)
_TABLE = tuple((re.compile(rf"(?:.*/)?{end}"), axes) for end, axes in TABLE)


def with_split_batch(x: Array) -> Array:
  """Keeps activations split along their batch, the first axis.

  Between blocks this pays: from the shardings of kernels alone, XLA may split
  the width over `fsdp` and sum activations over devices, in place of gathering
  the kernels. Without a mesh that has these axes, `x` is returned.

  >>> with_split_batch(jax.numpy.ones((4, 2))).shape
  (4, 2)
  """
  if not set(BATCH_AXES) <= set(jax.sharding.get_abstract_mesh().axis_names):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
  """The word of each axis of a parameter, None where the table has none.

  Leading axes, of stacked blocks or of seeds, have no word.

  Args:
    path: Path of the parameter, or any path that ends in it.
    ndim: Rank of the parameter.

  >>> logical_axes("blocks/mlp/fc1/kernel", 3)
  (None, 'embed', 'ff')
  >>> logical_axes("patch_embed/kernel", 2)
  (None, None)
  """
  for pattern, axes in _TABLE:
    if len(axes) <= ndim and pattern.fullmatch(path):
      return (None,) * (ndim - len(axes)) + axes
  return (None,) * ndim
