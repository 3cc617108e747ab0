"""Packed files: bit for bit back, as small as promised, nothing else kept."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from figs_jax import engine, export
from figs_jax.core import NM, MaskedKernel
from figs_jax.core.groups import normalized
from figs_jax.core.packing import LAYOUTS

DTYPES = (
  "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
SHAPES = [((24, 5), -2), ((5, 24), -1), ((2, 12, 3), -2), ((2, 3, 4, 5), 0)]
SHAPES += [((2, 3, 4, 5), (-4, -3, -2)), ((2, 3, 4, 5), (2, 0))]


def bits(array):
  return np.ascontiguousarray(array).view(np.uint8).tobytes()


def finished(seed, shape, axis, pattern, dtype):
  """At most n of every m, in shuffled places; zeros with signs and NaN too."""
  rng = np.random.default_rng(seed)
  axes = normalized(shape, axis)
  rest = [a for a in range(len(shape)) if a not in axes]
  order = (*rest, *axes)
  values = rng.normal(size=math.prod(shape)).reshape(-1, pattern.m)
  values[rng.random(values.shape) < 0.1] = -0.0
  values[rng.random(values.shape) < 0.05] = np.nan
  kept = rng.random(values.shape).argsort(-1) < pattern.n
  flat = np.where(kept, values, 0.0).reshape([shape[a] for a in order])
  return flat.transpose(np.argsort(order)).astype(jnp.dtype(dtype))


@st.composite
def cases(draw):
  """Plain numbers: beartype's random checks are not for strategies."""
  place = draw(st.integers(0, len(SHAPES) - 1))
  shape, axis = SHAPES[place]
  axes = (axis,) if isinstance(axis, int) else axis
  length = math.prod(shape[a] for a in axes)
  m = draw(st.sampled_from([m for m in range(1, 25) if length % m == 0]))
  n, dtype = draw(st.integers(1, m)), draw(st.sampled_from(DTYPES))
  return draw(st.integers(0, 99)), place, n, m, dtype


@settings(deadline=None, max_examples=60)
@given(case=cases(), layout=st.sampled_from(LAYOUTS))
def test_what_is_written_is_read(case, layout, tmp_path_factory):
  seed, place, n, m, dtype = case
  (shape, axis), pattern = SHAPES[place], NM(n, m)
  array = finished(seed, shape, axis, pattern, dtype)
  path = tmp_path_factory.mktemp("packed") / "a.safetensors"
  tree = {"a": {"kernel": array}, "b": np.float32(3)}
  leaves = {"a/kernel": MaskedKernel(array.shape, pattern, axis)}
  export.write_packed(path, tree, leaves, layout=layout)
  arrays = export.read(path)
  assert arrays.keys() == {"a/kernel", "b"}
  assert arrays["a/kernel"].dtype == array.dtype
  assert arrays["a/kernel"].shape == array.shape
  assert bits(arrays["a/kernel"]) == bits(array)
  assert arrays["b"].shape == () and arrays["b"] == 3
  [kernel, _] = export.weights(path)
  if layout == "indices":
    want = engine.packed_bytes(array.size, pattern, array.dtype.itemsize)
    assert kernel.stored == want
  declared = {each.name: each.declared for each in export.survey(path)}
  assert declared == {"a/kernel": pattern, "b": None}


def test_the_bitmask_is_what_the_documentation_says(tmp_path):
  """Decoded by hand, from another reader's view of the file."""
  array = finished(0, (16, 3), 0, NM(3, 8), "bfloat16")
  path = tmp_path / "a.safetensors"
  leaf = MaskedKernel(array.shape, NM(3, 8), 0)
  export.write_packed(path, {"w": array}, {"w": leaf}, layout="bitmask")
  held = load_file(path)
  assert held.keys() == {"w.values", "w.metadata"}
  values, places = held["w.values"].reshape(-1), held["w.metadata"]
  want = np.zeros((3, 16), array.dtype)
  taken = 0
  for k in range(48):
    if places[k // 8] >> (k % 8) & 1:
      want[k // 16, k % 16] = values[taken]
      taken += 1
  assert taken == values.size == 18
  assert bits(want.T) == bits(array)


@pytest.mark.parametrize(
  ("array", "pattern", "message"),
  [
    (np.ones((4, 2)), "2:4", r"a/w: .*\(0, 0\) keeps 4, expected at most 2"),
    (np.zeros((2048, 1)), "1:2048", "m=2048 is beyond 1024"),
    (np.zeros((4, 2), complex), "2:4", "8 bytes, got complex128"),
  ],
)
def test_a_kernel_that_is_not_nm_is_refused(array, pattern, message, tmp_path):
  if array.dtype != complex:
    array = array.astype(np.float32)
  leaf = {"a/w": MaskedKernel(array.shape, NM.parse(pattern), 0)}
  with pytest.raises(export.ExportError, match=message):
    export.write_packed(tmp_path / "a.safetensors", {"a": {"w": array}}, leaf)
  with pytest.raises(export.ExportError, match="a/w: expected an array"):
    export.write_packed(tmp_path / "a.safetensors", {}, leaf)
  assert list(tmp_path.iterdir()) == []


def test_names_that_collide_are_refused(tmp_path):
  tree = {"w": np.zeros((2, 1)), "w.values": np.zeros(1)}
  with pytest.raises(export.ExportError, match="have the same name"):
    export.write_packed(
      tmp_path / "a.safetensors", tree, {"w": MaskedKernel((2, 1), NM(1, 2))}
    )


def test_a_tensor_is_not_lost_under_another_of_its_path(tmp_path):
  tree = {"a": {"b": np.ones(2)}, "a/b": np.zeros(3)}
  with pytest.raises(export.ExportError, match="two leaves .* the same path"):
    export.write_packed(tmp_path / "a.safetensors", tree, {})


@pytest.mark.parametrize(
  ("value", "dtype"),
  [(1e-40, "float32"), (1e-40, "bfloat16"), (1e-300, "float64"), (2**32, "i8")],
)
def test_no_entry_is_too_small_to_count(value, dtype, tmp_path):
  """A device would take denormals for zeros, and 64 bits for 32."""
  dense = np.full((4, 4), value).astype(jnp.dtype(dtype))
  leaf = {"w": MaskedKernel((4, 4), NM(1, 4), 0)}
  with pytest.raises(export.ExportError, match="w: .* keeps 4, expected"):
    export.write_dense(tmp_path / "a", {"w": dense}, leaf, {})


def test_a_matrix_of_places_is_refused(written, tmp_path):
  tensors, metadata = load_file(written), export.opened(written)[1]
  tensors["w.metadata"] = tensors["w.metadata"][:, None]
  path = tmp_path / "a.safetensors"
  export.write(path, tensors, metadata=metadata)
  with pytest.raises(
    export.ExportError, match="'w.metadata' does not have 1 axes"
  ):
    export.read(path)


def test_a_small_file_cannot_fill_the_memory(tmp_path, monkeypatch):
  path = tmp_path / "a.safetensors"
  leaf = {"w": MaskedKernel((1024, 64), NM(1, 1024), 0)}
  export.write_packed(path, {"w": np.zeros((1024, 64), np.float32)}, leaf)
  module = sys.modules[export.read.__module__]
  monkeypatch.setattr(module, "_memory", lambda: 2**18 - 1)
  with pytest.raises(export.ExportError, match="w unpacks to 262144 bytes"):
    export.read(path)
  monkeypatch.setattr(module, "_memory", lambda: 2**18)
  assert export.read(path)["w"].shape == (1024, 64)

  def full(*_, **__):
    raise MemoryError

  monkeypatch.setattr(module, "unpack", full)
  with pytest.raises(export.ExportError, match="w unpacks to .* than is free"):
    export.read(path)


def test_casting_rounds_to_nearest_and_never_to_infinity():
  tree = {"w": np.float32([1 + 2**-9, 1 + 3 * 2**-8]), "n": np.int32([7])}
  rounded = export.cast(tree, "bfloat16")
  assert rounded["w"].astype(np.float32).tolist() == [1, 1 + 2**-6]
  assert rounded["n"].dtype == np.int32
  with pytest.raises(export.ExportError, match="w: holds numbers beyond"):
    export.cast({"w": np.float32([7e4])}, "float16")
  with pytest.raises(export.ExportError, match="Known: float32"):
    export.cast(tree, "int8")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp("whole") / "a.safetensors"
  array = finished(0, (8, 2), 0, NM(1, 4), "float32")
  leaf = MaskedKernel(array.shape, NM(1, 4), 0)
  export.write_packed(path, {"w": array, "b": np.ones(2)}, {"w": leaf})
  return path


def lying(path, target, **changes):
  """The file with other words in its manifest's record of `w`."""
  tensors = load_file(path)
  _, metadata = export.opened(path)
  manifest = json.loads(metadata["figs_jax"])
  manifest["tensors"]["w"].update(changes)
  text = json.dumps(manifest)
  export.write(target, tensors, metadata={"figs_jax": text}, overwrite=True)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"pattern": "1:2"}, "stored in the shape"),
    ({"pattern": "9:4"}, "1 <= n <= m"),
    ({"pattern": "1:1000000000"}, "beyond 1024"),
    ({"pattern": 4}, "no pattern"),
    ({"pattern": "1:4" + " " * 29 + "is a lie"}, "has the pattern"),
    ({"pattern": "１:４"}, "has the pattern"),
    ({"shape": "\x1b]0;a\x07"}, "has the shape"),
    ({"pattern": "1:3"}, "not a multiple of m=3"),
    ({"axis": [1]}, "not a multiple of m=4"),
    ({"axis": [7]}, "expected one or more axes"),
    ({"axis": [-1]}, "no pattern along axes"),
    ({"axis": [0, 0]}, "expected different axes"),
    ({"axis": []}, "expected one or more axes"),
    ({"shape": [2**40, 2]}, "stored in the shape"),
    ({"shape": [-8, -2]}, "has the shape"),
    ({"shape": [8.0, 2]}, "has the shape"),
    ({"shape": [True, 2]}, "has the shape"),
    ({"shape": [1] * 99}, "has the shape"),
    ({"dtype": "F16"}, "stored as F32"),
    ({"dtype": "F99"}, "unknown dtype"),
    ({"dtype": ["F32"]}, "unknown dtype"),
    ({"layout": "zip"}, "unknown layout"),
    ({"layout": "torch-2:4"}, "'w.meta' is missing"),
    ({"layout": "dense"}, "has the fields"),
    ({"layout": "bitmask"}, "bytes of bitmask for"),
    ({"sha256": "0" * 64}, "the SHA-256 of w differs"),
    ({"sha256": "0"}, "no SHA-256"),
    ({"more": 1}, "has the fields"),
  ],
)
def test_a_lying_manifest_is_one_clear_line(
  written, tmp_path, changes, message
):
  path = tmp_path / "a.safetensors"
  lying(written, path, **changes)
  with pytest.raises(export.ExportError, match=message) as error:
    export.read(path)
  assert str(path) in str(error.value)
  assert str(error.value).isprintable()


@pytest.mark.parametrize(
  "text",
  [
    "", "[]", "{}", "{", '{"version": 2, "tensors": {}}', "[" * 10**5,
    '{"version": 1, "tensors": []}', '{"version": 1, "tensors": {}}',
    '{"version": 1, "tensors": {"w": 3}}', '{"version": 1, "version": 1}',
    '{"version": 1, "tensors": {"w": {"layout": []}}}',
    '{"version": true, "tensors": {}}',
  ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_one_clear_line(text, tmp_path):
  path = tmp_path / "a.safetensors"
  export.write(path, {"w": np.ones(2)}, metadata={"figs_jax": text})
  with pytest.raises(export.ExportError, match="manifest cannot be true") as e:
    export.read(path)
  assert "\n" not in str(e.value)


def test_a_file_that_lost_its_mark_is_refused(written, tmp_path):
  path = tmp_path / "a.safetensors"
  path.write_bytes(written.read_bytes().replace(b"figs_jax", b"figs_jay"))
  with pytest.raises(
    export.ExportError, match="expected a manifest 'figs_jax'"
  ):
    export.read(path)
  assert "w.values" in export.read(path, strict=False)
  export.write(path, load_file(written), overwrite=True)
  with pytest.raises(export.ExportError, match="for 'w.values', got none"):
    export.read(path)
