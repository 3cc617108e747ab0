"""Activation N:M: a layer whose input is pruned along its features.

Every token keeps the n largest |x| of every m features in front of a product,
chosen anew in every call, in training and in evaluation. After a squared ReLU
most of the dropped values are 0 anyway (arXiv 2503.16672).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from flax import nnx

from figs_jax.core._flow import GradMode
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules, Words
from figs_jax.nn._sparsify import become_masked, candidates, words_of
from figs_jax.nn.kernel_axes import kernel_of
from figs_jax.nn.layers import Masked, set_pattern

M = TypeVar("M", bound=nnx.Module)


def prune_inputs(
  model: M,
  rules: Rules | NM | str,
  grad_mode: GradMode = "masked",
  *,
  words: Words | None = None,
) -> M:
  """Returns the model with pruned inputs of the layers that the rules name.

  The kernels keep their masks. The input stays as it is and shares all arrays
  with the result; layers that no rule matches read their whole input.

  Args:
    model: Any NNX module, sparse or not.
    rules: Patterns of the inputs, by the words and paths of kernels as in
      `sparsify`: ".*/fc2/kernel: 2:4" prunes what fc2 reads. The word ff_input
      stands for the layers that read an activation: the consumers of the
      class's `movable_channels` that are not of heads.
    grad_mode: Gradient of the dropped entries: "masked" (0, the derivative,
      which needs the kept values only) or "ste" (that of a whole input).
    words: Regexes of paths by further words; those of the class come first.

  Raises:
    ValueError: If a word is unknown, a rule is dead, m does not divide the
      features, a layer is not an `nnx.Linear`, or the mode is another one.

  >>> import jax.numpy as jnp
  >>> layer = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
  >>> layer.kernel[...] = jnp.ones((4, 1))
  >>> prune_inputs(layer, "1:2")(jnp.array([1.0, -3.0, 2.0, 1.0]))
  Array([-1.], dtype=float32)
  """
  if grad_mode not in ("masked", "ste"):
    raise ValueError(f"grad_mode: expected masked or ste, got {grad_mode!r}")
  model, rules = nnx.clone(model), Rules.parse(rules)
  layers = candidates(model)
  linear = {
    path: group
    for path, group in layers.items()
    if isinstance(group[0], nnx.Linear)
  }
  kernels = {
    path: (tuple(kernel_of(group[0]).shape), -2)
    for path, group in linear.items()
  }
  known = {**(words or {}), **_reading(model), **words_of(model, layers)}
  leaves = rules.resolve(kernels, known)
  for path, group in linear.items():
    for layer in group:
      if not isinstance(layer, Masked):
        become_masked(layer)
        set_pattern(layer, None)
      layer.input_pattern, layer.input_grad = None, grad_mode
      if path in leaves:
        layer.input_pattern = leaves[path].pattern
  return model


def _reading(model: nnx.Module) -> dict[str, str]:
  """The word ff_input of a class that names its channels."""
  regexes = [
    (f"(?:{each.inside})/" if each.inside else "")
    + f"(?:{each.consumer})/kernel"
    for each in getattr(type(model), "movable_channels", ())
    if not each.heads
  ]
  return {"ff_input": "|".join(f"(?:{r})" for r in regexes)} if regexes else {}


def input_patterns(model: nnx.Module) -> dict[str, NM]:
  """Path -> pattern of the input, for layers that `prune_inputs` changed.

  Args:
    model: Any NNX module.

  >>> input_patterns(prune_inputs(nnx.Linear(4, 1, rngs=nnx.Rngs(0)), "1:2"))
  {'kernel': NM(n=1, m=2)}
  """
  return {
    path: group[0].input_pattern
    for path, group in candidates(model).items()
    if getattr(group[0], "input_pattern", None) is not None
  }


def swapped_rows(
  rows: Iterable[Mapping[str, Any]], patterns: Mapping[str, NM]
) -> list[dict[str, Any]]:
  """Rows for the engine, with the sparse activation as the K x N operand.

  An engine's pattern is that of the weights, so a pruned input gains nothing in
  the rows of `figs_jax.layers_of`. Y^T = W^T X^T is the same product with
  operands swapped: M and N change places, and the pattern is that of X along K.
  Choosing the entries at run time is not counted, and the weights are dense.

  Args:
    rows: Rows of `figs_jax.layers_of`.
    patterns: Patterns by path, from `input_patterns`.

  Returns:
    All rows; those of pruned inputs are swapped, and without a mask.

  >>> row = {"name": "fc2", "M": 6, "N": 2, "K": 8, "pattern": None, "count": 1}
  >>> swapped_rows([row], {"fc2/kernel": NM(2, 4)})[0]["N"]
  6
  """
  result = []
  for row in rows:
    pattern = patterns.get(f"{row['name'].split('[')[0]}/kernel")
    new = dict(row)
    if pattern is not None:
      new.pop("mask", None)
      new |= {"M": row["N"], "N": row["M"], "pattern": pattern}
    result.append(new)
  return result
