"""docs/results.md says what the committed rows of its study say."""

import re
import runpy
from pathlib import Path

from figs_jax.analysis import judge, study, study_frame

ROOT = Path(__file__).parents[1]
PATTERNS = {"ff + qk 1:8": "qk 1:8"}


def test_verdicts_are_those_of_the_rows():
  config = runpy.run_path(str(ROOT / "configs" / "study_fashion_vit.py"))
  rows = study_frame(study.rows(ROOT / "docs" / "results" / "fashion_vit"))
  judged = [
    judgement
    for judgement in judge(rows, config["get_config"]().claims.to_dict())
    if judgement.claim.metric == "loss"
  ]
  text = (ROOT / "docs" / "results.md").read_text()
  table = text.partition("| claim | at |")[2].partition("\n\n")[0]
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
