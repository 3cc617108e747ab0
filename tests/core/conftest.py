"""What the tests of core share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
  """Without the run-time type check of the tests, which would speak first."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
