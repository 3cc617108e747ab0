#!/usr/bin/env bash
# SCALE-Sim 3.0.0 (Python 3.11, numpy < 2.4): where m does not divide K, a sparse
# layer is reported to read more activations than the same layer dense. Weights
# 1:32 of a product of 5 x 33 by 33 x 11 on a weight-stationary array of 8 x 4
# keep 2 of 33 rows; the report counts 2 * 32 = 64 activations per row of the
# operand, which has 33. Cycles and weights read are those of 2 rows.
#
# A good engineer would expect a layer to read each of its activations at most
# as often as the dense layer does.
#
# Output seen on 2026-11-30:
#   dense:  activations read 495, weights read 363
#   sparse: activations read 960, weights read 22
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  scalesim==3.0.0 'numpy<2.4'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import os
import pathlib

from scalesim.scale_sim import scalesim

CONFIG = """[general]
run_name = {name}
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = 8
ArrayWidth = 4
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
SparsitySupport = {sparse}
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 4
RandomNumberGeneratorSeed = 40
"""


def reads(name, pattern):
  """Words of activations and of weights that the tool reports."""
  sparse = str(name == "sparse").lower()
  pathlib.Path("run.cfg").write_text(CONFIG.format(name=name, sparse=sparse))
  pathlib.Path("gemm.csv").write_text(
    f"name,M,N,K,Sparsity,\na,5,11,33,{pattern},\n"
  )
  pathlib.Path("layout.csv").write_text("name,\na," + "1," * 20 + "\n")
  with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
    tool = scalesim(
      True, False, input_type_gemm=True, config="run.cfg",
      topology="gemm.csv", layout="layout.csv",
    )
    tool.run_scale(top_path="out")
  report = pathlib.Path(f"out/{name}/DETAILED_ACCESS_REPORT.csv").read_text()
  row = report.splitlines()[1].split(",")
  return round(float(row[3])), round(float(row[6]))


dense, sparse = reads("dense", "1:1"), reads("sparse", "1:32")
print(f"dense:  activations read {dense[0]}, weights read {dense[1]}")
print(f"sparse: activations read {sparse[0]}, weights read {sparse[1]}")
assert sparse[1] < dense[1] and sparse[0] > dense[0], "it has changed"
PYTHON
