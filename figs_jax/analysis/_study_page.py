"""The page of a study: verdicts first, then tables, pictures and resolution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from figs_jax.analysis import _study_plots as plots
from figs_jax.analysis._study_claims import (
  Judgement,
  Outcome,
  accepted,
  from_baseline,
  judge,
  order_text,
  report,
)
from figs_jax.analysis._study_examples import Split, split_of
from figs_jax.analysis._study_pairs import (
  DataFrame,
  cells_of,
  measure,
  metrics_of,
  number,
)
from figs_jax.analysis._study_tables import compact_table, table, verdict_table
from figs_jax.analysis.plot_style import image_bytes
from figs_jax.train.seeds import mean_and_se

_RULES = """\
Differences are paired by seed, with Student's 95 % interval over seeds, and
*with test examples* by the bootstrap over seeds and test examples. p values are
those of paired t tests after Holm's correction over the family, in which tests
that have not run count as p = 1. *Supported*: p < .05 with the claimed sign.
*Refuted*: p < .05 with the other sign, or an interval below the smallest effect
of interest. A claimed equality (±) is supported if the whole interval lies
within the smallest effect (two one-sided tests, corrected likewise), refuted if
it lies outside. *Seeds to resolve*: enough to show the smallest effect with
power .8 at the spread seen."""


def write_results(
  rows: DataFrame,
  study: Mapping[str, Any],
  out: str | Path,
  *,
  split: Split | None = None,
) -> str:
  """Writes OUT/results.md and its pictures, in place of earlier ones.

  Args:
    rows: Rows from `study_frame`.
    study: Configuration of the study: its `name`, `baseline` and `claims`.
    out: Directory of study.csv.
    split: Size of the test split. Defaults to that of the per-example results.

  Returns:
    What can and cannot be claimed, a line per test.

  Raises:
    ValueError: If a claim is invalid, per-example results do not belong
      together, or matplotlib is not installed.

  >>> import tempfile
  >>> from figs_jax.analysis import study_frame
  >>> losses = {"dense": (0.40, 0.41, 0.38), "figs": (0.50, 0.50, 0.49)}
  >>> rows = study_frame(
  ...   {"recipe": recipe, "pattern": "1:8" if recipe == "figs" else "",
  ...    "setting": "", "seed": str(seed), "loss": str(loss), "accuracy": ".8",
  ...    "density": ".125" if recipe == "figs" else "1"}
  ...   for recipe, values in losses.items() for seed, loss in enumerate(values)
  ... )
  >>> study = {"name": "small", "baseline": "dense", "claims": {}}
  >>> with tempfile.TemporaryDirectory() as out:
  ...   text = write_results(rows, study, out)
  ...   sorted(path.name for path in Path(out).iterdir())
  ['density.png', 'distance_accuracy.png', 'distance_loss.png', 'results.md']
  >>> print(text.splitlines()[0])
  dense − figs at 1:8: loss −.1000 nats [−.1248, −.0752], 3 seeds, p = .003: the
  regime is accepted
  """
  out, baseline = Path(out), study["baseline"]
  judgements = judge(rows, study["claims"], out=out)
  acceptance = accepted(rows, baseline)
  smallest = {
    metric: min(
      (j.claim.smallest for j in judgements if j.claim.metric == metric),
      default=math.nan,
    )
    for metric in ("loss", "accuracy")
  }
  names = _write_pictures(rows, baseline, judgements, smallest, out)
  parts = [
    f"# Results of the study {study['name']}",
    f"Test of the regime: {acceptance.line}.",
    *(_verdicts(judgements, names) if judgements else ()),
    "## Recipes and patterns",
    *(
      compact_table(rows, baseline, metric)
      for metric in ("accuracy", "loss")
      if metric in metrics_of(rows)
    ),
    _picture("Accuracy and loss by density", names, "density"),
    *(
      _picture(f"Test {metric} beside {baseline}", names, f"distance_{metric}")
      for metric in ("loss", "accuracy")
    ),
    "## Speed-up and training FLOPs",
    *(
      _picture("Accuracy against modelled costs", names, name)
      for name in names
      if name.startswith("pareto")
    ),
    "## All cells",
    table(rows, baseline, out=out),
    "## Resolution",
    resolution(
      rows, baseline, split or split_of(rows.get("examples", ()), out)
    ),
  ]
  page = "\n\n".join(part.strip() for part in parts if part.strip())
  (out / "results.md").write_text(page + "\n", encoding="utf-8")
  return report(judgements, acceptance)


def _verdicts(
  judgements: Sequence[Judgement], names: Sequence[str]
) -> list[str]:
  order = order_text([each.pairs for each in judgements])
  return [
    "## Verdicts",
    f"{_counts(judgements)} In all runs {order}.",
    verdict_table(judgements),
    _RULES,
    _picture("Claims: paired differences with 95 % intervals", names, "forest"),
  ]


def _counts(judgements: Sequence[Judgement]) -> str:
  """Number of tests by verdict in one sentence."""
  counts = Counter(judgement.verdict for judgement in judgements)
  words = [f"{counts[v]} {v}" for v in get_args(Outcome) if counts[v]]
  return f"{len(judgements)} tests: {', '.join(words)}."


def _picture(words: str, names: Sequence[str], name: str) -> str:
  return f"![{words}]({name}.png)" if name in names else ""


def _write_pictures(
  rows: DataFrame,
  baseline: str,
  judgements: Sequence[Judgement],
  smallest: Mapping[str, float],
  out: Path,
) -> list[str]:
  """Writes the pictures for which there are rows, and returns their names."""
  figures: dict[str, Any] = {}
  if judgements:
    figures["forest"] = plots.plot_forest(judgements)
  if any(recipe != baseline for recipe, _, _ in cells_of(rows)):
    figures["density"] = plots.plot_by_density(rows, baseline)
    for metric in ("loss", "accuracy"):
      figures[f"distance_{metric}"] = plots.plot_distances(
        rows, baseline, metric=metric, smallest=smallest[metric]
      )
    for place, columns in enumerate(plots.cost_columns(rows), 1):
      figure = plots.plot_tradeoffs(rows, baseline, columns)
      figures[f"pareto_{place}"] = figure
  for name, figure in figures.items():
    (out / f"{name}.png").write_bytes(image_bytes(figure, "png"))
  return list(figures)


def resolution(rows: DataFrame, baseline: str, split: Split | None) -> str:
  """What the test split and the seeds can resolve, in words.

  The binomial standard error of one run's accuracy a over n examples, or n
  independent target tokens, is sqrt(a (1 - a) / n).

  Args:
    rows: Rows from `study_frame`.
    baseline: Label of the baseline's recipe.
    split: Size of the test split; None leaves the first sentence out.
  """
  accuracies = rows.accuracy[rows.recipe == baseline]
  accuracy = mean_and_se(accuracies.tolist())[0]
  text = ""
  if split and math.isfinite(accuracy):
    error = 100 * math.sqrt(accuracy * (1 - accuracy) / split.tokens)
    of_tokens = independent = ""
    if split.tokens != split.examples:
      of_tokens = f" with {split.tokens:,} target tokens"
      independent = ", if tokens were independent,"
    text = (
      f"The test split has {split.examples:,} examples{of_tokens}. At"
      f" {baseline}'s accuracy of {number(100 * accuracy, 2)} % the binomial"
      f" standard error of one run{independent} is {number(error, 2)} points."
      " All runs share the examples, so paired differences are known better"
      " than that. "
    )
  errors = {
    metric: [
      each.pairs.interval.standard_error
      for each in from_baseline(rows, baseline, metric)
      if each.pairs.interval
    ]
    for metric in ("accuracy", "loss")
  }
  if not errors["accuracy"]:
    return text
  medians = [
    measure(metric).with_unit(float(np.median(values)))
    for metric, values in errors.items()
    if values
  ]
  return text + (
    "Over seeds, the median standard error of a paired difference to"
    f" {baseline} is {' and '.join(medians)}."
  )
