"""STEP with its two denominators, sqrt(v*) + eps and sqrt(v* + eps).

Trains the experiment of configs/digits_vit.py with both forms and prints test
accuracy, test loss, the step of the switch and the ratio of the update norms of
the masked kernels after and before it. Gradients are scaled by `--scale` after
clipping: Adam ignores the factor but for eps.

  python benchmarks/step_denominator.py --seeds 3 --scale 1 1e-3
"""

from __future__ import annotations

import argparse
import dataclasses
import runpy
from pathlib import Path

import numpy as np
import optax

from figs_jax.core.tree import flatten
from figs_jax.train import experiment as experiments
from figs_jax.train._evaluate import evaluator
from figs_jax.train.state import train_step
from figs_jax.train.tasks import task_of

_CONFIG = Path(__file__).parents[1] / "configs" / "digits_vit.py"


def build(args: argparse.Namespace, scale: float, in_root: bool):
  """The experiment with one form, its gradients scaled after clipping."""
  config = runpy.run_path(str(_CONFIG))["get_config"]("step")
  config.total_steps = args.steps
  config.recipe.eps_in_root = in_root
  # Scaling, then clipping at a scaled norm, is clipping, then scaling.
  config.optimizer.clip *= scale
  made = experiments.build(config)
  return dataclasses.replace(made, tx=optax.chain(optax.scale(scale), made.tx))


def train(made: experiments.Experiment, measure, seed: int):
  """Accuracy, test loss, first masked step and ratio of the update norms."""
  config = made.config.copy_and_resolve_references()
  config.seed = seed
  batches = iter(task_of(config).train_batches(config.batch_size))
  state = made.lone_state(seed)
  masked = state.bound.leaves
  switch, sizes = None, []
  for step in range(config.total_steps):
    if switch is None and made.recipe.switched(state.opt_state):
      switch = step  # its forward pass is the first masked one
    near = switch is None or step == switch
    old = _kernels(state, masked) if near else None
    state, _ = train_step(state, next(batches))
    if old is not None:
      new = _kernels(state, masked)
      sizes.append(np.sqrt(sum(((new[p] - old[p]) ** 2).sum() for p in old)))
  if switch is None:
    raise SystemExit("--steps is too small: STEP did not switch")
  values = dict(measure.run(state))
  return values["accuracy"], values["loss"], switch, sizes[-1] / sizes[-2]


def _kernels(state, masked):
  flat = flatten(state.params)
  return {path: np.asarray(flat[path], np.float64) for path in masked}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 1e-3])
  args = parser.parse_args()
  print("| scale | denominator | accuracy | loss | first masked | norm ratio |")
  print("|---|---|---|---|---|---|")
  for scale in args.scale:
    for in_root in (False, True):
      made = build(args, scale, in_root)
      measure = evaluator(made)
      rows = [train(made, measure, seed) for seed in range(args.seeds)]
      mean = np.mean(np.array(rows, float), 0)
      error = np.std(np.array(rows, float), 0, ddof=1) / np.sqrt(len(rows))
      form = "sqrt(v* + eps)" if in_root else "sqrt(v*) + eps"
      print(
        f"| {scale:g} | {form} | {mean[0]:.4f} ± {error[0]:.4f} |"
        f" {mean[1]:.4f} ± {error[1]:.4f} | {mean[2]:.0f} | {mean[3]:.3g} ±"
        f" {error[3]:.2g} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
