"""Exports the finished model of a run for transformers, PyTorch or a compiler.

  python launch/export.py --workdir RUN --out DIR --format dense
  python launch/export.py --workdir RUN --out F.safetensors --format packed
  python launch/export.py --workdir RUN --out F.safetensors --format nested
  python launch/export.py --workdir RUN --out F.safetensors --format torch-2:4
    --dtype bfloat16
  python launch/export.py --workdir RUN --out F.stablehlo --format stablehlo
  python launch/export.py --workdir RUN --out F.mlir --format stablehlo-module
    --batch 8 --platform cuda
  python launch/export.py --verify F.safetensors

The model is finished to exact N:M first, and refused if a kernel is not N:M.
Files are read back before they get their name, and are not overwritten without
--overwrite. --verify prints the pattern of every tensor in safetensors files.
"""

import os
from typing import Any

from absl import flags

# Weights are only copied: do not occupy an accelerator unless asked to.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from figs_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OUT = flags.DEFINE_string(
  "out", None, "File to write; for --format dense, a directory to make."
)
_OUT_FORMAT = flags.DEFINE_enum(
  "format",
  None,
  ["dense", "packed", "nested", "torch-2:4", "stablehlo", "stablehlo-module"],
  "dense: model.safetensors and config.json for transformers, with zeros."
  " packed: kept values and their indices. nested: the same in the order of"
  " their ranks, so that a prefix is a sparser model. torch-2:4: PyTorch's"
  " CUTLASS layout. stablehlo: the forward pass with its weights as an artifact"
  " of jax.export, for any batch size. stablehlo-module: the same as a plain"
  " StableHLO module,"
  " for one --batch and --platform.",
)
_VERIFY = flags.DEFINE_string(
  "verify", None, "A .safetensors file, or a directory of them, to survey."
)
_STEP = flags.DEFINE_integer(
  "step", None, "Step to restore. Defaults to the newest valid one."
)
_SEED = flags.DEFINE_integer(
  "seed", None, "Index of the seed, in a run with several. Defaults to 0."
)
_EMA = flags.DEFINE_bool(
  "ema", False, "Whether to export the averaged weights."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of the data, if it was moved after training."
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "Type of the written weights.",
)
_LAYOUT = flags.DEFINE_enum(
  "layout", "indices", ["indices", "bitmask"], "Layout of --format packed."
)
_POINTS = flags.DEFINE_string(
  "points",
  None,
  "Patterns of --format nested, like 1:8,2:8,8:8. Defaults to those of the"
  " recipe nested.",
)
_PLATFORMS = flags.DEFINE_list(
  "platforms", ["cpu", "cuda", "tpu"], "Platforms of --format stablehlo."
)
_BATCH = flags.DEFINE_integer(
  "batch", None, "Batch size of --format stablehlo-module.", lower_bound=1
)
_PLATFORM = flags.DEFINE_enum(
  "platform",
  None,
  ["cpu", "cuda", "rocm", "tpu"],
  "Platform of --format stablehlo-module.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether to replace --out.")
_RECIPE_FILE = cli.define_user_file("recipe")
_MODEL_FILE = cli.define_model_file()


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
  cli.run_model_files(_MODEL_FILE)
  from figs_jax.cli import compilation_cache
  from figs_jax.cli.export import export_run
  from figs_jax.data import DataError

  compilation_cache.enable()
  try:
    lines = export_run(
      str(_WORKDIR.value),
      str(_OUT.value),
      str(_OUT_FORMAT.value),
      step=_STEP.value,
      seed=_SEED.value,
      ema=_EMA.value,
      data_dir=_DATA_DIR.value,
      dtype=_DTYPE.value,
      layout=_LAYOUT.value,
      points=_POINTS.value,
      platforms=_PLATFORMS.value,
      batch=_BATCH.value,
      platform=_PLATFORM.value,
      overwrite=_OVERWRITE.value,
    )
  except (ValueError, DataError) as error:
    cli.fail(str(error))
  cli.say(*lines)


def _check_flags() -> None:
  """Fails if a flag would have no effect."""
  of_format = (
    (_LAYOUT, "packed"),
    (_POINTS, "nested"),
    (_PLATFORMS, "stablehlo"),
    (_BATCH, "stablehlo-module"),
    (_PLATFORM, "stablehlo-module"),
  )
  of_run = (
    _WORKDIR, _OUT, _OUT_FORMAT, _STEP, _SEED, _EMA, _DATA_DIR, _DTYPE,
    _OVERWRITE, _RECIPE_FILE, _MODEL_FILE, _LAYOUT, _POINTS,
    _PLATFORMS, _BATCH, _PLATFORM,
  )  # fmt: skip
  for flag in of_run if _VERIFY.value else ():
    if flag.present:
      cli.fail(f"--{flag.name} does not go with --verify; leave it out")
  for flag, only in of_format:
    if flag.present and _OUT_FORMAT.value not in (None, only):
      cli.fail(f"--{flag.name} goes with --format {only} only; leave it out")


def _verify(path: str) -> None:
  """Prints dtype, shape, share of zeros and patterns of each tensor."""
  from figs_jax.export import survey
  from figs_jax.export.atomic_write import printable

  count, sparse, file = 0, 0, None
  try:
    for tensor in survey(path):
      if tensor.path != file and os.path.isdir(path):
        file = tensor.path
        cli.say(printable(f"{file.name}:"))
      count, sparse = count + 1, sparse + bool(tensor.patterns)
      cli.say(_line(tensor))
  except ValueError as error:
    cli.fail(str(error))
  cli.say(f"{count} tensors, {sparse} with a pattern")


def _line(tensor: Any) -> str:
  shape = ",".join(map(str, tensor.shape))
  parts = [f"{tensor.name} {tensor.kind}[{shape}]"]
  if tensor.sparsity is not None:
    parts.append(f"zeros {tensor.sparsity:.4f}")
  for axes, pattern in tensor.patterns.items():
    parts.append(f"axis {','.join(map(str, axes))}: {pattern}")
  if tensor.declared is not None:
    parts.append(f"stored as {tensor.declared} in {tensor.stored} bytes")
  if tensor.note:
    parts.append(f"({tensor.note})")
  return "  ".join(parts)


if __name__ == "__main__":
  cli.run(main)
