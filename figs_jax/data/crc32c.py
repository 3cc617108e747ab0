"""CRC-32C (Castagnoli), the checksum of TFRecord files, in NumPy.

The checksum is linear over GF(2): that of a block is the exclusive or of one
table entry for each byte and place, and a further zero byte is a linear map of
it. Blocks are therefore summed all at once.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reversed
_BLOCK = 512
_ONES = 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
  """CRC-32C of some bytes (RFC 3720, appendix B.4).

  >>> hex(crc32c(b"123456789"))
  '0xe3069283'
  """
  return int(crc32c_of_rows(np.frombuffer(data, np.uint8)[None])[0])


def masked(crc: Any) -> Any:
  """The form in which TFRecord stores checksums, rotated and shifted.

  Args:
    crc: Integer, or array of uint32.

  >>> hex(masked(0xE3069283))
  '0xc78ab0e5'
  """
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ONES


def crc32c_of_rows(rows: np.ndarray) -> np.ndarray:
  """CRC-32C of each row of uint8 [n, length], as uint32 [n].

  >>> crc32c_of_rows(np.zeros((2, 32), np.uint8)).tolist() == [0x8A9136AA] * 2
  True
  """
  count, length = rows.shape
  # Zeros before the first byte change nothing while the register is 0.
  blocks = -(-length // _BLOCK)
  padded = np.zeros((count, blocks * _BLOCK), np.uint8)
  start = blocks * _BLOCK - length
  padded[:, start:] = rows
  # A register of ones inverts the first four bytes.
  padded[:, start : start + 4] ^= 0xFF
  first = np.full(count, _ONES, np.uint32)
  if length < 4:  # the ones are not all shifted out
    first >>= np.uint32(8 * length)
  else:
    first[:] = 0
  places = padded.reshape(count, blocks, _BLOCK) + _starts()
  parts = np.bitwise_xor.reduce(_table()[places], axis=-1)
  level = 0
  while parts.shape[1] > 1:  # neighbours, of blocks twice as long each time
    if parts.shape[1] % 2:
      parts = np.pad(parts, ((0, 0), (1, 0)))
    parts = _after_zeros(parts[:, ::2], level) ^ parts[:, 1::2]
    level += 1
  crc = parts[:, 0] if blocks else np.uint32(0)
  return crc ^ first ^ np.uint32(_ONES)


def _after_zeros(crc: np.ndarray, level: int) -> np.ndarray:
  """The register after 2**level blocks of zeros."""
  table = _advance(level)
  return functools.reduce(
    np.bitwise_xor, (table[i][crc >> 8 * i & 0xFF] for i in range(4))
  )


@functools.cache
def _byte_table() -> np.ndarray:
  """The register after one byte, uint32 [256]."""
  crc = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    crc = crc >> 1 ^ np.where(crc & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
  return crc


@functools.cache
def _table() -> np.ndarray:
  """The register at the end of a block after a byte at a place, flat."""
  one = _byte_table()
  rows = [one]
  for _ in range(_BLOCK - 1):
    rows.append(rows[-1] >> 8 ^ one[rows[-1] & 0xFF])
  return np.concatenate(rows[::-1])


@functools.cache
def _starts() -> np.ndarray:
  return 256 * np.arange(_BLOCK, dtype=np.int32)


@functools.cache
def _advance(level: int) -> np.ndarray:
  """The register after 2**level blocks of zeros, by byte and value [4, 256]."""
  if level:
    half = _advance(level - 1)
    return _after_zeros(half, level - 1)
  one = _byte_table()
  shifts = 8 * np.arange(4, dtype=np.uint32)[:, None]
  crc = np.arange(256, dtype=np.uint32) << shifts
  for _ in range(_BLOCK):
    crc = crc >> 8 ^ one[crc & 0xFF]
  return crc
