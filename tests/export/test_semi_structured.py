"""PyTorch's 2:4 layout: against torch where it is, and a fixture always."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from figs_jax import engine, export
from figs_jax.core import NM, MaskedKernel

from . import semi_structured_oracle as oracle


def bits(array):
  return np.asarray(array).view(np.int16)


@pytest.mark.parametrize("case", sorted(oracle.CASES))
def test_the_layout_is_that_of_the_fixture(case):
  dtype, shape = oracle.CASES[case]
  with np.load(oracle.TARGET) as data:
    weight, packed, meta = (
      data[f"{case}/{name}"] for name in ("weight", "packed", "meta")
    )
  weight = weight.view(jnp.dtype(dtype))
  assert weight.shape == shape
  parts = export.compress(weight)
  assert np.array_equal(bits(parts[0]), packed)
  assert np.array_equal(parts[1], meta)
  assert np.array_equal(bits(export.decompress(*parts)), bits(weight))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_layout_is_that_of_torch(dtype, seed):
  pytest.importorskip("torch", reason="needs torch: the extra `oracles`")
  shape = [(32, 64), (96, 64), (32, 256), (128, 320)][seed]
  want = oracle.packed(oracle.weight(seed + 10, shape), dtype)
  parts = export.compress(want["weight"].view(jnp.dtype(dtype)))
  assert np.array_equal(bits(parts[0]), want["packed"])
  assert np.array_equal(parts[1], want["meta"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemi")
def test_torch_takes_up_what_a_file_holds(tmp_path):
  """As docs/export.md says to load it."""
  torch = pytest.importorskip("torch", reason="needs torch: `oracles`")
  from torch.sparse import SparseSemiStructuredTensorCUTLASS as Cutlass

  weight = oracle.weight(3, (32, 128)).astype(np.float16)
  leaf = MaskedKernel(weight.shape, NM(2, 4), -1)
  path = tmp_path / "a.safetensors"
  export.write_semi_structured(path, {"x.weight": weight}, {"x.weight": leaf})
  held = load_file(path)
  sparse = Cutlass(
    torch.Size(weight.shape),
    packed=torch.from_numpy(held["x.weight.packed"]),
    meta=torch.from_numpy(held["x.weight.meta"]),
    packed_t=None,
    meta_t=None,
    compressed_swizzled_bitmask=None,
  )
  assert torch.equal(sparse.to_dense(), torch.from_numpy(weight))


def test_a_file_holds_the_weights_in_half_and_an_eighth_more(tmp_path):
  a = oracle.weight(1, (64, 128)).astype(jnp.bfloat16)
  a[0, 1] = -0.0
  odd, bias = np.ones((10, 64), np.float16), np.ones(3, np.float32)
  odd[:, ::2] = 0
  tensors = {"a.weight": a, "odd.weight": odd, "a.bias": bias}
  leaves = {
    "a.weight": MaskedKernel(a.shape, NM(2, 4), -1),
    "odd.weight": MaskedKernel(odd.shape, NM(2, 4), 1),
  }
  path = tmp_path / "a.safetensors"
  left = export.write_semi_structured(path, tensors, leaves)
  assert left == {"odd.weight": "[10, 64] is not a multiple of [32, 64]"}
  weights = export.read(path)
  want = np.where(a == 0, np.zeros((), a.dtype), a)  # without signs
  assert np.array_equal(bits(weights["a.weight"]), bits(want))
  assert np.array_equal(weights["odd.weight"], odd)
  assert np.array_equal(weights["a.bias"], bias)
  sizes = {each.name: each.stored for each in export.weights(path)}
  assert sizes["a.weight"] == engine.packed_bytes(a.size, "2:4", 2)


@pytest.mark.parametrize(
  ("value", "pattern", "message"),
  [
    (np.ones((32, 64), np.float16), "2:4", r"w: .*at entry \(0, 0\) keeps 4"),
    (
      np.tile(np.float16([1, 1, 1, 0]), (32, 16)),
      "3:4",
      "3:4 leaves more than 2",
    ),
    (
      np.zeros((32, 64), np.float32),
      "2:4",
      "w: expected 16-bit floats, got float32.*--dtype",
    ),
    (np.zeros((16, 64), np.float16), "2:4", "no weight fits.*multiple of"),
    (np.zeros((2, 32, 64), np.float16), "2:4", "no weight fits.*not a matrix"),
  ],
)
def test_what_the_layout_cannot_hold(value, pattern, message, tmp_path):
  leaf = MaskedKernel(value.shape, NM.parse(pattern), -1)
  with pytest.raises(export.ExportError, match=message):
    export.write_semi_structured(
      tmp_path / "a.safetensors", {"w": value}, {"w": leaf}
    )
  assert list(tmp_path.iterdir()) == []


def test_metadata_that_names_no_two_places():
  packed, meta = export.compress(np.zeros((32, 64), np.float16))
  meta[3, 2] ^= 1
  with pytest.raises(
    export.ExportError, match="expected metadata with 2 places"
  ):
    export.decompress(packed, meta)
  with pytest.raises(export.ExportError, match="metadata of shape"):
    export.decompress(packed, meta[:, :2])
