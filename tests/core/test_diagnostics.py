"""Diagnostics against numpy, and the laws that they keep."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from figs_jax.core import diagnostics as d
from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.tree import MaskedKernel

LAW = settings(deadline=None, max_examples=40)
SHAPE = (6, 4)
floats = hnp.arrays(
  np.float32, SHAPE, elements=st.floats(-8, 8, width=32, allow_subnormal=False)
)
bools = hnp.arrays(bool, SHAPE)


def variance(x):
  return x.astype(np.float64).var() if x.size else 0.0


def snr(x):
  x = x.astype(np.float64)
  if not x.size or x.mean() == 0:
    return 0.0
  with np.errstate(divide="ignore"):
    return abs(x.mean()) / x.std()


@LAW
@given(floats, bools)
def test_gradient_statistics_against_numpy(grad, mask):
  for fn, oracle in ((d.gradient_variance, variance), (d.gradient_snr, snr)):
    result = fn(jnp.asarray(grad), jnp.asarray(mask))
    for got, entries in zip(result, (grad[mask], grad[~mask])):
      assert got.dtype == jnp.float32
      wanted = oracle(entries)
      if oracle is snr and (wanted > 1e3 or wanted < 1e-6):
        continue  # all but constant, or a mean that only rounding decides
      assert float(got) == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@LAW
@given(floats, bools, st.integers(-60, 60))
def test_snr_knows_no_scale_and_swaps_with_the_mask(grad, mask, power):
  grad = jnp.where(jnp.abs(grad) < 2**-20, 0.0, grad)  # no subnormals below
  scaled = jnp.ldexp(grad, power)
  one = d.gradient_snr(grad, jnp.asarray(mask))
  np.testing.assert_array_equal(d.gradient_snr(scaled, jnp.asarray(mask)), one)
  swapped = d.gradient_snr(grad, jnp.asarray(~mask))
  np.testing.assert_array_equal(swapped[::-1], one)


def test_sampled_snr_against_numpy():
  rng = np.random.default_rng(0)
  grads = rng.normal(0.3, size=(5, 8, 4)).astype(np.float32)
  mask = rng.random((8, 4)) < 0.3
  grads[:, 0, 0] = 0  # a dead entry counts 0
  mean = grads.mean(0, dtype=np.float64)
  noise = grads.astype(np.float64).var(0)
  ratio = np.divide(mean**2, noise, where=noise > 0, out=np.zeros_like(mean))
  result = d.sampled_snr(jnp.asarray(grads), jnp.asarray(mask))
  wanted = ratio[mask].mean(), ratio[~mask].mean()
  assert tuple(map(float, result)) == pytest.approx(wanted, rel=1e-5)
  tiny = d.sampled_snr(jnp.asarray(grads) * 2.0**-100, jnp.asarray(mask))
  np.testing.assert_array_equal(tiny, result)


def test_sampled_snr_of_noise_is_what_theory_says():
  # E[mean²/var] of S Gaussian samples is 1 / (S - 3).
  samples = jax.random.normal(jax.random.key(0), (13, 400, 400))
  mask = nm_mask(jnp.abs(samples[0]), "1:4")
  kept, pruned = d.sampled_snr(samples[1:], mask)
  assert float(kept) == pytest.approx(1 / 9, rel=0.02)
  assert float(pruned) == pytest.approx(1 / 9, rel=0.02)
  # Of one gradient: E|mean|/std is about sqrt(2 / (pi n)).
  one = jax.vmap(lambda g: d.gradient_snr(g, jnp.ones(400, bool))[0])
  expected = np.sqrt(2 / (np.pi * 400))
  assert float(one(samples[0]).mean()) == pytest.approx(expected, rel=0.15)


def test_empty_constant_and_broken_classes():
  every, none = jnp.ones(4, bool), jnp.zeros(4, bool)
  half = jnp.array([True, True, False, False])
  grad = jnp.array([1.0, 3.0, 2.0, 2.0])
  for fn in (d.gradient_variance, d.gradient_snr):
    assert float(fn(grad, every)[1]) == float(fn(grad, none)[0]) == 0
  assert float(d.gradient_snr(grad, half)[1]) == np.inf
  assert np.isfinite(d.gradient_snr(jnp.zeros(4), half)).all()
  # NaN and infinity stay in their own class.
  for bad in (jnp.nan, jnp.inf):
    for fn in (d.gradient_variance, d.gradient_snr):
      kept, pruned = fn(grad.at[3].set(bad), half)
      assert np.isfinite(kept) and np.isnan(pruned)
      stacked = jnp.stack([grad, -2 * grad, grad.at[3].set(bad)])
      kept, pruned = d.sampled_snr(stacked, half)
      assert np.isfinite(kept) and np.isnan(pruned)
  with pytest.raises(ValueError, match="at least two samples"):
    d.sampled_snr(grad[None], half)


def test_counts_beyond_two_to_the_24():
  # A float32 counter would stop at 2^24.
  mask = jnp.ones((5 * 2**10, 2**12), bool)
  assert int(d.totals({"a": mask}, {"a": ~mask})["sad"]) == 5 * 2**22
  grad = jnp.full(mask.shape, 0.5, jnp.bfloat16).at[::2].set(1.5)
  assert float(d.gradient_variance(grad, mask)[0]) == pytest.approx(0.25)
  assert float(d.gradient_snr(grad, mask)[0]) == pytest.approx(2)


@LAW
@given(bools, bools, bools)
def test_sad_is_a_distance(a, b, c):
  def sad(x, y):
    return int(d.sad(jnp.asarray(x), jnp.asarray(y)))

  assert sad(a, b) == sad(b, a) == np.sum(a != b)
  assert sad(a, a) == 0
  assert sad(a, c) <= sad(a, b) + sad(b, c)
  rate = float(d.flip_rate(jnp.asarray(a), jnp.asarray(b)))
  assert rate == pytest.approx(sad(a, b) / a.size)


def test_sad_needs_equal_shapes(unchecked):
  with pytest.raises(ValueError, match="masks of one kernel"):
    d.sad(jnp.ones(3, bool), jnp.ones(4, bool))


def trees(seed=0):
  """(old masks, new masks, params, grads) with a dense leaf."""
  rng = np.random.default_rng(seed)

  def tree(draw, bias):
    return {"a": {"kernel": draw(8, 2), "bias": bias}, "b": draw(4, 12)}

  masks = [
    jax.tree.map(jnp.asarray, tree(lambda *s: rng.random(s) < 0.5, None))
    for _ in range(2)
  ]
  weights = [
    jax.tree.map(
      jnp.asarray,
      tree(lambda *s: rng.normal(size=s).astype(np.float32), np.ones(2, "f4")),
    )
    for _ in range(2)
  ]
  return (*masks, *weights)


def test_layer_table_against_numpy():
  old, new, params, grads = trees()
  table = d.layer_table(new, params, grads, old)
  assert list(table) == ["a/kernel", "b"]
  was, now = np.asarray(old["b"]), np.asarray(new["b"])
  size, grad = np.abs(params["b"]), np.asarray(grads["b"])
  assert {k: float(v) for k, v in table["b"].items()} == pytest.approx(
    {
      "density": now.mean(),
      "flip_rate": (was != now).mean(),
      "sad": (was != now).sum(),
      "kept_magnitude": size[now].sum() / size.sum(),
      "grad_var_kept": grad[was].var(),
      "grad_var_pruned": grad[~was].var(),
      "grad_snr_kept": snr(grad[was]),
      "grad_snr_pruned": snr(grad[~was]),
    },
    rel=1e-5,
  )
  assert table["b"]["sad"].dtype == jnp.int32
  # Without earlier masks the classes are those of the masks themselves.
  alone = d.layer_table(new, grads=grads)["b"]
  assert set(alone) == {
    "density",
    *(f"grad_{s}_{c}" for s in ("var", "snr") for c in ("kept", "pruned")),
  }
  assert float(alone["grad_var_kept"]) == pytest.approx(
    grad[now].var(), rel=1e-5
  )
  assert d.layer_table({"a": None, "b": None}, params) == {}


def test_totals_weigh_every_entry_alike():
  old, new, _, _ = trees()
  pairs = [
    (np.asarray(a).ravel(), np.asarray(b).ravel())
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new))
  ]
  was, now = (np.concatenate(side) for side in zip(*pairs))
  result = {k: float(v) for k, v in d.totals(new, old).items()}
  assert result == pytest.approx(
    {
      "density": now.mean(),
      "flip_rate": (was != now).mean(),
      "sad": (was != now).sum(),
    }
  )
  assert list(d.totals(new)) == ["density"]
  assert {
    k: float(v) for k, v in d.totals({"a": None}, {"a": None}).items()
  } == {
    "density": 0,
    "flip_rate": 0,
    "sad": 0,
  }


def test_under_jit_and_vmap():
  old, new, params, grads = trees()

  def run(new, params, grads, old):
    return d.layer_table(new, params, grads, old), d.totals(new, old)

  args = (new, params, grads, old)
  plain = run(*args)
  for result in (
    jax.jit(run)(*args),
    jax.tree.map(
      lambda x: x[1],
      jax.vmap(run)(*jax.tree.map(lambda *x: jnp.stack(x), args, args)),
    ),
  ):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), result, plain
    )


def brute_first_bad(array, pattern, axes):
  """The first bad group by visiting every group, ordered by first entry."""
  exact = array.dtype == bool
  mask = array if exact else array != 0
  rest = [a for a in range(array.ndim) if a not in axes]
  result = []
  for outer in itertools.product(*(range(array.shape[a]) for a in rest)):
    inner = list(itertools.product(*(range(array.shape[a]) for a in axes)))
    for at in range(0, len(inner), pattern.m):
      index = []
      for entry in inner[at : at + pattern.m]:
        place = dict(zip(rest, outer)) | dict(zip(axes, entry))
        index.append(tuple(place[a] for a in range(array.ndim)))
      kept = sum(bool(mask[i]) for i in index)
      if kept != pattern.n if exact else kept > pattern.n:
        result.append((index[0], kept))
  return min(result) if result else None


@LAW
@given(
  st.sampled_from([0, 1, -1, (0, 1), (1, 0), (0, 2), (2, 0, 1)]),
  st.sampled_from(["1:2", "2:4", "3:4"]),
  st.booleans(),
  st.integers(0, 2**31),
)
def test_first_bad_group_against_every_group(axis, pattern, exact, seed):
  rng = np.random.default_rng(seed)
  nm, shape = NM.parse(pattern), (4, 8, 4)
  array = np.array(nm_mask(rng.random(shape).astype(np.float32), nm, axis=axis))
  if not exact:
    array = array * rng.normal(size=shape).astype(np.float32)
  assert d.first_bad_group(array, nm, axis) is None
  for _ in range(rng.integers(1, 4)):
    array[tuple(rng.integers(s) for s in shape)] = 1
  axes = [a % 3 for a in ((axis,) if isinstance(axis, int) else axis)]
  result = d.first_bad_group(jnp.asarray(array), nm, axis)
  assert result == brute_first_bad(array, nm, axes)


def test_check_nm_names_leaf_group_count_and_expectation():
  leaves = {
    "a/kernel": MaskedKernel((8, 2), NM(1, 4)),
    "b": MaskedKernel((4, 4), NM(2, 4), -1),
  }
  rng = np.random.default_rng(0)
  weights = {
    "a": {"kernel": rng.normal(size=(8, 2)).astype(np.float32), "bias": None},
    "b": rng.normal(size=(4, 4)).astype(np.float32),
  }
  masks = {
    "a": {"kernel": nm_mask(abs(weights["a"]["kernel"]), "1:4"), "bias": None},
    "b": nm_mask(abs(weights["b"]), "2:4", axis=-1),
  }
  d.check_nm(masks, leaves)
  d.check_nm({"a/kernel": masks["a"]["kernel"], "b": masks["b"]}, leaves)
  with pytest.raises(ValueError) as error:
    d.check_nm(weights, leaves)
  assert str(error.value) == (
    "a/kernel: the group of 4 along axis -2 that starts at entry (0, 0) keeps"
    " 4, expected at most 1 (1:4); multiply it by its mask"
  )
  masks["b"] = masks["b"].at[2].set(jnp.array([True, False, False, False]))
  with pytest.raises(ValueError, match=r"^b: .*\(2, 0\) keeps 1, expected ex"):
    d.check_nm(masks, leaves)
  d.check_nm(jax.tree.map(jnp.float32, masks), leaves)  # at most 2 non-zeros
  for tree, got in (({"b": masks["b"]}, "nothing"), ({"a/kernel": 1.0}, r"\(")):
    with pytest.raises(ValueError, match=rf"^a/kernel: .*\(8, 2\), got {got}"):
      d.check_nm(tree, leaves)


def test_check_nm_takes_nan_and_zero_as_is_nm_does():
  leaves = {"w": MaskedKernel((4,), NM(2, 4), 0)}
  d.check_nm({"w": jnp.zeros(4, jnp.bfloat16)}, leaves)
  d.check_nm({"w": jnp.array([jnp.nan, 0, 0, 1])}, leaves)
  with pytest.raises(ValueError, match="keeps 3"):
    d.check_nm({"w": jnp.array([jnp.nan, -0.0, 2, 1])}, leaves)


def test_more_entries_than_an_int32_counts(monkeypatch):
  monkeypatch.setattr("figs_jax.core.masks.COUNT_LIMIT", 20)
  old = {"a": jnp.zeros((4, 8), bool), "b": jnp.zeros((2, 2), bool)}
  new = {"a": old["a"].at[1].set(True), "b": ~old["b"]}
  assert d.sad(old["b"], new["b"]).dtype == jnp.int32
  assert d.sad(old["a"], new["a"]).dtype == jnp.float32
  assert d.sad(old["a"], new["a"]) == 8
  assert d.density(new["a"]) == 0.25
  assert d.totals(new, old)["sad"] == 12
  assert d.totals(new, old)["sad"].dtype == jnp.float32
