"""The whole suite runs strict: eight CPU devices, types checked, no promotion.

The package is imported under jaxtyping's hook, so that beartype checks every
annotated shape and dtype. Implicit dtype promotion is an error except in tests
marked `standard_promotion`; implicit rank promotion is one everywhere.
"""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("figs_jax", "beartype.beartype")


@pytest.fixture(autouse=True)
def strict_jax(request):
  standard = request.node.get_closest_marker("standard_promotion")
  with (
    jax.numpy_dtype_promotion("standard" if standard else "strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    yield
