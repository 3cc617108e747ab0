"""`permute_channels`: channel orders of a whole model, its outputs unchanged.

The channels between two layers may change places if the first layer's outputs
and the second layer's inputs change alike. A `Channels` entry names such a pair
inside a module, and a model class lists its entries in `movable_channels`.
Channels of a residual stream are in no entry: every block reads and writes
them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from figs_jax.core.masks import kept_magnitude, nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.permutation import permute
from figs_jax.core.rules import Rules, Words
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.types import Array
from figs_jax.nn._sparsify import RecipeLike, masked_leaves, sparsify
from figs_jax.nn._with_flow import scale_of
from figs_jax.nn.kernel_axes import stacked_shape
from figs_jax.nn.layers import Masked
from figs_jax.nn.variables import Leak, Scale

M = TypeVar("M", bound=nnx.Module)
# Variables of a layer that have one entry per kernel.
_SCALARS = (Leak, Scale, nnx.RngState)


@dataclasses.dataclass(frozen=True)
class Channels:
  """Channels that some layers of a module produce and one layer consumes.

  Attributes:
    inside: Regex of the whole path of the module, as in
      `r"blocks/(?:\\d+/)?mlp"`.
    producers: Regex of the paths of the producers inside of the module. The
      last axis of each of their variables has the channels, as of the kernel
      and bias of a linear layer or a convolution, or of a norm between.
    consumer: Regex of the path of the linear layer or convolution that reads
      the channels on axis -2 of its kernel.
    heads: Attribute of the module with the number of heads that part the
      consumer's channels, which stay in their head; "" if there are none. If
      the producers have fewer channels, consecutive heads share them, as in
      grouped-query attention.

  >>> Channels(r"blocks/\\d+/mlp", producers="fc1", consumer="fc2").heads
  ''
  """

  inside: str
  producers: str
  consumer: str
  heads: str = ""


@dataclasses.dataclass(frozen=True)
class PermutedKernel:
  """What a permutation of channels did for a kernel that reads them.

  Attributes:
    path: Path of the kernel.
    pattern: Pattern of the kernel.
    before: Share of sum |w| that the N:M mask kept in the given order.
    after: That share in the new order.
    obstacle: Why the channels stayed in their order; "" if they were free.
  """

  path: str
  pattern: NM
  before: float
  after: float
  obstacle: str = ""

  def __str__(self) -> str:
    kept = f"{self.path} {self.pattern}: kept {self.before:.4f}"
    end = f"; {self.obstacle}" if self.obstacle else ""
    return f"{kept} -> {self.after:.4f}{end}"


def permute_channels(
  model: M,
  rules: Rules | NM | str | RecipeLike | None = None,
  *,
  method: str = "greedy",
  escapes: int | None = None,
  seed: int = 0,
  words: Words | None = None,
  channels: Sequence[Channels] | None = None,
) -> tuple[M, list[PermutedKernel]]:
  """Orders the hidden channels of a model so that N:M masks keep more of |w|.

  The dense model computes the same outputs as before. Each consumer with a
  pattern gets its own order, and so does each layer of a scanned stack; a
  kernel that stays dense is not permuted. The input stays as it is.

  A model without masks stays without them: call `sparsify` next. In a model
  with masks, the masks of the producers move with their kernels, and those of
  the consumers (with their S-STE scales) are computed anew from |kernel|, as
  `sparsify` does; train states compute the masks of their recipe themselves.
  Finished models do not gain, since the weights to choose from are gone.

  Args:
    model: Model with weights, dense or from `sparsify`.
    rules: The rules or recipe that the model will be sparsified with; None for
      a model with masks, whose patterns are used. Of a recipe, or a schedule of
      patterns, it is the last pattern that counts.
    method: Method of `figs_jax.core.permute`.
    escapes: Number of random changes that `greedy` recovers from. Defaults to
      that of `figs_jax.core.permute` for the channels of each consumer.
    seed: Seed of everything random.
    words: Regexes of paths by further words, as for `sparsify`.
    channels: Channels that may move. Defaults to `movable_channels` of the
      model.

  Returns:
    The model, and an entry for every consumer that has a pattern.

  Raises:
    ValueError: If the model has masks and rules are given, or neither; the
      class lists no channels; an entry names no layers or layers that do not
      fit; or `sparsify` or `figs_jax.core.permute` raises it.

  >>> class MLP(nnx.Module):
  ...   movable_channels = (Channels("", producers="fc1", consumer="fc2"),)
  ...   def __init__(self, rngs):
  ...     self.fc1 = nnx.Linear(4, 16, rngs=rngs)
  ...     self.fc2 = nnx.Linear(16, 4, rngs=rngs)
  ...   def __call__(self, x):
  ...     return self.fc2(nnx.relu(self.fc1(x)))
  >>> model = MLP(nnx.Rngs(0))
  >>> permuted, (fc2,) = permute_channels(model, "fc2/kernel: 1:4")
  >>> fc2.path, fc2.after > fc2.before
  ('fc2/kernel', True)
  >>> x = jnp.ones((1, 4))
  >>> bool(jnp.allclose(permuted(x), model(x), atol=1e-6))
  True
  """
  name = type(model).__name__
  leaves = masked_leaves(model)
  if (rules is None) == (not leaves):
    wanted = "rules, since" if rules is None else "no rules, since"
    has = "no masks" if rules is None else "masks, whose patterns are used"
    raise ValueError(f"{name}: expected {wanted} the model has {has}")
  if rules is not None:
    leaves = masked_leaves(sparsify(model, rules, words=words))
  if channels is None:
    channels = getattr(model, "movable_channels", None)
  if not channels:
    raise ValueError(
      f"{name}: expected channels= or a class attribute movable_channels with"
      " the channels that may move, got none"
    )
  model = nnx.clone(model)
  modules = [
    ("/".join(map(str, path)), module)
    for path, module in nnx.iter_modules(model)
  ]
  report = []
  for entry in channels:
    places = [(p, m) for p, m in modules if re.fullmatch(entry.inside, p)]
    if not places:
      raise ValueError(f"{name} has no module at {entry.inside}, as {entry}")
    for path, module in places:
      junction = _Junction.of(entry, path, module)
      leaf = leaves.get(junction.path)
      if leaf is None:
        continue
      before = _kept(junction.consumer, leaf)
      obstacle = junction.obstacle(leaf)
      if not obstacle:
        junction.permute(leaf.pattern, method, escapes, seed)
        _renew_mask(junction.consumer, leaf)
      after = _kept(junction.consumer, leaf)
      report.append(
        PermutedKernel(junction.path, leaf.pattern, before, after, obstacle)
      )
  return model, report


@dataclasses.dataclass(frozen=True)
class _Junction:
  """The layers on both sides of some channels.

  Attributes:
    path: Path of the consumer's kernel.
    lead: Leading axes of a stack.
    inputs: Number of channels of the consumer.
    outputs: Number of channels of each producer.
    heads: Number of heads that part the inputs.
  """

  path: str
  consumer: Any
  producers: tuple[Any, ...]
  lead: tuple[int, ...]
  inputs: int
  outputs: int
  heads: int

  @classmethod
  def of(cls, entry: Channels, path: str, module: Any) -> _Junction:
    """The layers of an entry inside of the module at `path`."""
    layers = {
      "/".join(map(str, relative)): layer
      for relative, layer in nnx.iter_modules(module)
    }
    readers = [p for p in layers if re.fullmatch(entry.consumer, p)]
    name = readers[0] if len(readers) == 1 else entry.consumer
    consumer = layers.get(name)
    producers = tuple(
      layer
      for relative, layer in layers.items()
      if re.fullmatch(entry.producers, relative)
    )
    where = f"{path}/{name}".lstrip("/")
    if not isinstance(consumer, (nnx.Linear, nnx.Conv)) or not producers:
      raise ValueError(
        f"{where}: expected a linear layer or a convolution with producers"
        f" {entry.producers}, got {type(consumer).__name__} and"
        f" {len(producers)} producers inside of {path or 'the model'}"
      )
    shape = consumer.kernel.shape
    heads = getattr(module, entry.heads) if entry.heads else 1
    outputs = _produced(producers[0])[0].shape[-1]
    junction = cls(
      path=f"{where}/kernel",
      consumer=consumer,
      producers=producers,
      lead=stacked_shape(consumer, where),
      inputs=shape[-2],
      outputs=outputs,
      heads=heads,
    )
    depth = shape[-2] // heads
    if shape[-2] % heads or outputs % depth or heads % (outputs // depth):
      raise ValueError(
        f"{where}: expected as many inputs as its producers have outputs, or"
        f" heads that share them, got {shape[-2]} inputs, {outputs} outputs and"
        f" {heads} heads"
      )
    for variable in (v for layer in producers for v in _produced(layer)):
      if variable.shape[-1] != outputs:
        raise ValueError(
          f"{where}: expected {outputs} channels on the last axis of every"
          f" variable of its producers, got shape {variable.shape}"
        )
    return junction

  @property
  def depth(self) -> int:
    """Number of channels of a head."""
    return self.inputs // self.heads

  def obstacle(self, leaf: MaskedKernel) -> str:
    """Why these channels cannot be permuted for the groups of a mask."""
    if leaf.axis != -2:
      return f"groups lie on axes {leaf.axis}, not on the input channels"
    if getattr(self.consumer, "input_pattern", None) is not None:
      return "its input is pruned in groups of the present order"
    if self.depth % leaf.pattern.m:
      return f"m={leaf.pattern.m} does not divide a head of {self.depth}"
    return ""

  def permute(
    self, pattern: NM, method: str, escapes: int | None, seed: int
  ) -> None:
    """Puts the channels of every layer of a stack in a better order."""
    layers = math.prod(self.lead)
    kernel = np.abs(np.asarray(self.consumer.kernel[...].astype(jnp.float32)))
    rows = np.moveaxis(
      kernel.reshape(layers, -1, *kernel.shape[-2:]), -2, 1
    )  # layers, channels, kernel positions, outputs
    apart = self.outputs // self.depth
    # Heads that share channels of their producer get one order.
    scores = rows.reshape(layers, apart, -1, self.depth, rows[0, 0].size)
    orders = np.array(
      [
        [
          permute(s, pattern, 1, method=method, escapes=escapes, seed=seed)
          for s in layer
        ]
        for layer in scores
      ]
    )  # layers, heads of the producer, channels of a head
    shared = np.repeat(orders, self.heads // apart, axis=1)
    first = self.depth * np.arange(self.heads)[:, None]
    read = (shared + first).reshape(layers, -1)
    written = (orders + first[:apart]).reshape(layers, -1)
    for producer in self.producers:
      for variable in _produced(producer):
        variable.set_value(_taken(variable[...], written, -1, self.lead))
    for variable in _consuming(self.consumer):
      variable.set_value(_taken(variable[...], read, -2, self.lead))


def _produced(layer: nnx.Module) -> list[nnx.Variable]:
  """The variables of a layer with its outputs on the last axis."""
  return [
    node
    for path, node in nnx.iter_graph(layer)
    if isinstance(node, nnx.Variable)
    and not isinstance(node, _SCALARS)
    and path[:2] != ("adapter", "lora_a")
  ]


def _consuming(layer: Any) -> list[nnx.Variable]:
  """The parameters of a layer with its inputs on axis -2."""
  adapter = getattr(layer, "adapter", None)
  if adapter is None:
    return [layer.kernel]
  a: Any = adapter.lora_a  # a layer, with its mask, if a rule names it
  if isinstance(a, nnx.Variable):
    return [layer.kernel, a]
  masks = [a.kernel_mask] if hasattr(a, "kernel_mask") else []
  return [layer.kernel, a.kernel, *masks]


def _taken(
  array: Array, orders: np.ndarray, axis: int, lead: tuple[int, ...]
) -> Array:
  """Each layer of a stack along `axis` in its own order."""
  layers = array.reshape(len(orders), *array.shape[len(lead) :])
  taken = [jnp.take(x, order, axis) for x, order in zip(layers, orders)]
  return jnp.stack(taken).reshape(array.shape)


def _kept(layer: Any, leaf: MaskedKernel) -> float:
  kernel = layer.kernel[...]
  mask = nm_mask(jnp.abs(kernel), leaf.pattern, leaf.axis)
  return float(kept_magnitude(kernel, mask))


def _renew_mask(layer: Any, leaf: MaskedKernel) -> None:
  """Computes the mask and the scale of a masked layer from its kernel."""
  if not isinstance(layer, Masked) or layer.pattern is None:
    return
  kernel = jnp.abs(layer.kernel[...])
  layer.kernel_mask.set_value(nm_mask(kernel, leaf.pattern, leaf.axis))
  if layer.flow.soft:
    lead = stacked_shape(layer, "kernel")
    layer.scale.set_value(scale_of(layer, leaf.pattern, leaf.axis, lead))
