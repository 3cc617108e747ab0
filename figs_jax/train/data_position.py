"""Positions in the data of a run, as its checkpoints hold them."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger("figs_jax")
# Fields without which a position in the data means nothing.
_OF_STREAM = (
  "data.name",
  "data.seed",
  "data.order",
  "data.train_split",
  "data.vocabulary",
  "data.input_length",
  "data.mean_span",
  "data.density",
  "data.pack",
  "data.stream",
  "data.shuffle_buffer",
)


def moved(
  position: dict[str, Any], batch_size: int, changed: list[str], order: str
) -> dict[str, Any] | None:
  """A saved position in the data, for a configuration with these changes.

  Args:
    position: Saved position; in figs_jax 0.1 it counted batches.
    batch_size: Batch size with which it was saved.
    changed: Fields that differ from the saved ones.
    order: Value of `data.order`; with "own", the seed decides the data too.

  Returns:
    The position, or None if the data changed, so that it means nothing.

  >>> moved({"next_batch": 3}, 64, ["batch_size"], "own")
  {'next_example': 192}
  """
  fields = (*_OF_STREAM, "seed") if order == "own" else _OF_STREAM
  if other := [name for name in changed if name in fields]:
    _log.warning(
      "another %s: the saved position means nothing there; starting an epoch",
      ", ".join(other),
    )
    return None
  if isinstance(batches := position.get("next_batch"), int):
    return {"next_example": batches * batch_size}
  return position


def data_set(batches: Any) -> dict[str, Any]:
  """What a checkpoint says of its data, beside the position.

  Args:
    batches: Batches of a run, as from `figs_jax.data.train_batches`.

  >>> import types
  >>> data_set(types.SimpleNamespace(num_examples=9, data_set="digits/1.0.0"))
  {'num_examples': 9, 'data_set': 'digits/1.0.0'}
  """
  return {"num_examples": batches.num_examples, "data_set": batches.data_set}


def is_of(position: dict[str, Any], batches: Any) -> bool:
  """Whether a saved position belongs to this data; warns if it does not.

  Args:
    position: Saved position. What it lacks, as in figs_jax 0.1, is not
      compared.
    batches: Batches of the run that goes on.

  >>> import types
  >>> batches = types.SimpleNamespace(num_examples=9, data_set="digits/1.0.0")
  >>> [is_of({"num_examples": count}, batches) for count in (9, 8)]
  [True, False]
  """
  now = data_set(batches)
  saved = {name: position.get(name, value) for name, value in now.items()}
  if saved == now:
    return True
  _log.warning(
    "expected %s with %s training examples, got %s with %s: the saved position"
    " means nothing there; starting an epoch",
    saved["data_set"],
    saved["num_examples"],
    now["data_set"],
    now["num_examples"],
  )
  return False
