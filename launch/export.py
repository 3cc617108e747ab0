"""Hands a run's finished model on: to transformers, PyTorch, or any compiler.

  python launch/export.py --workdir RUN --out DIR --format dense
  python launch/export.py --workdir RUN --out F.safetensors --format packed
  python launch/export.py --workdir RUN --out F.safetensors --format torch-2:4
    --dtype bfloat16
  python launch/export.py --workdir RUN --out F.stablehlo --format stablehlo
  python launch/export.py --verify F.safetensors

The model is finished to hard N:M first, and refused if a kernel is not. What is
written is read back before it has its name, and nothing is overwritten unasked.
--verify tells the pattern of every tensor of any safetensors file.
"""

import os
from typing import Any

from absl import flags

# Only the weights are moved: no accelerator is taken for that unasked.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from figs_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OUT = flags.DEFINE_string(
  "out", None, "File to write; of the format dense, a directory to make."
)
_OUT_FORMAT = flags.DEFINE_enum(
  "format",
  None,
  ["dense", "packed", "torch-2:4", "stablehlo"],
  "dense: model.safetensors and config.json for transformers, with zeros."
  " packed: kept values and their places. torch-2:4: PyTorch's CUTLASS layout."
  " stablehlo: the forward pass with its weights, for any batch.",
)
_VERIFY = flags.DEFINE_string(
  "verify", None, "Any .safetensors file, or directory of them, to look at."
)
_STEP = flags.DEFINE_integer(
  "step", None, "Step to restore; the newest good one by default."
)
_SEED = flags.DEFINE_integer(
  "seed", None, "Of a run with seeds, the place of one; 0 by default."
)
_EMA = flags.DEFINE_bool("ema", False, "Export the averaged weights.")
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16", "float16"], "Casts the weights."
)
_LAYOUT = flags.DEFINE_enum(
  "layout", "indices", ["indices", "bitmask"], "Of --format packed."
)
_PLATFORMS = flags.DEFINE_list(
  "platforms", ["cpu", "cuda", "tpu"], "Of --format stablehlo."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out.")
_RECIPE_FILE = cli.define_user_file("recipe")


def main() -> None:
  cli.quiet()
  if _VERIFY.value == "":
    cli.fail("--verify is empty; name a file")
  _check_flags()
  if _VERIFY.value:
    _verify(_VERIFY.value)
    return
  for flag in (_WORKDIR, _OUT, _OUT_FORMAT):
    if not flag.value:
      cli.fail(f"--{flag.name} is missing; see --help")
  cli.run_user_file(_RECIPE_FILE)
  from figs_jax.cli.export import export_run

  try:
    lines = export_run(
      str(_WORKDIR.value),
      str(_OUT.value),
      str(_OUT_FORMAT.value),
      step=_STEP.value,
      seed=_SEED.value,
      ema=_EMA.value,
      dtype=_DTYPE.value,
      layout=_LAYOUT.value,
      platforms=_PLATFORMS.value,
      overwrite=_OVERWRITE.value,
    )
  except ValueError as error:
    cli.fail(str(error))
  cli.say(*lines)


def _check_flags() -> None:
  """Ends the program where a flag would have no effect."""
  of_format = (_LAYOUT, "packed"), (_PLATFORMS, "stablehlo")
  of_run = (
    _WORKDIR, _OUT, _OUT_FORMAT, _STEP, _SEED, _EMA, _DTYPE, _OVERWRITE,
    _RECIPE_FILE, _LAYOUT, _PLATFORMS,
  )  # fmt: skip
  for flag in of_run if _VERIFY.value else ():
    if flag.present:
      cli.fail(f"--{flag.name} does not go with --verify; leave it out")
  for flag, only in of_format:
    if flag.present and _OUT_FORMAT.value not in (None, only):
      cli.fail(f"--{flag.name} goes with --format {only} only; leave it out")


def _verify(path: str) -> None:
  """A line per tensor: dtype, shape, share of zeros, pattern of each axis."""
  from figs_jax.export import survey
  from figs_jax.export.atomic_write import printable

  count, sparse, file = 0, 0, None
  try:
    for found in survey(path):
      if found.path != file and os.path.isdir(path):
        file = found.path
        cli.say(printable(f"{file.name}:"))
      count, sparse = count + 1, sparse + bool(found.patterns)
      cli.say(_line(found))
  except ValueError as error:
    cli.fail(str(error))
  cli.say(f"{count} tensors, {sparse} with a pattern")


def _line(found: Any) -> str:
  shape = ",".join(map(str, found.shape))
  words = [f"{found.name} {found.kind}[{shape}]"]
  if found.sparsity is not None:
    words.append(f"zeros {found.sparsity:.4f}")
  for axes, pattern in found.patterns.items():
    words.append(f"axis {','.join(map(str, axes))}: {pattern}")
  if found.told is not None:
    words.append(f"stored as {found.told} in {found.stored} bytes")
  return "  ".join(words)


if __name__ == "__main__":
  cli.run(main)
