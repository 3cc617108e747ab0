"""The methods by name, for one kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from figs_jax.core.groups import Groups
from figs_jax.core.pattern import NM, VNM, parse_pattern
from figs_jax.core.rules import nearest
from figs_jax.core.types import Array, Bool, Float
from figs_jax.pruning.admm import alps
from figs_jax.pruning.choice import Choice
from figs_jax.pruning.least_squares import refit as refitted
from figs_jax.pruning.scores import (
  magnitude_scores,
  ria_scores,
  wanda_scores,
)
from figs_jax.pruning.sparse_gpt import sparsegpt
from figs_jax.pruning.swaps import sparseswaps

Pruned = tuple[Float[Array, "k n"], Bool[Array, "k n"]]


def _magnitude(kernel: Array, moment: Array, choice: Choice) -> Pruned:
  mask = choice(magnitude_scores(kernel))
  return jnp.where(mask, kernel, 0), mask


def _wanda(kernel: Array, moment: Array, choice: Choice) -> Pruned:
  mask = choice(wanda_scores(kernel, moment))
  return jnp.where(mask, kernel, 0), mask


def _ria(
  kernel: Array, moment: Array, choice: Choice, *, exponent: float = 0.5
) -> Pruned:
  mask = choice(ria_scores(kernel, moment, exponent))
  return jnp.where(mask, kernel, 0), mask


METHODS: dict[str, Callable[..., Pruned]] = {
  "magnitude": _magnitude,
  "wanda": _wanda,
  "ria": _ria,
  "sparsegpt": sparsegpt,
  "alps": alps,
  "sparseswaps": sparseswaps,
}


def prune_kernel(
  kernel: Float[Array | np.ndarray, "k n"],
  moment: Float[Array | np.ndarray, "k k"],
  pattern: NM | str,
  method: str = "sparsegpt",
  *,
  transposable: bool = False,
  refit: bool = False,
  **options: Any,
) -> Pruned:
  """Prunes one kernel by the second moment of its inputs.

  Computed in float32 (float64 for a float64 kernel).

  Args:
    kernel: W, with groups along axis 0.
    moment: H = X^T X of the inputs X [rows, k].
    pattern: `NM` or "n:m"; for the methods with scores V:N:M, too.
    method: "magnitude", "wanda", "ria", "sparsegpt", "alps" or "sparseswaps".
    transposable: Whether the mask is N:M along both axes.
    refit: Whether the kept weights are replaced by the best ones of the mask
      (`refit`), with the `damping` of the options.
    **options: Options of the method: `exponent` of ria; `damping` of sparsegpt,
      alps and sparseswaps; `block` of sparsegpt; `rho` and `steps` of alps;
      `starts` of sparseswaps.

  Returns:
    The new kernel, with exact zeros, and its mask.

  Raises:
    ValueError: If the method or an option is unknown, the shapes do not fit, m
      does not divide the length of a group axis, damping is negative, H cannot
      be factored, or the method has no such masks (sparseswaps: transposable;
      sparsegpt, alps and sparseswaps: V:N:M).

  >>> w, h = jnp.array([[2.0], [1.0]]), jnp.array([[2.0, 1.0], [1.0, 1.0]])
  >>> prune_kernel(w, h, "1:2", "wanda", refit=True, damping=0.0)[0].tolist()
  [[2.5], [0.0]]
  """
  check_options(method, options, refit=refit, transposable=transposable)
  choice = Choice(parse_pattern(pattern), transposable)
  check_pattern(method, choice.pattern, transposable=transposable)
  kernel = jnp.asarray(kernel)
  dtype = jnp.float64 if kernel.dtype == jnp.float64 else jnp.float32
  w, moment = kernel.astype(dtype), jnp.asarray(moment, dtype)
  if kernel.ndim != 2 or moment.shape != (len(kernel), len(kernel)):
    raise ValueError(
      "Expected a kernel [K, N] and a second moment [K, K], got shapes"
      f" {kernel.shape} and {moment.shape}"
    )
  Groups.of(kernel.shape, choice.pattern.m, 0)  # raises if m does not fit
  damping = {"damping": options["damping"]} if "damping" in options else {}
  if "damping" not in options_of(method):
    options = {k: v for k, v in options.items() if k != "damping"}
  pruned, mask = METHODS[method](w, moment, choice, **options)
  if refit:
    pruned = refitted(w, moment, mask, start=pruned, **damping)
  if not bool(jnp.isfinite(pruned).all()):
    raise ValueError(
      f"{method}: the second moment is singular or not finite with"
      f" {damping or 'the default damping'}; raise damping"
    )
  return pruned.astype(kernel.dtype), mask


def options_of(method: str) -> dict[str, Any]:
  """The options of a method with their defaults.

  Args:
    method: Name of the method.

  Raises:
    ValueError: If the method is unknown; the nearest known one is suggested.

  >>> options_of("ria")
  {'exponent': 0.5}
  """
  if method not in METHODS:
    raise ValueError(
      f"Unknown pruning method {method!r}: {nearest(method, METHODS)}"
    )
  parameters = inspect.signature(METHODS[method]).parameters
  return {
    name: parameter.default
    for name, parameter in parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "mask"
  }


# Methods that choose a mask by scores, once.
_SCORED = ("magnitude", "wanda", "ria")


def check_pattern(method: str, pattern: NM, *, transposable: bool) -> None:
  """Checks that a method has masks of a pattern.

  Raises:
    ValueError: If the pattern is V:N:M and the method updates weights or swaps
      entries output by output, or the mask is to be transposable.

  >>> check_pattern("wanda", VNM(64, 2, 8), transposable=False)
  """
  if not isinstance(pattern, VNM):
    return
  if transposable:
    raise ValueError(
      f"transposable: expected an N:M pattern, got {pattern}; leave"
      " transposable out"
    )
  if method not in _SCORED:
    raise ValueError(
      f"{method}: expected an N:M pattern, got {pattern}; {method} chooses for"
      f" each output by itself, so take {', '.join(_SCORED)}, or"
      f" {pattern.pattern}"
    )


def check_options(
  method: str, options: dict[str, Any], *, refit: bool, transposable: bool
) -> None:
  """Raises `ValueError` if a method has no such options, or for bad values.

  >>> check_options("alps", {"damping": 0.1}, refit=False, transposable=False)
  """
  known = {*options_of(method), *(["damping"] if refit else [])}
  for name, value in options.items():
    if name not in known:
      raise ValueError(
        f"{method} has no option {name!r}: expected"
        f" {', '.join(sorted(known)) or 'no options'}"
      )
    if name in ("damping", "exponent") and not 0 <= value < float("inf"):
      raise ValueError(f"Expected {name} of 0 or more, got {value}")
    if name in ("rho", "steps", "block") and not value > 0:
      raise ValueError(f"Expected {name} above 0, got {value}")
  if transposable and method == "sparseswaps":
    raise ValueError(
      "sparseswaps: expected masks along one axis, got transposable=True;"
      " choose sparsegpt or alps"
    )
