"""A push-in first-out queue: heapq beside the batched drain, in one run.

A sequence of pushes with random ranks, and of pops, is answered

* heap: by `heapq` in a loop over the operations, the bare cost of `Pifo`,
* pifo: by `Pifo` itself,
* drain: by `figs_jax.engine.serving.offline.drain`, in NumPy,

in millions of operations (pushes and pops) per second of processor time. All
three orders are compared. The rounds alternate; the ratio is the median of the
rounds' ratios. A short queue favours the heap, a deep one the drain, whose time
hardly depends on the depth.

The floor of the drain is a pass over two arrays of 8 bytes per operation and
level, read and written: 32 bytes, or 20 levels of 2 million operations in .13 s
at 10 GB/s.

  python benchmarks/pifo.py
"""

import argparse
import heapq
import time
from statistics import median

import numpy as np

from figs_jax.engine.serving.offline import drain
from figs_jax.engine.serving.pifo import Pifo


def by_heap(ranks, pops):
  heap, order = [], []
  push, pop = heapq.heappush, heapq.heappop
  for number, (rank, count) in enumerate(zip(ranks, pops)):
    push(heap, (rank, number))
    for _ in range(count):
      order.append(pop(heap)[1] if heap else -1)
  return order


def by_pifo(ranks, pops):
  queue, order = Pifo(), []
  for number, (rank, count) in enumerate(zip(ranks, pops)):
    queue.push(number, rank)
    for _ in range(count):
      order.append(queue.pop()[0] if len(queue) else -1)
  return order


def workloads(pushes, rng):
  """Name -> pops after each push."""
  half = pushes // 2
  yield "load .95", rng.poisson(1 / 0.95, pushes)
  yield "load 1", rng.poisson(1.0, pushes)
  yield (
    "waves of 10,000",
    np.where(np.arange(1, pushes + 1) % 10_000, 0, 10_000),
  )
  yield "half waits", np.repeat([0, 2], [half, pushes - half])
  yield "all, then all", None


def seconds(function, *args):
  start = time.process_time()
  order = function(*args)
  return time.process_time() - start, order


def main():
  parser = argparse.ArgumentParser(description="PIFO: heapq and drain.")
  parser.add_argument("--pushes", type=int, default=500_000)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  ranks = rng.random(args.pushes)
  print(f"numpy {np.__version__}, {args.pushes} pushes; Mops/s: medians")
  print(f"{'pops':>16} | {'heap':>6} {'pifo':>6} {'drain':>6} | drain/heap")
  for name, pops in workloads(args.pushes, rng):
    listed = np.zeros(args.pushes, int) if pops is None else pops
    if pops is None:
      listed[-1] = args.pushes
    plain = ranks.tolist(), listed.tolist()
    operations = args.pushes + int(listed.sum())
    rates = []
    for _ in range(args.rounds):
      heap, expected = seconds(by_heap, *plain)
      pifo, same = seconds(by_pifo, *plain)
      batch, order = seconds(drain, ranks, pops)
      if not expected == same == order.tolist():
        raise SystemExit(f"{name}: the orders differ")
      rates.append([operations / t / 1e6 for t in (heap, pifo, batch)])
    print(
      f"{name:>16} | "
      + " ".join(f"{median(column):6.2f}" for column in zip(*rates))
      + f" | {median(d / h for h, _, d in rates):10.2f}",
      flush=True,
    )


if __name__ == "__main__":
  main()
