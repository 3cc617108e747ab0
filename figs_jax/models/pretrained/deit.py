"""DeiT's parameters in published files, and the keys of its config.json.

The library's models always have a distillation token. With a teacher they read
it by a second head; `DeiTForImageClassification` reads the class token alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from figs_jax.models.pretrained.files import Tensor
from figs_jax.models.pretrained.keys import (
  CLASS_COUNT,
  Fields,
  Given,
  Table,
)
from figs_jax.models.pretrained.names import Dialect, Row
from figs_jax.models.pretrained.vit import (
  FIXES,
  KEYS,
  PLAIN,
  REFUSED,
  blocks,
  blocks_5,
  ends,
  learned,
)

_ONE: tuple[Row, ...] = (("dense", "classifier", "head"),)
_TWO: tuple[Row, ...] = (
  ("dense", "cls_classifier", "head"),
  ("dense", "distillation_classifier", "head_dist"),
)


def _dialect(name: str, *rows: Row) -> Dialect:
  token = ("plain", "deit.embeddings.distillation_token", "dist_token")
  return Dialect(
    name,
    (*ends("deit."), token, *rows),
    duplicates=((r"(deit\.)?embeddings\.mask_token", None),),
    heads=r"(deit\.)?pooler\.dense\.(weight|bias)|decoder\.0\.(weight|bias)",
    refused=REFUSED,
    fixes=FIXES,
  )


_DEIT = _dialect("DeiT", *blocks("deit."), *_ONE)
_TEACHER = _dialect("DeiT with a teacher", *blocks("deit."), *_TWO)
_DEIT_5 = _dialect("DeiT, transformers 5", *blocks_5("deit."), *_ONE)
_TEACHER_5 = _dialect(
  "DeiT with a teacher, transformers 5", *blocks_5("deit."), *_TWO
)

DIALECTS = (
  _DEIT,
  _TEACHER,
  _DEIT_5,
  _TEACHER_5,
  _DEIT.bare("deit."),
  _DEIT_5.bare("deit."),
)


def _heads(
  fields: Fields, options: Mapping[str, Given], tensors: Mapping[str, Tensor]
) -> dict[str, Given]:
  """One head or two, which the tensors say."""
  two = "distillation_classifier.weight" in tensors
  kind = "heads" if two else "token"
  return {**learned(), "distillation": Given("model_type", "deit", kind)}


def _architecture(model: Any) -> str:
  two = model.distillation == "heads"
  return f"DeiTForImageClassification{'WithTeacher' if two else ''}"


def _positions(model: Any) -> dict[str, np.ndarray]:
  """A fixed table of positions, stored as the learned ones are."""
  if model.pos == "learned":
    return {}
  name = "deit.embeddings.position_embeddings"
  return {name: np.asarray(model.positions())}


CONFIG = Table(
  architecture=_architecture,
  types={"deit": {}},
  keys=KEYS,
  follows=(CLASS_COUNT,),
  # Of models without a head and for masked images.
  harmless=("encoder_stride", "pooler_act", "pooler_output_size"),
  implied={"pool": "cls", **PLAIN},
  more=_heads,
  dialects=(_DEIT.name, _TEACHER.name),
  constants=_positions,
)
