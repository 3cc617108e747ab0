"""Small numbers packed into bytes without gaps, in NumPy.

Number s of width b occupies bits s*b to s*b + b-1 of the stream, least
significant first. Bit k of the stream is bit k % 8 of byte k // 8, counted from
the least significant. The unused bits of the last byte are 0.
"""

from __future__ import annotations

import numpy as np

from figs_jax.core.types import Int, Shaped


def pack_bits(
  numbers: Int[np.ndarray, " count"], width: int
) -> Shaped[np.ndarray, " bytes"]:
  """Packs numbers 0 <= x < 2^width into uint8.

  Args:
    numbers: Non-negative integers below 2^width.
    width: Bits per number, 1 to 32.

  >>> pack_bits(np.array([1, 3, 0, 2, 1]), 2).tolist()
  [141, 1]
  """
  if 8 % width == 0:  # several numbers per byte, no single bits
    lanes = 8 // width
    short = numbers.astype(np.uint8)
    short = np.pad(short, (0, -short.size % lanes)).reshape(-1, lanes)
    out = np.zeros(len(short), np.uint8)
    for i in range(lanes):
      out |= short[:, i] << np.uint8(i * width)
    return out
  kind = _kind(width)
  octets = numbers.astype(kind).view(np.uint8).reshape(-1, kind.itemsize)
  bits = np.unpackbits(octets, axis=1, count=width, bitorder="little")
  return np.packbits(bits.reshape(-1), bitorder="little")


def unpack_bits(
  stream: Shaped[np.ndarray, " bytes"], width: int, count: int
) -> Int[np.ndarray, " count"]:
  """Reads the first `count` numbers of the stream, as int64.

  >>> unpack_bits(np.array([141, 1], np.uint8), 2, 5).tolist()
  [1, 3, 0, 2, 1]
  """
  if 8 % width == 0:
    lanes, low = 8 // width, np.uint8(2**width - 1)
    out = np.empty((stream.size, lanes), np.int64)
    for i in range(lanes):
      out[:, i] = stream >> np.uint8(i * width) & low
    return out.reshape(-1)[:count]
  bits = np.unpackbits(stream, count=count * width, bitorder="little")
  kind = _kind(width)
  wide = np.zeros((count, 8 * kind.itemsize), np.uint8)
  wide[:, :width] = bits.reshape(count, width)
  octets = np.packbits(wide, axis=1, bitorder="little")
  return octets.view(kind).reshape(count).astype(np.int64)


def _kind(width: int) -> np.dtype:
  """The smallest integer of that many bits, low byte first."""
  return np.dtype("<u1" if width <= 8 else "<u4")
