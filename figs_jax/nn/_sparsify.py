"""`sparsify`: any Flax NNX model with N:M kernels.

Candidates are the kernels of `nnx.Linear`, `LinearGeneral`, `Einsum`, `Conv`
and `ConvTranspose` (hence of `MultiHeadAttention` and `LoRALinear`) and of
their subclasses at any depth. The table of an `nnx.Embed` and the factors of
`nnx.LoRA` are candidates for rules that name them: those whose regex holds the
word `embedding` or `lora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from flax import nnx

from figs_jax.core._flow import Flow, GradMode
from figs_jax.core.pattern import NM
from figs_jax.core.rules import EVERY, Rules, Words
from figs_jax.core.tree import MaskedKernel
from figs_jax.nn._with_flow import with_flow
from figs_jax.nn.adapters import with_adapters
from figs_jax.nn.kernel_axes import (
  DENSE_TYPES,
  contraction_axis,
  kernel_name,
  kernel_of,
)
from figs_jax.nn.kernel_names import foreign_words
from figs_jax.nn.layers import Masked, set_pattern, sparse_type
from figs_jax.nn.lora import FACTORS, Factor, factored
from figs_jax.nn.recomputed import recomputed, refusal

M = TypeVar("M", bound=nnx.Module)


@runtime_checkable
class RecipeLike(Protocol):
  """What `sparsify` reads of a recipe (`figs_jax.recipes.Recipe` has it)."""

  @property
  def pattern(self) -> NM | Rules:
    """The target pattern."""
    ...

  @property
  def flow(self) -> Flow:
    """How masked kernels act."""
    ...

  @property
  def adapter_rank(self) -> int:
    """Rank of the adapters beside masked kernels; 0 for none."""
    ...

  @property
  def sparse(self) -> bool:
    """False for a recipe that never masks anything."""
    ...


def sparsify(
  model: M,
  rules: Rules | NM | str | RecipeLike,
  grad_mode: GradMode | None = None,
  *,
  words: Words | None = None,
) -> M:
  """Returns the model with masks where the rules ask for them.

  The input stays as it is; the new model has its own variables, which share the
  arrays of the old ones. The rules describe the whole model: a kernel that no
  rule matches is dense afterwards, even if it was masked before. Works on
  abstract arrays (`nnx.eval_shape`) and inside a trace.

  Args:
    model: Any NNX module.
    rules: A recipe, `Rules`, their text ("head: dense, ff: 1:8"), or one
      pattern (an `NM` or "1:8") for every candidate. Words are looked up in the
      class attribute `words` of the model; a class without one gets a table of
      common names (see `figs_jax.nn.kernel_names`). A recipe also sets the
      flow and the adapters, and one that never masks (`dense`) leaves every
      kernel dense.
    grad_mode: Gradient of the pruned entries, "ste" by default. Not allowed
      beside a recipe. `with_flow` sets the rest of the flow.
    words: Regexes of paths by further words; those of the class come first.

  Returns:
    The same kind of model. Masks start as the N:M mask of |kernel|.

  Raises:
    ValueError: If a word or mode is unknown, a rule is dead, m does not divide
      the length of a group axis, the model has no candidates, `grad_mode` is
      given beside a recipe, or a rule masks a kernel in an `nnx.WeightNorm` or
      `nnx.SpectralNorm`, which overwrite it.

  >>> attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
  >>> sparse = sparsify(attention, "o: 1:8, qk: 2:4")
  >>> sorted(masked_leaves(sparse))
  ['key/kernel', 'out/kernel', 'query/kernel']
  """
  if isinstance(rules, RecipeLike):
    return _follow(model, rules, grad_mode, words)
  grad_mode = grad_mode or "ste"
  Flow(grad_mode)  # refuses an unknown mode before any work
  model = nnx.clone(model)
  rules = Rules.parse(rules)
  _factor(model, rules)
  layers = candidates(model)
  if not layers:
    raise ValueError(
      f"{type(model).__name__} has no kernel that can be masked: expected a"
      f" layer among {', '.join(kind.__name__ for kind in DENSE_TYPES)}."
    )
  known = {**(words or {}), **words_of(model, layers)}
  kernels = {
    path: (tuple(kernel_of(group[0]).shape), _axis(group[0]))
    for path, group in layers.items()
    if _is_offered(path, group[0], rules, known)
  }
  leaves = rules.resolve(kernels, known)
  overwritten = recomputed(model)
  for path, group in layers.items():
    shared = None
    for layer in group:
      pattern = leaves[path].pattern if path in leaves else None
      if pattern is None and not isinstance(layer, Masked):
        continue
      if pattern is not None and id(kernel_of(layer)) in overwritten:
        raise refusal(path, overwritten[id(kernel_of(layer))])
      become_masked(layer)
      set_pattern(layer, pattern, grad_mode, shared, path)
      if pattern is not None:
        shared = (layer.kernel_mask, layer.leak)
  return model


def masked_leaves(model: nnx.Module) -> dict[str, MaskedKernel]:
  """Path -> shape, pattern and group axis of every masked kernel.

  The paths are those of the parameters that `split` gives.

  Args:
    model: Any NNX module, for example from `sparsify`.

  >>> from figs_jax.nn import SparseLinear
  >>> masked_leaves(SparseLinear(8, 4, pattern="1:4", rngs=nnx.Rngs(0)))
  {'kernel': MaskedKernel(shape=(8, 4), pattern=NM(n=1, m=4), axis=-2)}
  """
  return {
    path: MaskedKernel(
      tuple(layer.kernel.shape), layer.pattern, layer.group_axis
    )
    for path, (layer, *_) in candidates(model).items()
    if isinstance(layer, Masked)
    and layer.pattern is not None
    and layer.group_axis is not None
  }


def _follow(
  model: M,
  recipe: RecipeLike,
  grad_mode: GradMode | None,
  words: Words | None,
) -> M:
  """The model with the pattern and the flow of a recipe."""
  if grad_mode is not None:
    raise ValueError(
      f"Expected a recipe or grad_mode={grad_mode!r}, got both: the recipe sets"
      f" the gradient mode {recipe.flow.grad_mode!r}."
    )
  if not recipe.sparse:
    return sparsify(model, Rules(((EVERY, None),)))
  sparse = sparsify(model, recipe.pattern, words=words)
  if recipe.adapter_rank:
    sparse = with_adapters(sparse, recipe.adapter_rank)
  return with_flow(sparse, recipe.flow)


def _word_of(layer: nnx.Module) -> str | None:
  """The word that a rule must hold to reach this layer; None for most."""
  if isinstance(layer, Factor):
    return "lora"
  return "embedding" if isinstance(layer, nnx.Embed) else None


def _is_offered(
  path: str, layer: nnx.Module, rules: Rules, words: Words
) -> bool:
  word = _word_of(layer)
  return word is None or rules.asks_for(path, word, words)


def _factor(model: nnx.Module, rules: Rules) -> None:
  """Makes layers of the factors of LoRA that a regex names, in place."""
  for path, layer in list(nnx.iter_modules(model)):
    if not isinstance(layer, nnx.LoRA):
      continue
    names = ("/".join(map(str, (*path, f, "kernel"))) for f in FACTORS)
    if any(rules.asks_for(name, "lora", {}) for name in names):
      factored(layer)


def _axis(layer: nnx.Module) -> Any:
  axis = layer.group_axis if isinstance(layer, Masked) else None
  return contraction_axis(layer) if axis is None else axis


def candidates(model: nnx.Module) -> dict[str, list[Any]]:
  """Kernel path -> the layers that hold this kernel (several if tied).

  Raises:
    ValueError: If tied layers disagree on the group axis, or the first path of
      a kernel is not in a layer.
  """
  places, layers = {}, []
  for path, node in nnx.iter_graph(model):
    if isinstance(node, nnx.Param):
      places[id(node)] = path
    elif isinstance(node, DENSE_TYPES) and _axis(node) is not None:
      layers.append((path, node))
  groups: dict[str, list[Any]] = {}
  for path, layer in layers:
    place, own = places[id(kernel_of(layer))], (*path, kernel_name(layer))
    name = "/".join(map(str, place))
    group = groups.setdefault(name, [])
    if not group and place != own:
      raise ValueError(
        f"{'/'.join(map(str, own))} is first found at {name}, outside"
        " a layer; store it only in the layer"
      )
    if group and _axis(group[0]) != _axis(layer):
      raise ValueError(
        f"{name} is shared by layers that contract axes {_axis(group[0])} and"
        f" {_axis(layer)}: one mask cannot serve both; untie the layers, or"
        " call nnx.Embed.attend for a head that is tied to an embedding"
      )
    group.append(layer)
  return groups


def words_of(model: nnx.Module, layers: Mapping[str, list[Any]]) -> Any:
  """The words of a class, or those of common names.

  Args:
    model: Any NNX module.
    layers: Its layers, from `candidates`.
  """
  words = getattr(type(model), "words", None)
  if isinstance(words, Mapping):
    return words
  convolutions = [
    path
    for path, group in layers.items()
    if isinstance(group[0], (nnx.Conv, nnx.ConvTranspose))
  ]
  return foreign_words(convolutions)


def become_masked(layer: nnx.Module) -> None:
  """Turns a layer (of our own copy of the model) into a masked one, in place.

  Changing the class leaves all containers and shared references as they are.
  """
  if isinstance(layer, Masked):
    return
  object.__setattr__(layer, "__class__", sparse_type(type(layer)))
  layer = cast(Masked, layer)
  layer.group_axis = None
