"""Sparse training steps over the dense one, and where the time goes.

A step is `figs_jax.train_step` on random images: forward, backward and AdamW,
with the masks refreshed after the update. For every recipe the table gives the
time of a step that refreshes the masks, of a step that keeps them, and of the
mean step if every tenth refreshes, as medians of processor time over the dense
step of the same round; the processor time of tracing and compiling the step
over that of the dense step (the median of `--compilations`, in turn); and the
bytes of state beyond those of the dense run (masks, optimizer, variables).

What a recipe adds takes at least the time to read each masked kernel (4 bytes
per weight) and to write its effective copy (4) and mask (1) once per step, at
the bandwidth of the printed copy. The machine is shared: read ratios, not
times. With `--base`, another revision prints its table after this one's.

  python benchmarks/step.py --recipes ste,figs --pattern "ff: 1:8"
  python benchmarks/step.py --variant Ti/16 --depth 2 --base 8e400d0
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from worktree import run_base

from figs_jax import TrainState, models, nn, recipes, train_step
from figs_jax.core._flow import flow
from figs_jax.core.masks import nm_mask
from figs_jax.core.rules import Rules
from figs_jax.core.tree import flatten
from figs_jax.train.state import update, with_fresh_masks

TOTAL = 1000
# The step of 1000 at which to measure, if not 600: in the widest stage of a
# schedule that widens groups, and after a late mask appears. STEP switches at
# once.
AT = {"figs": 100, "sdgf_geometric": 100, "mdgf_sdgf": 100, "one_shot": 950}
OPTIONS: dict[str, dict[str, Any]] = {"step": {"t_min": 0.0, "t_max": 0.0}}
TARGET, TARGET_TENTH = 1.05, 1.03


@dataclasses.dataclass
class Run:
  """The state that `figs_jax.train_step` carries from one call to the next."""

  state: TrainState
  at: int

  @property
  def bytes(self) -> int:
    """Size of the state."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

  def seconds(self, batch: dict, due: bool) -> float:
    """Processor seconds of a step, after which a refresh is due or not."""
    count = jnp.int32(self.at - 1 if due else self.at)
    state = dataclasses.replace(self.state, step=count)
    start = time.process_time()
    self.state, _ = jax.block_until_ready(train_step(state, batch))
    return time.process_time() - start

  def compile_seconds(self, batch: dict) -> float:
    """Processor seconds of tracing and compiling the step anew."""
    jax.clear_caches()
    start = time.process_time()
    jax.jit(update, donate_argnums=0).lower(self.state, batch).compile()
    return time.process_time() - start


def _model(args: argparse.Namespace) -> Any:
  depth = {"depth": args.depth} if args.depth else {}
  return models.create("vit", args.variant, image_size=args.image_size, **depth)


def build(args: argparse.Namespace, name: str) -> Run:
  options = {"refresh_every": 10} | OPTIONS.get(name, {})
  recipe = recipes.create(name, args.pattern, TOTAL, **options)
  model = nn.sparsify(_model(args), recipe)
  state = TrainState.create(model, recipe, recipe.adamw(1e-3))
  at = AT.get(name, 600)
  state = dataclasses.replace(state, step=jnp.int32(at))
  return Run(with_fresh_masks(state), at)


def row(args: argparse.Namespace, name: str, dense: Run, batch: dict) -> str:
  run = build(args, name)
  compiled = [
    [each.compile_seconds(batch) for each in (dense, run)]
    for _ in range(args.compilations)
  ]
  for due in (True, False):
    run.seconds(batch, due)  # compiles
  dense.seconds(batch, True)
  rounds = []
  for i in range(args.repeats):
    turns = [
      lambda: dense.seconds(batch, True),
      lambda: run.seconds(batch, True),
      lambda: run.seconds(batch, False),
    ]
    order = range(3) if i % 2 == 0 else range(2, -1, -1)
    took = [0.0] * 3
    for j in order:
      took[j] = turns[j]()
    rounds.append(took)
  due, kept = (
    float(np.median([took[j] / took[0] for took in rounds])) for j in (1, 2)
  )
  tenth = (due + 9 * kept) / 10
  good = due <= TARGET and tenth <= TARGET_TENTH
  compiling = np.median([own / base for base, own in compiled])
  extra = run.bytes - dense.bytes
  cells = f"{due:.3f} | {kept:.3f} | {tenth:.3f} | {'yes' if good else 'no'}"
  return f"| {name} | {cells} | {compiling:.2f} | {extra:,} |"


def fastest(fn: Callable, repeats: int = 10) -> float:
  """Seconds of the fastest call, after one that compiles."""
  jax.block_until_ready(fn())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    times.append(time.perf_counter() - start)
  return min(times)


def parts(args: argparse.Namespace) -> list[tuple[str, float]]:
  """Seconds of each part that sparsity adds to a step, alone on all kernels."""
  rules = Rules.parse(args.pattern)
  model = _model(args)
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
    ("copy of the masked kernels", fastest(lambda: copy(kernels))),
    ("mask refresh", fastest(lambda: refresh(kernels))),
    ("mask applied, forward", fastest(lambda: apply(kernels, masks))),
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description="Sparse steps over dense ones.")
  parser.add_argument(
    "--recipes",
    default="all",
    help=f"Names, or all: {', '.join(recipes.names())}.",
  )
  parser.add_argument("--pattern", default="ff: 1:8")
  parser.add_argument("--variant", default="S/16")
  parser.add_argument("--image-size", type=int, default=224)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--depth", type=int, default=0, help="0: the variant's.")
  parser.add_argument("--compilations", type=int, default=1)
  parser.add_argument("--base", help="Another revision to run as well.")
  args = parser.parse_args()
  names = recipes.names()
  if args.recipes != "all":
    names = args.recipes.split(",")

  size = args.image_size
  images = jax.random.normal(jax.random.key(0), (args.batch, size, size, 3))
  batch = {"image": images, "label": jnp.arange(args.batch) % 1000}
  dense = build(args, "dense")
  dense.seconds(batch, True)
  step = min(dense.seconds(batch, True) for _ in range(args.repeats))
  device = jax.devices()[0].device_kind
  print(f"ViT-{args.variant}, batch {args.batch}, {args.pattern}, {device}")
  print(f"dense step {step * 1e3:.1f} ms, state {dense.bytes:,} bytes")
  for name, seconds in parts(args):
    share = seconds / step
    print(f"{name:30} {seconds * 1e3:9.2f} ms  {share:7.2%} of a dense step")
  print(
    "| recipe | refresh at every step | masks reused | every tenth | both met"
    " | compilation | bytes of state beyond dense |\n"
    "|---|---|---|---|---|---|---|"
  )
  for name in names:
    if name != "dense":
      print(row(args, name, dense, batch), flush=True)
  if args.base:
    run_base(__file__, args.base)


if __name__ == "__main__":
  main()
