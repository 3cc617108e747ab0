"""Checksums of a state's arrays, taken in threads while training goes on.

A save must hold every array as it is at that moment; hashing can wait. zlib
releases Python's lock, so that a pool of threads hashes several arrays at once.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_THREADS = min(8, os.cpu_count() or 1)

# Parts of a whole array: (index, data).
_Parts = list[tuple[Any, Any]]


def checksums(leaves: Mapping[str, Any]) -> dict[str, int]:
  """The crc32 of every whole array; a collective if arrays span processes.

  Args:
    leaves: Arrays by name.

  >>> import jax.numpy as jnp
  >>> array = jnp.arange(3, dtype=jnp.int8)
  >>> checksums({"a": array}) == {"a": zlib.crc32(bytes([0, 1, 2]))}
  True
  """
  here = _parts_here(leaves)
  return _gathered(leaves, here) | _hashed(leaves, here)


def checksums_of_now(leaves: Mapping[str, Any]) -> Callable[[], dict[str, int]]:
  """`checksums` of the values of this moment, to be called in another thread.

  A view of host memory keeps XLA from reusing a donated buffer, and arrays of
  an accelerator are copied to the host. Arrays that span processes are hashed
  at once, since gathering them is a collective.

  Args:
    leaves: Arrays by name.

  Returns:
    Function of no arguments. Call it once: it lets go of each array as soon as
    that is hashed.

  >>> array = np.arange(3, dtype=np.int8)
  >>> sums = checksums_of_now({"a": array})
  >>> array[:] = 7  # later
  >>> sums() == {"a": zlib.crc32(bytes([0, 1, 2]))}
  True
  """
  here = _parts_here(leaves)
  for parts in here.values():  # all copies start before one is awaited
    for _, data in parts:
      if isinstance(data, jax.Array):
        data.copy_to_host_async()
  held = {
    name: [(i, np.asarray(data)) for i, data in parts]
    for name, parts in here.items()
  }
  gathered = _gathered(leaves, held)
  shapes = {
    n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in leaves.items()
  }
  return lambda: gathered | _hashed(shapes, held)


def _parts_here(leaves: Mapping[str, Any]) -> dict[str, _Parts]:
  """Parts of the arrays that do not span processes."""
  return {n: parts for n, leaf in leaves.items() if (parts := _here(leaf))}


def _here(leaf: Any) -> _Parts:
  """Parts of a whole array; none if it spans processes."""
  if not isinstance(leaf, jax.Array):
    return [(..., np.array(leaf))]
  if len(leaf.sharding.device_set) == 1:
    return [(..., leaf)]
  if leaf.is_fully_replicated:
    return [(..., leaf.addressable_shards[0].data)]
  if not leaf.is_fully_addressable:
    return []
  shards = leaf.addressable_shards
  return [(s.index, s.data) for s in shards if s.replica_id == 0]


def _gathered(leaves: Mapping[str, Any], here: Mapping) -> dict[str, int]:
  """Checksums of the arrays that span processes, one after the other."""
  return {
    name: _crc32(multihost_utils.process_allgather(leaf, tiled=True))
    for name, leaf in leaves.items()
    if name not in here
  }


def _hashed(
  leaves: Mapping[str, Any], here: dict[str, _Parts]
) -> dict[str, int]:
  """Checksums of arrays by their parts, which it removes from `here`."""

  def of(names: list[str]) -> dict[str, int]:
    return {n: _crc32(_joined(leaves[n], here.pop(n))) for n in names}

  # One task per thread, as a task costs more than hashing a small array.
  by_size = sorted(here, key=lambda name: -leaves[name].size)
  shares = [by_size[i::_THREADS] for i in range(_THREADS)]
  with ThreadPoolExecutor(_THREADS) as pool:
    return {
      n: crc for share in pool.map(of, shares) for n, crc in share.items()
    }


def _joined(leaf: Any, parts: _Parts) -> np.ndarray:
  if len(parts) == 1:
    return np.asarray(parts[0][1])
  array = np.empty(leaf.shape, leaf.dtype)
  for index, data in parts:
    array[index] = data
  return array


def _crc32(array: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)
