"""Array annotations: jaxtyping if it is installed, plain arrays otherwise.

The numerical packages need only jax and numpy; without jaxtyping the
annotations are documentation. Under pytest beartype checks all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax import Array

if TYPE_CHECKING:
  from jaxtyping import Bool, Float, Int, PyTree, Shaped, UInt8
else:
  try:
    from jaxtyping import Bool, Float, Int, PyTree, Shaped, UInt8
  except ImportError:

    class _Anything:
      """Placeholder for jaxtyping: `Float[Array, "..."]` is Any."""

      def __class_getitem__(cls, item):
        return Any

    Bool = Float = Int = Shaped = PyTree = UInt8 = _Anything

__all__ = ["Array", "Bool", "Float", "Int", "PyTree", "Shaped", "UInt8"]
