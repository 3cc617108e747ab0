"""launch/quickstart.py: mistakes cost seconds, never a training run."""

import json
import re

import pytest

from tests.programs import call

# Every mistake in one process; training, if it began, would be stopped.
DRIVER = """
import json, runpy, sys
from absl import flags
from figs_jax import cli
from figs_jax.analysis import study
from figs_jax.data import idx

def stopped(config, where):
  print("training", where.name, file=sys.stderr)
  return {"finished": False}

idx.INSTALLED.clear()  # as without Debian's package
study.train = stopped
program = runpy.run_path("launch/quickstart.py", run_name="quickstart")
for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  sys.argv = ["quickstart.py", *arguments]
  try:
    cli.run(program["main"])
  except SystemExit as end:
    sys.stdout.flush()
    print("exit code:", end.code or 0, file=sys.stderr, flush=True)
"""
MISTAKES = {
  "--recipes=figs,figss": ["--recipes: ", "'figss'", "'figs'"],
  "--recipes=figs,,step": ["--recipes: ", "''"],
  "--patterns=1:8,ff": ["--patterns: ", "'ff'", "'n:m'"],
  "--patterns=1:7": ["axis -2 has length 64", "m=7"],
  "--recipes=dense": ["--recipes: expected one to compare with dense"],
  "--sweep=rigl": ["--sweep: expected recipes of --recipes", "'rigl'"],
  "--source=FILE": ["fashion_mnist", "FILE", "train-images-idx3-ubyte"],
  "--patterns=": ["--patterns is empty: give at least one"],
  "--engines=wss:8x8": ["--engines: ", "'wss'", "'ws'"],
  "--engines=ws:8": ["--engines: ", "'8'", "ROWSxCOLS"],
  "--steps=9": ["--steps: expected integer >= 10, got '9'"],
  "--seeds=0": ["--seeds: expected a positive integer, got '0'"],
  "--seed=3": ["did you mean --seeds?"],
  "--workdir=": ["--workdir is empty"],
  "--workdir=FILE": ["--workdir FILE: ", "use another"],
  "runs": ["Unexpected argument 'runs'"],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """Directory, standard output, and argument -> (errors, exit code)."""
  where = tmp_path_factory.mktemp("quickstart")
  (where / "file").write_text("in the way")
  cases = [
    [f"--workdir={where / 'runs'}", word.replace("FILE", str(where / "file"))]
    for word in MISTAKES
  ]
  cases.append([f"--workdir={where / 'runs'}", "--recipes=dense,figs,figs"])
  done = call(
    "-c", DRIVER, json.dumps(cases), TFDS_DATA_DIR=str(where / "data")
  )
  assert done.returncode == 0, done.stderr
  errors = done.stderr.replace(str(where / "file"), "FILE")
  ends = errors.split("exit code: ")
  texts = [ends[0], *(end.partition("\n")[2] for end in ends[1:-1])]
  codes = [end.partition("\n")[0] for end in ends[1:]]
  ends = dict(zip([*MISTAKES, "none"], zip(texts, codes), strict=True))
  return where, done.stdout, ends


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes_get_one_line_and_exit_2(word, outcomes):
  text, code = outcomes[2][word]
  lines = text.splitlines()
  assert len(lines) == 1, text
  assert lines[0].startswith("quickstart.py: ")
  for part in MISTAKES[word]:
    assert part in lines[0]
  assert code == "2"


def test_without_a_mistake_training_begins_and_can_be_stopped(outcomes):
  where, printed, ends = outcomes
  text, code = ends["none"]
  assert re.fullmatch(r"training dense-\w{6}-seeds-0-3", text.splitlines()[-1])
  fallback, stopped = printed.splitlines()[-2:]
  assert "install Debian's dataset-fashion-mnist, or give --source" in fallback
  assert stopped == "stopped; run the same command to resume"
  assert code == "0"
  assert not list((where / "runs").iterdir())  # training makes directories
