"""What a report says of one layer, and of a whole model, on one engine."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
  """One layer on one engine: one of its `count` instances.

  `energy_pj` is None for a processor unless picojoules are given, and
  `ideal_speedup`, that of `Engine.silicon`, for an engine without one.
  """

  name: str
  engine: str
  M: int
  N: int
  K: int
  pattern: str
  count: int
  cycles: int
  utilisation: float
  speedup: float
  energy_pj: float | None
  dram_bytes: int
  ideal_speedup: float | None = None


class Total(NamedTuple):
  """The whole model on one engine: every instance of every layer (Amdahl).

  Attributes:
    workload: Label of the layers, or "".
    engine: Name of the engine.
    pattern: Pattern of the sparse layers; "dense" without any, "mixed" if
      there are several.
    unit: Unit of cycles: "cycles", or "ns" of a roofline.
    cycles: Sum of the cycles.
    baseline_cycles: Sum of the cycles that `speedup` compares with.
    speedup: Ratio baseline_cycles / cycles.
    utilisation: Useful MACs / (cycles x multipliers).
    energy_pj: Sum of the energy; None for a processor unless picojoules are
      given.
    dram_bytes: Sum of the memory traffic.
    stall_factor: Factor by which swapping makes vectors stream longer, 1
      without; `figs_jax.engine.figs.checkpoint_stall_factor`.
    parts: Parts of cycles by name, which add up to them.
    memory_bound: Share of cycles in products that wait for the memory.
    fuse: How attention was to run, as `figs_jax.engine.Fusion` prints it.
    fused: Share of attention that runs fused.
    seq: Tokens of a sequence; 0 if unknown.
    cache_bytes: Bytes of keys and values that are read where the model decodes;
      they are part of dram_bytes.
    non_gemm: Cycles beside the products, by kind; empty if the layers are not a
      whole model.
    whole_cycles: Sum of cycles and non_gemm.
    whole_speedup: Speed-up of the whole pass, over the same kind of baseline.
    ideal_speedup: The speed-up at the rates of the silicon (`Engine.silicon`),
      None for an engine that models no lower ones.
  """

  workload: str
  engine: str
  pattern: str
  unit: str
  cycles: int
  baseline_cycles: int
  speedup: float
  utilisation: float
  energy_pj: float | None
  dram_bytes: int
  stall_factor: float
  parts: dict[str, int]
  memory_bound: float
  fuse: str
  fused: float
  seq: int
  cache_bytes: int
  non_gemm: dict[str, int]
  whole_cycles: int
  whole_speedup: float
  ideal_speedup: float | None = None
