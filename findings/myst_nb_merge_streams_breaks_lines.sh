#!/usr/bin/env bash
# myst-nb 1.4.0 (Python 3.11): with nb_merge_streams = True, text that a cell
# printed on one line comes out on several in the page, wherever the kernel happened
# to flush: the merged output joins the pieces of a stream with line breaks.
#
# A good engineer would expect the option to join what belongs together. A progress
# line, or print("a", end="") followed by print("b"), is one line in Jupyter.
#
# Output seen on 2026-11-30:
#   pieces 'a', 'b\n'   merged 'a\nb\n'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  myst-nb==1.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import nbformat.v4 as notebook
from myst_nb.core import render

pieces = ["a", "b\n"]
outputs = [notebook.new_output("stream", name="stdout", text=t) for t in pieces]
merged = "".join(o["text"] for o in render.coalesce_streams(outputs))
print(f"pieces {', '.join(map(repr, pieces))}   merged {merged!r}")
assert merged == "a\nb\n", "the behaviour has changed"
PYTHON
