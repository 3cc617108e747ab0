"""What a run costs beyond its compiled steps, in processor time.

The bare step is the compiled step on one batch that is on the device. Chunks of
the training loop and of bare steps alternate in one process; printed are the
medians of their ratios:

* the loop over the bare step, from the first step to the last, for the digits
  configuration and for a tiny ViT;
* eight seeds of one run over eight single runs, without and with compilations,
  beside the floor of eight bare steps;
* the first `train()` of a process over its bare steps, with its parts, without
  and with compiled programs that an earlier process has kept.

  python benchmarks/loop.py
  python benchmarks/loop.py --only loop,seeds --steps 201 --base HEAD~1
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from worktree import run_base

import figs_jax
from figs_jax.train import loop
from figs_jax.train.experiment import Experiment

TINY = {
  "model.depth": 1,
  "model.width": 16,
  "model.heads": 2,
  "model.mlp_dim": 64,
  "pattern": "ff: 1:8",
}
CHUNK = 50  # as often as the log has a row
SEEDS = 8
TARGETS = {"digits": 1.05, "tiny": 1.3, "seeds": 0.55, "first": 2.5}


def config_of(steps: int, **overrides: Any) -> Any:
  """The digits configuration of the revision that is measured."""
  root = Path(figs_jax.__file__).parents[1]
  path = root / "configs" / "digits_vit.py"
  config = runpy.run_path(str(path))["get_config"]("figs")
  config.update({"progress": False, "total_steps": steps})
  config.checkpoint_every = steps
  config.update_from_flattened_dict(overrides)
  return config


class Bare:
  """The compiled step of a single run, on one batch and a state of its own."""

  def __init__(self, step: Callable, state: Any, batch: Any):
    self._step, self._batch = step, jax.tree.map(jnp.asarray, batch)
    self._state = jax.tree.map(jnp.copy, state)
    self.seconds(2)

  def seconds(self, steps: int) -> float:
    """Processor seconds of some steps."""
    start, state = time.process_time(), self._state
    for _ in range(steps):
      state, _ = self._step(state, self._batch)
    self._state = jax.block_until_ready(state)
    return time.process_time() - start


@contextmanager
def replaced_step(wrap: Callable) -> Iterator[None]:
  """Wraps the compiled step of runs."""
  make = loop.compiled_step

  def wrapped(*args: Any, **options: Any) -> Callable:
    return wrap(make(*args, **options))

  with mock.patch.object(loop, "compiled_step", wrapped):
    yield


def train(config: Any) -> None:
  with tempfile.TemporaryDirectory() as workdir:
    loop.train(config, workdir)


def bare_of(config: Any) -> Bare:
  """The bare step of a configuration, from a short run of it."""
  kept: list[Bare] = []

  def wrap(step: Callable) -> Callable:
    def keep(state: Any, batch: Any) -> Any:
      if not kept:
        kept.append(Bare(step, state, batch))
      return step(state, batch)

    return keep

  with replaced_step(wrap):
    train(config)
  return kept[0]


def chunks(config: Any, bare: Bare, factor: int = 1) -> tuple[list, float]:
  """Runs a training, with bare steps in between.

  Args:
    config: Configuration of the run.
    bare: Bare step to compare with.
    factor: Number of bare steps for one of the run.

  Returns:
    The ratios of all whole chunks, and the processor seconds of the run
    without the bare steps.
  """
  ratios: list[float] = []
  count, beside, start = 0, 0.0, 0.0

  def wrap(step: Callable) -> Callable:
    def timed(state: Any, batch: Any) -> Any:
      nonlocal count, beside, start
      out = step(state, batch)
      count += 1
      if count % CHUNK == 1:
        jax.block_until_ready(out)
        took = time.process_time() - start
        base = bare.seconds(CHUNK * factor)
        beside += base
        if count > 1:  # the first call compiles
          ratios.append(took / base)
        start = time.process_time()
      return out

    return timed

  begin = time.process_time()
  with replaced_step(wrap):
    train(config)
  return ratios, time.process_time() - begin - beside


def quartiles(values: list[float]) -> str:
  low, middle, high = np.percentile(values, (25, 50, 75))
  return f"{middle:.3f} (quartiles {low:.3f}, {high:.3f}; n={len(values)})"


def print_loop(steps: int) -> None:
  for name, overrides in (("digits", {}), ("tiny", TINY)):
    bare = bare_of(config_of(31, **overrides))
    ratios, _ = chunks(config_of(steps, **overrides), bare)
    ms = 1e3 * min(bare.seconds(CHUNK) for _ in range(5)) / CHUNK
    print(
      f"{name}: loop over bare step {quartiles(ratios)}, target"
      f" {TARGETS[name]}; bare step {ms:.2f} ms",
      flush=True,
    )


def print_seeds(steps: int) -> None:
  """Both kinds of run are compared with the bare step of a single one."""
  bare = bare_of(config_of(31))
  jax.clear_caches()
  one, alone = chunks(config_of(steps), bare)
  single = statistics.median(one)
  for mode in ("map", "vmap"):
    jax.clear_caches()
    config = config_of(steps, seeds=SEEDS, seeds_mode=mode)
    many, whole = chunks(config, bare, SEEDS)
    ratio = statistics.median(many) / single
    print(
      f"{SEEDS} seeds, {mode}: {ratio:.3f} of single runs, target"
      f" {TARGETS['seeds']}, floor {1 / single:.3f}; over bare steps"
      f" {quartiles(many)}; with compilations, evaluation and save"
      f" {whole / alone / SEEDS:.3f}",
      flush=True,
    )


def first(steps: int) -> dict[str, float]:
  """Processor seconds of the parts of this process's first `train()`."""
  parts = {"imports": time.process_time()}

  def timed(name: str, fn: Callable) -> Callable:
    @functools.wraps(fn)
    def call(*args: Any, **options: Any) -> Any:
      start = time.process_time()
      out = jax.block_until_ready(fn(*args, **options))
      parts[name] = parts.get(name, 0.0) + time.process_time() - start
      return out

    return call

  kept: list[Any] = []

  def wrap(step: Callable) -> Callable:
    def call(state: Any, batch: Any) -> Any:
      if kept:
        return step(state, batch)
      copied = jax.tree.map(jnp.copy, state)
      out = timed("compilation of the step", step)(state, batch)
      kept.extend((step, copied, batch))
      return out

    return call

  begin = time.process_time()
  with (
    mock.patch.object(loop, "build", timed("trace", loop.build)),
    mock.patch.object(
      Experiment, "placed_state", timed("state", Experiment.placed_state)
    ),
    mock.patch.object(loop, "_evaluate", timed("evaluation", loop._evaluate)),
    mock.patch.object(loop, "_save", timed("save", loop._save)),
    replaced_step(wrap),
  ):
    train(config_of(steps))
  parts["train()"] = time.process_time() - begin
  bare = Bare(*kept)
  each = statistics.median(bare.seconds(CHUNK) for _ in range(5)) / CHUNK
  parts["bare steps"] = each * steps
  return parts


def print_first(steps: int, repeats: int) -> None:
  with tempfile.TemporaryDirectory() as cache:
    kept = {
      "JAX_COMPILATION_CACHE_DIR": cache,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    nothing = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    _start(steps, kept)  # compiles, and prepares the data
    for name, more in (("first", nothing), ("with kept programs", kept)):
      rows = [_start(steps, more) for _ in range(repeats)]
      ratio = statistics.median(r["train()"] / r["bare steps"] for r in rows)
      parts = ", ".join(
        f"{part} {statistics.median(r[part] for r in rows):.2f}"
        for part in rows[0]
      )
      target = f", target {TARGETS['first']}" if name == "first" else ""
      print(f"train() over bare steps, {name}: {ratio:.2f}{target}")
      print(f"  seconds: {parts}", flush=True)


def _start(steps: int, variables: dict[str, str]) -> dict[str, float]:
  """`first` in a new process."""
  done = subprocess.run(
    [sys.executable, __file__, "--only=in_process", f"--steps={steps}"],
    env=os.environ | variables,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise SystemExit(done.stderr)
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description="Loop over compiled steps.")
  parser.add_argument("--only", default="loop,seeds,first")
  parser.add_argument("--steps", type=int, default=401)
  parser.add_argument("--repeats", type=int, default=3, help="Of the starts.")
  parser.add_argument("--base", help="Another revision to run as well.")
  args = parser.parse_args()
  only = args.only.split(",")
  if "in_process" in only:
    print(json.dumps(first(args.steps)))
    return
  if "loop" in only:
    print_loop(args.steps)
  if "seeds" in only:
    print_seeds(args.steps)
  if "first" in only:
    print_first(args.steps, args.repeats)
  if args.base:
    run_base(str(Path(__file__).resolve()), args.base)


if __name__ == "__main__":
  main()
