"""A packed mask is NumPy's packed bits, and acts as the mask it was made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core import flow, pack_mask, unpack_mask
from figs_jax.core._flow import GRAD_MODES


@pytest.mark.parametrize(
  ("shape", "axis"), [((8,), 0), ((16, 3), -2), ((2, 8, 5), 1), ((3, 24), -1)]
)
def test_bits_are_those_of_numpy(shape, axis):
  mask = np.random.default_rng(0).random(shape) < 0.4
  packed = pack_mask(jnp.asarray(mask), axis)
  expected = np.packbits(mask, axis, "little")
  np.testing.assert_array_equal(packed, expected)
  assert packed.dtype == jnp.uint8 and packed.nbytes * 8 == mask.size
  np.testing.assert_array_equal(unpack_mask(packed, shape), mask)
  assert unpack_mask(jnp.asarray(mask), shape).dtype == bool


def test_other_shapes_are_refused():
  with pytest.raises(ValueError, match="that 8 divides"):
    pack_mask(jnp.ones((12, 8), bool))
  for wrong in (jnp.ones((2, 16), jnp.uint8), jnp.ones((3, 2), jnp.uint8)):
    with pytest.raises(ValueError, match="kernel's shape"):
      unpack_mask(wrong, (16, 2))
  with pytest.raises(ValueError, match="kernel's shape"):
    unpack_mask(jnp.ones((16, 2)), (16, 2))


@pytest.mark.parametrize("mode", GRAD_MODES)
@pytest.mark.parametrize("decay", [None, 0.5])
def test_flow_of_a_packed_mask(mode, decay):
  rng = np.random.default_rng(1)
  kernel = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
  mask = jnp.asarray(rng.random((16, 4)) < 0.5)

  def both(mask):
    def loss(w):
      return jnp.sum(flow(w, mask, 0.25, mode, decay) ** 2)

    return jax.value_and_grad(loss)(kernel)

  for own, packed in zip(both(mask), both(pack_mask(mask))):
    np.testing.assert_array_equal(own, packed)
