"""The masks of a whole run, against a brute force in numpy."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from figs_jax.core.masks import is_nm
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel, flatten, map_paths
from figs_jax.recipes import create

TOTAL = 60
LEAVES = {
  "a/kernel": MaskedKernel((64, 3), NM(1, 4), 0),
  "b/0/kernel": MaskedKernel((2, 48), NM(1, 4), -1),
  "b/1/kernel": MaskedKernel((3, 4, 6), NM(1, 4), (0, 1)),
}
WIDE = {"a/kernel": MaskedKernel((64, 3), NM(1, 32), 0)}
RECIPES = (
  "dense", "ste", "mdgf_exp", "sdgf_stepwise", "figs", "step",
)  # fmt: skip


def brute_force(weight, pattern, axis):
  """Per group a stable sort: largest |w| first, NaN last, low index first."""
  axes = (axis,) if isinstance(axis, int) else axis
  axes = [a % weight.ndim for a in axes]
  order = [i for i in range(weight.ndim) if i not in axes] + axes
  moved = np.transpose(np.abs(weight), order)
  groups = moved.reshape(-1, pattern.m)
  rank = np.argsort(np.where(np.isnan(groups), np.inf, -groups), kind="stable")
  mask = np.zeros(groups.shape, bool)
  np.put_along_axis(mask, rank[:, : pattern.n], True, axis=1)
  return np.transpose(mask.reshape(moved.shape), np.argsort(order))


def params_at(step, leaves=LEAVES):
  """Weights with planted ties, zeros of both signs and NaN; dense leaves."""
  rng, weights = np.random.default_rng(step), {}
  for path in LEAVES:
    shape = leaves.get(path, LEAVES[path]).shape
    w = np.round(rng.normal(size=shape), 1).astype(np.float32)
    w.flat[:5] = [np.nan, 0.0, -0.0, 0.0, np.nan]
    weights[path] = jnp.asarray(w)
  return {
    "a": {"kernel": weights["a/kernel"], "bias": jnp.ones(3)},
    "b": {
      0: {"kernel": weights["b/0/kernel"]},
      1: {"kernel": weights["b/1/kernel"], "scale": jnp.ones(2)},
    },
  }


def signs(bound, params):
  """Masks that are not N:M, so that every refresh changes them."""
  return map_paths(lambda _, weight: weight > 0, params, bound.leaves)


def switched_at(recipe, step):
  return recipe.timeline.switch is not None and step > 33


@pytest.mark.parametrize("refresh_every", [1, 7])
@pytest.mark.parametrize("leaves", [LEAVES, WIDE], ids=["1:4", "1:32"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_equals_brute_force_and_compiles_once(
  name, leaves, refresh_every
):
  pattern = next(iter(leaves.values())).pattern
  recipe = create(name, pattern, TOTAL, dense=0.1, refresh_every=refresh_every)
  bound, traces = recipe.bind(leaves), []

  @jax.jit
  def refresh(step, params, masks, switched, was_switched):
    traces.append(step)
    return bound.masks(step, params, masks, switched, was_switched)

  masks, wanted = signs(bound, params_at(0)), {}
  for step in range(TOTAL):
    params = params_at(step)
    flags = [switched_at(recipe, s) for s in (step, step - 1)]
    masks = refresh(
      jnp.int32(step), params, masks, *(jnp.array(f) for f in flags)
    )
    weights, got = flatten(params), flatten(masks)
    for kernel in bound.kernels:
      stages = (NM(pattern.m, pattern.m), *kernel.stages)
      if recipe.timeline.switch:
        starts, stage = [34], int(flags[0])
      else:
        starts = recipe.timeline.boundaries(len(kernel.stages))
        stage = sum(step >= s for s in starts)
      if step % refresh_every == 0 or step in starts:
        wanted[kernel.path] = brute_force(
          np.asarray(weights[kernel.path]), stages[stage], kernel.leaf.axis
        )
      np.testing.assert_array_equal(got[kernel.path], wanted[kernel.path])
  assert len(traces) == 1
  dense = [path for path, mask in got.items() if mask is None]
  assert not set(dense) & set(leaves) and {"a/bias", "b/1/scale"} <= set(dense)
  assert jax.tree.structure(masks, is_leaf=lambda x: x is None) == (
    jax.tree.structure(params)
  )


def test_kernels_of_one_shape_are_reported_once(caplog):
  recipe = create("figs", "1:4", 100)
  alike = {f"{i}/kernel": LEAVES["b/0/kernel"] for i in range(3)}
  with caplog.at_level(logging.WARNING):
    recipe.bind(alike)
  (message,) = (record.getMessage() for record in caplog.records)
  assert message.endswith(": 0/kernel and 2 more")


def test_every_kernel_gets_all_stages_that_fit(caplog):
  recipe = create("figs", "1:4", 100, dense=0.1, finetune=0.1)
  with caplog.at_level(logging.WARNING):
    bound = recipe.bind(LEAVES)
  stages = {k.path: " ".join(map(str, k.stages)) for k in bound.kernels}
  assert stages == {
    "a/kernel": "8:32 4:16 2:8 1:4",
    "b/0/kernel": "4:16 2:8 1:4",
    "b/1/kernel": "1:4",  # groups of 3 * 4 = 12
  }
  texts = [record.getMessage() for record in caplog.records]
  paths = [text.split(": ")[-1] for text in texts]
  assert paths == ["b/0/kernel", "b/1/kernel"]
  assert "length 48" in texts[0] and "4:16" in texts[0]
  # All stages are spread over the same decay phase, steps 10 to 90.
  masks_at = jax.jit(bound.masks)
  masks = {s: flatten(masks_at(s, params_at(1))) for s in (9, 10, 37, 64)}
  kept = np.asarray(flatten(params_at(1))["b/0/kernel"])
  for step, stage in ((9, "4:4"), (10, "4:16"), (37, "2:8"), (64, "1:4")):
    np.testing.assert_array_equal(
      masks[step]["b/0/kernel"], brute_force(kept, NM.parse(stage), -1)
    )


@pytest.mark.parametrize("name", ["ste", "figs", "sdgf_stepwise", "step"])
def test_seeds_under_vmap_equal_one_at_a_time(name):
  """Also with STEP's flag differing between the seeds."""
  recipe = create(name, "1:4", TOTAL, refresh_every=5)
  bound = recipe.bind(LEAVES)
  seeds = [params_at(s) for s in range(3)]
  old = [signs(bound, seed) for seed in seeds]
  flags, before = (
    jnp.array([True, True, False]),
    jnp.array([False, True, False]),
  )
  stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
  many = jax.jit(jax.vmap(bound.masks, (None, 0, 0, 0, 0)))
  lone = jax.jit(bound.masks)
  for step in (0, 3, 20, 55):
    got = many(jnp.int32(step), stack(seeds), stack(old), flags, before)
    for i in range(3):
      alone = lone(step, seeds[i], old[i], flags[i], before[i])
      jax.tree.map(
        lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), got, alone
      )


@pytest.mark.parametrize("name,refresh_every", [("ste", 5), ("figs", 1)])
def test_an_unbatched_step_keeps_its_branches_under_vmap(name, refresh_every):
  """A `cond` that became a `select` would compute every branch each step."""
  recipe = create(name, "1:4", TOTAL, refresh_every=refresh_every)
  bound = recipe.bind(LEAVES)
  params = jax.tree.map(lambda x: jnp.stack([x, x]), params_at(0))
  masks = signs(bound, params)
  jaxpr = jax.make_jaxpr(jax.vmap(bound.masks, (None, 0, 0)))(
    jnp.int32(1), params, masks
  )
  assert "cond[" in str(jaxpr)


def test_scan():
  recipe = create("figs", "1:4", TOTAL, refresh_every=4)
  bound = recipe.bind(LEAVES)
  params = jax.tree.map(lambda *x: jnp.stack(x), *map(params_at, range(TOTAL)))

  def one(masks, xs):
    masks = bound.masks(*xs, masks)
    return masks, masks

  first = signs(bound, params_at(0))
  _, scanned = jax.lax.scan(one, first, (jnp.arange(TOTAL), params))
  masks, refresh = first, jax.jit(bound.masks)
  for step in range(TOTAL):
    masks = refresh(step, params_at(step), masks)
    jax.tree.map(
      lambda a, b, s=step: np.testing.assert_array_equal(a[s], b),
      scanned,
      masks,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_final_is_exact_and_keeps_what_already_is(name):
  recipe = create(name, "1:4", TOTAL)
  bound = recipe.bind(LEAVES)
  masks_at, final_at = jax.jit(bound.masks), jax.jit(bound.final)
  params = params_at(3)
  for step in (0, 30, TOTAL):
    switched = switched_at(recipe, step)
    carried = masks_at(step, params_at(4), switched=switched)
    final = flatten(final_at(params, carried, step, switched))
    for kernel in bound.kernels:
      if name == "dense":
        assert np.all(final[kernel.path])
        continue
      stages = len(kernel.stages)
      stage = recipe.timeline.stage(stages, jnp.int32(step), switched)
      weight = np.asarray(flatten(params)[kernel.path])
      wanted = (
        flatten(carried)[kernel.path]
        if int(stage) == stages
        else brute_force(weight, NM(1, 4), kernel.leaf.axis)
      )
      np.testing.assert_array_equal(final[kernel.path], wanted)
  target = flatten(bound.target(params))
  if name != "dense":
    for path, leaf in LEAVES.items():
      weight = np.asarray(flatten(params)[path])
      wanted = brute_force(weight, leaf.pattern, leaf.axis)
      np.testing.assert_array_equal(target[path], wanted)


def test_nested_never_lets_a_weight_return():
  recipe = create("figs", "1:4", TOTAL, nested=True)
  bound = recipe.bind(LEAVES)
  refresh = jax.jit(bound.masks)
  masks = refresh(0, params_at(0), signs(bound, params_at(0)))
  densities = []
  for step in range(1, TOTAL):
    new = refresh(step, params_at(step), masks)
    for path in LEAVES:
      a, b = flatten(masks)[path], flatten(new)[path]
      assert not np.any(b & ~a), "a pruned weight came back"
    masks = new
    kept = np.asarray(flatten(masks)["a/kernel"])
    densities.append(kept.mean())
  assert densities[-1] < 0.25
  assert kept.reshape(-1, 4, 3).sum(1).max() <= 1
  assert not create("figs", "1:4", TOTAL).is_stateful


def test_bfloat16_and_sorted_paths():
  recipe = create("ste", "1:4", TOTAL)
  leaves = {"w": MaskedKernel((8, 2), NM(1, 4), 0)}
  w = jnp.arange(16, dtype=jnp.bfloat16).reshape(8, 2)
  mask = recipe.bind(leaves).masks(TOTAL, {"w": w})["w"]
  np.testing.assert_array_equal(
    mask, brute_force(np.asarray(w, np.float32), NM(1, 4), 0)
  )


def test_binding_checks_the_model():
  leaf = MaskedKernel((8, 2), NM(1, 4), 0)
  recipe = create("ste", "1:8", TOTAL)
  with pytest.raises(ValueError, match="w: the model masks it 1:4.*1:8"):
    recipe.bind({"w": leaf})
  with pytest.raises(ValueError, match="masks it 1:4.*1:8, 2:4"):
    create("ste", "ff: 1:8, qk: 2:4", TOTAL).bind({"w": leaf})
  with pytest.raises(ValueError, match="not a multiple of m=8"):
    recipe.bind({"w": MaskedKernel((12, 2), NM(1, 8), 0)})
  bound = create("ste", "1:4", TOTAL).bind({"w": leaf})
  assert hash(bound) == hash(create("ste", "1:4", TOTAL).bind({"w": leaf}))
  assert bound.leaves == {"w": leaf}
  with pytest.raises(ValueError, match="params at w.*nothing"):
    bound.masks(0, {"v": jnp.ones((8, 2))})
  with pytest.raises(ValueError, match=r"got \(2, 8, 2\).*vmap"):
    bound.masks(0, {"w": jnp.ones((2, 8, 2))})
  with pytest.raises(ValueError, match="masks at w"):
    bound.masks(0, {"w": jnp.ones((8, 2))}, {"w": None})
  assert create("ste", "1:4", TOTAL).bind({}).masks(0, {"w": w_ones()}) == {
    "w": None
  }


def w_ones():
  return jnp.ones((8, 2))


def test_transposable_masks_may_start_wide():
  leaves = {"w": MaskedKernel((128, 64), NM(1, 8), -2)}
  recipe = create("figs", "1:8", TOTAL, transposable=True, dense=0.0)
  bound = recipe.bind(leaves)
  w = jax.random.normal(jax.random.key(0), (128, 64))
  mask = bound.masks(0, {"w": w})["w"]
  assert is_nm(mask, "8:64", axis=0) and is_nm(mask, "8:64", axis=1)


def test_what_cannot_be_had_is_refused():
  leaves = {"w": MaskedKernel((128, 64), NM(1, 8), -2)}
  params = {"w": jnp.ones((128, 64))}
  pruned = create("ste", "1:8", TOTAL, mvue="1:2").bind(leaves)
  with pytest.raises(ValueError, match="mvue='1:2'"):
    pruned.effective(params, pruned.masks(0, params))
  soft = create("s_ste", "1:8", TOTAL).bind(leaves)
  with pytest.raises(ValueError, match="scales=bound.scales"):
    soft.effective(params, soft.masks(0, params))


@pytest.mark.parametrize("name", ["figs", "transposable", "rigl", "set"])
def test_a_loop_over_layers_equals_each_layer_alone(name):
  """The same masks, and one compiled selection however many layers."""
  recipe = create(name, "1:2", TOTAL, refresh_every=5)
  paths = [f"layers/{i}/kernel" for i in range(4)]
  leaves = {path: MaskedKernel((16, 16), NM(1, 2), 0) for path in paths}
  drawn = jax.random.normal(jax.random.key(0), (4, 16, 16))
  params = {"layers": [{"kernel": w} for w in drawn]}
  old = recipe.bind(leaves).target(params)
  grads = jax.tree.map(lambda w: w[::-1], params)

  def select(group):
    bound = recipe.bind({path: leaves[path] for path in group})
    program = jax.jit(bound.masks).lower(
      jnp.int32(20), params, old, grads=grads
    )
    masks = program.compile()(jnp.int32(20), params, old, grads=grads)
    return flatten(masks), program.as_text().count("\n")

  whole, lines = select(paths)
  for path in paths[2:]:
    np.testing.assert_array_equal(whole[path], select([path])[0][path])
  assert len({np.asarray(whole[path]).tobytes() for path in paths}) == 4
  # Two more layers add branches that copy them, and no second selection.
  few = select(paths[:2])[1]
  assert lines - few < 60 < few / 4
