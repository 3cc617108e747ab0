"""The form of the tables that map names in published files to our parameters.

A row is (kind, theirs, ours). The kind determines the tensors of the layer and
their layout in the file; `{i}` is the number of a block, `{s}` that of a stage,
both of which a file may count from 1 or after another block (`{i+1}`).
Our path may lack `/{i}`, since scanned blocks are stacked along axis 0. The
tables are in `vit`, `swin_v2` and `t5`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# The options to set, in words: `arguments`, or flags of a program.
Wording = Callable[..., str]
Row = tuple[str, str, str | tuple[str, ...]]
Size = tuple[int, ...]


def arguments(**options: Any) -> str:
  """Options as arguments in Python; an ellipsis leaves the value open.

  >>> arguments(heads=4, gelu="exact", window=...)
  "heads=4, gelu='exact', window="
  """
  return ", ".join(
    f"{name}={'' if value is ... else repr(value)}"
    for name, value in options.items()
  )


@dataclasses.dataclass(frozen=True)
class Layout:
  """theirs = ours.transpose(order).reshape(shape(its shape, heads)).

  Attributes:
    order: Order of the axes.
    shape: Their shape of ours, after the transpose.
    parts: Their axis along which one tensor has several of ours.
  """

  order: tuple[int, ...] | None = None
  shape: Callable[[Size, int], Size] = lambda shape, heads: shape
  parts: int = 0

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

# Kind -> (suffix of their name, suffix of our path, layout) per tensor.
KINDS: dict[str, tuple[tuple[str, str, Layout], ...]] = {
  "plain": (("", "", SAME),),
  "column": (("", "", _COLUMN),),
  "dense": ((".weight", "/kernel", _OUT_IN), (".bias", "/bias", SAME)),
  "conv": ((".weight", "/kernel", _OIHW), (".bias", "/bias", SAME)),
  "norm": ((".weight", "/scale", SAME), (".bias", "/bias", SAME)),
  "batch_norm": (
    (".weight", "/scale", SAME),
    (".bias", "/bias", SAME),
    (".running_mean", "/mean", SAME),
    (".running_var", "/var", SAME),
  ),
  "old_norm": ((".gamma", "/scale", SAME), (".beta", "/bias", SAME)),
  "embed": ((".weight", "/embedding", SAME),),
  # As Flax stores them, with a separate axis of heads in attention.
  "flax": (("/kernel", "/kernel", SAME), ("/bias", "/bias", SAME)),
  "flax_norm": (("/scale", "/scale", SAME), ("/bias", "/bias", SAME)),
  "flax_qkv": (
    ("/kernel", "/kernel", _SPLIT_LAST),
    ("/bias", "/bias", _SPLIT_LAST),
  ),
  "flax_out": (("/kernel", "/kernel", _SPLIT_FIRST), ("/bias", "/bias", SAME)),
}
# One tensor for several of ours, such as q, k and v, side by side.
KINDS["fused"] = KINDS["dense"]
# Kernels as we have them, [in, out].
_IN_OUT = Layout(parts=-1)
KINDS["conv1d"] = ((".weight", "/kernel", _IN_OUT), (".bias", "/bias", SAME))
KINDS["conv1d_fused"] = KINDS["conv1d"]


@dataclasses.dataclass(frozen=True, eq=False)
class Fix:
  """Options to set if a parameter does not fit; an ellipsis is any value.

  Attributes:
    path: Regular expression of our path.
    file_lacks: Options if the file has no such tensor.
    model_lacks: Options if the model has no such parameter.
    shape: Options if both have it with different shapes.
  """

  path: str
  file_lacks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  model_lacks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shape: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Dialect:
  """One naming scheme for the parameters of a family.

  Attributes:
    name: Name of the library that uses the scheme.
    rows: Rows of the table, see above.
    duplicates: Pairs (regular expression of names, check) for tensors that are
      not parameters, but repeat or follow from one. The check (model, tensors,
      name, **groups) returns whether the value is right; None accepts any.
    heads: Regular expression of names beside the classifier that belong to one
      task and are ignored with a fresh head.
    refused: Pairs (regular expression of names, part that the model lacks).
    hint: Fix to suggest if a check fails, for a wording of options.
    class_position: Whether a class token always has a position embedding.
    aliases: Pairs (name, other names of the same tensor) for files that leave
      the first one out, since they store shared tensors once.
    fixes: What to set if a parameter does not fit, see `Fix`.
  """

  name: str
  rows: tuple[Row, ...]
  duplicates: tuple[tuple[str, Callable[..., bool] | None], ...] = ()
  heads: str = "(?!)"
  refused: tuple[tuple[str, str], ...] = ()
  hint: Callable[[Wording], str] = lambda wording: ""
  class_position: bool = True
  aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()
  fixes: tuple[Fix, ...] = ()

  def bare(self, prefix: str) -> Dialect:
    """The scheme without a prefix, as in files of models without a head."""
    return dataclasses.replace(
      self,
      name=f"{self.name}, without {prefix}",
      rows=tuple(
        (kind, theirs.removeprefix(prefix), ours)
        for kind, theirs, ours in self.rows
      ),
    )


def is_copy_of(*names: str) -> Callable[..., bool]:
  """A check of `Dialect.duplicates`: a tensor equals the first of these.

  Args:
    *names: Names of the other tensor; the first that the file has counts.
  """

  def check(model: Any, tensors: Any, name: str) -> bool:
    del model
    for other in names:
      if other in tensors:
        same = tensors[other].shape == tensors[name].shape
        return same and np.array_equal(
          tensors[other].read(), tensors[name].read()
        )
    return False

  return check


def under(theirs: str, ours: str, *rows: Row) -> tuple[Row, ...]:
  """Rows with a common prefix of both names.

  >>> under("layer.{i}.", "blocks/{i}/", ("norm", "ln", "norm1"))
  (('norm', 'layer.{i}.ln', 'blocks/{i}/norm1'),)
  """

  def whole(path: Any) -> Any:
    if isinstance(path, tuple):
      return tuple(ours + each for each in path)
    return ours + path

  return tuple((kind, theirs + name, whole(path)) for kind, name, path in rows)
