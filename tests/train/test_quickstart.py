"""launch/quickstart.py: mistakes cost seconds, and whole runs of small data."""

import csv
import json
import re

import numpy as np
import pytest

from figs_jax import recipes
from tests.programs import all_in_one_process, call

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
  "--engines=wss:8x8": ["--engines: ", "'wss'", "'ws:8x8'"],
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
  # One dense run comes first.
  assert re.fullmatch(r"training dense-\w{6}-seeds-0-0", text.splitlines()[-1])
  fallback, stopped = printed.splitlines()[-2:]
  assert "install Debian's dataset-fashion-mnist, or give --source" in fallback
  assert stopped == "stopped; run the same command to resume"
  assert code == "0"
  assert not list((where / "runs").iterdir())  # training makes directories


def write_idx(path, values):
  """Images or labels, uint8, as an idx file."""
  header = bytes([0, 0, 8, values.ndim])
  shape = np.array(values.shape, ">u4").tobytes()
  path.write_bytes(header + shape + values.tobytes())


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
  """Directory, and the ends of help and of two starts with 300 images."""
  where = tmp_path_factory.mktemp("whole")
  labels = np.arange(300, dtype=np.uint8) % 10
  images = np.broadcast_to(25 * labels[:, None, None], (300, 28, 28))
  for prefix, n in (("train", 300), ("t10k", 40)):
    write_idx(where / f"{prefix}-labels-idx1-ubyte", labels[:n])
    write_idx(where / f"{prefix}-images-idx3-ubyte", images[:n])
  small = ["--steps=10", "--seeds=1", "--recipes=figs", "--patterns=1:8"]
  whole = [*small, f"--source={where}", f"--workdir={where / 'runs'}"]
  hide = f"""
import os
from figs_jax.data import idx
idx.INSTALLED.clear()
os.environ["TFDS_DATA_DIR"] = {str(where / "data")!r}
"""
  ends = all_in_one_process(
    [["launch/quickstart.py", *words] for words in (["--help"], whole, whole)],
    before=hide,
  )
  return where / "runs", ends


def test_help_names_the_recipes_and_its_own_flags_alone(whole_runs):
  code, printed, _ = whole_runs[1][0]
  assert code == 0 and "--config" not in printed
  flags = set(re.findall(r"^  --(?:\[no\])?(\w+):", printed, re.MULTILINE))
  assert flags == {
    "engines", "patterns", "recipes", "seeds", "source", "steps", "sweep",
    "workdir",
  }  # fmt: skip
  (listed,) = re.findall(r"^recipes: ([^;]+);", printed, re.MULTILINE)
  assert re.split(r",\s+", listed) == list(recipes.names())


def test_the_accuracy_of_one_dense_seed_comes_first(whole_runs):
  runs, (_, (code, printed, errors), _) = whole_runs
  assert code == 0, errors
  accuracy = re.match(r"dense, seed 0: test accuracy (\d+\.\d\d)%,", printed)
  with open(runs / "study.csv", newline="") as file:
    dense, figs = csv.DictReader(file)
  assert (dense["recipe"], figs["recipe"]) == ("dense", "figs")
  wanted = 100 * float(dense["accuracy"])
  assert float(accuracy[1]) == pytest.approx(wanted, abs=0.0051)
  assert "The test split has 40 examples" in (runs / "report.md").read_text()
  assert errors.count("training for 10 steps") == 2
  assert errors.index("dense: accuracy ") < errors.index("== figs 1:8, seed 0")


def test_a_second_start_trains_nothing(whole_runs):
  code, printed, errors = whole_runs[1][2]
  assert code == 0 and printed.startswith("dense, seed 0: test accuracy")
  assert "training for" not in errors
  assert "--source is not read" in errors
