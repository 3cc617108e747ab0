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


def test_the_advice_quotes_the_results():
  """Differences and bounds of which_recipe.md stand in results.md."""
  advice = (ROOT / "docs" / "which_recipe.md").read_text()
  results = (ROOT / "docs" / "results.md").read_text()
  quoted = re.findall(r"[−+]?\.\d{3,4}", advice)
  quoted = [number for number in quoted if number not in (".012", ".019")]
  assert len(quoted) >= 6
  assert not [number for number in quoted if number not in results]
  # Bits per byte by which mdgf_exp is ahead of the others.
  rows = r"^\| (\w+) \| 1:8 on ff \| (\d\.\d+) ±"
  bits = dict(re.findall(rows, results, re.MULTILINE))
  best = float(bits.pop("mdgf_exp"))
  ahead = [f"{float(value) - best:.3f}".lstrip("0") for value in bits.values()]
  assert f"{min(ahead)} to {max(ahead)} bits per byte" in " ".join(
    advice.split()
  )
