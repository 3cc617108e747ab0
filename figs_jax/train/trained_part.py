"""Training a part of a model: all other parameters stay as they are.

For a linear probe, `config.train_only = "head"` trains the classifier on the
features of weights that are kept.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from figs_jax.core.rules import nearest
from figs_jax.core.tree import flatten, map_paths, path_str
from figs_jax.train.schema import ConfigError


def training_only(
  tx: optax.GradientTransformation, rules: str
) -> optax.GradientTransformation:
  """The transformation `tx` for the parameters that rules match.

  Gradients of the others are zero before `tx`, so that they count in no global
  norm, and their updates are zero after it. Masks of frozen kernels follow the
  recipe, but `tx` gets none for them, so that the criterion of STEP leaves them
  out.

  Args:
    tx: Optimizer, as a recipe completes it.
    rules: Regular expressions of paths, divided by commas. Each matches a whole
      path or one of the modules above it, as "head" does head/kernel and
      head/bias. "" trains everything.

  Raises:
    ConfigError: If a rule matches no parameter of `init`, or is not a regular
      expression.

  >>> tx = training_only(optax.sgd(1.0), "head")
  >>> params = {"head": {"bias": jnp.ones(1)}, "norm": {"bias": jnp.ones(1)}}
  >>> updates, _ = tx.update(params, tx.init(params), params)
  >>> float(updates["head"]["bias"][0]), float(updates["norm"]["bias"][0])
  (-1.0, 0.0)
  """
  names = [rule.strip() for rule in rules.split(",") if rule.strip()]
  if not names:
    return tx

  def kept(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: (
        leaf if _matches(names, path_str(path)) else jnp.zeros_like(leaf)
      ),
      tree,
    )

  inner = optax.with_extra_args_support(tx)

  def init(params: Any) -> Any:
    _check(names, params)
    return inner.init(params)

  def update(
    updates: Any, state: Any, params: Any = None, **extra: Any
  ) -> tuple[Any, Any]:
    if extra.get("masks") is not None:
      own = {
        path: mask
        for path, mask in flatten(extra["masks"]).items()
        if mask is not None and _matches(names, path)
      }
      extra["masks"] = map_paths(lambda mask, _: mask, updates, own)
    updates, state = inner.update(kept(updates), state, params, **extra)
    return kept(updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def _matches(rules: list[str], name: str) -> bool:
  return any(re.fullmatch(f"(?:{rule})(?:/.*)?", name) for rule in rules)


def _check(rules: list[str], params: Any) -> None:
  paths = list(flatten(params))
  for rule in rules:
    try:
      matched = any(_matches([rule], path) for path in paths)
    except re.error as error:
      raise ConfigError(
        f"--config.train_only: expected regular expressions, got {rule!r}"
        f" ({error})"
      ) from error
    if not matched:
      names = {path.partition("/")[0] for path in paths} | set(paths)
      raise ConfigError(
        f"--config.train_only: {rule!r} matches no parameter,"
        f" {nearest(rule, sorted(names))}"
      )
