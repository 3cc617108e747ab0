"""N:M-sparse training of transformers in JAX, and what a pattern buys.

Names are resolved on first use, so that `import figs_jax.core` needs jax and
numpy only.
"""

import importlib
from typing import Any

_EXPORTS = {
  "NM": "figs_jax.core.pattern",
  "Rules": "figs_jax.core.rules",
  "nm_mask": "figs_jax.core.masks",
  "is_nm": "figs_jax.core.masks",
  "pack": "figs_jax.core.packing",
  "unpack": "figs_jax.core.packing",
  "flow": "figs_jax.core._flow",
  "cite": "figs_jax.recipes.citations",
  "permute_channels": "figs_jax.nn.channels",
  "prune": "figs_jax.pruning._prune",
  "sparsify": "figs_jax.nn._sparsify",
  "layers_of": "figs_jax.train.run_rows",
  "train_flops": "figs_jax.models.flops",
  "train_cost": "figs_jax.train.run_rows",
  "TrainState": "figs_jax.train.state",
  "train_step": "figs_jax.train.state",
}
_MODULES = {
  "losses": "figs_jax.train.losses",
  "study": "figs_jax.analysis.study",
}
_ROOMS = (
  "analysis",
  "cli",
  "core",
  "data",
  "engine",
  "export",
  "models",
  "nn",
  "optim",
  "pruning",
  "recipes",
  "train",
)

__all__ = list(_EXPORTS) + list(_ROOMS)


def __getattr__(name: str) -> Any:
  if name in _EXPORTS:
    return getattr(importlib.import_module(_EXPORTS[name]), name)
  if name in _MODULES:
    return importlib.import_module(_MODULES[name])
  if name in _ROOMS:
    return importlib.import_module(f"figs_jax.{name}")
  raise AttributeError(f"module 'figs_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return __all__
