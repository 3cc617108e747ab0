"""launch/study.py: what is meant wrong ends in one line, before training."""

from tests.programs import assert_one_clear_line, in_one_process

PROGRAM = "launch/study.py"
DIGITS = ("--config", "configs/study_digits.py")


def test_mistakes_are_one_line(tmp_path):
  wrong = {
    (): ["--config is missing", "configs/study_digits.py"],
    ("--config", "configs/digits_vit.py"): ["a study", "grids", "train.py"],
    (*DIGITS, "--grid", "z"): ["grids: expected one of 'all'", "'z'"],
    (*DIGITS, "--shard", "5"): ["--shard", "2/4", "'5'"],
    (*DIGITS, "--shard", "3/2"): ["--shard", "from 1 to n", "3/2"],
    (*DIGITS, "--config.budget=hours"): ["budget", "train_flops", "'hours'"],
    ("--collect", tmp_path / "none", "--out", tmp_path): ["none", "study.csv"],
    ("--collect", tmp_path): ["--out is missing"],
    ("words",): ["'words'", "--collect"],
  }
  calls = [
    (*words, "--workdir", tmp_path / "w") if "--shard" in words else words
    for words in wrong
  ]
  for done, expected in zip(in_one_process(PROGRAM, *calls), wrong.values()):
    assert_one_clear_line(done, *expected)
  assert not any((tmp_path / "w").rglob("checkpoints"))
