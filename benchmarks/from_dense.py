"""Real models from dense to N:M, in one shot and by fine-tuning.

Each row is appended to a CSV file as it is done, and left out if it is there.
One-shot rows give loss and accuracy on the evaluation split with the standard
error over examples, and the loss above that of the dense model, paired by
example; of a model with permuted channels also the loss above that of the same
method in the given order. Rows of fine-tuning give those of one seed.

  python benchmarks/from_dense.py --workdir RUN --rows minilm.csv
  python benchmarks/from_dense.py --workdir RUN --rows minilm.csv
    --recipes asp,sr_ste,figs,dense --seeds 0,1,2 --runs TUNED

RUN is a dense run of launch/train.py; docs/results.md has the commands.
"""

import argparse
import csv
import dataclasses
import itertools
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from figs_jax import nn
from figs_jax.cli import compilation_cache
from figs_jax.cli import pruning as program
from figs_jax.train import default_config, loop
from figs_jax.train.workdir import restore

METHODS = "magnitude,sparsegpt,wanda,ria,sparseswaps,alps"
RULES = "ff: {0}, qkv: {0}, o: {0}"
KEYS = ("stage", "method", "pattern", "permuted", "seed")
VALUES = (
  "examples", "loss", "loss_se", "accuracy", "accuracy_se", "above", "above_se",
  "layer_error", "seconds", "above_given", "above_given_se",
)  # fmt: skip


class Table:
  """Rows of a CSV file by their keys."""

  def __init__(self, path):
    self.path, self.rows = Path(path), {}
    if self.path.exists():
      with self.path.open() as file:
        for row in csv.DictReader(file):
          self.rows[tuple(row[key] for key in KEYS)] = row
    else:
      self._append([*KEYS, *VALUES])

  def _append(self, cells):
    with self.path.open("a", newline="") as file:
      csv.writer(file, lineterminator="\n").writerow(cells)

  def __contains__(self, key):
    return tuple(map(str, key)) in self.rows

  def add(self, key, **values):
    cells = [
      f"{v:.6g}" if isinstance(v, float) else v
      for v in (values.get(name, "") for name in VALUES)
    ]
    self._append([*key, *cells])
    self.rows[tuple(map(str, key))] = values
    print(*key, *cells, flush=True)


def scores(source, model, batch_size=32):
  """Losses and hits of the examples of the evaluation split, [examples]."""
  graphdef, state = nnx.split(model)
  measure = source.task.measure

  @jax.jit
  def one_batch(state, batch):
    return measure.each(nnx.merge(graphdef, state), batch)

  parts = []
  for batch in source.task.eval_batches(batch_size):
    each = jax.device_get(one_batch(state, batch))
    seen = each["seen"] > 0
    parts.append(np.stack([each["losses"][seen], each["hits"][seen]]))
  return np.concatenate(parts, axis=1)


def paired(name, each, other):
  """The mean difference of the losses of two models, and its error."""
  above = each[0] - other[0]
  error = above.std(ddof=1) / np.sqrt(len(above))
  return {name: float(above.mean()), f"{name}_se": float(error)}


def values_of(each, dense):
  """The values of a row from losses and hits, [2, examples]."""
  error = each.std(1, ddof=1) / np.sqrt(each.shape[1])
  return {
    "examples": each.shape[1],
    "loss": float(each[0].mean()),
    "loss_se": float(error[0]),
    "accuracy": float(each[1].mean()),
    "accuracy_se": float(error[1]),
    **paired("above", each, dense),
  }


def one_shot(table, args):
  data = {"eval_split": args.eval_split} if args.eval_split else {}
  dense = None
  for nm in args.patterns.split(","):
    source = program.source_of(
      RULES.format(nm), workdir=args.workdir, data=data
    )
    if dense is None:
      dense = scores(source, source.model)
      if ("dense", "dense", "", "", "") not in table:
        table.add(("dense", "dense", "", "", ""), **values_of(dense, dense))
    batches = program.calibration_batches(source, args.examples, 32)
    words = [(method, "no") for method in args.methods.split(",") if method]
    words += [(method, "yes") for method in args.permuted.split(",") if method]
    sources = {"no": source}
    for method, answer in words:
      key = ("one-shot", method, nm, answer, "")
      if key in table:
        continue
      if answer not in sources:  # one order of channels for all methods
        model, _ = nn.permute_channels(source.model, source.rules)
        sources[answer] = dataclasses.replace(source, model=model)
      start = time.process_time()
      model, layers = program.prune_source(sources[answer], batches, method)
      each = scores(source, model)
      values = values_of(each, dense)
      values["layer_error"] = float(np.mean([layer.error for layer in layers]))
      values["seconds"] = time.process_time() - start
      if answer == "yes":
        given, _ = program.prune_source(source, batches, method)
        values |= paired("above_given", each, scores(source, given))
      table.add(key, **values)


def tune(table, args):
  base = restore(args.workdir)[0].config
  for nm, seed, recipe in itertools.product(
    args.patterns.split(","), args.seeds.split(","), args.recipes.split(",")
  ):
    key = ("tuned", recipe, "" if recipe == "dense" else nm, "", seed)
    if key in table:
      continue
    config = base.copy_and_resolve_references()
    with config.unlocked():
      config.recipe = default_config(recipe, config.family).recipe
    if recipe != "dense":
      config.recipe.dense = 0.0  # the weights are trained already
    config.seed, config.pattern = int(seed), RULES.format(nm)
    config.init_from, config.init_head = args.workdir, "strict"
    config.total_steps = config.checkpoint_every = args.steps
    config.optimizer.learning_rate = args.learning_rate
    config.progress = False
    if args.eval_split:
      config.data.eval_split = args.eval_split
    if args.train_only is not None:
      config.train_only = args.train_only
    workdir = Path(args.runs, f"{recipe}-{nm.replace(':', '-')}-{seed}")
    start = time.process_time()
    result = loop.train(config, workdir)
    table.add(
      key,
      loss=float(result["eval/loss"]),
      accuracy=float(result["eval/accuracy"]),
      seconds=time.process_time() - start,
    )


def main():
  parser = argparse.ArgumentParser(description="From dense models.")
  parser.add_argument("--workdir", required=True, help="A dense run.")
  parser.add_argument("--rows", required=True, help="CSV file to append to.")
  parser.add_argument("--patterns", default="2:4,1:4")
  parser.add_argument("--eval_split", help="In place of that of the run.")
  parser.add_argument("--methods", default=METHODS)
  parser.add_argument("--permuted", default="magnitude,sparsegpt")
  parser.add_argument("--examples", type=int, default=128)
  parser.add_argument("--recipes", help="Fine-tunes, in place of one-shot.")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--learning_rate", type=float, default=1e-4)
  parser.add_argument("--train_only", help="In place of that of the run.")
  parser.add_argument("--runs", help="Directory of the fine-tuned runs.")
  args = parser.parse_args()
  compilation_cache.enable()
  (tune if args.recipes else one_shot)(Table(args.rows), args)


if __name__ == "__main__":
  main()
