"""Weight files with random changes: read, or refused in one line."""

import importlib.util
import json
import pathlib
import random
import struct
import zipfile

import pytest

from figs_jax import export
from figs_jax.models.pretrained.files import PretrainedError, opened_weights

FILE = pathlib.Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
SPEC = importlib.util.spec_from_file_location("benchmarks_fuzz", FILE)
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("kind", ["packed", "weights_npz", "index"])
def test_a_changed_file_is_read_or_refused_in_one_line(kind, tmp_path):
  path, read = fuzz.KINDS[kind](tmp_path)
  content, draw = path.read_bytes(), random.Random(0)
  for _ in range(60):
    path.write_bytes(fuzz.changed(content, draw))
    try:
      read(path)
    except (export.ExportError, PretrainedError) as error:
      assert str(path.parent) in str(error)
      assert "\n" not in str(error)


def test_a_header_of_brackets_is_one_line(tmp_path):
  path, header = tmp_path / "a.npz", b"[" * 200 + b"\n"
  with zipfile.ZipFile(path, "w") as archive:
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
    archive.writestr("w.npy", start + header)
  with (
    pytest.raises(PretrainedError, match="damaged .npz"),
    opened_weights(path),
  ):
    pass


def test_a_long_name_of_a_part_is_one_line(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps({"weight_map": {"w": "a" * 300}}))
  with (
    pytest.raises(PretrainedError, match="its part .* is missing"),
    opened_weights(path),
  ):
    pass
