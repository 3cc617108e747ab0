"""Hints for the names of fields that do not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Fields by what others call them.
_MEANT = {
  "lr": "optimizer.learning_rate",
  "learningrate": "optimizer.learning_rate",
  "batch": "batch_size",
  "bs": "batch_size",
  "epochs": "total_steps",
  "numepochs": "total_steps",
  "steps": "total_steps",
  "warmup": "optimizer.warmup_steps",
  "wd": "optimizer.weight_decay",
  "gradclip": "optimizer.clip",
  "accumulate": "grad_accum_steps",
  "ema": "ema_decay",
  "dropoutrate": "model.dropout",
  "precision": "model.dtype",
  "dataset": "data.name",
  "datadir": "data.data_dir",
  "sparsity": "pattern",
}
_EPOCHS = " (epochs * examples // batch_size)"


def near(name: str, known: Iterable[str]) -> str:
  """A hint with at most five fields that an unknown one may mean.

  Args:
    name: Dotted name of the unknown field.
    known: Dotted names of the known ones.

  >>> near("epochs", ["total_steps", "seed"])
  '; did you mean total_steps (epochs * examples // batch_size)?'
  """
  known, last = list(known), name.rpartition(".")[2].lower()
  meant = _MEANT.get(re.sub(r"[-_]", "", last))
  close = [meant] if meant in known else []
  close += [field for field in known if field.rpartition(".")[2] == last]
  close += difflib.get_close_matches(name, known, 5, 0.6)
  ends = {field.rpartition(".")[2]: field for field in known}
  close += [ends[e] for e in difflib.get_close_matches(last, ends, 5, 0.7)]
  if not close:
    return "; --help lists all fields"
  fields = ", ".join(list(dict.fromkeys(close))[:5])
  epochs = "epoch" in last and fields.startswith("total_steps")
  return f"; did you mean {fields}{_EPOCHS if epochs else ''}?"
