"""docs/results.md says what the committed rows of its studies say."""

import re
import runpy
from pathlib import Path

import pytest

from figs_jax.analysis import judge, study, study_frame

ROOT = Path(__file__).parents[1]
PATTERNS = {"ff + qk 1:8": "qk 1:8"}


# In the order of their tables on the page.
STUDIES = ("fashion_vit", "stdlib_text")


@pytest.mark.parametrize("name", STUDIES)
def test_verdicts_are_those_of_the_rows(name):
  config = runpy.run_path(str(ROOT / "configs" / f"study_{name}.py"))
  rows = study_frame(study.rows(ROOT / "docs" / "results" / name))
  judged = [
    judgement
    for judgement in judge(rows, config["get_config"]().claims.to_dict())
    if judgement.claim.metric == "loss"
  ]
  text = (ROOT / "docs" / "results.md").read_text()
  tables = text.split("| claim | at |")[1:]
  assert len(tables) == len(STUDIES)
  table = tables[STUDIES.index(name)].partition("\n\n")[0]
  lines = [
    [cell.strip() for cell in line.split("|")[2:-1]]
    for line in table.splitlines()[2:]
  ]
  printed = {}
  for at, difference, p, verdict in lines:
    printed.setdefault(difference.split()[0], []).append(
      (PATTERNS.get(at, at.removeprefix("ff ")), difference, p, verdict)
    )
  assert len(lines) == len(judged)
  for judgement in judged:
    interval = judgement.pairs.interval
    found = re.search(r"nats \[.*?\]", judgement.line)
    assert interval and found
    mean, ends, p = re.search(
      r"loss (\S+) nats (\[.*?\]), .*?p (?:= )?(< \.001|\S+) ", judgement.line
    ).groups()
    entry = (
      judgement.pairs.pattern, f"{mean} {ends}", p, judgement.verdict,
    )  # fmt: skip
    assert entry in printed[mean], judgement.line
