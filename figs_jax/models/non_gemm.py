"""What a forward pass does beside its products, as rows of values moved.

A pass reads its operands and writes its result once. Norms, softmax,
activations, residual additions, rotary positions, embeddings and pooling are
passes. What needs no tensor of its own beside a product's output, such as a
bias or a scale, is part of that product; reshapes, transposes, padding and
masks, which follow from positions, move nothing.
"""

from __future__ import annotations

from typing import Any

KINDS = (
  "embedding",
  "norm",
  "rotary",
  "softmax",
  "activation",
  "residual",
  "pooling",
)


def row(
  name: str, kind: str, reads: int, writes: int, count: int = 1
) -> dict[str, Any]:
  """A row of `count` passes.

  Args:
    name: Path of the operation.
    kind: One of `KINDS`.
    reads: Values that one pass reads, parameters included.
    writes: Values that one pass writes.
    count: Number of such passes.

  >>> row("pool", "pooling", reads=64, writes=8)["reads"]
  64
  """
  return {
    "name": name, "kind": kind, "reads": reads, "writes": writes,
    "count": count,
  }  # fmt: skip


def norm(
  name: str, tokens: int, width: int, count: int = 1, parameters: int = 2
) -> dict[str, Any]:
  """A norm of tokens with so many parameters per channel.

  >>> norm("norm", tokens=10, width=4)["reads"]
  48
  """
  size = tokens * width
  return row(name, "norm", size + parameters * width, size, count)


def softmax(
  name: str, logits: int, count: int = 1, bias: int = 0
) -> dict[str, Any]:
  """A softmax of logits, to which it may add a table.

  Args:
    name: Name of the operation.
    logits: Number of logits.
    count: Number of such operations.
    bias: Number of values of the table.

  >>> softmax("softmax", logits=20, bias=5)["reads"]
  25
  """
  return row(name, "softmax", logits + bias, logits, count)


def activation(
  name: str, size: int, count: int = 1, operands: int = 1
) -> dict[str, Any]:
  """An activation function.

  Args:
    name: Name of the operation.
    size: Number of results.
    count: Number of such operations.
    operands: Numbers that a result is made of; 2 for a gated activation.

  >>> activation("gelu", 20, operands=2)["reads"]
  40
  """
  return row(name, "activation", operands * size, size, count)


def residual(name: str, size: int, count: int = 1) -> dict[str, Any]:
  """The addition of a branch to its input.

  Args:
    name: Name of the operation.
    size: Number of results.
    count: Number of such operations.

  >>> residual("residual", 20)["reads"], residual("residual", 20)["writes"]
  (40, 20)
  """
  return row(name, "residual", 2 * size, size, count)
