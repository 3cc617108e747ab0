"""Optax transforms that read `masks=`: a tree like the params, None at dense.

They work on any pytree of parameters, with or without the layers of figs_jax.
"""

from figs_jax.optim._decay_pruned import DecayPrunedState, decay_pruned
from figs_jax.optim._evaluated import evaluated_params, is_schedule_free
from figs_jax.optim._gradient_flow import GradientFlowState, gradient_flow
from figs_jax.optim._keep_masters import (
  MastersState,
  keep_masters,
  masters_of,
)
from figs_jax.optim._lazy_adapters import LazyAdaptersState, lazy_adapters
from figs_jax.optim._mask_moments import MaskMomentsState, mask_moments
from figs_jax.optim._mask_updates import MaskUpdatesState, mask_updates
from figs_jax.optim._pass_masks import pass_masks
from figs_jax.optim.step_adam import (
  ScaleByStepAdamState,
  scale_by_step_adam,
  step_adamw,
)

__all__ = [
  "DecayPrunedState",
  "GradientFlowState",
  "LazyAdaptersState",
  "MaskMomentsState",
  "MaskUpdatesState",
  "MastersState",
  "ScaleByStepAdamState",
  "decay_pruned",
  "evaluated_params",
  "gradient_flow",
  "is_schedule_free",
  "keep_masters",
  "lazy_adapters",
  "mask_moments",
  "mask_updates",
  "masters_of",
  "pass_masks",
  "scale_by_step_adam",
  "step_adamw",
]
