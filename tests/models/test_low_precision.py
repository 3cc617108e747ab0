"""Parameters in few bits: drawn in float32, and looked up in it."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models
from figs_jax.core.masks import nm_mask
from figs_jax.core.tree import flatten
from figs_jax.nn import SparseConv, SparseLinear
from tests.models import families

pytestmark = pytest.mark.standard_promotion
LOW = ("bfloat16", "float16", "float8_e4m3fn")


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("family", families.TINY)
def test_parameters_are_those_of_float32_rounded(family, dtype):
  wide, low = (
    flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for model in (
      families.create(family),
      families.create(family, param_dtype=dtype),
    )
  )
  for path, leaf in low.items():
    assert leaf.dtype == dtype, path
    np.testing.assert_array_equal(leaf, wide[path].astype(dtype), path)


def test_no_place_of_a_group_is_favoured():
  """The rounding of a draw in bfloat16 gave the first place 1.064 its share."""
  model = models.create(
    "vit", "custom/4", width=256, depth=1, heads=4, image_size=8,
    num_classes=10, param_dtype="bfloat16",
  )  # fmt: skip
  kernel = model.blocks[0].mlp.fc1.kernel[...]
  values = np.asarray(kernel, np.float64)
  assert abs(values.mean()) < 3 * values.std() / values.size**0.5
  assert len(np.unique(values)) > 2000
  kept = np.asarray(nm_mask(kernel, "1:8", axis=0))
  shares = kept.reshape(-1, 8, kept.shape[1]).mean((0, 2)) * 8
  # A share's deviation is 1/8 sqrt(8 * 7 / groups).
  assert np.abs(shares - 1).max() < 4 * (7 * 8 / values.size) ** 0.5 * 8**0.5


@pytest.mark.parametrize("dtype", LOW)
def test_layers_of_ones_own_model(dtype):
  layers = [
    kind(*sizes, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    for param_dtype in (jnp.float32, dtype)
    for kind, sizes in ((SparseLinear, (8, 4)), (SparseConv, (4, 4, (1, 2))))
  ]
  for wide, low in zip(layers[:2], layers[2:]):
    assert low.param_dtype == low.bias.dtype == dtype
    np.testing.assert_array_equal(low.kernel, wide.kernel[...].astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_frequent_token_keeps_its_gradient(dtype):
  """4,096 ones add up to 256 in bfloat16, whose next number is 258."""
  model = families.create("t5", param_dtype=dtype)
  ids = jnp.full((4, 1024), 3, jnp.int32)

  grad = nnx.grad(lambda model: model._embed(ids).sum(dtype=jnp.float32))
  grads = grad(model)["shared"]["embedding"][...]
  assert grads.dtype == dtype
  assert float(grads[3, 0]) == 4096.0
  assert float(jnp.abs(grads[4:]).sum()) == 0.0
