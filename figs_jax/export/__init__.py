"""Export of finished weights to checked files of plain arrays.

Trees of arrays in, files out. Each file is read back before it gets its name.
Models and workdirs are handled by `figs_jax.cli.export`.
"""

from figs_jax.export._survey import Finding, survey
from figs_jax.export.atomic_write import ExportError, check_free
from figs_jax.export.files import SUFFIX, Entry, check_suffix, opened, write
from figs_jax.export.reader import Weight, read, weights
from figs_jax.export.semi_structured import compress, decompress
from figs_jax.export.stablehlo import (
  PLATFORMS,
  read_program,
  write_module,
  write_program,
)
from figs_jax.export.writers import (
  DENSE,
  cast,
  write_dense,
  write_nested,
  write_packed,
  write_semi_structured,
)

__all__ = [
  "DENSE",
  "PLATFORMS",
  "SUFFIX",
  "Entry",
  "ExportError",
  "Finding",
  "Weight",
  "cast",
  "check_free",
  "check_suffix",
  "compress",
  "decompress",
  "opened",
  "read",
  "read_program",
  "survey",
  "weights",
  "write",
  "write_dense",
  "write_module",
  "write_nested",
  "write_packed",
  "write_program",
  "write_semi_structured",
]
