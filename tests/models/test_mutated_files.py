"""Weight files with random changes: read, or refused in one line."""

import json
import random
import struct
import zipfile

import numpy as np
import pytest

from figs_jax import export
from figs_jax.core import NM, MaskedKernel
from figs_jax.models.pretrained.files import PretrainedError, opened_weights


def write(folder, suffix):
  """A sound file of this kind, and the function that reads it."""
  path = folder / f"a{suffix}"
  kernel = np.eye(8, dtype=np.float32)
  if suffix == ".npz":
    np.savez(path, w=kernel, b=np.ones(3, np.float32))
  elif suffix == ".json":
    export.write(folder / "p.safetensors", {"w": kernel})
    path.write_text(json.dumps({"weight_map": {"w": "p.safetensors"}}))
  else:
    leaves = {"w": MaskedKernel((8, 8), NM(1, 8), 0)}
    export.write_packed(path, {"w": kernel}, leaves)
    return path, export.read

  def read(where):
    with opened_weights(where) as tensors:
      return {name: tensor.read() for name, tensor in tensors.items()}

  return path, read


def changed(content, draw):
  data = bytearray(content)
  at = draw.randrange(len(data))
  kind = draw.randrange(4)
  if kind == 0:
    return bytes(data[:at])
  if kind == 1:
    data[at] ^= 1 << draw.randrange(8)
  elif kind == 2:
    del data[at : at + draw.randint(1, 9)]
  else:
    words = (b"null", b"NaN", b"[" * 5000, b"-1", b"9" * 5000, b'{"a":')
    data[at:at] = draw.choice(words)
  return bytes(data)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".json"])
def test_a_changed_file_is_read_or_refused_in_one_line(suffix, tmp_path):
  path, read = write(tmp_path, suffix)
  content, draw = path.read_bytes(), random.Random(0)
  for _ in range(60):
    path.write_bytes(changed(content, draw))
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
