"""The recipe that a researcher would write is registered for these tests."""

import pytest

from .own import registered


@pytest.fixture(scope="module", autouse=True)
def own_recipe():
  with registered() as module:
    yield module
