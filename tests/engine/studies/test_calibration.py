"""Latencies measured on a TPU against the fitted model, out of sample.

data/tpu_gemm_*.csv: microseconds of GEMMs (fusion_avg, a mean over
sample_count runs), and the cycles of a simulated 128 x 128 array.
"""

import csv
import functools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.engine.studies.calibration import (
  LatencyModel,
  cross_validated,
  fit_cycles,
  fit_latency,
  systolic_cycles,
)

DATA = pathlib.Path(__file__).parents[1] / "data"
# Largest size of a range -> rows, and the MAPE in percent that the model and
# the line through cycles should have on it, out of sample.
RANGES = {
  128: (171, 3.19, 2.73),
  1024: (256, 7.49, 12.00),
  4096: (171, 6.24, 8.28),
}


@functools.cache
def read(range_):
  """Sizes, microseconds and simulated cycles of a range's calls."""
  with open(DATA / f"tpu_gemm_{range_}.csv") as file:
    rows = list(csv.DictReader(file))
  sizes = [np.array([int(row[f"dim_{x}"]) for row in rows]) for x in "mnk"]
  cycles = np.array([int(row["scale_sim_cycles"]) for row in rows])
  return sizes, np.array([float(row["fusion_avg"]) for row in rows]), cycles


def pooled():
  parts = [read(range_) for range_ in RANGES]
  sizes = [np.concatenate(column) for column in zip(*(p[0] for p in parts))]
  times = np.concatenate([part[1] for part in parts])
  which = np.repeat(list(RANGES), [len(part[1]) for part in parts])
  return sizes, times, which


@functools.cache
def our_cycles():
  """Range -> cycles of our arrays for its calls."""
  sizes, _, which = pooled()
  cycles = systolic_cycles(*sizes)
  return {range_: cycles[which == range_] for range_ in RANGES}


def mape(fit, columns, times, **options):
  return 100 * cross_validated(fit, columns, times, **options).mean()


@pytest.mark.parametrize("range_", RANGES)
def test_our_systolic_arrays_give_the_files_cycles(range_):
  sizes, _, cycles = read(range_)
  assert len(cycles) == RANGES[range_][0]
  assert min(map(np.min, sizes)) * 4 <= range_ == max(map(np.max, sizes))
  np.testing.assert_array_equal(our_cycles()[range_], cycles)


@pytest.mark.parametrize("range_", RANGES)
def test_errors_out_of_sample_by_range(range_):
  sizes, times, _ = read(range_)
  _, ours, line = RANGES[range_]
  cycles = our_cycles()[range_]
  # Five shuffles, so that no lucky deal decides.
  errors = [
    (mape(fit_latency, sizes, times, seed=seed),
     mape(fit_cycles, [cycles], times, seed=seed))
    for seed in range(5)
  ]  # fmt: skip
  np.testing.assert_allclose(np.mean(errors, 0), [ours, line], atol=0.1)
  assert np.ptp(errors, 0).max() < 0.3
  # Cycles are the better predictor of the shortest calls only.
  assert all((a < b) == (range_ > 128) for a, b in errors)


def test_errors_out_of_sample_of_one_fit_over_all_ranges():
  sizes, times, which = pooled()
  errors = {
    "ours": 100 * cross_validated(fit_latency, sizes, times),
    "line": 100
    * cross_validated(
      fit_cycles, [np.concatenate(list(our_cycles().values()))], times
    ),
  }
  means = {
    name: [e.mean(), *(e[which == range_].mean() for range_ in RANGES)]
    for name, e in errors.items()
  }
  # All ranges together, then each of them.
  ours, line = [7.99, 5.00, 10.04, 7.90], [22.44, 10.07, 32.61, 19.59]
  np.testing.assert_allclose(means["ours"], ours, atol=0.1)
  np.testing.assert_allclose(means["line"], line, atol=0.1)


def test_padding_says_nothing_within_a_range():
  # Two ranges hold multiples of 128 only; in the third FLOPs are free.
  for range_ in RANGES:
    sizes, times, _ = read(range_)
    pads = (1, 1, 1), (8, 128, 128), (128, 128, 128)
    models = [fit_latency(*sizes, times, 2, pad) for pad in pads]
    predictions = [model.predict(*sizes) for model in models]
    np.testing.assert_allclose(predictions[1], predictions[0], rtol=1e-9)
    np.testing.assert_allclose(predictions[2], predictions[0], rtol=1e-9)
    assert (models[0].per_flop == 0) == (range_ == 128)


def test_a_held_out_call_does_not_change_its_own_prediction():
  sizes, times, _ = read(1024)
  rng = np.random.default_rng(0)
  seen = []

  def fit(M, N, K, measured):
    seen.append(set(measured.tolist()))
    return fit_latency(M, N, K, measured)

  before = cross_validated(fit, sizes, times)
  assert len(seen) == 5 and len(set(times.tolist())) == len(times)
  # Each call is left out of exactly one fit, and all others are in it.
  for time in times:
    assert sum(time not in known for known in seen) == 1
  # Scrambling the times of one fold leaves its predictions as they were.
  left_out = np.array([time not in seen[0] for time in times])
  scrambled = times.copy()
  scrambled[left_out] *= rng.uniform(0.1, 10, left_out.sum())
  after = cross_validated(fit_latency, sizes, scrambled)
  sign = np.sign(fit_latency(
    *(size[~left_out] for size in sizes), times[~left_out]
  ).predict(*sizes) / times - 1)[left_out]  # fmt: skip
  predicted = times[left_out] * (1 + sign * before[left_out])
  np.testing.assert_allclose(
    after[left_out], np.abs(predicted / scrambled[left_out] - 1), rtol=1e-9
  )
  assert not np.allclose(after[~left_out], before[~left_out])


def test_an_in_sample_error_is_not_what_is_reported():
  # A model that remembers every call is exact in sample, and useless outside.
  rng = np.random.default_rng(0)
  inputs = np.arange(60)
  times = rng.uniform(1, 2, 60)

  class Memory:
    def __init__(self, x, y):
      self.known = dict(zip(x.tolist(), y.tolist()))

    def predict(self, x):
      return np.array([self.known.get(i, 100.0) for i in x.tolist()])

  assert np.all(Memory(inputs, times).predict(inputs) == times)
  assert cross_validated(Memory, [inputs], times).min() > 40


costs = st.one_of(st.just(0.0), st.floats(0.1, 10))


@settings(deadline=None, max_examples=40)
@given(costs, costs, costs, costs, st.integers(0, 99))
def test_a_machine_that_obeys_the_model_is_found(
  call, flop, read_, write, seed
):
  true = LatencyModel(call, flop * 1e-8, read_ * 1e-6, write * 1e-6)
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 2000, (3, 40))
  times = true.predict(*sizes)
  if not times.all():
    return
  fitted = fit_latency(*sizes, times)
  np.testing.assert_allclose(fitted.predict(*sizes), times, rtol=1e-6)
  for name in ("overhead", "per_flop", "per_byte_in", "per_byte_out"):
    got, want = getattr(fitted, name), getattr(true, name)
    assert got >= 0
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999))
def test_no_other_costs_fit_better(seed):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 500, (3, 12))
  times = rng.uniform(0.5, 5, 12)
  fitted = fit_latency(*sizes, times)
  names = ("overhead", "per_flop", "per_byte_in", "per_byte_out")
  best = np.array([getattr(fitted, name) for name in names])

  # Predictions are linear in the costs.
  terms = [
    LatencyModel(*one.tolist()).predict(*sizes) / times for one in np.eye(4)
  ]

  def misfit(costs):
    return np.sum((costs @ np.array(terms) - 1) ** 2, -1)

  step = rng.normal(size=(200, 4)) * [1, 1e-7, 1e-5, 1e-5]
  others = best + step * 10.0 ** rng.integers(-4, 1, (200, 1))
  least = misfit(best) * (1 - 1e-12)
  assert (misfit(np.maximum(others, 0)) >= least).all()


def test_what_the_fits_say_of_the_machine():
  sizes, times, _ = read(4096)
  model = fit_latency(*sizes, times)
  # Below the 275 TFLOP/s and 1.23 TB/s of the largest chip of its day.
  assert 100 < model.tflops < 275
  assert 300 < model.gbytes_out < 1230
  assert model.gbytes_in == float("inf")  # hidden behind the arithmetic
  short = fit_latency(*read(128)[0], read(128)[1])
  assert 0.9 < short.overhead < 1.2
  assert short.tflops == float("inf")


def test_bad_measurements_are_refused_in_one_line():
  M = np.array([8, 16, 32, 64, 128])
  with pytest.raises(
    ValueError, match=r"expected times above 0, got measured\[1\] = 0.0"
  ):
    fit_latency(M, M, M, [1.0, 0.0, 1.0, 1.0, 1.0])
  with pytest.raises(ValueError, match=r"measured\[2\] = nan"):
    fit_cycles(M, [1.0, 1.0, np.nan, 1.0, 1.0])
  with pytest.raises(ValueError, match="at least 4 calls .* got 3 calls"):
    fit_latency(M[:3], M[:3], M[:3], np.ones(3))
  with pytest.raises(
    ValueError, match=r"got 5 calls and times of shape \(4,\)"
  ):
    fit_cycles(M, np.ones(4))
  for folds in (1, 6):
    with pytest.raises(
      ValueError, match=f"folds: expected 2 to 5.* got {folds}"
    ):
      cross_validated(fit_cycles, [M], np.ones(5), folds)


def test_a_line_is_found():
  line = fit_cycles(np.arange(1, 9), 2.0 + 3.0 * np.arange(1, 9))
  np.testing.assert_allclose([line.overhead, line.per_cycle], [2, 3])
