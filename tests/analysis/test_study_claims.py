"""Claims and their verdicts: oracles, and error rates of simulated studies."""

import dataclasses
import re

import numpy as np
import pytest
from scipy import stats

from figs_jax.analysis import statistics
from figs_jax.analysis._study_claims import (
  accepted,
  check_claims,
  claims_of,
  from_baseline,
  judge,
  p_text,
  report,
)
from figs_jax.analysis._study_pairs import study_frame

from .simulated_study import add_examples, simulate

pytest.importorskip("pandas", reason="pandas is in the extra study")
RECIPES = {"dense": 0.0, "figs": 0.7, "sr_ste": 0.0, "step": 0.0}
PATTERNS = ("1:4", "1:8", "1:16", "1:32")


def claim(better, worse, metric="loss", patterns=("1:8",), **more):
  smallest = {"loss": 0.005, "accuracy": 0.2}[metric]
  fields = {
    "better": better, "worse": worse, "metric": metric, "patterns": patterns,
    "smallest": smallest,
  }  # fmt: skip
  return fields | more


def test_p_values_are_scipys_after_statsmodels_holm():
  multitest = pytest.importorskip(
    "statsmodels.stats.multitest", reason="statsmodels is in the extra study"
  )
  rows = simulate(RECIPES, PATTERNS, seeds=5)
  claims = {
    "a": claim("figs", "sr_ste", "loss", PATTERNS),
    "b": claim("step", "sr_ste", "accuracy", (*PATTERNS, "2:4")),
    "c": claim("step", "figs", "loss", ("1:8",), family="other"),
  }
  judgements = judge(study_frame(rows), claims)
  values = []
  for each in judgements[:9]:
    sides = [
      [
        float(row[each.claim.metric])
        for row in rows
        if (row["recipe"], row["pattern"]) == (recipe, each.pairs.pattern)
      ]
      for recipe in (each.claim.better, each.claim.worse)
    ]
    values.append(stats.ttest_rel(*sides).pvalue if sides[0] else 1.0)
  wanted = multitest.multipletests(values, method="holm")[1]
  assert [j.corrected_p for j in judgements[:9]] == pytest.approx(wanted)
  assert [j.family_size for j in judgements] == 9 * [9] + [1]
  assert judgements[9].corrected_p == judgements[9].pairs.interval.p
  assert judgements[8].verdict == "not run"


def test_a_part_of_a_study_is_judged_as_strictly_as_the_whole():
  """Rows that are yet to come count in the family, with p = 1."""
  claims = {"a": claim("figs", "sr_ste", patterns=PATTERNS)}
  whole = judge(study_frame(simulate(RECIPES, PATTERNS)), claims)
  part = judge(
    study_frame(
      [r for r in simulate(RECIPES, PATTERNS) if r["pattern"] in ("", "1:8")]
    ),
    claims,
  )
  assert [j.verdict for j in part].count("not run") == 3
  assert [j.family_size for j in part] == 4 * [4]
  assert part[1].corrected_p == pytest.approx(4 * part[1].pairs.interval.p)
  assert {j.corrected_p for j in part if j.verdict == "not run"} == {1.0}
  assert (
    judge(study_frame(simulate(RECIPES)), {"b": claim("a", "b")})[0].corrected_p
    == 1
  )
  assert part[1].corrected_p >= whole[1].corrected_p


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_the_claimed_sign(metric):
  """Less loss is better, more accuracy is."""
  frame = study_frame(simulate(RECIPES, rng=3))
  ahead, behind = judge(
    frame,
    {"a": claim("figs", "step", metric), "b": claim("step", "figs", metric)},
  )
  assert (ahead.verdict, behind.verdict) == ("supported", "refuted")
  assert ahead.claimed.mean > 0 > behind.claimed.mean
  assert ahead.claimed.low < ahead.claimed.mean < ahead.claimed.high
  sign = 1 if metric == "accuracy" else -1
  assert sign * ahead.pairs.interval.mean > 0
  assert behind.line.endswith("refuted (opposite sign)")


def test_lines():
  rows = simulate(RECIPES, rng=3)
  lost = next(r for r in rows if r["recipe"] == "figs" and r["seed"] == "0")
  lost["accuracy"] = ""
  claims = {
    "a": claim("figs", "sr_ste", "accuracy"),
    "b": claim("sr_ste", "step", "loss", smallest=0.002),
    "c": claim("step", "sr_ste", "accuracy", smallest=0.3, equal=True),
    "d": claim("ste", "sr_ste"),
  }
  text = report(judge(study_frame(rows), claims), accepted(study_frame(rows)))
  regime, order, *lines = text.splitlines()
  assert regime.startswith("dense − figs at 1:32: loss −.")
  assert regime.endswith(", 8 seeds, p < .001: the regime is accepted")
  assert order == (
    "paired by seed, data.order = own; intervals of 95 % over seeds"
  )
  number, ends = r"[+−]?\d*\.\d+", r"\[−?\d*\.\d+, −?\d*\.\d+\]"
  for line, pattern in zip(
    lines,
    (
      rf"figs − sr_ste at 1:8: accuracy {number} points {ends}, 7 seeds"
      r" \(1 diverged\), p < \.001 \(Holm over 4\): supported",
      rf"sr_ste − step at 1:8: loss {number} nats {ends}, 8 seeds, p = [\d.]+"
      r" \(Holm over 4\): not resolved; \d+ seeds would show \.0020 nats",
      rf"step − sr_ste at 1:8 \(equal within \.30 points\): accuracy {number}"
      rf" points {ends}, 8 seeds, p = [\d.]+ \(Holm over 4\): supported",
      r"ste − sr_ste at 1:8: loss: not run \(no common seeds of ste 1:8 and"
      r" sr_ste 1:8\)",
    ),
    strict=True,
  ):
    assert re.fullmatch(pattern, line), line


def test_the_interval_over_examples_is_in_the_line(tmp_path):
  rows = simulate(RECIPES, rng=3)
  add_examples(rows, tmp_path)
  (each,) = judge(study_frame(rows), {"a": claim("figs", "step")}, out=tmp_path)
  assert re.search(r"; over test examples too \[−\.\d+, −?\.\d+\]$", each.line)
  assert each.pairs.bootstrap.n == 8


def test_seeds_to_resolve_a_claim():
  frame = study_frame(simulate(RECIPES, rng=3))
  claims = {
    "a": claim("step", "sr_ste", "accuracy", smallest=0.1),
    "b": claim("step", "sr_ste", "accuracy", smallest=0.1, equal=True),
  }
  differs, equal = judge(frame, claims)
  deviation = np.std(differs.pairs.differences, ddof=1)
  level = {"alpha": 0.05 / 2}  # the first step of Holm's method
  assert differs.seeds_needed == statistics.seeds_needed(
    deviation, 0.1, **level
  )
  assert equal.seeds_needed == statistics.seeds_needed(
    deviation, 0.1, power=0.9, **level
  )
  assert dataclasses.replace(equal, verdict="supported").seeds_needed is None


def test_seeds_for_an_equality_by_simulation():
  """With the number given, equal recipes are shown to be equal as often."""
  n = statistics.seeds_needed(1.0, 0.9, power=0.9)
  draws = np.random.default_rng(5).normal(size=(1000, n))
  shown = np.mean([
    statistics.equivalence_p(statistics.paired_interval(d), 0.9) < 0.05
    for d in draws
  ])  # fmt: skip
  assert 0.77 < shown < 0.88


def _studies(count, recipes, claims, *, seeds):
  """Judgements of studies: one simulation, cut into runs of seeds."""
  rows = simulate(recipes, PATTERNS, rng=11, seeds=count * seeds)
  needed = ["recipe", "pattern", "setting", "seed", "accuracy", "loss"]
  frame = study_frame({key: row[key] for key in needed} for row in rows)
  for _, part in frame.groupby(frame.seed // seeds):
    yield judge(part, claims)


def test_family_wise_error_of_studies_without_any_effect():
  """Of 300 studies of 8 tests, about 5 % have any corrected p below .05."""
  same = {"figs": 0.0, "sr_ste": 0.0, "step": 0.0}
  claims = {
    "a": claim("figs", "sr_ste", patterns=PATTERNS),
    "b": claim("step", "sr_ste", "accuracy", PATTERNS),
  }
  errors = uncorrected = 0
  for judgements in _studies(300, same, claims, seeds=5):
    errors += any(j.corrected_p < 0.05 for j in judgements)
    uncorrected += any(j.pairs.interval.p < 0.05 for j in judgements)
    assert any(j.corrected_p < 0.05 for j in judgements) or not any(
      j.verdict == "supported" for j in judgements
    )
  assert 0.01 < errors / 300 < 0.08
  assert uncorrected / 300 > 0.25


def test_true_effects_are_mostly_supported():
  """Each effect is about 3 standard errors of a paired difference."""
  claims = {
    "a": claim("figs", "sr_ste", "accuracy", PATTERNS),
    "b": claim("figs", "sr_ste", "loss", PATTERNS),
  }
  verdicts = [
    j.verdict
    for judgements in _studies(
      40, {"figs": 0.45, "sr_ste": 0.0}, claims, seeds=8
    )
    for j in judgements
  ]
  assert verdicts.count("supported") / len(verdicts) > 0.8
  assert verdicts.count("refuted") / len(verdicts) < 0.02


def test_a_difference_at_the_margin_is_rarely_called_equal():
  claims = {"a": claim("figs", "sr_ste", "accuracy", PATTERNS, equal=True)}
  studies = list(_studies(200, {"figs": 0.2, "sr_ste": 0.0}, claims, seeds=5))
  wrong = [any(j.verdict == "supported" for j in each) for each in studies]
  assert np.mean(wrong) < 0.05


def test_equal_recipes_are_shown_to_be_equal():
  claims = {"a": claim("figs", "sr_ste", "accuracy", equal=True, smallest=0.5)}
  studies = _studies(20, {"figs": 0.0, "sr_ste": 0.0}, claims, seeds=8)
  assert all(judgements[0].verdict == "supported" for judgements in studies)


def test_a_regime_in_which_sparsity_costs_nothing_is_not_accepted():
  rows = simulate({"dense": 0, "figs": 0, "sr_ste": 0}, cost=0.0)
  passed, line = accepted(study_frame(rows))
  assert not passed and "the regime is not accepted" in line
  assert accepted(study_frame(simulate(RECIPES))).accepted


def test_the_regime_is_tested_against_the_best_of_the_sparsest_cells():
  rows = simulate({"dense": 0, "figs": 10.0, "sr_ste": 0.0})  # figs beats dense
  passed, line = accepted(study_frame(rows))
  assert not passed and line.startswith("dense − figs at 1:32")
  only = [row for row in rows if row["recipe"] != "figs"]
  assert accepted(study_frame(only)).accepted


@pytest.mark.parametrize("recipes", [{"dense": 0}, {"figs": 0}])
def test_a_regime_without_both_sides_is_not_accepted(recipes):
  passed, line = accepted(study_frame(simulate(recipes)))
  assert not passed and "fewer than two common seeds" in line


def test_distances_to_the_baseline():
  rows = simulate(RECIPES, seeds=4)
  wide = simulate({"figs": 0.5}, ("1:8",), seeds=4, setting="wide", rng=2)
  distances = from_baseline(study_frame(rows + wide), "dense", "loss")
  assert len(distances) == 7 and {d.family_size for d in distances} == {7}
  assert distances[-1].cell == ("figs", "1:8", "wide")
  assert distances[-1].pairs.worse == ("dense", "", "")  # the only dense cell
  p = statistics.holm([d.pairs.interval.p for d in distances])
  assert [d.corrected_p for d in distances] == p.tolist()


@pytest.mark.parametrize(
  "change,message",
  [
    (
      {"betta": "figs"},
      "claims.x: unknown field 'betta'; did you mean 'better'",
    ),
    ({"metric": "los"}, "claims.x.metric: Expected a metric of accuracy"),
    ({"smallest": 0}, "claims.x.smallest: expected a number above 0, got 0"),
    ({"smallest": "a"}, "smallest: expected a number above 0, got 'a'"),
    ({"patterns": "1:8"}, r"patterns: expected a tuple .*, got '1:8'"),
    ({"patterns": ()}, r"patterns: expected a tuple"),
  ],
)
def test_bad_claims_are_one_line(change, message):
  with pytest.raises(ValueError, match=message) as caught:
    claims_of({"x": claim("figs", "sr_ste") | change})
  assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
  fields = claim("figs", "sr_ste")
  del fields["worse"]
  with pytest.raises(ValueError, match="expected a field 'worse'"):
    claims_of({"x": fields})


@pytest.mark.parametrize(
  "change,message",
  [
    (
      {"worse": "sr_st"},
      "x.worse: unknown label 'sr_st'; did you mean 'sr_ste'",
    ),
    ({"patterns": ("1:8", "1:9")}, "x.patterns: unknown label '1:9'"),
    ({"setting": "wide"}, "x.better_setting: unknown label 'wide'"),
  ],
)
def test_labels_that_a_study_lacks_are_refused(change, message):
  labels = ["figs", "sr_ste"], ["1:8", "1:32"]
  check_claims({"x": claim("figs", "sr_ste")}, *labels)
  with pytest.raises(ValueError, match=message) as caught:
    check_claims({"x": claim("figs", "sr_ste") | change}, *labels)
  assert "\n" not in str(caught.value)


def test_p_values_are_written_with_two_digits():
  texts = [p_text(p) for p in (0.0004, 0.001, 0.0496, 0.0999, 0.5, 0.999)]
  assert texts == [
    "p < .001",
    "p = .001",
    "p = .050",
    "p = .10",
    "p = .50",
    "p = 1",
  ]
