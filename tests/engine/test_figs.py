"""The FIGS closed form against a walk over its folds, bounds and slides."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM
from figs_jax.core.transposable import transposable_nm_mask
from figs_jax.engine import (
  Figs,
  Layers,
  Systolic,
  Vegeta,
  cost,
  parse,
)
from figs_jax.engine.blocks import exchanges, worst_exchange
from figs_jax.engine.figs import (
  EXCHANGES,
  checkpoint_stall_factor,
  stall_factor,
)
from figs_jax.engine.spec import OVERLAPS, UNLIMITED
from figs_jax.engine.studies.bandwidth import (
  iso_bandwidth_speedup,
  ledger,
  utilisation_bound,
)
from figs_jax.engine.timing import PARTS
from tests.engine.counting import counts

laws = settings(deadline=None, max_examples=40)
sizes = st.integers(1, 40)


@st.composite
def designs(draw, exchange=None):
  """The fields of an array of few rows, and a pattern that it runs."""
  exchange = draw(st.sampled_from(EXCHANGES)) if exchange is None else exchange
  alpha = draw(st.sampled_from([1, 3, 7])) if exchange == "swap" else None
  alpha = draw(st.integers(0, 7)) if alpha is None else alpha
  m = (alpha + 1) * draw(st.sampled_from([1, 2]))
  beta = draw(st.integers(1, 3))
  fields = {
    "rows": alpha + 1 + draw(st.integers(0, 12)),
    "cols": draw(st.integers(1, 4)),
    "alpha": alpha,
    "beta": beta,
    "exchange": exchange,
    "mask_group": draw(st.sampled_from([1, beta])),
    "sigma": draw(st.integers(0, 2)),
    "load": draw(st.integers(1, 5)),
    "overlap": draw(st.sampled_from(OVERLAPS)),
    "bw_in": draw(st.sampled_from([1, 3, 8, UNLIMITED])),
    "bw_out": draw(st.sampled_from([1, 5, 16, UNLIMITED])),
  }
  return fields, (draw(st.integers(1, m)), m)


def built(design):
  fields, (n, m) = design
  return Figs(**fields), NM(n, m)


def random_mask(seed, K, N, nm, group=1):
  """n of every m rows, the last group of them cut; shared by `group`."""
  rng = np.random.default_rng(seed)
  score = rng.random((-(-K // nm.m), nm.m, -(-N // group)))
  mask = (score.argsort(1).argsort(1) < nm.n).reshape(-1, score.shape[2])[:K]
  return mask.repeat(group, 1)[:, :N]


def by_folds(M, N, K, e, nm, mask=None):
  """Walks the folds; cycles, and words in, loaded and out."""
  block = 1 if nm.is_dense else min(nm.m, e.alpha + 1)
  run = 1 if nm.is_dense else min(nm.n, block)
  if mask is not None and not nm.is_dense:
    tops = range(0, K, block)
    run = max(1, *(int(mask[top : top + block].sum(0).max()) for top in tops))
  used, s = e.rows // block * block, block // run
  slots = e.cols * e.beta * s
  fill = 1 + (used // block - 1) + (e.cols - 1) * (1 + e.sigma)
  load = -(-used // e.load)
  ports = max(-(-used // e.bw_in), -(-slots // e.bw_out))
  tops, lefts = range(0, K, used), range(0, N, slots)
  kappa = np.ones((len(tops), len(lefts)), int)
  if e.exchange == "swap" and mask is None:
    kappa[:] = worst_exchange(run, block, e.beta // e.mask_group)
  elif e.exchange == "swap" and not nm.is_dense:
    sides = {"rows": e.rows, "cols": e.cols, "beta": e.beta}
    group = {"mask_group": e.mask_group}
    kappa = exchanges(mask, block=block, run=run, **sides, **group)
  clock, ready, words = 0, load, np.zeros(2, int)
  for (j, left), (i, top) in itertools.product(
    enumerate(lefts), enumerate(tops)
  ):
    stream = M * max(ports, kappa[i, j])
    if e.overlap == "none":
      clock += load + stream + fill
    elif e.overlap == "weights":
      start = max(clock, ready)
      clock, ready = start + stream + fill, start + load
    else:
      ready += max(stream, load)
      clock = ready + fill
    words += M * min(used, K - top), M * min(slots, N - left)
  return clock, words, kappa.mean()


@laws
@given(sizes, sizes, sizes, designs(), st.integers(0, 10**6), st.booleans())
def test_closed_form_is_the_sum_over_folds(M, N, K, design, seed, known):
  engine, nm = built(design)
  masks = [random_mask(seed, K, N, nm, engine.mask_group)] if known else None
  n, m = np.array([nm.n]), np.array([nm.m])
  got = counts(M, N, K, engine, n, m, masks=masks)
  got = {name: value[0] for name, value in got.items()}
  clock, words, factor = by_folds(M, N, K, engine, nm, masks and masks[0])
  assert got["cycles"] == clock == sum(got[name] for name in PARTS)
  assert min(got[name] for name in PARTS) >= 0
  assert [got["ifmap_reads"], got["ofmap_writes"]] == words.tolist()
  kept = K // nm.m * nm.n + min(K % nm.m, nm.n)
  assert got["filter_reads"] == kept * N
  assert 0 < got["utilisation"] <= 1
  useful = M * N * kept
  multipliers = engine.rows * engine.cols * engine.beta
  # A mask cut at K may hold less than n of its last group.
  assert got["utilisation"] <= useful / (clock * multipliers) * (1 + 1e-12)
  if masks is None:
    np.testing.assert_allclose(
      got["utilisation"], useful / (clock * multipliers), rtol=1e-12
    )
  if known:
    np.testing.assert_allclose(
      stall_factor(masks, engine, n, m), factor, rtol=1e-12
    )


@laws
@given(sizes, sizes, sizes, designs("swap"), st.integers(0, 10**6))
def test_the_worst_mask_bounds_every_mask(M, N, K, design, seed):
  engine, nm = built(design)
  # A mask of fewer than n of a block may pack more outputs, and its ports or
  # its registers then need longer.
  m = min(nm.m, engine.alpha + 1)
  nm, K = NM(min(nm.n, m), m), -(-K // m) * m
  mask = random_mask(seed, K, N, nm, engine.mask_group)
  n, m = np.array([nm.n]), np.array([nm.m])
  real = counts(M, N, K, engine, n, m, masks=[mask])["cycles"][0]
  assert real <= counts(M, N, K, engine, nm.n, nm.m)["cycles"]


def test_no_fold_waits_for_a_load_after_the_last():
  # kappa is 1 in one fold and 4 in the other; neither hides a load of 4 rows.
  calm, busy = np.eye(4, dtype=bool), np.zeros((4, 4), bool)
  busy[0] = True
  engine = Figs(4, 1, 3, exchange="swap", overlap="weights")
  for mask, first in [([calm, busy], 1), ([busy, calm], 4)]:
    mask = [np.concatenate(mask)]
    got = counts(1, 4, 8, engine, 1, 4, masks=mask)
    assert got["cycles"] == 4 + max(first + 1, 4) + (5 - first) + 1


def test_an_emptier_mask_packs_more_and_never_passes_one():
  mask = np.zeros((64, 512), bool)
  mask[::8] = True
  engine = Figs(8, 2, overlap="full")
  got = counts(10**4, 512, 64, engine, 4, 8, masks=[mask])
  assert got["compute"] == 10**4 * 8 * 32  # as 1:8
  assert 0.99 < got["utilisation"] <= 1
  # A mask that keeps nothing still runs.
  got = counts(10**4, 512, 64, engine, 4, 8, masks=[mask & False])
  assert got["compute"] == 10**4 * 8 * 32


def test_designs_broadcast_against_layers():
  n, m = np.array([1, 2, 4, 1]), np.array([2, 8, 4, 16])
  M, N, K = np.array([9, 30, 7, 64]), np.array([5, 64, 40, 20]), 57
  masks = [
    random_mask(i, 57, int(N[i]), NM(int(n[i]), int(m[i]))) for i in range(4)
  ]
  masks[1] = None
  rows, alpha, beta = np.array([[[8]], [[19]]]), np.array([[7], [3]]), 2
  engine = Figs(rows, 3, alpha, beta, exchange="swap", overlap="weights")
  for known in (None, masks):
    got = counts(M, N, K, engine, n, m, masks=known)
    assert got["cycles"].shape == (2, 2, 4)
    for i, j, k in np.ndindex(2, 2, 4):
      array = Figs(int(rows[i, 0, 0]), 3, int(alpha[j, 0]), beta,
                 exchange="swap", overlap="weights")  # fmt: skip
      alone = known is None or known[k] is None
      mask = None if alone else [known[k]]
      one = counts(M[k], N[k], K, array, n[k : k + 1], m[k], masks=mask)
      for name, value in one.items():
        whole = np.broadcast_to(got[name], (2, 2, 4))
        assert whole[i, j, k] == value[0], name


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_everything_may_be_traced(exchange):
  def cycles(M, N, K, n, m, rows, alpha, block):
    engine = Figs(rows, 3, alpha, 2, block, exchange, overlap="full")
    return counts(M, N, K, engine, n, m)["cycles"]

  M, N, K = (np.array(x, np.int32) for x in ([8, 9], [40, 7], [64, 33]))
  n, m = np.array([3, 2], np.int32), np.array([16, 2], np.int32)
  rows, alpha = np.array([[16], [21]], np.int32), np.array([7, 3], np.int32)
  for block in (np.zeros(2, np.int32), np.array([1, 1], np.int32)):
    sides = rows, alpha, block
    want = cycles(M, N, K, n, m, *sides)
    np.testing.assert_array_equal(jax.jit(cycles)(M, N, K, n, m, *sides), want)
    axes = (0,) * 5 + (None, 0, 0)
    each = jax.vmap(cycles, axes)(M, N, K, n, m, rows, alpha, block)
    np.testing.assert_array_equal(each[:, :, 0].T, want)
  dense = jax.jit(cycles)(M, N, K, m, m, *sides)
  np.testing.assert_array_equal(dense, cycles(M, N, K, m, m, *sides))


def test_the_published_preset_by_hand():
  # R = 32 in 4 blocks of 8, 8 outputs per slot: 16 x 4 folds.
  engine = Figs(32, 16, alpha=7, overlap="full")
  got = counts(100, 512, 512, engine, 1, 8)
  assert got["cycles"] == 32 + 64 * 100 + 1 + 3 + 15
  # 3:8 packs 2 outputs in 6 of 8 rows, and uses no more than these.
  got = counts(10**6, 512, 512, engine, 3, 8)
  np.testing.assert_allclose(got["utilisation"], 0.75, rtol=1e-4)
  # 34 rows hold 4 blocks of 8.
  wide = counts(10**6, 512, 512, Figs(34, 16, overlap="full"), 1, 8)
  np.testing.assert_allclose(wide["utilisation"], 32 / 34, rtol=1e-4)
  # A dense layer runs in blocks of one row, or of `block` rows where given.
  dense = [counts(100, 16, 32, Figs(32, 16, block=b)) for b in (0, 8)]
  assert [int(x["fill"]) for x in dense] == [32 + 15, 4 + 15]
  # Shared masks need one index for the outputs of a PE.
  bits = [
    int(counts(1, 64, 64, Figs(beta=4, mask_group=g), 1, 8)["metadata_bytes"])
    for g in (1, 4)
  ]
  assert bits == [64 * 64 // 8 * 3 // 8, 64 * 64 // 8 * 3 // 8 // 4]


@pytest.mark.parametrize(
  "fields, pattern, why",
  [
    ({"rows": 4}, "1:8", "block of 8 rows is longer than rows=4; set rows=8"),
    ({"alpha": 7, "exchange": "swap"}, "1:6", "is not a power of two"),
    ({"alpha": 7}, "1:12", "does not fit the engine's blocks of 8"),
    ({"block": 4}, "1:6", "does not fit the engine's blocks of 4"),
    ({"alpha": 3}, "5:4", "expected n <= m"),
  ],
)
def test_what_cannot_run_is_refused(fields, pattern, why):
  n, m = map(int, pattern.split(":"))
  with pytest.raises(ValueError, match=why) as error:
    counts(8, 8, 24, Figs(**fields), n, m)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_mask_that_is_not_shared_is_refused(exchange):
  mask = np.tile(np.eye(4, dtype=bool), (2, 2))
  engine = Figs(8, 2, 3, beta=2, mask_group=2, exchange=exchange)
  counts(8, 8, 8, engine, 1, 4, masks=[mask.repeat(2, 1)[:, :8]])
  with pytest.raises(ValueError, match="output 1 has another mask"):
    counts(8, 8, 8, engine, 1, 4, masks=[mask])


@laws
@given(
  sizes,
  sizes,
  sizes,
  designs(),
  st.sampled_from(OVERLAPS),
  st.sampled_from([(1, 4), (2, 4), (1, 2), (3, 4), (1, 8), (1, 1)]),
)
def test_no_weight_stationary_array_passes_its_bound(
  M, N, K, design, overlap, pattern
):  # fmt: skip
  engine, nm = built(design)
  values = engine.port_values(nm.n, nm.m)
  inputs = min(int(values["inputs"]), engine.bw_in)
  outputs, P = int(values["outputs"]), engine.rows * engine.cols * engine.beta
  bound = utilisation_bound(inputs, outputs, _density(engine, nm), P)
  got = counts(M, N, K, engine, nm.n, nm.m)["utilisation"]
  assert got <= bound * (1 + 1e-12)
  n, m = pattern
  for sparse in (True, False):
    other = Vegeta(sparse, 2, 2, 8, 6, overlap=overlap, bw_in=engine.bw_in)
    values = other.port_values(n, m)
    inputs, outputs = (int(values[name]) for name in ("inputs", "outputs"))
    bound = utilisation_bound(inputs, outputs, n / m, 8 * 6)
    held = {"n": n, "m": m}
    assert counts(M, N, K, other, **held)["utilisation"] <= bound + 1e-12
  plain = Systolic("ws", 5, 3, overlap=overlap)
  got = counts(M, N, K, plain)["utilisation"]
  assert got <= utilisation_bound(5, 3, 1, 15)


def _density(engine, nm):
  """What blocks run, which is not below n / m."""
  block, run = engine.packing(nm.n, nm.m)
  return int(run) / int(block)


def test_the_bound_is_reached_by_long_streams():
  # A port of 16 values feeds half of 32 rows.
  for engine, n, m in [(Figs(32, 16, overlap="full", bw_in=16), 1, 8),
                       (Figs(32, 16, overlap="full"), 3, 8)]:  # fmt: skip
    values = engine.port_values(n, m)
    inputs = min(int(values["inputs"]), engine.bw_in)
    bound = utilisation_bound(inputs, int(values["outputs"]), n / m, 512)
    got = counts(10**7, 512, 512, engine, n, m)["utilisation"]
    np.testing.assert_allclose(got, bound, rtol=1e-4)


def test_the_ledger_of_ports():
  ours, theirs = parse("figs:32x16"), parse("vegeta-s-16-2")
  for n, m, inputs, outputs in [(1, 2, 128, 128), (1, 4, 256, 256)]:
    here, there = ledger(ours, n, m), ledger(theirs, n, m)
    assert (int(here["inputs"]), int(here["outputs"])) == (64, outputs)
    assert (int(there["inputs"]), int(there["outputs"])) == (inputs, 64)
  dense = ledger(parse("vegeta-d-1-2"), 1, 4)
  assert [int(x) for x in dense.values()] == [64, 64]


def test_where_the_published_speedups_can_come_from():
  np.testing.assert_allclose(
    iso_bandwidth_speedup(1, np.array([2, 4])), [2.4, 4.4]
  )
  # The same out of the closed forms. A baseline that is fed 32 distinct values
  # per cycle, as FIGS is, and hides nothing: o = WL + fill = 16 + 20.
  T, o = 90, 36
  layer = {"M": T, "N": 16 * 64, "K": 128 * 64, "n": 1}
  for m in (2, 4):
    # 4 / m rows share a value, which the port carries to each of them.
    theirs = Vegeta(True, 16, 2, bw_in=32 * 4 // m, tile=T)
    slow = counts(**layer, m=m, engine=theirs)
    assert slow["stall_input"] == (m - 1) * slow["compute"]
    fast = counts(**layer, m=m, engine=Figs(32, 16, overlap="full"))
    ratio = slow["cycles"] / fast["cycles"]
    np.testing.assert_allclose(ratio, m + o / T, rtol=1e-3)
    np.testing.assert_allclose(iso_bandwidth_speedup(1, m, o / T), m + o / T)


# Mean kappa of random weights' masks on 32 x 16 PEs.
@pytest.mark.parametrize(
  "pattern, least, most, transposable",
  [
    ("1:2", 2.0, 2, 1.0),
    ("1:4", 3.5, 4, 1.0),
    ("1:8", 4.0, 8, 1.0),
    ("2:4", 2.0, 2, 2.0),
    ("2:8", 3.5, 4, 2.0),
  ],
)
def test_stall_factor_of_pruned_weights(pattern, least, most, transposable):
  nm = NM.parse(pattern)
  engine = Figs(32, 16, alpha=nm.m - 1, exchange="swap")
  scores = jnp.abs(jax.random.normal(jax.random.key(0), (256, 256)))
  plain = np.asarray(nm_mask(scores, pattern))
  both = np.asarray(transposable_nm_mask(scores, pattern))
  factors = stall_factor([plain, both], engine, nm.n, nm.m)
  assert worst_exchange(nm.n, nm.m, 1) == most
  assert least <= factors[0] <= most
  # Every m outputs keep an index n times, and no more than s of them meet.
  assert factors[1] == transposable == min(nm.n, nm.m // nm.n)
  mux = Figs(32, 16, alpha=nm.m - 1)
  assert (stall_factor([plain, both], mux, nm.n, nm.m) == 1).all()
  rows = [
    {"name": name, "M": M, "N": 256, "K": 256, "pattern": pattern, "mask": mask}
    for name, M, mask in [("a", 30, plain), ("b", 10, both)]
  ]
  layers = Layers.of(rows)
  whole = checkpoint_stall_factor(layers, engine)
  np.testing.assert_allclose(whole, (3 * factors[0] + factors[1]) / 4)
  total = cost(layers, engine)
  share = int(total.total("stall_exchange")) / int(total.total("compute"))
  np.testing.assert_allclose(whole, 1 + share)
