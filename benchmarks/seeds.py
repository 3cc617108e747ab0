"""Many seeds in one compiled step: vmapped, or one after the other.

Prints the time per step of both beside that of a single seed, measured in turn
in one process. `figs_jax.train.loop.seeds_mode` follows the results: on two CPU
cores the sequential form may win, on an accelerator the vmapped one.

  python benchmarks/seeds.py --seeds 4
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from figs_jax import models, nn, recipes


def build(args: argparse.Namespace, recipe: recipes.Recipe):
  """The functions that initialize and train one seed, both traceable."""
  tx = recipe.adamw(1e-3)
  options = {
    "width": args.width,
    "depth": args.depth,
    "heads": 4,
    "pool": "gap",
    "image_size": 8,
    "in_channels": 1,
    "num_classes": 10,
  }

  def make(seed):
    model = models.create(
      "vit", "custom/2", rngs=nnx.Rngs(jax.random.key(seed)), **options
    )
    return nn.sparsify(model, recipe)

  abstract = nnx.eval_shape(lambda: make(0))
  bound = recipe.bind(nn.masked_leaves(abstract))
  graphdef, *_ = nn.split(make(0))

  def init(seed):
    _, params, _, rest = nn.split(make(seed))
    return params, bound.masks(0, params), tx.init(params), rest

  def step(carry, count, images, labels):
    params, masks, opt_state, rest = carry
    moment = recipe.at(count)

    def loss(params):
      net = nn.merge(graphdef, params, masks, moment.leak, rest)
      return optax.softmax_cross_entropy_with_integer_labels(
        net(images), labels
      ).mean()

    grads = jax.grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
    params = optax.apply_updates(params, updates)
    return params, bound.masks(count + 1, params, masks), opt_state, rest

  return init, step


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--depth", type=int, default=4)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--steps", type=int, default=50)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  recipe = recipes.create("figs", "ff: 1:4", total_steps=1000)
  init, step = build(args, recipe)
  images = jax.random.normal(jax.random.key(0), (args.batch, 8, 8, 1))
  labels = jnp.arange(args.batch) % 10
  data = (images, labels)
  forms = {
    "one seed": (init, step),
    "vmap": (jax.vmap(init), jax.vmap(step, in_axes=(0, None, None, None))),
    "map": (
      jax.vmap(init),
      lambda carry, *rest: jax.lax.map(lambda c: step(c, *rest), carry),
    ),
  }
  seeds = jnp.arange(args.seeds)
  carries, steps = {}, {}
  for name, (start, form) in forms.items():
    carries[name] = jax.jit(start)(seeds[0] if name == "one seed" else seeds)
    steps[name] = jax.jit(form, donate_argnums=0)
    carries[name] = steps[name](carries[name], jnp.int32(500), *data)
  best = dict.fromkeys(forms, float("inf"))
  for _ in range(args.repeats):
    for name in forms:
      start = time.perf_counter()
      for i in range(args.steps):
        carries[name] = steps[name](carries[name], jnp.int32(500 + i), *data)
      jax.block_until_ready(carries[name])
      best[name] = min(best[name], (time.perf_counter() - start) / args.steps)
  print(
    f"{args.seeds} seeds on {jax.devices()[0].device_kind}, batch {args.batch}"
  )
  for name, seconds in best.items():
    count = 1 if name == "one seed" else args.seeds
    ratio = seconds / count / best["one seed"]
    print(f"{name:10} {seconds * 1e3:8.2f} ms/step  {ratio:6.2f} x per seed")


if __name__ == "__main__":
  main()
