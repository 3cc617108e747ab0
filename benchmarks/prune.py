"""One-shot pruning: best masks found, transposable masks, and a trained model.

First table: how often SparseSwaps meets the best of all masks of an 8 x 8 layer
at 2:4 (36 masks per column, weights fixed), over `--layers` layers with normal
and with heavy-tailed (Student's t, 3 degrees of freedom) weights and inputs,
for 16 and 64 rows of inputs; then the gap 1 - best / error of the layers, mean
and worst. "plain" is one start (Wanda's mask) without escapes, as in the paper.

Second table: the error of every method against the best mask with the best
weights (exhaustive), as the mean ratio over the same layers with 24 rows.

Third table, with --workdir: loss and accuracy of a dense run of launch/train.py
after 2:4 and 1:4 by each method, with and without permuted channels.

  python benchmarks/prune.py
  python launch/train.py --config configs/digits_vit.py:dense --workdir RUN
  python benchmarks/prune.py --workdir RUN --layers 0

Nothing is asserted here; tests/pruning asserts a part of it.
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.cli import pruning as program
from figs_jax.core.pattern import NM
from figs_jax.pruning import METHODS, Choice, prune_kernel, sparseswaps

GROUPS = [np.isin(np.arange(4), c) for c in itertools.combinations(range(4), 2)]
MASKS = np.array([np.concatenate(p) for p in itertools.product(GROUPS, GROUPS)])
DRAWS = {
  "normal": lambda rng, size: rng.normal(size=size),
  "student": lambda rng, size: rng.standard_t(3, size=size),
}
RULES = "ff: {0}, qkv: {0}, o: {0}"


def drawn(draw, rows, count):
  """Weights [count, 8, 8] and second moments of as many layers."""
  rng = np.random.default_rng(0)
  weights = DRAWS[draw](rng, (count, 8, 8)).astype(np.float32)
  inputs = DRAWS[draw](rng, (count, rows, 8)).astype(np.float32)
  return weights, np.einsum("cri,crj->cij", inputs, inputs)


def errors(weights, pruned, moments):
  """||X W - X W'||^2 of every column: [layers, 8]."""
  change = weights.astype(float) - np.asarray(pruned, float)
  return np.einsum("ckn,ckl,cln->cn", change, moments.astype(float), change)


def best_masks(weights, moments):
  """The least error of every column over all masks, weights fixed."""
  kept = MASKS[:, None, :, None]
  every = np.where(kept, weights.astype(float), 0)
  return np.min([errors(weights, one, moments) for one in every], 0)


def best_weights(weights, moments):
  """The least error of every column over all masks, with the best weights."""
  inverse = np.linalg.inv(moments.astype(float))
  best = np.full(weights[:, 0].shape, np.inf)
  for mask in MASKS:
    removed = weights[:, ~mask].astype(float)
    block = inverse[:, ~mask][:, :, ~mask]
    left = np.linalg.solve(block, removed)
    best = np.minimum(best, np.sum(removed * left, 1))
  return best


def print_swaps(count):
  print(f"SparseSwaps on {count} layers of 8 x 8 at 2:4")
  print("draw    rows | found  plain | gap % mean  worst")
  for draw, rows in itertools.product(DRAWS, (16, 64)):
    weights, moments = drawn(draw, rows, count)
    best, shares = best_masks(weights, moments), []
    for options in ({}, {"starts": ("wanda",), "escapes": 0}):
      swaps = jax.vmap(
        lambda w, h, o=options: sparseswaps(w, h, Choice(NM(2, 4)), **o)[0]
      )
      error = errors(weights, swaps(weights, moments), moments)
      hits = np.all(error <= best * (1 + 1e-4), axis=1).mean()
      shares.append((hits, 1 - best.sum(1) / error.sum(1)))
    (ours, gap), (plain, _) = shares
    print(
      f"{draw:8}{rows:4} | {100 * ours:5.1f}  {100 * plain:5.1f}"
      f" | {100 * gap.mean():10.4f} {100 * gap.max():6.2f}",
      flush=True,
    )


def print_methods(count):
  print("error / best error with the best weights, mean (24 rows)")
  print("method      |   normal  student")
  for method in METHODS:
    ratios = []
    for draw in DRAWS:
      weights, moments = drawn(draw, 24, count)
      best = best_weights(weights, moments).sum(1)
      pruned = [
        prune_kernel(jnp.asarray(w), jnp.asarray(h), "2:4", method)[0]
        for w, h in zip(weights, moments)
      ]
      error = errors(weights, np.stack(pruned), moments).sum(1)
      ratios.append(np.mean(error / best))
    print(f"{method:12}| {ratios[0]:8.3f} {ratios[1]:8.3f}", flush=True)


def print_model(workdir, patterns, examples, evaluated):
  for nm in patterns:
    source = program.source_of(RULES.format(nm), workdir=workdir, data={})
    batches = program.calibration_batches(source, examples, 32)
    if nm == patterns[0]:
      dense = program.measured(source, source.model, evaluated, 64)
      layers = RULES.format("n:m")
      print(f"{source.name}, {examples} calibration examples, {layers}")
      print("pattern method       permuted |   loss  accuracy  mean error")
      print(
        f"dense                        | {dense['loss']:6.3f}"
        f" {100 * dense['accuracy']:9.2f}"
      )
    for permuted, method in itertools.product((False, True), METHODS):
      model, layers = program.prune_source(
        source, batches, method, permute=permuted
      )
      after = program.measured(source, model, evaluated, 64)
      print(
        f"{nm:7} {method:12} {'yes' if permuted else 'no':8} |"
        f" {after['loss']:6.3f} {100 * after['accuracy']:9.2f}"
        f" {np.mean([layer.error for layer in layers]):11.4f}",
        flush=True,
      )


def main():
  parser = argparse.ArgumentParser(description="One-shot pruning.")
  parser.add_argument("--layers", type=int, default=200)
  parser.add_argument("--workdir", help="A dense run of launch/train.py.")
  parser.add_argument("--patterns", default="2:4,1:4")
  parser.add_argument("--examples", type=int, default=256)
  parser.add_argument("--evaluated", type=int, default=100_000)
  args = parser.parse_args()
  if args.layers:
    print_swaps(args.layers)
    print_methods(args.layers)
  if args.workdir:
    patterns = args.patterns.split(",")
    print_model(args.workdir, patterns, args.examples, args.evaluated)


if __name__ == "__main__":
  main()
