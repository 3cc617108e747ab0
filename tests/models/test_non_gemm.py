"""What a pass moves beside its products: traced programs, counts by hand."""

import pytest
from flax import nnx

from figs_jax import models
from figs_jax.core.tree import flatten
from figs_jax.models.non_gemm import KINDS

from .families import TINY, create
from .non_gemm_oracle import values

WIDTHS = {
  "resnet": lambda m: [s.outputs for s in m.stages],
  "swin_v2": lambda m: [s.shape.channels for s in m.stages],
}
each = pytest.mark.parametrize("family", models.names())


def total(rows, kind, column="writes"):
  return sum(r[column] * r["count"] for r in rows if r["kind"] == kind)


@each
def test_every_kind_is_what_the_program_computes(family):
  model = create(family, scan=False)
  rows = models.non_gemms_of(model, 3)
  assert {row["kind"] for row in rows} <= set(KINDS)
  width = WIDTHS.get(family, lambda m: m.width)(model)

  def call(*args):
    net = nnx.clone(model)
    if family == "resnet":  # norms then sum what they normalize
      net.train()
    return net(*args)

  rank = 4 if family == "resnet" else 3
  traced = values(call, *TINY[family].args(3), width=width, rank=rank)
  if family == "vit":  # its embedding is no gather, see below
    del traced["embedding"]
  if family == "bert":  # adds three embeddings, in one pass
    size = total(rows, "embedding")
    traced["embedding"] -= size
    traced["residual"] -= size  # of tokens and types; positions are one row
  assert {kind: total(rows, kind) for kind in traced} == traced
  # A norm also reads its parameters.
  read = total(rows, "norm", "reads") - total(rows, "norm")
  parameters = flatten(nnx.state(model, (nnx.Param, nnx.BatchStat)))
  owned = [x.size for path, x in parameters.items() if "norm" in path]
  assert read == sum(owned)


@each
def test_a_scanned_model_moves_the_same(family):
  sums = []
  for scan in (False, True):
    model = nnx.eval_shape(lambda scan=scan: create(family, scan=scan))
    rows = models.non_gemms_of(model, 3)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    sums.append([total(rows, k, c) for k in KINDS for c in ("reads", "writes")])
  assert sums[0] == sums[1]


def moved(rows, stem):
  """(reads, writes) by name of the rows below a path."""
  return {
    row["name"].removeprefix(stem): (row["reads"], row["writes"])
    for row in rows
    if row["name"].startswith(stem)
  }


def test_a_block_of_vit_b_by_hand():
  rows = models.non_gemms_of(models.abstract("vit", "B/16"), 2)
  x = 2 * 197 * 768  # two images, 14 x 14 patches and a class token
  logits = 2 * 12 * 197 * 197
  assert moved(rows, "blocks/0/") == {
    "norm1": (x + 2 * 768, x),
    "attn/softmax": (logits, logits),
    "attn/residual": (2 * x, x),
    "norm2": (x + 2 * 768, x),
    "mlp/gelu": (4 * x, 4 * x),
    "mlp/residual": (2 * x, x),
  }
  # 2 x 196 patches, the class token and 197 positions become the tokens.
  assert moved(rows, "embed") == {"": (2 * 196 * 768 + 198 * 768, x)}
  pooled = models.non_gemms_of(models.abstract("vit", "B/16", pool="gap"), 2)
  assert moved(pooled, "pool") == {"": (2 * 196 * 768, 2 * 768)}
  longer = models.non_gemms_of(models.abstract("vit", "B/16"), 2, seq=1000)
  assert moved(longer, "blocks/0/attn/softmax") == {
    "": (2 * 12 * 10**6, 2 * 12 * 10**6)
  }


def test_a_block_of_swin_t_by_hand():
  rows = models.non_gemms_of(models.abstract("swin_v2", "T/w8-256"), 2)
  # Stage 0: 64 x 64 tokens of 96 channels, 64 windows of 64 tokens, 3 heads.
  x, logits, bias = 2 * 4096 * 96, 2 * 64 * 3 * 64 * 64, 3 * 64 * 64
  assert moved(rows, "stages/0/blocks/0/") == {
    "attn/unit": (2 * x, 2 * x),
    "attn/cpb/relu": (15 * 15 * 512, 15 * 15 * 512),
    "attn/cpb/sigmoid": (15 * 15 * 3, 15 * 15 * 3),
    "attn/cpb/bias": (bias, bias),
    "attn/softmax": (logits + bias, logits),
    "norm1": (x + 2 * 96, x),
    "attn/residual": (2 * x, x),
    "mlp/gelu": (4 * x, 4 * x),
    "norm2": (x + 2 * 96, x),
    "mlp/residual": (2 * x, x),
  }
  merged = 2 * 32 * 32 * 192
  assert moved(rows, "stages/0/merge/") == {"norm": (merged + 384, merged)}


@pytest.mark.parametrize("variant", ["small", "v1_1-small"])
def test_a_decoder_block_of_t5_by_hand(variant):
  model = models.abstract("t5", variant, input_length=50, target_length=20)
  rows = models.non_gemms_of(model, 2)
  heads, hidden = (8, 2048) if variant == "small" else (6, 1024)
  x, own, other = 2 * 20 * 512, 2 * heads * 20 * 20, 2 * heads * 20 * 50
  act = {"mlp/relu": (2 * 20 * hidden,) * 2}
  if variant != "small":  # gelu(x wi_0) * (x wi_1)
    act = {"mlp/gelu": (2 * 2 * 20 * hidden, 2 * 20 * hidden)}
  assert moved(rows, "decoder/blocks/0/") == {
    "attn_norm": (x + 512, x),
    "attn/softmax": (own + heads * 400, own),
    "attn/residual": (2 * x, x),
    "cross_norm": (x + 512, x),
    "cross/softmax": (other, other),
    "cross/residual": (2 * x, x),
    "mlp_norm": (x + 512, x),
    **act,
    "mlp/residual": (2 * x, x),
  }


def test_the_batch_moves_more_but_reads_parameters_once():
  model = models.abstract("vit", "Ti/16")
  one, four = (models.non_gemms_of(model, batch) for batch in (1, 4))
  for a, b in zip(one, four):
    assert b["writes"] == 4 * a["writes"] and b["reads"] <= 4 * a["reads"]


def test_bad_lengths():
  vit, swin = (
    models.abstract(*names)
    for names in (("vit", "Ti/16"), ("swin_v2", "T/w8-256"))
  )
  for make in (models.gemms_of, models.non_gemms_of):
    with pytest.raises(ValueError, match="ViT: expected seq of 2 or more"):
      make(vit, seq=1)
    with pytest.raises(
      ValueError, match="SwinV2: expected no seq.*image_size="
    ):
      make(swin, seq=64)
    with pytest.raises(
      ValueError, match=r"ViT: expected no phase.*gpt2, llama"
    ):
      make(vit, phase="decode")
    with pytest.raises(ValueError, match="expected no context"):
      make(vit, context=8)
    with pytest.raises(
      ValueError, match="Expected context of 1 or more, got 0"
    ):
      make(vit, context=0)
    with pytest.raises(ValueError, match="Expected a batch of 1"):
      make(vit, 0)


def test_a_longer_vit_is_one_of_more_patches():
  long = models.abstract("vit", "Ti/16", image_size=(16, 16 * 99))
  model = models.abstract("vit", "Ti/16")
  for make in (models.gemms_of, models.non_gemms_of):
    assert make(model, 3, seq=100) == make(long, 3)
  t5 = models.abstract("t5", "small")
  other = models.abstract("t5", "small", input_length=77)
  for make in (models.gemms_of, models.non_gemms_of):
    assert make(t5, 3, seq=77) == make(other, 3)
