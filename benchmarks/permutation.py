"""Channel permutations: distance from the optimum, and cost.

First table: of `--cases` random layers of 3 stripes of 4 (12 channels, 64
rows), normal and heavy-tailed (Student's t with 3 degrees of freedom), the
share in which each method keeps as much as the best of all 5,775 partitions,
and the mean and the worst share that it keeps less.

Second table: what each method gains on a larger layer over the given order,
and its processor time. With `--naive_pairs`, a plain NumPy version evaluates
the 35 partitions of so many pairs of stripes one after the other; its time for
all pairs is extrapolated.

  python benchmarks/permutation.py --cases 200
  python benchmarks/permutation.py --cases 0 --size 4096x1024 \\
    --methods greedy --naive_pairs 200

No time or gap is asserted here; tests bound the gap.
"""

import argparse
import itertools
import time

import numpy as np

from figs_jax.core import permute

DRAWS = {
  "normal": lambda rng, shape: rng.normal(size=shape),
  "student": lambda rng, shape: rng.standard_t(3, size=shape),
}


def kept(rows, n, m):
  ranked = np.partition(rows.reshape(len(rows), -1, m), m - n, axis=-1)
  return ranked[..., m - n :].sum(dtype=np.float64)


def gaps(methods, cases, escapes):
  print(f"{'draw':8} {'method':9} {'optimal':>8} {'mean gap':>9} {'worst':>9}")
  for name, draw in DRAWS.items():
    rng = np.random.default_rng(0)
    short = {method: [] for method in methods}
    for _ in range(cases):
      x = np.abs(draw(rng, (64, 12))).astype(np.float32)
      best = kept(x[:, permute(x, axis=1, method="exhaustive")], 2, 4)
      for method in methods:
        order = permute(x, axis=1, method=method, escapes=escapes)
        short[method].append(1 - kept(x[:, order], 2, 4) / best)
    for method, shares in short.items():
      met = np.mean(np.array(shares) < 1e-7)
      print(
        f"{name:8} {method:9} {met:8.1%} {np.mean(shares):9.2e}"
        f" {np.max(shares):9.2e}"
      )


def cost(methods, size, pattern, escapes):
  n, m = map(int, pattern.split(":"))
  x = np.abs(np.random.default_rng(0).normal(size=size)).astype(np.float32)
  before = kept(x, n, m)
  ideal = np.sort(x, axis=1)[:, -x.shape[1] * n // m :].sum(dtype=np.float64)
  print(f"\n{size[0]} rows, {size[1]} channels, {pattern}:")
  print(
    f"kept in the given order {before / x.sum(dtype=np.float64):.4f} of |w|"
  )
  print(f"{'method':9} {'gain':>8} {'of the bound':>12} {'seconds':>8}")
  for method in methods:
    start = time.process_time()
    order = permute(x, pattern, axis=1, method=method, escapes=escapes)
    seconds = time.process_time() - start
    gain = kept(x[:, order], n, m) - before
    print(
      f"{method:9} {gain / before:8.4%} {gain / (ideal - before):12.2%}"
      f" {seconds:8.1f}"
    )
  return x


def naive(x, pattern, pairs):
  """Seconds for the 35 partitions of all pairs of stripes, in plain NumPy."""
  n, m = map(int, pattern.split(":"))
  stripes = x.shape[1] // m
  ways = [g for g in itertools.combinations(range(2 * m), m) if 0 in g]
  start = time.process_time()
  for s, t in itertools.islice(
    itertools.combinations(range(stripes), 2), pairs
  ):
    both = np.concatenate(
      [x[:, s * m : s * m + m], x[:, t * m : t * m + m]], axis=1
    )
    for g in ways:
      rest = [c for c in range(2 * m) if c not in g]
      kept(both[:, [*g, *rest]], n, m)
  seconds = (time.process_time() - start) / pairs
  total = stripes * (stripes - 1) // 2
  print(
    f"plain NumPy: {seconds * 1e3:.1f} ms a pair of stripes, so"
    f" {seconds * total:.0f} s for one look at all {total} pairs"
  )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--cases", type=int, default=200)
  parser.add_argument("--methods", default="greedy,anneal,sinkhorn")
  parser.add_argument("--escapes", type=int, help="default: that of permute")
  parser.add_argument("--size", default="1024x256", help="rows x channels")
  parser.add_argument("--pattern", default="2:4")
  parser.add_argument("--naive_pairs", type=int, default=0)
  args = parser.parse_args()
  methods = args.methods.split(",")
  if args.cases:
    gaps(methods, args.cases, args.escapes)
  size = tuple(map(int, args.size.split("x")))
  x = cost(methods, size, args.pattern, args.escapes)
  if args.naive_pairs:
    naive(x, args.pattern, args.naive_pairs)


if __name__ == "__main__":
  main()
