"""Design points per second of the closed forms, beside SCALE-Sim's time.

A point is one GEMM with one pattern on one design, exact in int64. The target
is 20 M points/s; no time is asserted. Three tables:

1. Each kind of engine: sweeps for the fewest cycles ("cycles"), for the fewest
   with a utilisation above a half ("+ util") and for the Pareto front of cycles
   and DRAM bytes ("front"), a sweep that writes all fields to memory ("all", at
   most 10^7 points), and `cost` on 10^6 random layers and designs.
2. One kind of engine by the number of points, beside dense cycles alone (2
   divisions and 6 operations) in NumPy's int64 and in plain Python.
3. Layers on SCALE-Sim, given a Python interpreter that has it:
     python -m venv VENV && VENV/bin/pip install scalesim==3.0.0 "numpy<2.4"
     python benchmarks/engine.py --scalesim VENV/bin/python
   Its cycles should equal the closed form minus 1. Its time excludes its start
   and traces.

Floors: 8 bytes per written field over the bandwidth of a copy; and the
operations of a formula, as counted by the compiler, over the rate of a chain of
additions and multiplications. A sweep may beat the latter, as it computes what
is constant within a block only once. The machine is shared, so the fastest of
several runs counts.

  python benchmarks/engine.py --points 1e9
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.engine import Energy, Layers, cost, parse
from figs_jax.engine.int64 import Doubles
from figs_jax.engine.sweeps._sweep import Sweep, sweep
from figs_jax.engine.sweeps.points import GEMM, Machine

TARGET = 20e6
SIDES = {"rows": range(16, 16 * 17, 16), "cols": range(16, 16 * 17, 16)}
CHIPS = {"peak": range(800_000, 800_016), "hbm": range(2000, 2016)}
KINDS: dict[str, dict[str, Any]] = {
  "ws": SIDES,
  "os:overlap=full": SIDES,
  "figs:overlap=full": SIDES,
  "figs:exchange=swap": SIDES,
  "vegeta:overlap=full": SIDES,
  "tensorcore:h200": CHIPS,
  "csr:h200": CHIPS,
}
PATTERNS = {"pattern": ["1:2", "2:4", "1:4", "1:8"]}
GEMMS = [(64, 64, 64), (196, 384, 384), (128, 512, 64), (64, 64, 1024)]
CONFIG = """[general]
run_name = run
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = 32
ArrayWidth = 32
ifmapsramszkB = 4096
filtersramszkB = 4096
ofmapsramszkB = 4096
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = ws
ReadRequestBuffer = 32
WriteRequestBuffer = 32
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
"""
SCRIPT = """
import time
from scalesim.scale_sim import scalesim
files = {"config": "run.cfg", "topology": "gemm.csv", "layout": "layout.csv"}
tool = scalesim(True, False, input_type_gemm=True, **files)
start = time.perf_counter()
tool.run_scale(top_path="out")
took = time.perf_counter() - start
with open("out/run/COMPUTE_REPORT.csv") as file:
  print(took, file.read().splitlines()[1].split(",")[2])
"""


def best(function: Callable[[], Any], rounds: int) -> float:
  """Seconds of the fastest call, after one that compiles."""
  function()
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return min(times)


def product(spec: str, points: float) -> Sweep:
  """A sweep of about `points` points over sizes, patterns and designs."""
  axes = PATTERNS | KINDS[spec]
  if points < 100 * math.prod(map(len, axes.values())):
    axes = PATTERNS
  rest = points / math.prod(map(len, axes.values()))
  each = round(rest ** (1 / 3))
  last = round(rest / each**2)
  gemm = {
    "M": range(64, 64 + 8 * each, 8),
    "N": range(128, 128 + 8 * each, 8),
    "K": range(96, 96 + 8 * last, 8),
  }
  return sweep(spec, gemm | axes)


def random_points(spec: str, points: int) -> tuple[Layers, Any]:
  """Random layers, and a random design of an engine for each."""
  rng = np.random.default_rng(0)
  M, N, K = rng.integers(64, 4096, (3, points))
  m, ones = 2 ** rng.integers(1, 4, points), np.ones(points, np.int64)
  axes = KINDS[spec]
  fields = {name: rng.choice(axes[name], points) for name in axes}
  engine: Any = parse(spec)
  engine = dataclasses.replace(engine, **fields, name="random")
  return Layers(("",) * points, M, N, K, ones, m, ones), engine


def write_all(designs: Sweep) -> None:
  names = designs.results
  for _ in designs.chunks(names):
    pass


def busy(point: Any) -> Any:
  return point["utilisation"] > 0.5


def rates(runs: list[tuple[int, Any]], rounds: int) -> list[float]:
  """M points/s of each pair of points and function."""
  return [points / best(run, rounds) / 1e6 for points, run in runs]


def floors() -> tuple[float, float]:
  """Seconds to copy a byte, and of an operation on one double."""
  with jax.enable_x64(True):
    long, short = jnp.ones(2**24), jnp.ones(2**18)
    copy = jax.jit(lambda x: x + 1)
    byte = best(lambda: copy(long).block_until_ready(), 10) / (8 * long.size)

    @jax.jit
    def chain(x):
      for i in range(64):
        x = x * (1 + i) + i
      return x

    took = best(lambda: chain(short).block_until_ready(), 30)
  return byte, took / 128 / short.size


def operations(spec: str) -> float:
  """Operations of the formula for cycles per point, by the compiler's count."""
  machine = Machine(parse(spec), itemsize=2, energy=Energy())
  names = (*GEMM, *(field.name for field in machine.engine.numeric()))

  def cycles(values):
    numbers = {name: Doubles(x) for name, x in values.items()}
    return machine(numbers)["cycles"].x

  with jax.enable_x64(True):
    values = {name: jnp.ones(4096) for name in names}
    analysis: Any = jax.jit(cycles).lower(values).compile().cost_analysis()
  return analysis["flops"] / 4096


def print_kinds(
  args: argparse.Namespace, byte: float, operation: float
) -> None:
  print(f"\nM points/s; the target is {TARGET / 1e6:.0f}")
  print(
    f"{'engine':20} {'points':>13} {'cycles':>7} {'floor':>7} {'+ util':>7}"
    f" {'front':>7} {'all':>7} {'floor':>7} {'cost()':>7}"
  )
  for spec in KINDS:
    designs = product(spec, args.points)
    few = product(spec, min(args.points, 1e7))
    fields = len(few.results)
    layers, engine = random_points(spec, 10**6)
    smallest = partial(designs.smallest, "cycles")
    runs = [
      (len(designs), smallest),
      (len(designs), partial(smallest, where=busy)),
      (len(designs), partial(designs.pareto, "cycles", "dram_bytes")),
      (len(few), partial(write_all, few)),
      (len(layers), partial(cost, layers, engine)),
    ]
    cycles, util, front, every, eager = rates(runs, args.rounds)
    compute = 1e-6 / (operations(spec) * operation)
    write = 1e-6 / (8 * fields * byte)
    print(
      f"{spec:20} {len(designs):13,} {cycles:7.1f} {compute:7.1f} {util:7.1f}"
      f" {front:7.1f} {every:7.1f} {write:7.1f} {eager:7.1f}",
      flush=True,
    )


def dense_cycles(M, N, K, R, C):
  return -(-K // R) * -(-N // C) * (2 * R + C + M - 2)


def print_sizes(args: argparse.Namespace) -> None:
  print("\nws by the number of points, M points/s")
  print(
    f"{'points':>11} {'cycles':>9} {'all':>9} {'cost()':>9} {'NumPy':>9}"
    f" {'Python':>9}"
  )
  for exponent in range(2, 8):
    points = 10**exponent
    designs = product("ws", points)
    layers, engine = random_points("ws", points)
    columns = layers.M, layers.N, layers.K, engine.rows, engine.cols
    few = [column[: 10**5].tolist() for column in columns]
    runs = [
      (len(designs), partial(designs.smallest, "cycles")),
      (len(designs), partial(write_all, designs)),
      (points, partial(cost, layers, engine)),
      (points, partial(dense_cycles, *columns)),
      (len(few[0]), lambda few=few: list(map(dense_cycles, *few))),
    ]
    cells = (f"{x:9.3f}" for x in rates(runs, args.rounds))
    print(f"{points:11,}", *cells, flush=True)


def simulated(python: str, gemm: tuple[int, int, int]) -> tuple[float, int]:
  """SCALE-Sim's seconds and cycles for one layer on ws:32x32."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    (root / "run.cfg").write_text(CONFIG)
    sizes = ",".join(map(str, gemm))
    (root / "gemm.csv").write_text(f"name,M,N,K,\nlayer,{sizes},\n")
    (root / "layout.csv").write_text("name,\nlayer," + "1," * 20 + "\n")
    done = subprocess.run(
      [python, "-c", SCRIPT], cwd=folder, capture_output=True, text=True
    )
  if done.returncode:
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise SystemExit(f"--scalesim {python}: {reason}")
  took, cycles = done.stdout.split()[-2:]
  return float(took), int(cycles)


def print_simulated(args: argparse.Namespace) -> None:
  if args.scalesim is None:
    print(
      "\nSCALE-Sim skipped: pass --scalesim PYTHON, an interpreter that has"
      ' scalesim==3.0.0 and "numpy<2.4"'
    )
    return
  engine = parse("ws:32x32")
  print("\nSCALE-Sim 3.0.0, ws:32x32, beside cost() of one layer and a sweep")
  print(
    f"{'M x N x K':>12} {'tool, s':>8} {'cost, s':>8} {'ratio':>6}"
    f" {'a point, s':>10} {'ratio':>8} {'cycles':>7} {'tool + 1':>8}"
  )
  designs = product("ws", args.points)
  point = best(lambda: designs.smallest("cycles"), args.rounds) / len(designs)
  for gemm in GEMMS:
    layers = Layers.of([dict(zip("MNK", gemm), name="layer")])
    one = best(partial(cost, layers, engine), 20)
    tool, cycles = min(simulated(args.scalesim, gemm) for _ in range(3))
    ours = int(cost(layers, engine).cycles[0])
    print(
      f"{'x'.join(map(str, gemm)):>12} {tool:8.3f} {one:8.1e} {tool / one:6.0f}"
      f" {point:10.1e} {tool / point:8.1e} {ours:7} {cycles + 1:8}",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description="Design points per second.")
  parser.add_argument(
    "--points", type=float, default=1e8, help="Points of a sweep."
  )
  parser.add_argument(
    "--rounds", type=int, default=3, help="Runs of which the fastest counts."
  )
  parser.add_argument(
    "--scalesim", help="Python interpreter that has scalesim 3.0.0."
  )
  args = parser.parse_args()
  byte, operation = floors()
  device = jax.devices()[0]
  print(f"{device.device_kind}, {device.platform}, jax {jax.__version__}")
  print(
    f"copy {2e-9 / byte:.1f} GB/s read and written; {1e-9 / operation:.1f} G"
    " operations/s on doubles"
  )
  print_kinds(args, byte, operation)
  print_sizes(args)
  print_simulated(args)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(f"\nlargest memory of this process {peak:.2f} GB")


if __name__ == "__main__":
  main()
