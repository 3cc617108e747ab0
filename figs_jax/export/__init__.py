"""Finished weights for others: checked files of plain arrays.

Trees of arrays in, files out, each read back before it gets its name. Nothing
here knows a model or a workdir; `figs_jax.train.export` does.
"""

from figs_jax.export.files import Entry, opened, write
from figs_jax.export.place import ExportError

__all__ = [
  "Entry",
  "ExportError",
  "opened",
  "write",
]
