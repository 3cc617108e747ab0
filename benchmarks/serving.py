"""A million queries: the scan beside the event loop, in processor time.

Each policy serves the same Poisson stream on a table of four points and five
candidates of a cached sub-graph, in whole nanoseconds. Both simulations give
the same start, finish, point and cache of every query, which is checked.

* scan: `figs_jax.engine.serving.simulation.serve`, one policy at a time, and
  all of them at once;
* loop: `event_loop`, in plain Python with the heap of `Pifo`.

The floor is the traffic of the results: a query's row of 32 bytes is read and
written in 6 ns at 10 GB/s. The scan is bound by its chain of some thirty small
operations, each after the one before.

  python benchmarks/serving.py
"""

import argparse
import time

import numpy as np

from figs_jax.engine.serving.policies import Policy
from figs_jax.engine.serving.queries import Promise, poisson
from figs_jax.engine.serving.service_tables import service_table
from figs_jax.engine.serving.simulation import event_loop, serve
from figs_jax.engine.serving.subgraph import nested_model

POLICIES = "queue", "latency", "accuracy", "sushi", "fixed:1:8", "fixed:8:8"
COLUMNS = "start", "finish", "point", "cached"


def table():
  """Four points of a small transformer's layers, and their five caches."""
  sizes = {"qkv": (384, 1152), "o": (384, 384), "fc1": (384, 1536)}
  rows = [
    {"name": name, "M": 197, "N": N, "K": K, "count": 12}
    for name, (K, N) in sizes.items()
  ]
  model = nested_model(rows, "figs:32x32:dram_bw=16", "1:8,2:8,4:8,8:8")
  return service_table(model, [0.86, 0.87, 0.875, 0.88], 2**20)


def seconds(function, *args):
  start = time.process_time()
  result = function(*args)
  return time.process_time() - start, result


def main():
  parser = argparse.ArgumentParser(description="Serving: scan and event loop.")
  parser.add_argument("--queries", type=int, default=1_000_000)
  parser.add_argument("--load", type=float, default=1.2)
  args = parser.parse_args()
  costs = table()
  dense = int(costs.latency[-1, 0])
  promise = Promise(latency=3 * dense, accuracy=0.87)
  queries = poisson(args.load * 1e9 / dense, args.queries, promise)
  runs = [(queries, costs, Policy.parse(text)) for text in POLICIES]
  print(f"numpy {np.__version__}, {args.queries:,} queries; processor seconds")
  print(f"{'':>10} | {'scan':>6} {'loop':>6} | {'missed':>6}")
  total = 0.0
  for text, run in zip(POLICIES, runs):
    scan, (got,) = seconds(serve, [run])
    loop, expected = seconds(event_loop, *run)
    for column in COLUMNS:
      if (getattr(got, column) != getattr(expected, column)).any():
        raise SystemExit(f"{text}: {column} differs")
    missed = got.summary()["missed"]
    print(f"{text:>10} | {scan:6.2f} {loop:6.2f} | {missed:6.3f}", flush=True)
    total += loop
  scan, _ = seconds(serve, runs)
  print(f"{'all':>10} | {scan:6.2f} {total:6.2f} |")
  print("The first scan, and that of all, include their compilation.")


if __name__ == "__main__":
  main()
