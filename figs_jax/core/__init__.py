"""N:M sparsity on plain arrays: patterns, masks, masked weights, rules.

Arrays in, arrays out, with jax and numpy only. `NM` is a pattern, `nm_mask` and
similar functions compute masks, `flow` gives the effective weight and its
gradient, `Rules` assign patterns to kernels, and `pack` stores finished
weights.
"""

from figs_jax.core._flow import Flow, flow
from figs_jax.core._mvue import mvue
from figs_jax.core.mask_bits import pack_mask, unpack_mask, unpack_masks
from figs_jax.core.masks import (
  density,
  flip_rate,
  is_nm,
  kept_magnitude,
  nm_mask,
  rank_in_group,
  vnm_mask,
)
from figs_jax.core.packing import Packed, pack, pack_tree, unpack, unpack_tree
from figs_jax.core.pattern import NM, VNM
from figs_jax.core.permutation import permute
from figs_jax.core.rank_packing import (
  RankPacked,
  pack_ranks,
  rank_matmul,
  unpack_ranks,
)
from figs_jax.core.regrow import regrow_mask
from figs_jax.core.rules import Rules
from figs_jax.core.scores import activation, magnitude, saliency
from figs_jax.core.soft import s_ste, soft_scale, soft_threshold
from figs_jax.core.transposable import transposable_nm_mask
from figs_jax.core.tree import MaskedKernel
from figs_jax.core.unstructured import global_masks, top_mask

__all__ = [
  "NM",
  "Flow",
  "MaskedKernel",
  "Packed",
  "RankPacked",
  "Rules",
  "VNM",
  "activation",
  "density",
  "flip_rate",
  "flow",
  "global_masks",
  "is_nm",
  "kept_magnitude",
  "magnitude",
  "mvue",
  "nm_mask",
  "pack",
  "pack_mask",
  "pack_ranks",
  "pack_tree",
  "permute",
  "rank_in_group",
  "rank_matmul",
  "regrow_mask",
  "s_ste",
  "saliency",
  "soft_scale",
  "soft_threshold",
  "top_mask",
  "transposable_nm_mask",
  "unpack",
  "unpack_mask",
  "unpack_masks",
  "unpack_ranks",
  "unpack_tree",
  "vnm_mask",
]
