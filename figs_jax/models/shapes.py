"""Published language models as shapes: what they compute, without weights.

  llama  arXiv 2307.09288 (Llama 2), 2407.21783 (Llama 3): RMS norms, SwiGLU,
         rotary positions, grouped keys and values, no biases, a tied head in
         small models of 3.2
  gpt2   Radford et al. 2019: LayerNorms, gelu, learned positions, tied head
  bert   arXiv 1810.04805, uncased: norms after the branches, token types, a
         pooler over the first token, no head

A decoder runs whole sequences, or serves in two phases. "prefill" computes all
tokens of a prompt and the logits of the last one. "decode" computes one token
of each sequence, which attends to the keys and values in the cache. Query heads
that share a key head form one product with it, so that a cache is read once per
key head. Of a causal mask nothing is saved: attention is counted as a square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules, nearest, word_table
from figs_jax.models import gemm, non_gemm
from figs_jax.models.sizes import check_heads, check_positive

PHASES = ("prefill", "decode")
_BLOCK = r"blocks/(?:\d+/)?"


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes of a language model.

  Attributes:
    family: Name of the family.
    width: Width of the tokens.
    depth: Number of blocks.
    heads: Number of query heads.
    kv_heads: Number of key and value heads, a divisor of heads.
    mlp_dim: Width of the feed-forward layers.
    vocab: Number of ids.
    length: Longest sequence, the default of `seq` and `context`.
    head_dim: Width of a head. 0 stands for width / heads.
    causal: Whether it is a decoder with a head, as opposed to an encoder with a
      pooler.
    tied: Whether the head is the embedding.
    rotary: Whether positions rotate q and k, as opposed to a learned table.
    gated: Whether an activation gates a second product.
    relu2: Whether that activation, or gelu, is the squared ReLU.
    biases: Whether products and norms have biases.
    token_types: Number of token types; 0 without.
    scan: Whether the blocks are one row each, counted `depth` times, as in a
      scanned model.
    patterns: Patterns of kernels by path.

  Raises:
    ValueError: If a size is below 1 or heads do not divide.
  """

  family: str
  width: int
  depth: int
  heads: int
  kv_heads: int
  mlp_dim: int
  vocab: int
  length: int
  head_dim: int = 0
  causal: bool = True
  tied: bool = False
  rotary: bool = False
  gated: bool = False
  relu2: bool = False
  biases: bool = True
  token_types: int = 0
  scan: bool = True
  patterns: Mapping[str, NM] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check_positive(
      self, "width", "depth", "heads", "kv_heads", "mlp_dim", "vocab", "length"
    )
    if not self.head_dim:
      check_heads(self.family, self.width, self.heads)
      object.__setattr__(self, "head_dim", self.width // self.heads)
    check_positive(self, "head_dim")
    check_heads(self.family, self.heads, self.kv_heads)

  @property
  def words(self) -> dict[str, str]:
    """The words of rules, as the classes of `figs_jax.models` have them."""
    attention = {x: rf"{_BLOCK}attn/{x}/kernel" for x in ("q", "k", "v", "o")}
    head = {} if self.tied else {"head": r"(?:head|pooler)/kernel"}
    return word_table(
      ff=rf"{_BLOCK}mlp/(?:gate|up|down|fc1|fc2)/kernel", **attention, **head
    )

  @property
  def kernels(self) -> dict[str, tuple[tuple[int, ...], int]]:
    """Path -> (shape, axis of the groups) of every kernel but embeddings.

    A tied head is one of these.
    """
    stacked = (self.depth,) if self.scan else ()
    return {
      f"{name}/kernel": ((stacked if "/" in name else ()) + (k, n), -2)
      for name, (n, k) in self._linears().items()
      if not (self.tied and name == "head")
    }

  @property
  def parameters(self) -> int:
    """The number of parameters.

    >>> shape_of("gpt2", "small").parameters
    124439808
    """
    blocks = dataclasses.replace(self, scan=False, patterns={})._linears()
    if self.causal and self.tied:
      del blocks["head"]
    kernels = sum(n * k + self.biases * n for n, k in blocks.values())
    if self.causal and self.biases and not self.tied:
      kernels -= self.vocab  # a head has no bias
    norms = (2 * self.depth + 1) * (1 + self.biases) * self.width
    rows = self.vocab + self.token_types
    rows += 0 if self.rotary else self.length
    return kernels + norms + rows * self.width

  def with_rules(self, rules: Rules | NM | str) -> Shape:
    """The shape with patterns, as `figs_jax.sparsify` gives them to a model.

    Raises:
      ValueError: If a rule fits no kernel, or m divides no group axis.

    >>> shape = shape_of("llama", "8b").with_rules("ff: 2:4")
    >>> sorted(shape.patterns)[0], str(shape.patterns["blocks/mlp/up/kernel"])
    ('blocks/mlp/down/kernel', '2:4')
    """
    leaves = Rules.parse(rules).resolve(self.kernels, self.words)
    patterns = {path: leaf.pattern for path, leaf in leaves.items()}
    return dataclasses.replace(self, patterns=patterns)

  def gemms(
    self,
    batch: int,
    seq: int | None = None,
    phase: str | None = None,
    context: int | None = None,
  ) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.gemms_of`."""
    queries, keys = self._lengths(seq, phase, context)
    depth, group = self.head_dim, self.heads // self.kv_heads
    rows = []
    last = batch if phase or not self.causal else batch * queries
    for name, (n, k) in self._linears().items():
      stem, _, part = name.rpartition("/")
      count = self.depth if self.scan and stem else 1
      tokens = batch * queries if stem else last
      pattern = self.patterns.get(f"{name}/kernel")
      linear = gemm.row(name, tokens, n, k, None, count)
      if part == "o":
        many = batch * self.kv_heads * count
        lines = group * queries
        rows += [
          gemm.row(f"{stem}/qk", lines, keys, depth, None, many),
          gemm.row(f"{stem}/av", lines, depth, keys, None, many),
        ]
      rows.append(linear | {"pattern": pattern})
    return rows

  def non_gemms(
    self,
    batch: int,
    seq: int | None = None,
    phase: str | None = None,
    context: int | None = None,
  ) -> list[dict[str, Any]]:
    """The rows of `figs_jax.models.non_gemms_of`."""
    queries, keys = self._lengths(seq, phase, context)
    tokens, parameters = batch * queries, 1 + self.biases
    size, hidden = tokens * self.width, tokens * self.mlp_dim
    # Rows of the embeddings, and those of the positions, which sequences share.
    read = size * (1 + bool(self.token_types))
    read += 0 if self.rotary else queries * self.width
    rows = [non_gemm.row("embed", "embedding", read, size)]
    sole = 1, parameters
    if not self.causal:
      rows.append(non_gemm.norm("norm", tokens, self.width, *sole))
    usual = "silu" if self.gated else "gelu"
    act = f"mlp/{'relu2' if self.relu2 else usual}"
    turned = tokens * (self.heads + self.kv_heads) * self.head_dim
    logits = tokens * self.heads * keys
    each = (self.depth,) if self.scan else (1,) * self.depth
    for i, count in enumerate(each):
      name, norm = self._block(i), (self.width, count, parameters)
      rows.append(non_gemm.norm(f"{name}/norm1", tokens, *norm))
      if self.rotary:
        path = f"{name}/attn/rotary"
        rows.append(non_gemm.row(path, "rotary", turned, turned, count))
      rows += [
        non_gemm.softmax(f"{name}/attn/softmax", logits, count),
        non_gemm.residual(f"{name}/attn/residual", size, count),
        non_gemm.norm(f"{name}/norm2", tokens, *norm),
        non_gemm.activation(f"{name}/{act}", hidden, count, 1 + self.gated),
        non_gemm.residual(f"{name}/mlp/residual", size, count),
      ]
    if self.causal:
      rows.append(non_gemm.norm("norm", tokens, self.width, *sole))
    else:
      rows.append(non_gemm.activation("pooler/tanh", batch * self.width))
    return rows

  def _block(self, index: int) -> str:
    return "blocks" if self.scan else f"blocks/{index}"

  def _linears(self) -> dict[str, tuple[int, int]]:
    """Path -> (N, K) of every kernel, in the order of a forward pass."""
    width, inner = self.width, self.heads * self.head_dim
    keys, hidden = self.kv_heads * self.head_dim, self.mlp_dim
    mlp = {"fc1": (hidden, width), "fc2": (width, hidden)}
    if self.gated:
      mlp = dict.fromkeys(("gate", "up"), (hidden, width))
      mlp["down"] = (width, hidden)
    attn = {"q": (inner, width), "k": (keys, width), "v": (keys, width)}
    attn["o"] = (width, inner)
    linears = {}
    for i in range(1 if self.scan else self.depth):
      name = self._block(i)
      linears |= {f"{name}/attn/{part}": size for part, size in attn.items()}
      linears |= {f"{name}/mlp/{part}": size for part, size in mlp.items()}
    end = ("head", self.vocab) if self.causal else ("pooler", width)
    return linears | {end[0]: (end[1], width)}

  def _lengths(
    self, seq: int | None, phase: str | None, context: int | None
  ) -> tuple[int, int]:
    """Queries and keys of each sequence."""
    if not self.causal and (phase or context):
      raise ValueError(
        f"{self.family}: expected no phase and no context, since an encoder"
        " does not decode; give seq"
      )
    if phase is not None and phase not in PHASES:
      raise ValueError(f"phase {phase!r}: {nearest(phase, PHASES)}")
    if context is not None and phase is None:
      raise ValueError(
        f"context={context}: expected a phase with it, 'prefill' or 'decode'"
      )
    if seq is not None and phase is not None:
      raise ValueError(
        f"seq={seq}: a phase has its own length; give context in place of seq"
      )
    keys = seq or context or self.length
    return (1 if phase == "decode" else keys), keys


def _llama(
  width: int,
  depth: int,
  heads: int,
  kv_heads: int,
  mlp_dim: int,
  vocab: int,
  length: int,
  tied: bool = False,
) -> Shape:
  sizes = (width, depth, heads, kv_heads, mlp_dim, vocab, length)
  options = {"rotary": True, "gated": True, "biases": False, "tied": tied}
  return Shape("llama", *sizes, **options)


def _gpt2(width: int, depth: int, heads: int) -> Shape:
  sizes = (width, depth, heads, heads, 4 * width, 50257, 1024)
  return Shape("gpt2", *sizes, tied=True)


def _bert(width: int, depth: int, heads: int) -> Shape:
  sizes = (width, depth, heads, heads, 4 * width, 30522, 512)
  return Shape("bert", *sizes, causal=False, token_types=2)


_LLAMA = {
  "2-7b": _llama(4096, 32, 32, 32, 11008, 32000, 4096),
  "2-13b": _llama(5120, 40, 40, 40, 13824, 32000, 4096),
  "2-70b": _llama(8192, 80, 64, 8, 28672, 32000, 4096),
  "3-8b": _llama(4096, 32, 32, 8, 14336, 128256, 8192),
  "3-70b": _llama(8192, 80, 64, 8, 28672, 128256, 8192),
  "3.1-8b": _llama(4096, 32, 32, 8, 14336, 128256, 131072),
  "3.1-70b": _llama(8192, 80, 64, 8, 28672, 128256, 131072),
  "3.2-1b": _llama(2048, 16, 32, 8, 8192, 128256, 131072, tied=True),
  "3.2-3b": _llama(3072, 28, 24, 8, 8192, 128256, 131072, tied=True),
}
# What a size alone stands for.
_SHORT = {
  "1b": "3.2-1b", "3b": "3.2-3b", "7b": "2-7b", "8b": "3-8b", "13b": "2-13b",
  "70b": "3-70b",
}  # fmt: skip
SHAPES: dict[str, dict[str, Shape]] = {
  "bert": {"base": _bert(768, 12, 12), "large": _bert(1024, 24, 16)},
  "gpt2": {
    "small": _gpt2(768, 12, 12),
    "medium": _gpt2(1024, 24, 16),
    "large": _gpt2(1280, 36, 20),
    "xl": _gpt2(1600, 48, 25),
  },
  "llama": _LLAMA | {name: _LLAMA[full] for name, full in _SHORT.items()},
}
_OPTIONS = (
  "width", "depth", "heads", "kv_heads", "head_dim", "mlp_dim", "vocab",
  "length", "scan",
)  # fmt: skip


def shape_of(family: str, variant: str, **options: Any) -> Shape:
  """A published shape.

  Args:
    family: "bert", "gpt2" or "llama".
    variant: Size, as in "base", "xl" or "8b"; "7b" and "13b" are of Llama 2,
      "8b" and "70b" of Llama 3, "1b" and "3b" of Llama 3.2, and "2-70b" names
      the generation.
    **options: Sizes that replace the published ones (width, depth, heads,
      kv_heads, head_dim, mlp_dim, vocab, length), and scan.

  Raises:
    ValueError: If the family, variant or an option is unknown, or sizes do not
      fit together.

  >>> shape_of("llama", "8b").parameters
  8030261248
  """
  if family not in SHAPES:
    raise ValueError(f"Unknown family {family!r}: {nearest(family, SHAPES)}")
  variants = SHAPES[family]
  if variant not in variants:
    raise ValueError(
      f"Unknown {family} variant {variant!r}: {nearest(variant, variants)}"
    )
  shape = variants[variant]
  for option, value in options.items():
    if option not in _OPTIONS:
      raise ValueError(
        f"Unknown option {option!r} of {family}: {nearest(option, _OPTIONS)}"
      )
    kind = bool if option == "scan" else int
    if type(value) is not kind:
      raise ValueError(f"{family} {option}={value!r}: expected {kind.__name__}")
  if {"width", "heads"} & options.keys() and "head_dim" not in options:
    options["head_dim"] = 0
  if "heads" in options and "kv_heads" not in options:
    options["kv_heads"] = options["heads"] * shape.kv_heads // shape.heads
  return dataclasses.replace(shape, **options)
