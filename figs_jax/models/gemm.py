"""One matrix product as a row for `figs_jax.models.layers_of`."""

from __future__ import annotations

from typing import Any


def row(
  name: str, m: int, n: int, k: int, layer: Any = None, count: int = 1
) -> dict[str, Any]:
  """`count` products (M x K)(K x N).

  Args:
    name: path of the kernel without "/kernel", or of a product of activations.
    m, n, k: sizes.
    layer: whose kernel is the K x N operand and gives the pattern; None for a
      product of activations.
    count: how many such products.

  >>> row("head", 2, 10, 64)["K"]
  64
  """
  pattern = None if layer is None else layer.pattern
  return {
    "name": name, "M": m, "N": n, "K": k, "pattern": pattern, "count": count,
  }  # fmt: skip
