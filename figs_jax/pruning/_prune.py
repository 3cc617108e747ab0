"""`figs_jax.prune`: one-shot pruning of a whole model, block by block.

The layers of a block get the second moments of their inputs from one pass over
the calibration batches, in which all earlier blocks are pruned already; then
they are pruned, and the moments are freed. So the largest memory beside the
model is the moments of one block and the activations of one batch. Each pass
ends with the block (XLA removes what follows), so that B blocks take about
(B + 1) / 2 forward passes over the calibration data. No activations are stored.

A block is named by the path of a layer up to its last number, as in
`blocks/3` or `decoder/blocks/0`; a layer without one is a block of its own.
Layers of a block that read the same array share a moment.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules, Words
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Array, Float
from figs_jax.nn import Masked, masked_leaves, sparsify
from figs_jax.pruning.layouts import Layout
from figs_jax.pruning.methods import check_options, check_pattern, prune_kernel
from figs_jax.pruning.moments import dead_inputs, energy
from figs_jax.pruning.recording import (
  Counted,
  Place,
  Recorder,
  counted_of,
  record,
)
from figs_jax.pruning.stacks import restack, unstack

M = TypeVar("M", bound=nnx.Module)
Batch = Any


@dataclasses.dataclass(frozen=True)
class PrunedLayer:
  """What became of one kernel.

  Attributes:
    path: Path of the kernel; one of scanned blocks has its number.
    pattern: Its pattern.
    error: ||X W - X W'||^2 / ||X W||^2 on the calibration data.
    rows: Number of rows of X.
    dead: Number of inputs that are 0 in every row.
    block: Name of its block.
    moment_bytes: Bytes of the second moments that were held for the block.
  """

  path: str
  pattern: NM
  error: float
  rows: int
  dead: int
  block: str
  moment_bytes: int


def prune(
  model: M,
  batches: Iterable[Batch],
  pattern: Rules | NM | str,
  method: str = "sparsegpt",
  *,
  transposable: bool = False,
  refit: bool = False,
  words: Words | None = None,
  counted_rows: Callable[..., Mapping[str, Any]] | None = None,
  on_layer: Callable[[PrunedLayer], None] | None = None,
  **options: Any,
) -> tuple[M, list[PrunedLayer]]:
  """Prunes a dense model once, from calibration data.

  Works for any NNX model: the inputs are seen where the layers that `sparsify`
  would mask are called. Moments are sums in float32, rows are counted exactly.

  Padding does not count where the model has `counted_rows(*args)`, which maps a
  regex of layers' paths to a Boolean mask [batch, length] of the rows that
  count (the first match decides; other layers count every row). T5 has it.

  Args:
    model: Dense model; it stays as it is.
    batches: Inputs of the call of the model: an array, a tuple of arguments, or
      a dictionary of keyword arguments. They are read once per block, so that a
      generator does not do.
    pattern: `NM`, `Rules` or their text, as for `sparsify`.
    method: Method of `figs_jax.pruning.prune_kernel`.
    transposable: Whether masks are N:M along the outputs as well.
    refit: Whether the kept weights are replaced by the best ones of the mask.
    words: Regexes of paths by further words, as for `sparsify`.
    counted_rows: Function of a batch's arguments in place of the model's.
    on_layer: Function that is called after each layer.
    **options: Options of the method, as for `prune_kernel`.

  Returns:
    The pruned model, with masks and in evaluation mode, and a report in the
    order of pruning.

  Raises:
    ValueError: If the model has masks, the batches are missing, invalid or not
      finite, a layer with a pattern is never called or cannot be pruned, or
      `sparsify` or `prune_kernel` raises it.

  >>> class MLP(nnx.Module):
  ...   def __init__(self, rngs):
  ...     self.fc1 = nnx.Linear(4, 16, rngs=rngs)
  ...     self.fc2 = nnx.Linear(16, 4, rngs=rngs)
  ...   def __call__(self, x):
  ...     return self.fc2(nnx.relu(self.fc1(x)))
  >>> x = jax.random.normal(jax.random.key(0), (32, 4))
  >>> pruned, layers = prune(MLP(nnx.Rngs(0)), [x], "fc2/kernel: 2:4", "wanda")
  >>> [(layer.path, layer.rows) for layer in layers]
  [('fc2/kernel', 32)]
  >>> int((pruned.fc2.kernel[...] == 0).sum())
  32
  """
  check_options(method, options, refit=refit, transposable=transposable)
  name = type(model).__name__
  if masked_leaves(model):
    raise ValueError(
      f"{name}: expected a dense model, got one with masks; pass the model"
      " before sparsify"
    )
  batches = batches if hasattr(batches, "__len__") else _repeatable(batches)
  sparse, dense = sparsify(model, pattern, words=words), nnx.clone(model)
  for leaf in masked_leaves(sparse).values():
    check_pattern(method, leaf.pattern, transposable=transposable)
  places = unstack(sparse)
  unstack(dense)
  dense.eval()
  walk = _Walk(dense, sparse, transposable)
  calls = walk.calls(_first(name, batches))
  counted = counted_rows or getattr(model, "counted_rows", None)
  report = []
  for block, groups in walk.blocks(calls).items():
    moments = walk.moments(block, groups, batches, counted)
    held = sum(moment.nbytes for moment, _ in moments.values())
    for first, paths in groups.items():
      moment, rows = moments.pop(first)
      for path in paths:
        error = walk.prune(
          path,
          moment,
          method,
          {"transposable": transposable, "refit": refit, **options},
        )
        dead = int(sum(dead_inputs(h).sum() for h in moment))
        leaf = walk.leaves[path]
        layer = PrunedLayer(path, leaf.pattern, error, rows, dead, block, held)
        report.append(layer)
        if on_layer is not None:
          on_layer(layer)
      del moment
  restack(sparse, places)
  sparse.eval()
  return sparse, report


class _Walk:
  """A dense model whose layers are pruned one after another.

  Attributes:
    dense: Model that runs; pruned kernels replace its own.
    leaves: Kernels with a pattern by path.
    layouts: Their layouts.
    layers: Module paths of the layers that hold each kernel (several if tied).
  """

  def __init__(self, dense: Any, sparse: Any, transposable: bool):
    self.dense, self.name = dense, type(dense).__name__
    self.leaves: dict[str, MaskedKernel] = masked_leaves(sparse)
    if not self.leaves:
      raise ValueError(f"{self.name}: expected a pattern that masks a kernel")
    self.layouts: dict[str, Layout] = {}
    self.layers: dict[str, list[tuple[Any, ...]]] = {}
    self._sparse: dict[str, Masked] = {}
    paths: dict[int, str] = {}
    modules = [
      (tuple(path), module)
      for path, module in nnx.iter_modules(sparse)
      if isinstance(module, Masked) and module.pattern is not None
    ]
    for parts, layer in modules:
      path = "/".join(map(str, (*parts, "kernel")))
      if path in self.leaves:
        leaf = self.leaves[path]
        self.layouts[path] = layout = Layout.of(path, layer, leaf.axis)
        paths[id(layer.kernel)], self._sparse[path] = path, layer
        width = math.prod(layout.split[a] for a in layout.free)
        if transposable and width % leaf.pattern.m:
          raise ValueError(
            f"{path}: expected a multiple of m={leaf.pattern.m} outputs for"
            f" transposable masks, got {width}; leave it out of the pattern"
          )
    for parts, layer in modules:
      self.layers.setdefault(paths[id(layer.kernel)], []).append(parts)

  def calls(self, batch: Batch) -> list[tuple[str, int]]:
    """(path, number of the input array) of every call of a layer, in order."""
    listed: list[Any] = []
    model = nnx.clone(self.dense)
    modules = _modules(model)
    for path, layers in self.layers.items():
      for parts in layers:
        record(modules[parts], Place(path, self.layouts[path], listed), None)
    graphdef, state = nnx.split(model)
    self._run(
      lambda state, batch: jax.eval_shape(
        lambda state, batch: _apply(nnx.merge(graphdef, state), batch),
        state,
        batch,
      ),
      state,
      batch,
    )
    numbers: dict[int, int] = {}
    # `listed` holds the arrays, so that their ids are not used again.
    return [
      (path, numbers.setdefault(id(x), len(numbers))) for path, x in listed
    ]

  def blocks(
    self, calls: list[tuple[str, int]]
  ) -> dict[str, dict[str, list[str]]]:
    """Block -> first layer -> the layers that share its moment."""
    inputs: dict[str, list[int]] = {}
    for path, number in calls:
      inputs.setdefault(path, []).append(number)
    if missing := [path for path in self.leaves if path not in inputs]:
      raise ValueError(
        f"{missing[0]}: expected a layer that the model calls on the"
        " calibration data, got no call; leave it out of the pattern"
      )
    modules = _modules(self.dense)
    firsts: dict[Any, str] = {}
    blocks: dict[str, dict[str, list[str]]] = {}
    for path, numbers in inputs.items():
      block, layout = _block_of(path), self.layouts[path]
      layer = modules[self.layers[path][0]]
      kind: Any = path
      if isinstance(layer, (nnx.Linear, nnx.LinearGeneral)):
        sizes = tuple(layout.split[a] for a in layout.contracted)
        kind = (getattr(layer, "axis", -1), layout.contracted, sizes)
      first = firsts.setdefault((block, tuple(numbers), kind), path)
      blocks.setdefault(block, {}).setdefault(first, []).append(path)
    return blocks

  def moments(
    self,
    block: str,
    groups: Mapping[str, list[str]],
    batches: Iterable[Batch],
    counted: Callable[..., Mapping[str, Any]] | None,
  ) -> dict[str, tuple[Float[Array, "s k k"], int]]:
    """Second moments and numbers of rows of a block's layers."""
    model = nnx.clone(self.dense)
    modules = _modules(model)
    for path in groups:
      stack, k, _ = (
        self.layouts[path]
        .matrices(jnp.zeros(self.leaves[path].shape, bool))
        .shape
      )
      for parts in self.layers[path]:
        record(modules[parts], Place(path, self.layouts[path]), (stack, k))
    graphdef, state = nnx.split(model)

    @jax.jit
    def one_batch(state: Any, batch: Batch) -> Any:
      model = nnx.merge(graphdef, state)
      recorders = [
        module
        for _, module in nnx.iter_modules(model)
        if isinstance(module, Recorder)
      ]
      masks = {} if counted is None else _apply(counted, batch)
      for layer in recorders:
        mask = counted_of(layer.place.path, masks)
        if mask is not None:
          layer.counted = Counted(jnp.asarray(mask))
      _apply(model, batch)
      sums: dict[str, Any] = {}
      for layer in recorders:
        new = layer.moment[...], layer.count[...]
        old = sums.get(layer.place.path)
        sums[layer.place.path] = (
          new if old is None else jax.tree.map(jnp.add, old, new)
        )
      return sums

    totals: dict[str, Any] = {}
    for batch in batches:
      for path, (moment, count) in self._run(one_batch, state, batch).items():
        old, rows = totals.get(path, (jnp.zeros_like(moment), 0))
        totals[path] = old + moment, rows + int(count)
    for path, (moment, rows) in totals.items():
      if not rows:
        raise ValueError(
          f"{path}: expected calibration data with a row that counts, got none"
        )
      if not bool(jnp.isfinite(moment).all()):
        raise ValueError(
          f"{path}: expected finite inputs and weights, got NaN or infinity in"
          f" the inputs of {block} on the calibration data"
        )
    return totals

  def prune(
    self,
    path: str,
    moment: Float[Array, "s k k"],
    method: str,
    options: dict[str, Any],
  ) -> float:
    """Prunes a kernel in both models, and returns the error of its layer."""
    layer, layout = self._sparse[path], self.layouts[path]
    pattern = self.leaves[path].pattern
    kernel = layer.kernel[...]
    matrices, parts, lost, whole = layout.matrices(kernel), [], 0.0, 0.0
    for w, h in zip(matrices, moment):
      try:
        new, mask = prune_kernel(w, h, pattern, method, **options)
      except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
      parts.append((new, mask))
      w, new = w.astype(jnp.float32), new.astype(jnp.float32)
      lost += float(energy(w - new, h))
      whole += float(energy(w, h))
    new, mask = (
      layout.kernel(jnp.stack(each), kernel.shape) for each in zip(*parts)
    )
    layer.kernel.set_value(new)
    layer.kernel_mask.set_value(mask)
    _modules(self.dense)[self.layers[path][0]].kernel.set_value(new)
    return lost / whole if whole > 0 else 0.0

  def _run(self, function: Any, state: Any, batch: Batch) -> Any:
    """The result of a function that calls the model, with a clear error."""
    try:
      return function(state, batch)
    except ValueError:
      raise
    except Exception as error:  # whatever a user's own call raises
      shapes = ", ".join(
        f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(batch)
      )
      reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
      raise ValueError(
        f"{self.name}: expected a model that can be called with a calibration"
        f" batch ({shapes}), got {reason}"
      ) from error


def _modules(model: nnx.Module) -> dict[tuple[Any, ...], Any]:
  return {tuple(path): module for path, module in nnx.iter_modules(model)}


def _apply(function: Callable[..., Any], batch: Batch) -> Any:
  if isinstance(batch, Mapping):
    return function(**batch)
  return function(*batch) if isinstance(batch, tuple) else function(batch)


def _block_of(path: str) -> str:
  """The path up to its last number, or its first part.

  >>> _block_of("encoder/blocks/3/attn/q/kernel"), _block_of("head/kernel")
  ('encoder/blocks/3', 'head')
  """
  parts = path.split("/")
  numbers = [i for i, part in enumerate(parts) if part.isdigit()]
  return "/".join(parts[: numbers[-1] + 1]) if numbers else parts[0]


def _repeatable(batches: Iterable[Batch]) -> Iterable[Batch]:
  if iter(batches) is batches:
    raise ValueError(
      "Expected batches that can be read once per block, got an iterator; pass"
      " a list, as in list(batches)"
    )
  return batches


def _first(name: str, batches: Iterable[Batch]) -> Batch:
  for batch in batches:
    return batch
  raise ValueError(f"{name}: expected calibration batches, got none")
