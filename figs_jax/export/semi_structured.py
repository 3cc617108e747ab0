"""2:4 matrices in PyTorch's layout for sparse tensor cores (CUTLASS).

A weight is [out, in] with 16-bit values and groups of four along `in`. `packed`
[out, in / 2] holds two values of every group in order. `meta` [out, in / 16],
int16, holds their positions: four bits per group, the position of the first
value in the lower two and of the second in the upper two, and four groups per
word from its low end. The words are then ordered as the hardware fetches them
(`_places`).

This equals `torch.sparse.to_sparse_semi_structured` with its CUTLASS backend,
bit for bit; the layout of cuSPARSELt is not public. A group of fewer than two
entries also keeps a zero, at the position that PyTorch chooses. -0.0 is stored
as 0.0.
"""

from __future__ import annotations

import numpy as np

from figs_jax.core.types import Shaped
from figs_jax.export.atomic_write import ExportError

ROWS, COLUMNS = 32, 64
# Key: bit j is set if entry j of the group is used. Value: the four bits of
# metadata. Three or four entries have no code.
_CODES = {
  0b0000: 0b1110,
  0b0001: 0b1000,
  0b0010: 0b1001,
  0b0100: 0b1110,
  0b1000: 0b1110,
  0b0011: 0b0100,
  0b0101: 0b1000,
  0b1001: 0b1100,
  0b0110: 0b1001,
  0b1010: 0b1101,
  0b1100: 0b1110,
}
_TABLE = np.zeros(16, np.uint16)
_TABLE[list(_CODES)] = list(_CODES.values())
_SHIFTS = np.arange(0, 16, 4, dtype=np.uint16)


def fits(shape: tuple[int, ...]) -> bool:
  """Whether a weight of this shape fits the layout.

  >>> fits((32, 64)), fits((10, 64)), fits((3, 3, 32, 64))
  (True, False, False)
  """
  return (
    len(shape) == 2
    and min(shape) > 0
    and not shape[0] % ROWS
    and not shape[1] % COLUMNS
  )


def compress(
  weight: Shaped[np.ndarray, "out inputs"], name: str = "weight"
) -> tuple[Shaped[np.ndarray, "out half"], Shaped[np.ndarray, "out sixteenth"]]:
  """(packed, meta) of a 2:4 weight of 16-bit floats.

  Args:
    weight: Weight [out, in], with out a multiple of 32 and in of 64.
    name: Name of the tensor in error messages.

  Raises:
    ExportError: If dtype or shape do not fit, or a group has more than two
      entries.

  >>> weight = np.zeros((32, 64), np.float16)
  >>> weight[:, 1::4] = 3
  >>> packed, meta = compress(weight)
  >>> packed[0, :4].tolist(), hex(int(meta[0, 0]) % 2**16)
  ([3.0, 0.0, 3.0, 0.0], '0x9999')
  """
  _check(weight.shape, weight.dtype, name)
  rows, columns = weight.shape
  groups = weight.view(np.uint16).reshape(rows, columns // 4, 4)
  used = (groups << 1) != 0  # without the sign: -0.0 is a zero
  key = used @ np.array([1, 2, 4, 8], np.uint8)
  code = _TABLE[key]
  if not code.all():
    row, group = np.argwhere(code == 0)[0]
    raise ExportError(
      f"{name}: the group of 4 along axis 1 that starts at entry"
      f" {(int(row), int(group) * 4)} holds {int(used[row, group].sum())}"
      " entries, expected at most 2 (2:4)"
    )
  first, second = code & 3, code >> 2
  both = np.stack([first, second], axis=-1).astype(np.int64)
  kept = np.take_along_axis(np.where(used, groups, 0), both, axis=-1)
  packed = kept.astype(np.uint16).reshape(rows, columns // 2)
  words = (code.reshape(rows, columns // 16, 4) << _SHIFTS).sum(-1)
  meta = np.empty(words.size, np.uint16)
  meta[_places(rows, columns // 16)] = words
  return packed.view(weight.dtype), meta.reshape(words.shape).view(np.int16)


def decompress(
  packed: Shaped[np.ndarray, "out half"],
  meta: Shaped[np.ndarray, "out sixteenth"],
  name: str = "weight",
) -> Shaped[np.ndarray, "out inputs"]:
  """Restores the weight that was compressed.

  Args:
    packed: Kept values.
    meta: Positions of the values, int16.
    name: Name of the tensor in error messages.

  Raises:
    ExportError: If the parts do not match, or the metadata does not name two
      positions in order.

  >>> weight = np.zeros((32, 64), np.float16)
  >>> weight[3, 6:8] = 1, 2
  >>> bool((decompress(*compress(weight)) == weight).all())
  True
  """
  rows, half = packed.shape
  columns = 2 * half
  _check((rows, columns), packed.dtype, name)
  if meta.shape != (rows, columns // 16) or meta.dtype != np.int16:
    raise ExportError(
      f"{name}: expected int16 metadata of shape {(rows, columns // 16)}, got"
      f" {meta.dtype} of {meta.shape}; read it again"
    )
  words = meta.view(np.uint16).reshape(-1)[_places(rows, columns // 16)]
  code = (words[..., None] >> _SHIFTS) & 15
  if not np.isin(code, list(set(_CODES.values()))).all():
    raise ExportError(
      f"{name}: expected metadata with 2 places of every 4 in order; read it"
      " again"
    )
  both = np.stack([code & 3, code >> 2], axis=-1).astype(np.int64)
  groups = np.zeros((rows, columns // 4, 4), np.uint16)
  values = np.ascontiguousarray(packed).view(np.uint16)
  np.put_along_axis(
    groups,
    both.reshape(rows, columns // 4, 2),
    values.reshape(rows, columns // 4, 2),
    axis=-1,
  )
  return groups.reshape(rows, columns).view(packed.dtype)


def _places(rows: int, columns: int) -> np.ndarray:
  """The position of each word of metadata [rows, columns] in the flat result.

  Blocks of 32 rows are interleaved eight at a time, each 2 x 2 block is
  transposed, and pairs of columns follow one another.
  """
  row, column = np.arange(rows)[:, None], np.arange(columns)[None]
  row = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
  odd_row, odd_column = row % 2, column % 2
  row, column = row - odd_row + odd_column, column - odd_column + odd_row
  return column // 2 * (2 * rows) + row * 2 + column % 2


def _check(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
  if dtype.name not in ("float16", "bfloat16"):
    raise ExportError(
      f"{name}: expected 16-bit floats, got {dtype}; cast it to bfloat16 or"
      " float16 (--dtype)"
    )
  if not fits(shape):
    raise ExportError(
      f"{name}: expected [out, in] with out a multiple of {ROWS} and in of"
      f" {COLUMNS}, got {shape}; keep it dense"
    )
