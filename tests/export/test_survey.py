"""Patterns of the tensors in files, against a count group by group."""

import json
import struct
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import export
from figs_jax.core import NM
from figs_jax.export import _survey as module


def tightest(array, axes):
  """Every group looked at alone."""
  rest = [a for a in range(array.ndim) if a not in axes]
  lines = np.asarray(array, np.float32).transpose(*rest, *axes)
  lines = lines.reshape(-1, np.prod([array.shape[a] for a in axes]))
  best = None
  for m in module.SIZES:
    if lines.shape[1] % m:
      continue
    n = max(
      sum(bool(x != 0) for x in line[i : i + m])
      for line in lines
      for i in range(0, len(line), m)
    )
    if n < m and (best is None or max(n, 1) / m < best.density):
      best = NM(max(n, 1), m)
  return best


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(64, 12), (40, 8, 6), (4, 6, 2, 4), (3, 5)])
def test_the_tightest_pattern_of_every_axis(
  shape, dtype, tmp_path, monkeypatch
):
  monkeypatch.setattr(module, "_MOST_BYTES", 1)  # parts of 32 rows
  rng = np.random.default_rng(len(shape))
  array = (rng.random(shape) < 0.15) * rng.choice([-2.0, 2.0, np.nan], shape)
  array[rng.random(shape) < 0.2] = -0.0
  array = array.astype(jnp.dtype(dtype))
  path = tmp_path / "a.safetensors"
  export.write(path, {"w": array, "b": np.ones(3), "i": np.eye(2, dtype=int)})
  tensors = {each.name: each for each in export.survey(path)}
  axes = [(a,) for a in range(len(shape))]
  axes += [(2, 3, 1)] if len(shape) == 4 else []
  want = {a: tightest(array, a) for a in axes}
  want = {a: nm for a, nm in want.items() if nm is not None}
  assert tensors["w"].patterns == want
  zeros = np.asarray(array, np.float32) == 0
  assert tensors["w"].sparsity == pytest.approx(zeros.mean())
  assert tensors["b"].sparsity is tensors["i"].sparsity is None


def test_a_large_file_is_read_in_small_parts(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "_MOST_BYTES", 1 << 20)
  array = np.zeros((1 << 16, 128), np.float32)
  array[:, ::8] = 1
  path = tmp_path / "a.safetensors"
  export.write(path, {"w": array})
  del array
  tracemalloc.start()
  try:
    [tensor] = export.survey(path)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert tensor.patterns == {(1,): NM(1, 8)}
  assert path.stat().st_size > 32 << 20
  assert peak < 6 << 20


def test_a_directory_is_surveyed_file_by_file(tmp_path):
  with pytest.raises(export.ExportError, match="holds no .safetensors"):
    list(export.survey(tmp_path))
  for name in "ab":
    export.write(tmp_path / f"{name}.safetensors", {name: np.ones((2, 2))})
  assert [each.name for each in export.survey(tmp_path)] == ["a", "b"]
  with pytest.raises(export.ExportError, match="no such file"):
    list(export.survey(tmp_path / "c"))


def test_a_part_that_the_index_names_is_missed(tmp_path):
  export.write(tmp_path / "one.safetensors", {"a": np.ones((2, 2))})
  index = tmp_path / "model.safetensors.index.json"
  names = {"a": "one.safetensors", "b": "two.safetensors"}
  index.write_text(json.dumps({"weight_map": names}))
  with pytest.raises(export.ExportError, match="names 'two.safetensors'"):
    list(export.survey(tmp_path))
  export.write(tmp_path / "two.safetensors", {"b": np.ones((2, 2))})
  tensors = {each.name: each.path.name for each in export.survey(tmp_path)}
  assert tensors == names
  for text in ("[]", "{", '{"weight_map": {"a": 3}}', '{"weight_map": [1]}'):
    index.write_text(text)
    with pytest.raises(export.ExportError, match="not an index of tensors"):
      list(export.survey(tmp_path))


def file_of(path, **tensors):
  """Writes (dtype, shape, bytes) by name, whatever the dtype."""
  header, data = {}, b""
  for name, (kind, shape, content) in tensors.items():
    offsets = [len(data), len(data) + len(content)]
    header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
    data += content
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_quantized_tensors_are_listed_with_a_note(tmp_path):
  path = tmp_path / "a.safetensors"
  weight = np.tile(np.int8([5, -128, 0, 0, 0, 1, 0, 2]), (4, 1))
  kernel = np.eye(8, dtype=np.float32)
  file_of(
    path,
    weight=("I8", [4, 8], weight.tobytes()),
    bias=("I8", [4], bytes(4)),
    scales=("F8_E8M0", [4, 2], bytes(8)),
    fours=("F4", [4, 8], bytes(16)),
    sixes=("F6_E2M3", [4, 8], bytes(24)),
    places=("I64", [2, 2], bytes(32)),
    kernel=("F32", [8, 8], kernel.tobytes()),
  )
  tensors = {each.name: each for each in export.survey(path)}
  int8 = tensors["weight"]
  assert (int8.patterns, int8.sparsity) == ({(1,): NM(2, 4)}, 0.5)
  assert "zero is a pruned weight if" in int8.note
  assert tensors["kernel"].patterns[0,] == NM(1, 8)
  notes = {name: each.note for name, each in tensors.items()}
  assert "scales of a block format; not examined" in notes["scales"]
  assert "4-bit floats, two per byte; not examined" in notes["fours"]
  assert notes["sixes"] == "not examined"
  assert notes["bias"] == notes["places"] == notes["kernel"] == ""
  for name in ("scales", "fours", "sixes"):
    assert tensors[name].sparsity is None and not tensors[name].patterns


def test_the_layouts_of_compressed_tensors_are_named(tmp_path):
  # As compressed-tensors 0.10 writes them: Sparse24BitMaskTensor, and
  # BitmaskTensor with its row offsets.
  rng = np.random.default_rng(0)
  path = tmp_path / "a.safetensors"
  kept = rng.random((8, 4, 4)).argsort(-1) < 2
  bits = np.packbits(kept.reshape(8, 16), axis=-1, bitorder="little")
  shape = np.array([8, 16])
  values = rng.normal(size=(8, 8)).astype(np.float16)
  export.write(
    path,
    {
      "fc.compressed": values,
      "fc.bitmask": bits,
      "fc.shape": shape[:, None],
      "q.compressed": values.ravel(),
      "q.bitmask": bits,
      "q.shape": shape,
      "q.row_offsets": np.arange(0, 64, 8),
      "other.bitmask": bits,
      "other.shape": shape,
      "norm": np.ones(8),
    },
  )
  notes = {each.name: each.note for each in export.survey(path)}
  for part in ("compressed", "bitmask", "shape"):
    assert notes[f"fc.{part}"] == (
      f"{part} of fc in compressed-tensors' sparse-24-bitmask (2:4)"
    )
  for part in ("compressed", "bitmask", "shape", "row_offsets"):
    layout = f"{part} of q in compressed-tensors' sparse-bitmask"
    assert notes[f"q.{part}"] == layout
  assert notes["other.bitmask"] == notes["other.shape"] == notes["norm"] == ""
