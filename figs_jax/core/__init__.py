"""N:M sparsity on plain arrays: patterns, masks, masked weights, rules.

Arrays in, arrays out; jax and numpy only. `NM` says how many weights of a
group are kept, `nm_mask` which ones, `flow` what the forward and the backward
pass see of the others, `Rules` which kernel gets which pattern.
"""

from figs_jax.core.flow import Flow, flow
from figs_jax.core.masks import (
  density,
  flip_rate,
  is_nm,
  kept_magnitude,
  nm_mask,
)
from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.core.tree import Leaf

__all__ = [
  "NM",
  "Flow",
  "Leaf",
  "Rules",
  "density",
  "flip_rate",
  "flow",
  "is_nm",
  "kept_magnitude",
  "nm_mask",
]
