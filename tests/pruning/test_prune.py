"""Pruning of whole models against their own outputs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import figs_jax
from figs_jax import models
from figs_jax.core.masks import is_nm
from figs_jax.nn import masked_leaves, sparsify
from figs_jax.pruning import prune_kernel
from figs_jax.pruning.stacks import restack, unstack


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


class Perceptron(nnx.Module):
  """Two layers; the second reads what the first computes."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.fc1 = nnx.Linear(8, 12, rngs=rngs)
    self.fc2 = nnx.Linear(12, 4, rngs=rngs)

  def __call__(self, x):
    return self.fc2(nnx.relu(self.fc1(x)))


class One(nnx.Module):
  """A single layer, to see its outputs."""

  def __init__(self, layer):
    self.layer = layer

  def __call__(self, *args):
    return self.layer(*args)


def attention():
  return nnx.MultiHeadAttention(
    2, 8, decode=False, use_bias=False, rngs=nnx.Rngs(0)
  )


LAYERS = {
  "linear": (lambda r: nnx.Linear(8, 6, use_bias=False, rngs=r), (5, 3, 8), -2),
  "general": (
    lambda r: nnx.LinearGeneral(
      (2, 4), (3, 2), axis=(1, -1), use_bias=False, rngs=r
    ),
    (5, 2, 3, 4),
    (-4, -3),
  ),
  "einsum": (
    lambda r: nnx.Einsum("...ti,ihd->...thd", (8, 2, 3), rngs=r),
    (2, 3, 5, 8),
    -3,
  ),
  "stacked einsum": (
    lambda r: nnx.Einsum("tgi,gio->tgo", (2, 8, 3), rngs=r),
    (7, 2, 8),
    -2,
  ),
}  # fmt: skip
CONVOLUTIONS = {
  "same": {"strides": 2},
  "valid": {"padding": "VALID", "kernel_dilation": 2},
  "circular": {"padding": "CIRCULAR"},
  "groups": {"feature_group_count": 2, "padding": ((1, 0), (2, 1))},
}
for _name, _options in CONVOLUTIONS.items():
  LAYERS[_name] = (
    lambda r, o=_options: nnx.Conv(8, 6, (3, 2), use_bias=False, rngs=r, **o),
    (2, 7, 6, 8),
    -2,
  )


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_error_of_every_kind_of_layer_is_that_of_its_outputs(kind, method):
  make, shape, axis = LAYERS[kind]
  model, batches = (
    One(make(nnx.Rngs(0))),
    [normal(1, *shape), normal(2, *shape)],
  )
  pruned, (report,) = figs_jax.prune(model, batches, "2:4", method)
  assert is_nm(pruned.layer.kernel[...], "2:4", axis=axis)
  outs = [(model(x), pruned(x)) for x in batches]
  lost = sum(jnp.sum((a - b) ** 2) for a, b in outs)
  whole = sum(jnp.sum(a**2) for a, _ in outs)
  assert report.error == pytest.approx(float(lost / whole), rel=1e-4)
  assert report.rows == sum(a.size for a, _ in outs) // 6  # outputs per row


def test_groups_over_a_whole_window():
  model = models.create(
    "vit", "custom/2", width=8, depth=1, heads=2, image_size=4, num_classes=3
  )
  images = normal(0, 3, 4, 4, 3)
  pruned, (layer,) = figs_jax.prune(model, [images], "patch_embed/kernel: 1:6")
  assert is_nm(pruned.patch_embed.kernel[...], "1:6", axis=(-4, -3, -2))
  whole = jnp.sum(model.patch_embed(images) ** 2)  # its bias is 0
  lost = jnp.sum((model.patch_embed(images) - pruned.patch_embed(images)) ** 2)
  assert layer.error == pytest.approx(float(lost / whole), rel=1e-4)
  assert layer.rows == 3 * 4


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps"])
def test_later_layers_see_the_inputs_of_pruned_ones(method):
  model, x = Perceptron(), normal(0, 40, 8)
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
  pruned, report = figs_jax.prune(model, [x[:25], x[25:]], "2:4", method)
  first, _ = prune_kernel(model.fc1.kernel[...], x.T @ x, "2:4", method)
  np.testing.assert_allclose(pruned.fc1.kernel[...], first, atol=1e-5)
  hidden = nnx.relu(x @ first + model.fc1.bias[...][None])
  second, mask = prune_kernel(
    model.fc2.kernel[...], hidden.T @ hidden, "2:4", method
  )
  np.testing.assert_allclose(pruned.fc2.kernel[...], second, atol=1e-5)
  assert np.array_equal(pruned.fc2.kernel_mask[...], mask)
  assert [layer.path for layer in report] == ["fc1/kernel", "fc2/kernel"]
  assert [layer.rows for layer in report] == [40, 40]
  after = nnx.to_pure_dict(nnx.state(model))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  # The masks act: dense weights at pruned entries would not be seen.
  assert np.array_equal(pruned.fc1.effective_kernel(), pruned.fc1.kernel[...])


def tiny(family, **options):
  sizes = {
    "vit": {"width": 8, "depth": 2, "heads": 2, "image_size": 4},
    "swin_v2": {
      "width": 8, "depths": (2, 1), "heads": 2, "window": 2, "image_size": 8,
    },
    "t5": {"width": 8, "depth": 2, "heads": 2, "head_dim": 4, "vocab": 32},
  }[family]  # fmt: skip
  variant = "custom" if family == "t5" else "custom/2"
  return models.create(family, variant, **sizes, **options)


def inputs(family):
  if family != "t5":
    side = 4 if family == "vit" else 8
    return [normal(i, 3, side, side, 3) for i in range(2)]
  ids = np.random.default_rng(0).integers(1, 32, (2, 3, 6))
  return [(ids[i], ids[i, :, :4]) for i in range(2)]


@pytest.mark.parametrize("family", ["vit", "swin_v2", "t5"])
def test_families_scanned_and_not(family):
  rules = "ff: 2:4, qkv: 1:4, o: 2:4"
  reports, kernels = [], []
  for options in ({}, {"scan": True, "remat": True}):
    model = tiny(family, **options)
    if options:  # the same weights as without a scan
      model = stacked_like(model, nnx.state(tiny(family), nnx.Param))
    pruned, report = figs_jax.prune(model, inputs(family), rules, "wanda")
    for path, leaf in masked_leaves(pruned).items():
      kernel = at(pruned, path)
      assert is_nm(kernel.kernel[...], leaf.pattern, axis=leaf.axis)
      assert is_nm(kernel.kernel_mask[...], leaf.pattern, axis=leaf.axis)
    assert {type(each.error) for each in report} == {float}
    reports.append({each.path: each for each in report})
    kernels.append(pruned)
  assert set(masked_leaves(sparsify(tiny(family), rules))) == set(reports[0])
  assert reports[0].keys() == reports[1].keys()
  for path, each in reports[0].items():
    assert each.error == pytest.approx(reports[1][path].error, rel=1e-3)
  args = inputs(family)[0]
  args = args if isinstance(args, tuple) else (args,)
  np.testing.assert_allclose(kernels[0](*args), kernels[1](*args), atol=1e-4)
  # Queries, keys and values of a block read the same array.
  first = [each for each in report if "attn/q" in each.path][0]
  width = 8
  if family == "vit":
    assert first.moment_bytes == 4 * (3 * width**2 + 32**2)


def at(model, path):
  for part in path.split("/")[:-1]:
    model = model[int(part)] if part.isdigit() else getattr(model, part)
  return model


def stacked_like(model, pieces):
  """A scanned model with the weights of a list of blocks."""
  places = unstack(model)
  nnx.update(model, pieces)
  restack(model, places)
  return model


def test_padding_does_not_count():
  model, rng = tiny("t5"), np.random.default_rng(1)
  ids, targets = rng.integers(1, 32, (4, 5)), rng.integers(1, 32, (4, 3))
  long = np.pad(ids, ((0, 0), (0, 4)))
  later = np.pad(targets, ((0, 0), (0, 2)))
  plain, report = figs_jax.prune(model, [(ids, targets)], "2:4", "sparsegpt")
  padded, other = figs_jax.prune(model, [(long, later)], "2:4", "sparsegpt")
  assert [each.rows for each in report] == [each.rows for each in other]
  rows = {each.path: each.rows for each in other}
  assert rows["encoder/blocks/0/attn/q/kernel"] == 20
  assert rows["decoder/blocks/1/cross/k/kernel"] == 20
  assert rows["decoder/blocks/1/cross/q/kernel"] == 12
  for a, b in zip(report, other, strict=True):
    assert a.error == pytest.approx(b.error, rel=1e-3)
  np.testing.assert_allclose(
    plain(ids, targets), padded(ids, targets), atol=1e-3
  )
  # It would count without the mask.
  _, all_rows = figs_jax.prune(
    model, [(long, later)], "2:4", "wanda", counted_rows=lambda *_: {}
  )
  assert all_rows[0].rows == 36


CAUSAL = {"heads": 2, "vocab": 32, "length": 12}


@pytest.mark.parametrize(
  ("family", "options"),
  [
    ("bert", {"heads": 2, "vocab": 32, "output": "classes"}),
    ("gpt2", CAUSAL),
    ("llama", CAUSAL | {"kv_heads": 1}),
  ],
)
def test_padding_of_a_single_text_does_not_count(family, options):
  model = models.create(family, "custom", width=8, depth=2, **options)
  ids = np.random.default_rng(1).integers(1, 32, (4, 5))
  ids[0, 3:] = 0
  long = np.pad(ids, ((0, 0), (0, 4)))
  # BERT knows its padding; a causal model is told.
  batches = [
    (each, np.zeros_like(each) if family == "bert" else each != 0)
    for each in (ids, long)
  ]
  rules = "ff: 2:4, qkv: 2:4, o: 2:4" + ", head: 2:4" * (family != "gpt2")
  results = [
    figs_jax.prune(model, [batch], rules, "sparsegpt") for batch in batches
  ]
  (plain, report), (padded, other) = results
  rows = {each.path: each.rows for each in other}
  assert rows == {each.path: each.rows for each in report}
  of_texts = {"pooler/kernel", "head/kernel"} if family == "bert" else set()
  for path, count in rows.items():
    assert count == (4 if path in of_texts else 18), path
  assert of_texts <= set(rows)
  for a, b in zip(report, other, strict=True):
    assert a.error == pytest.approx(b.error, rel=1e-3)
  a, b = (each(*batches[0]) for each in (plain, padded))
  if family != "bert":
    a, b = (each[batches[0][1]] for each in (a, b))
  np.testing.assert_allclose(a, b, atol=1e-3)
  # All ids are tokens without a mask.
  if family != "bert":
    _, report = figs_jax.prune(model, [long], rules, "wanda")
    assert report[0].rows == 36


def test_the_moments_of_one_block_are_held_at_a_time():
  """Counted among all live arrays, not by the report alone."""
  model = models.create(
    "vit", "custom/2", width=12, depth=4, heads=2, mlp_dim=28, image_size=4
  )

  def held():
    shapes = [array.shape for array in jax.live_arrays()]
    return sum(4 * 12**2 * (s == (1, 12, 12)) + 4 * 28**2 * (s == (1, 28, 28))
               for s in shapes)  # fmt: skip

  counts = []
  _, report = figs_jax.prune(
    model,
    [normal(0, 2, 4, 4, 3)],
    "ff: 2:4, qkv: 2:4, o: 2:4",
    "wanda",
    on_layer=lambda layer: counts.append(held()),
  )
  one_block = 4 * (3 * 12**2 + 28**2)
  assert {each.moment_bytes for each in report} == {one_block}
  # Beside the totals, the initial zeros of the recorders may still be there.
  assert max(counts) <= 2 * one_block


def test_a_tied_kernel_adds_up_its_inputs():
  class Tied(nnx.Module):
    def __init__(self):
      self.a = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
      self.b = nnx.Linear(8, 8, rngs=nnx.Rngs(1))
      self.b.kernel = self.a.kernel

    def __call__(self, x):
      return self.b(self.a(x))

  model, x = Tied(), normal(0, 10, 8)
  y = model.a(x)
  pruned, (layer,) = figs_jax.prune(model, [x], "2:4", "wanda")
  expected, _ = prune_kernel(
    model.a.kernel[...], x.T @ x + y.T @ y, "2:4", "wanda"
  )
  assert layer.rows == 20
  np.testing.assert_array_equal(pruned.a.kernel[...], expected)
  np.testing.assert_array_equal(pruned.b.kernel[...], expected)


def test_transposable_and_refitted_models():
  model, x = Perceptron(), normal(0, 40, 8)
  pruned, _ = figs_jax.prune(model, [x], "2:4", "alps", transposable=True)
  for layer, axis in itertools.product((pruned.fc1, pruned.fc2), (0, 1)):
    assert is_nm(layer.kernel[...], "2:4", axis=axis)
  plain, fitted = (
    figs_jax.prune(model, [x], "fc1/kernel: 2:4", "wanda", refit=refit)[1][0]
    for refit in (False, True)
  )
  assert fitted.error < plain.error


def stacked():
  @nnx.split_rngs(splits=2)
  @nnx.vmap(in_axes=0, out_axes=0)
  def make(rngs):
    return nnx.Linear(8, 8, rngs=rngs)

  return One(make(nnx.Rngs(0)))


class Unused(Perceptron):
  def __call__(self, x):
    return self.fc1(x)


X = np.ones((4, 8), np.float32)


@pytest.mark.parametrize(
  ("model", "batches", "options", "message"),
  [
    (Perceptron, [], {}, "expected calibration batches, got none"),
    (Perceptron, iter([X]), {}, "got an iterator; pass a list"),
    (Perceptron, [np.ones((4, 7), np.float32)], {}, "float32.4, 7.*, got"),
    (Perceptron, [X * np.nan], {}, "fc1/kernel: .*got NaN or infinity"),
    (Perceptron, [X[:0]], {}, "a row that counts, got none"),
    (Perceptron, [X], {"pattern": "2:5"}, "fc1/kernel.*multiple of m=5"),
    (Perceptron, [X], {"pattern": ".*: dense"}, "a pattern that masks"),
    (Perceptron, [X], {"method": "wonda"}, "Unknown pruning method"),
    (Perceptron, [X], {"exponent": 0.5}, "sparsegpt has no option 'exponent'"),
    (Unused, [X], {}, "fc2/kernel: .*got no call"),
    (lambda: sparsify(Perceptron(), "2:4"), [X], {}, "got one with masks"),
    (stacked, [X], {}, "got 2 stacked layers at layer;"),
    (
      Perceptron,
      [X],
      {"pattern": "1:3", "transposable": True},
      "multiple of m=3",
    ),
    (
      lambda: tiny("vit"),
      [np.ones((1, 6, 6, 3), np.float32)],
      {},
      "Expected images of shape .batch, 4, 4, 3.",
    ),
  ],
)
def test_wrong_inputs(unchecked, model, batches, options, message):
  with pytest.raises(ValueError, match=message) as error:
    figs_jax.prune(model(), batches, **{"pattern": "2:4"} | options)
  assert "\n" not in str(error.value)
