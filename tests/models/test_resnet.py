"""ResNet against published numbers, and where its groups lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core.masks import is_nm
from figs_jax.models.flops import forward_flops
from figs_jax.models.pretrained import PretrainedError
from figs_jax.models.pretrained.config import for_transformers
from figs_jax.nn import permute_channels

TINY = {"block": "basic", "depths": (1, 1), "width": 8, "image_size": 8}


def create(**options):
  return models.create(
    "resnet", "custom", **TINY | {"num_classes": 4} | options
  )


def parameters(model):
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


# Parameters and billions of multiplications of torchvision's IMAGENET1K_V1
# weights, as their documentation lists them (num_params and GFLOPS).
@pytest.mark.parametrize(
  ("variant", "count", "macs"),
  [
    ("18", 11_689_512, 1.814),
    ("34", 21_797_672, 3.664),
    ("50", 25_557_032, 4.089),
  ],
)
def test_sizes_for_imagenet_are_the_published_ones(variant, count, macs):
  model = models.abstract("resnet", variant)
  assert parameters(model) == count
  flops = forward_flops(models.gemms_of(model))
  assert round(flops / 2e9, 3) == macs
  # 1.82, 3.67 and 4.11 of the literature count norms and activations as well.
  passes = sum(
    row["writes"] * row["count"] for row in models.non_gemms_of(model)
  )
  wide = {"18": 1.82, "34": 3.67, "50": 4.11}[variant]
  assert flops / 2e9 < wide < (flops / 2 + 2 * passes) / 1e9


# Table 6 of arXiv 1512.03385, in millions.
@pytest.mark.parametrize(
  ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)]
)
def test_sizes_for_cifar_are_the_published_ones(depth, millions):
  model = models.abstract("resnet", f"cifar-{depth}", num_classes=10)
  assert round(parameters(model) / 1e6, 2) == millions
  assert len(models.gemms_of(model)) == depth  # weighted layers; no projections
  assert [stage.size for stage in model.stages] == [(32, 32), (16, 16), (8, 8)]


def test_option_b_adds_the_projections_alone():
  a = models.abstract("resnet", "cifar-20", num_classes=10)
  b = models.abstract(
    "resnet", "cifar-20", num_classes=10, shortcut="projection"
  )
  more = 16 * 32 + 32 * 64 + 2 * (32 + 64)
  assert parameters(b) - parameters(a) == more
  small = models.abstract("resnet", "cifar-18", num_classes=10)
  assert parameters(small) == 11_173_962  # of kuangliu's ResNet18
  assert small.stages[0].size == (32, 32)


def test_an_identity_shortcut_takes_every_second_pixel_and_adds_zeros():
  model = create(stem="cifar", shortcut="identity", zero_init=True)
  model.eval()
  block = model.stages[1].first
  assert (
    not block.projects and float(jnp.abs(block.norm2.scale[...]).max()) == 0
  )
  x = jnp.abs(jax.random.normal(jax.random.key(0), (2, 5, 4, 8)))
  y = np.zeros((2, 3, 2, 16), np.float32)
  y[..., 4:12] = x[:, ::2, ::2]
  np.testing.assert_array_equal(block(x), y)


def asp_mask(kernel, n, m):
  """2:4 as NVIDIA's ASP prunes an OIHW kernel.

  It permutes it to [height, width, outputs, inputs], flattens all but the last
  axis, and keeps the n largest of every m neighbours in a row.
  """
  rows = kernel.transpose(2, 3, 0, 1).reshape(-1, kernel.shape[1])
  groups = np.abs(rows).reshape(-1, m)
  order = np.argsort(-groups, axis=1, kind="stable")[:, :n]
  mask = np.zeros(groups.shape, bool)
  np.put_along_axis(mask, order, True, axis=1)
  height, width = kernel.shape[2:]
  outputs, inputs = kernel.shape[:2]
  return mask.reshape(height, width, outputs, inputs).transpose(2, 3, 0, 1)


def sr_ste_mask(kernel, n, m):
  """N:M as SR-STE's code prunes an OIHW kernel.

  It permutes it to [outputs, height, width, inputs], flattens it into groups of
  m and drops the m - n smallest of each.
  """
  turned = kernel.transpose(0, 2, 3, 1)
  groups = np.abs(turned).reshape(-1, m)
  order = np.argsort(groups, axis=1, kind="stable")[:, : m - n]
  mask = np.ones(groups.shape, bool)
  np.put_along_axis(mask, order, False, axis=1)
  return mask.reshape(turned.shape).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 8)])
def test_groups_are_those_of_asp_and_sr_ste(pattern):
  """Along the input channels, at each place of the window by itself."""
  n, m = pattern
  model = create(block="bottleneck", width=8)
  sparse = nn.sparsify(model, f"hidden: {n}:{m}")
  leaves = nn.masked_leaves(sparse)
  params, masks = nn.split(sparse)[1:3]
  assert len(leaves) == 2 * 3 + 2  # both stages start with a projection
  kernel = params["stages"][1]["first"]["conv3x3_2"]["kernel"]
  mask = masks["stages"][1]["first"]["conv3x3_2"]["kernel"]
  theirs = np.asarray(kernel).transpose(3, 2, 0, 1)  # HWIO -> OIHW
  ours = np.asarray(mask).transpose(3, 2, 0, 1)
  np.testing.assert_array_equal(ours, asp_mask(theirs, n, m))
  np.testing.assert_array_equal(ours, sr_ste_mask(theirs, n, m))
  for path, leaf in leaves.items():
    assert leaf.axis == -2, path
  assert is_nm(mask, f"{n}:{m}", axis=-2)


def test_a_stem_of_three_channels_stays_dense_or_is_refused():
  model = create()
  for word in ("hidden", "conv3x3", "downsample"):
    leaves = nn.masked_leaves(nn.sparsify(model, f"{word}: 1:4"))
    assert leaves and not any("stem" in path for path in leaves)
  for rules in ("stem: 2:4", "*: 2:4"):
    with pytest.raises(
      ValueError,
      match="stem_conv/kernel: axis -2 has length 3.*multiple of m=4",
    ) as error:
      nn.sparsify(model, rules)
    assert "\n" not in str(error.value)
  assert "stem_conv/kernel" in nn.masked_leaves(
    nn.sparsify(create(in_channels=4), "*: 2:4")
  )


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_words_part_the_kernels(block):
  model = create(block=block)

  def paths(word):
    return set(nn.masked_leaves(nn.sparsify(model, f"{word}: 1:4")))

  parts = [paths("conv3x3"), paths("downsample")]
  if block == "bottleneck":
    parts.append(paths("conv1x1"))
  assert sum(map(len, parts)) == len(paths("hidden"))
  assert set.union(*parts) == paths("hidden")
  assert paths("head") == {"head/kernel"}


@pytest.mark.parametrize("scan", [False, True])
def test_permuted_channels_take_their_norms_and_statistics_along(scan):
  model = create(depths=(1, 3), width=16, scan=scan)
  images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  for _ in range(3):  # statistics of its own in every channel
    model(images)
  model.eval()
  permuted, report = permute_channels(model, "conv3x3: 2:4", escapes=2)
  np.testing.assert_allclose(
    permuted(images), model(images), rtol=1e-5, atol=1e-5
  )
  # The second convolution of each block; the first reads the residual stream.
  assert {entry.path.rpartition("/conv")[2] for entry in report} == {
    "3x3_2/kernel"
  }
  assert all(entry.after > entry.before for entry in report)


def test_low_precision_keeps_statistics_in_float32():
  model = create(dtype="bfloat16", param_dtype="bfloat16")
  images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  assert model(images).dtype == jnp.float32
  statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
  assert {leaf.dtype for leaf in statistics} == {jnp.dtype("float32")}
  parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert {leaf.dtype for leaf in parameters} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(("options", "message"), [
  ({"block": "wide"}, "unknown block='wide'"),
  ({"stem": "cifar10"}, "unknown stem='cifar10'.*cifar"),
  ({"shortcut": "A"}, "unknown shortcut='A'"),
  ({"depths": (1, 0)}, "at least one block per stage"),
  ({"width": 0}, "expected width of 1 or more"),
  ({"image_size": (3, 4, 5)}, "one or two numbers"),
])  # fmt: skip
def test_bad_options_are_one_clear_line(options, message):
  with pytest.raises(ValueError, match=f"ResNet.*{message}") as error:
    create(**options)
  assert "\n" not in str(error.value)


def test_unknown_variants_and_missing_sizes_are_named():
  with pytest.raises(ValueError, match="Unknown ResNet variant '19'.*18"):
    models.create("resnet", "19")
  with pytest.raises(ValueError, match="needs depths="):
    models.create("resnet", "custom", block="basic", width=8)


def test_what_transformers_lacks_is_refused_by_name():
  for option, value in (("stem", "cifar"), ("shortcut", "identity")):
    with pytest.raises(PretrainedError, match=f"expected {option}=.*{value}"):
      for_transformers(create(**{option: value}))
  config = for_transformers(create(block="bottleneck")).config
  assert config["hidden_sizes"] == [32, 64] and config["embedding_size"] == 8
