"""The builder keeps every bit, and `prepare` survives kills and company."""

import os
import signal
import subprocess
import sys
import textwrap
import unittest.mock
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from figs_jax.data import digits

ROOT = Path(digits.__file__).parents[2]


def read_all(root, split):
  source = digits.Digits(data_dir=str(root)).as_data_source(split)
  examples = [source[i] for i in range(len(source))]
  images = np.stack([x["image"] for x in examples])
  return images, np.array([x["label"] for x in examples])


def version_dir(root):
  return Path(root) / "digits" / "1.0.0"


def test_stored_pixels_invert_to_those_of_scikit_learn(digits_dir):
  counts, labels = load_digits(return_X_y=True)
  held_out = digits.is_test(labels)
  counts = np.concatenate([counts[~held_out], counts[held_out]])
  labels = np.concatenate([labels[~held_out], labels[held_out]])
  parts = [read_all(digits_dir, split) for split in ("train", "test")]
  images = np.concatenate([images for images, _ in parts])
  assert images.dtype == np.uint8
  assert images.shape == (1797, 8, 8, 1)
  np.testing.assert_array_equal(
    images.reshape(1797, 64) // digits.PIXEL_SCALE, counts
  )
  assert not (images % digits.PIXEL_SCALE).any()
  np.testing.assert_array_equal(
    np.concatenate([image for _, image in parts]), labels
  )


def test_the_split_is_four_fifths_and_nearly_balanced(digits_dir):
  for split, size in (("train", 1442), ("test", 355)):
    counts = np.bincount(read_all(digits_dir, split)[1], minlength=10)
    assert counts.sum() == size
    assert counts.min() >= 0.95 * size / 10
    assert counts.max() <= 1.05 * size / 10


def test_preparing_again_changes_nothing(digits_dir):
  def state():
    return {
      path: (path.stat().st_ino, path.stat().st_mtime_ns)
      for path in version_dir(digits_dir).iterdir()
    }

  before = state()
  with unittest.mock.patch.object(
    digits.Digits, "download_and_prepare", side_effect=AssertionError
  ):
    digits.prepare(digits_dir)
  assert state() == before
  assert [p.name for p in Path(digits_dir).iterdir()] == ["digits"]


def test_preparing_prints_nothing(tmp_path, capfd):
  digits.prepare(str(tmp_path))
  assert capfd.readouterr().out == ""


def _delete(path):
  path.unlink()


def _halve(path):
  os.truncate(path, path.stat().st_size // 2)


def _flip_a_bit(path):
  content = bytearray(path.read_bytes())
  at = next(i for i in range(len(content) // 8, len(content)) if content[i])
  content[at] ^= 4
  path.write_bytes(content)


@pytest.mark.parametrize(
  ("pattern", "damage"),
  [
    ("dataset_info.json", _delete),
    ("*train*", _delete),
    ("*test*", _halve),
    ("*train*", _flip_a_bit),
  ],
)
def test_a_damaged_copy_is_replaced(tmp_path, digits_dir, pattern, damage):
  digits.prepare(str(tmp_path))
  (victim,) = version_dir(tmp_path).glob(pattern)
  damage(victim)
  digits.prepare(str(tmp_path))
  for split in ("train", "test"):
    for restored, wanted in zip(
      read_all(tmp_path, split), read_all(digits_dir, split)
    ):
      np.testing.assert_array_equal(restored, wanted)
  assert [p.name for p in tmp_path.iterdir()] == ["digits"]


def _python(code, *args):
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), *args],
    env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_kill_half_way_leaves_nothing_that_counts(tmp_path):
  killed = _python(
    """
    import os, signal, sys
    from figs_jax.data import digits
    whole = digits.Digits._generate_examples
    def half(self, held_out):
      for i, example in enumerate(whole(self, held_out)):
        if i == 300 and held_out:  # train is written, test is not
          os.kill(os.getpid(), signal.SIGKILL)
        yield example
    digits.Digits._generate_examples = half
    digits.prepare(sys.argv[1])
    """,
    str(tmp_path),
  )
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL
  assert not version_dir(tmp_path).exists()
  (left,) = tmp_path.iterdir()
  digits.prepare(str(tmp_path))
  assert len(read_all(tmp_path, "test")[1]) == 355
  assert left.exists(), "young leftovers may belong to a living process"
  os.utime(left, (0, 0))
  (version_dir(tmp_path) / "dataset_info.json").unlink()
  digits.prepare(str(tmp_path))
  assert not left.exists()


def test_two_processes_may_prepare_at_once(tmp_path):
  code = """
    import sys
    from figs_jax.data import digits
    print("ready", flush=True)
    sys.stdin.readline()
    source = digits.prepare(sys.argv[1]).as_data_source("train")
    print(len(source), "tensorflow" in sys.modules)
    """
  runs = [_python(code, str(tmp_path)) for _ in range(2)]
  for run in runs:
    assert run.stdout.readline() == "ready\n"
  for run in runs:
    run.stdin.write("\n")
    run.stdin.flush()
  for run in runs:
    out, error = run.communicate(timeout=100)
    assert out == "1442 False\n", error
  assert [p.name for p in tmp_path.iterdir()] == ["digits"]


def test_a_remote_directory_is_refused():
  with pytest.raises(ValueError, match="gs://bucket.*remote.*local directory"):
    digits.prepare("gs://bucket/data")
