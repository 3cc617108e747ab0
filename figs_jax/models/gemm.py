"""A matrix product as a row of `figs_jax.models.gemms_of`."""

from __future__ import annotations

from typing import Any


def row(
  name: str, m: int, n: int, k: int, layer: Any = None, count: int = 1
) -> dict[str, Any]:
  """A row of `count` products (M x K)(K x N).

  Args:
    name: Path of the kernel without "/kernel", or name of a product of
      activations.
    m: Rows of the activations.
    n: Columns of the weight.
    k: Length of the contraction.
    layer: Layer whose kernel is the K x N operand and has the pattern. None for
      a product of activations.
    count: Number of such products.

  >>> row("head", 2, 10, 64)["K"]
  64
  """
  pattern = getattr(layer, "pattern", None)  # a plain nnx.Embed has none
  return {
    "name": name, "M": m, "N": n, "K": k, "pattern": pattern, "count": count,
  }  # fmt: skip
