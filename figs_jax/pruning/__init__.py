"""One-shot pruning of dense models from calibration data.

Array functions prune one kernel W [K, N] by the second moment H = X^T X of its
inputs; `figs_jax.prune` prunes a whole model, block by block.
"""

from figs_jax.pruning._prune import PrunedLayer, prune
from figs_jax.pruning.admm import alps
from figs_jax.pruning.choice import Choice
from figs_jax.pruning.least_squares import refit
from figs_jax.pruning.methods import METHODS, options_of, prune_kernel
from figs_jax.pruning.moments import damped, dead_inputs, layer_error
from figs_jax.pruning.scores import (
  magnitude_scores,
  ria_scores,
  wanda_scores,
)
from figs_jax.pruning.sparse_gpt import obs_scores, sparsegpt
from figs_jax.pruning.swaps import sparseswaps

__all__ = [
  "METHODS",
  "Choice",
  "PrunedLayer",
  "alps",
  "damped",
  "dead_inputs",
  "layer_error",
  "magnitude_scores",
  "obs_scores",
  "options_of",
  "prune",
  "prune_kernel",
  "refit",
  "ria_scores",
  "sparsegpt",
  "sparseswaps",
  "wanda_scores",
]
