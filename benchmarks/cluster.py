"""Placements per second of `figs_jax.engine.estimate_all`, beside a plain loop.

A decoder of 1e12 weights on several numbers of H100s. The loop is the tests'
oracle, the same formulas in plain Python, on a sample of the same placements;
the largest relative difference between the two is printed too.

  python benchmarks/cluster.py --devices 256,512,1024,2048,4096 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
from worktree import ROOT

sys.path.insert(0, str(ROOT))

from figs_jax.engine import Assumptions, BytesPerValue, Cluster, Decoder
from figs_jax.engine.studies.cluster import _estimate
from figs_jax.engine.studies.cluster.placements import CHOICES
from figs_jax.engine.studies.cluster.profile import profile
from tests.engine.studies import cluster_oracle

MODEL = Decoder(25600, layers=128, heads=160)
ENGINE, BATCH, SIZES = "gpu:h100", 4096, BytesPerValue()


def main() -> None:
  parser = argparse.ArgumentParser(description="Rate of estimate_all().")
  parser.add_argument("--devices", default="256,512,1024,2048,4096")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--sample", type=int, default=300, help="of the loop")
  args = parser.parse_args()
  counts = [int(count) for count in args.devices.split(",")]
  cluster = Cluster(
    counts[0], intra=450, inter=50, tier_memory=2 * 10**11, tier_bandwidth=64
  )
  assume = Assumptions(embedding=MODEL.embedding)

  def phase_at(batch: int):
    return 1, MODEL.table(batch)

  def search():
    return _estimate.estimate_all(
      phase_at, ENGINE, cluster, BATCH, devices=counts, overlap=True,
      assume=assume,
    )  # fmt: skip

  whole, alone, made = [], [], search()
  choices, rows = _estimate._choices(phase_at, counts, BATCH, assume)
  groups, stages = (
    np.unique(choices[name]).tolist() for name in ("tensor", "pipeline")
  )
  tables = profile(
    rows, _estimate.parse(ENGINE), cluster, groups, stages, clock_ghz=1,
    sizes=SIZES, assume=assume,
  )  # fmt: skip
  for _ in range(args.rounds):
    start = time.process_time()
    made = search()
    whole.append(time.process_time() - start)
    start = time.process_time()
    _estimate.evaluate(choices, tables, cluster, SIZES, True)
    alone.append(time.process_time() - start)
  rng = np.random.default_rng(0)
  sample = rng.choice(len(made), min(args.sample, len(made)), replace=False)
  picked = [
    {name: made.columns[name][i].item() for name in CHOICES} for i in sample
  ]

  def loop():
    return [
      cluster_oracle.placement(MODEL, ENGINE, cluster, row, BATCH, SIZES, True)
      for row in picked
    ]

  loop()  # the products of matrices are cached
  start = time.process_time()
  plain = loop()
  slow = (time.process_time() - start) / len(picked)
  names = ("ns", "memory", "tier_bytes")
  fast = np.stack([made.columns[name][sample] for name in names], 1)
  gap = np.abs(fast - plain) / np.maximum(np.abs(plain), 1)
  print(f"{len(made):,} placements, {int(made.fits.sum()):,} fit\n")
  print("| | placements/s |\n|---|--:|")
  for name, seconds in (
    ("estimate_all, whole", statistics.median(whole) / len(made)),
    ("formulas alone", statistics.median(alone) / len(made)),
    ("plain Python, products cached", slow),
  ):
    print(f"| {name} | {1 / seconds:,.0f} |")
  print(f"\nLargest relative difference: {gap.max():.1e}")


if __name__ == "__main__":
  main()
