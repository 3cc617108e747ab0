"""Swin-V2: published sizes, windows by brute force, options, errors."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.models import windows

from .families import create

COUNTS = {
  "T": 28_347_154,
  "S": 49_728_418,
  "B": 87_918_816,
  "L": 196_739_932,
}
# Window, image, and the windows that the position bias was trained with.
PUBLISHED = {
  "T/w8-256": (8, 256, (0, 0, 0, 0)),
  "T/w16-256": (16, 256, (0, 0, 0, 0)),
  "S/w8-256": (8, 256, (0, 0, 0, 0)),
  "S/w16-256": (16, 256, (0, 0, 0, 0)),
  "B/w8-256": (8, 256, (0, 0, 0, 0)),
  "B/w16-256": (16, 256, (0, 0, 0, 0)),
  "B/w12-192": (12, 192, (0, 0, 0, 0)),
  "B/w12to16-192to256": (16, 256, (12, 12, 12, 6)),
  "B/w12to24-384": (24, 384, (12, 12, 12, 6)),
  "B/w12to24-192to384": (24, 384, (12, 12, 12, 6)),
  "L/w12-192": (12, 192, (0, 0, 0, 0)),
  "L/w12to16-256": (16, 256, (12, 12, 12, 6)),
  "L/w12to24-192to384": (24, 384, (12, 12, 12, 6)),
}


@functools.cache
def abstract(variant, scan=True):
  """Scanned, as that is quicker to build; as large as a listed one."""
  return models.abstract("swin_v2", variant, scan=scan)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_variants_have_their_sizes(variant):
  model = abstract(variant)
  count = sum(leaf.size for leaf in jax.tree.leaves(nn.split(model)[1]))
  assert count == COUNTS[variant[0]]
  window, image, pretrained = PUBLISHED[variant]
  assert model.image_size == (image, image) and model.window == window
  assert model.pretrained_windows == pretrained
  sides = [image // 4 // 2**i for i in range(4)]
  assert [stage.shape.height for stage in model.stages] == sides
  for stage, side in zip(model.stages, sides):
    assert stage.shape.window == min(window, side)
    assert stage.shape.shift == (window // 2 if side > window else 0)


def test_listed_models_have_as_many_parameters():
  params = jax.tree.leaves(nn.split(abstract("T/w8-256", scan=False))[1])
  assert sum(leaf.size for leaf in params) == COUNTS["T"]


def test_flops_are_the_published_ones_and_those_of_the_position_bias():
  # The table of models in microsoft/Swin-Transformer (MODELHUB.md), whose
  # FLOPs are multiplications and leave the position bias out.
  for variant, giga in (
    ("T/w8-256", 5.9),
    ("T/w16-256", 6.6),
    ("S/w8-256", 11.5),
    ("S/w16-256", 12.6),
    ("B/w8-256", 20.3),
  ):
    rows = models.gemms_of(abstract(variant))
    rows = [row for row in rows if "/cpb/" not in row["name"]]
    total = sum(r["M"] * r["N"] * r["K"] * r["count"] for r in rows)
    assert total / 1e9 == pytest.approx(giga, abs=0.06), variant


@pytest.mark.parametrize(("side", "shift"), [(2, 0), (2, 1), (3, 1), (4, 2)])
def test_tokens_are_apart_where_only_the_shift_joined_them(side, shift):
  height, width = 2 * side, 3 * side
  got = np.asarray(windows.apart(height, width, side, shift))
  rolled = jax.jit(lambda s: windows.apart(height, width, side, s))(shift)
  assert np.array_equal(got, rolled)
  for row, column in itertools.product(range(2), range(3)):
    places = [
      ((row * side + i + shift), (column * side + j + shift))
      for i in range(side)
      for j in range(side)
    ]  # before the roll; beyond the edge they come from the other side
    for a, b in itertools.product(range(side**2), repeat=2):
      crossed = any(
        (p >= length) != (q >= length)
        for p, q, length in zip(places[a], places[b], (height, width))
      )
      assert got[row * 3 + column, a, b] == crossed


@pytest.mark.parametrize(("side", "pretrained"), [(3, 0), (4, 2), (2, 5)])
def test_the_bias_is_read_at_the_offset_of_two_tokens(side, pretrained):
  offsets = windows.log_offsets(side, pretrained)
  index = windows.offset_index(side)
  for a, b in itertools.product(range(side**2), repeat=2):
    for got, down in zip(
      offsets[index[a, b]], (a // side - b // side, a % side - b % side)
    ):
      x = 8 * down / ((pretrained or side) - 1)
      wanted = math.copysign(math.log(1 + abs(x), 8), x)
      assert got == pytest.approx(wanted, abs=1e-6)


def random_norms(model):
  """The branches' norms start at 0 and would hide what is below them."""
  for stage in model.stages:
    for block in stage.blocks:
      for norm in (block.norm1, block.norm2):
        norm.scale[...] = jnp.ones_like(norm.scale[...])
  return model


@functools.cache
def _forward(graphdef):
  return jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))


def forward(model, x):
  graphdef, state = nnx.split(model)
  return _forward(graphdef)(state, x)


def images(size=(13, 11)):
  return jax.random.normal(jax.random.key(1), (2, *size, 3))


def test_a_new_model_is_patches_merging_and_head_alone():
  model = create("swin_v2")
  first = forward(model, images())
  for stage in model.stages:
    for block in stage.blocks:
      block.attn.o.kernel[...] = 5 * block.attn.o.kernel[...]
  assert jnp.array_equal(forward(model, images()), first)
  assert not jnp.allclose(forward(random_norms(model), images()), first)


def test_every_parameter_has_a_gradient():
  graphdef, params, masks, rest = nn.split(random_norms(create("swin_v2")))

  @jax.jit
  @jax.grad
  def slope(params):
    model = nn.merge(graphdef, params, masks, 0.0, rest)
    return (model(images()) ** 2).sum()

  for path, leaf in jax.tree_util.tree_leaves_with_path(slope(params)):
    assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0, path


@pytest.mark.standard_promotion  # flax's LayerNorm mixes dtypes
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
  low = random_norms(create("swin_v2", dtype="bfloat16"))
  logits = forward(low, images())
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(nn.split(low)[1])} == {
    jnp.dtype("float32")
  }
  full = forward(random_norms(create("swin_v2")), images())
  error = jnp.abs(logits - full).max()
  assert 0 < error < 0.05
  assert jnp.array_equal(logits, logits.astype(jnp.bfloat16).astype("float32"))


def test_drop_path_is_linear_over_all_blocks():
  model = create("swin_v2", depths=(2, 1, 2), image_size=16, drop_path=0.4)
  seen = []
  for stage in model.stages:
    for block in stage.blocks:
      block.drop_path1 = lambda x, rate: seen.append(float(rate)) or x
      block.drop_path2 = lambda x, rate: x
  jax.eval_shape(model, images((16, 16)))
  np.testing.assert_allclose(seen, [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_dropout_is_a_function_of_the_key_and_off_in_evaluation():
  rates = {"dropout": 0.3, "attention_dropout": 0.3, "drop_path": 0.2}
  plain, model = (
    create("swin_v2", rngs=nnx.Rngs(params=0, dropout=1), **options)
    for options in ({}, rates)
  )
  model.train()
  graphdef, params, masks, rest = nn.split(random_norms(model))

  @jax.jit
  def logits(key):
    model = nn.merge(graphdef, params, masks, 0.0, nn.reseed(rest, key))
    view = nnx.view(model, deterministic=True)
    return model(images()), view(images())

  (a, still), (b, _), (c, same) = (logits(jax.random.key(i)) for i in (0, 0, 1))
  assert jnp.array_equal(a, b) and not jnp.array_equal(a, c)
  assert jnp.array_equal(still, same)
  expected = forward(random_norms(plain), images())
  np.testing.assert_allclose(still, expected, atol=1e-5)


def test_a_model_without_dropout_has_no_other_state():
  assert nn.split(create("swin_v2"))[3] == {}


@pytest.mark.parametrize(
  ("variant", "options", "message"),
  [
    ("B-w8-256", {}, "expected size/window-image, as in 'B/w8-256'"),
    ("X/w8-256", {}, "SwinV2 variant 'X/w8-256'.*[Kk]nown: B, L, S, T, custom"),
    ("B/w8-256to384", {}, "image size only; write 'w8to8-256to384'"),
    ("custom/4", {}, "needs width="),
    ("custom/4", {"width": 8, "depths": (1,), "heads": 2}, "needs window="),
    ("T/w8-256", {"heads": 5}, "5 heads do not divide width 96.*heads=4"),
    (
      "T/w8-256",
      {"depths": (2, 0)},
      r"at least one block.*got depths=\(2, 0\)",
    ),
    ("T/w8-256", {"depths": ()}, "at least one block"),
    ("T/w8-256", {"image_size": 31}, "set image_size=32 or more"),
    ("T/w8-256", {"image_size": (1, 2, 3)}, "one or two numbers"),
    ("T/w8-256", {"window": 0}, "window of 1 or more, got 0"),
    ("T/w8-256", {"num_classes": 0}, "num_classes of 1 or more, got 0"),
    ("T/w8-256", {"pretrained_windows": (8, 8)}, "each of 4 stages"),
    ("T/w8-256", {"pretrained_windows": (1, 1, 1, 1)}, "0 or at least 2"),
    ("T/w8-256", {"mlp_ratio": 0.0}, "no feed-forward width"),
    ("T/w8-256", {"windows": 8}, "did you mean 'window'"),
  ],
)
def test_errors_say_what_and_the_fix(variant, options, message):
  with pytest.raises(ValueError, match=message):
    models.create("swin_v2", variant, **options)


def test_images_of_another_size_are_refused():
  with pytest.raises(
    ValueError, match=r"Expected images of shape \[batch, 13, 11, 3\]"
  ):
    create("swin_v2")(images((12, 12)))
