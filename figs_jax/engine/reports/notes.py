"""What a reader of a report must know of its engines, as sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from figs_jax.engine.energy import Energy
from figs_jax.engine.layers import Layers
from figs_jax.engine.reports.tables import NO_ENERGY
from figs_jax.engine.spec import UNLIMITED, Engine

_WHOLE = (
  "cycles and speedup are of the products alone; whole_cycles and whole_speedup"
  " add norms, softmax, activations, residual additions and embeddings, each a"
  " pass through the memory."
)


def notes_of(
  table: Layers, engines: Sequence[Engine], dtype: str | None
) -> dict[str, None]:
  """What the engines assume of these layers, sentence by sentence."""
  masks = table.masks or [None] * len(table)
  sparse = [mask for mask, m, n in zip(masks, table.m, table.n) if n < m]
  known = sum(mask is not None for mask in sparse)
  engines = [engine.at(dtype) if dtype else engine for engine in engines]
  notes = dict.fromkeys(engine.note(len(sparse), known) for engine in engines)
  notes.pop("", None)
  plain = [str(engine) for engine in engines if not engine.NARROWS]
  if table.v is not None and table.v.any() and plain:
    notes[f"V:N:M runs as N:M on {', '.join(plain)}."] = None
  if table.forward is not None:
    notes[_WHOLE] = None
    ports = [
      str(engine)
      for engine in engines
      if np.any(np.asarray(engine.memory_bandwidth) == UNLIMITED)
    ]
    if ports:
      notes[
        f"Where no memory is given ({', '.join(ports[:3])}"
        f"{', ...' if len(ports) > 3 else ''}), that is the input ports."
      ] = None
  return ({f"Operands are {dtype}.": None} if dtype else {}) | notes


def energy_note(
  machines: Sequence[Engine], energy: Energy | None
) -> dict[str, None]:
  names = [str(engine) for engine in machines if not engine.is_array]
  if energy is not None or not names:
    return {}
  return {
    f"energy_pj is {NO_ENERGY} on {', '.join(names[:3])}"
    f"{', ...' if len(names) > 3 else ''}: the table of picojoules is of 45 nm"
    " arrays and says nothing of a GPU or TPU; energy= (--energy) takes your"
    " own.": None
  }
