"""How the training step and its compilation grow with depth and with devices.

`depth`: scanned models of 6 to 48 blocks (of the main stage of Swin-V2, of both
stacks of T5), and ViT as a list of blocks for comparison. The ideal step grows
as the FLOPs of training do; the ideal compilation and program are those of the
shallowest model.

`devices`: a ViT on meshes of 1, 2, 4, ... virtual devices of one CPU, with a
fixed batch (split over `data`, `fsdp` or `tensor`) and with a batch that grows.
These devices share the cores, so nothing here is a speed-up: what is measured
is work, the processor time of all devices together. The ideal is as much work
as on one device (times the batch, if that grows), and bytes of state divided by
the devices that split it.

All times are processor times of all threads, as medians of the ratios of rounds
that measure every point in turn; the first point of a row is 1. A lowered
program is counted in its instructions (lines of StableHLO), a compiled one in
those that XLA made of it, loops counted once.

`programs` lowers the step of every recipe, optimizer and family at two depths,
and compares the lengths.

  python benchmarks/scaling.py depth --picture docs/scaling_depth.png
  python benchmarks/scaling.py devices --picture docs/scaling_devices.png
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, BATCH = 64, 32
STEPS = 5  # per measurement
VIRTUAL = "--xla_force_host_platform_device_count"

IDEAL = {"color": "0.45", "linestyle": ":", "linewidth": 1.4, "zorder": 1}

# Names of the measured quantities, in the order of the tables and pictures.
STEP, COMPILE = "step", "compilation"
LOWERED, COMPILED = "lowered program", "compiled program"
STATE = "state per device"


def config_of(
  family: str, depth: int, *, scan: bool = True, recipe: str = "figs"
) -> Any:
  """A narrow model of this family, on data that is at hand."""
  from figs_jax.train.config import default_config

  config = default_config(recipe, family)
  config.total_steps, config.batch_size = 1000, BATCH
  config.pattern = "ff: 1:4"
  options: dict[str, Any] = {"width": WIDTH, "heads": 4, "scan": scan}
  if family in ("vit", "swin_v2"):
    config.data.name, config.data.image_size = "digits", 8
    config.variant = "custom/2" if family == "vit" else "custom/1"
  else:
    config.variant, config.data.name = "custom", "stdlib_text"
    config.data.vocabulary, config.data.input_length = "bytes", 16
  if family == "swin_v2":
    options |= {"depths": (2, depth), "heads": 2, "window": 4}
  else:
    options |= {"depth": depth}
  if family in ("gpt2", "bert"):
    options |= {"length": 16}
  if family != "swin_v2" and family != "gpt2":
    options |= {"mlp_dim": 4 * WIDTH}
  config.model.update(options)
  return config


@dataclasses.dataclass
class Point:
  """A training step on a mesh, and the state that it carries along.

  Attributes:
    config: Configuration of the run.
    mesh: Sizes of `data`, `fsdp` and `tensor`.
  """

  config: Any
  mesh: tuple[int, int, int] = (1, 1, 1)

  def __post_init__(self):
    import jax
    from flax import nnx

    from figs_jax.models.flops import train_flops
    from figs_jax.train.experiment import build
    from figs_jax.train.sharding import make_mesh

    self.experiment = build(self.config)
    self._mesh = make_mesh(*self.mesh)
    self._shardings = self.experiment.shardings(self._mesh)
    model = nnx.eval_shape(lambda: self.experiment.model(0))
    self.flops = train_flops(
      model, self.experiment.recipe, batch=self.config.batch_size
    ).total
    self._shapes = self.experiment.abstract_on(self._shardings)
    self.bytes = sum(
      x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
      for x in jax.tree.leaves(self._shapes)
    )
    self.batch = next(
      self.experiment.task.train_batches(self.config.batch_size)
    )
    self._program: Any = None
    self._state: Any = None

  def lower(self) -> Any:
    """The lowered step."""
    from figs_jax.train.compilation import compiled_step

    mesh = self._mesh if self._mesh.size > 1 else None
    step: Any = compiled_step(self.experiment, self._shardings, mesh)
    return step.lower(self._shapes, self.batch)

  def compile(self) -> dict[str, float]:
    """Processor seconds of tracing and compiling anew, and program sizes."""
    import jax

    jax.clear_caches()
    start = time.process_time()
    lowered = self.lower()
    self._program = lowered.compile()
    seconds = time.process_time() - start
    return {
      COMPILE: seconds,
      LOWERED: lowered.as_text().count("\n"),
      COMPILED: self._program.as_text().count(" = "),
    }

  def start(self) -> None:
    """Makes the state, and takes steps that are not measured."""
    self._state = self.experiment.placed_state(self._shardings)
    self.run()

  def run(self) -> float:
    """Processor seconds of a step."""
    import jax

    start = time.process_time()
    for _ in range(STEPS):
      self._state, _ = self._program(self._state, self.batch, None)
    jax.block_until_ready(self._state)
    return (time.process_time() - start) / STEPS


Row = dict[str, list[float]]  # quantity -> value at each point


def measure(
  points: Sequence[Point], rounds: int, compilations: int
) -> tuple[Row, Row]:
  """Values at each point and their ratios to the first point's.

  Ratios of times are medians over rounds; in each, all points are measured in
  turn, every other round in reverse.
  """
  import numpy as np

  compiled = _rounds(points, compilations, lambda point: point.compile())
  for point in points:
    point.start()
  steps = _rounds(points, rounds, lambda point: {STEP: point.run()})
  values: Row = {STATE: [float(point.bytes) for point in points]}
  ratios: Row = {STATE: [b / values[STATE][0] for b in values[STATE]]}
  for table in (steps, compiled):
    for name in table[0][0]:
      all_rounds = np.array([[p[name] for p in each] for each in table])
      values[name] = np.median(all_rounds, 0).tolist()
      ratios[name] = np.median(all_rounds / all_rounds[:, :1], 0).tolist()
  return values, ratios


def _rounds(points: Sequence[Point], count: int, fn: Any) -> list[list[Any]]:
  """fn(point) of all points, `count` times, in alternating order."""
  result = []
  for number in range(count):
    order = range(len(points))
    each: list[Any] = [None] * len(points)
    for i in order if number % 2 == 0 else reversed(order):
      each[i] = fn(points[i])
    result.append(each)
  return result


def by_depth(args: argparse.Namespace) -> dict[str, tuple[Row, Row, Row]]:
  """Values, ratios and ideals of each family, scanned, and of a list."""
  tables = {}
  depths = [int(word) for word in args.points.split(",")]
  rows = [(family, True) for family in args.families.split(",")]
  rows += [("vit", False)] if args.list else []
  for family, scan in rows:
    points = [Point(config_of(family, d, scan=scan)) for d in depths]
    values, ratios = measure(points, args.rounds, args.compilations)
    flat = [1.0] * len(depths)
    ideal = {
      STEP: [point.flops / points[0].flops for point in points],
      COMPILE: flat,
      LOWERED: flat,
      COMPILED: flat,
    }
    del values[STATE], ratios[STATE]
    label = family if scan else f"{family}, a list of blocks"
    tables[label] = values, ratios, ideal
    print(_table(label, "depth", depths, values, ratios, ideal), flush=True)
  return tables


def by_devices(args: argparse.Namespace) -> dict[str, tuple[Row, Row, Row]]:
  """Values, ratios and ideals of each way to use devices."""
  tables = {}
  counts = [int(word) for word in args.points.split(",")]
  ways = {
    "data": lambda n: (n, 1, 1),
    "fsdp": lambda n: (1, n, 1),
    "tensor": lambda n: (1, 1, n),
    "data, batch grows": lambda n: (n, 1, 1),
  }
  for label, mesh in ways.items():
    points = []
    for count in counts:
      config = config_of("vit", args.depth)
      config.model.heads = 8
      if "grows" in label:
        config.batch_size = BATCH * count
      points.append(Point(config, mesh(count)))
    values, ratios = measure(points, args.rounds, args.compilations)
    flat = [1.0] * len(counts)
    split = [1 / n for n in counts] if label in ("fsdp", "tensor") else flat
    ideal = {
      STEP: [float(n) for n in counts] if "grows" in label else flat,
      COMPILE: flat,
      STATE: split,
    }
    for name in (LOWERED, COMPILED):
      del values[name], ratios[name]
    tables[label] = values, ratios, ideal
    print(_table(label, "devices", counts, values, ratios, ideal), flush=True)
  return tables


def programs(args: argparse.Namespace) -> None:
  """Lines of lowered steps at two depths, of all that a step is made of."""
  from figs_jax import models, recipes
  from figs_jax.core.optimizer_fields import OPTIMIZERS

  depths = [int(word) for word in args.points.split(",")]
  cases: dict[str, Any] = {
    f"vit, {name}": lambda d, name=name: config_of("vit", d, recipe=name)
    for name in recipes.names()
  }
  for family in models.names():
    if family != "resnet":
      cases[f"{family}, figs"] = lambda d, f=family: config_of(f, d)
  fields = [{"optimizer.name": name} for name in OPTIMIZERS]
  fields += [{"model.remat": True}, {"model.dropout": 0.1}]
  fields += [{"activations": "ff: 2:4", "recipe.k": 1}]
  for each in fields:
    label = ", ".join(f"{name}={value}" for name, value in each.items())

    def with_fields(depth, each=each):
      config = config_of("vit", depth)
      config.update_from_flattened_dict(each)
      return config

    cases[f"vit, figs, {label}"] = with_fields
  print(f"| step | {' | '.join(f'{d} blocks' for d in depths)} |")
  print("|---" * (len(depths) + 1) + "|")
  for label, config in cases.items():
    counts = [Point(config(d)).lower().as_text().count("\n") for d in depths]
    print(f"| {label} | {' | '.join(f'{n:,}' for n in counts)} |", flush=True)


def _table(
  label: str,
  axis: str,
  points: Sequence[int],
  values: Row,
  ratios: Row,
  ideal: Row,
) -> str:
  """A table in Markdown: ratios, beside the value at the first point."""
  units = {
    STEP: lambda v: f"{1e3 * v:.1f} ms",
    COMPILE: lambda v: f"{v:.2f} s",
    STATE: lambda v: f"{v / 2**20:.2f} MiB",
  }
  head = " | ".join(f"{axis} {n}" for n in points)
  lines = [f"| {label} | at {points[0]} | {head} |"]
  lines.append("|---" * (len(points) + 2) + "|")
  for name, row in ratios.items():
    unit = units.get(name, lambda v: f"{v:,.0f}")
    cells = " | ".join(f"{ratio:.2f}" for ratio in row)
    lines.append(f"| {name} | {unit(values[name][0])} | {cells} |")
    if any(x != 1 for x in ideal[name]):
      cells = " | ".join(f"{x:.2f}" for x in ideal[name])
      lines.append(f"| its ideal | | {cells} |")
  return "\n".join([*lines, ""])


def draw(
  tables: dict[str, tuple[Row, Row, Row]],
  axis: str,
  points: Sequence[int],
  path: str,
) -> None:
  """A panel per quantity: its ratios, and the ideal ones dashed."""
  from matplotlib import ticker

  from figs_jax.analysis import plot_style
  from figs_jax.engine.figures import panels

  names = list(next(iter(tables.values()))[1])
  figure, axes = panels(2.6 * len(names) + 2, 2.9, 1, len(names))
  for ax, name in zip(axes, names):
    for index, (label, (_, ratios, _)) in enumerate(tables.items()):
      style = plot_style.line_style(index)
      ax.plot(points, ratios[name], label=label, **style)
    ideals = {
      tuple(round(x, 1 if x > 1 else 3) for x in ideal[name])
      for _, _, ideal in tables.values()
    }
    for ideal in ideals:
      ax.plot(points, ideal, label="ideal", **IDEAL)
    plot_style.style_axes(ax, steps=False)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(points, [str(n) for n in points])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.45), max(high, 2.2))
    ax.set_xlabel(axis)
    ax.set_title(name, fontsize=9, loc="left")
  axes[0].set_ylabel(f"over that of {axis} {points[0]}")
  plot_style.add_legend(figure, axes)
  Path(path).write_bytes(plot_style.image_bytes(figure, "png"))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  kinds = parser.add_subparsers(dest="kind", required=True)
  for kind, points in (
    ("depth", "6,12,24,48"),
    ("devices", "1,2,4,8"),
    ("programs", "4,16"),
  ):
    sub = kinds.add_parser(kind)
    sub.add_argument("--points", default=points, help="Depths, or devices.")
    if kind == "programs":
      continue
    sub.add_argument(
      "--rounds", type=int, default=9, help="Measurements of every step."
    )
    sub.add_argument(
      "--compilations", type=int, default=3, help="Of every program."
    )
    sub.add_argument("--picture", help="PNG file to draw.")
    if kind == "depth":
      sub.add_argument(
        "--families",
        default="vit,swin_v2,t5,gpt2",
        help="Families to measure, scanned.",
      )
      sub.add_argument(
        "--list",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Whether to measure ViT as a list of blocks too.",
      )
    else:
      sub.add_argument(
        "--depth", type=int, default=4, help="Blocks of the ViT."
      )
  args = parser.parse_args()
  points = [int(word) for word in args.points.split(",")]
  if args.kind == "devices":  # before JAX looks for devices
    others = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{others} {VIRTUAL}={max(points)}".strip()
  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  if args.kind == "programs":
    programs(args)
    return
  tables = by_depth(args) if args.kind == "depth" else by_devices(args)
  if args.picture:
    draw(tables, args.kind, points, args.picture)


if __name__ == "__main__":
  main()
