"""Images and text by name: tensorflow-datasets (no TensorFlow) through grain.

One path serves `digits` (part of this package, prepared on first use),
any image set that the user has prepared, such as `cifar10` or `imagenet2012`,
and data of one's own (`figs_jax.data.own_data`); `figs_jax.data.text` serves
`stdlib_text` (which every Python carries), `c4`, `glue` and `wmt14_translate`.
The network is touched only under `download=True`.

`figs_jax.data.mixup` holds what runs inside the train step, on the device.
Names are resolved on first use, so that importing it needs jax only.
"""

import importlib
from typing import Any

_EXPORTS = {
  "DataError": "figs_jax.data.sources",
  "Description": "figs_jax.data.sources",
  "describe": "figs_jax.data.sources",
  "find_causal_text": "figs_jax.data.causal_text",
  "find_texts": "figs_jax.data.text",
  "load": "figs_jax.data.sources",
  "EvalBatches": "figs_jax.data.pipeline",
  "TrainBatches": "figs_jax.data.stream",
  "eval_batches": "figs_jax.data.pipeline",
  "train_batches": "figs_jax.data.pipeline",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
  if name in _EXPORTS:
    return getattr(importlib.import_module(_EXPORTS[name]), name)
  raise AttributeError(f"module 'figs_jax.data' has no attribute {name!r}")


def __dir__() -> list[str]:
  return __all__
