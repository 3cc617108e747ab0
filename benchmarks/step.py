"""Sparse training step beside the dense one, as a ratio, and where it goes.

One step is forward, backward and AdamW on random images, with the masks taken
anew after every update. Both compiled steps run in turn in one process; the
ratio of the fastest repeats is what to read, the machine is shared.

The floor of what a recipe adds: per masked weight, reading the kernel (4
bytes) and writing its effective copy (4) and mask (1), once per step, at the
bandwidth that the printed copy reaches.

  python benchmarks/step.py --recipe ste --pattern "ff: 1:8"
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from figs_jax import models, nn, recipes
from figs_jax.core.flow import flow
from figs_jax.core.masks import nm_mask
from figs_jax.core.rules import Rules
from figs_jax.core.tree import flatten


def build(args: argparse.Namespace, recipe_name: str):
  """(compiled step, its carry): params, masks, optimizer state, step, rest."""
  rules = Rules.parse(args.pattern)
  recipe = recipes.create(recipe_name, rules, args.total_steps)
  model = models.create("vit", args.variant, image_size=args.image_size)
  if recipe.sparse:
    model = nn.sparsify(model, rules, recipe.grad_mode)
  bound = recipe.bind(nn.masked_leaves(model))
  tx = recipe.transform(optax.adamw(1e-3))
  graphdef, params, _, rest = nn.split(model)

  def step(carry, images, labels):
    params, masks, opt_state, count = carry
    switched = recipe.switched(opt_state)
    moment = recipe.at(count, switched)

    def loss(params):
      net = nn.merge(graphdef, params, masks, moment.leak, rest)
      return optax.softmax_cross_entropy_with_integer_labels(
        net(images), labels
      ).mean()

    grads = jax.grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
    params = optax.apply_updates(params, updates)
    masks = bound.masks(
      count + 1,
      params,
      masks,
      switched=recipe.switched(opt_state),
      was_switched=switched,
    )
    return params, masks, opt_state, count + 1

  # Into the middle of the run, past the dense phase.
  count = jnp.int32(args.total_steps // 2)
  carry = (params, bound.masks(count, params), tx.init(params), count)
  return jax.jit(step, donate_argnums=0), jax.tree.map(jnp.copy, carry)


def fastest(fn, repeats: int) -> float:
  """Seconds of the fastest call, after one that compiles."""
  jax.block_until_ready(fn())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    times.append(time.perf_counter() - start)
  return min(times)


def in_turn(args: argparse.Namespace) -> dict[str, list[float]]:
  """Seconds of each repeat, dense and sparse steps alternating."""
  key = jax.random.key(0)
  size = args.image_size
  images = jax.random.normal(key, (args.batch, size, size, 3))
  labels = jnp.arange(args.batch) % 1000
  runs = {name: build(args, name) for name in ("dense", args.recipe)}
  carries = {}
  for name, (step, carry) in runs.items():
    carries[name] = jax.block_until_ready(step(carry, images, labels))
  times: dict[str, list[float]] = {name: [] for name in runs}
  for i in range(args.repeats):
    order = list(runs) if i % 2 == 0 else list(runs)[::-1]
    for name in order:
      start = time.perf_counter()
      carries[name] = runs[name][0](carries[name], images, labels)
      jax.block_until_ready(carries[name])
      times[name].append(time.perf_counter() - start)
  return times


def parts(args: argparse.Namespace) -> list[tuple[str, float]]:
  """Seconds per step of what sparsity adds, each alone over all kernels."""
  rules = Rules.parse(args.pattern)
  model = models.create("vit", args.variant, image_size=args.image_size)
  leaves = nn.masked_leaves(nn.sparsify(model, rules))
  params = flatten(nn.split(model)[1])
  kernels = {path: params[path] for path in leaves}

  @jax.jit
  def copy(kernels):
    return jax.tree.map(lambda w: w * 1.0001, kernels)

  @jax.jit
  def refresh(kernels):
    return {
      path: nm_mask(jnp.abs(w), leaves[path].pattern, leaves[path].axis)
      for path, w in kernels.items()
    }

  @jax.jit
  def apply(kernels, masks):
    return {path: flow(w, masks[path]) for path, w in kernels.items()}

  masks = refresh(kernels)
  return [
    ("copy of the masked kernels", fastest(lambda: copy(kernels), 10)),
    ("mask refresh", fastest(lambda: refresh(kernels), 10)),
    ("mask applied, forward", fastest(lambda: apply(kernels, masks), 10)),
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--recipe", default="ste", choices=recipes.names())
  parser.add_argument("--pattern", default="ff: 1:8")
  parser.add_argument("--variant", default="S/16")
  parser.add_argument("--image-size", type=int, default=224)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--total-steps", type=int, default=1000)
  args = parser.parse_args()
  times = in_turn(args)
  dense, sparse = np.array(times["dense"]), np.array(times[args.recipe])
  device = jax.devices()[0].device_kind
  print(f"ViT-{args.variant}, batch {args.batch}, {args.pattern}, {device}")
  print(f"{'dense step':30} {dense.min() * 1e3:9.1f} ms")
  print(f"{args.recipe + ' step':30} {sparse.min() * 1e3:9.1f} ms")
  print(f"{'ratio of the fastest':30} {sparse.min() / dense.min():9.3f}")
  ratio = np.median(sparse / dense)
  print(f"{'median of the paired ratios':30} {ratio:9.3f}")
  for name, seconds in parts(args):
    share = seconds / dense.min()
    print(f"{name:30} {seconds * 1e3:9.1f} ms  {share:7.2%} of a dense step")


if __name__ == "__main__":
  main()
