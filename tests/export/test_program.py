"""Programs: what is damaged or computes something else gets no name."""

import sys

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


@pytest.mark.parametrize("cut", [0, 3, 100, -50])
def test_a_damaged_program_is_one_clear_line(program, cut, tmp_path):
  path = tmp_path / "b.stablehlo"
  path.write_bytes(program.read_bytes()[:cut])
  with pytest.raises(export.ExportError, match="no whole program") as error:
    export.read_program(path)
  assert "\n" not in str(error.value)
  with pytest.raises(export.ExportError, match="there is no such file"):
    export.read_program(tmp_path / "c")


def test_a_program_that_computes_something_else_gets_no_name(
  tmp_path, monkeypatch
):
  module = sys.modules[export.write_program.__module__]
  monkeypatch.setattr(module, "read_program", lambda path: lambda x: x + 1)
  with pytest.raises(export.ExportError, match="does not compute what"):
    export.write_program(
      tmp_path / "a", lambda x: x * 3, [np.ones((2, 2), np.float32)]
    )
  with pytest.raises(export.ExportError, match="platform 'gpu': give some"):
    export.write_program(tmp_path / "a", jnp.sin, [], platforms=("gpu",))
  assert list(tmp_path.iterdir()) == []
