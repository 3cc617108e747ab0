"""Rules that give each kernel its pattern: the first match wins.

A rule is a key and a pattern (or `dense`). The key is a word of the model
family (`ff`, `qk`, ...), `*` for every kernel, or a regular expression that
must match the whole path of a kernel, as in `blocks/\\d+/mlp/.*`. A kernel that
no rule matches stays dense.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping

from figs_jax.core.groups import axis_length, other_axis
from figs_jax.core.pattern import NM, VNM, parse_pattern
from figs_jax.core.tree import MaskedKernel

_RULE = re.compile(
  r"\s*(?P<key>\S+?)\s*:\s*(?P<value>dense|\d+\s*:\s*\d+(?:\s*:\s*\d+)?)\s*(?:,|$)"
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_SINGLE = re.compile(r"[\d\s:]*")  # one pattern, or an attempt at one
EVERY = "*"
Words = Mapping[str, str]
_MOST_NAMED, _FEW = 40, 10  # choices in a hint


def nearest(word: str, choices) -> str:
  """A hint for an error message: the closest choice, then all of them.

  Of more than 40 choices, the ten closest are named.

  >>> nearest("fff", ["ff", "head"])
  "did you mean 'ff'? Known: ff, head"
  """
  choices = sorted(choices)
  close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
  hint = f"did you mean {close[0]!r}? Known" if close else "known"
  if len(choices) > _MOST_NAMED:
    few = difflib.get_close_matches(word, choices, n=_FEW, cutoff=0)
    return f"{hint}: {', '.join(few)} and {len(choices) - _FEW} others"
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
  """Ordered pairs (key, pattern), where the pattern None means dense.

  >>> rules = Rules.parse("head: dense, ff: 1:8")
  >>> rules.rules
  (('head', None), ('ff', NM(n=1, m=8)))
  >>> str(rules)
  'head: dense, ff: 1:8'
  """

  rules: tuple[tuple[str, NM | None], ...]

  def __post_init__(self):
    if not self.rules:
      raise ValueError("Expected at least one rule, for example 'ff: 1:8'.")
    object.__setattr__(self, "rules", tuple(self.rules))
    for key, pattern in self.rules:
      if pattern is not None and not isinstance(pattern, NM):
        raise ValueError(
          f"Rule {key!r}: expected NM(n, m), or None for dense, got"
          f" {pattern!r}; Rules.parse('ff: 1:8') reads text."
        )
      if key != EVERY and not _WORD.fullmatch(key):
        try:
          re.compile(key)
        except re.error as error:
          raise ValueError(
            f"Rule {key!r}: invalid regular expression: {error}."
          ) from error

  @classmethod
  def parse(cls, text: str | NM | Rules) -> Rules:
    """Reads "key: n:m, key: dense, ..." or one pattern for every kernel.

    Args:
      text: Rules such as "head: dense, ff: 1:8", or one pattern such as "1:8"
        or NM(1, 8), which stands for `"*: 1:8"`. A pattern may be V:N:M, as in
        "ff: 64:2:8". `Rules` are returned unchanged.

    Raises:
      ValueError: If the text is malformed, a pattern does not satisfy
        1 <= n <= m, or a key is not a regular expression.

    >>> Rules.parse("1:8") == Rules.parse("*: 1:8") == Rules.parse(NM(1, 8))
    True
    """
    if isinstance(text, cls):
      return text
    if not isinstance(text, (str, NM)):
      raise ValueError(
        "Expected rules as text such as 'ff: 1:8', an NM or Rules, got"
        f" {text!r}."
      )
    if isinstance(text, NM) or _SINGLE.fullmatch(text):
      return cls(((EVERY, parse_pattern(text)),))
    rules, at = [], 0
    while at < len(text.rstrip().rstrip(",")):
      match = _RULE.match(text, at)
      if match is None:
        raise ValueError(
          f"Invalid rules {text!r}: expected 'key: n:m' or 'key: dense',"
          " separated by commas, for example 'head: dense, ff: 1:8', got"
          f" {text[at:].strip()!r}."
        )
      key, value = match["key"], match["value"]
      try:
        pattern = None if value == "dense" else parse_pattern(value)
      except ValueError as error:
        raise ValueError(f"Rule {key!r}: {error}") from error
      rules.append((key, pattern))
      at = match.end()
    return cls(tuple(rules))

  @property
  def single(self) -> NM | None:
    """The pattern, if the rules are one pattern for every kernel.

    >>> Rules.parse("1:8").single, Rules.parse("ff: 1:8").single
    (NM(n=1, m=8), None)
    """
    (key, pattern), *others = self.rules
    return pattern if key == EVERY and not others else None

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
    """Applies the rules: path -> `MaskedKernel`, dense kernels left out.

    Args:
      kernels: Path -> (shape, group axis) of every kernel that may be masked.
      words: Word -> path regex, the word table of the model family.

    Raises:
      ValueError: If a word is unknown, a rule wins nowhere, or m does not
        divide the length of a group axis.
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

  def asks_for(self, path: str, word: str, words: Words) -> bool:
    """Whether a rule whose regex holds a word matches a path.

    Kernels that are masked on request only are for such rules.

    Args:
      path: Path of the kernel.
      word: Text that the regex must hold.
      words: Same as in `resolve`; rules with other words are left out.

    >>> rules = Rules.parse("*: 2:4, .*/embedding: dense")
    >>> rules.asks_for("embed/embedding", "embedding", {})
    True
    >>> Rules.parse("*: 2:4").asks_for("embed/embedding", "embedding", {})
    False
    """
    keys = (words.get(key, key) for key, _ in self.rules)
    return any(word in key and re.fullmatch(key, path) for key in keys)

  def _regex(self, key: str, words: Words) -> str:
    if key == EVERY:
      return ".*"
    if not _WORD.fullmatch(key):
      return key
    if key not in words:
      raise ValueError(
        f"Rule {key!r}: unknown word for this model, {nearest(key, words)}; or"
        f" write a regex of the whole path, as in '.*/{key}/.*'."
      )
    return words[key]

  def _dead(self, key: str, regex: re.Pattern, kernels: Mapping) -> str:
    if any(regex.fullmatch(path) for path in kernels):
      return (
        f"Rule {key!r} is dead: earlier rules win every kernel it matches."
        " Move it forward or delete it."
      )
    close = difflib.get_close_matches(key, kernels, 5, cutoff=0.0)
    means = "the whole path must match"
    if regex.pattern not in (key, ".*"):
      means = f"the word stands for {regex.pattern}"
    return (
      f"Rule {key!r} matches no kernel ({means}); write a regex of the whole"
      f" path. Nearest kernels: {', '.join(close) or 'none'}."
    )

  def __str__(self) -> str:
    if self.single is not None:
      return str(self.single)
    return ", ".join(
      f"{key}: {'dense' if nm is None else nm}" for key, nm in self.rules
    )


def check_groups(
  path: str, shape: tuple[int, ...], pattern: NM, axis: int | tuple[int, ...]
) -> None:
  """Raises a ValueError unless m divides the (flattened) group axis.

  Of V:N:M, v must divide the outputs, too.
  """
  length = axis_length(shape, axis)
  if length % pattern.m:
    raise ValueError(
      f"{path}: axis {axis} has length {length}, not a multiple of"
      f" m={pattern.m}; choose an m that divides it, or exclude the kernel with"
      f" '{path}: dense' before the rule."
    )
  if isinstance(pattern, VNM):
    outputs = other_axis(len(shape), axis)
    if shape[outputs] % pattern.v:
      raise ValueError(
        f"{path}: axis {outputs} has length {shape[outputs]}, not a multiple of"
        f" v={pattern.v}, the outputs that share inputs in {pattern}; choose a"
        f" v that divides it, or exclude the kernel with '{path}: dense' before"
        " the rule."
      )
