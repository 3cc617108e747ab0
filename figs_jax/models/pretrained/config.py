"""The config.json of a model of `transformers`, written and read.

What one of the two libraries lacks is refused by name: the other one would load
the weights without a word and compute something else.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from figs_jax import nn
from figs_jax.core.tree import MaskedKernel
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
from figs_jax.models.pretrained.keys import Given, Table, text
from figs_jax.models.pretrained.matching import place_of, published, written
from figs_jax.models.pretrained.names import Wording, arguments

# By the name of the model's class: a table per model of the library.
TABLES: dict[str, tuple[Table, ...]] = {
  "ResNet": (resnet.CONFIG,),
  "BERT": (bert.CONFIG,),
  "GPT2": (gpt2.CONFIG,),
  "Llama": (llama.CONFIG,),
  "SwinV2": (swin_v2.CONFIG,),
  "T5": (t5.CONFIG,),
  "ViT": (*vit.CONFIGS, *dinov2.CONFIGS, deit.CONFIG),
}
NAME = "config.json"
_MOST_BYTES = 2**24  # labels of 100,000 classes take 5 MB


@dataclasses.dataclass(frozen=True)
class Published:
  """The contents of a model directory for `from_pretrained`.

  Attributes:
    tensors: Weights by the library's names, in its layout.
    leaves: Pattern and group axes of the sparse weights, by the same names.
    config: Contents of config.json.
  """

  tensors: dict[str, np.ndarray]
  leaves: dict[str, MaskedKernel]
  config: dict[str, Any]


def for_transformers(model: nnx.Module) -> Published:
  """Converts a model to the names and layouts of `transformers`.

  Kernels are taken as stored; after `finished()` they have their zeros.

  Args:
    model: A BERT, ViT, Swin-V2 or T5, sparse or dense, scanned or not.

  Raises:
    PretrainedError: If the model has another family or an option that the
      library lacks, which the message names.

  >>> from figs_jax import models
  >>> model = models.create(
  ...   "vit", "custom/2", width=8, depth=1, heads=2, image_size=4)
  >>> converted = for_transformers(nn.sparsify(model, "ff: 1:8"))
  >>> converted.config["architectures"], converted.config["hidden_size"]
  (['ViTForImageClassification'], 8)
  >>> converted.leaves["vit.encoder.layer.0.intermediate.dense.weight"]
  MaskedKernel(shape=(32, 8), pattern=NM(n=1, m=8), axis=(1,))
  """
  name = type(model).__name__
  if name not in TABLES:
    raise PretrainedError(
      f"Expected a model that transformers has ({', '.join(TABLES)}), got"
      f" {name}"
    )
  table = _table_of(model)
  config = table.write(model)
  tensors = published(model)
  dtype = next(iter(tensors.values())).dtype
  tensors |= {
    path: np.asarray(value, dtype)
    for path, value in table.constants(model).items()
  }
  if "id2label" in config:
    config["label2id"] = {
      label: int(number) for number, label in config["id2label"].items()
    }
  config["dtype"] = dtype.name
  return Published(tensors, published_leaves(model), config)


def _table_of(model: Any) -> Table:
  """The table of the library's model that computes what ours does.

  Raises:
    PretrainedError: If the library has none.
  """
  dialect = written(model).name
  tables = TABLES[type(model).__name__]
  candidates = [t for t in tables if dialect in t.dialects or not t.dialects]
  if not candidates:
    raise PretrainedError(
      f"Expected a {type(model).__name__} that transformers has, got one whose"
      f" options only {dialect} has together; export another format"
    )
  for table in candidates:
    if not _differences(table, model):
      return table
  table = min(candidates, key=lambda each: len(_differences(each, model)))
  wanted, got = {}, {}
  for name, value in _differences(table, model).items():
    wanted[name], got[name] = value, getattr(model, name)
  own = table.architecture
  raise PretrainedError(
    f"{own if isinstance(own, str) else own(model)}: expected"
    f" {arguments(**wanted)}, the only model that it has, got"
    f" {arguments(**got)}; train with that or export another format"
  )


def _differences(table: Table, model: Any) -> dict[str, Any]:
  """The implied options of a table that a model lacks."""
  return {
    name: value
    for name, value in table.implied.items()
    if not _same(getattr(model, name), value)
  }


def published_leaves(model: nnx.Module) -> dict[str, MaskedKernel]:
  """Shape, pattern and group axes of the sparse tensors of `published`.

  Raises:
    PretrainedError: If the model's family is unknown, or kernels that share a
      tensor have different patterns.
  """
  leaves: dict[str, MaskedKernel] = {}
  parts: dict[str, int] = {}  # so many are sparse
  numbers: dict[str, int] = {}
  for path, leaf in nn.masked_leaves(model).items():
    place = place_of(model, path, leaf.shape)
    ours = leaf.shape[1:] if place.stacked else leaf.shape
    axes = (leaf.axis,) if isinstance(leaf.axis, int) else leaf.axis
    order = place.layout.order or tuple(range(len(ours)))
    # Counted from the end: a stacked kernel's axes are those of one block.
    turned = tuple(order.index(a % len(ours)) for a in axes)
    kernel = MaskedKernel(place.shape(leaf.shape, 1), leaf.pattern, turned)
    for name in place.names:
      if leaves.setdefault(name, kernel) != kernel:
        raise _packed(name)
      parts[name] = parts.get(name, 0) + 1
      numbers[name] = place.part[1] if place.part else 1
  for name, count in parts.items():
    if count != numbers[name]:
      raise _packed(name)
  return leaves


def _packed(name: str) -> PretrainedError:
  return PretrainedError(
    f"{name}: expected one pattern for all kernels in this tensor, such as gate"
    " and up, got several; give them the same rule or export another format"
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of a model as a source of weights gives them.

  Attributes:
    where: Path of the source, for error messages.
    family: Name of the model's class, as in "ViT".
    options: Options by name.
  """

  where: str
  family: str
  options: Mapping[str, Given]

  @classmethod
  def of_model(cls, model: Any, where: str) -> Config:
    """The options of a model, in the place of those of a file."""
    family = type(model).__name__
    names = {
      name: None
      for table in TABLES[family]
      for name in (*(key.option for key in table.keys), *table.implied)
      if name not in _training(family)
    }
    return cls(
      where, family, {n: Given("", None, getattr(model, n)) for n in names}
    )

  def completed(
    self, given: Mapping[str, Any], *, resize_positions: bool = False
  ) -> dict[str, Any]:
    """Options of a model, those that are not given as in the source.

    Args:
      given: Options that are set; they may differ, see `check`.
      resize_positions: Same as in `check`. A Swin-V2 for other sizes has the
        windows of the source as `pretrained_windows`.

    >>> side = lambda value: Given("", None, value)
    >>> source = Config("", "SwinV2", {"window": side(8), "patch": side(4),
    ...   "image_size": side((256, 256)), "pretrained_windows": side((0, 0))})
    >>> source.completed({"window": 16}, resize_positions=True)
    {'window': 16, 'patch': 4, 'image_size': (256, 256), 'pretrained_windows':\
 (8, 8)}
    """
    own = {name: option.value for name, option in self.options.items()}
    options = own | dict(given)
    if resize_positions and self.family == "SwinV2":
      image = tuple(np.broadcast_to(options["image_size"], 2).tolist())
      if (image, options["window"]) != (own["image_size"], own["window"]):
        options["pretrained_windows"] = given.get(
          "pretrained_windows", self._windows()
        )
    return options

  def check(
    self,
    model: Any,
    *,
    head: str = "strict",
    resize_positions: bool = False,
    interpolation: str = "linear",
    convert_channels: bool = False,
    wording: Wording = arguments,
  ) -> None:
    """Compares the options that change the logits with those of a model.

    Args:
      model: Model, possibly abstract.
      head: "fresh" leaves the number of classes out.
      resize_positions: Whether the image size may differ, and for a Swin-V2 the
        window, if its `pretrained_windows` are the windows of the source.
      interpolation: How they are interpolated, which is not compared.
      convert_channels: Whether the number of channels may differ.
      wording: How the message names the options to set.

    Raises:
      PretrainedError: If options differ; the message names all of them, with
        both values.
    """
    del interpolation
    trains = _training(self.family)
    wanted = {n: g for n, g in self.options.items() if n not in trains}
    if head == "fresh":
      for name in ("num_classes", "pool"):  # what only the head reads
        wanted.pop(name, None)
    if getattr(model, "output", "classes") != "classes":
      wanted.pop("num_classes", None)
    if convert_channels:
      wanted.pop("in_channels", None)
    if resize_positions:
      wanted |= self._resized(model)
    differ, fixes = [], {}
    for name, given in wanted.items():
      got = getattr(model, name)
      if given.value is ... or _same(got, given.value):
        continue
      key = ""
      if isinstance(given.theirs, dict):  # names of classes
        key = f" ({given.key} of {len(given.theirs)})"
      elif given.key:
        key = f" ({given.key}={text(given.theirs)})"
      differ.append(f"{name}={given.value!r}{key}, got {got!r}")
      fixes |= _fix(name, given.value)
    if differ:
      raise PretrainedError(
        f"{self.where}: these weights are of a {self.family} with another"
        f" function: expected {'; '.join(differ)}; set {wording(**fixes)}"
        + f", or {wording(resize_positions=True)}"
        * ("image_size" in fixes)
      )

  def _resized(self, model: Any) -> dict[str, Given]:
    """What a model for images of another size must have."""
    free = Given("", None, ...)
    result = {"image_size": free}
    if self.family == "SwinV2":
      own = self.options
      same = all(
        getattr(model, name) == own[name].value
        for name in ("image_size", "window")
      )
      if not same:
        sides = Given("", None, self._windows())
        result |= {"window": free, "pretrained_windows": sides}
    return result

  def _windows(self) -> tuple[int, ...]:
    """The window that the position bias of each stage was trained with."""
    own = {name: option.value for name, option in self.options.items()}
    rows = own["image_size"][0] // own["patch"]
    return tuple(
      side or min(own["window"], rows >> i)
      for i, side in enumerate(own["pretrained_windows"])
    )


def _training(family: str) -> set[str]:
  """Options that matter in training only, or that the tensors say."""
  return {
    name
    for table in TABLES[family]
    for name in (*table.free, *(k.option for k in table.keys if k.trains))
  }


def _fix(name: str, value: Any) -> dict[str, Any]:
  """The options to set if one differs."""
  if name == "num_classes":
    return {"head": "fresh"}
  if name == "in_channels":
    return {"convert_channels": True}
  return {name: value}


def _same(a: Any, b: Any) -> bool:
  if isinstance(a, float) and isinstance(b, float):
    return math.isclose(a, b, rel_tol=1e-6)  # digits of a float32
  return a == b


def read_config(
  path: str | Path, tensors: Mapping[str, Tensor], family: str | None = None
) -> Config | None:
  """Reads the config.json of `transformers` that lies beside weights.

  Args:
    path: File of weights or its directory.
    tensors: The weights.
    family: Name of the class of the model to load. None takes that of the file.

  Returns:
    The options; None without a config.json, or for one of another program.

  Raises:
    PretrainedError: If the file is damaged, of another family, or asks for what
      ours lacks.
  """
  path = Path(path)
  place = (path if path.is_dir() else path.parent) / NAME
  if path.suffix == ".npz" or not place.is_file():
    return None
  try:
    fields = _fields(place)
    families = {
      kind: (name, table)
      for name, tables in TABLES.items()
      for table in tables
      for kind in table.types
    }
    kind = fields.get("model_type")
    if kind is None:
      if family is None:
        return None
      table, *_ = TABLES[family]
      if not any(key.name in fields for key in table.keys):
        return None
      own = family
    elif not isinstance(kind, str) or kind not in families:
      raise PretrainedError(
        f"model_type: expected one of {', '.join(sorted(families))}, got"
        f" {text(kind)}"
      )
    else:
      own, table = families[kind]
    if family not in (None, own):
      raise PretrainedError(
        f"model_type: expected weights of a {family}, got those of a {own}"
        f" ({text(kind)})"
      )
    options = table.read(fields, tensors)
    for name in ("depth", "decoder_depth", "depths"):
      if name in options:
        _check_depth(options[name], len(tensors))
    return Config(str(place), own, options)
  except PretrainedError as error:
    raise PretrainedError(f"{place}: {error}") from error


def _check_depth(given: Given, tensors: int) -> None:
  """Raises if a model would be built that has more blocks than the file."""
  depths = given.value if isinstance(given.value, tuple) else (given.value,)
  if not all(0 < depth <= tensors for depth in depths):
    raise PretrainedError(
      f"{given.key}: expected 1 to {tensors} blocks, the number of tensors, got"
      f" {text(given.theirs)}"
    )


def _fields(place: Path) -> dict[str, Any]:
  try:
    size = place.stat().st_size
    if size > _MOST_BYTES:
      raise PretrainedError(f"expected at most {_MOST_BYTES} bytes, got {size}")
    fields = json.loads(place.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    if isinstance(error, PretrainedError):
      raise
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise PretrainedError(
      f"not a JSON file ({reason}); fetch it again"
    ) from error
  if not isinstance(fields, dict):
    raise PretrainedError(f"expected a JSON object, got {text(fields)}")
  return fields
