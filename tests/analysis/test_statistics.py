"""Intervals, corrections and verdicts, against SciPy, statsmodels' published
rules and simulated data."""

import math

import numpy as np
import pytest
from scipy import stats

from figs_jax.analysis import statistics


def test_paired_interval_is_scipys():
  rng = np.random.default_rng(1)
  a, b = rng.normal(size=(2, 7))
  ours = statistics.paired_interval(a - b, 0.9)
  theirs = stats.ttest_rel(a, b)
  low, high = theirs.confidence_interval(0.9)
  assert ours.p == pytest.approx(theirs.pvalue, rel=1e-12)
  assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-12)
  assert ours.mean == pytest.approx((a - b).mean())
  assert ours.n == 7


@pytest.mark.parametrize("value,p", [(0.0, 1.0), (0.5, 0.0)])
def test_differences_without_spread(value, p):
  same = statistics.paired_interval([value] * 3)
  assert (same.low, same.high, same.p) == (value, value, p)


def test_holm_is_the_step_down_rule():
  rng = np.random.default_rng(2)
  for _ in range(50):
    values = rng.random(rng.integers(1, 9)).round(1)
    corrected = statistics.holm(values)
    # Brute force: the smallest level at which the step-down rule rejects.
    for index in range(len(values)):
      levels = np.unique([*corrected, 1.0])
      rejected = [
        level for level in levels if index in _step_down(values, level)
      ]
      assert corrected[index] == min([*rejected, 1.0])


def _step_down(values, level):
  rejected = []
  order = sorted(range(len(values)), key=lambda i: values[i])
  for rank, index in enumerate(order):
    if values[index] * (len(values) - rank) > level:
      break
    rejected.append(index)
  return rejected


@pytest.mark.parametrize("n,shift", [(4, 1.0), (8, 0.7), (16, 0.5)])
def test_seeds_needed_by_simulation(n, shift):
  """At n of the answer, simulated tests find the effect as often as asked."""
  rng = np.random.default_rng(3)
  draws = rng.normal(shift, 1.0, (20_000, n))
  t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(n))
  power = float((abs(t) > stats.t.ppf(0.975, n - 1)).mean())
  assert statistics.seeds_needed(1.0, shift, power=power - 0.01) <= n
  assert statistics.seeds_needed(1.0, shift, power=power + 0.01) > n


def test_seeds_needed_at_its_ends():
  assert statistics.seeds_needed(0.0, 1.0) == 2
  assert statistics.seeds_needed(1.0, 1e-6, most=1000) == 1000
  assert statistics.seeds_needed(1.0, -1.0) == statistics.seeds_needed(1.0, 1.0)


@pytest.mark.parametrize(
  "of_seeds,of_examples,noise",
  [(0.1, 0.0, 1.0), (0.0, 1.0, 1.0), (0.1, 1.0, 1.0)],
)
def test_bootstrap_covers_the_true_difference(of_seeds, of_examples, noise):
  """Of 300 simulated studies, about 95 % of intervals hold the truth."""
  rng = np.random.default_rng(4)
  covered = 0
  for _ in range(300):
    data = 0.3 + noise * rng.normal(size=(5, 100))
    data += of_seeds * rng.normal(size=(5, 1))
    data += of_examples * rng.normal(size=(1, 100))
    each = statistics.bootstrap_interval(data)
    covered += each.low < 0.3 < each.high
  assert 0.93 <= covered / 300 <= 1.0


def test_seeds_alone_miss_the_spread_of_examples():
  """With few examples, t over seeds is too narrow."""
  rng = np.random.default_rng(5)
  covered = 0
  for _ in range(300):
    data = rng.normal(size=(1, 50)) + 0.1 * rng.normal(size=(5, 50))
    each = statistics.paired_interval(data.mean(1))
    covered += each.low < 0 < each.high
  assert covered / 300 < 0.5


def test_bootstrap_error_is_that_of_resampled_means():
  """The closed form, beside 20,000 means of resampled seeds and examples."""
  rng = np.random.default_rng(6)
  data = rng.normal(size=(4, 1)) + rng.normal(size=(1, 30))
  data += 2 * rng.normal(size=(4, 30))
  seeds = rng.integers(0, 4, (20_000, 4))
  examples = rng.integers(0, 30, (20_000, 30))
  means = data[seeds[:, :, None], examples[:, None]].mean((1, 2))
  ours = statistics.bootstrap_interval(data)
  wanted = means.std() * math.sqrt(4 / 3)
  assert ours.standard_error == pytest.approx(wanted, rel=0.02)


def test_bootstrap_error_of_one_level():
  rng = np.random.default_rng(6)
  seeds = rng.normal(size=(6, 1))
  ours = statistics.bootstrap_interval(np.broadcast_to(seeds, (6, 40)))
  wanted = statistics.paired_interval(seeds[:, 0])
  assert ours.standard_error == pytest.approx(wanted.standard_error)
  assert (ours.low, ours.high) == pytest.approx((wanted.low, wanted.high))
  examples = np.broadcast_to(rng.normal(size=(1, 40)), (6, 40))
  ours = statistics.bootstrap_interval(examples)
  wanted = examples[0].std() / math.sqrt(40) * math.sqrt(6 / 5)
  assert ours.standard_error == pytest.approx(wanted)


def test_rank_correlation_is_spearmans():
  rng = np.random.default_rng(7)
  x = rng.integers(0, 5, 12)  # with ties
  y = x + rng.normal(size=12)
  r, low, high = statistics.rank_correlation(x, y)
  assert r == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
  assert low < r < high <= 1
  assert statistics.rank_correlation(np.arange(5), np.arange(5)) == (1, 1, 1)


def test_verdicts():
  judge = statistics.verdict
  clear = statistics.paired_interval([0.30, 0.31, 0.29])
  worse = statistics.paired_interval([-0.30, -0.31, -0.29])
  wide = statistics.paired_interval([-0.3, 0.5, 0.1])
  assert judge(clear, clear.p, 0.2) == "supported"
  assert judge(worse, worse.p, 0.2) == "refuted"
  assert judge(clear, 0.2, 0.2) == "not resolved"
  assert judge(clear, 0.2, 0.4) == "refuted"  # below what matters
  assert judge(wide, wide.p, 0.2) == "not resolved"


def test_equivalence_is_statsmodels_tost():
  weightstats = pytest.importorskip(
    "statsmodels.stats.weightstats", reason="statsmodels is in the extra study"
  )
  rng = np.random.default_rng(8)
  for n, shift in ((3, 0.0), (5, 0.2), (8, -0.2), (8, 1.0)):
    a, b = rng.normal(size=n), 0.3 * rng.normal(size=n) + shift
    a = a + b
    interval = statistics.paired_interval(a - b)
    theirs, _, _ = weightstats.ttost_paired(a, b, -0.9, 0.9)
    ours = statistics.equivalence_p(interval, 0.9)
    assert ours == pytest.approx(min(2 * theirs, 1.0), rel=1e-9)


def test_equivalence_is_the_interval_inside_the_margins():
  rng = np.random.default_rng(9)
  seen = set()
  for _ in range(300):
    draws = rng.normal(rng.choice([0, 0.3, 1]), 0.3, rng.integers(2, 9))
    interval = statistics.paired_interval(draws)
    p = statistics.equivalence_p(interval, 0.4)
    inside = interval.low > -0.4 and interval.high < 0.4
    outside = interval.low >= 0.4 or interval.high <= -0.4
    assert (p < 0.05) == inside
    ours = statistics.equivalence_verdict(interval, p, 0.4)
    assert ours == (
      "supported" if inside else "refuted" if outside else "not resolved"
    )
    seen.add(ours)
  assert len(seen) == 3


@pytest.mark.parametrize("value,p", [(0.125, 0.0), (0.5, 1.0), (-0.75, 1.0)])
def test_equivalence_without_spread(value, p):
  same = statistics.paired_interval([value] * 3)
  assert statistics.equivalence_p(same, 0.5) == p


def test_holm_is_statsmodels():
  multitest = pytest.importorskip(
    "statsmodels.stats.multitest", reason="statsmodels is in the extra study"
  )
  rng = np.random.default_rng(10)
  for size in range(1, 9):
    values = rng.random(size).round(2)
    theirs = multitest.multipletests(values, method="holm")[1]
    assert statistics.holm(values) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
  "call,message",
  [
    (lambda: statistics.paired_interval([1.0]), "at least two"),
    (lambda: statistics.paired_interval([1.0, math.nan]), r"nan at \(1,\)"),
    (lambda: statistics.paired_interval([1, 2], 1.0), "confidence in"),
    (lambda: statistics.bootstrap_interval([[1, 2]]), r"got \(1, 2\)"),
    (lambda: statistics.bootstrap_interval([1, 2]), r"got \(2,\)"),
    (lambda: statistics.holm([0.1, 1.1]), r"in \[0, 1\]"),
    (lambda: statistics.seeds_needed(1.0, 0.0), "effect other than 0"),
    (lambda: statistics.seeds_needed(-1.0, 1.0), "deviation"),
    (lambda: statistics.rank_correlation([1, 2], [1, 2]), "four pairs"),
    (lambda: statistics.rank_correlation([1] * 4, [1, 2, 3, 4]), "x to vary"),
    (
      lambda: statistics.equivalence_p(
        statistics.paired_interval([1, 2]), smallest=-1.0
      ),
      "smallest above 0",
    ),
    (
      lambda: statistics.verdict(
        statistics.paired_interval([1, 2]), 0.1, smallest=0.0
      ),
      "smallest above 0",
    ),
  ],
)
def test_bad_input_is_one_line(call, message):
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert "\n" not in str(caught.value)
