"""What a traced model computes beside its products, by kind, in values.

The trace is a graph of primitives. Each kind has one that no other part of our
models has: softmax a maximum over its logits, a norm the root of a sum of
squares, an activation erf, tanh, a logistic or a maximum with a number, and an
embedding a gather. A residual addition adds two full tensors of tokens.
"""

import dataclasses
import math

import jax

_ACTIVATIONS = ("erf", "erfc", "tanh", "logistic")


@dataclasses.dataclass(eq=False)
class Node:
  """A value: how it was made, from what, and its shape; inputs have no name."""

  name: str
  shape: tuple[int, ...]
  inputs: tuple["Node", ...] = ()

  @property
  def size(self):
    return math.prod(self.shape)


def values(fn, *args, width, rank=3):
  """Kind -> values that all its passes write.

  Args:
    fn: Model; its scans are refused.
    *args: Its inputs, which may be abstract.
    width: Channels of a residual stream, or several.
    rank: Number of axes of a residual stream.
  """
  nodes = _nodes(jax.make_jaxpr(fn)(*args))
  widths = (width,) if isinstance(width, int) else width
  sizes = dict.fromkeys(
    ("softmax", "norm", "activation", "embedding", "residual"), 0
  )
  for node in nodes:
    first = node.inputs[0] if node.inputs else None
    if node.name == "reduce_max":
      sizes["softmax"] += first.size
    elif node.name == "rsqrt":
      sizes["norm"] += _summed(node).size
    elif node.name in _ACTIVATIONS or _is_relu(node):
      sizes["activation"] += node.size
    elif node.name == "gather":
      sizes["embedding"] += node.size
    elif node.name in ("add", "add_any") and len(node.shape) == rank:
      shapes = {one.shape for one in node.inputs}
      full = all(map(_is_computed, node.inputs))
      if shapes == {node.shape} and node.shape[-1] in widths and full:
        sizes["residual"] += node.size
  return sizes


def _is_relu(node):
  # A maximum with a number, but not that which guards a softmax's maximum.
  if node.name != "max":
    return False
  small, wide = sorted(node.inputs, key=lambda one: len(one.shape))
  return small.size == 1 and wide.name != "reduce_max"


def _is_computed(node):
  """Whether a value is more than a broadcast parameter."""
  while node.name in ("broadcast_in_dim", "reshape", "convert_element_type"):
    node = node.inputs[0]
  return bool(node.name)


def _summed(node):
  """What is summed on the way to a root: the squares of a norm."""
  queue = [node]
  while queue:
    one = queue.pop(0)
    if one.name == "reduce_sum":
      return one.inputs[0]
    queue += one.inputs
  raise AssertionError("a root of no sum")


def _nodes(closed):
  nodes = []

  def walk(jaxpr, inputs):
    made = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs))

    def read(atom):
      if isinstance(atom, jax.extend.core.Literal):
        return Node("", atom.aval.shape)
      return made[atom]

    for equation in jaxpr.eqns:
      name, into = equation.primitive.name, [*map(read, equation.invars)]
      assert name not in ("scan", "while", "cond"), f"{name}: how often?"
      inner = [
        x
        for x in equation.params.values()
        if hasattr(getattr(x, "jaxpr", x), "eqns")
      ]
      if inner:
        body = inner[0]
        consts = [Node("", x.shape) for x in getattr(body, "consts", ())]
        body = getattr(body, "jaxpr", body)
        made |= zip(equation.outvars, walk(body, [*consts, *into]))
        continue
      for out in equation.outvars:
        node = Node(name, out.aval.shape, tuple(into))
        nodes.append(node)
        made[out] = node
    return [read(out) for out in jaxpr.outvars]

  jaxpr = closed.jaxpr
  starts = [*jaxpr.constvars, *jaxpr.invars]
  walk(jaxpr, [Node("", x.aval.shape) for x in starts])
  return nodes
