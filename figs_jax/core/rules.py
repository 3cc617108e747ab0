"""Which pattern each kernel gets: ordered rules, the first match wins.

A rule is a key and a pattern (or `dense`). The key is a word of the model
family (`ff`, `qk`, ...) or a regular expression that must match the whole path
of a kernel, as in `blocks/\\d+/mlp/.*`. Kernels that no rule names stay dense.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping

from figs_jax.core.groups import axis_length
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel

_RULE = re.compile(
  r"\s*(?P<key>\S+?)\s*:\s*(?P<value>dense|\d+\s*:\s*\d+)\s*(?:,|$)"
)
_WORD = re.compile(r"[A-Za-z_]\w*")
Words = Mapping[str, str]


def nearest(word: str, choices) -> str:
  """A hint for an error message: the closest choice, then all of them.

  >>> nearest("fff", ["ff", "head"])
  "did you mean 'ff'? Known: ff, head"
  """
  choices = sorted(choices)
  close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
  hint = f"did you mean {close[0]!r}? Known" if close else "known"
  return f"{hint}: {', '.join(choices) or 'none'}"


def word_table(**words: str) -> dict[str, str]:
  """A family's words (word -> path regex), with `qk` and `qkv` added.

  >>> word_table(q="a/q", k="a/k", v="a/v")["qk"]
  '(?:a/q)|(?:a/k)'
  """
  table = dict(words)
  for union in ("qk", "qkv"):
    if union not in table and all(letter in words for letter in union):
      table[union] = "|".join(f"(?:{words[letter]})" for letter in union)
  return table


@dataclasses.dataclass(frozen=True)
class Rules:
  """Ordered (key, pattern or None for dense).

  >>> rules = Rules.parse("head: dense, ff: 1:8")
  >>> rules.rules
  (('head', None), ('ff', NM(n=1, m=8)))
  >>> str(rules)
  'head: dense, ff: 1:8'
  """

  rules: tuple[tuple[str, NM | None], ...]

  def __post_init__(self):
    if not self.rules:
      raise ValueError("Rules are empty: write at least one, as in 'ff: 1:8'")
    object.__setattr__(self, "rules", tuple(self.rules))
    for key, pattern in self.rules:
      if pattern is not None and not isinstance(pattern, NM):
        raise ValueError(
          f"rule {key!r}: {pattern!r} is no pattern; give NM(n, m) or None for"
          " dense, or read text with Rules.parse('ff: 1:8')"
        )
      if not _WORD.fullmatch(key):
        try:
          re.compile(key)
        except re.error as error:
          raise ValueError(
            f"rule {key!r} is no regular expression: {error}"
          ) from error

  @classmethod
  def parse(cls, text: str | Rules) -> Rules:
    """Reads "key: n:m, key: dense, ...".

    Raises:
      ValueError: the text is no such list, a pattern is illegal, or a key is
        not a regular expression.
    """
    if isinstance(text, cls):
      return text
    if not isinstance(text, str):
      raise ValueError(f"rules {text!r}: give text such as 'ff: 1:8'")
    found, at = [], 0
    while at < len(text.rstrip().rstrip(",")):
      match = _RULE.match(text, at)
      if match is None:
        raise ValueError(
          f"rules {text!r}: cannot read {text[at:].strip()!r}; write"
          " 'key: n:m' or 'key: dense', separated by commas, as in"
          " 'head: dense, ff: 1:8'"
        )
      key, value = match["key"], match["value"]
      try:
        pattern = None if value == "dense" else NM.parse(value)
      except ValueError as error:
        raise ValueError(f"rule {key!r}: {error}") from error
      found.append((key, pattern))
      at = match.end()
    return cls(tuple(found))

  def map(self, fn: Callable[[NM], NM]) -> Rules:
    """The same rules with every pattern replaced by `fn(pattern)`."""
    return Rules(
      tuple((key, None if nm is None else fn(nm)) for key, nm in self.rules)
    )

  def resolve(
    self,
    kernels: Mapping[str, tuple[tuple[int, ...], int | tuple[int, ...]]],
    words: Words,
  ) -> dict[str, MaskedKernel]:
    """Applies the rules: path -> `MaskedKernel` where a pattern is given.

    Args:
      kernels: path -> (shape, group axis) of every kernel that may be masked.
      words: the family's word table.

    Raises:
      ValueError: an unknown word, a rule that wins nowhere, or a group axis
        whose length m does not divide.
    """
    regexes = [re.compile(self._regex(key, words)) for key, _ in self.rules]
    wins = [0] * len(self.rules)
    leaves = {}
    for path, (shape, axis) in kernels.items():
      for i, (regex, (_, pattern)) in enumerate(zip(regexes, self.rules)):
        if regex.fullmatch(path):
          wins[i] += 1
          if pattern is not None and not pattern.is_dense:
            check_groups(path, shape, pattern, axis)
            leaves[path] = MaskedKernel(tuple(shape), pattern, axis)
          break
    for won, regex, (key, _) in zip(wins, regexes, self.rules):
      if not won:
        raise ValueError(self._dead(key, regex, kernels))
    return leaves

  def _regex(self, key: str, words: Words) -> str:
    if not _WORD.fullmatch(key):
      return key
    if key not in words:
      raise ValueError(
        f"rule {key!r}: no such word for this model, "
        f"{nearest(key, words)}; or write a path regex such as '.*/{key}/.*'"
      )
    return words[key]

  def _dead(self, key: str, regex: re.Pattern, kernels: Mapping) -> str:
    if any(regex.fullmatch(path) for path in kernels):
      return (
        f"rule {key!r} is dead: earlier rules win every kernel it matches;"
        " move it forward or delete it"
      )
    close = difflib.get_close_matches(key, kernels, n=1, cutoff=0.0)
    return (
      f"rule {key!r} matches no kernel (the whole path must match); the"
      f" nearest path is {close[0] if close else 'none'!r}"
    )

  def __str__(self) -> str:
    return ", ".join(
      f"{key}: {'dense' if nm is None else nm}" for key, nm in self.rules
    )


def check_groups(
  path: str, shape: tuple[int, ...], pattern: NM, axis: int | tuple[int, ...]
) -> None:
  """Raises ValueError unless m divides the (flattened) group axis."""
  length = axis_length(shape, axis)
  if length % pattern.m:
    raise ValueError(
      f"{path}: axis {axis} has length {length}, not a multiple of"
      f" m={pattern.m}; choose an m that divides it or exclude it with"
      f" '{path}: dense' before the rule"
    )
