"""Language models as shapes: published counts, products, phases, rules."""

import pytest

from figs_jax import models
from figs_jax.core.pattern import NM
from figs_jax.models.flops import forward_flops
from figs_jax.models.shapes import shape_of


# Counts of the published checkpoints (Hugging Face's `num_parameters`).
@pytest.mark.parametrize(
  ("family", "variant", "count"),
  [
    ("bert", "base", 109_482_240),
    ("bert", "large", 335_141_888),
    ("gpt2", "small", 124_439_808),
    ("gpt2", "medium", 354_823_168),
    ("gpt2", "large", 774_030_080),
    ("gpt2", "xl", 1_557_611_200),
    ("llama", "7b", 6_738_415_616),
    ("llama", "13b", 13_015_864_320),
    ("llama", "2-70b", 68_976_648_192),
    ("llama", "1b", 1_235_814_400),
    ("llama", "3b", 3_212_749_824),
    ("llama", "8b", 8_030_261_248),
    ("llama", "70b", 70_553_706_496),
  ],
)
def test_parameters_are_the_published_ones(family, variant, count):
  for scan in (True, False):
    assert shape_of(family, variant, scan=scan).parameters == count


def test_a_scanned_shape_has_the_products_of_its_blocks():
  for family, variant in (("llama", "8b"), ("gpt2", "small"), ("bert", "base")):
    each, once = (
      shape_of(family, variant, scan=scan, depth=3) for scan in (False, True)
    )
    for make in (models.gemms_of, models.non_gemms_of):
      rows, few = make(each, 2, seq=9), make(once, 2, seq=9)
      assert [r["name"] for r in rows if "blocks/2/" in r["name"]] == [
        r["name"].replace("blocks/", "blocks/2/")
        for r in few
        if r["name"].startswith("blocks/")
      ]
      keys = ("M", "N", "K") if make is models.gemms_of else ("reads", "writes")
      for key in keys:
        sums = [sum(r[key] * r["count"] for r in x) for x in (rows, few)]
        assert sums[0] == sums[1]


def test_flops_of_a_whole_sequence_by_hand():
  # 2 FLOPs for each weight but the embedding, and for both products of
  # attention over all pairs of tokens.
  B, L = 3, 10
  for family, variant, weights in (
    ("llama", "8b", 8_030_261_248 - 128256 * 4096 - 65 * 4096),
    # GPT-2's head is its embedding; its biases and norms multiply nothing.
    ("gpt2", "small", 124_439_808 - 1024 * 768 - 12 * (9 + 4) * 768 - 2 * 768),
  ):
    shape = shape_of(family, variant)
    attention = 2 * B * L * L * shape.heads * shape.head_dim * shape.depth
    flops = forward_flops(models.gemms_of(shape, B, seq=L))
    assert flops == 2 * (B * L * weights + attention)


def test_decoding_reads_every_key_and_value_once():
  shape = shape_of("llama", "8b")
  B, C = 8, 4096
  rows = models.gemms_of(shape, B, phase="decode", context=C)
  by_name = {row["name"]: row for row in rows}
  # 32 layers, keys and values of 8 heads of 128.
  read = sum(
    row["K"] * row["N"] * row["count"]
    for name, row in by_name.items()
    if name.endswith(("qk", "av"))
  )
  assert read == B * C * 32 * 2 * 8 * 128
  # Each of 32 query heads multiplies with the keys of its group.
  qk = by_name["blocks/attn/qk"]
  assert qk["M"] * qk["count"] == B * 32 * 32 and qk["N"] == C
  assert {row["M"] for name, row in by_name.items() if name[-2:] != "qk"} == {
    B, 4
  }  # fmt: skip
  # A token of the phase costs what it costs in the sequence.
  whole = forward_flops(models.gemms_of(shape, 1, seq=1))
  assert whole == forward_flops(
    models.gemms_of(shape, 1, phase="decode", context=1)
  )


def test_prefill_computes_the_logits_of_the_last_token():
  shape = shape_of("gpt2", "small")
  whole = models.gemms_of(shape, 2, seq=100)
  prefill = models.gemms_of(shape, 2, phase="prefill", context=100)
  assert prefill[:-1] == whole[:-1]
  assert (whole[-1]["M"], prefill[-1]["M"]) == (200, 2)
  assert models.gemms_of(shape, 2, phase="prefill") == models.gemms_of(
    shape, 2, phase="prefill", context=1024
  )


def test_passes_of_a_llama_block_by_hand():
  rows = models.non_gemms_of(
    shape_of("llama", "70b"), 2, phase="decode", context=1000
  )
  x = 2 * 8192
  moved = {row["name"]: (row["reads"], row["writes"]) for row in rows}
  assert {row["count"] for row in rows} == {1, 80}
  turned, logits, hidden = 2 * (64 + 8) * 128, 2 * 64 * 1000, 2 * 28672
  assert moved == {
    "embed": (x, x),
    "blocks/norm1": (x + 8192, x),
    "blocks/attn/rotary": (turned, turned),
    "blocks/attn/softmax": (logits, logits),
    "blocks/attn/residual": (2 * x, x),
    "blocks/norm2": (x + 8192, x),
    "blocks/mlp/silu": (2 * hidden, hidden),
    "blocks/mlp/residual": (2 * x, x),
    "norm": (x + 8192, x),
  }
  rows = models.non_gemms_of(shape_of("bert", "base"), 2, seq=10)
  moved = {row["name"]: (row["reads"], row["writes"]) for row in rows}
  # Words and token types of two sequences, positions that they share.
  assert moved["embed"] == (2 * 2 * 10 * 768 + 10 * 768, 2 * 10 * 768)
  assert moved["pooler/tanh"] == (2 * 768, 2 * 768)
  assert len([name for name in moved if "norm" in name]) == 3


def test_rules_have_the_words_of_the_other_families():
  shared = set.intersection(*(set(c.words) for c in models.FAMILIES.values()))
  for family, variants in models.SHAPES.items():
    shape = next(iter(variants.values()))
    assert set(shape.words) >= shared
    for word in shape.words:
      rows = models.gemms_of(shape.with_rules(f"{word}: 1:4"), seq=8)
      sparse = [row for row in rows if row["pattern"] is not None]
      assert sparse and {str(r["pattern"]) for r in sparse} == {"1:4"}, family
  rows = models.gemms_of(shape_of("llama", "8b").with_rules("ff: 2:4, qk: 1:8"))
  patterns = {row["name"].rpartition("/")[2]: row["pattern"] for row in rows}
  ff = dict.fromkeys(("gate", "up", "down"), NM(2, 4))
  qk = dict.fromkeys(("q", "k"), NM(1, 8))
  dense = dict.fromkeys(("v", "qk", "av", "o", "head"))
  assert patterns == ff | qk | dense
  every = shape_of("gpt2", "small", scan=False).with_rules("2:4")
  assert len(every.patterns) == 12 * 6  # its head is the embedding
  one = shape_of("llama", "8b", scan=False).with_rules(
    "blocks/0/mlp/up/.*: 2:4"
  )
  assert list(one.patterns) == ["blocks/0/mlp/up/kernel"]


def test_options_replace_sizes():
  shape = shape_of("llama", "8b", depth=2, vocab=1000, width=1024)
  assert (shape.depth, shape.vocab, shape.head_dim) == (2, 1000, 32)
  assert shape_of("llama", "8b", heads=16).kv_heads == 4
  assert shape_of("llama", "8b", head_dim=64).head_dim == 64


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: shape_of("lama", "8b"), "did you mean 'llama'"),
    (lambda: models.abstract("gpt", "small"), "did you mean 'gpt2'"),
    (lambda: shape_of("llama", "9b"), "Unknown llama variant '9b'"),
    (lambda: shape_of("llama", "8b", deep=2), "did you mean 'depth'"),
    (lambda: shape_of("llama", "8b", depth="2"), "depth='2': expected int"),
    (lambda: shape_of("llama", "8b", scan=1), "scan=1: expected bool"),
    (lambda: shape_of("llama", "8b", depth=0), "expected depth of 1 or more"),
    (lambda: shape_of("gpt2", "small", heads=7), "7 heads do not divide"),
    (lambda: shape_of("llama", "8b", kv_heads=5), "5 heads do not divide"),
    (lambda: shape_of("llama", "8b").with_rules("fff: 2:4"), "'fff'"),
    (lambda: shape_of("llama", "8b").with_rules("head: 1:7"), "of m=7"),
    (lambda: shape_of("gpt2", "xl").with_rules("head: 2:4"), "unknown word"),
  ],
)
def test_bad_shapes(make, words):
  with pytest.raises(ValueError, match=words) as caught:
    make()
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("family", "lengths", "words"),
  [
    ("bert", {"phase": "decode"}, "an encoder does not decode"),
    ("bert", {"context": 8}, "an encoder does not decode"),
    ("llama", {"context": 8}, "expected a phase with it"),
    ("llama", {"seq": 8, "phase": "decode"}, "give context in place of seq"),
    ("llama", {"phase": "decod"}, "did you mean 'decode'"),
    ("llama", {"seq": 0}, "Expected seq of 1 or more"),
  ],
)
def test_bad_phases(family, lengths, words):
  shape = next(iter(models.SHAPES[family].values()))
  for make in (models.gemms_of, models.non_gemms_of):
    with pytest.raises(ValueError, match=words):
      make(shape, **lengths)
