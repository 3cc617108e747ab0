"""Worker processes that read data: in order, and gone when their run is."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from typing import Any

import grain

# Seconds in which a run may still want batches after SIGTERM to all processes.
_GRACE = 60.0
_SHARED = 2**20  # bytes of an array that is passed in shared memory


def in_processes(stream: grain.MapDataset, workers: int) -> Any:
  """An iterator over elements that processes read, in their order.

  The processes are spawned at the first element, and import the program's main
  module: a script needs `if __name__ == "__main__":`. They end with the
  iterator's `close`, or with the program. What reads the elements, and they
  themselves, have to be picklable.

  Args:
    stream: Elements; each process reads every `workers`-th one.
    workers: Number of processes, 1 or more.
  """
  _parse_flags()
  one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
  options = grain.MultiprocessingOptions(num_workers=workers)
  # Smaller arrays are cheaper to pickle than to map.
  shared = grain.experimental.DatasetOptions(min_shm_size=_SHARED)
  elements = grain.experimental.WithOptionsIterDataset(
    stream.to_iter_dataset(one), shared
  )
  return iter(elements.mp_prefetch(options, worker_init_fn=_begin))


def _begin(index: int, count: int) -> None:
  """Ties a worker to its parent.

  A scheduler or a terminal signals all processes of a run, which then needs a
  last batch to save; the parent itself ends its workers. A parent that is
  killed cannot, so that a thread waits for its death.
  """
  del index, count
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda *_: _leave_after(_GRACE))
  parent = multiprocessing.parent_process()
  if parent is not None:
    waiting = threading.Thread(
      target=_leave_after_parent, args=(parent.sentinel,), daemon=True
    )
    waiting.start()


def _leave_after(seconds: float) -> None:
  timer = threading.Timer(seconds, os._exit, (128 + signal.SIGTERM,))
  timer.daemon = True
  timer.start()


def _leave_after_parent(sentinel: int) -> None:
  multiprocessing.connection.wait([sentinel])
  os._exit(1)


def _parse_flags() -> None:
  """Marks absl flags as parsed, since grain's worker processes read them."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
