"""Model families by name, and the matrix products that they consist of."""

from __future__ import annotations

import inspect
from typing import Any

import jax
from flax import nnx

from figs_jax.core.rules import nearest
from figs_jax.models.swin_v2 import SwinV2
from figs_jax.models.t5 import T5
from figs_jax.models.vit import ViT

FAMILIES: dict[str, type[Any]] = {
  "swin_v2": SwinV2,
  "t5": T5,
  "vit": ViT,
}

__all__ = [
  "FAMILIES",
  "SwinV2",
  "T5",
  "ViT",
  "abstract",
  "create",
  "gemms_of",
  "names",
  "options_of",
]


def names() -> list[str]:
  """The known families.

  >>> "vit" in names()
  True
  """
  return sorted(FAMILIES)


def options_of(family: str) -> dict[str, Any]:
  """The options of a family with their defaults (None for required ones).

  Args:
    family: One of `names()`.

  Raises:
    ValueError: If the family is unknown; the nearest known one is suggested.

  >>> options_of("vit")["pool"]
  'cls'
  """
  if family not in FAMILIES:
    raise ValueError(f"Unknown family {family!r}: {nearest(family, FAMILIES)}")
  signature = inspect.signature(FAMILIES[family].__init__)
  return {
    name: None if parameter.default is parameter.empty else parameter.default
    for name, parameter in signature.parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "rngs"
  }


def create(
  family: str, variant: str, *, rngs: nnx.Rngs | None = None, **options: Any
) -> Any:
  """Creates a dense model; `figs_jax.sparsify` adds masks to it.

  Args:
    family: One of `names()`.
    variant: Size and patch, as in "S/16"; see the family's `from_variant`.
    rngs: Random streams. Defaults to `nnx.Rngs(0)`.
    **options: Keyword arguments of the family's constructor.

  Raises:
    ValueError: If the family, variant or an option is unknown (the nearest
      known one is suggested), or the options do not fit together.

  >>> model = create("vit", "Ti/4", depth=1, image_size=8, num_classes=10)
  >>> model.depth, model.width
  (1, 192)
  """
  known = options_of(family)
  for option in options:
    if option not in known:
      raise ValueError(
        f"Unknown option {option!r} of {family}: {nearest(option, known)}"
      )
  return FAMILIES[family].from_variant(
    variant, rngs=rngs or nnx.Rngs(0), **options
  )


class _OneKey(nnx.RngStream):
  """A stream that gives one key and counts no draws.

  Shapes do not depend on keys, and flax takes most of the time that it needs to
  trace a model for the counter (`Variable.set_value` asks a tracer for its
  sharding, which raises an error with a long message).
  """

  def __call__(self) -> jax.Array:
    return self.key[...]


def abstract(family: str, variant: str, **options: Any) -> Any:
  """Creates a dense model with shapes in place of arrays, quickly.

  For rows, patterns and paths; `nnx.eval_shape` of `create` keeps the state of
  the random streams too.

  Args:
    family: One of `names()`.
    variant: Size and patch, as for `create`.
    **options: Keyword arguments of the family's constructor.

  Raises:
    ValueError: If the family, variant or an option is invalid, as in `create`.

  >>> abstract("vit", "H/14").head.kernel.shape
  (1280, 1000)
  """

  def build() -> Any:
    rngs: Any = nnx.Rngs()
    rngs.default = _OneKey(jax.random.key(0), tag="default")
    return create(family, variant, rngs=rngs, **options)

  return nnx.eval_shape(build)


def gemms_of(model: nnx.Module, batch: int = 1) -> list[dict[str, Any]]:
  """Lists the matrix products of one forward pass, for the engine.

  Args:
    model: Model of one of our families, sparse or dense, possibly abstract.
    batch: Number of images (or sequences) per pass.

  Returns:
    Rows {"name", "M", "N", "K", "pattern", "count"} for `figs_jax.engine`:
    `count` products (M x K)(K x N) whose K x N operand is the weight, N:M along
    K. The pattern is an `NM`, or None for dense kernels.

  Raises:
    ValueError: If the batch is below 1 or the model has another origin.

  >>> model = create("vit", "Ti/4", depth=1, image_size=8, num_classes=10)
  >>> [row["name"] for row in gemms_of(model)][:3]
  ['patch_embed', 'blocks/0/attn/q', 'blocks/0/attn/k']
  """
  if batch < 1:
    raise ValueError(f"Expected a batch of 1 or more, got batch={batch}")
  if not isinstance(model, tuple(FAMILIES.values())):
    raise ValueError(
      f"Expected a model of our families ({', '.join(names())}), got"
      f" {type(model).__name__}; write its rows (name, M, N, K, pattern, count)"
      " for the engine yourself"
    )
  return model.gemms(batch)
