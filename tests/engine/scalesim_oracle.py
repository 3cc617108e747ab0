"""Layer-wise N:M on SCALE-Sim 3.0.0, where m seldom divides K.

As a script it writes data/scalesim_ragged.csv, with an interpreter that has the
simulator:

  python -m venv VENV && VENV/bin/pip install scalesim==3.0.0 "numpy<2.4"
  VENV/bin/python tests/engine/scalesim_oracle.py
  VENV/bin/python tests/engine/scalesim_oracle.py --random 400 --out many.csv

Each row is one product (M x K) times (K x N) on an array of R x C, with what
the tool reports for it; `OptimizedMapping` is false, so that its mode is
layer-wise.
"""

import argparse
import contextlib
import csv
import os
import pathlib
import random
import tempfile
from typing import NamedTuple

TARGET = pathlib.Path(__file__).parent / "data" / "scalesim_ragged.csv"
REPORTED = (
  "cycles_total", "stalls", "mapping_eff_pct", "ifmap_reads", "filter_reads",
  "ofmap_writes", "metadata_words",
)  # fmt: skip


class Case(NamedTuple):
  dataflow: str
  R: int
  C: int
  M: int
  N: int
  K: int
  pattern: str


# The kinds of K: shorter than n and than m, a rest below, of and above n, none;
# n = m, and a length of 1.
NAMED = [
  Case(dataflow, *sizes)
  for sizes in (
    (4, 4, 2, 1, 5, "3:4"),
    (4, 6, 7, 9, 2, "3:4"),
    (6, 4, 9, 7, 5, "3:8"),
    (4, 4, 1, 1, 1, "1:2"),
    (8, 4, 5, 11, 33, "1:32"),
    (4, 8, 11, 5, 34, "2:8"),
    (8, 8, 13, 9, 32, "5:8"),
    (4, 4, 6, 6, 13, "4:4"),
  )
  for dataflow in ("ws", "is", "os")
]
# Larger ones, of several folds both ways.
NAMED += [
  Case("ws", 8, 8, 51, 8, 19, "5:16"),
  Case("ws", 8, 8, 29, 31, 81, "7:16"),
  Case("ws", 12, 20, 60, 23, 51, "7:16"),
  Case("os", 4, 4, 63, 54, 85, "3:4"),
  Case("os", 16, 24, 21, 17, 130, "3:8"),
  Case("ws", 32, 16, 38, 67, 98, "5:16"),
  Case("ws", 32, 16, 43, 67, 97, "5:16"),
  Case("os", 12, 20, 8, 47, 17, "7:16"),
  Case("os", 16, 24, 52, 22, 133, "3:4"),
  Case("ws", 16, 24, 50, 27, 98, "7:16"),
  Case("os", 16, 24, 32, 62, 107, "5:8"),
  Case("os", 16, 24, 17, 34, 110, "3:4"),
  Case("is", 16, 24, 48, 38, 102, "7:16"),
  Case("os", 32, 16, 66, 69, 33, "7:16"),
  Case("os", 8, 8, 29, 45, 43, "4:8"),
]
CONFIG = """[general]
run_name = run
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = {case.R}
ArrayWidth = {case.C}
ifmapsramszkB = 4096
filtersramszkB = 4096
ofmapsramszkB = 4096
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {case.dataflow}
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
SparsitySupport = true
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 4
RandomNumberGeneratorSeed = 40
"""


def random_cases(count: int, seed: int) -> list[Case]:
  """Products whose K has a rest, on arrays of a few shapes."""
  rng = random.Random(seed)
  cases = []
  while len(cases) < count:
    R, C = rng.choice([(4, 4), (8, 8), (12, 20), (16, 24), (32, 16)])
    M, N, K = (rng.randint(1, most) for most in (60, 60, 130))
    m = rng.choice([3, 4, 5, 8, 16, 32])
    cases.append(Case(
      rng.choice(["ws", "is", "os"]), R, C, M, N, K, f"{rng.randint(1, m)}:{m}"
    ))  # fmt: skip
  return cases


def reported(case: Case) -> list[str]:
  """The columns `REPORTED` of one product."""
  # Imported late: the doctest collector imports every file under tests.
  from scalesim.scale_sim import scalesim

  files = {"config": "run.cfg", "topology": "gemm.csv", "layout": "layout.csv"}
  texts = (
    CONFIG.format(case=case),
    f"name,M,N,K,Sparsity,\na,{case.M},{case.N},{case.K},{case.pattern},\n",
    "name,\na," + "1," * 20 + "\n",
  )
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    for name, text in zip(files.values(), texts):
      pathlib.Path(name).write_text(text)
    with (
      open(os.devnull, "w") as silent,
      contextlib.redirect_stdout(silent),
    ):
      tool = scalesim(True, False, input_type_gemm=True, **files)
      tool.run_scale(top_path="out")
    compute, detail, sparse = (
      pathlib.Path(f"out/run/{report}_REPORT.csv")
      .read_text()
      .splitlines()[1]
      .replace(" ", "")
      .split(",")
      for report in ("COMPUTE", "DETAILED_ACCESS", "SPARSE")
    )
  words = [detail[i] for i in (3, 6, 9)]
  return [compute[2], compute[3], compute[5], *words, sparse[4]]


def main() -> None:
  parser = argparse.ArgumentParser(description="Runs SCALE-Sim.")
  parser.add_argument(
    "--random", type=int, default=0, help="Random products beside the named."
  )
  parser.add_argument("--seed", type=int, default=0, help="Seed of these.")
  parser.add_argument(
    "--out", type=pathlib.Path, default=TARGET, help="File to write."
  )
  args = parser.parse_args()
  cases = NAMED + random_cases(args.random, args.seed)
  with args.out.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*Case._fields, *REPORTED))
    writer.writerows([*case, *reported(case)] for case in cases)
  print(f"{args.out}: {len(cases)} rows")


if __name__ == "__main__":
  main()
