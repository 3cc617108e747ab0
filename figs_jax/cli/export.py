"""Export of a finished model in the formats of other libraries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from figs_jax import export, nn
from figs_jax.core.diagnostics import check_nm
from figs_jax.core.packing import Layout
from figs_jax.core.pattern import NM
from figs_jax.core.rules import nearest
from figs_jax.core.tree import MaskedKernel
from figs_jax.models import FAMILIES, own_model
from figs_jax.models.own_weights import fill_own, own_weights
from figs_jax.models.pretrained.config import (
  for_transformers,
  published_leaves,
)
from figs_jax.models.pretrained.matching import published
from figs_jax.train import seeds
from figs_jax.train.state import TrainState, check_point
from figs_jax.train.workdir import finished_model, restore

FORMATS = (
  "dense", "packed", "nested", "torch-2:4", "stablehlo", "stablehlo-module",
)  # fmt: skip


def export_run(
  workdir: str | Path,
  out: str | Path,
  format: str,
  *,
  step: int | None = None,
  seed: int | None = None,
  ema: bool = False,
  data_dir: str | None = None,
  data: Any = None,
  overwrite: bool = False,
  points: str | None = None,
  **options: Any,
) -> list[str]:
  """Writes the finished model of a run; see `export_model`.

  Nothing is written to `workdir`. `step` defaults to the newest valid
  checkpoint and `seed`, an index, to the first; `ema` takes averaged weights;
  `data_dir` replaces the configured directory of the data sets, and `data` are
  those of a program that trained on them. For "nested", `points` is a list such
  as "1:8,2:8,8:8", by default that of the recipe `nested`. The other arguments
  and errors are those of `export_model`.

  Raises:
    ValueError: If `figs_jax.train.workdir.restore` raises it.
  """
  _check(out, format, overwrite)
  if format == "stablehlo-module":
    _plain(options.get("batch"), options.get("platform"))
  run: dict[str, Any] = {"seed": seed, "data_dir": data_dir, "data": data}
  if format == "nested":
    _, states, _ = restore(workdir, step, **run)
    state = next(seeds.singles(states))
    patterns = _patterns(state, points)
    model = state.finished(ema=ema, point=patterns[-1])
    options |= {"points": patterns, "leaves": state.bound.leaves}
    options["at"] = {nm: _statistics(state, ema, nm) for nm in patterns[:-1]}
  else:
    model = finished_model(workdir, step=step, ema=ema, **run)
  return export_model(model, out, format, overwrite=overwrite, **options)


def _statistics(state: TrainState, ema: bool, nm: NM) -> dict[str, Any]:
  """The batch statistics of a point by path; none if all points share them."""
  if not state.statistics:
    return {}
  weights = own_weights(state.finished(ema=ema, point=nm))
  return {path: weights[path] for path in state.statistics}


def _patterns(state: TrainState, points: str | None) -> list[NM]:
  """The points of a list, or those of the run's recipe."""
  own = state.recipe.points
  if points is None and own is None:
    raise export.ExportError(
      f"nested: expected --points, as in 1:8,2:8,8:8, for a run of the recipe"
      f" {state.recipe.name!r}"
    )
  if points is None:
    return list(own.patterns)
  return [check_point(state, part.strip()) for part in points.split(",")]


def export_model(
  model: nnx.Module,
  out: str | Path,
  format: str,
  *,
  dtype: str | None = None,
  layout: Layout = "indices",
  platforms: Sequence[str] = export.PLATFORMS,
  batch: int | None = None,
  platform: str | None = None,
  overwrite: bool = False,
  example: Any = None,
  points: Sequence[NM | str] = (),
  leaves: Mapping[str, MaskedKernel] | None = None,
  at: Mapping[NM, Mapping[str, Any]] | None = None,
) -> list[str]:
  """Writes a finished model (`TrainState.finished`).

  Args:
    model: A model of our families whose masked kernels are exactly N:M; or any
      other NNX model, whose weights keep their own paths.
    out: Directory for "dense", any file for "stablehlo" and "stablehlo-module",
      else a .safetensors file.
    format: "dense" is a checkpoint of `transformers`, with zeros (of another
      model, its weights by path and the name of its class); "packed" has
      kept values and their indices under figs_jax's own paths; "nested" has
      them in the order of their ranks, for `points`; "torch-2:4" has
      PyTorch's CUTLASS layout; "stablehlo" is the forward pass with its
      weights (for T5, with teacher forcing) as an artifact of `jax.export`, for
      any batch size; "stablehlo-module" the same as a plain StableHLO module.
    dtype: Type of the written weights: float32, bfloat16 or float16. Defaults
      to their own.
    layout: Layout of "packed": "indices" or "bitmask".
    platforms: Platforms that "stablehlo" can run on.
    batch: Batch size of "stablehlo-module".
    platform: Platform of "stablehlo-module": cpu, cuda, rocm or tpu.
    overwrite: Whether to replace `out`.
    example: Input of another model, whose first axis is the batch, for
      "stablehlo" and "stablehlo-module". Defaults to the images of a registered
      class.
    points: Patterns of "nested", n ascending; the model is finished at the
      last.
    leaves: Path -> `MaskedKernel` of the kernels of "nested". Defaults to those
      that the model masks, which are none at m:m.
    at: Weights of "nested" that differ at points before the last, by path, as
      batch statistics of each point.

  Returns:
    A description of the written files, in lines.

  Raises:
    ValueError: If (`ExportError`, `PretrainedError`) the format is unknown, a
      kernel is not N:M, the format cannot express the model, or `out` cannot be
      written.

  >>> import tempfile
  >>> from figs_jax import models
  >>> sizes = {"width": 8, "depth": 1, "heads": 2, "image_size": 4}
  >>> model = models.create("vit", "custom/2", num_classes=3, **sizes)
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   lines = export_model(model, f"{folder}/a.safetensors", "packed")
  >>> lines[0]
  '24 tensors, 0 of them N:M'
  """
  _check(out, format, overwrite)
  if format in ("stablehlo", "stablehlo-module"):
    plain = None
    if format == "stablehlo-module":
      plain = _plain(batch, platform)
    examples = _examples(model, plain[0] if plain else 2, example)
    return _stablehlo(
      model, Path(out), dtype, platforms, plain, examples, overwrite
    )
  config: dict[str, Any] = {}
  is_own = type(model) not in FAMILIES.values()
  if is_own and format == "torch-2:4":
    raise export.ExportError(
      f"torch-2:4: expected a model whose layout in PyTorch is known, got"
      f" {type(model).__name__}; choose --format packed or dense"
    )
  if is_own or format in ("packed", "nested"):
    tensors: Any = own_weights(model)
    leaves = nn.masked_leaves(model) if leaves is None else leaves
    config["architectures"] = [type(model).__name__]
  elif format == "dense":
    checkpoint = for_transformers(model)
    tensors, leaves = checkpoint.tensors, checkpoint.leaves
    config = checkpoint.config
  else:
    tensors, leaves = published(model), published_leaves(model)
  if dtype is not None:
    tensors = export.cast(tensors, dtype)
    at = {nm: export.cast(each, dtype) for nm, each in (at or {}).items()}
  lines = [f"{len(tensors)} tensors, {len(leaves)} of them N:M"]
  if format == "packed":
    export.write_packed(
      out, tensors, leaves, layout=layout, overwrite=overwrite
    )
  elif format == "nested":
    export.write_nested(
      out, tensors, leaves, points, at=at, overwrite=overwrite
    )
    lines[0] = f"{len(tensors)} tensors, {len(leaves)} of them by rank"
    lines += _prefixes(Path(out), points)
  elif format == "dense":
    config |= {} if dtype is None else {"dtype": dtype}
    export.write_dense(out, tensors, leaves, config, overwrite=overwrite)
  else:
    kept_dense = export.write_semi_structured(
      out, tensors, leaves, overwrite=overwrite
    )
    lines += [f"kept dense: {name}: {why}" for name, why in kept_dense.items()]
  size = sum(np.asarray(each).nbytes for each in tensors.values())
  return [*lines, f"{size} bytes of weights", *_checksums(Path(out))]


def _prefixes(out: Path, points: Sequence[NM | str]) -> list[str]:
  """Bytes to read of the whole model at each point."""
  lines = []
  for point in points:
    stored = sum(each.stored for each in export.weights(out, point=point))
    lines.append(f"{point}: {stored} bytes to read")
  return lines


def _stablehlo(
  model: nnx.Module,
  out: Path,
  dtype: str | None,
  platforms: Sequence[str],
  plain: tuple[int, str] | None,
  examples: list[np.ndarray],
  overwrite: bool,
) -> list[str]:
  """Writes a program, or a plain module of a batch size and platform."""
  try:
    check_nm(nn.split(model)[1], nn.masked_leaves(model))
  except ValueError as error:
    raise export.ExportError(str(error)) from error
  # The kernels already have the zeros of their masks.
  model = nn.sparsify(model, ".*: dense")
  model.eval()
  if dtype is not None:
    model = fill_own(model, export.cast(own_weights(model), dtype))
  graph, state = nnx.split(model)

  def forward(*inputs: Any) -> Any:
    return nnx.merge(graph, state)(*inputs)

  batch, platform = plain or (2, "")
  if plain:
    export.write_module(
      out, forward, examples, platform=platform, overwrite=overwrite
    )
    platforms = [platform]
  else:
    export.write_program(
      out, forward, examples, platforms=platforms, overwrite=overwrite
    )
  first = batch if plain else "batch"
  inputs = ", ".join(
    f"{x.dtype} [{', '.join(map(str, (first, *x.shape[1:])))}]"
    for x in examples
  )
  signature = f"{inputs} -> float32 logits; {', '.join(platforms)}"
  return [signature, *_checksums(out)]


def _plain(batch: int | None, platform: str | None) -> tuple[int, str]:
  """The batch size and platform of a plain module, both of which it needs."""
  if batch is None or batch < 1:
    raise export.ExportError(
      "stablehlo-module: expected a batch size from 1 (--batch), got"
      f" {batch}; a plain module has one"
    )
  if platform is None:
    raise export.ExportError(
      "stablehlo-module: expected a platform (--platform), got none; a plain"
      f" module has one of {', '.join(export.PLATFORMS)}"
    )
  return batch, platform


def _examples(model: Any, batch: int, example: Any) -> list[np.ndarray]:
  """Inputs of a model.

  Raises:
    ExportError: If the model is of no family and has no example.
  """
  rng = np.random.default_rng(0)
  example = own_model.example_of(model) if example is None else example
  if example is not None:
    shape = (batch, *example.shape[1:])
    return [rng.standard_normal(shape).astype(example.dtype)]
  if type(model) not in FAMILIES.values():
    raise export.ExportError(
      f"stablehlo: expected example=, an input of {type(model).__name__}, got"
      " none"
    )
  return [
    rng.integers(0, model.vocab, each.shape, np.int32)
    if np.issubdtype(each.dtype, np.integer)
    else rng.standard_normal(each.shape, np.float32)
    for each in model.example(batch)
  ]


def _check(out: str | Path, format: str, overwrite: bool) -> None:
  """Raises early, before the model is restored."""
  if format not in FORMATS:
    raise export.ExportError(
      f"Unknown format {format!r}; {nearest(format, FORMATS)}"
    )
  is_directory = format == "dense"
  if is_directory and Path(out).suffix == export.SUFFIX:
    raise export.ExportError(
      f"{out}: expected a directory, since the format dense is"
      f" {' and '.join(export.DENSE)}"
    )
  own = export.DENSE if is_directory else None
  export.check_free(out, overwrite=overwrite, own=own)
  if format in ("packed", "nested", "torch-2:4"):
    export.check_suffix(out)


def _checksums(out: Path) -> list[str]:
  """Size and SHA-256 of each file."""
  lines = []
  for path in sorted(out.iterdir()) if out.is_dir() else [out]:
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    lines.append(f"{path}: {path.stat().st_size} bytes, SHA-256 {digest}")
  return lines
