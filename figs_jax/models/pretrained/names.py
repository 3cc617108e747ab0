"""How a table says what published files call our parameters.

A row is (kind, theirs, ours). The kind says which tensors the layer has and
how they lie in the file; `{i}` is the number of a block, `{s}` that of a
stage. Our path may lack `/{i}`: scanned blocks are stacked along axis 0. The
tables are in `pretrained_vit`, `pretrained_swin_v2` and `pretrained_t5`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Row = tuple[str, str, str | tuple[str, str, str]]
Size = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """theirs = ours.transpose(order).reshape(shape(its shape, heads))."""

  order: tuple[int, ...] | None = None
  shape: Callable[[Size, int], Size] = lambda shape, heads: shape

  def of(self, ours: Size, heads: int) -> Size:
    """The shape in the file."""
    return self.shape(self._turned(ours), heads)

  def to_theirs(self, ours: np.ndarray, heads: int) -> np.ndarray:
    turned = ours.transpose(self.order or range(ours.ndim))
    return turned.reshape(self.of(ours.shape, heads))

  def to_ours(self, theirs: np.ndarray, ours: Size) -> np.ndarray:
    turned = theirs.reshape(self._turned(ours))
    return turned.transpose(np.argsort(self.order or range(len(ours))))

  def _turned(self, ours: Size) -> Size:
    return tuple(ours[axis] for axis in self.order or range(len(ours)))


SAME = Layout()
_OUT_IN = Layout((1, 0))
_OIHW = Layout((3, 2, 0, 1))
_COLUMN = Layout(shape=lambda shape, heads: (*shape, 1, 1))
_SPLIT_LAST = Layout(
  shape=lambda shape, heads: (*shape[:-1], heads, shape[-1] // heads)
)
_SPLIT_FIRST = Layout(
  shape=lambda shape, heads: (heads, shape[0] // heads, *shape[1:])
)

# Per kind: (end of their name, end of our path, layout).
KINDS: dict[str, tuple[tuple[str, str, Layout], ...]] = {
  "plain": (("", "", SAME),),
  "column": (("", "", _COLUMN),),
  "dense": ((".weight", "/kernel", _OUT_IN), (".bias", "/bias", SAME)),
  "conv": ((".weight", "/kernel", _OIHW), (".bias", "/bias", SAME)),
  "norm": ((".weight", "/scale", SAME), (".bias", "/bias", SAME)),
  "embed": ((".weight", "/embedding", SAME),),
  # As Flax stores them, heads apart in attention.
  "flax": (("/kernel", "/kernel", SAME), ("/bias", "/bias", SAME)),
  "flax_norm": (("/scale", "/scale", SAME), ("/bias", "/bias", SAME)),
  "flax_qkv": (
    ("/kernel", "/kernel", _SPLIT_LAST),
    ("/bias", "/bias", _SPLIT_LAST),
  ),
  "flax_out": (("/kernel", "/kernel", _SPLIT_FIRST), ("/bias", "/bias", SAME)),
}
# One tensor for q, k and v: theirs end to end along axis 0.
KINDS["fused"] = KINDS["dense"]


@dataclasses.dataclass(frozen=True)
class Dialect:
  """One way to name the parameters of a family.

  Attributes:
    name: of whoever uses it.
    rows: as the module says.
    duplicates: (their name as a regular expression, check): tensors that are
      no parameters, but repeat one or are computed. The check (model, tensors,
      name, **groups) says whether it is what it must be; None where no code
      reads it.
    heads: their names (a regular expression) beside the classifier that belong
      to one task, left out with a fresh head.
    refused: (their name as a regular expression, what it belongs to that the
      model lacks).
    hint: what to do where a check fails.
    class_position: whether a class token always has a position embedding.
  """

  name: str
  rows: tuple[Row, ...]
  duplicates: tuple[tuple[str, Callable[..., bool] | None], ...] = ()
  heads: str = "(?!)"
  refused: tuple[tuple[str, str], ...] = ()
  hint: str = ""
  class_position: bool = True

  def bare(self, prefix: str) -> Dialect:
    """The same without a prefix, as a model without its head is saved."""
    return dataclasses.replace(
      self,
      name=f"{self.name}, without {prefix}",
      rows=tuple(
        (kind, theirs.removeprefix(prefix), ours)
        for kind, theirs, ours in self.rows
      ),
    )


def under(theirs: str, ours: str, *rows: Row) -> tuple[Row, ...]:
  """Rows with a common beginning of both names.

  >>> under("layer.{i}.", "blocks/{i}/", ("norm", "ln", "norm1"))
  (('norm', 'layer.{i}.ln', 'blocks/{i}/norm1'),)
  """

  def whole(path: Any) -> Any:
    if isinstance(path, tuple):
      return tuple(ours + each for each in path)
    return ours + path

  return tuple((kind, theirs + name, whole(path)) for kind, name, path in rows)
