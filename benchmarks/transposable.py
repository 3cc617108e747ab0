"""Transposable N:M masks: their gap to the best ones, and their cost.

First table: 1 - sum kept / sum kept by the best mask, mean and worst over
1600 / m blocks (`--blocks`) of |w|, with w normal (or heavier-tailed: Laplace,
or Student's t with 3 degrees of freedom). The best mask is exact, as the linear
program of a bipartite b-matching has integral vertices (scipy's HiGHS). For
scale, the last column is how much more a mask along one axis (`nm_mask`) keeps.

Second table: processor time of the masked weight of one refresh,
`where(mask(|w|), w, 0)`, as a multiple of the copy `w * 0.5` timed in the same
rounds, beside `nm_mask` and, where few masks are possible, the papers' method:
one product of the scores with a matrix of all masks, then argmax. Masks are
refreshed every 40 steps or so, so that a refresh of 40 copies costs one copy
per step. With `--base`, another revision prints its tables after these.

  python benchmarks/transposable.py --patterns 2:4,8:16 --size 1024x1024
  python benchmarks/transposable.py --patterns 1:8 --base 7b90488

No time or gap is asserted here; tests bound the gap.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.optimize import linprog
from worktree import run_base

from figs_jax.core import NM, nm_mask
from figs_jax.core.transposable import transposable_nm_mask

PATTERNS = "2:4,1:4,1:8,2:8,4:8,2:16,4:16,8:16,8:32,8:64,32:64"
DRAWS = {
  "normal": lambda rng, shape: rng.normal(size=shape),
  "laplace": lambda rng, shape: rng.laplace(size=shape),
  "student": lambda rng, shape: rng.standard_t(3, size=shape),
}


def best_sum(block, n):
  """The largest sum of n entries per row and per column of one block."""
  m = len(block)
  rows = sparse.kron(sparse.eye(m), np.ones((1, m)))
  columns = sparse.kron(np.ones((1, m)), sparse.eye(m))
  result = linprog(
    -block.ravel(),
    A_eq=sparse.vstack([rows, columns]),
    b_eq=np.full(2 * m, n),
    bounds=(0, 1),
    method="highs",
  )
  return -result.fun


def gaps(pattern, draw, count):
  """Per block, the gap to the best mask, and what nm_mask keeps beyond it."""
  rng, m = np.random.default_rng(0), pattern.m
  scores = np.abs(DRAWS[draw](rng, (m, m * count))).astype(np.float32)
  blocks = scores.reshape(m, count, m).swapaxes(0, 1).astype(float)
  best = np.array([best_sum(block, pattern.n) for block in blocks])

  def kept(mask):
    grid = np.asarray(mask).reshape(m, count, m).swapaxes(0, 1)
    return (blocks * grid).sum((1, 2))

  ours = kept(transposable_nm_mask(scores, pattern))
  return 1 - ours / best, kept(nm_mask(scores, pattern)) / best - 1


def matmul_mask(scores, masks):
  """Tries all masks of a block in one product with the scores (2102.08124)."""
  m = masks.shape[-1]
  rows, columns = scores.shape
  grid = scores.reshape(rows // m, m, columns // m, m)
  sums = jnp.einsum("pab,racb->rcp", masks, grid, precision="highest")
  best = masks.astype(bool)[jnp.argmax(sums, -1)]
  return best.swapaxes(1, 2).reshape(scores.shape)


def all_masks(pattern):
  """Every transposable n:m mask of one block, built row by row."""
  n, m = pattern.n, pattern.m
  rows = [r for r in np.ndindex((2,) * m) if sum(r) == n]
  masks = [[]]
  for _ in range(m):
    masks = [mask + [row] for mask in masks for row in rows]
    masks = [mask for mask in masks if max(np.sum(mask, 0)) <= n]
  return jnp.asarray(masks, jnp.float32)


def seconds(functions, w, rounds):
  functions = [jax.jit(f) for f in functions]
  for f in functions:
    f(w).block_until_ready()
  best = [math.inf] * len(functions)
  for _ in range(rounds):
    for i, f in enumerate(functions):
      start = time.process_time()
      f(w).block_until_ready()
      best[i] = min(best[i], time.process_time() - start)
  return best


def times(pattern, w, rounds):
  """ns per entry of a copy, then the times of all masks in copies."""

  def masked(make):
    return lambda w: jnp.where(make(jnp.abs(w)), w, jnp.zeros((), w.dtype))

  functions = [
    lambda w: w * jnp.asarray(0.5, w.dtype),
    masked(lambda s: transposable_nm_mask(s, pattern)),
    masked(lambda s: nm_mask(s, pattern)),
  ]
  if pattern.m <= 4:
    masks = all_masks(pattern)
    functions.append(masked(lambda s: matmul_mask(s, masks)))
  copy, *took = seconds(functions, w, rounds)
  return copy / w.size * 1e9, [t / copy for t in took]


def main():
  parser = argparse.ArgumentParser(description="Transposable N:M masks.")
  parser.add_argument("--size", default="2048x2048", help="Rows x columns.")
  parser.add_argument(
    "--patterns", default=PATTERNS, help="Patterns, n:m,n:m,..."
  )
  parser.add_argument("--draw", default="normal", choices=sorted(DRAWS))
  parser.add_argument(
    "--blocks", type=int, default=1600, help="Blocks times m."
  )
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--base", help="Another revision to run as well.")
  args = parser.parse_args()
  patterns = [NM.parse(text) for text in args.patterns.split(",")]
  print(f"{args.draw}, {args.blocks} / m blocks: gap to the best, %")
  print("pattern |   mean  worst | nm_mask keeps more")
  for pattern in patterns:
    gap, beyond = gaps(pattern, args.draw, max(1, args.blocks // pattern.m))
    print(
      f"{pattern!s:>7} | {100 * gap.mean():6.3f} {100 * gap.max():6.2f}"
      f" | {100 * beyond.mean():6.2f}",
      flush=True,
    )
  shape = tuple(int(d) for d in args.size.split("x"))
  w = jax.random.normal(jax.random.key(0), shape)
  print(f"{jax.default_backend()}, jax {jax.__version__}, {args.size} float32")
  print("pattern | copy ns/entry | ours nm_mask product, in copies")
  for pattern in patterns:
    copy, ratios = times(pattern, w, args.rounds)
    shown = " ".join(f"{r:7.2f}" for r in ratios)
    print(f"{pattern!s:>7} | {copy:6.2f} | {shown}", flush=True)
  if args.base:
    run_base(__file__, args.base)


if __name__ == "__main__":
  main()
