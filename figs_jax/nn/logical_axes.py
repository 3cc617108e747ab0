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
SEED_AXIS = "seed"  # mesh axis over which states of several seeds are split
# Mesh axis of a logical axis. `embed` has none of its own: `fsdp` goes to the
# axis that is left.
RULES = {"heads": "tensor", "ff": "tensor", "vocab": "tensor"}
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


def with_split_columns(x: Array, words: tuple[str | None, ...]) -> Array:
  """Keeps the output of a product split as the columns of its kernel are.

  A kernel whose groups are longer than a part of its rows lies over `tensor`
  and `fsdp` along its columns. Then XLA may compute all columns on every
  device, and gather this kernel and the next one over `tensor`. Without a mesh
  that splits the columns, `x` is returned.

  Args:
    x: Output, whose last axes are the columns.
    words: Words of the axes of the kernel, the contracted one first; empty if
      unknown.

  >>> with_split_columns(jax.numpy.ones((4, 2)), ("embed", "ff")).shape
  (4, 2)
  """
  mesh = jax.sharding.get_abstract_mesh()
  columns = [RULES.get(word or "") for word in words[1:]]
  if not set(columns) & set(mesh.axis_names):
    return x
  columns = columns[-x.ndim :]
  first = x.ndim - len(columns)
  free = PartitionSpec.UNCONSTRAINED
  split = [
    axis if axis and x.shape[first + i] % mesh.shape[axis] == 0 else free
    for i, axis in enumerate(columns)
  ]
  spec = PartitionSpec(*[free] * first, *split)
  return jax.lax.with_sharding_constraint(x, spec)


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
