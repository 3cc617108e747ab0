"""Zeros that a squared ReLU leaves, and what 2:4 inputs cost after it.

    python benchmarks/relu2.py --seeds 3

trains the ViT of configs/digits_vit.py, dense, with gelu and with the squared
ReLU, each with whole inputs of its second feed-forward layers and with 2:4
(`--config.activations="ff_input: 2:4"`). The columns are means over the test
images: accuracy and loss; the share of zeros in front of the mask; the share
of groups of 4 with at most 2 entries, which the mask leaves as they are; the
share of the sum of squares that it keeps; and the loss of the same weights
with the other choice of inputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from figs_jax import nn
from figs_jax.core.masks import nm_mask
from figs_jax.pruning.layouts import Layout
from figs_jax.pruning.recording import Place, record
from figs_jax.train import experiment as experiments
from figs_jax.train._evaluate import evaluator
from figs_jax.train.state import train_step
from figs_jax.train.tasks import task_of

_CONFIG = Path(__file__).parents[1] / "configs" / "digits_vit.py"
_RULES = "ff_input: 2:4"


def build(steps: int, relu2: bool, rules: str) -> experiments.Experiment:
  """The dense experiment with one activation and rules of its inputs."""
  config = runpy.run_path(str(_CONFIG))["get_config"]("dense")
  config.total_steps = steps
  config.model.relu2, config.activations = relu2, rules
  return experiments.build(config)


def trained(made: experiments.Experiment, seed: int):
  """The last state of a run."""
  config = made.config.copy_and_resolve_references()
  config.seed = seed
  batches = iter(task_of(config).train_batches(config.batch_size))
  state = made.lone_state(seed)
  for _ in range(config.total_steps):
    state, _ = train_step(state, next(batches))
  return state


def counted(made: experiments.Experiment, state) -> tuple[float, float, float]:
  """Shares of zeros, of groups that fit, and of kept squares."""
  net = nn.prune_inputs(state.finished(), _RULES)
  paths, calls = nn.input_patterns(net), []
  net = nn.prune_inputs(net, "*: dense")  # its inputs are whole
  for path in paths:
    layer = net
    for part in path.split("/")[:-1]:
      layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
    record(layer, Place(path, Layout.of(path, layer, (-2,)), calls), None)
  (batch,) = task_of(made.config).eval_batches(355)
  net(batch["image"])
  zeros, fitting, kept = [], [], []
  for _, x in calls:
    groups = np.asarray(x).reshape(-1, 4)
    zeros.append((groups == 0).mean())
    fitting.append(((groups != 0).sum(1) <= 2).mean())
    mask = np.asarray(nm_mask(jnp.abs(x), "2:4", -1))
    kept.append((np.asarray(x)[mask] ** 2).sum() / (groups**2).sum())
  return float(np.mean(zeros)), float(np.mean(fitting)), float(np.mean(kept))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=600)
  args = parser.parse_args()
  print(
    "| activation | inputs | accuracy | loss | zeros | groups that fit |"
    " squares kept | loss with the other inputs |"
  )
  print("|---|---|---|---|---|---|---|---|")
  for relu2 in (False, True):
    pair = {rules: build(args.steps, relu2, rules) for rules in ("", _RULES)}
    measures = {rules: evaluator(made) for rules, made in pair.items()}
    for rules, other in (("", _RULES), (_RULES, "")):
      rows = []
      for seed in range(args.seeds):
        state = trained(pair[rules], seed)
        values = dict(measures[rules].run(state))
        moved = pair[other].lone_state(seed)
        moved = dataclasses.replace(moved, params=state.params, step=state.step)
        swapped = dict(measures[other].run(moved))
        rows.append(
          (
            values["accuracy"],
            values["loss"],
            *counted(pair[rules], state),
            swapped["loss"],
          )
        )
      table = np.array(rows)
      error = table.std(0, ddof=1) / np.sqrt(len(table))
      cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(table.mean(0), error)]
      name = "squared ReLU" if relu2 else "gelu"
      print(
        f"| {name} | {'2:4' if rules else 'whole'} | {' | '.join(cells)} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
