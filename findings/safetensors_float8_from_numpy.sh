#!/usr/bin/env bash
# safetensors 0.8.0 (numpy 2.4.6, ml_dtypes 0.6.0, Python 3.11): save_file writes a
# float8_e4m3fn array (a NumPy dtype of ml_dtypes, as JAX uses it) and load_file
# of the same module cannot read the file that it wrote.
#
# A good engineer would expect the two functions of one module to be inverses,
# or save_file to refuse the dtype.
#
# Output seen on 2026-11-30:
#   save_file wrote the file
#   load_file: AttributeError: module 'numpy' has no attribute 'float8_e4m3fn'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" - "$folder/a.safetensors" <<'PYTHON'
import sys

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

save_file({"a": np.ones(2, ml_dtypes.float8_e4m3fn)}, sys.argv[1])
print("save_file wrote the file")
try:
  load_file(sys.argv[1])
except Exception as error:
  print(f"load_file: {type(error).__name__}: {error}")
else:
  raise SystemExit("the behaviour has changed")
PYTHON
