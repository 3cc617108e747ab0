"""Processor time of a step of `nested` beside that of `ste`, on one ViT.

    python benchmarks/nested.py

A step makes 2 + `sampled` passes. The ViT is that of
configs/study_fashion_nested.py, on random images. Times are paired: each round
runs every recipe, and a ratio is the median over rounds.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

from figs_jax import models, nn, recipes
from figs_jax.models.flops import train_flops
from figs_jax.train.state import TrainState, train_step

_ROUNDS = flags.DEFINE_integer("rounds", 15, "Number of rounds.")
_STEPS = flags.DEFINE_integer("steps", 8, "Steps of a recipe in each round.")
_PATTERN = "ff: 1:8"
_SIZES = {"width": 128, "mlp_dim": 128, "depth": 1, "heads": 4}
_CASES = {
  "ste": {"name": "ste", "dense": 0.0},
  **{
    f"nested, sampled={k}": {
      "name": "nested", "patterns": "1:8,2:8,4:8,8:8", "sampled": k,
    }
    for k in range(3)
  },
}  # fmt: skip


def state_of(options) -> tuple[TrainState, float]:
  """A state of a recipe, and its training FLOPs per step."""
  options = dict(options)
  name = options.pop("name")
  recipe = recipes.create(name, _PATTERN, 1000, **options)
  model = models.create(
    "vit", "custom/14", image_size=28, in_channels=1, num_classes=10,
    pool="gap", pos="sincos", **_SIZES,
  )  # fmt: skip
  model = nn.sparsify(model, recipe)
  flops = train_flops(model, recipe, batch=64).total / recipe.total_steps
  return TrainState.create(model, recipe, recipe.adamw(1e-3)), flops


def main(_) -> None:
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.normal(size=(64, 28, 28, 1)).astype(np.float32),
    "label": rng.integers(0, 10, 64).astype(np.int32),
  }
  states, flops = {}, {}
  for name, options in _CASES.items():
    states[name], flops[name] = state_of(options)
    states[name], _ = train_step(states[name], batch)  # compiled here
  times: dict[str, list[float]] = {name: [] for name in _CASES}
  for _ in range(_ROUNDS.value):
    for name in _CASES:
      start = time.process_time()
      for _ in range(_STEPS.value):
        states[name], _ = train_step(states[name], batch)
      jax.block_until_ready(states[name].params)
      times[name].append((time.process_time() - start) / _STEPS.value)
  print(f"{'':20} {'passes':>6} {'FLOPs':>6} {'time':>6}   ms a step")
  for name, own in times.items():
    points = states[name].recipe.points
    ratio = statistics.median(a / b for a, b in zip(own, times["ste"]))
    share = flops[name] / flops["ste"]
    passes = points.passes if points else 1
    milliseconds = 1e3 * statistics.median(own)
    print(
      f"{name:20} {passes:>6} {share:>6.2f} {ratio:>6.2f} {milliseconds:>11.1f}"
    )


if __name__ == "__main__":
  app.run(main)
