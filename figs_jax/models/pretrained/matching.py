"""Matches the tensors of a file with the parameters of a model, both ways."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from figs_jax.models.pretrained import gpt2, llama, swin_v2, t5, vit
from figs_jax.models.pretrained.files import PretrainedError, Tensor
from figs_jax.models.pretrained.names import (
  KINDS,
  Dialect,
  Layout,
  Size,
  Wording,
  arguments,
)

# By the name of the model's class; files are written in the first dialect.
TABLES: dict[str, tuple[Dialect, ...]] = {
  "GPT2": gpt2.DIALECTS,
  "Llama": llama.DIALECTS,
  "SwinV2": swin_v2.DIALECTS,
  "T5": t5.DIALECTS,
  "ViT": vit.DIALECTS,
}
_HEAD = ("head/kernel", "head/bias")
_POSITIONS = "pos_embed"
_PATCHES = "patch_embed/kernel"  # [height, width, channels, width]
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Place:
  """The tensors of a file that hold a parameter.

  Attributes:
    names: Name of the tensor, or of each block's tensor for a stacked one.
    layout: Layout of each tensor.
    stacked: Whether axis 0 of the parameter is that of the blocks.
    part: Index of the third of the tensor; None for all of it.
  """

  names: tuple[str, ...]
  layout: Layout
  stacked: bool
  part: int | None

  def shape(self, ours: Size, heads: int) -> Size:
    """The shape of one tensor for a parameter of this shape."""
    sizes = list(self.layout.of(ours[1:] if self.stacked else ours, heads))
    if self.part is not None:
      sizes[self.layout.parts] *= 3
    return tuple(sizes)

  def array(self, tensors: Mapping[str, Tensor], ours: Size) -> np.ndarray:
    """Reads the parameter."""
    one = ours[1:] if self.stacked else ours
    layers = []
    for name in self.names:
      value = tensors[name].read()
      if self.part is not None:
        value = np.split(value, 3, self.layout.parts)[self.part]
      layers.append(self.layout.to_ours(value, one))
    return np.stack(layers) if self.stacked else layers[0]


def parameters_of(model: nnx.Module) -> dict[str, nnx.Variable]:
  """The model's own parameters, by path."""
  return {
    "/".join(map(str, path)): node
    for path, node in nnx.iter_graph(model)
    if isinstance(node, nnx.Param)
  }


def published(model: nnx.Module) -> dict[str, np.ndarray]:
  """Every parameter under the name and in the layout of Hugging Face files.

  Raises:
    PretrainedError: If the model's family is unknown.

  >>> from figs_jax import models
  >>> model = models.create(
  ...   "vit", "custom/2", width=8, depth=1, heads=2, image_size=4)
  >>> published(model)["classifier.weight"].shape
  (1000, 8)
  """
  tensors = {}
  fused: dict[str, dict[int, np.ndarray]] = {}
  for path, leaf in parameters_of(model).items():
    place = place_of(model, path, tuple(leaf.shape))
    value = np.asarray(leaf[...])
    for name, layer in zip(place.names, value if place.stacked else [value]):
      one = place.layout.to_theirs(layer, _heads(model))
      if place.part is not None:
        parts = fused.setdefault(name, {})
        parts[place.part] = one
        ordered = [parts[i] for i in sorted(parts)]
        one = np.concatenate(ordered, place.layout.parts)
      tensors[name] = one
  return tensors


def matched(
  model: nnx.Module,
  tensors: Mapping[str, Tensor],
  *,
  head: str = "strict",
  resize_positions: bool = False,
  convert_channels: bool = False,
  where: str,
  wording: Wording = arguments,
) -> dict[str, np.ndarray]:
  """The model's parameters by path, from named tensors.

  Args:
    model: Model, possibly abstract.
    tensors: Tensors from `opened`, or from another model's `published`.
    head: "strict" or "fresh", see `pretrained.load`.
    resize_positions: Whether to interpolate positions, see `pretrained.load`.
    convert_channels: Whether to convert the patch kernel between one and three
      channels, see `pretrained.load`.
    where: Source of the tensors, for error messages.
    wording: How error messages name the options to set.

  Raises:
    PretrainedError: If the tensors do not fit, see `pretrained.load`.
  """
  if head not in ("strict", "fresh"):
    raise PretrainedError(f"Expected head of 'strict' or 'fresh', got {head!r}")
  tensors = without_training_state(tensors)
  dialect = _spoken(model, tensors, where)
  places = {
    path: _place(dialect, path, tuple(leaf.shape))
    for path, leaf in parameters_of(model).items()
    if head == "strict" or path not in _HEAD
  }
  if head == "fresh":
    tensors = {
      name: tensor
      for name, tensor in tensors.items()
      if not _of_head(dialect, name)
    }
  _check_names(model, dialect, places, tensors, where, wording)
  weights = {}
  leaves = parameters_of(model)
  for path in sorted(places, key=_HEAD.__contains__):  # the head last
    place, leaf = places[path], leaves[path]
    shape = tuple(leaf.shape)
    if path == _POSITIONS:
      stored = tensors[place.names[0]]
      of_class = dialect.class_position
      value = _positions(
        model, stored, of_class, resize_positions, where, wording
      )
    elif path == _PATCHES:
      value = _patch_kernel(
        model, place, shape, tensors, convert_channels, where, wording
      )
    else:
      _check_shapes(model, place, path, shape, tensors, where, wording)
      value = place.array(tensors, shape)
    # The model keeps its own dtypes.
    weights[path] = value.astype(leaf.dtype)
  return weights


def _heads(model: Any) -> int:
  return getattr(model, "heads", 1)


def _dialects(model: nnx.Module) -> tuple[Dialect, ...]:
  name = type(model).__name__
  if name not in TABLES:
    raise PretrainedError(
      f"Published weights are supported for {', '.join(TABLES)}, got a model of"
      f" class {name}"
    )
  return TABLES[name]


def without_training_state(
  tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
  """The tensors below `params/`, where big_vision files have the weights."""
  below = {
    name.removeprefix("params/"): tensor
    for name, tensor in tensors.items()
    if name.startswith("params/")
  }
  return below or dict(tensors)


@functools.cache
def _leaves(
  dialect: Dialect,
) -> tuple[tuple[str, re.Pattern[str], Layout, int | None], ...]:
  """(their name, our path as a regex, layout, third) of every tensor."""
  rows = []
  for kind, theirs, paths in dialect.rows:
    parts = (paths,) if isinstance(paths, str) else paths
    for number, ours in enumerate(parts):
      for their_end, our_end, layout in KINDS[kind]:
        pattern = re.escape(ours + our_end)
        pattern = pattern.replace(r"/\{i\}", r"(?:/(?P<i>\d+))?")
        pattern = pattern.replace(r"\{s\}", r"(?P<s>\d+)")
        part = number if len(parts) > 1 else None
        rows.append((theirs + their_end, re.compile(pattern), layout, part))
  return tuple(rows)


def place_of(model: nnx.Module, path: str, shape: Size) -> Place:
  """The place of a parameter in Hugging Face files.

  Raises:
    PretrainedError: If the model's family or the parameter is unknown.
  """
  return _place(_dialects(model)[0], path, shape)


def _place(dialect: Dialect, path: str, shape: Size) -> Place:
  for theirs, ours, layout, part in _leaves(dialect):
    match = ours.fullmatch(path)
    if match is None:
      continue
    numbers = match.groupdict()
    stage = int(numbers.get("s") or 0)
    stacked = "i" in numbers and numbers["i"] is None
    blocks = range(shape[0]) if stacked else [numbers.get("i")]
    names = tuple(
      theirs.format(**{"i": i, "s": stage, "s+1": stage + 1}) for i in blocks
    )
    return Place(names, layout, stacked, part)
  raise PretrainedError(f"{path}: unknown parameter in files of {dialect.name}")


def _known(dialect: Dialect) -> re.Pattern[str]:
  """A regex of all names in the dialect."""
  names = [_pattern(theirs).pattern for theirs, *_ in _leaves(dialect)]
  return re.compile("|".join(names))


def _pattern(theirs: str) -> re.Pattern[str]:
  """A regex of the names that one name in a table stands for."""
  numbered = re.sub(r"\\{(i|s|s\\\+1)\\}", r"\\d+", re.escape(theirs))
  return re.compile(numbered)


def _spoken(
  model: nnx.Module, tensors: Mapping[str, Tensor], where: str
) -> Dialect:
  """The dialect that most names of a file match."""
  own = _dialects(model)
  family, dialect, count = max(
    (
      (family, dialect, sum(map(bool, map(_known(dialect).fullmatch, tensors))))
      for family, dialects in TABLES.items()
      for dialect in dialects
    ),
    key=lambda candidate: candidate[2],
  )
  if not count:
    some = ", ".join(sorted(tensors)[:3]) or "nothing"
    raise PretrainedError(
      f"{where}: expected tensors of a {type(model).__name__}, got {some}"
    )
  if dialect in own:
    wanted = {
      each: {
        name
        for path, leaf in parameters_of(model).items()
        for name in _place(each, path, tuple(leaf.shape)).names
      }
      for each in own
    }
    return max(own, key=lambda each: len(wanted[each] & tensors.keys()))
  raise PretrainedError(
    f"{where}: expected weights of a {type(model).__name__}, got those of a"
    f" {family}"
  )


def _of_head(dialect: Dialect, name: str) -> bool:
  """Whether a tensor belongs to a task's head instead of the body."""
  names = {
    theirs
    for theirs, ours, *_ in _leaves(dialect)
    if any(ours.fullmatch(path) for path in _HEAD)
  }
  return name in names or bool(re.fullmatch(dialect.heads, name))


def _check_names(
  model: nnx.Module,
  dialect: Dialect,
  places: Mapping[str, Place],
  tensors: Mapping[str, Tensor],
  where: str,
  wording: Wording,
) -> None:
  """Raises PretrainedError at the first missing or unexpected tensor."""
  places_of = {n: path for path, place in places.items() for n in place.names}
  for name in sorted(tensors.keys() - places_of.keys()):
    _check_extra(model, dialect, tensors, name, where, wording)
  for name, path in places_of.items():
    if name not in tensors:
      raise PretrainedError(
        f"{where}: {name} is missing, which holds {path} of the"
        f" {type(model).__name__}{_fix(model, path, wording, lacks=True)}"
      )


def _fix(
  model: Any, path: str, wording: Wording, *, lacks: bool | None = None
) -> str:
  """The option to set for a parameter that does not fit, or "".

  Args:
    model: Model that the parameter is of.
    path: Path of the parameter, or a regular expression of it.
    wording: How the message names options.
    lacks: Whether the file lacks it; False if the model does, None if both have
      it with different shapes.
  """
  options: dict[str, Any] = {}
  if path.startswith("head/") and lacks and hasattr(model, "tied"):
    options = {"tied": True}
  elif path in _HEAD:
    return f"; {wording(head='fresh')} keeps the model's own head"
  elif path in ("shared/embedding", "embed/embedding"):
    return (
      f"; set {wording(vocab=...)} to the size of the file's vocabulary, and"
      " use that one"
    )
  elif lacks is not None and path.startswith("cls_token"):
    options = {"pool": "gap" if lacks else "cls"}
  elif lacks is not None and path.startswith("pos_embed"):
    options = {"pos": "sincos" if lacks else "learned"}
  elif lacks is not None and re.search(r"attn/[qkv]/bias$", path):
    options = {"qkv_bias": not lacks}
  elif lacks is not None and "mlp/wi" in path:
    options = {"gated": ("wi_" in path) != lacks}
  return f"; set {wording(**options)}" if options else ""


def _check_extra(
  model: nnx.Module,
  dialect: Dialect,
  tensors: Mapping[str, Tensor],
  name: str,
  where: str,
  wording: Wording,
) -> None:
  """Raises PretrainedError unless a further tensor is a known duplicate."""
  for pattern, why in dialect.refused:
    if re.fullmatch(pattern, name):
      raise PretrainedError(f"{where}: {name} belongs to {why}")
  for pattern, check in dialect.duplicates:
    match = re.fullmatch(pattern, name)
    if match is None:
      continue
    if check and not check(model, tensors, name, **match.groupdict()):
      raise PretrainedError(
        f"{where}: unexpected value of {name} for this {type(model).__name__}:"
        f" {dialect.hint(wording)}"
      )
    return
  hint = ""
  if _of_head(dialect, name):
    hint = f"; {wording(head='fresh')} ignores it"
  else:
    for theirs, ours, *_ in _leaves(dialect):
      if _pattern(theirs).fullmatch(name):
        hint = _fix(model, ours.pattern, wording, lacks=False)
  raise PretrainedError(
    f"{where}: unexpected tensor {name} {list(tensors[name].shape)}: this"
    f" {type(model).__name__} has no such parameter; check its sizes and"
    f" options{hint}"
  )


def _check_shapes(
  model: nnx.Module,
  place: Place,
  path: str,
  shape: Size,
  tensors: Mapping[str, Tensor],
  where: str,
  wording: Wording,
) -> None:
  want = place.shape(shape, _heads(model))
  for name in place.names:
    got = tensors[name]
    if got.dtype.name not in _FLOATS:
      raise PretrainedError(
        f"{where}: expected floating-point weights, got {name} of dtype"
        f" {got.dtype}"
      )
    if got.shape != want:
      raise PretrainedError(
        f"{where}: {name} has shape {list(got.shape)}, but {path}"
        f" {list(shape)} needs {list(want)}{_fix(model, path, wording)}"
      )


def _patch_kernel(
  model: Any,
  place: Place,
  shape: Size,
  tensors: Mapping[str, Tensor],
  convert: bool,
  where: str,
  wording: Wording,
) -> np.ndarray:
  """The patch kernel, converted to the channels of the model if asked for.

  A gray image stands for three equal channels, so three kernels are added up.
  One kernel is repeated in thirds.
  """
  height, width, channels, features = shape
  for other in {1: (3,), 3: (1,)}.get(channels, ()):
    stored = (height, width, other, features)
    theirs = place.shape(stored, _heads(model))
    if tensors[place.names[0]].shape != theirs:
      continue
    if not convert:
      raise PretrainedError(
        f"{where}: expected a patch kernel for images with {channels}"
        f" channel{'s' * (channels > 1)}, got one for {other}; set"
        f" {wording(convert_channels=True)} to convert it"
      )
    _check_shapes(model, place, _PATCHES, stored, tensors, where, wording)
    kernel = place.array(tensors, stored).astype(np.float32)
    return (
      kernel.sum(2, keepdims=True)
      if channels == 1
      else (np.repeat(kernel / 3, 3, axis=2))
    )
  _check_shapes(model, place, _PATCHES, shape, tensors, where, wording)
  return place.array(tensors, shape)


def _positions(
  model: Any,
  stored: Tensor,
  of_class: bool,
  resize: bool,
  where: str,
  wording: Wording,
) -> np.ndarray:
  """Position embeddings [1, tokens, width] for the model's grid.

  Files that add positions before the class token have none for it, which is
  then zero. `of_class` marks dialects that always have one.
  """
  height, width = model.grid
  extra = model.tokens - height * width
  if len(stored.shape) != 3 or stored.shape[::2] != (1, model.width):
    raise PretrainedError(
      f"{where}: expected position embeddings of shape"
      f" {[1, model.tokens, model.width]} for {_POSITIONS}, got"
      f" {list(stored.shape)}"
    )
  count = stored.shape[1]
  if count == model.tokens:
    return stored.read()
  without = count == height * width or math.isqrt(count) ** 2 == count
  kept = extra if of_class or not without else 0
  grid, side = count - kept, math.isqrt(count - kept)
  if grid != height * width and not (resize and side**2 == grid):
    raise PretrainedError(
      f"{where}: expected positions of {model.tokens} tokens (a grid of"
      f" {height} x {width}), got {count}; set {wording(image_size=...)} as in"
      f" the file, or {wording(resize_positions=True)} for a square grid"
    )
  table = stored.read()
  first = np.zeros((extra, model.width), table.dtype)
  first[:kept] = table[0, :kept]
  rest = table[0, kept:]
  if grid != height * width:
    rest = resized(rest.reshape(side, side, -1), (height, width))
  return np.concatenate([first, rest.reshape(-1, model.width)])[None]


def resized(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Interpolates [height, width, channels] linearly to another grid.

  Corners are aligned, as in the reference implementation.

  >>> resized(np.array([[[0.0], [2.0]]]), (1, 3))[0, :, 0].tolist()
  [0.0, 1.0, 2.0]
  """
  for axis, size in enumerate(grid):
    at = np.linspace(0, table.shape[axis] - 1, size)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, table.shape[axis] - 1)
    share = np.expand_dims(at - low, tuple({0, 1, 2} - {axis}))
    below, above = (np.take(table, i, axis=axis) for i in (low, high))
    table = below * (1 - share) + above * share
  return table
