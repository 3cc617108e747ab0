"""Which masks are allowed: N:M along the inputs, or along both axes."""

from __future__ import annotations

import dataclasses

from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.transposable import transposable_nm_mask
from figs_jax.core.types import Array, Bool, Float


@dataclasses.dataclass(frozen=True)
class Choice:
  """The masks among which a method chooses.

  Attributes:
    pattern: Pattern of the groups, along axis 0 of a kernel [K, N].
    transposable: Whether masks are N:M along axis 1 as well.

  >>> import jax.numpy as jnp
  >>> Choice(NM(1, 2))(jnp.array([[2.0, 1.0], [3.0, 0.0]])).tolist()
  [[False, True], [True, False]]
  """

  pattern: NM
  transposable: bool = False

  def __call__(self, scores: Float[Array, "k n"]) -> Bool[Array, "k n"]:
    """The mask with the largest scores."""
    if self.transposable:
      return transposable_nm_mask(scores, self.pattern, 0, other=1)
    return nm_mask(scores, self.pattern, 0)
