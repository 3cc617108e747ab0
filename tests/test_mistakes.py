"""A dozen mistakes of benchmarks/mistakes.py, each of another mechanism."""

import re

import pytest

from tests.programs import call

SAMPLE = (
  r"train .*config\.(num_train_epochs|optimizer=lion|recipe\.name=ste)",
  r"train .*(--output_dir|data\.train_split=training|name=\{folder\})",
  r"train .*(--workdir=\{csv\}$|pattern='\*: 1:4, ff: 1:8')",
  r"train --config=\{csv\}",
  r"export --verify=\{(csv|new)\}$",
  r"study .*(epochs|--collect \{new\})",
  r"figs.sparsify\(net, 'ff: 1:4'\)",
)


@pytest.mark.slow
def test_mistakes_cost_one_line_that_names_the_fix():
  done = call("benchmarks/mistakes.py", "--only", "|".join(SAMPLE))
  assert done.returncode == 0, done.stdout
  *_, total = done.stdout.splitlines()
  count = re.fullmatch(r"(\d+) mistakes in .*: \1 good", total)
  assert int(count[1]) >= 14
