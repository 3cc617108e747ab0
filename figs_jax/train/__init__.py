"""Training: from a configuration to an evaluated, checkpointed model.

Names are imported on first use, so that reading flags or the layers of a model
does not import Orbax.
"""

import importlib
from typing import Any

_EXPORTS = {
  "CheckpointError": "figs_jax.train.checkpoint",
  "Checkpointer": "figs_jax.train.checkpoint",
  "ConfigError": "figs_jax.train.config",
  "TrainState": "figs_jax.train.state",
  "Writer": "figs_jax.train.writers",
  "default_config": "figs_jax.train.config",
  "evaluate": "figs_jax.train._evaluate",
  "examples": "figs_jax.train._evaluate",
  "layers_of": "figs_jax.train.run_rows",
  "train_step": "figs_jax.train.state",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
  if name in _EXPORTS:
    return getattr(importlib.import_module(_EXPORTS[name]), name)
  raise AttributeError(f"module 'figs_jax.train' has no attribute {name!r}")


def __dir__() -> list[str]:
  return __all__
