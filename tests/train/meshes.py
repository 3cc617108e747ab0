"""benchmarks/meshes.py, whose runs the tests of meshes share."""

import importlib.util
import pathlib
import sys

_FILE = pathlib.Path(__file__).parents[2] / "benchmarks" / "meshes.py"
_SPEC = importlib.util.spec_from_file_location("benchmarks_meshes", _FILE)
module = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = module  # dataclasses look it up
_SPEC.loader.exec_module(module)
