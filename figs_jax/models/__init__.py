"""Model families by name, and the matrix products that they consist of."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from figs_jax import nn
from figs_jax.core.rules import nearest
from figs_jax.models import own_model
from figs_jax.models.bert import BERT
from figs_jax.models.gpt2 import GPT2
from figs_jax.models.llama import Llama
from figs_jax.models.own_model import REGISTERED, register
from figs_jax.models.resnet import ResNet
from figs_jax.models.shapes import SHAPES, Shape, shape_of
from figs_jax.models.swin_v2 import SwinV2
from figs_jax.models.t5 import T5
from figs_jax.models.traced import Product, traced_products
from figs_jax.models.vit import ViT

FAMILIES: dict[str, type[Any]] = {
  "resnet": ResNet,
  "bert": BERT,
  "gpt2": GPT2,
  "llama": Llama,
  "swin_v2": SwinV2,
  "t5": T5,
  "vit": ViT,
}
own_model.TAKEN.update(FAMILIES)

__all__ = [
  "BERT",
  "FAMILIES",
  "GPT2",
  "Llama",
  "REGISTERED",
  "ResNet",
  "SHAPES",
  "Shape",
  "SwinV2",
  "T5",
  "ViT",
  "abstract",
  "class_of",
  "create",
  "from_pretrained",
  "gemms_of",
  "names",
  "non_gemms_of",
  "options_of",
  "products_of",
  "register",
  "shape_of",
  "task_of",
]


def names() -> list[str]:
  """The known families, and the registered classes of one's own.

  >>> "vit" in names()
  True
  """
  return sorted({*FAMILIES, *REGISTERED})


def class_of(family: str) -> type[Any]:
  """The class of a family, or a registered one.

  Args:
    family: One of `names()`.

  Raises:
    ValueError: If the family is unknown; the nearest known one is suggested.

  >>> class_of("vit").__name__
  'ViT'
  """
  if family in REGISTERED:
    return REGISTERED[family].kind
  if family not in FAMILIES:
    raise ValueError(f"Unknown family {family!r}: {nearest(family, names())}")
  return FAMILIES[family]


def options_of(family: str) -> dict[str, Any]:
  """The options of a family with their defaults (None for required ones).

  Of a class of one's own, the required ones are given by their type.

  Args:
    family: One of `names()`.

  Raises:
    ValueError: If the family is unknown; the nearest known one is suggested.

  >>> options_of("vit")["pool"]
  'cls'
  """
  if family in REGISTERED:
    return own_model.FROM_DATA | REGISTERED[family].options
  signature = inspect.signature(class_of(family).__init__)
  return {
    name: None if parameter.default is parameter.empty else parameter.default
    for name, parameter in signature.parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "rngs"
  }


def task_of(family: str) -> str:
  """The task that a family trains, as `figs_jax.train.tasks` names it.

  Registered classes classify images.

  Args:
    family: One of `names()`.

  Raises:
    ValueError: If the family is unknown; the nearest known one is suggested.

  >>> task_of("t5")
  'text_to_text'
  """
  return "images" if family in REGISTERED else class_of(family).task


def create(
  family: str, variant: str, *, rngs: nnx.Rngs | None = None, **options: Any
) -> Any:
  """Creates a dense model; `figs_jax.sparsify` adds masks to it.

  Args:
    family: One of `names()`.
    variant: Size and patch, as in "S/16"; see the family's `from_variant`. A
      class of one's own has "custom" only.
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
  rngs = rngs or nnx.Rngs(0)
  if family in REGISTERED:
    own = own_model.FROM_DATA | options
    return REGISTERED[family].create(rngs, **own)
  return FAMILIES[family].from_variant(variant, rngs=rngs, **options)


def from_pretrained(
  path: str | Path,
  *,
  head: str = "strict",
  resize_positions: bool = False,
  interpolation: str = "linear",
  rngs: nnx.Rngs | None = None,
  **options: Any,
) -> Any:
  """Creates the model of a config.json of `transformers`, with its weights.

  Args:
    path: Directory with config.json and the weights, or the file of weights
      beside it; see `figs_jax.models.pretrained.load`.
    head: "strict", or "fresh" for a new classifier, of `num_classes`.
    resize_positions: Whether `image_size` (and the `window` of a Swin-V2) may
      differ from those of the file, see `pretrained.load`.
    interpolation: How positions are then interpolated: "linear", "bicubic" or
      "bicubic_antialias", see `pretrained.load`.
    rngs: Random streams, for a fresh head and dropout. Defaults to
      `nnx.Rngs(0)`.
    **options: Keyword arguments of the family's constructor, in place of those
      of the file. One that changes what the weights compute is refused, but for
      `in_channels`, which converts the patch kernel.

  Returns:
    The dense model in evaluation mode; `figs_jax.sparsify` adds masks to it.

  Raises:
    ValueError: If config.json is missing or has a key that our models lack,
      an option is unknown or changes the function, or the weights do not fit.

  >>> import json, pathlib, tempfile
  >>> from figs_jax.models.pretrained.config import for_transformers
  >>> from figs_jax.models.pretrained.files import write_weights
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> made = for_transformers(create("vit", "custom/2", **sizes))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   write_weights(f"{folder}/model.safetensors", made.tensors)
  ...   text = json.dumps(made.config)
  ...   _ = pathlib.Path(folder, "config.json").write_text(text)
  ...   model = from_pretrained(folder)
  >>> model.heads, model(jax.numpy.zeros((1, 4, 4, 3))).shape
  (2, (1, 1000))
  """
  from figs_jax.models import pretrained

  config = pretrained.config_of(path)
  if config is None:
    raise pretrained.PretrainedError(
      f"{path}: expected the config.json of transformers beside the weights;"
      " without one, create the model with figs_jax.models.create and load them"
      " with figs_jax.models.pretrained.load"
    )
  (family,) = (
    n for n, kind in FAMILIES.items() if kind.__name__ == config.family
  )
  whole = config.completed(options, resize_positions=resize_positions)
  variant = "custom/1" if "patch" in whole else "custom"
  weights = pretrained.read(
    abstract(family, variant, **whole),
    path,
    head=head,
    resize_positions=resize_positions,
    interpolation=interpolation,
    convert_channels="in_channels" in options,
  )
  model = pretrained.fill(create(family, variant, rngs=rngs, **whole), weights)
  model.eval()
  return model


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
    family: One of `names()`, or of `SHAPES` alone, which gives a `Shape`.
    variant: Size and patch, as for `create`.
    **options: Keyword arguments of the family's constructor.

  Raises:
    ValueError: If the family, variant or an option is invalid, as in `create`.

  >>> abstract("vit", "H/14").head.kernel.shape
  (1280, 1000)
  """

  if family in SHAPES and family not in FAMILIES:
    return shape_of(family, variant, **options)
  if family in REGISTERED:  # its streams may be of any kind
    return nnx.eval_shape(lambda: create(family, variant, **options))
  if family not in FAMILIES:
    known = {*names(), *SHAPES}
    raise ValueError(f"Unknown family {family!r}: {nearest(family, known)}")

  def build() -> Any:
    rngs: Any = nnx.Rngs()
    rngs.default = _OneKey(jax.random.key(0), tag="default")
    return create(family, variant, rngs=rngs, **options)

  return nnx.eval_shape(build)


def gemms_of(
  model: nnx.Module | Shape,
  batch: int = 1,
  *,
  seq: int | None = None,
  phase: str | None = None,
  context: int | None = None,
  example: Any = None,
) -> list[dict[str, Any]]:
  """Lists the matrix products of one forward pass, for the engine.

  Args:
    model: Any NNX model, sparse or dense, possibly abstract; or the shape of a
      language model. Models of our families list their products, all others are
      traced (`products_of`).
    batch: Number of images (or sequences) per pass.
    seq: Tokens of a sequence: of a ViT with its class token, of T5's inputs.
      Defaults to what the model says.
    phase: Phase of a decoder's shape, "prefill" or "decode". None runs whole
      sequences.
    context: Tokens of the prompt in "prefill"; in "decode" those that the next
      token attends to, itself included.
    example: Input of the call of a model of another class; see `products_of`.

  Returns:
    Rows {"name", "M", "N", "K", "pattern", "count"} for `figs_jax.engine`:
    `count` products (M x K)(K x N) whose K x N operand is the weight, N:M along
    K. The pattern is an `NM`, or None for dense kernels.

  Raises:
    ValueError: If a number is below 1, the family of the model has no such
      length or phase, or as `products_of`.

  >>> model = create("vit", "Ti/4", depth=1, image_size=8, num_classes=10)
  >>> [row["name"] for row in gemms_of(model)][:3]
  ['patch_embed', 'blocks/0/attn/q', 'blocks/0/attn/k']
  >>> rows = gemms_of(shape_of("llama", "8b"), phase="decode", context=4096)
  >>> [(row["M"], row["N"], row["count"]) for row in rows][3]  # q k', 8 heads
  (4, 4096, 256)
  """
  if example is None and lists_products(model):
    return _rows(model, "gemms", batch, seq, phase, context)
  lengths = {"seq": seq, "phase": phase, "context": context}
  for name, value in lengths.items():
    if value is not None:
      raise ValueError(
        f"{type(model).__name__}: expected no {name}, since example decides"
        f" the lengths of a traced model, got {name}={value!r}"
      )
  return [product.row for product in products_of(model, batch, example)]


def lists_products(model: Any) -> bool:
  """Whether a model is exactly of one of our families, or a `Shape`.

  One with adapters is traced.
  """
  ours = type(model) in (Shape, *FAMILIES.values())
  return ours and (type(model) is Shape or not nn.has_adapters(model))


def products_of(
  model: nnx.Module | Shape, batch: int = 1, example: Any = None
) -> list[Product]:
  """Lists the matrix products of any NNX model, from one abstract trace.

  `figs_jax.models.traced` says what is counted.

  Args:
    model: Any NNX model, sparse or dense, possibly abstract.
    batch: Number of images (or sequences) per pass, if the example is built
      from the options of a model of our families.
    example: Input of the call: an array or `jax.ShapeDtypeStruct`, a tuple of
      arguments, or a dictionary of keyword arguments. Its leading axis is the
      batch. Defaults to the input of a model of our families, or to the images
      of a registered class.

  Raises:
    ValueError: If `batch` is below 1 or given beside an example, the example is
      missing, or `figs_jax.models.traced.traced_products` raises it.

  >>> net = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
  >>> rows = jax.ShapeDtypeStruct((2, 8), "float32")
  >>> [(p.name, p.M, p.K, p.N) for p in products_of(net, example=rows)]
  [('kernel', 2, 8, 4)]
  """
  if batch < 1:
    raise ValueError(f"Expected a batch of 1 or more, got batch={batch}")
  name = type(model).__name__
  if not isinstance(model, nnx.Module):
    raise ValueError(f"Expected an NNX module to trace, got {name}")
  if example is not None and batch != 1:
    raise ValueError(
      f"{name}: expected batch or example, got batch={batch} and an example,"
      " whose leading axis is the batch; leave batch out"
    )
  if example is None:
    example = own_model.example_of(model, batch)
  if example is None:
    if not isinstance(model, tuple(FAMILIES.values())):
      raise ValueError(
        f"{name} is not of our families ({', '.join(sorted(FAMILIES))}):"
        " expected an example of its input, as in"
        " example=jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')"
      )
    example = model.example(batch)
  return traced_products(model, example)


def non_gemms_of(
  model: nnx.Module | Shape,
  batch: int = 1,
  *,
  seq: int | None = None,
  phase: str | None = None,
  context: int | None = None,
) -> list[dict[str, Any]]:
  """Lists what a forward pass does beside its products, for the engine.

  `figs_jax.models.non_gemm` says what counts as a pass.

  Args:
    model: Model, as for `gemms_of`.
    batch: Number of images (or sequences) per pass.
    seq: Tokens of a sequence, as for `gemms_of`.
    phase: Phase of a decoder's shape, as for `gemms_of`.
    context: Tokens of the prompt or in the cache, as for `gemms_of`.

  Returns:
    Rows {"name", "kind", "reads", "writes", "count"}: `count` passes that read
    and write so many values.

  Raises:
    ValueError: If `gemms_of` raises it.

  >>> model = create("vit", "Ti/4", depth=1, image_size=8, num_classes=10)
  >>> row = non_gemms_of(model)[1]
  >>> row["kind"], row["reads"], row["writes"]  # 5 tokens of width 192
  ('norm', 1344, 960)
  """
  return _rows(model, "non_gemms", batch, seq, phase, context)


def _rows(
  model: Any,
  method: str,
  batch: int,
  seq: int | None,
  phase: str | None,
  context: int | None,
) -> list[dict[str, Any]]:
  """What a method of the model lists, if it has such lengths and phases."""
  if batch < 1:
    raise ValueError(f"Expected a batch of 1 or more, got batch={batch}")
  family = type(model).__name__
  if not isinstance(model, (Shape, *FAMILIES.values())):
    raise ValueError(
      f"Expected a model of our families ({', '.join(sorted(FAMILIES))}), got"
      f" {family}; its norms, activations and the like are unknown"
    )
  for name, value in (("seq", seq), ("context", context)):
    if value is not None and value < 1:
      raise ValueError(f"Expected {name} of 1 or more, got {value}")
  given = {"seq": seq, "phase": phase, "context": context}
  given = {name: value for name, value in given.items() if value is not None}
  make = getattr(model, method)
  known = inspect.signature(make).parameters
  if "seq" in given and "seq" not in known:
    raise ValueError(
      f"{family}: expected no seq, since its windows follow the image; set"
      " image_size= instead"
    )
  for name in given:
    if name not in known:
      raise ValueError(
        f"{family}: expected no {name}, since only decoders' shapes"
        f" ({', '.join(_decoders())}) have phases"
      )
  return make(batch, **given)


def _decoders() -> list[str]:
  shapes = {family: next(iter(x.values())) for family, x in SHAPES.items()}
  return sorted(family for family, shape in shapes.items() if shape.causal)
