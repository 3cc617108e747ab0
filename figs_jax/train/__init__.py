"""From a configuration to a trained, checkpointed, evaluated model."""

from figs_jax.train.checkpoint import Checkpointer, CheckpointError
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.state import TrainState, train_step

__all__ = [
  "CheckpointError",
  "Checkpointer",
  "ConfigError",
  "TrainState",
  "default_config",
  "train_step",
]
