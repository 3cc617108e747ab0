"""Paired comparison of recipes: intervals, corrected p values, verdicts.

Two recipes are compared seed by seed: run i of both has the same initial
weights, data order and augmentation, so that most of the spread over seeds
cancels in the difference. All functions are NumPy and SciPy on small arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
  """Mean of paired differences with a confidence interval.

  Attributes:
    mean: Mean difference.
    low: Lower end of the interval.
    high: Upper end of the interval.
    standard_error: Standard error of the mean.
    n: Number of pairs.
    p: Two-sided p value of a mean of 0.
    confidence: Confidence of the interval.
  """

  mean: float
  low: float
  high: float
  standard_error: float
  n: int
  p: float
  confidence: float = 0.95


def paired_interval(
  differences: ArrayLike, confidence: float = 0.95
) -> Interval:
  """Student's t interval of the mean of paired differences.

  Args:
    differences: Differences, [pairs]; one per seed.
    confidence: Confidence of the interval, in (0, 1).

  Returns:
    The interval. Without any spread it has no width, and p is 0, or 1 if all
    differences are 0.

  Raises:
    ValueError: If there are fewer than two differences, or one is not finite.

  Example: 3 seeds that agree on a difference of about .1.

  >>> low_spread = paired_interval([0.09, 0.10, 0.11])
  >>> round(low_spread.low, 3), round(low_spread.high, 3)
  (0.075, 0.125)
  >>> low_spread.p < 0.01
  True
  """
  values = _finite(differences, "differences")
  if values.ndim != 1 or len(values) < 2:
    raise ValueError(
      f"Expected at least two differences, got shape {values.shape}; run more"
      " seeds"
    )
  _check_share(confidence, "confidence")
  n = len(values)
  error = float(values.std(ddof=1)) / math.sqrt(n)
  return _interval(float(values.mean()), error, n, n - 1, confidence)


def bootstrap_interval(
  differences: ArrayLike, confidence: float = 0.95
) -> Interval:
  """Interval over seeds and test examples, both resampled.

  Seeds and examples are resampled independently of each other, since every seed
  is measured on the same examples (the pigeonhole bootstrap; Owen, "The
  pigeonhole bootstrap", Annals of Applied Statistics 1, 2007). Its standard
  error also covers that another test set would give another difference, which
  `paired_interval` leaves out. The error is that of infinitely many resampled
  means, which has a closed form, so nothing is drawn. The interval is mean ±
  t · standard error, with t of `seeds - 1` degrees of freedom and the error
  scaled by sqrt(seeds / (seeds - 1)), since few resampled seeds understate
  their spread.

  Args:
    differences: Differences per example, [seeds, examples], such as the
      difference of two Boolean arrays of correct predictions, or of losses.
    confidence: Confidence of the interval, in (0, 1).

  Returns:
    The interval, with `n` the number of seeds.

  Raises:
    ValueError: If there are fewer than two seeds or examples, or a difference
      is not finite.

  >>> rng = np.random.default_rng(0)
  >>> better = rng.random((5, 400)) < 0.9
  >>> worse = rng.random((5, 400)) < 0.8
  >>> gain = bootstrap_interval(better.astype(float) - worse)
  >>> gain.low < 0.1 < gain.high
  True
  """
  values = _finite(differences, "differences")
  if values.ndim != 2 or min(values.shape) < 2:
    raise ValueError(
      "Expected differences of shape [seeds, examples] with at least two of"
      f" each, got {values.shape}"
    )
  _check_share(confidence, "confidence")
  seeds, examples = values.shape
  mean = float(values.mean())
  # A resampled mean is sum(w[s] v[e] values[s, e]) / (S N). The multinomial
  # counts have E[w[s] w[t]] = (s == t) + 1 - 1/S, and likewise v with N.
  centred = values - mean
  square = (centred**2).sum()
  square += (1 - 1 / examples) * (centred.sum(1) ** 2).sum()
  square += (1 - 1 / seeds) * (centred.sum(0) ** 2).sum()
  error = math.sqrt(square) / (seeds * examples)
  error *= math.sqrt(seeds / (seeds - 1))
  return _interval(mean, error, seeds, seeds - 1, confidence)


def holm(p_values: ArrayLike) -> np.ndarray:
  """p values corrected for the size of their family (Holm, 1979).

  Rejecting all below .05 keeps the chance of any false rejection below .05,
  whatever the dependence between tests.

  Args:
    p_values: p values of the family, [tests], in [0, 1].

  Returns:
    Corrected p values in the same order.

  Raises:
    ValueError: If a value is not in [0, 1].

  >>> holm([0.01, 0.04, 0.03]).tolist()
  [0.03, 0.06, 0.06]
  """
  values = _finite(p_values, "p_values")
  if values.ndim != 1 or ((values < 0) | (values > 1)).any():
    raise ValueError(f"Expected p values in [0, 1], got {values.tolist()}")
  order = np.argsort(values, kind="stable")
  left = np.arange(len(values), 0, -1)
  corrected = np.empty_like(values)
  corrected[order] = np.maximum.accumulate(values[order] * left)
  return np.minimum(corrected, 1)


def seeds_needed(
  deviation: float,
  effect: float,
  *,
  power: float = 0.8,
  alpha: float = 0.05,
  most: int = 100_000,
) -> int:
  """Number of pairs with which a paired t test would find an effect.

  Args:
    deviation: Standard deviation of a paired difference.
    effect: True difference to be found, other than 0.
    power: Chance of finding it.
    alpha: Chance of finding one where there is none, two-sided.
    most: Largest answer; more pairs than this are reported as this number.

  Raises:
    ValueError: If an argument is out of range.

  >>> seeds_needed(deviation=1.0, effect=1.0)
  10
  """
  if not (deviation >= 0 and math.isfinite(deviation)):
    raise ValueError(f"Expected deviation of at least 0, got {deviation}")
  if not math.isfinite(effect) or effect == 0:
    raise ValueError(f"Expected effect other than 0, got {effect}")
  _check_share(power, "power")
  _check_share(alpha, "alpha")
  if deviation == 0:
    return 2

  def is_enough(n: int) -> bool:
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    shift = abs(effect) / deviation * math.sqrt(n)
    missed = stats.nct.cdf(critical, n - 1, shift)
    missed -= stats.nct.cdf(-critical, n - 1, shift)
    return bool(1 - missed >= power)

  low, high = 1, 2  # `low` pairs are too few, `high` are enough
  while high < most and not is_enough(high):
    low, high = high, min(2 * high, most)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if is_enough(middle) else (middle, high)
  return high


def rank_correlation(
  x: ArrayLike, y: ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
  """Spearman's rank correlation with Fisher's interval.

  The standard error of atanh(r) is taken as sqrt((1 + r² / 2) / (n - 3))
  (Bonett and Wright, Psychometrika 65, 2000).

  Args:
    x: First values, [n].
    y: Second values, [n].
    confidence: Confidence of the interval, in (0, 1).

  Returns:
    Correlation, lower end, upper end.

  Raises:
    ValueError: If there are fewer than four pairs, lengths differ, a value is
      not finite, or all of x or y are equal.

  >>> r, low, high = rank_correlation([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5])
  >>> round(r, 3), round(low, 2), round(high, 2)
  (0.943, 0.38, 1.0)
  """
  first, second = _finite(x, "x"), _finite(y, "y")
  if first.shape != second.shape or first.ndim != 1 or len(first) < 4:
    raise ValueError(
      "Expected at least four pairs, got x of shape"
      f" {first.shape} and y of shape {second.shape}"
    )
  for name, values in (("x", first), ("y", second)):
    if (values == values[0]).all():
      raise ValueError(f"Expected {name} to vary, got {values[0]} throughout")
  _check_share(confidence, "confidence")
  r = float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
  if 1 - abs(r) < 1e-12:  # but for rounding
    return (math.copysign(1.0, r),) * 3
  error = math.sqrt((1 + r * r / 2) / (len(first) - 3))
  reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
  centre = math.atanh(r)
  return r, math.tanh(centre - reach), math.tanh(centre + reach)


Verdict = Literal["supported", "refuted", "not resolved"]


def verdict(
  interval: Interval, corrected_p: float, smallest: float, alpha: float = 0.05
) -> Verdict:
  """Judges a claim that a difference is positive.

  Supported is a corrected p below `alpha` with a positive mean. Refuted is the
  same with a negative mean, or an interval that ends below the smallest
  difference of interest. All else is not resolved.

  Args:
    interval: Interval of the claimed difference; positive means as claimed.
    corrected_p: p value of the interval after `holm` over the family of claims.
    smallest: Smallest difference of interest, above 0.
    alpha: Level of the tests.

  Raises:
    ValueError: If `smallest` is not above 0.

  >>> close = paired_interval([-0.01, 0.01, 0.0, 0.005, -0.005])
  >>> verdict(close, corrected_p=1.0, smallest=0.2)
  'refuted'
  >>> verdict(close, corrected_p=1.0, smallest=0.005)
  'not resolved'
  """
  _check_smallest(smallest)
  if corrected_p < alpha and interval.mean > 0:
    return "supported"
  if corrected_p < alpha and interval.mean < 0:
    return "refuted"
  return "refuted" if interval.high < smallest else "not resolved"


def equivalence_p(interval: Interval, smallest: float) -> float:
  """p value of a claim that a mean difference lies within ±`smallest`.

  Twice the p value of two one-sided t tests at the margins (TOST; Schuirmann,
  Journal of Pharmacokinetics and Biopharmaceutics 15, 1987): it is below 1 -
  confidence if and only if the whole interval lies within the margins. TOST at
  level .05 asks this of the 90 % interval; the factor of 2 makes it the 95 %
  interval, which tables and plots show.

  Args:
    interval: Interval of a paired difference, from `paired_interval`.
    smallest: Smallest difference of interest, above 0.

  Raises:
    ValueError: If `smallest` is not above 0.

  >>> close = paired_interval([-0.01, 0.01, 0.0, 0.005, -0.005])
  >>> equivalence_p(close, 0.2) < 0.05 < equivalence_p(close, 0.005)
  True
  """
  _check_smallest(smallest)
  room = smallest - abs(interval.mean)
  if interval.standard_error == 0:
    return 0.0 if room > 0 else 1.0
  one_sided = stats.t.sf(room / interval.standard_error, interval.n - 1)
  return min(1.0, 2 * float(one_sided))


def equivalence_verdict(
  interval: Interval, corrected_p: float, smallest: float, alpha: float = 0.05
) -> Verdict:
  """Judges a claim that a difference lies within ±`smallest`.

  Supported is a corrected `equivalence_p` below `alpha`, which implies that the
  whole interval lies within the margins. Refuted is an interval wholly outside
  of them. All else is not resolved: an interval that merely contains 0 does not
  support equality.

  Args:
    interval: Interval of the difference.
    corrected_p: `equivalence_p` after `holm` over the family of claims.
    smallest: Smallest difference of interest, above 0.
    alpha: Level of the tests.

  Raises:
    ValueError: If `smallest` is not above 0.

  >>> close = paired_interval([-0.01, 0.01, 0.0, 0.005, -0.005])
  >>> equivalence_verdict(close, equivalence_p(close, 0.2), 0.2)
  'supported'
  >>> equivalence_verdict(close, equivalence_p(close, 0.005), 0.005)
  'not resolved'
  """
  _check_smallest(smallest)
  if corrected_p < alpha:
    return "supported"
  outside = interval.low >= smallest or interval.high <= -smallest
  return "refuted" if outside else "not resolved"


def _check_smallest(smallest: float) -> None:
  if not smallest > 0:
    raise ValueError(f"Expected smallest above 0, got {smallest}")


def _interval(
  mean: float, error: float, n: int, freedom: int, confidence: float
) -> Interval:
  reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
  if error == 0:
    p = 0.0 if mean else 1.0
  else:
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
  return Interval(mean, mean - reach, mean + reach, error, n, p, confidence)


def _finite(values: ArrayLike | Sequence[float], name: str) -> np.ndarray:
  array = np.asarray(values, np.float64)
  bad = np.argwhere(~np.isfinite(array))
  if len(bad):
    where = tuple(bad[0].tolist())
    raise ValueError(
      f"Expected finite {name}, got {array[where]} at {where}; leave out"
      " seeds that diverged, in pairs"
    )
  return array


def _check_share(value: float, name: str) -> None:
  if not 0 < value < 1:
    raise ValueError(f"Expected {name} in (0, 1), got {value}")
