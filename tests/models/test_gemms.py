"""The matrix products of a model: published sums, shapes, patterns."""

import jax
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core.pattern import NM


def abstract(variant="B/16", **options):
  return models.abstract("vit", variant, **options)


def flops(rows):
  return sum(2 * r["M"] * r["N"] * r["K"] * r["count"] for r in rows)


def test_flops_of_vit_base_are_the_published_ones():
  # arXiv 2402.04744, appendix D: sequence 196, SA 12.51 G and FF 22.19 G.
  rows = models.gemms_of(abstract(pool="gap"), batch=1)
  attention = flops([r for r in rows if "/attn/" in r["name"]])
  ff = flops([r for r in rows if "/mlp/" in r["name"]])
  assert attention / 1e9 == pytest.approx(12.51, abs=0.01)
  assert ff / 1e9 == pytest.approx(22.19, abs=0.01)


def test_rows_are_the_weights_and_the_attention_products():
  model = nn.sparsify(abstract("Ti/16"), "ff: 1:8, q: 2:4")
  rows = models.gemms_of(model, batch=3)
  by_name = {row["name"]: row for row in rows}
  assert len(by_name) == len(rows) == 2 + 12 * 8
  tokens = 14 * 14 + 1
  assert by_name["blocks/0/attn/qk"] == {
    "name": "blocks/0/attn/qk",
    "M": tokens,
    "N": tokens,
    "K": 64,
    "pattern": None,
    "count": 3 * 3,
  }
  assert by_name["blocks/3/mlp/fc1"] == {
    "name": "blocks/3/mlp/fc1",
    "M": 3 * tokens,
    "N": 768,
    "K": 192,
    "pattern": NM(1, 8),
    "count": 1,
  }
  assert by_name["blocks/3/mlp/fc2"]["K"] == 768
  assert by_name["blocks/11/attn/q"]["pattern"] == NM(2, 4)
  assert by_name["blocks/11/attn/k"]["pattern"] is None
  assert by_name["head"]["M"] == 3
  assert by_name["patch_embed"]["K"] == 16 * 16 * 3
  # Every kernel is one row of its size.
  weights = sum(
    r["N"] * r["K"]
    for r in rows
    if r["name"].rsplit("/")[-1] not in ("qk", "av")
  )
  kernels = jax.tree_util.tree_leaves_with_path(nn.split(model)[1])
  assert weights == sum(
    leaf.size for path, leaf in kernels if path[-1].key == "kernel"
  )


def test_products_grow_with_the_batch():
  one, four = (models.gemms_of(abstract("Ti/16"), b) for b in (1, 4))
  assert flops(four) == 4 * flops(one)


def test_errors():
  with pytest.raises(ValueError, match="batch=0"):
    models.gemms_of(abstract("Ti/16"), 0)
  with pytest.raises(
    ValueError, match="Linear is not of our families.*example"
  ):
    models.gemms_of(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
