"""LoRA with factors that may carry masks.

`sparsify` makes a `SparseLoRA` of an `nnx.LoRA` if a rule names its factors;
otherwise LoRA stays as it is, and only the kernel below it is masked.
"""

from __future__ import annotations

from typing import Any, cast

from flax import nnx

from figs_jax.core.types import Array, Float
from figs_jax.nn.layers import SparseLinear

FACTORS = ("lora_a", "lora_b")


class Factor(SparseLinear):
  """A factor of LoRA: a linear layer without bias, masked on request only."""


class SparseLoRA(nnx.LoRA):
  """`nnx.LoRA` whose factors are layers, which may carry masks.

  The factors are the parameters `lora_a/kernel` and `lora_b/kernel`, of the
  type that they had.

  >>> from figs_jax.nn import masked_leaves, sparsify
  >>> lora = nnx.LoRA(8, 4, 8, rngs=nnx.Rngs(0))
  >>> sorted(masked_leaves(sparsify(lora, "lora_./kernel: 2:4")))
  ['lora_a/kernel', 'lora_b/kernel']
  """

  lora_a: Any
  lora_b: Any

  def __call__(
    self, x: Float[Array, "*rows inputs"], **kwargs: Any
  ) -> Float[Array, "*rows outputs"]:
    """x A B plus the output of the base module, as in `nnx.LoRA`."""
    a, b = self.lora_a, self.lora_b
    x, *_ = self.promote_dtype(
      (x, a.kernel[...], b.kernel[...]), dtype=self.dtype
    )
    out = b(a(x))
    if self.base_module is not None:
      out += cast(Any, self.base_module)(x, **kwargs)
    return out


def factored(layer: nnx.LoRA) -> None:
  """Turns an `nnx.LoRA` (of our own copy of the model) into a `SparseLoRA`.

  Raises:
    ValueError: If it is a subclass, whose call is not known.
  """
  if isinstance(layer, SparseLoRA):
    return
  if type(layer) is not nnx.LoRA:
    raise ValueError(
      f"{type(layer).__name__}: expected nnx.LoRA itself to mask its factors,"
      " got a subclass; leave the factors out of the rules"
    )
  object.__setattr__(layer, "__class__", SparseLoRA)
  for name in FACTORS:
    kernel = vars(layer)[name]
    factor = nnx.eval_shape(
      lambda kernel=kernel: Factor(
        *kernel.shape,
        use_bias=False,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        promote_dtype=layer.promote_dtype,
        rngs=nnx.Rngs(0),
      )
    )
    factor.kernel = kernel
    setattr(layer, name, factor)
