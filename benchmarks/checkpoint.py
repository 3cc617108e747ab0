"""Checkpoints of figs_jax beside those of plain Orbax, in one run.

Both write the same arrays with the same options of Orbax and read them back in
rounds that alternate which comes first; figs_jax verifies them as well. For
each part the table gives the median time of either, and the median of the
ratios of the rounds: on the wall clock, which is what a run waits for, and in
processor time of all threads, which an otherwise busy machine distorts less.
"blocking" is the part of a save for which training stands still; "to the end"
includes the writing in the background.

A save reads and writes each byte at least once in memory and once to the disk;
the floors are those times at the bandwidths printed with them.

  python benchmarks/checkpoint.py --rounds 15
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from figs_jax import models, nn
from figs_jax.core.rules import Rules
from figs_jax.core.tree import flatten
from figs_jax.train.checkpoint import Checkpointer, named_leaves

PARTS = ("save, blocking", "save, to the end", "restore")
DATA, CONFIG = {"next_example": 0}, {"name": "benchmark"}

Times = dict[str, tuple[float, float]]  # part -> (wall clock, processor), s


def state_of(variant: str) -> dict[str, Any]:
  """Parameters, masks and Adam's moments of a ViT, all from random numbers."""
  model = nn.sparsify(models.create("vit", variant), Rules.parse("ff: 1:8"))
  params = nn.split(model)[1]
  kernels = flatten(params)
  return {
    "params": params,
    "mu": jax.tree.map(lambda w: w * 0.3, params),
    "nu": jax.tree.map(lambda w: w * w, params),
    "masks": {path: kernels[path] > 0 for path in nn.masked_leaves(model)},
    "step": jnp.int32(7),
  }


class Stopwatch:
  """Wall clock and processor time since it was made."""

  def __init__(self):
    self._start = time.perf_counter(), time.process_time()

  def read(self) -> tuple[float, float]:
    wall, processor = self._start
    return time.perf_counter() - wall, time.process_time() - processor


class Ours:
  """Checkpoints of figs_jax; one writer for all steps, as in a run."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._writer = Checkpointer(folder, keep=1)

  def save(self, step: int, state: Any) -> None:
    self._writer.save(step, state, DATA, CONFIG)

  def wait(self) -> None:
    self._writer.wait()

  def restore(self, abstract: Any) -> Any:
    with Checkpointer(self._folder, keep=1) as reader:
      return reader.restore(abstract)[0]


class Plain:
  """The same with Orbax alone."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._writer = self._manager()

  def _manager(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.LatestN(1)
      ),
      item_names=("state", "meta"),
    )

  def save(self, step: int, state: Any) -> None:
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(named_leaves(state)),
      meta=ocp.args.JsonSave({"config": CONFIG, "data": DATA}),
    )
    self._writer.save(step, args=items, force=True)

  def wait(self) -> None:
    self._writer.wait_until_finished()

  def restore(self, abstract: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
      for name, leaf in named_leaves(abstract).items()
    }
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
    )
    with self._manager() as reader:
      return reader.restore(reader.latest_step(), args=items)["state"]


def measure(one: Ours | Plain, step: int, state: Any, abstract: Any) -> Times:
  watch = Stopwatch()
  one.save(step, state)
  blocking = watch.read()
  one.wait()
  saved = watch.read()
  watch = Stopwatch()
  jax.block_until_ready(one.restore(abstract))
  return dict(zip(PARTS, (blocking, saved, watch.read())))


def fastest(fn: Callable[[], Any], repeats: int = 5) -> float:
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    fn()
    times.append(time.perf_counter() - start)
  return min(times)


def bandwidths(folder: Path, size: int) -> tuple[float, float]:
  """Bytes per second of a copy in memory (read or written), and to the disk."""
  block = np.random.default_rng(0).bytes(size)
  source = np.frombuffer(block, np.uint8)
  target = np.empty_like(source)
  path = folder / "block"

  def write() -> None:
    with open(path, "wb") as file:
      file.write(block)
      file.flush()
      os.fsync(file.fileno())

  copied, written = fastest(lambda: np.copyto(target, source)), fastest(write)
  path.unlink()
  return 2 * size / copied, size / written


def load() -> str:
  return " ".join(f"{value:.2f}" for value in os.getloadavg())


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--variant", default="S/16", help="ViT to save.")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument(
    "--folder", default=None, help="Where to write. Defaults to $TMPDIR."
  )
  args = parser.parse_args()
  logging.getLogger("absl").setLevel(logging.ERROR)
  state = jax.block_until_ready(state_of(args.variant))
  abstract = jax.eval_shape(lambda: state)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  folder = Path(tempfile.mkdtemp(dir=args.folder))
  rounds: list[tuple[Times, Times]] = []
  print(
    f"{size / 2**20:.0f} MiB in {len(jax.tree.leaves(state))} arrays,"
    f" {os.cpu_count()} cores, load {load()}"
  )
  try:
    memory, disk = bandwidths(folder, size)
    print(
      f"floors: {size / memory * 1e3:.0f} ms to read it in memory"
      f" ({memory / 1e9:.1f} GB/s), {size / disk * 1e3:.0f} ms to write it to"
      f" the disk ({disk / 1e9:.2f} GB/s)"
    )
    both = Ours(folder / "ours"), Plain(folder / "plain")
    for i in range(args.rounds + 1):  # the first one warms up
      took: dict[Ours | Plain, Times] = {}
      for one in both if i % 2 else both[::-1]:
        took[one] = measure(one, i, state, abstract)
      rounds.append((took[both[0]], took[both[1]]))
  finally:
    shutil.rmtree(folder)
  print(f"load {load()} after {args.rounds} rounds")
  print(f"{'':18}{'wall clock, ms':>30}{'processor time, ms':>30}")
  heads = ("figs_jax", "Orbax", "ratio") * 2
  print(f"{'':18}" + "".join(f"{head:>10}" for head in heads))
  for part in PARTS:
    line = f"{part:18}"
    for clock in range(2):
      pairs = np.array([[t[part][clock] for t in pair] for pair in rounds[1:]])
      mine, theirs = np.median(pairs, 0) * 1e3
      ratio = np.median(pairs[:, 0] / pairs[:, 1])
      line += f"{mine:10.0f}{theirs:10.0f}{ratio:10.2f}"
    print(line)


if __name__ == "__main__":
  main()
