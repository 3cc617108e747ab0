"""Flax NNX layers that carry masks, and `sparsify` for any NNX model."""

from figs_jax.nn._sparsify import masked_leaves, sparsify
from figs_jax.nn._with_flow import with_flow
from figs_jax.nn.adapters import has_adapters, with_adapters
from figs_jax.nn.attention import Attention
from figs_jax.nn.batch_norm import (
  BatchNorm,
  batch_statistics,
  has_batch_norm,
  recalibrate_batch_norm,
)
from figs_jax.nn.channels import Channels, PermutedKernel, permute_channels
from figs_jax.nn.layers import (
  Masked,
  SparseConv,
  SparseConvTranspose,
  SparseEinsum,
  SparseEmbed,
  SparseLinear,
  SparseLinearGeneral,
)
from figs_jax.nn.lora import SparseLoRA
from figs_jax.nn.pruned_inputs import (
  input_patterns,
  prune_inputs,
  swapped_rows,
)
from figs_jax.nn.split_merge import merge, reseed, scales, split
from figs_jax.nn.variables import Leak, Mask, Scale

__all__ = [
  "Attention",
  "BatchNorm",
  "Channels",
  "Leak",
  "Mask",
  "Masked",
  "PermutedKernel",
  "Scale",
  "SparseConv",
  "SparseConvTranspose",
  "SparseEinsum",
  "SparseEmbed",
  "SparseLinear",
  "SparseLinearGeneral",
  "SparseLoRA",
  "batch_statistics",
  "has_adapters",
  "has_batch_norm",
  "input_patterns",
  "masked_leaves",
  "merge",
  "permute_channels",
  "prune_inputs",
  "recalibrate_batch_norm",
  "reseed",
  "scales",
  "sparsify",
  "split",
  "swapped_rows",
  "with_adapters",
  "with_flow",
]
