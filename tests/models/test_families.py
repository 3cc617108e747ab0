"""What every family of models promises: products, words, every recipe."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn, recipes
from figs_jax.core.masks import is_nm
from figs_jax.core.tree import flatten
from figs_jax.models.flops import forward_flops
from figs_jax.train.optimizer import decayed
from figs_jax.train.state import TrainState, update

from .dot_flops import dot_flops
from .families import TINY, create

STEPS = 3
each = pytest.mark.parametrize("family", models.names())


def test_every_family_is_here():
  assert sorted(TINY) == models.names()


def test_the_words_of_the_page_are_those_of_the_classes():
  page = (Path(__file__).parents[2] / "docs" / "using.md").read_text()
  table = page.partition("| family | words |")[2].partition("\n\n")[0]
  listed = {}
  for line in table.splitlines()[2:]:
    _, families, words, _ = line.split("|")
    words = set(re.findall(r"`(\w+)`", words))
    for family in re.findall(r"`(\w+)`", families):
      listed[family] = words
  listed["swin_v2"] |= listed["vit"]
  listed["swin_v2"] -= {"vit"}
  listed["gpt2"] = listed["t5"] - listed["gpt2"]
  own = {name: set(models.class_of(name).words) for name in models.FAMILIES}
  assert listed == own


@pytest.mark.slow
@each
@pytest.mark.parametrize("scan", [False, True])
def test_rows_are_every_product_of_the_forward_pass(family, scan):
  model = create(family, scan=scan)
  traced = dot_flops(lambda *args: model(*args), *TINY[family].args(3))
  assert forward_flops(models.gemms_of(model, 3)) == traced


@each
@pytest.mark.parametrize("scan", [False, True])
def test_every_kernel_is_a_row_of_its_size(family, scan):
  model = nnx.eval_shape(lambda: create(family, scan=scan))
  rows = {row["name"]: row for row in models.gemms_of(model, 3)}
  assert len(rows) == len(models.gemms_of(model, 3))
  kernels = {
    path.removesuffix("/kernel"): leaf.size
    for path, leaf in flatten(nn.split(model)[1]).items()
    if path.endswith("/kernel")
  }
  assert scan or len(kernels) == TINY[family].kernels
  for name, size in kernels.items():
    row = rows.pop(name)
    assert size == row["N"] * row["K"] * row["count"], name
  assert all(row["pattern"] is None for row in rows.values())


@each
@pytest.mark.parametrize("scan", [False, True])
def test_words_name_kernels_and_patterns_reach_the_rows(family, scan):
  model = nnx.eval_shape(lambda: create(family, scan=scan))
  whole = forward_flops(models.gemms_of(model))
  for word in models.FAMILIES[family].words:
    if word in ("conv", "embed"):  # contractions of another length
      continue
    sparse = nn.sparsify(model, f"{word}: 1:4")
    leaves = nn.masked_leaves(sparse)
    assert leaves, word
    rows = models.gemms_of(sparse)
    masked = {f"{r['name']}/kernel" for r in rows if r["pattern"] is not None}
    assert masked == set(leaves), word
    assert forward_flops(rows) < whole


@pytest.mark.slow
@each
@pytest.mark.parametrize("remat", ["", "block", "dots"])
def test_a_scanned_model_is_the_listed_one(family, remat):
  """Logits and gradients; with remat, the scanned one recomputes its blocks."""
  listed = nn.sparsify(create(family), TINY[family].rules)
  options = {"scan": True, "remat": bool(remat)}
  if remat == "dots":
    if "remat_policy" not in models.options_of(family):
      pytest.skip("convolutions are no products with two axes")
    options["remat_policy"] = remat
  scanned = nn.sparsify(create(family, **options), TINY[family].rules)

  def slope(model, weights=None, kept=None):
    graphdef, params, masks, rest = nn.split(model)
    if weights is not None:
      params, masks = stacked(params, weights), stacked(masks, kept)

    @jax.jit
    def fn(params, masks):
      def loss(params):
        model = nn.merge(graphdef, params, masks, 0.0, rest)
        logits = model(*TINY[family].args(2))
        return (logits**2).sum(), logits

      return jax.value_and_grad(loss, has_aux=True)(params)

    (_, logits), grads = fn(params, masks)
    return logits, grads, params, masks

  logits, grads, params, masks = slope(listed)
  again, their_grads, stack, _ = slope(scanned, flatten(params), flatten(masks))
  np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)
  wanted = flatten(stacked(stack, flatten(grads)))
  for path, leaf in flatten(their_grads).items():
    atol = 1e-5 * max(1, np.abs(wanted[path]).max())
    np.testing.assert_allclose(
      leaf, wanted[path], rtol=1e-3, atol=atol, err_msg=path
    )


@each
def test_weight_decay_spares_the_same_vectors_in_scanned_models(family):
  listed, scanned = (
    nn.split(nnx.eval_shape(lambda scan=scan: create(family, scan=scan)))[1]
    for scan in (False, True)
  )
  wanted = flatten(jax.tree.map(lambda leaf: leaf.ndim > 1, listed))
  assert flatten(decayed(listed)) == wanted
  wanted = {
    re.sub(r"(?<=blocks/)\d+/", "", path): is_matrix
    for path, is_matrix in wanted.items()
  }
  assert flatten(decayed(scanned)) == wanted


def stacked(tree, listed):
  """The scanned tree with the leaves of the listed one, by path."""
  groups = {}
  for path, leaf in listed.items():
    groups.setdefault(re.sub(r"(?<=blocks/)\d+/", "", path), []).append(leaf)
  assert set(groups) == set(flatten(tree))

  def leaf(path, old):
    name = "/".join(str(getattr(key, "key", key)) for key in path)
    group = groups[name]
    return group[0] if name in listed else jnp.stack(group)

  return jax.tree_util.tree_map_with_path(leaf, tree)


@each
def test_a_rule_that_matches_nothing_is_one_clear_error(family):
  model = create(family)
  with pytest.raises(ValueError, match="Rule 'fff': unknown word"):
    nn.sparsify(model, "fff: 1:4")
  with pytest.raises(ValueError, match="matches no kernel.*Nearest kernels"):
    nn.sparsify(model, "nowhere/.*/kernel: 1:4")


@pytest.mark.standard_promotion  # optax mixes dtypes
@pytest.mark.parametrize("family", ["resnet", "swin_v2", "t5", "vit"])
def test_a_scanned_training_step_does_not_grow_with_depth(family):
  """Forward and backward pass, optimizer and masks."""
  tiny = TINY[family]
  recipe = recipes.create("figs", tiny.rules, STEPS)

  def state(depth):
    if "depths" in tiny.options:
      depths = {"depths": (2, depth)}
    else:
      names = {"depth", "decoder_depth"} & set(tiny.options)
      depths = dict.fromkeys(names, depth)
    model = create(family, scan=True, **tiny.noise, **depths)
    model = nn.sparsify(model, recipe)
    tx = recipe.adamw(1e-2)
    return TrainState.create(model, recipe, tx, loss=tiny.loss)

  def size(depth):
    shapes = jax.eval_shape(lambda: state(depth))
    return jax.jit(update).lower(shapes, tiny.batch(2)).as_text().count("\n")

  assert size(9) == size(3)


# Recipes meet the layers of a family in the masks that come from scores, from
# gradients or along two axes, in the forward pass and its gradient, and in the
# optimizer's terms and switch: one of each. ViT is trained with all.
MEETING = (
  "figs", "rigl", "transposable", "mdgf_exp", "s_ste", "sr_ste", "step",
)  # fmt: skip
TRAINED = [("vit", name) for name in recipes.names()] + [
  (family, name) for family in TINY if family != "vit" for name in MEETING
]


@pytest.mark.slow
@pytest.mark.standard_promotion  # optax mixes dtypes
@pytest.mark.parametrize(("family", "name"), TRAINED)
def test_every_recipe_takes_three_steps_and_ends_with_exact_masks(family, name):
  """On scanned blocks, whose masks are stacked: they compile sooner."""
  tiny = TINY[family]
  rules = "ff: 1:4" if name == "nested" else tiny.rules  # of one pattern
  recipe = recipes.create(name, rules, STEPS, dense=0.0)
  model = create(family, scan=True, **tiny.noise, **tiny.fewer)
  model = nn.sparsify(model, recipe)
  tx = recipe.adamw(1e-2)
  state = TrainState.create(model, recipe, tx, loss=tiny.loss)
  first = flatten(state.params)
  traces = []

  def one(state, batch):
    traces.append(1)
    return update(state, batch)

  step = jax.jit(one)
  for _ in range(STEPS):
    state, metrics = step(state, tiny.batch(4))
    assert np.isfinite(metrics["loss"])
  assert len(traces) == 1 and int(state.step) == STEPS
  finished = state.finished()
  leaves = nn.masked_leaves(finished)
  assert bool(leaves) == (recipe.sparse and not recipe.ends_dense)
  _, params, masks, _ = nn.split(finished)
  params, masks = flatten(params), flatten(masks)
  for path, leaf in leaves.items():
    assert is_nm(masks[path], leaf.pattern, leaf.axis), path
    assert not np.any(params[path][~masks[path]]), path
    assert not np.array_equal(params[path], first[path]), path
