"""ViT: published sizes, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.core.masks import is_nm
from figs_jax.core.rules import Rules
from figs_jax.models.positions import sincos_positions

TINY = {
  "width": 16,
  "depth": 2,
  "heads": 2,
  "mlp_dim": 32,
  "image_size": 8,
  "num_classes": 5,
}


def tiny(seed=0, **options):
  rngs = nnx.Rngs(params=seed, dropout=seed + 1)
  return models.create("vit", "custom/4", rngs=rngs, **{**TINY, **options})


def images(batch=2, size=8, channels=3):
  shape = (batch, size, size, channels)
  return jax.random.normal(jax.random.key(1), shape)


@nnx.jit
def forward(model, x):
  return model(x)


@pytest.mark.parametrize(
  ("variant", "count"),
  [
    ("Ti/16", 5_717_416),
    ("S/16", 22_050_664),
    ("B/16", 86_567_656),
    ("B/32", 88_224_232),
    ("L/16", 304_326_632),
    ("L/32", 306_535_400),
    ("H/14", 632_045_800),
  ],
)
def test_parameter_counts_are_the_published_ones(variant, count):
  model = models.abstract("vit", variant)
  params = jax.tree.leaves(nn.split(model)[1])
  assert sum(leaf.size for leaf in params) == count


@pytest.mark.parametrize(
  ("pool", "pos"),
  [("cls", "learned"), ("cls", "sincos"), ("gap", "sincos")],
)
def test_every_pooling_and_position_trains(pool, pos):
  # With one block, the zero class token would have a zero query.
  model = tiny(pool=pool, pos=pos, image_size=(4, 8), in_channels=1)
  graphdef, params, masks, rest = nn.split(model)
  x = jax.random.normal(jax.random.key(0), (2, 4, 8, 1))

  @jax.jit
  @jax.grad
  def slope(params):
    return (nn.merge(graphdef, params, masks, 0.0, rest)(x) ** 2).sum()

  assert ("cls_token" in params) == (pool == "cls")
  assert ("pos_embed" in params) == (pos == "learned")
  for path, leaf in tree.flatten(slope(params)).items():
    # Adding one vector to all keys does not change a softmax.
    if not path.endswith("attn/k/bias"):
      assert jnp.abs(leaf).max() > 0, path


def test_sincos_positions_by_brute_force():
  table = sincos_positions((2, 3), 12)
  for row in range(2):
    for column in range(3):
      for i in range(3):
        angle = 10_000 ** -(i / 2)
        got = table[row * 3 + column, i::3]
        want = [
          np.sin(column * angle),
          np.cos(column * angle),
          np.sin(row * angle),
          np.cos(row * angle),
        ]
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.standard_promotion  # flax's LayerNorm mixes dtypes
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
  low, full = tiny(dtype="bfloat16", depth=1), tiny(depth=1)
  logits = forward(low, images())
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(nn.split(low)[1])} == {
    jnp.dtype("float32")
  }
  error = jnp.abs(logits - forward(full, images())).max()
  assert 0 < error < 0.05  # bfloat16 keeps 8 bits
  assert jnp.array_equal(
    logits, logits.astype(jnp.bfloat16).astype(jnp.float32)
  )


def test_remat_gives_the_same_loss_and_gradients():
  options = {"attention_dropout": 0.2}

  def slope(remat):
    model = tiny(remat=remat, depth=1, **options)
    graphdef, params, masks, rest = nn.split(model)
    rest = nn.reseed(rest, jax.random.key(3))

    @jax.jit
    @jax.value_and_grad
    def fn(params):
      return (nn.merge(graphdef, params, masks, 0.0, rest)(images()) ** 2).sum()

    return fn(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    slope(False),
    slope(True),
  )


def test_drop_path_is_per_sample_scaled_and_linear_in_depth():
  model = tiny(depth=3, drop_path=0.4)
  seen = []
  for block in model.blocks:
    block.drop_path1 = lambda x, rate: seen.append(rate) or x
  model(images())
  np.testing.assert_allclose(seen, [0.0, 0.2, 0.4])
  drop = model.blocks[2].drop_path2
  out = drop(jnp.ones((400, 3, 2)), 0.4)
  per_sample = out[:, 0, 0]
  assert jnp.array_equal(
    out, jnp.broadcast_to(per_sample[:, None, None], (400, 3, 2))
  )
  kept = per_sample > 0
  np.testing.assert_allclose(per_sample[kept], 1 / 0.6, rtol=1e-6)
  assert abs(float(kept.mean()) - 0.6) < 4 * (0.24 / 400) ** 0.5
  model.eval()
  assert jnp.array_equal(drop(jnp.ones((4, 3, 2)), 0.4), jnp.ones((4, 3, 2)))


def test_dropout_is_a_function_of_the_key_and_off_in_evaluation():
  model = tiny(depth=1, dropout=0.3)
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  def logits(key):
    return nn.merge(graphdef, params, masks, 0.0, nn.reseed(rest, key))(
      images()
    )

  a, b, c = (logits(jax.random.key(i)) for i in (0, 0, 1))
  assert jnp.array_equal(a, b) and not jnp.array_equal(a, c)
  view = nnx.view(model, deterministic=True)
  expected = forward(tiny(depth=1), images())
  np.testing.assert_allclose(forward(view, images()), expected, atol=1e-5)


def test_a_model_without_dropout_has_no_other_state():
  assert nn.split(tiny())[3] == {}


@pytest.mark.parametrize("word", sorted(models.ViT.words))
def test_every_word_names_kernels_of_every_size(word):
  for variant in ("Ti/16", "custom/4"):
    options = TINY if variant == "custom/4" else {}
    model = models.abstract("vit", variant, **options)
    leaves = nn.masked_leaves(nn.sparsify(model, f"{word}: 1:4"))
    depth = model.depth
    expected = {"ff": 2, "q": 1, "k": 1, "v": 1, "o": 1, "qk": 2, "qkv": 3}.get(
      word
    )
    assert len(leaves) == (1 if expected is None else depth * expected)


def test_words_cover_every_kernel():
  rules = "ff: 1:2, qkv: 1:2, o: 1:2, embed: 1:2, head: 1:2"
  params = nn.split(tiny())[1]
  kernels = {p for p in tree.flatten(params) if p.endswith("kernel")}
  assert set(nn.masked_leaves(nn.sparsify(tiny(), rules))) == kernels


def test_patch_groups_lie_on_the_whole_patch():
  model = nn.sparsify(tiny(), "conv: 1:16")
  mask = np.asarray(model.patch_embed.kernel_mask[...])
  kernel = np.abs(np.asarray(model.patch_embed.kernel[...]))
  groups = mask.reshape(-1, 16, 16)  # rows of 16 of the 48 inputs, 16 outputs
  assert (groups.sum(1) == 1).all()
  assert (groups.argmax(1) == kernel.reshape(-1, 16, 16).argmax(1)).all()
  assert nn.masked_leaves(model)["patch_embed/kernel"].axis == (-4, -3, -2)


def test_dense_rules_leave_the_logits_bit_equal():
  dense = tiny()
  rules = Rules.parse("ff: dense, qkv: 4:4")
  same = nn.sparsify(dense, rules)
  assert nn.masked_leaves(same) == {}
  assert jnp.array_equal(forward(dense, images()), forward(same, images()))


def test_a_sparse_model_equals_a_dense_one_with_zeros():
  dense = tiny()
  sparse = nn.sparsify(dense, "head: dense, ff: 1:8, qk: 2:4, o: 1:4")
  graphdef, params, masks, rest = nn.split(sparse)
  zeroed = tree.map_masked(lambda m, w: jnp.where(m, w, 0.0), masks, params)
  plain = nn.split(dense)
  expected = nn.merge(plain[0], zeroed, plain[2], 0.0, rest)
  logits = forward(sparse, images())
  assert jnp.array_equal(logits, forward(expected, images()))
  assert not jnp.array_equal(logits, forward(dense, images()))
  for path, leaf in nn.masked_leaves(sparse).items():
    mask = tree.flatten(masks)[path]
    assert bool(is_nm(mask, leaf.pattern, leaf.axis)), path


@pytest.mark.parametrize(
  ("variant", "options", "message"),
  [
    ("S16", {}, "expected size/patch.*did you mean 'S'"),
    ("X/16", {}, "ViT variant 'X/16'"),
    ("custom/4", {}, "needs width="),
    ("S/16", {"image_size": 225}, "225 is not a multiple of patch 16.*=224"),
    ("S/16", {"image_size": (224, 100)}, "100 is not a multiple.*=96"),
    ("S/16", {"image_size": (1, 2, 3)}, "one or two numbers"),
    ("S/16", {"heads": 5}, "5 heads do not divide width 384.*heads=4"),
    ("S/16", {"pool": "map"}, "pool='map'.*Known: cls, cls_gap, gap, gap_norm"),
    ("S/16", {"pos": "learn"}, "did you mean 'learned'"),
    (
      "S/16",
      {"width": 6, "heads": 2, "pos": "sincos"},
      "multiple of 4 as width.*got 6",
    ),
    (
      "S/16",
      {"width": None, "num_classes": 0},
      "num_classes of 1 or more, got 0",
    ),
    ("S/16", {"drop_rate": 0.1}, "option 'drop_rate'"),
    ("S/16", {"dropouts": 0.1}, "did you mean 'dropout'"),
  ],
)
def test_errors_say_what_and_the_fix(variant, options, message):
  with pytest.raises(ValueError, match=message):
    models.create("vit", variant, **options)


def test_unknown_family_and_wrong_images():
  with pytest.raises(ValueError, match="did you mean 'vit'"):
    models.create("vitt", "S/16")
  with pytest.raises(
    ValueError, match=r"Expected images of shape \[batch, 8, 8, 3\]"
  ):
    tiny()(images(size=12))
