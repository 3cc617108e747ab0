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


def test_weights_that_are_not_finite_are_named_as_such(tmp_path):
  with pytest.raises(export.ExportError, match="returns infinities or NaN"):
    export.write_program(
      tmp_path / "a", lambda x: x * np.nan, [np.ones((2, 2), np.float32)]
    )
  with pytest.raises(export.ExportError, match="cpu, cpu: name each once"):
    export.write_program(tmp_path / "a", jnp.sin, [], platforms=("cpu", "cpu"))
  assert list(tmp_path.iterdir()) == []
