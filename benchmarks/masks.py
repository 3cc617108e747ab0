"""N:M masks, beside the two usual ways to compute them.

Times `where(mask(|w|), w, 0)`, the masked weight of one training step, for
* ours: `figs_jax.nm_mask`,
* top_k: `lax.top_k` in each group (qwix, praxis),
* argsort: `argsort(argsort(|w|)) < n` (jaxpruner),
in ns per entry beside a plain copy `w * 0.5`, and prints whether ours meets its
targets at 4096 x 4096 float32: at most 2.0 copies up to m = 16 (2.2 for 4:16
along the last axis) and 2.2 at 8:32, and 50 times faster than argsort. (Smaller
kernels stay in a cache, where a copy costs next to nothing.) No time is
asserted. Every function is timed once per round and its fastest round counts,
so that other work on the machine matters little.

The floor is what the copy does, one read and one write of the kernel: 8 bytes
per float32 entry over the memory bandwidth. 4096 x 4096 entries are 134 MB, or
13 ms at 10 GB/s.

  python benchmarks/masks.py
  python benchmarks/masks.py --size 12x768x3072 --dtype bfloat16
  python benchmarks/masks.py --size 3x3x256x512 --axes "-2 0,1,2" --traced

A second table has `rank_in_group`, whose one int32 array holds the mask of
every n: the ranks alone, and the weight masked by `ranks < n` from ranks that
exist, beside `nm_mask` at n = m / 4. The array is as large as the kernel.

  python benchmarks/masks.py --ranks
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.core import NM, nm_mask, rank_in_group

PATTERNS = "2:4,1:4,1:8,1:16,4:16,8:32,1:128,8:64,16:128,16:256"
HEAD = (
  f"{'axis':>8} {'n:m':>7} | {'copy':>5} {'ours':>6} {'top_k':>6}"
  f" {'argsort':>7} | {'copies':>6} {'target':>9} | {'over argsort':>12}"
  f" {'target':>6} | {'compile':>7}"
)


def grouped(w, pattern, axis):
  """|w| with groups on the last axis, and the function that undoes this."""
  axes = axis if isinstance(axis, tuple) else (axis,)
  order = [d for d in range(w.ndim) if d not in {a % w.ndim for a in axes}]
  order += [a % w.ndim for a in axes]
  turned = jnp.abs(w).transpose(order)
  back = [order.index(d) for d in range(w.ndim)]
  groups = turned.reshape(-1, pattern.m)
  return groups, lambda m: m.reshape(turned.shape).transpose(back)


def top_k_mask(w, pattern, axis):
  groups, back = grouped(w, pattern, axis)
  _, kept = lax.top_k(groups, pattern.n)
  return back(jnp.any(jax.nn.one_hot(kept, pattern.m, dtype=bool), -2))


def argsort_mask(w, pattern, axis):
  groups, back = grouped(w, pattern, axis)
  rank = jnp.argsort(jnp.argsort(-groups, -1, stable=True), -1)
  return back(rank < pattern.n)


def our_mask(w, pattern, axis):
  return nm_mask(jnp.abs(w), pattern, axis)


def our_traced_mask(w, pattern, axis):
  # A count the compiler cannot know.
  n = jnp.int32(pattern.n) + (w.ravel()[0] * 0).astype(jnp.int32)
  return nm_mask(jnp.abs(w), NM(pattern.m, pattern.m), axis, n=n)


def masked(make, pattern, axis):
  def run(w):
    return jnp.where(make(w, pattern, axis), w, jnp.zeros((), w.dtype))

  return run


def compiled(function, w):
  """The executable, and the seconds of compiling it."""
  start = time.perf_counter()
  executable = jax.jit(function).lower(w).compile()
  return executable, time.perf_counter() - start


def seconds(executables, w, rounds, patience):
  """Seconds of each function's fastest round; slow ones get fewer rounds."""
  for f in executables:
    f(w).block_until_ready()
  best, spent = [math.inf] * len(executables), [0.0] * len(executables)
  for _ in range(rounds):
    for i, f in enumerate(executables):
      if spent[i] < patience:
        start = time.perf_counter()
        f(w).block_until_ready()
        took = time.perf_counter() - start
        best[i], spent[i] = min(best[i], took), spent[i] + took
  return best


def target(pattern, axis, w):
  """The most copies that masking may cost, or None without a target."""
  if w.shape != (4096, 4096) or w.dtype != jnp.float32:
    return None
  if pattern == NM(4, 16) and axis in (-1, 1):
    return 2.2
  if pattern.m <= 16:
    return 2.0
  return 2.2 if pattern == NM(8, 32) else None


def report(pattern, axis, w, took, compile_seconds):
  """One line of the table."""
  copy, ours, top_k, argsort = (t / w.size * 1e9 for t in took)
  limit = target(pattern, axis, w)
  copies, gain = ours / copy, argsort / ours
  met = f"{limit} {'yes' if copies <= limit else 'no'}" if limit else "-"
  named = ",".join(map(str, axis)) if isinstance(axis, tuple) else str(axis)
  return (
    f"{named:>8} {str(pattern):>7} | {copy:5.2f} {ours:6.2f} {top_k:6.1f}"
    f" {argsort:7.1f} | {copies:6.2f} {met:>9} | {gain:12.0f}"
    f" {'yes' if gain >= 50 else 'no':>6} | {compile_seconds:5.1f} s"
  )


def report_ranks(m, axis, w, rounds, patience):
  """One line of the table of `rank_in_group`."""
  nm, half = NM(max(1, m // 4), m), jnp.asarray(0.5, w.dtype)
  ranks = rank_in_group(jnp.abs(w), m, axis)
  apply = jax.jit(lambda w, r: jnp.where(r < nm.n, w, jnp.zeros((), w.dtype)))
  functions = (
    jax.jit(lambda w: w * half),
    jax.jit(masked(our_mask, nm, axis)),
    jax.jit(lambda w: rank_in_group(jnp.abs(w), m, axis)),
    lambda w: apply(w, ranks),
  )
  copy, *took = seconds(functions, w, rounds, patience)
  named = ",".join(map(str, axis)) if isinstance(axis, tuple) else str(axis)
  return f"{named:>8} {m:>5} | {copy / w.size * 1e9:5.2f} |" + "".join(
    f" {t / copy:10.2f}" for t in took
  )


def axes(text):
  """Parses group axes: "-2 -1 0,1" are two single axes and a tuple."""
  for word in text.split():
    named = tuple(int(a) for a in word.split(","))
    yield named if len(named) > 1 else named[0]


def main():
  parser = argparse.ArgumentParser(description="N:M masks beside a copy.")
  parser.add_argument(
    "--size", default="4096x4096", help="[layers x] in x out."
  )
  parser.add_argument("--dtype", default="float32")
  parser.add_argument(
    "--patterns", default=PATTERNS, help="Patterns, n:m,n:m,..."
  )
  parser.add_argument(
    "--axes", default="-2 -1", help='Group axes, as in "-2 0,1".'
  )
  parser.add_argument(
    "--traced", action="store_true", help="Whether n is traced."
  )
  parser.add_argument(
    "--ranks",
    action="store_true",
    help="Whether to time rank_in_group at the m of the patterns instead.",
  )
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument(
    "--patience", type=float, default=4.0, help="Seconds per timed function."
  )
  args = parser.parse_args()
  shape = tuple(int(d) for d in args.size.split("x"))
  w = jax.random.normal(jax.random.key(0), shape).astype(args.dtype)
  half = jnp.asarray(0.5, w.dtype)
  makers = (our_traced_mask if args.traced else our_mask, top_k_mask)
  print(f"{jax.default_backend()}, jax {jax.__version__}, {args.size}", w.dtype)
  if args.ranks:
    sizes = sorted({NM.parse(p).m for p in args.patterns.split(",")})
    print("    axis     m |  copy | copies: nm_mask, ranks, ranks < n applied")
    for axis in axes(args.axes):
      for m in sizes:
        print(report_ranks(m, axis, w, args.rounds, args.patience), flush=True)
    return
  print(HEAD)
  for axis in axes(args.axes):
    length = math.prod(
      w.shape[a] for a in (axis if isinstance(axis, tuple) else (axis,))
    )
    for pattern in map(NM.parse, args.patterns.split(",")):
      if length % pattern.m:
        continue
      functions = [lambda w: w * half]
      for make in (*makers, argsort_mask):
        functions.append(masked(make, pattern, axis))
      made = [compiled(f, w) for f in functions]
      took = seconds([f for f, _ in made], w, args.rounds, args.patience)
      print(report(pattern, axis, w, took, made[1][1]), flush=True)


if __name__ == "__main__":
  main()
