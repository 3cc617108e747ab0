"""Programs: what is damaged or computes something else gets no name."""

import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax import export

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
  path = tmp_path_factory.mktemp("program") / "a.stablehlo"
  export.write_program(
    path, lambda x: x @ WEIGHT, [np.eye(2, dtype=np.float32)]
  )
  return path


def test_any_number_of_samples(program):
  for count in (1, 2, 7):
    x = np.full((count, 2), 0.5, np.float32)
    got = export.read_program(program)(x)
    assert np.array_equal(np.asarray(got), x @ WEIGHT)


@pytest.mark.parametrize("cut", [0, 3, 100, -1, -50])
def test_a_damaged_program_is_one_clear_line(program, cut, tmp_path):
  path = tmp_path / "b.stablehlo"
  path.write_bytes(program.read_bytes()[:cut])
  with pytest.raises(export.ExportError, match="not a whole program") as error:
    export.read_program(path)
  assert "\n" not in str(error.value)
  with pytest.raises(export.ExportError, match="no such file"):
    export.read_program(tmp_path / "c")


def test_a_program_that_computes_something_else_gets_no_name(
  tmp_path, monkeypatch
):
  module = sys.modules[export.write_program.__module__]
  monkeypatch.setattr(module, "read_program", lambda path: lambda x: x + 1)
  with pytest.raises(export.ExportError, match="differs from the function"):
    export.write_program(
      tmp_path / "a", lambda x: x * 3, [np.ones((2, 2), np.float32)]
    )
  with pytest.raises(export.ExportError, match="Unknown platform 'gpu'. Known"):
    export.write_program(tmp_path / "a", jnp.sin, [], platforms=("gpu",))
  assert list(tmp_path.iterdir()) == []


def test_no_changed_byte_is_taken_for_the_program(program, tmp_path):
  """Some of them would pass jax's reader and end the process later."""
  whole, path = program.read_bytes(), tmp_path / "b.stablehlo"
  for place in np.random.default_rng(0).integers(0, len(whole), 50):
    changed = bytearray(whole)
    changed[place] ^= 0x5A
    path.write_bytes(changed)
    with pytest.raises(export.ExportError, match="not a whole program"):
      export.read_program(path)


def test_jax_alone_reads_it(program):
  again = jax.export.deserialize(bytearray(program.read_bytes()))
  x = np.ones((3, 2), np.float32)
  assert np.array_equal(np.asarray(again.call(x)), x @ WEIGHT)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_a_plain_module_is_read_by_stablehlo_alone(platform, tmp_path):
  from jaxlib.mlir import ir
  from jaxlib.mlir.dialects import stablehlo

  path = tmp_path / "a.mlir"
  x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
  export.write_module(
    path, lambda x: jnp.tanh(x @ WEIGHT), [x], platform=platform
  )
  with ir.Context() as context:
    module = stablehlo.deserialize_portable_artifact(context, path.read_bytes())
    (main,) = module.body.operations
    assert main.sym_name.value == "main"
    assert str(main.type) == "(tensor<8x2xf32>) -> tensor<8x3xf32>"
    # StableHLO's reference interpreter, which knows nothing of JAX.
    (got,) = stablehlo.eval_module(module, [ir.DenseElementsAttr.get(x)])
    got = np.array(got)
  np.testing.assert_allclose(got, np.tanh(x @ WEIGHT), rtol=1e-5)


def test_a_plain_module_is_no_artifact_of_jax(program, tmp_path):
  from jaxlib.mlir import ir
  from jaxlib.mlir.dialects import stablehlo

  with ir.Context() as context:
    with pytest.raises(ValueError, match="failed to deserialize"):
      stablehlo.deserialize_portable_artifact(context, program.read_bytes())
  path = tmp_path / "a.mlir"
  one = [np.ones((1, 2), np.float32)]
  export.write_module(path, lambda x: x @ WEIGHT, one, platform="cpu")
  with pytest.raises(export.ExportError, match="not a whole program"):
    export.read_program(path)
  with pytest.raises(export.ExportError, match="it exists; .*--overwrite"):
    export.write_module(path, lambda x: x, one, platform="cpu")
  path.unlink()
  with pytest.raises(export.ExportError, match="Unknown platform 'gpu'. Known"):
    export.write_module(path, lambda x: x, one, platform="gpu")
  with pytest.raises(export.ExportError, match="returns infinities or NaN"):
    export.write_module(path, lambda x: x / 0, one, platform="cpu")
  assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_named_as_such(tmp_path):
  with pytest.raises(export.ExportError, match="returns infinities or NaN"):
    export.write_program(
      tmp_path / "a", lambda x: x * np.nan, [np.ones((2, 2), np.float32)]
    )
  with pytest.raises(export.ExportError, match="cpu, cpu: name each once"):
    export.write_program(tmp_path / "a", jnp.sin, [], platforms=("cpu", "cpu"))
  assert list(tmp_path.iterdir()) == []
