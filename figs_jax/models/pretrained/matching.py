"""Matches the tensors of a file with the parameters of a model, both ways."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from figs_jax.models.pretrained import (
  bert,
  deit,
  dinov2,
  gpt2,
  llama,
  resnet,
  swin_v2,
  t5,
  vit,
)
from figs_jax.models.pretrained.files import PretrainedError, Tensor
from figs_jax.models.pretrained.names import (
  KINDS,
  Dialect,
  Layout,
  Size,
  Wording,
  arguments,
)
from figs_jax.models.pretrained.recognition import (
  check_foreign,
  pattern,
  spoken,
)
from figs_jax.models.pretrained.resizing import positions
from figs_jax.nn import input_patterns

# By the name of the model's class; files are written in the first dialect that
# has all its parameters.
TABLES: dict[str, tuple[Dialect, ...]] = {
  "ResNet": resnet.DIALECTS,
  "BERT": bert.DIALECTS,
  "GPT2": gpt2.DIALECTS,
  "Llama": llama.DIALECTS,
  "SwinV2": swin_v2.DIALECTS,
  "T5": t5.DIALECTS,
  "ViT": (*vit.DIALECTS, *dinov2.DIALECTS, *deit.DIALECTS, *vit.OTHERS),
}
_HEAD = re.compile(r"(?:head|head_dist|token_head)/.*")
_POOLER = re.compile(r"pooler/\w+")  # which not every file of a BERT has
_POSITIONS = "pos_embed"
# Kernels of image channels, [height, width, channels, width].
_PATCHES = ("patch_embed/kernel", "stem_conv/kernel")
_FLOATS = ("float64", "float32", "float16", "bfloat16")


Keep = Callable[[str, np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Place:
  """The tensors of a file that hold a parameter.

  Attributes:
    names: Name of the tensor, or of each block's tensor for a stacked one.
    layout: Layout of each tensor.
    stacked: Whether axis 0 of the parameter is that of the blocks.
    part: (index, number) if it is one of so many equal parts of the tensor;
      None for all of it.
  """

  names: tuple[str, ...]
  layout: Layout
  stacked: bool
  part: tuple[int, int] | None

  def shape(self, ours: Size, heads: int) -> Size:
    """The shape of one tensor for a parameter of this shape."""
    sizes = list(self.layout.of(ours[1:] if self.stacked else ours, heads))
    if self.part is not None:
      sizes[self.layout.parts] *= self.part[1]
    return tuple(sizes)

  def array(self, tensors: Mapping[str, Tensor], ours: Size) -> np.ndarray:
    """Reads the parameter."""
    one = ours[1:] if self.stacked else ours
    layers = []
    for name in self.names:
      value = tensors[name].read()
      if self.part is not None:
        index, count = self.part
        value = np.split(value, count, self.layout.parts)[index]
      layers.append(self.layout.to_ours(value, one))
    return np.stack(layers) if self.stacked else layers[0]


def parameters_of(model: nnx.Module) -> dict[str, nnx.Variable]:
  """The model's own parameters and batch statistics, by path."""
  return {
    "/".join(map(str, path)): node
    for path, node in nnx.iter_graph(model)
    if isinstance(node, (nnx.Param, nnx.BatchStat))
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
  return {name: each.read() for name, each in to_publish(model).items()}


def to_publish(
  model: nnx.Module, on_host: Callable[[Any], np.ndarray] = np.asarray
) -> dict[str, Tensor]:
  """The tensors of `published`, each made when it is read.

  Args:
    model: Model of our families.
    on_host: Function that fetches an array of the model, or one block's part of
      a stacked one.

  Raises:
    PretrainedError: If the model's family is unknown.

  >>> from figs_jax import models
  >>> model = models.create(
  ...   "vit", "custom/2", width=8, depth=1, heads=2, image_size=4)
  >>> kernel = to_publish(model)["classifier.weight"]
  >>> kernel.shape, kernel.read().shape
  ((1000, 8), (1000, 8))
  """
  dialect, heads = written(model), _heads(model)
  parts: dict[str, dict[int, Tensor]] = {}
  axes: dict[str, int] = {}
  for path, leaf in parameters_of(model).items():
    shape = tuple(leaf.shape)
    place = _place(dialect, path, shape)
    for block, name in enumerate(place.names):
      index = block if place.stacked else ...

      def read(leaf=leaf, index=index, layout=place.layout) -> np.ndarray:
        return layout.to_theirs(on_host(leaf[index]), heads)

      size = place.layout.of(shape[1:] if place.stacked else shape, heads)
      number = 0 if place.part is None else place.part[0]
      each = parts.setdefault(name, {})
      each[number] = Tensor(size, np.dtype(leaf.dtype), read)
      axes[name] = place.layout.parts
  tensors = {
    name: _joined([each[i] for i in sorted(each)], axes[name])
    for name, each in parts.items()
  }
  # PyTorch's layer expects its counter, which nothing reads.
  counted = ("running_var", "num_batches_tracked")
  counter = np.zeros((), np.int64)
  return tensors | {
    name.replace(*counted): Tensor((), counter.dtype, lambda: counter)
    for name in tensors
    if name.endswith(counted[0])
  }


def _joined(parts: list[Tensor], axis: int) -> Tensor:
  """One tensor of several along an axis."""
  if len(parts) == 1:
    return parts[0]
  shape = list(parts[0].shape)
  shape[axis] = sum(part.shape[axis] for part in parts)
  return Tensor(
    tuple(shape),
    parts[0].dtype,
    lambda: np.concatenate([part.read() for part in parts], axis),
  )


def matched(
  model: nnx.Module,
  tensors: Mapping[str, Tensor],
  *,
  head: str = "strict",
  resize_positions: bool = False,
  interpolation: str = "linear",
  convert_channels: bool = False,
  where: str,
  wording: Wording = arguments,
  keep: Keep | None = None,
) -> dict[str, Any]:
  """The model's parameters by path, from named tensors.

  Args:
    model: Model, possibly abstract.
    tensors: Tensors from `opened`, or from another model's `published`.
    head: "strict" or "fresh", see `pretrained.load`.
    resize_positions: Whether to interpolate positions, see `pretrained.load`.
    interpolation: How to interpolate them, see `pretrained.load`.
    convert_channels: Whether to convert the patch kernel between one and three
      channels, see `pretrained.load`.
    where: Source of the tensors, for error messages.
    wording: How error messages name the options to set.
    keep: Function of the path and the array of a parameter, whose result takes
      the place of the array; only one array is held at a time. Defaults to the
      arrays themselves.

  Raises:
    PretrainedError: If the tensors do not fit, see `pretrained.load`.
  """
  if head not in ("strict", "fresh"):
    raise PretrainedError(f"Expected head of 'strict' or 'fresh', got {head!r}")
  tensors = without_training_state(tensors)
  dialect = _spoken(model, tensors, where)
  tensors = with_aliases(dialect, tensors, where)
  places = {}
  for path, leaf in parameters_of(model).items():
    if head == "fresh" and _HEAD.fullmatch(path):
      continue
    if _lacks(dialect, path):
      raise PretrainedError(
        f"{where}: files of {dialect.name} have no {path}, unlike this"
        f" {type(model).__name__}{_fix(dialect, path, wording, lacks=True)}"
      )
    places[path] = _place(dialect, path, tuple(leaf.shape))
  if head == "fresh":
    places = {
      path: place
      for path, place in places.items()
      if not _POOLER.fullmatch(path) or set(place.names) <= tensors.keys()
    }
    tensors = {
      name: tensor
      for name, tensor in tensors.items()
      if not _of_head(dialect, name)
    }
  _check_names(model, dialect, places, tensors, where, wording)
  weights = {}
  leaves = parameters_of(model)
  heads_last = sorted(places, key=lambda path: bool(_HEAD.fullmatch(path)))
  for path in heads_last:
    place, leaf = places[path], leaves[path]
    shape = tuple(leaf.shape)
    if path == _POSITIONS:
      stored = tensors[place.names[0]]
      of_class = dialect.class_position
      value = positions(
        model,
        stored,
        of_class,
        resize_positions,
        interpolation,
        where,
        wording,
      )
    elif path in _PATCHES:
      value = _patch_kernel(
        model,
        dialect,
        place,
        path,
        shape,
        tensors,
        convert_channels,
        where,
        wording,
      )
    else:
      _check_shapes(model, dialect, place, path, shape, tensors, where, wording)
      value = place.array(tensors, shape)
    # The model keeps its own dtypes.
    value = value.astype(leaf.dtype)
    weights[path] = value if keep is None else keep(path, value)
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


def with_aliases(
  dialect: Dialect, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
  """The tensors with those that a file has under another name only.

  Raises:
    PretrainedError: If tensors that stand for the same one differ.
  """
  result = dict(tensors)
  for name, others in dialect.aliases:
    present = [other for other in others if other in tensors]
    if name in tensors or not present:
      continue
    first, *rest = present
    for other in rest:
      if not same_tensor(tensors[first], tensors[other]):
        raise PretrainedError(
          f"{where}: expected {first} and {other} to be equal, as both stand"
          f" for {name}, which is missing; add {name} to the file"
        )
    result[name] = tensors[first]
  return result


def same_tensor(a: Tensor, b: Tensor) -> bool:
  """Whether two tensors have the same shape and values."""
  return a.shape == b.shape and np.array_equal(a.read(), b.read())


@functools.cache
def _leaves(
  dialect: Dialect,
) -> tuple[tuple[str, re.Pattern[str], Layout, tuple[int, int] | None], ...]:
  """(their name, our path as a regex, layout, part) of every tensor."""
  rows = []
  for kind, theirs, paths in dialect.rows:
    parts = (paths,) if isinstance(paths, str) else paths
    for number, ours in enumerate(parts):
      for their_end, our_end, layout in KINDS[kind]:
        path = re.escape(ours + our_end)
        path = path.replace(r"/\{i\}", r"(?:/(?P<i>\d+))?")
        path = path.replace(r"\{s\}", r"(?P<s>\d+)")
        part = (number, len(parts)) if len(parts) > 1 else None
        rows.append((theirs + their_end, re.compile(path), layout, part))
  return tuple(rows)


def place_of(model: nnx.Module, path: str, shape: Size) -> Place:
  """The place of a parameter in Hugging Face files.

  Raises:
    PretrainedError: If the model's family or the parameter is unknown.
  """
  return _place(written(model), path, shape)


def written(model: nnx.Module) -> Dialect:
  """The dialect that files of a model are written in.

  Raises:
    PretrainedError: If the model's family is unknown, or no dialect has all its
      parameters.
  """
  dialects = _dialects(model)
  if pruned := input_patterns(model):
    path, nm = next(iter(pruned.items()))
    raise PretrainedError(
      f"{path}: expected whole inputs, as other libraries have them, got inputs"
      f" pruned to {nm}; write --format packed, or take them off with"
      " nn.prune_inputs(model, '.*: dense')"
    )
  paths = list(parameters_of(model))
  for dialect in dialects:
    if not any(_lacks(dialect, path) for path in paths):
      return dialect
  path = next(path for path in paths if _lacks(dialects[0], path))
  raise PretrainedError(
    f"{type(model).__name__}: expected options that published files have, got"
    f" a model with {path} beside its others, which no such file has together"
  )


@functools.cache
def _lacks(dialect: Dialect, path: str) -> bool:
  """Whether a dialect has no name for a parameter."""
  return not any(ours.fullmatch(path) for _, ours, *_ in _leaves(dialect))


def _place(dialect: Dialect, path: str, shape: Size) -> Place:
  for theirs, ours, layout, part in _leaves(dialect):
    match = ours.fullmatch(path)
    if match is None:
      continue
    numbers = match.groupdict()
    stage = int(numbers.get("s") or 0)
    stacked = "i" in numbers and numbers["i"] is None
    blocks = range(shape[0]) if stacked else [int(numbers.get("i") or 0)]
    names = tuple(
      theirs.format(**{"i": i, "i+1": i + 1, "s": stage, "s+1": stage + 1})
      for i in blocks
    )
    return Place(names, layout, stacked, part)
  raise PretrainedError(f"{path}: unknown parameter in files of {dialect.name}")


def _spoken(
  model: nnx.Module, tensors: Mapping[str, Tensor], where: str
) -> Dialect:
  """The dialect of a file, see `recognition.spoken`."""
  leaves = parameters_of(model)
  wanted = {
    dialect: {
      name
      for path, leaf in leaves.items()
      if not _lacks(dialect, path)
      for name in _place(dialect, path, tuple(leaf.shape)).names
    }
    for dialect in _dialects(model)
  }
  return spoken(type(model).__name__, TABLES, wanted, tensors, where)


def _of_head(dialect: Dialect, name: str) -> bool:
  """Whether a tensor belongs to a task's head instead of the body."""
  names = {
    theirs
    for theirs, ours, *_ in _leaves(dialect)
    if _HEAD.fullmatch(ours.pattern)
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
  extra = sorted(tensors.keys() - places_of.keys())
  check_foreign(dialect, extra, where)
  for name in extra:
    _check_extra(model, dialect, tensors, name, where, wording)
  for name, path in places_of.items():
    if name not in tensors:
      raise PretrainedError(
        f"{where}: {name} is missing, which holds {path} of the"
        f" {type(model).__name__}{_fix(dialect, path, wording, lacks=True)}"
      )


def _fix(
  dialect: Dialect, path: str, wording: Wording, *, lacks: bool | None = None
) -> str:
  """The option to set for a parameter that does not fit, or "".

  Args:
    dialect: Dialect of the file.
    path: Path of the parameter, or a regular expression of it.
    wording: How the message names options.
    lacks: Whether the file lacks it; False if the model does, None if both have
      it with different shapes.
  """
  for fix in dialect.fixes:
    if not re.search(fix.path, path):
      continue
    side = {True: fix.file_lacks, False: fix.model_lacks, None: fix.shape}[
      lacks
    ]
    if "vocab" in side:
      return (
        f"; set {wording(**side)} to the size of the file's vocabulary, and use"
        " that one"
      )
    if side:
      return f"; set {wording(**side)}"
  if _HEAD.fullmatch(path) or _POOLER.fullmatch(path):
    return f"; {wording(head='fresh')} keeps the model's own head"
  return ""


def _check_extra(
  model: nnx.Module,
  dialect: Dialect,
  tensors: Mapping[str, Tensor],
  name: str,
  where: str,
  wording: Wording,
) -> None:
  """Raises PretrainedError unless a further tensor is a known duplicate."""
  for regex, check in dialect.duplicates:
    match = re.fullmatch(regex, name)
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
      if pattern(theirs).fullmatch(name) and not hint:
        hint = _fix(dialect, ours.pattern, wording, lacks=False)
  raise PretrainedError(
    f"{where}: unexpected tensor {name} {list(tensors[name].shape)}: this"
    f" {type(model).__name__} has no such parameter; check its sizes and"
    f" options{hint}"
  )


def _check_shapes(
  model: nnx.Module,
  dialect: Dialect,
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
        f" {list(shape)} needs {list(want)}{_fix(dialect, path, wording)}"
      )


def _patch_kernel(
  model: Any,
  dialect: Dialect,
  place: Place,
  path: str,
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
    _check_shapes(model, dialect, place, path, stored, tensors, where, wording)
    kernel = place.array(tensors, stored).astype(np.float32)
    return (
      kernel.sum(2, keepdims=True)
      if channels == 1
      else (np.repeat(kernel / 3, 3, axis=2))
    )
  _check_shapes(model, dialect, place, path, shape, tensors, where, wording)
  return place.array(tensors, shape)
