"""Model classes of one's own, each a family under its own name.

`register` takes a class such as

  class Net(nnx.Module):
    def __init__(self, num_classes, width: int = 32, *, rngs): ...
    def __call__(self, images): ...  # [batch, h, w, channels] -> logits

It is built by keywords: `rngs`, and of `num_classes`, `image_size` and
`in_channels` those that it takes, which follow from the data. Its other
arguments are options (`config.model.width`) if their type is known, from their
default or their annotation; the remaining ones keep their default.

Nothing here is read from a checkpoint: a run saves the name of the class, its
file and the SHA-256 of that file, and the class is registered again by whoever
reads the run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
import traceback
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core.legal import (
  DTYPES,
  UNSET,
  Either,
  Integer,
  Legal,
  Number,
  Several,
  Typed,
  Unchecked,
)
from figs_jax.core.rules import Rules
from figs_jax.models.traced import traced_products

Kind = TypeVar("Kind")
# Arguments that follow from the data, with the values that --model assumes.
FROM_DATA = {"num_classes": 1000, "image_size": 224, "in_channels": 3}
PYTHON = "python"  # in the place of the file of a class without one
# Types of options, with their legal values.
LEGAL: dict[type, Legal] = {
  bool: Typed(bool),
  int: Integer("[-1048576, 1048576]"),
  float: Number("[-1e30, 1e30]"),
  str: Typed(str),
  tuple: Several(Unchecked("checked by the class")),
}
_SHAPE = "_image_shape"  # attribute, which survives nnx.split and nnx.merge
_EXAMPLE = "def __init__(self, num_classes, *, rngs)"


@dataclasses.dataclass(frozen=True)
class OwnModel:
  """A registered class.

  Attributes:
    kind: The class.
    source: Its file and name, as in "/home/me/mine.py:Net".
    sha256: SHA-256 of that file in hexadecimal; "" without a file.
  """

  kind: type
  source: str
  sha256: str

  @property
  def name(self) -> str:
    """Name of the class."""
    return self.kind.__name__

  @property
  def options(self) -> dict[str, Any]:
    """Options with their defaults, or the type of those without one."""
    return {name: default for name, (default, _) in _options(self.kind).items()}

  @property
  def legal(self) -> dict[str, Legal]:
    """Legal values of the options."""
    legal: dict[str, Legal] = {}
    for name, (default, kind) in _options(self.kind).items():
      each = DTYPES if name == "dtype" else LEGAL[kind]
      unset = isinstance(default, type)
      legal[name] = Either(UNSET, each) if unset else each
    return legal

  def create(self, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """A model of the class.

    Args:
      rngs: Random streams.
      **options: Options, and all of `FROM_DATA`.

    Returns:
      The model. `example_of` knows the shape of its images.

    Raises:
      ValueError: If a required option is missing, or the class raises an error,
        whose line is named.
    """
    known = _parameters(self.kind)
    given = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in options.items()
      if name in known
    }
    if "dtype" in given:
      given["dtype"] = jnp.dtype(given["dtype"])
    for name, parameter in known.items():
      if parameter.default is parameter.empty and name not in given:
        raise ValueError(
          f"{self.name}: expected a value of {name}, which has no default; set"
          f" --config.model.{name}="
        )
    try:
      model = self.kind(**given, rngs=rngs)
    # Whatever it raises is an error of the class or of an option's value.
    except Exception as error:
      raise ValueError(self._located("__init__", error)) from error
    size = options["image_size"]
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    setattr(model, _SHAPE, (*sides, options["in_channels"]))
    return model

  def dtype(self, model: nnx.Module, num_classes: int) -> str:
    """Dtype of the logits, which are checked in both modes.

    Args:
      model: Model from `create`, possibly abstract; in evaluation mode after.
      num_classes: Number of classes that the data have.

    Raises:
      ValueError: If the class cannot be called with images, raises an error
        (whose line is named), or returns anything but logits [batch, classes].
    """
    self._check_call()
    dtype, example = "", _images(getattr(model, _SHAPE), 1)
    for mode in ("train", "eval"):
      getattr(model, mode)()
      try:
        out = nnx.eval_shape(lambda net, x: net(x), model, example)
      # Whatever it raises is an error of the class.
      except Exception as error:
        text = self._located("__call__", error)
        of = f"(from images of {_shape_text(example)})"
        raise ValueError(f"{text} {of}") from error
      wanted = [example.shape[0], num_classes]
      is_array = isinstance(out, jax.ShapeDtypeStruct)
      if not is_array or list(out.shape) != wanted:
        raise ValueError(
          f"{self.name}.__call__: expected logits of shape {wanted}, one per"
          " class of the data, got"
          f" {_shape_text(out) if is_array else type(out).__name__} from images"
          f" of {_shape_text(example)}"
        )
      dtype = out.dtype.name
    return dtype

  def _check_call(self) -> None:
    parameters = inspect.signature(self.kind.__call__).parameters.values()
    _, *given = parameters
    required = [
      p.name
      for p in given
      if p.default is p.empty
      and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    first = given[0].kind if given else None
    keyword = inspect.Parameter.KEYWORD_ONLY
    if len(required) > 1 or first in (None, keyword):
      raise ValueError(
        f"{self.name}.__call__: expected one argument, the images, got"
        f" ({', '.join(required) or 'none'}); dropout and batch norm follow"
        " train() and eval() of nnx.Module"
      )

  def _located(self, method: str, error: Exception) -> str:
    """Method, line and text of an error of the class, in one line."""
    file = source_file(self.kind)
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in frames[::-1] if f.filename == file), None)
    where = "" if line is None else f" ({Path(file).name}, line {line})"
    reason = " ".join(str(error).split()) or "no message"
    return (
      f"{self.name}.{method}{where}: {type(error).__name__}: {reason[:300]}"
    )


def _shape_text(array: Any) -> str:
  return f"{array.dtype} {list(array.shape)}"


def example_of(
  model: nnx.Module, batch: int = 1
) -> jax.ShapeDtypeStruct | None:
  """Images for a model of a registered class; None for other models.

  Args:
    model: Model from `OwnModel.create`, also after it was split and merged.
    batch: Number of images.
  """
  shape = getattr(model, _SHAPE, None)
  return None if shape is None else _images(shape, batch)


def _images(shape: tuple[int, ...], batch: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((batch, *shape), jnp.float32)


def hidden_kernels(model: nnx.Module, example: Any) -> dict[str, str]:
  """The word `hidden` of rules: every kernel but the first and the last.

  The order is that of the products of a forward pass. Depthwise kernels and
  others with one input per output cannot be N:M and are left out.

  Args:
    model: Any NNX module, possibly abstract.
    example: Input of the model.

  Returns:
    {"hidden": regex of paths}.

  Raises:
    ValueError: If `figs_jax.models.traced.traced_products` raises it.

  >>> layers = [nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(3)]
  >>> x = jax.ShapeDtypeStruct((1, 4), jnp.float32)
  >>> hidden_kernels(nnx.Sequential(*layers), x)
  {'hidden': 'layers/1/kernel'}
  """
  products = traced_products(model, example)
  kernels = {p.kernel.path: p.kernel for p in products if p.kernel}
  paths = [
    re.escape(path)
    for path, kernel in list(kernels.items())[1:-1]
    if len(kernel.shape) < 2 or kernel.shape[-2] > 1
  ]
  return {"hidden": "|".join(paths)}


def own_words(model: nnx.Module, pattern: Any) -> dict[str, str]:
  """The words of rules that registered classes have beside their own.

  Args:
    model: Model, which may be of a registered class.
    pattern: Rules or their text. The model is traced only if they have the
      word.

  Raises:
    ValueError: If `hidden_kernels` raises it.
  """
  example = example_of(model)
  keys = dict(Rules.parse(pattern).rules)
  if example is None or "hidden" not in keys:
    return {}
  return hidden_kernels(model, example)


REGISTERED: dict[str, OwnModel] = {}
TAKEN: set[str] = set()  # names of the families, which `figs_jax.models` adds


def register(kind: Kind, source: str = "") -> Kind:
  """Makes a model class known under its name, also as a decorator.

  Configurations of `default_config(recipe, Net)` then have its options, and
  runs that were trained with it can be read.

  Args:
    kind: Subclass of `nnx.Module`; see this module's docstring for what it must
      take.
    source: Its file and name, as in "mine.py:Net". Defaults to the file in
      which Python found it.

  Returns:
    The class.

  Raises:
    ValueError: If it is not a subclass of `nnx.Module`, does not take `rngs`,
      has an argument with neither default nor type, or has the name of a family
      or of a class of another file.

  >>> class Net(nnx.Module):
  ...   def __init__(self, num_classes, width: int = 8, *, rngs):
  ...     self.head = nnx.Linear(width, num_classes, rngs=rngs)
  >>> register(Net).__name__, REGISTERED.pop("Net").options
  ('Net', {'width': 8})
  """
  if not (isinstance(kind, type) and issubclass(kind, nnx.Module)):
    got = f"the class {kind.__name__}" if isinstance(kind, type) else repr(kind)
    raise ValueError(
      f"expected a model class, a subclass of flax.nnx.Module, got {got}"
    )
  if kind.__name__ in TAKEN:
    raise ValueError(
      f"{kind.__name__} is a family of figs_jax; rename the class"
    )
  _options(kind)  # checks the signature
  file = source_file(kind)
  source = source or f"{file or PYTHON}:{kind.__name__}"
  before = REGISTERED.get(kind.__name__)
  if before and _differ(before.source, source):
    raise ValueError(
      f"the name {kind.__name__} is taken by {before.source}, so"
      f" {source} cannot have it; rename one of the classes"
    )
  content = Path(file).read_bytes() if file else None
  sha256 = "" if content is None else hashlib.sha256(content).hexdigest()
  REGISTERED.pop(kind.__name__, None)  # the newest is the last
  REGISTERED[kind.__name__] = OwnModel(kind, source, sha256)
  return kind


def newest() -> str:
  """Name of the class that was registered last.

  Raises:
    ValueError: If there is none.
  """
  if not REGISTERED:
    raise ValueError(
      "expected a model class of your own, got none; add --model_file"
      " FILE:CLASS, as in --model_file mine.py:Net"
    )
  return list(REGISTERED)[-1]


def source_file(kind: type) -> str:
  """Path of the file that defines a class; "" in a notebook."""
  for method in ("__init__", "__call__"):
    function = inspect.unwrap(getattr(kind, method))
    file = getattr(getattr(function, "__code__", None), "co_filename", "")
    if file and Path(file).is_file():
      return str(Path(file).absolute())
  return ""


def missing(name: str, source: str) -> str:
  """A message for a run whose class is not registered.

  Args:
    name: Name of the class.
    source: Its file and name, as the run saved it.

  >>> missing("Net", "mine.py:Net").rpartition("; ")[2]
  'add --model_file mine.py:Net'
  """
  file = source.rpartition(":")[0]
  if file == PYTHON:
    return (
      f"the model of this run is the class {name} of a program; pass it to"
      f" figs_jax.models.register, or add --model_file FILE:{name}"
    )
  return (
    f"the model of this run is the class {name} of {file}; add --model_file"
    f" {source}"
  )


def _differ(one: str, other: str) -> bool:
  """Whether two sources are different files."""
  files = [source.rpartition(":")[0] for source in (one, other)]
  if PYTHON in files:  # a cell that ran again
    return False
  return Path(files[0]).resolve() != Path(files[1]).resolve()


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
  """What the class takes by keyword, without self and rngs.

  Raises:
    ValueError: If it takes no rngs, or an argument by position only.
  """
  _, *rest = inspect.signature(kind.__init__).parameters.values()
  star = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  known = {p.name: p for p in rest if p.kind not in star}
  for parameter in known.values():
    if parameter.kind is parameter.POSITIONAL_ONLY:
      raise ValueError(
        f"{kind.__name__}.__init__: expected arguments with names, got"
        f" {parameter.name} before /; as in {_EXAMPLE}"
      )
  if "rngs" not in known:
    raise ValueError(
      f"{kind.__name__}.__init__: expected an argument rngs, got"
      f" ({', '.join(known) or 'none'}); as in {_EXAMPLE}"
    )
  del known["rngs"]
  return known


def _options(kind: type) -> dict[str, tuple[Any, type]]:
  """(default, type) of the options; without a default, (type, type).

  Raises:
    ValueError: If `_parameters` raises it, or a required argument has no type.
  """
  hints = _hints(kind)
  options: dict[str, tuple[Any, type]] = {}
  for name, parameter in _parameters(kind).items():
    default = parameter.default
    unset = default is parameter.empty or default is None
    if name in FROM_DATA or name == "param_dtype":
      continue
    if name == "dtype":
      options[name] = (str if unset else jnp.dtype(default).name, str)
    elif type(default) in LEGAL:
      options[name] = (default, type(default))
    elif type_ := _simple(hints.get(name)):
      if unset:
        options[name] = (type_, type_)
    elif default is parameter.empty:
      raise ValueError(
        f"{kind.__name__}.__init__: expected a default or the type of {name},"
        f" as in {name}: int or {name}=32, got neither"
      )
  return options


def _hints(kind: type) -> Mapping[str, Any]:
  try:
    return typing.get_type_hints(kind.__init__)
  except (NameError, TypeError, AttributeError):  # names for checkers alone
    return {}


def _simple(hint: Any) -> type | None:
  """The type that an annotation such as `int` or `int | None` names."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    kinds = [each for each in typing.get_args(hint) if each is not type(None)]
    hint = kinds[0] if len(kinds) == 1 else None
  hint = typing.get_origin(hint) or hint
  return hint if isinstance(hint, type) and hint in LEGAL else None
