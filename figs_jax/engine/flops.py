"""What an N:M model weighs and computes, from plain sizes.

A kept weight is stored with ceil(log2 m) index bits; a GEMM costs 2 M N K
FLOPs times the density of its weight, so that a model takes
total = SA + (n / m) FF (arXiv 2402.04744, appendix D).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine.int64 import ceil_div, is_traced, smaller
from figs_jax.engine.layers import Layers


def check_pattern(n: Any, m: Any) -> None:
  """Refuses to keep more than there is; traced patterns go unchecked.

  Raises:
    ValueError: n is above m.

  >>> check_pattern(5, 4)
  Traceback (most recent call last):
  ValueError: pattern n=5, m=4: keep n of every m with n <= m
  """
  if not is_traced(n, m) and np.any(np.asarray(n) > np.asarray(m)):
    raise ValueError(f"pattern n={n}, m={m}: keep n of every m with n <= m")


def check_itemsize(itemsize: Any) -> None:
  """Refuses bytes per value that are no whole number from 1.

  Raises:
    ValueError: they are not.

  >>> check_itemsize(0.5)
  Traceback (most recent call last):
  ValueError: itemsize=0.5: give the bytes per value, a whole number from 1
  """
  whole = isinstance(itemsize, Integral) and not isinstance(itemsize, bool)
  if not whole or itemsize < 1:
    raise ValueError(
      f"itemsize={itemsize!r}: give the bytes per value, a whole number from 1"
    )


def kept_depth(K: Any, n: Any, m: Any) -> Any:
  """Weights kept along K: n of each whole group, at most n of a last part."""
  return K // m * n + smaller(K % m, n)


def index_bits(n: Any, m: Any) -> Any:
  """ceil(log2 m) bits per kept weight; none if all are kept.

  >>> int(index_bits(2, 4)), int(index_bits(1, 5)), int(index_bits(4, 4))
  (2, 3, 0)
  """
  # The length of m - 1 in bits, by halves. Comparisons are no numbers under
  # strict promotion.
  left, bits = m - 1, 0
  for half in (16, 8, 4, 2, 1):
    high = left // 2**half
    is_longer = smaller(high, 1)
    bits = bits + half * is_longer
    left = high + left % 2**half * (1 - is_longer)
  return (bits + left) * smaller(m - n, 1)


def dense_bytes(size: int, itemsize: int) -> int:
  """Bytes of a tensor of `size` values.

  Args:
    size: number of values.
    itemsize: bytes per value.

  >>> dense_bytes(1024, 4)
  4096
  """
  return size * itemsize


def packed_bytes(size: int, pattern: NM | str | None, itemsize: int) -> int:
  """Bytes of a packed tensor: its kept values, then their indices.

  The indices of a tensor are rounded up to whole bytes together.

  Args:
    size: number of weights, kept or not.
    pattern: the tensor's pattern; None is dense.
    itemsize: bytes per value.

  Raises:
    ValueError: m does not divide size.

  >>> packed_bytes(1024, "2:4", 2), packed_bytes(1024, None, 2)
  (1152, 2048)
  """
  nm = NM(1, 1) if pattern is None else NM.parse(pattern)
  if nm.is_dense:
    return dense_bytes(size, itemsize)
  if size % nm.m:
    raise ValueError(
      f"packed_bytes: size {size} is not a multiple of m={nm.m}; pass"
      " pattern=None for a dense tensor"
    )
  kept = size // nm.m * nm.n
  return dense_bytes(kept, itemsize) + ceil_div(kept * nm.metadata_bits, 8)


def flops(layers: Layers | Iterable[Mapping[str, Any]]) -> np.ndarray:
  """Inference FLOPs of each layer, count included: 2 M N K count n / m.

  Args:
    layers: `Layers`, or the rows of a table.

  >>> row = {"name": "ff", "M": 4, "N": 8, "K": 8, "pattern": "1:4"}
  >>> flops([row])
  array([128.])
  """
  layers = Layers.of(layers)
  return _dense_flops(layers) * (layers.n / layers.m)


def train_flops(
  layers: Layers | Iterable[Mapping[str, Any]], leak_positive: bool = False
) -> np.ndarray:
  """FLOPs of one training step of each layer, count included.

  The forward pass takes the density s of the weight, or 1 while pruned entries
  still leak through. The input gradient takes 1, as it needs the transposed
  mask, whose groups lie across; so does the weight gradient, which is dense.

  Args:
    layers: a table, or its rows.
    leak_positive: whether the leak D is above 0.

  >>> row = {"name": "ff", "M": 4, "N": 8, "K": 8, "pattern": "1:4"}
  >>> train_flops([row]), train_flops([row], leak_positive=True)
  (array([1152.]), array([1536.]))
  """
  layers = Layers.of(layers)
  forward = 1.0 if leak_positive else layers.n / layers.m
  return _dense_flops(layers) * (forward + 1.0 + 1.0)


def _dense_flops(layers: Layers) -> np.ndarray:
  # In float64 throughout: a product of sizes may pass int64.
  columns = (layers.M, layers.N, layers.K, layers.count)
  return 2.0 * np.prod([np.asarray(c, np.float64) for c in columns], axis=0)
