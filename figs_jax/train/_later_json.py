"""An item of an Orbax checkpoint: JSON that is computed in the background."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp


class LaterJson(ocp.JsonCheckpointHandler):
  """Writes a JSON value that is computed while the arrays are written."""

  async def async_save(
    self, directory: Any, item: Any = None, args: Any = None
  ) -> list[Any] | None:
    del item

    async def write() -> None:
      value = args.value()
      if jax.process_index() == 0:
        (directory / "metadata").write_text(json.dumps(value))

    # In a thread of its own, once Orbax has made the directory.
    return [ocp.future.CommitFutureAwaitingContractedSignals(write())]


@ocp.args.register_with_handler(LaterJson, for_save=True, for_restore=True)
@dataclasses.dataclass
class LaterJsonSave(ocp.args.CheckpointArgs):
  """Argument of `LaterJson`; `ocp.args.JsonRestore` reads what it wrote.

  Attributes:
    value: Function of no arguments that returns the JSON value; every process
      calls it.
  """

  value: Callable[[], Any]
