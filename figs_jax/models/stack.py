"""A sequence of equal blocks: a list of them, or one scanned block.

A list is compiled block by block. Scanned blocks are one module whose variables
have a leading depth axis, so that a deep model compiles about as fast as a
shallow one; masks and leaks are stacked like their kernels, and paths have no
block number (`blocks/mlp/fc1/kernel`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.types import Array
from figs_jax.nn.logical_axes import with_split_batch

Blocks = Any  # an nnx.List of blocks, or one stacked block
_WRITTEN = (nnx.RngState, nnx.BatchStat)  # what a call may write


_POLICIES: dict[bool | str, Any] = {
  True: None,
  "block": None,
  # Those of attention have batch axes, and grow with the square of the length.
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat_of(remat: bool, policy: str) -> str:
  """The policy of recomputation; empty if nothing is recomputed.

  Args:
    remat: Whether to recompute blocks in the backward pass.
    policy: What is kept of a block: "block", its input alone; or "dots", also
      its products with kernels.

  Raises:
    ValueError: If the policy is unknown.

  >>> remat_of(True, "dots"), remat_of(False, "dots")
  ('dots', '')
  """
  if policy not in ("block", "dots"):
    raise ValueError(
      f"Expected remat_policy of 'block' or 'dots', got {policy!r}"
    )
  return policy if remat else ""


def build_blocks(
  make: Callable[[nnx.Rngs], nnx.Module],
  depth: int,
  *,
  scan: bool,
  rngs: nnx.Rngs,
) -> Blocks:
  """Builds `depth` blocks, each with its own random numbers.

  Args:
    make: Function that builds one block; all blocks have the same structure.
    depth: Number of blocks.
    scan: Whether to build one stacked block instead of a list.
    rngs: Random streams that `make` reads.

  >>> def make(rngs):
  ...   return nnx.Linear(3, 3, rngs=rngs)
  >>> build_blocks(make, 4, scan=True, rngs=nnx.Rngs(0)).kernel.shape
  (4, 3, 3)
  >>> len(build_blocks(make, 4, scan=False, rngs=nnx.Rngs(0)))
  4
  """
  if not scan:
    return nnx.List(make(rngs) for _ in range(depth))

  @nnx.split_rngs(splits=depth)
  @nnx.vmap(in_axes=0, out_axes=0)
  def stacked(rngs: nnx.Rngs) -> nnx.Module:
    return make(rngs)

  return stacked(rngs)


def run_blocks(
  blocks: Blocks,
  x: Array,
  *shared: Any,
  per_layer: Any = None,
  remat: bool | str = False,
  method: str = "__call__",
) -> tuple[Array, Any]:
  """Applies the blocks in order: x = block(x, *shared).

  Args:
    blocks: Blocks from `build_blocks`.
    x: Input of the first block; blocks keep its shape and dtype.
    *shared: Further arguments, equal for all blocks.
    per_layer: Pytree of arrays with a leading depth axis, whose slice is the
      last argument of each block. None passes no such argument.
    remat: Whether to recompute each block in the backward pass, or one of the
      policies of `remat_of`.
    method: Name of the method to call instead of the block itself.

  Returns:
    (x, ys): If blocks return (x, y), ys stacks their y along a leading depth
    axis; else it is None.

  >>> blocks = build_blocks(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4,
  ...                       scan=True, rngs=nnx.Rngs(0))
  >>> run_blocks(blocks, jnp.ones((2, 3)))[0].shape
  (2, 3)
  """
  x = with_split_batch(x)
  if isinstance(blocks, nnx.List):
    return _one_by_one(blocks, x, shared, per_layer, remat, method)
  graphdef, state = nnx.split(blocks)

  def body(x, xs):
    slices, mine = xs
    block = nnx.merge(graphdef, slices)
    before = jax.tree.leaves(nnx.state(block, _WRITTEN))
    x, y = _pair(getattr(block, method)(x, *shared, *mine))
    x = with_split_batch(x)
    written = nnx.state(block, _WRITTEN)
    changed = any(
      now is not then for now, then in zip(jax.tree.leaves(written), before)
    )
    # Write only what has changed, so that jit may close over a model.
    return x, (y, written if changed else None)

  if remat:
    # The loop itself prevents common subexpression elimination.
    body = jax.checkpoint(body, prevent_cse=False, policy=_POLICIES[remat])
  mine = () if per_layer is None else (per_layer,)
  x, (ys, written) = jax.lax.scan(body, x, (state, mine))
  if written is not None:
    nnx.update(blocks, written)
  return x, ys


def listed(blocks: Blocks) -> list[Any]:
  """The blocks one by one; slices of stacked ones.

  >>> blocks = build_blocks(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4,
  ...                       scan=True, rngs=nnx.Rngs(0))
  >>> [block.kernel.shape for block in listed(blocks)]
  [(3, 3), (3, 3), (3, 3), (3, 3)]
  """
  if isinstance(blocks, nnx.List):
    return list(blocks)
  graphdef, state = nnx.split(blocks)
  ((_, _, depth),) = named("", blocks)
  return [
    nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], state))
    for i in range(depth)
  ]


def unstack(model: nnx.Module) -> None:
  """Replaces stacked blocks, every attribute `blocks`, by lists, in place.

  For programs that call a model many times: a slice of an array is a copy.
  """
  for _, module in list(nnx.iter_modules(model)):
    blocks = getattr(module, "blocks", None)
    if isinstance(blocks, nnx.Module) and not isinstance(blocks, nnx.List):
      setattr(module, "blocks", nnx.List(listed(blocks)))  # noqa: B010


def named(name: str, blocks: Blocks) -> list[tuple[str, Any, int]]:
  """(path, block, number of stacked blocks) of the blocks stored at `name`.

  >>> blocks = build_blocks(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4,
  ...                       scan=True, rngs=nnx.Rngs(0))
  >>> [(path, count) for path, _, count in named("blocks", blocks)]
  [('blocks', 4)]
  """
  if isinstance(blocks, nnx.List):
    return [(f"{name}/{i}", block, 1) for i, block in enumerate(blocks)]
  depth = jax.tree.leaves(nnx.state(blocks, nnx.Param))[0].shape[0]
  return [(name, blocks, depth)]


def _one_by_one(blocks, x, shared, per_layer, remat, method):
  def call(block: nnx.Module, *args: Any) -> Any:
    return getattr(block, method)(*args)

  call = nnx.remat(call, policy=_POLICIES[remat]) if remat else call
  ys = []
  for index, block in enumerate(blocks):
    mine = jax.tree.map(lambda leaf, i=index: leaf[i], per_layer)
    x, y = _pair(call(block, x, *shared, *(() if mine is None else (mine,))))
    x = with_split_batch(x)
    ys.append(y)
  if ys and ys[0] is not None:
    return x, jax.tree.map(lambda *each: jnp.stack(each), *ys)
  return x, None


def _pair(out: Any) -> tuple[Array, Any]:
  return out if isinstance(out, tuple) else (out, None)
