"""Whose weights a file holds, by its names, and what to say of the others.

Families share names, above all where a file has no prefix: every encoder has an
`encoder.layer.0.output.dense.weight`. Only names of a single family speak for
that family, and only if its scheme explains nearly all names of the file.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterable, Mapping

from figs_jax.models.pretrained.files import PretrainedError
from figs_jax.models.pretrained.names import KINDS, Dialect

Families = Mapping[str, tuple[Dialect, ...]]
# Shares of the names that a scheme must explain, for a family to be named and
# for a file to be compared name by name.
_NAMED, _COMPARED = 0.9, 0.5
# Tensors that no model of ours has, whatever its family.
_FOREIGN = (
  (
    r".*\blora_[AB]\b.*",
    "a LoRA adapter; merge it first, as with peft's merge_and_unload()",
  ),
  (
    r".*\.(qweight|qzeros|g_idx|SCB|weight_scale|weight\.(absmax|quant_.*))",
    "quantized weights; save them as float32 or bfloat16",
  ),
)


@functools.cache
def known(dialect: Dialect) -> re.Pattern[str]:
  """A regex of all names in a dialect."""
  names = {
    pattern(theirs + end).pattern
    for kind, theirs, _ in dialect.rows
    for end, *_ in KINDS[kind]
  }
  return re.compile("|".join(sorted(names)))


def pattern(theirs: str) -> re.Pattern[str]:
  """A regex of the names that one name in a table stands for.

  >>> bool(pattern("layer.{i}.bias").fullmatch("layer.11.bias"))
  True
  """
  numbered = re.sub(r"\\{[is](\\\+1)?\\}", r"\\d+", re.escape(theirs))
  return re.compile(numbered)


def spoken(
  own: str,
  families: Families,
  wanted: Mapping[Dialect, set[str]],
  names: Iterable[str],
  where: str,
) -> Dialect:
  """The dialect of a file for a model of the family `own`.

  Args:
    own: Name of the model's class.
    families: Dialects by the name of the model's class.
    wanted: The names that the model asks for, in each dialect of its family.
    names: Names in the file.
    where: Source of the tensors, for error messages.

  Raises:
    PretrainedError: If the weights are of another family, or wrapped, or of
      none that we read.
  """
  names = set(names)
  matches = {
    family: {
      name for name in names if any(known(d).fullmatch(name) for d in each)
    }
    for family, each in families.items()
  }
  for family, dialects in families.items():
    if family == own:
      continue
    rest = (m for other, m in matches.items() if other != family)
    sole = matches[family].difference(*rest)
    mine = matches[own].difference(
      *(m for other, m in matches.items() if other != own)
    )
    if len(sole) > len(mine) and _share(dialects, names) >= _NAMED:
      raise PretrainedError(
        f"{where}: expected weights of a {own}, got those of a {family}"
      )
  best = max(families[own], key=lambda each: len(wanted[each] & names))
  check_foreign(best, names, where)
  _check_prefix(families[own], names, where)
  if _share(families[own], names) < _COMPARED:
    some = ", ".join(sorted(names)[:3]) or "nothing"
    raise PretrainedError(
      f"{where}: expected tensors of a {own}, got {some}, which are not the"
      " names of a family that figs_jax reads"
    )
  return best


def check_foreign(dialect: Dialect, names: Iterable[str], where: str) -> None:
  """Raises PretrainedError at a tensor that no option gives a place to."""
  for name in sorted(names):
    for regex, what in (*dialect.refused, *_FOREIGN):
      if re.fullmatch(regex, name):
        raise PretrainedError(f"{where}: {name} belongs to {what}")


def _share(dialects: Iterable[Dialect], names: set[str]) -> float:
  """The largest share of the names that one dialect explains."""
  counts = (sum(bool(_explains(d, n)) for n in names) for d in dialects)
  return max(counts) / max(len(names), 1)


def _explains(dialect: Dialect, name: str) -> bool:
  others = (dialect.heads, *(regex for regex, *_ in dialect.duplicates))
  return bool(known(dialect).fullmatch(name)) or any(
    re.fullmatch(regex, name) for regex in others
  )


def _check_prefix(
  dialects: Iterable[Dialect], names: set[str], where: str
) -> None:
  """Raises if names would be right without the prefix that most have."""
  dialects = tuple(dialects)
  starts = collections.Counter(
    ".".join(name.split(".")[:count]) + "."
    for name in names
    for count in (1, 2)
    if name.count(".") >= count
  )
  plain = _share(dialects, names)
  for prefix, count in starts.most_common(4):
    bare = {name.removeprefix(prefix) for name in names}
    share = _share(dialects, bare)
    if count > len(names) * _NAMED and share > max(_COMPARED, 1.5 * plain):
      raise PretrainedError(
        f"{where}: the names begin with {prefix!r}, which a wrapper of the"
        " model added; save the tensors without it, as"
        f" {{name.removeprefix({prefix!r}): x for name, x in tensors.items()}}"
      )
