"""Array annotations: jaxtyping where it is installed, plain arrays elsewhere.

The numerical rooms run on a bare machine with jax and numpy only; there the
annotations are documentation. Under pytest jaxtyping is present and beartype
checks every one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax import Array

if TYPE_CHECKING:
  from jaxtyping import Bool, Float, Int, PyTree, Shaped
else:
  try:
    from jaxtyping import Bool, Float, Int, PyTree, Shaped
  except ImportError:

    class _Anything:
      """Stands in for a jaxtyping annotation: `Float[Array, "..."]` is Any."""

      def __class_getitem__(cls, item):
        return Any

    Bool = Float = Int = Shaped = PyTree = _Anything

__all__ = ["Array", "Bool", "Float", "Int", "PyTree", "Shaped"]
