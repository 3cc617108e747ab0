"""Whether the masks of a run look as its recipe means them to.

Their statistics are computed in the step, on diagnosed ones.
"""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.diagnostics import Layers, layer_table
from figs_jax.core.types import Array
from figs_jax.recipes import BoundRecipe
from figs_jax.recipes.bound_leaf import BoundLeaf

Statistics = Mapping[str, float]
# Statistics whose mean over layers is logged.
MEANS = (
  "density",
  "flip_rate",
  "kept_magnitude",
  "grad_snr_kept",
  "grad_snr_pruned",
)
_FLIPS = 0.01  # highest healthy share of entries per step of fine-tuning
_FEW = 10  # entries; fewer flips may be chance in a small kernel
_EXPECTED = 100  # flips of others without one of its own make a kernel frozen
_SETTLED = 10  # steps in which a gradient may be 0, as behind a zero head
_FAR = 1000  # steps to look back for a refresh
_TOLERANCE = 1e-3  # of a density, relative


def layers_if(due: Array, *args: Any, **kwargs: Any) -> Layers:
  """`figs_jax.core.diagnostics.layer_table` if `due`, else zeros.

  One compilation serves both, and zeros cost nothing.

  Args:
    due: Boolean scalar, possibly traced.
    *args, **kwargs: Arguments of `layer_table`.

  >>> mask = jnp.array([[True], [False]])
  >>> for due in (True, False):
  ...   print(layers_if(jnp.array(due), {"kernel": mask})["kernel"]["density"])
  0.5
  0.0
  """

  def table(args: Any, kwargs: Any) -> Layers:
    return layer_table(*args, **kwargs)

  shapes = jax.eval_shape(table, args, kwargs)
  return jax.lax.cond(
    due,
    table,
    lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
    args,
    kwargs,
  )


def layer_means(layers: Mapping[str, Statistics]) -> dict[str, float]:
  """Means of `MEANS` over layers, each layer with equal weight.

  Args:
    layers: Statistics of each kernel, as from `core.diagnostics.layer_table`.

  >>> layer_means({"a": {"density": 0.25}, "b": {"density": 0.5}})
  {'masks/density': 0.375}
  """
  names = [name for name in MEANS if any(name in s for s in layers.values())]
  return {
    f"masks/{name}": float(np.mean([each[name] for each in layers.values()]))
    for name in names
  }


def mean_over_seeds(value: np.ndarray) -> float:
  """Mean over the seeds that are not NaN; NaN if all are.

  Args:
    value: Values of the seeds, float [seeds], or one value.

  >>> mean_over_seeds(np.array([1.0, np.nan, 2.0]))
  1.5
  """
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Mean of empty slice")
    return float(np.nanmean(value))


class MaskHealth:
  """Compares diagnosed steps with the recipe, and names the first fault of each
  kind.

  Four kinds: flips in the fine-tune phase, a density that is not the stage's, a
  kernel that never flips while those of its pattern do, and a kernel without a
  gradient. A kind is reported once.

  >>> from figs_jax import recipes
  >>> from figs_jax.core import NM, MaskedKernel
  >>> recipe = recipes.create("ste", "1:4", total_steps=100)
  >>> health = MaskHealth(recipe.bind({"fc": MaskedKernel((64, 64), NM(1, 4))}))
  >>> row = {"density": 0.5, "flip_rate": 0.0, "sad": 0, "grad_snr_kept": 0.1}
  >>> health.verdicts(50, {"fc": row})
  ['unhealthy masks at step 50: fc keeps 0.5 of its entries, expected 0.25
  (1:4); look at layers/*/density and the criterion of the recipe']
  """

  def __init__(self, bound: BoundRecipe):
    self._kernels = {kernel.path: kernel for kernel in bound.kernels}
    self._line = bound.recipe.timeline
    self._nested = getattr(bound.recipe.criterion, "nested", False)
    self._reported: set[str] = set()
    self._flips: dict[str, float] = collections.defaultdict(float)
    self._without_gradient: dict[str, int] = collections.defaultdict(int)

  def verdicts(
    self, step: int, layers: Mapping[str, Statistics], stage: float = math.inf
  ) -> list[str]:
    """Faults of a kind that was not reported yet, one line each.

    Args:
      step: Step whose masks were diagnosed.
      layers: Statistics of each kernel, by path, from `layer_table`.
      stage: Stage of the step before, which tells whether STEP has switched.
    """
    if not layers:
      return []
    lines = []
    for kind, faults in (
      ("flips", self._flipping(step, layers)),
      ("density", self._off(step, layers, stage)),
      ("frozen", self._frozen(step, layers, stage)),
      ("gradient", self._unreached(step, layers)),
    ):
      texts = list(faults)  # each kind keeps its counts up to date
      if texts and kind not in self._reported:
        self._reported.add(kind)
        fault, advice = texts[0]
        more = f" (and {len(texts) - 1} more kernels)" if texts[1:] else ""
        lines.append(f"unhealthy masks at step {step}: {fault}{more}; {advice}")
    return lines

  def _flipping(self, step, layers) -> Iterator[tuple[str, str]]:
    # Masks may change with the phase, so its first step does not count.
    if step <= self._line.finetune_start:
      return
    # Masks that are refreshed rarely change by many steps at once.
    rates = {path: each["flip_rate"] for path, each in layers.items()}
    if max(rates.values()) > _FLIPS:
      steps = self._since_refresh(step)
      rates = {path: rate / steps for path, rate in rates.items()}
    for path, rate in sorted(rates.items(), key=lambda item: -item[1]):
      if rate > _FLIPS and layers[path]["sad"] >= _FEW:
        yield (
          f"{path} still flips {rate:.1%} of its entries per step of the"
          " fine-tune phase",
          "look at layers/*/flip_rate, and lower the last learning rate or"
          " lengthen recipe.finetune",
        )

  def _off(self, step, layers, stage) -> Iterator[tuple[str, str]]:
    for path, kernel in self._kernels.items():
      number = self._stage(kernel, step, stage)
      if path not in layers or number is None:
        continue
      pattern = kernel.stages[number - 1] if number else None
      wanted = pattern.density if pattern else 1.0
      got = layers[path]["density"]
      off = got - wanted if self._nested else abs(got - wanted)
      if off > _TOLERANCE * wanted:
        yield (
          f"{path} keeps {got:.4g} of its entries, expected {wanted:.4g}"
          f" ({pattern or 'dense phase'})",
          "look at layers/*/density and the criterion of the recipe",
        )

  def _frozen(self, step, layers, stage) -> Iterator[tuple[str, str]]:
    masked = self._line.dense_end < step < self._line.finetune_start
    if not masked or (self._line.switch is not None and stage < 1):
      return
    groups: dict[tuple, list[BoundLeaf]] = collections.defaultdict(list)
    for path, kernel in self._kernels.items():
      # A new stage changes the mask of any kernel.
      new = step in self._line.boundaries(len(kernel.stages))
      if path in layers and not new:
        groups[kernel.stages].append(kernel)
        self._flips[path] += layers[path]["sad"]
    for group in groups.values():
      flips = sum(self._flips[kernel.path] for kernel in group)
      size = sum(math.prod(kernel.leaf.shape) for kernel in group)
      for kernel in group:
        expected = flips * math.prod(kernel.leaf.shape) / size
        if not self._flips[kernel.path] and expected > _EXPECTED:
          yield (
            f"{kernel.path} has not flipped once where others of its pattern"
            f" have in {flips / size:.2%} of their entries",
            "look at layers/*/flip_rate and at whether the optimizer changes"
            " this kernel",
          )

  def _unreached(self, step, layers) -> Iterator[tuple[str, str]]:
    if step <= _SETTLED:
      return
    for path, each in layers.items():
      ratio = each["grad_snr_kept"]
      missing = math.isnan(ratio) or ratio == 0
      self._without_gradient[path] += 1
      if not missing:
        self._without_gradient[path] = 0
      if self._without_gradient[path] >= 2:
        yield (
          f"the gradient of {path} has a signal-to-noise ratio of {ratio:g}"
          " twice in a row",
          "look at layers/*/grad_snr_kept and at whether the loss depends on"
          " this kernel",
        )

  def _since_refresh(self, step: int) -> int:
    """Steps between the last two refreshes, one of which is at `step`."""
    before = jnp.arange(max(step - _FAR, 0), step)
    due = np.flatnonzero(jax.vmap(self._line.due)(before))
    return step - int(before[due[-1]]) if due.size else _FAR

  def _stage(self, kernel: BoundLeaf, step: int, before: float) -> int | None:
    """The stage of a kernel's mask; None if STEP may just have switched."""
    stages = len(kernel.stages)
    if self._line.switch is not None:
      return stages if before >= 1 else None
    return sum(step >= first for first in self._line.boundaries(stages))
