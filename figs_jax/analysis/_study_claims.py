"""The claims of a study and what its rows say about each of them.

A claim is stated before the study runs: a contrast of two recipes, a metric,
the patterns, the smallest effect of interest and the family over which p values
are corrected. Every claim is a test per pattern, and a test without rows counts
in its family too, so that a stage of a study is judged as strictly as the
whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from figs_jax.analysis import statistics
from figs_jax.analysis._study_pairs import (
  Cell,
  Cells,
  DataFrame,
  Pairs,
  cell_name,
  cells_of,
  measure,
  number,
  pair_up,
)
from figs_jax.analysis.statistics import Interval, holm, seeds_needed
from figs_jax.core.rules import nearest
from figs_jax.train.seeds import mean_and_se

_MOST_SEEDS = 100_000
_POWER = 0.8
Outcome = Literal["supported", "refuted", "not resolved", "not run"]


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim of a study's configuration.

  Attributes:
    name: Its name.
    better: Label of the recipe with the better result.
    worse: Label of the recipe that it is compared with.
    metric: Column of study.csv.
    patterns: Labels of patterns, a test each.
    smallest: Smallest effect of interest in the metric's unit: nats for loss,
      points for accuracy.
    family: Name of the family of tests over which p values are corrected.
    better_setting: Setting of `better`.
    worse_setting: Setting of `worse`.
    equal: Whether the claim is that the two differ by less than `smallest`.
  """

  name: str
  better: str
  worse: str
  metric: str
  patterns: tuple[str, ...]
  smallest: float
  family: str = "primary"
  better_setting: str = ""
  worse_setting: str = ""
  equal: bool = False


_FIELDS = [field.name for field in dataclasses.fields(Claim)][1:]
_NEEDED = ("better", "worse", "metric", "patterns", "smallest")


def claims_of(claims: Mapping[str, Any]) -> list[Claim]:
  """The claims of a study's configuration.

  Args:
    claims: Fields of `Claim` by name of the claim. `setting` stands for both
      `better_setting` and `worse_setting`.

  Raises:
    ValueError: If a field is unknown, missing or illegal.

  >>> fields = {"better": "figs", "worse": "sr_ste", "metric": "loss",
  ...           "patterns": ("1:8",), "smallest": 0.005}
  >>> claims_of({"figs ahead": fields})[0].family
  'primary'
  """
  return [_claim(name, dict(fields)) for name, fields in claims.items()]


def _claim(name: str, fields: dict[str, Any]) -> Claim:
  where = f"claims.{name}"
  both = fields.pop("setting", "")
  for key in ("better_setting", "worse_setting"):
    fields.setdefault(key, both)
  for key in fields:
    if key not in _FIELDS:
      known = nearest(key, [*_FIELDS, "setting"])
      raise ValueError(f"{where}: unknown field {key!r}; {known}")
  for key in _NEEDED:
    if key not in fields:
      raise ValueError(f"{where}: expected a field {key!r}, got none")
  if isinstance(fields["patterns"], str) or not fields["patterns"]:
    raise ValueError(
      f"{where}.patterns: expected a tuple of labels, such as ('1:8',), got"
      f" {fields['patterns']!r}"
    )
  try:
    measure(fields["metric"])
  except ValueError as error:
    raise ValueError(f"{where}.metric: {error}") from error
  smallest = fields["smallest"]
  if not isinstance(smallest, int | float) or not 0 < smallest < math.inf:
    raise ValueError(
      f"{where}.smallest: expected a number above 0, got {smallest!r}"
    )
  fields |= {"patterns": tuple(fields["patterns"]), "smallest": float(smallest)}
  return Claim(name, **fields)


def check_claims(
  claims: Mapping[str, Any],
  recipes: Collection[str],
  patterns: Collection[str],
  settings: Collection[str] = ("",),
) -> None:
  """Refuses claims about labels that a study does not have.

  Args:
    claims: Claims of the configuration.
    recipes: Labels of its recipes.
    patterns: Labels of its patterns.
    settings: Labels of its settings.

  Raises:
    ValueError: If a claim is invalid, or a label in it is unknown.

  >>> fields = {"better": "fig", "worse": "sr_ste", "metric": "loss",
  ...           "patterns": ("1:8",), "smallest": 0.005}
  >>> try:
  ...   check_claims({"ahead": fields}, ["figs", "sr_ste"], ["1:8"])
  ... except ValueError as error:
  ...   print(error)
  claims.ahead.better: unknown label 'fig'; did you mean 'figs'? Known: figs,
  sr_ste
  """
  for claim in claims_of(claims):
    for field, labels, known in (
      ("better", [claim.better], recipes),
      ("worse", [claim.worse], recipes),
      ("patterns", claim.patterns, {*patterns, ""}),
      ("better_setting", [claim.better_setting], settings),
      ("worse_setting", [claim.worse_setting], settings),
    ):
      for label in labels:
        if label not in known:
          raise ValueError(
            f"claims.{claim.name}.{field}: unknown label {label!r};"
            f" {nearest(label, list(known))}"
          )


@dataclasses.dataclass(frozen=True)
class Judgement:
  """A claim at one pattern, tested.

  Attributes:
    claim: The claim.
    pairs: Paired differences.
    corrected_p: p value after Holm's correction over the family, 1 for a test
      without rows.
    family_size: Number of tests of the family, as planned.
    verdict: "supported", "refuted", "not resolved", or "not run" without a pair
      of seeds.
    alpha: Level of the tests.
  """

  claim: Claim
  pairs: Pairs
  corrected_p: float
  family_size: int
  verdict: Outcome
  alpha: float

  @property
  def claimed(self) -> Interval | None:
    """Interval of the difference, positive where the claim says so."""
    interval = self.pairs.interval
    if interval is None or measure(self.claim.metric).sign > 0:
      return interval
    return dataclasses.replace(
      interval, mean=-interval.mean, low=-interval.high, high=-interval.low
    )

  @property
  def seeds_needed(self) -> int | None:
    """Number of seeds that would resolve a claim that is not resolved.

    At the spread seen, and at the level of the first step of Holm's correction:
    with so many seeds a difference of `smallest` is detected with power .8; of
    equal recipes, equality. None if it is resolved, or the spread is unknown.
    """
    if self.verdict != "not resolved" or self.pairs.interval is None:
      return None
    # Both one-sided tests of an equality must succeed, each with power .9.
    power = (1 + _POWER) / 2 if self.claim.equal else _POWER
    return seeds_needed(
      self.pairs.deviation, self.claim.smallest, power=power,
      alpha=self.alpha / self.family_size, most=_MOST_SEEDS,
    )  # fmt: skip

  @property
  def line(self) -> str:
    """The claim, its test and its verdict in one line."""
    equal = f" (equal within {self.margin})" if self.claim.equal else ""
    line = f"{self.pairs.name}{equal}: {result_text(self.pairs)}"
    if self.pairs.interval is not None:
      line += f", {p_text(self.corrected_p)} (Holm over {self.family_size})"
    line += f": {self.verdict}{self._reason()}"
    if self.pairs.bootstrap is not None:
      ends = measure(self.claim.metric).range(self.pairs.bootstrap)
      line += f"; over test examples too {ends}"
    return line

  @property
  def margin(self) -> str:
    """The smallest effect of interest with its unit."""
    return measure(self.claim.metric).with_unit(self.claim.smallest)

  def _reason(self) -> str:
    if self.verdict == "not run":
      return f" ({missing_text(self.pairs)})"
    if self.verdict == "refuted" and not self.claim.equal:
      claimed, p = self.claimed, self.corrected_p
      if claimed is not None and claimed.mean < 0 and p < self.alpha:
        return " (opposite sign)"
      return f" (gain below {self.margin})"
    needed = self.seeds_needed
    if needed is None:
      return ""
    count = f"{needed:,}" if needed < _MOST_SEEDS else f"over {needed:,}"
    goal = "equality" if self.claim.equal else self.margin
    return f"; {count} seeds would show {goal}"


def result_text(pairs: Pairs) -> str:
  """Difference, interval and number of seeds in words."""
  metric = measure(pairs.metric)
  words = pairs.metric.replace("_", " ")
  count = f"{len(pairs.seeds)} seed{'' if len(pairs.seeds) == 1 else 's'}"
  out = [
    f"{n} {why}"
    for n, why in ((pairs.missing, "missing"), (pairs.diverged, "diverged"))
    if n
  ]
  count += f" ({', '.join(out)})" if out else ""
  if not pairs.differences:
    return words
  text = f"{words} {metric.with_unit(pairs.mean, signed=True)}"
  if pairs.interval is not None:
    text += f" {metric.range(pairs.interval)}"
  return f"{text}, {count}"


def missing_text(pairs: Pairs) -> str:
  """Why a contrast has no pairs."""
  if pairs.diverged:
    return f"all {pairs.diverged} pairs diverged"
  names = [cell_name(key) for key in (pairs.better, pairs.worse)]
  return f"no common seeds of {' and '.join(names)}"


def p_text(p: float) -> str:
  """A p value as an equation.

  >>> p_text(0.0213), p_text(0.2), p_text(0.00004), p_text(1.0)
  ('p = .021', 'p = .20', 'p < .001', 'p = 1')
  """
  if p < 0.001:
    return "p < .001"
  if p > 0.995:
    return "p = 1"
  return f"p = {number(p, 2 if p >= 0.0995 else 3)}"


def judge(
  rows: DataFrame,
  claims: Mapping[str, Any],
  *,
  out: str | Path | None = None,
  alpha: float = 0.05,
) -> list[Judgement]:
  """Tests every claim at every pattern.

  A claimed difference is tested by a paired t test over seeds and judged by
  `statistics.verdict`. A claimed equality is tested by two one-sided tests,
  `statistics.equivalence_p`, and judged by `statistics.equivalence_verdict`:
  supported if the whole interval lies within ±`smallest`, refuted if it lies
  wholly outside, else not resolved. p values are corrected over their family by
  Holm's method. A test without a pair of seeds counts as p = 1, so the size of
  a family does not depend on how much of the study has run.

  Args:
    rows: Rows from `study_frame`.
    claims: Claims of the study's configuration.
    out: Directory of the study, for the interval over test examples.
    alpha: Level of the tests.

  Returns:
    A judgement per claim and pattern, in that order.

  Raises:
    ValueError: If a claim is invalid, or per-example results do not belong
      together.

  >>> from figs_jax.analysis import study_frame
  >>> losses = {"figs": (0.50, 0.61, 0.40), "sr_ste": (0.70, 0.80, 0.61)}
  >>> rows = study_frame(
  ...   {"recipe": recipe, "pattern": "1:8", "setting": "", "seed": str(seed),
  ...    "loss": str(loss)}
  ...   for recipe, values in losses.items() for seed, loss in enumerate(values)
  ... )
  >>> fields = {"better": "figs", "worse": "sr_ste", "metric": "loss",
  ...           "patterns": ("1:8", "1:32"), "smallest": 0.005}
  >>> for judgement in judge(rows, {"ahead": fields}):
  ...   print(judgement.line)
  figs − sr_ste at 1:8: loss −.2000 nats [−.2248, −.1752], 3 seeds, p = .002
  (Holm over 2): supported
  figs − sr_ste at 1:32: loss: not run (no common seeds of figs 1:32 and sr_ste
  1:32)
  """
  cells = cells_of(rows)
  tests = [
    (claim, _pairs(cells, claim, pattern, out))
    for claim in claims_of(claims)
    for pattern in claim.patterns
  ]
  values = [_p_value(claim, pairs) for claim, pairs in tests]
  corrected = [1.0] * len(tests)
  sizes: dict[str, int] = {}
  for family in dict.fromkeys(claim.family for claim, _ in tests):
    places = [i for i, (claim, _) in enumerate(tests) if claim.family == family]
    sizes[family] = len(places)
    for place, p in zip(places, holm([values[i] for i in places]).tolist()):
      corrected[place] = p
  result = []
  for (claim, pairs), p in zip(tests, corrected):
    judgement = Judgement(
      claim, pairs, p, sizes[claim.family], "not resolved", alpha
    )
    result.append(dataclasses.replace(judgement, verdict=_verdict(judgement)))
  return result


def _pairs(
  cells: Cells, claim: Claim, pattern: str, out: str | Path | None
) -> Pairs:
  better = claim.better, claim.better_setting
  worse = claim.worse, claim.worse_setting
  return pair_up(cells, better, worse, claim.metric, pattern, out=out)


def _p_value(claim: Claim, pairs: Pairs) -> float:
  if pairs.interval is None:
    return 1.0
  if claim.equal:
    return statistics.equivalence_p(pairs.interval, claim.smallest)
  return pairs.interval.p


def _verdict(judgement: Judgement) -> Outcome:
  claim, claimed = judgement.claim, judgement.claimed
  if claimed is None:
    return "not resolved" if judgement.pairs.seeds else "not run"
  rule = statistics.equivalence_verdict if claim.equal else statistics.verdict
  return rule(claimed, judgement.corrected_p, claim.smallest, judgement.alpha)


class FromBaseline(NamedTuple):
  """A cell beside the baseline.

  Attributes:
    cell: The cell.
    pairs: Paired differences, cell minus baseline.
    corrected_p: p value after Holm's correction over all cells of the study.
    family_size: Number of these cells.
  """

  cell: Cell
  pairs: Pairs
  corrected_p: float
  family_size: int


def from_baseline(
  rows: DataFrame, baseline: str, metric: str
) -> list[FromBaseline]:
  """Differences of all cells to the baseline, for tables and plots.

  The baseline is that of the same setting, or of the setting "" if the baseline
  was not run in the former.

  Args:
    rows: Rows from `study_frame`.
    baseline: Label of the baseline's recipe.
    metric: Column of the rows.

  Returns:
    A difference per cell in the order of the rows, without the baseline's own.
  """
  cells = cells_of(rows)
  settings = {setting for recipe, _, setting in cells if recipe == baseline}
  contrasts = []
  for recipe, pattern, setting in cells:
    if recipe != baseline:
      base = baseline, setting if setting in settings else ""
      pairs = pair_up(cells, (recipe, setting), base, metric, pattern)
      contrasts.append(((recipe, pattern, setting), pairs))
  values = [p.interval.p if p.interval else 1.0 for _, p in contrasts]
  return [
    FromBaseline(cell, pairs, p, len(values))
    for (cell, pairs), p in zip(contrasts, holm(values).tolist())
  ]


class Acceptance(NamedTuple):
  """Whether a study's regime shows the cost of sparsity.

  Attributes:
    accepted: Whether the baseline is better than the sparsest cell, resolved.
    line: The test in one line.
  """

  accepted: bool
  line: str


def accepted(
  rows: DataFrame,
  baseline: str = "dense",
  *,
  metric: str = "loss",
  alpha: float = 0.05,
) -> Acceptance:
  """Tests whether the model needs the weights that the study removes.

  Where even the sparsest cell costs nothing, recipes cannot differ in what they
  lose, and no claim about them means anything. So the baseline must be better
  than the sparsest cell in a paired t test. If several cells are equally sparse
  it is compared with the best of them, which makes the test stricter.

  Args:
    rows: Rows from `study_frame`, with column "density".
    baseline: Label of the baseline's recipe.
    metric: Column of the rows.
    alpha: Level of the test.
  """
  refused = "the regime is not accepted"
  cells = cells_of(rows)
  settings = {setting for recipe, _, setting in cells if recipe == baseline}
  sparse = {
    key: mean_and_se([row["density"] for row in seeds.values()])[0]
    for key, seeds in cells.items()
    if key[0] != baseline and key[2] in settings
  }
  least = min(filter(math.isfinite, sparse.values()), default=math.nan)
  contrasts = [
    pair_up(cells, (baseline, setting), (recipe, setting), metric, pattern)
    for (recipe, pattern, setting), density in sparse.items()
    if density <= least * 1.001  # equal but for rounding
  ]
  contrasts = [pairs for pairs in contrasts if pairs.interval is not None]
  if not contrasts:
    return Acceptance(
      False,
      f"{refused}: {baseline} and the sparsest cell have fewer than two common"
      " seeds",
    )
  sign = measure(metric).sign
  hardest = min(contrasts, key=lambda pairs: sign * pairs.mean)
  resolved = hardest.interval is not None and hardest.interval.p < alpha
  passed = resolved and sign * hardest.mean > 0
  p = hardest.interval.p if hardest.interval else 1.0
  test = f"{hardest.name}: {result_text(hardest)}, {p_text(p)}"
  if passed:
    return Acceptance(True, f"{test}: the regime is accepted")
  return Acceptance(
    False,
    f"{test}: {refused}, since the sparsest cell is not resolved from"
    f" {baseline}; train a smaller model or longer",
  )


def order_text(pairs: Sequence[Pairs]) -> str:
  """`data.order` of all pairs, for a heading."""
  orders = dict.fromkeys(each.order for each in pairs if each.seeds)
  return f"data.order = {' or '.join(orders) or 'not recorded'}"


def report(
  judgements: Sequence[Judgement], acceptance: Acceptance | None = None
) -> str:
  """What can and cannot be claimed, a line per test.

  Args:
    judgements: Judgements from `judge`.
    acceptance: Test of the regime from `accepted`, for the first line.
  """
  lines = [acceptance.line] if acceptance else []
  if judgements:
    order = order_text([judgement.pairs for judgement in judgements])
    lines.append(f"paired by seed, {order}; intervals of 95 % over seeds")
  lines += [judgement.line for judgement in judgements]
  return "\n".join(lines) + "\n"
