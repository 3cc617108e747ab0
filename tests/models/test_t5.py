"""T5: published sizes, what sees what, numerics, rules, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models.flops import forward_flops
from figs_jax.models.t5 import SIZES

from . import t5_oracle as oracle
from .dot_flops import dot_flops

TINY = {"width": 8, "depth": 1, "heads": 2, "head_dim": 4, "vocab": 24}
COUNTS = {
  "small": 60_506_624,
  "base": 222_903_552,
  "large": 737_668_096,
  "3b": 2_851_598_336,
  "11b": 11_307_321_344,
  "v1_1-small": 76_961_152,
  "v1_1-base": 247_577_856,
  "v1_1-large": 783_150_080,
  "v1_1-xl": 2_849_757_184,
  "v1_1-xxl": 11_135_332_352,
}


def tiny(seed=0, **options):
  rngs = nnx.Rngs(params=seed, dropout=seed + 1)
  return models.create("t5", "custom", rngs=rngs, **{**TINY, **options})


def ids(*rows):
  length = max(map(len, rows))
  return np.array([[*row, *[0] * (length - len(row))] for row in rows])


INPUTS = ids([5, 6, 7, 8, 1], [9, 3, 1])
TARGETS = ids([4, 1], [7, 8, 6, 1])


@nnx.jit
def forward(model, inputs, targets):
  return model(inputs, targets)


def abstract(variant, **options):
  return models.abstract("t5", variant, **options)


def test_every_size_has_a_published_count():
  assert set(COUNTS) == set(SIZES) - {"custom"}


@pytest.mark.parametrize("variant", sorted(COUNTS))
def test_parameter_counts_are_the_published_ones(variant):
  # Scanned: the same parameters, and quicker to trace.
  params = nn.split(abstract(variant, scan=True))[1]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[variant]


def test_parameter_counts_are_those_of_another_library():
  reason = "needs torch and transformers: the extra `oracles`"
  torch = pytest.importorskip("torch", reason=reason)
  transformers = pytest.importorskip("transformers", reason=reason)
  for variant, count in COUNTS.items():
    sizes = SIZES[variant]
    theirs = oracle.config(
      sizes.get("gated", False),
      d_model=sizes["width"],
      num_layers=sizes["depth"],
      num_heads=sizes["heads"],
      d_kv=sizes["head_dim"],
      d_ff=sizes["mlp_dim"],
      vocab_size=32128,
    )
    with torch.device("meta"):
      model = transformers.T5ForConditionalGeneration(theirs)
      if not sizes.get("tied", True):
        head = torch.empty_like(model.shared.weight)
        model.lm_head.weight = torch.nn.Parameter(head)
    assert sum(each.numel() for each in model.parameters()) == count, variant


@pytest.mark.parametrize("variant", ["small", "v1_1-small"])
def test_rows_are_every_product_of_a_published_size(variant):
  model = abstract(variant, scan=True, input_length=40, target_length=30)
  graphdef, state = nnx.split(model)

  def logits(state, inputs, targets):
    return nnx.merge(graphdef, state)(inputs, targets)

  inputs, targets = (
    jax.ShapeDtypeStruct((3, length), jnp.int32) for length in (40, 30)
  )
  rows = models.gemms_of(model, 3)
  assert forward_flops(rows) == dot_flops(logits, state, inputs, targets)
  assert forward_flops(rows) == forward_flops(
    models.gemms_of(abstract(variant, input_length=40, target_length=30), 3)
  )


def test_a_token_sees_those_before_it_and_no_padding():
  model = tiny(depth=2)
  logits = forward(model, INPUTS, TARGETS)
  for place in range(3):
    later = TARGETS.copy()
    later[:, place] += 3
    again = forward(model, INPUTS, later)
    # The token at a place is first seen by the one after it.
    same = np.abs(logits - again).max((0, 2)) < 1e-6
    assert same.tolist() == [i <= place for i in range(4)]
  wider = np.pad(INPUTS, ((0, 0), (0, 3)))
  np.testing.assert_allclose(forward(model, wider, TARGETS), logits, atol=1e-5)
  other = INPUTS.copy()
  other[0, 0] += 1
  moved = np.abs(forward(model, other, TARGETS) - logits).max((1, 2))
  assert moved[0] > 1e-3 and moved[1] == 0


def test_inputs_of_padding_alone_stay_numbers():
  assert np.isfinite(forward(tiny(), np.zeros_like(INPUTS), TARGETS)).all()


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(tied):
  low, full = tiny(dtype="bfloat16", tied=tied), tiny(tied=tied)
  logits = forward(low, INPUTS, TARGETS)
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(nn.split(low)[1])} == {
    jnp.dtype("float32")
  }
  error = jnp.abs(logits - forward(full, INPUTS, TARGETS)).max()
  assert 0 < error < 0.1  # bfloat16 keeps 8 bits
  # The head's sums are not rounded.
  assert not jnp.array_equal(
    logits, logits.astype(jnp.bfloat16).astype(jnp.float32)
  )


def test_large_activations_survive_bfloat16():
  """A residual stream of thousands, as in trained models."""
  model = tiny(dtype="bfloat16", gated=True, tied=False, depth=2)
  for block in (*model.encoder.blocks, *model.decoder.blocks):
    kernel = block.mlp.wo.kernel
    kernel[...] = 1e4 * kernel[...]
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  @jax.grad
  def slope(params):
    model = nn.merge(graphdef, params, masks, 0.0, rest)
    return (model(INPUTS, TARGETS) ** 2).sum()

  for path, leaf in tree.flatten(slope(params)).items():
    assert jnp.isfinite(leaf).all(), path
    assert jnp.abs(leaf).max() > 0, path


def test_first_logits_are_near_one():
  for options in ({}, {"gated": True, "tied": False}):
    model = tiny(width=64, heads=4, head_dim=16, depth=2, **options)
    rows = np.random.default_rng(0).integers(2, 24, (8, 12))
    logits = forward(model, rows, rows)
    assert 0.5 < float(logits.std()) < 2


def test_dropout_is_a_function_of_the_key_and_off_in_evaluation():
  model = tiny(dropout=0.3)
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  def logits(key):
    model = nn.merge(graphdef, params, masks, 0.0, nn.reseed(rest, key))
    return model(INPUTS, TARGETS)

  a, b, c = (logits(jax.random.key(i)) for i in (0, 0, 1))
  assert jnp.array_equal(a, b) and not jnp.array_equal(a, c)
  view = nnx.view(model, deterministic=True)
  expected = forward(tiny(), INPUTS, TARGETS)
  np.testing.assert_allclose(
    forward(view, INPUTS, TARGETS), expected, atol=1e-5
  )
  assert nn.split(tiny())[3] == {}


def test_rules_reach_both_attentions_and_leave_the_embedding():
  model = abstract("v1_1-small")
  leaves = nn.masked_leaves(nn.sparsify(model, "ff: 1:8, qk: 1:4"))
  assert len(leaves) == 8 * (3 + 2) + 8 * (3 + 4)
  assert leaves["decoder/blocks/7/cross/k/kernel"].pattern.m == 4
  assert leaves["encoder/blocks/0/mlp/wi_1/kernel"].pattern.m == 8
  tied = tiny()
  whole = nn.masked_leaves(nn.sparsify(tied, "1:4"))
  kernels = {p for p in tree.flatten(nn.split(tied)[1]) if p.endswith("kernel")}
  assert set(whole) == kernels and "shared/embedding" not in whole
  with pytest.raises(ValueError, match="'head' matches no kernel"):
    nn.sparsify(tied, "head: 1:4")


@pytest.mark.parametrize(
  ("variant", "options", "message"),
  [
    ("v1_1-smal", {}, "T5 variant 'v1_1-smal': did you mean 'v1_1-small'"),
    ("custom", {"width": 8}, "needs depth=; or use a published size"),
    ("small", {"heads": 0}, "heads of 1 or more, got 0"),
    ("small", {"num_buckets": 2}, "at least 4 buckets.*num_buckets=2"),
    (
      "small",
      {"max_distance": 16},
      "distance above half of them.*max_distance=16",
    ),
    ("small", {"dtype": "float16"}, "float32 or bfloat16, got float16"),
    ("small", {"droput": 0.1}, "did you mean 'dropout'"),
  ],
)
def test_errors_say_what_and_the_fix(variant, options, message):
  with pytest.raises(ValueError, match=message):
    models.create("t5", variant, **options)


@pytest.mark.parametrize(
  ("inputs", "targets", "message"),
  [
    (INPUTS, TARGETS[:1], "2 rows of inputs and 1 of targets"),
    (
      INPUTS,
      TARGETS + 20,
      "targets with ids from 0 to 23, got 28",
    ),
    (-INPUTS, TARGETS, "inputs with ids .* got -9"),
  ],
)
def test_wrong_ids_are_one_clear_error(inputs, targets, message):
  with pytest.raises(ValueError, match=message):
    tiny()(inputs, targets)


def test_unknown_ids_in_a_trace_give_no_number():
  logits = forward(tiny(), INPUTS, TARGETS + 20)
  assert np.isnan(logits).any()
