"""Layers to put through an engine: from a file, a model by name, or a run.

Each function returns label -> table, and imports what it needs only when it is
called: a table from a file needs neither Flax nor Orbax.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from figs_jax.core.rules import Rules, Words
from figs_jax.engine import Forward, Layers, read_layers
from figs_jax.engine.layers import read_pattern

Tables = dict[str, Layers]


def from_file(path: str | Path, pattern: str | None = None) -> Tables:
  """The layers of a table (`figs_jax.engine.read_layers`), labelled by file.

  Args:
    path: Path of the CSV file.
    pattern: One n:m replaces the pattern of the sparse layers, or of all if
      none is sparse. Rules, as in "fc1: 1:8, .*_proj: 2:4", name layers or
      match the whole of their names, and leave all others dense. V:2:M of VENOM
      is read too (`figs_jax.engine.layers.read_pattern`).

  Raises:
    ValueError: If the table or the pattern is bad, or no layer follows a rule.
  """
  table = read_layers(path)
  label = Path(path).name
  if pattern is None:
    return {label: table}
  single = Rules.parse(pattern).single
  if single is not None:
    return {label: table.with_pattern(single)}
  words = {name: re.escape(name) for name in table.names}
  return {label: with_rules(table, pattern, words, table.names)}


def with_rules(
  table: Layers, pattern: str, words: Words, names: Sequence[str]
) -> Layers:
  """The table with patterns by rules over some layers, all others dense.

  Args:
    table: Layers.
    pattern: Rules, or one pattern for all layers that may be sparse.
    words: Word -> regex of whole names.
    names: Names of the layers that may be sparse.

  Raises:
    ValueError: If the pattern cannot be read, or no layer follows a rule.

  >>> rows = [{"name": x, "M": 8, "N": 8, "K": 8} for x in ("ff", "head")]
  >>> with_rules(Layers.of(rows), "f.: 2:4", {}, ["ff", "head"]).m.tolist()
  [4, 1]
  """
  # No outputs, which V of V:N:M need not divide.
  kernels: dict[str, Any] = {
    name: ((k, 0), -2)
    for name, k in zip(table.names, table.K.tolist())
    if name in set(names)
  }
  leaves = Rules.parse(pattern).resolve(kernels, words)
  n, m, v = np.ones((3, len(table)), np.int64) * [[1], [1], [0]]
  for i, name in enumerate(table.names):
    if name in leaves:
      v[i], nm = read_pattern(leaves[name].pattern)
      n[i], m[i] = nm.n, nm.m
  return dataclasses.replace(
    table, n=n, m=m, masks=None, v=v if v.any() else None
  )


def model_of(spec: str, weights: str | Path | None = None) -> Any:
  """A model by name, of shapes alone.

  Args:
    spec: "family:variant" and options, as in "vit:B/16:image_size=384"; or a
      registered class and options, as in "Net:image_size=32:num_classes=10".
    weights: File of weights. The config.json of `transformers` beside it gives
      the options that the name does not.

  Returns:
    Abstract model, or a `figs_jax.models.Shape`.

  Raises:
    ValueError: If the family, variant or an option is unknown, or an option is
      given twice.

  >>> model_of("llama:8b").parameters
  8030261248
  """
  from figs_jax import models

  family, _, rest = spec.partition(":")
  variant, *options = rest.split(":")
  if family in models.REGISTERED:  # its options alone
    variant, options = "custom", rest.split(":") if rest else []
  if not variant:
    raise ValueError(
      f"model {spec!r}: write family:variant, as in 'vit:B/16'; known families:"
      f" {', '.join(sorted({*models.names(), *models.SHAPES}))}"
    )
  given: dict[str, Any] = {}
  for option in options:
    name, value = _option(spec, option)
    if name in given:
      raise ValueError(f"model {spec!r}: {name} is given twice; keep one")
    given[name] = value
  if weights is None and variant in models.SHAPES.get(family, ()):
    return models.shape_of(family, variant, **given)
  if weights is not None and family in models.FAMILIES:
    from figs_jax.models import pretrained

    kind = models.FAMILIES[family]
    config = pretrained.config_of(weights, kind.__name__)
    if config is not None:
      given = config.completed(kind.sizes(variant) | given)
  try:
    return models.abstract(family, variant, **given)
  except TypeError as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f"model {spec!r}: the value of an option is of the wrong type ({reason})"
    ) from error


def from_model(
  spec: str,
  batches: Sequence[int],
  pattern: str | None = None,
  weights: str | Path | None = None,
  *,
  seqs: Sequence[int] = (),
  contexts: Sequence[int] = (),
  phase: str | None = None,
) -> Tables:
  """The layers of a model by name, without or with its weights.

  Args:
    spec: "family:variant" and options, as in "vit:B/16:image_size=384".
    batches: Numbers of images (or sequences) per pass.
    pattern: Rules, as in "ff: 1:8", or one n:m for every kernel; None is dense.
      V:2:M of VENOM is read too.
    weights: File that `figs_jax.models.pretrained.load` reads. It gives the
      masks of the pattern; the zeros of all other kernels are masks as well.
    seqs: Numbers of tokens per sequence. Defaults to the model's own.
    contexts: Numbers of tokens of the prompt, or in the cache. Defaults to the
      longest that the model takes.
    phase: Phase of a decoder, "prefill" or "decode".

  Raises:
    ValueError: If the family, variant or an option is unknown, an option is
      given twice, the pattern or the weights do not fit, or the family has no
      such length, phase or weights.

  >>> tables = from_model("vit:Ti/16", [1, 8], "ff: 1:8")
  >>> [(label, int(table.M[0])) for label, table in tables.items()]
  [('vit:Ti/16, batch 1', 196), ('vit:Ti/16, batch 8', 1568)]
  >>> list(from_model("llama:8b", [8], phase="decode", contexts=[4096]))
  ['llama:8b, batch 8, decode, context 4096']
  """
  from figs_jax import models, nn
  from figs_jax.models.own_model import own_words

  model = model_of(spec, weights)
  is_shape = isinstance(model, models.Shape)
  if pattern is not None:
    if is_shape:
      model = model.with_rules(pattern)
    else:
      model = nn.sparsify(model, pattern, words=own_words(model, pattern))
  if weights is not None:
    if is_shape:
      raise ValueError(
        f"--weights {weights}: expected a model with weights, got {spec!r}, of"
        " which only the shapes are known"
      )
    model = _loaded(model, weights)
  tables = {}
  listed = models.lists_products(model)
  for batch, seq, context in itertools.product(
    batches, seqs or [None], contexts or [None]
  ):
    label = [spec, f"batch {batch}", phase]
    label += [f"seq {seq}" if seq else None]
    label += [f"context {context}" if context else None]
    lengths = {"seq": seq, "phase": phase, "context": context}
    rows = models.gemms_of(model, batch, **lengths)
    if weights is not None:
      from figs_jax.train.run_rows import layers_of, with_masks

      rows = (
        with_masks(model, rows, zeros=True)
        if listed
        else layers_of(model, batch, zeros=True)
      )
    forward = None
    if listed:
      beside = models.non_gemms_of(model, batch, **lengths)
      length = seq or context or getattr(model, "length", 0)
      forward = Forward.of(beside, length, phase or "")
    table = Layers.of(rows, forward)
    tables[", ".join(filter(None, label))] = table
  return tables


def _loaded(model: Any, weights: str | Path) -> Any:
  from figs_jax.models import own_model, pretrained
  from figs_jax.models.own_weights import load_own

  is_own = own_model.example_of(model) is not None
  return (load_own if is_own else pretrained.load)(model, weights)


def from_run(
  workdir: str | Path,
  batches: Sequence[int],
  pattern: str | None = None,
  **options: Any,
) -> Tables:
  """The layers of a run, with its real masks and the zeros of other kernels.

  Args:
    workdir: Directory of the run.
    batches: Numbers of images (or sequences) per pass.
    pattern: Pattern n:m in place of the trained one of the sparse layers, whose
      masks are then unknown.
    **options: step, seed, ema and data_dir, as for `figs_jax.layers_of`.

  Raises:
    ValueError: If the pattern is not n:m, or as `figs_jax.layers_of`.
  """
  from figs_jax import models
  from figs_jax.train.run_rows import layers_of
  from figs_jax.train.workdir import finished_model

  single = None if pattern is None else Rules.parse(pattern).single
  if pattern is not None and single is None:
    raise ValueError(
      f"pattern {pattern!r}: a run has its own rules; give n:m to replace its"
      " pattern"
    )
  model = finished_model(workdir, **options)
  tables = {}
  for batch in batches:
    forward = None
    if models.lists_products(model):
      forward = Forward.of(models.non_gemms_of(model, batch))
    table = Layers.of(layers_of(model, batch, zeros=True), forward)
    if single is not None:
      require_sparse(table, str(workdir))
      table = table.with_pattern(single)
    tables[f"{workdir}, batch {batch}"] = table
  return tables


def all_sparse(tables: Tables) -> Tables:
  """The tables ready for a sweep of patterns: sparse layers, or all if none is.

  >>> rows = [{"name": "ff", "M": 8, "N": 8, "K": 8}]
  >>> all_sparse({"it": Layers.of(rows)})["it"].m.tolist()
  [2]
  """
  return {
    # Any pattern will do; the sweep replaces it.
    label: table if (table.n < table.m).any() else table.with_pattern("1:2")
    for label, table in tables.items()
  }


def require_sparse(table: Layers, label: str) -> None:
  """Refuses to give a pattern to a model without a sparse layer.

  Raises:
    ValueError: If all layers are dense.
  """
  if (table.n == table.m).all():
    raise ValueError(
      f"{label}: the model is dense, so no layer would take the pattern; say"
      " which are sparse with rules, as in 'ff: 1:8'"
    )


def _option(spec: str, text: str) -> tuple[str, Any]:
  name, equals, value = text.partition("=")
  if not equals or not value:
    raise ValueError(
      f"model {spec!r}: cannot read {text!r}; write option=value, as in"
      " 'vit:B/16:image_size=384'"
    )
  if value in ("true", "false"):
    return name, value == "true"
  for kind in (int, float):
    try:
      return name, kind(value)
    except ValueError:
      continue
  return name, value
