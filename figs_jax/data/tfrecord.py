"""TFRecord files without TensorFlow: framing, checksums, random access.

A record is its length (uint64), a checksum of the length, the data, and a
checksum of the data, all little-endian; see `crc32c`. Files that end in .gz are
read in order only.
"""

from __future__ import annotations

import gzip
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from figs_jax.data.crc32c import crc32c, crc32c_of_rows, masked

_HEADER, FOOTER = 12, 4  # bytes around the data
_FIX = "copy the file again, or write it with tf.io.TFRecordWriter"


class Index(NamedTuple):
  """Where the records of a file are.

  Attributes:
    starts: Place of the data of each record in bytes, int64 [n].
    lengths: Number of bytes of each, int64 [n].
  """

  starts: np.ndarray
  lengths: np.ndarray


def scan(path: Path) -> Index:
  """Finds all records by their headers, and checks the headers.

  Args:
    path: Uncompressed file.

  Raises:
    ValueError: If the file is not a TFRecord file, or is cut short.
    OSError: If the file cannot be read.

  >>> import tempfile
  >>> def framed(part):  # with a checksum after it
  ...   return part + struct.pack("<I", masked(crc32c(part)))
  >>> record = framed(struct.pack("<Q", 3)) + framed(b"abc")
  >>> with tempfile.NamedTemporaryFile() as file:
  ...   _ = file.write(record * 2), file.flush()
  ...   scan(Path(file.name))  # 12 bytes before the data, 4 after it
  Index(starts=array([12, 31]), lengths=array([3, 3]))
  """
  size = path.stat().st_size
  starts: list[int] = []
  lengths: list[int] = []
  if not size:
    return Index(np.zeros(0, np.int64), np.zeros(0, np.int64))
  with (
    path.open("rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
  ):
    at, end, unpack = 0, size, struct.Struct("<Q").unpack_from
    while at + _HEADER <= size:
      (length,) = unpack(memory, at)
      end = at + _HEADER + length + FOOTER
      if end > size:
        break
      starts.append(at + _HEADER)
      lengths.append(length)
      at = end
    headers = np.zeros((len(starts) + (at < size), _HEADER), np.uint8)
    for row, start in zip(headers, [*(s - _HEADER for s in starts), at]):
      own = memory[start : start + _HEADER]
      row[: len(own)] = np.frombuffer(own, np.uint8)
  wanted = masked(crc32c_of_rows(headers[:, :8]))
  got = np.ascontiguousarray(headers[:, 8:]).view("<u4")[:, 0]
  if (wrong := np.flatnonzero(wanted != got)).size:
    raise ValueError(_damaged(f"{path}: record {wrong[0]}", "length"))
  if at < size:
    raise ValueError(
      f"{path}: record {len(starts)}: expected {end - size} more bytes, got the"
      f" end of the file; {_FIX}"
    )
  return Index(np.array(starts, np.int64), np.array(lengths, np.int64))


def checked(where: str, raw: bytes) -> bytes:
  """The data of a record without the checksum after it.

  Args:
    where: Place of the record, for the error.
    raw: Data and checksum.

  Raises:
    ValueError: If the checksum is wrong.

  >>> data = b"123456789"
  >>> checked("record 0", data + struct.pack("<I", masked(crc32c(data))))
  b'123456789'
  """
  data = raw[:-FOOTER]
  if struct.pack("<I", masked(crc32c(data))) != raw[-FOOTER:]:
    raise ValueError(_damaged(where, "data"))
  return data


class Reader:
  """The records of a file in order, each with its checksum, see `checked`.

  Args:
    path: File, or one compressed with gzip that ends in .gz.

  Raises:
    OSError: If the file cannot be read.
    ValueError: If a record is damaged or cut short, when it is read.

  >>> import tempfile
  >>> def framed(part):  # with a checksum after it
  ...   return part + struct.pack("<I", masked(crc32c(part)))
  >>> record = framed(struct.pack("<Q", 3)) + framed(b"abc")
  >>> with tempfile.NamedTemporaryFile() as file:
  ...   _ = file.write(record * 3), file.flush()
  ...   reader = Reader(Path(file.name))
  ...   print(reader.skip(2), [checked("", raw) for raw in reader])
  ...   reader.close()
  2 [b'abc']
  """

  def __init__(self, path: Path):
    self._path, self._number = path, 0
    opener: Any = gzip.open if path.suffix == ".gz" else open
    self._file = opener(path, "rb")

  def __iter__(self) -> Iterator[bytes]:
    while (length := self._length()) is not None:
      yield self._taken(length)

  def skip(self, count: int) -> int:
    """Passes over up to `count` records; returns how many there were.

    Data that are passed over are not checked.

    Raises:
      ValueError: If a header is damaged, or a compressed file is cut short.
    """
    before = self._number
    for _ in range(count):
      if (length := self._length()) is None:
        break
      if self._path.suffix == ".gz":
        self._taken(length)
        continue
      self._file.seek(length + FOOTER, 1)
      self._number += 1
    return self._number - before

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _length(self) -> int | None:
    where = f"{self._path}: record {self._number}"
    header = self._read(where, _HEADER)
    if not header:
      return None
    if len(header) < _HEADER or header[8:] != struct.pack(
      "<I", masked(crc32c(header[:8]))
    ):
      raise ValueError(_damaged(where, "length"))
    return struct.unpack("<Q", header[:8])[0]

  def _taken(self, length: int) -> bytes:
    where = f"{self._path}: record {self._number}"
    raw = self._read(where, length + FOOTER)
    if missing := length + FOOTER - len(raw):
      raise ValueError(
        f"{where}: expected {missing} more bytes, got the end of the file;"
        f" {_FIX}"
      )
    self._number += 1
    return raw

  def _read(self, where: str, size: int) -> bytes:
    try:
      return self._file.read(size)
    except (EOFError, gzip.BadGzipFile) as error:
      raise ValueError(f"{where}: {error}; {_FIX}") from error


def _damaged(where: str, what: str) -> str:
  return (
    f"{where}: expected a {what} that fits its CRC-32C, got another; {_FIX}"
  )
