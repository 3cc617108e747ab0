"""Decoder-only transformers by their sizes, and Megatron's counts of them."""

from __future__ import annotations

import dataclasses
import re
from numbers import Integral
from typing import Any

import numpy as np

from figs_jax.engine.layers import Layers
from figs_jax.engine.spec import nearest
from figs_jax.engine.studies.cluster.network import check_fields


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Equal blocks between an embedding and a head over the vocabulary.

  Attributes:
    width: Width of the residual stream, h.
    layers: Number of blocks, l.
    heads: Number of attention heads, a.
    seq: Tokens of a sequence, s.
    ffn: Width of the feed-forward layers; 4 h by default.
    kv_heads: Heads of keys and values; `heads` by default.
    gated: Whether a third feed-forward layer gates the first.
    vocab: Size of the vocabulary, V.

  Raises:
    ValueError: If a size is not a positive integer, `heads` does not divide
      the width, or `kv_heads` does not divide `heads`.

  >>> one_trillion = Decoder(25600, layers=128, heads=160)
  >>> round(one_trillion.parameters / 1e9), one_trillion.rows(1)[3]["N"]
  (1008, 2048)
  """

  width: int
  layers: int
  heads: int
  seq: int = 2048
  ffn: int = 0
  kv_heads: int = 0
  gated: bool = False
  vocab: int = 51200

  def __post_init__(self):
    if not self.ffn:
      object.__setattr__(self, "ffn", 4 * self.width)
    if not self.kv_heads:
      object.__setattr__(self, "kv_heads", self.heads)
    sizes = [f.name for f in dataclasses.fields(self) if f.name != "gated"]
    check_fields(self, Integral, *sizes)
    for whole, part in (("width", "heads"), ("heads", "kv_heads")):
      if getattr(self, whole) % getattr(self, part):
        raise ValueError(
          f"Decoder {part}: expected a divisor of {whole}="
          f"{getattr(self, whole)}, got {getattr(self, part)}"
        )

  @classmethod
  def parse(cls, text: str, **sizes: int) -> Decoder:
    """Reads "gpt:width=25600,layers=128,heads=160".

    Args:
      text: Sizes by name after "gpt:", `gated` as true or false.
      **sizes: Further sizes.

    Raises:
      ValueError: If a size is missing, unknown or given twice, or as `Decoder`.

    >>> Decoder.parse("gpt:width=64,layers=2,heads=4", seq=8).ffn
    256
    """
    fields: dict[str, Any] = dict(sizes)
    known = [field.name for field in dataclasses.fields(cls)]
    for part in filter(None, text.partition(":")[2].split(",")):
      name, _, value = (word.strip() for word in part.partition("="))
      if name not in known:
        raise ValueError(
          f"model {text!r}: unknown size {name!r}, {nearest(name, known)}"
        )
      if name in fields:
        raise ValueError(f"model {text!r}: {name} is given twice; keep one")
      if name == "gated" and value in ("true", "false"):
        fields[name] = value == "true"
      elif re.fullmatch(r"\d{1,12}", value) and name != "gated":
        fields[name] = int(value)
      else:
        what = "true or false" if name == "gated" else "a positive integer"
        raise ValueError(
          f"model {text!r}: expected {name}={what}, got {value!r}"
        )
    for name in known[:3]:
      if name not in fields:
        raise ValueError(
          f"model {text!r}: {name} is missing; write"
          " gpt:width=25600,layers=128,heads=160"
        )
    return cls(**fields)

  def rows(self, batch: int) -> list[dict[str, Any]]:
    """The products of a forward pass of `batch` sequences, as layer rows."""
    h, s, a, f = self.width, self.seq, self.heads, self.ffn
    d = h // a
    tokens = {"M": batch * s}
    per_head = {"M": s, "count": batch * a}
    one = {
      "attn/q": {**tokens, "N": h, "K": h},
      "attn/k": {**tokens, "N": self.kv_heads * d, "K": h},
      "attn/v": {**tokens, "N": self.kv_heads * d, "K": h},
      "attn/qk": {**per_head, "N": s, "K": d},
      "attn/av": {**per_head, "N": d, "K": s},
      "attn/o": {**tokens, "N": h, "K": h},
      "mlp/fc1": {**tokens, "N": f, "K": h},
      **({"mlp/gate": {**tokens, "N": f, "K": h}} if self.gated else {}),
      "mlp/fc2": {**tokens, "N": h, "K": f},
    }
    blocks = [
      {"name": f"blocks/{i}/{name}", **sizes}
      for i in range(self.layers)
      for name, sizes in one.items()
    ]
    return [*blocks, {"name": "head", **tokens, "N": self.vocab, "K": h}]

  def table(self, batch: int) -> Layers:
    """The same rows as a table, without reading them one by one."""
    one = Layers.of(dataclasses.replace(self, layers=1).rows(batch))
    place = np.array([*list(range(len(one) - 1)) * self.layers, len(one) - 1])
    ends = [name.partition("/0/")[2] for name in one.names[:-1]]
    names = [f"blocks/{i}/{end}" for i in range(self.layers) for end in ends]
    columns = {c: getattr(one, c)[place] for c in ("M", "N", "K", "count")}
    ones = np.ones(len(place), np.int64)
    return Layers((*names, one.names[-1]), n=ones, m=ones, **columns)

  @property
  def embedding(self) -> int:
    """Weights of the tables of tokens and positions."""
    return (self.vocab + self.seq) * self.width

  @property
  def parameters(self) -> int:
    """Number of parameters, (2) of arXiv 2104.04473 for a plain decoder.

    12 l h^2 (1 + 13 / (12 h) + (V + s) / (12 l h)): weights, 13 h of biases and
    norms per block, and the tables. The head shares the table of tokens.
    """
    h, f, kv = self.width, self.ffn, self.kv_heads * self.width // self.heads
    block = 2 * h * (h + kv) + (2 + self.gated) * h * f
    biases = 2 * h + 2 * kv + (1 + self.gated) * f + 5 * h
    return self.layers * (block + biases) + self.embedding

  def megatron_flops(self, batch: int, recompute: bool = True) -> float:
    """FLOPs of a training step of a plain decoder, (3) of arXiv 2104.04473.

    96 B s l h^2 (1 + s / (6 h) + V / (16 l h)) with the forward pass computed
    twice; 72 B s l h^2 (1 + s / (6 h) + V / (12 l h)) without (appendix of
    arXiv 2205.05198).

    Args:
      batch: Sequences per step, B.
      recompute: Whether blocks are computed again in the backward pass.

    Raises:
      ValueError: If the decoder has grouped heads, gates or another `ffn`.
    """
    if self.gated or self.ffn != 4 * self.width or self.kv_heads != self.heads:
      raise ValueError(
        "megatron_flops: expected ffn = 4 width, ungated, and as many kv_heads"
        " as heads; sum 2 M N K over `rows` for another decoder"
      )
    h, s, layers = self.width, self.seq, self.layers
    passes, head = (96, 16) if recompute else (72, 12)
    terms = 1 + s / (6 * h) + self.vocab / (head * layers * h)
    return float(passes) * batch * s * layers * h**2 * terms
