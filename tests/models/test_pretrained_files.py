"""Files of weights from strangers: damaged, lying, of another kind."""

import io
import json
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from figs_jax.models import pretrained
from figs_jax.models.pretrained import PretrainedError
from figs_jax.models.pretrained.files import opened_weights

from .families import create


@pytest.fixture(scope="module")
def model():
  return create("vit")


def header(raw):
  (length,) = struct.unpack("<Q", raw[:8])
  return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewritten(raw, **entry):
  """The file with another entry for its first tensor."""
  head, data = header(raw)
  name = next(name for name in head if name != "__metadata__")
  head[name].update(entry)
  text = json.dumps(head).encode()
  return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
  "damage",
  [
    lambda raw: b"",
    lambda raw: raw[:7],
    lambda raw: raw[:200],
    lambda raw: raw[:-1],
    lambda raw: raw + b"more",
    lambda raw: struct.pack("<Q", 2**62) + raw[8:],
    lambda raw: raw[:8] + b"{" * (len(raw) - 8),
    lambda raw: rewritten(raw, shape=[2**40, 2**40]),
    lambda raw: rewritten(raw, shape=[-8]),
    lambda raw: rewritten(raw, dtype="F99"),
    lambda raw: rewritten(raw, dtype="U8"),
    lambda raw: rewritten(raw, data_offsets=[0, 2**50]),
    lambda raw: rewritten(raw, data_offsets=[64, 0]),
  ],
)
def test_a_damaged_safetensors_file_is_one_clear_line(model, damage, tmp_path):
  path = tmp_path / "model.safetensors"
  pretrained.save(model, path)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(PretrainedError, match=str(path)) as error:
    pretrained.load(model, path)
  assert "\n" not in str(error.value)


def test_dtypes_without_a_number_format_of_ours_are_refused(model, tmp_path):
  path = tmp_path / "model.safetensors"
  save_file({"classifier.bias": np.ones(4, np.uint8)}, path)
  with pytest.raises(PretrainedError, match="classifier.bias has dtype U8"):
    pretrained.load(model, path)


class Trap:
  def __reduce__(self):
    return (print, ("unpickled",))


def lying_npy(shape, size):
  """The bytes of an array that says it is of another shape."""
  buffer = io.BytesIO()
  what = {"descr": "<f4", "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(buffer, what)
  return buffer.getvalue() + bytes(size)


def test_a_damaged_npz_file_is_one_clear_line(tmp_path, capsys):
  path = tmp_path / "weights.npz"
  np.savez(path, **{"head/bias": np.ones(5, np.float32)})
  whole = path.read_bytes()
  np.savez(path, **{"head/bias": np.array([Trap()])})
  pickled = path.read_bytes()
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("head/bias.npy", lying_npy((2**40,), 20))
  lying = path.read_bytes()
  flipped = bytearray(whole)
  flipped[whole.index(np.ones(5, np.float32).tobytes())] ^= 1
  for raw, reason in (
    (b"", "not a zip file"),
    (whole[:-9], "not a zip file"),
    (pickled, "has dtype object"),
    (lying, "20 bytes for shape"),
    (bytes(flipped), "Bad CRC-32"),
  ):
    path.write_bytes(raw)
    with pytest.raises(PretrainedError, match=reason) as error:
      with opened_weights(path) as tensors:
        tensors["head/bias"].read()
    assert "\n" not in str(error.value)
  assert capsys.readouterr().out == ""


def test_bfloat16_in_an_npz_file_is_read(tmp_path):
  path, value = tmp_path / "weights.npz", np.arange(3).astype(jnp.bfloat16)
  np.savez(path, **{"head/bias": value})
  with opened_weights(path) as tensors:
    assert np.array_equal(tensors["head/bias"].read(), value)


def test_attention_pooling_and_other_heads_are_refused(model, tmp_path):
  path = tmp_path / "weights.npz"
  names = {"cls": np.ones(1), "MAPHead_0/probe": np.ones(1)}
  np.savez(path, **names)
  with pytest.raises(PretrainedError, match="MAPHead_0/probe.*attention pool"):
    pretrained.load(model, path)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("absent.safetensors", "file or directory not found"),
    ("weights.bin", "pickled by torch; convert it with"),
    ("weights.pkl", "pickles, which can run code"),
    (
      "folder",
      "expected model.safetensors.index.json or|expected model.safetensors or",
    ),
    ("empty.safetensors", "expected tensors of a ViT"),
  ],
)
def test_paths_that_hold_no_weights(model, name, message, tmp_path):
  (tmp_path / "weights.bin").write_bytes(b"x")
  (tmp_path / "weights.pkl").write_bytes(b"x")
  (tmp_path / "folder").mkdir()
  save_file({"x": np.ones(2)}, tmp_path / "empty.safetensors")
  with pytest.raises(PretrainedError, match=message):
    pretrained.load(model, tmp_path / name)


def test_weights_are_written_whole_or_not_at_all(model, tmp_path):
  for name in ("model.bin", "absent/model.safetensors"):
    with pytest.raises(PretrainedError, match=name):
      pretrained.save(model, tmp_path / name)
  with pytest.raises(
    PretrainedError, match="weights are supported for .* Linear"
  ):
    pretrained.save(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path / "x")
  assert list(tmp_path.iterdir()) == []
