"""The text of this Python, whole, in splits that do not meet."""

import hashlib
import platform
import pydoc_data.topics
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from figs_jax import data
from figs_jax.data import stdlib_text

SPLITS = ("train", "validation", "test")


def read_all(root, split):
  source = data.load("stdlib_text", split, data_dir=root)
  examples = [source[i] for i in range(len(source))]
  return {x["name"].decode(): x["text"].decode() for x in examples}


def test_every_document_is_in_one_split_unchanged(text_dir, no_network):
  parts = [read_all(text_dir, split) for split in SPLITS]
  names = [name for part in parts for name in part]
  assert len(names) == len(set(names))
  texts = {name: text for part in parts for name, text in part.items()}
  topics = {f"topics/{k}": v for k, v in pydoc_data.topics.topics.items()}
  assert topics.items() <= texts.items()
  for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
    if not path.name.startswith("_sysconfigdata"):
      # All of them are UTF-8 but for a few that say so.
      assert texts.pop(path.name) == path.read_text(encoding="utf-8")
  assert texts == topics


def test_sizes_of_the_splits(text_dir):
  sizes = [
    sum(len(text.encode()) for text in read_all(text_dir, split).values())
    for split in SPLITS
  ]
  assert 3e6 < sum(sizes) < 9e6
  assert sizes[0] > 0.7 * sum(sizes)
  assert min(sizes) > 0.03 * sum(sizes)


def test_a_document_stays_in_its_split():
  # Of the last digit of SHA-256 of the name, not of the order or the Python.
  for name in ("functools.py", "topics/lambda", "argparse.py", "socket.py"):
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
    wanted = SPLITS[2 if place == 0 else 1 if place == 1 else 0]
    assert stdlib_text.split_of(name) == wanted
  splits = {stdlib_text.split_of(name) for name in stdlib_text.documents()}
  assert splits == set(SPLITS)


def test_the_directory_names_the_python_and_the_text(text_dir):
  (config,) = Path(text_dir, "stdlib_text").iterdir()
  version, digest = config.name.split("_")
  assert version == f"py{platform.python_version()}"
  joined = "".join(f"{k}\0{v}\0" for k, v in stdlib_text.documents().items())
  assert digest == hashlib.sha256(joined.encode()).hexdigest()[:8]
  assert [path.name for path in config.iterdir()] == ["1.0.0"]


def test_another_text_is_another_data_set(text_dir, monkeypatch):
  here = stdlib_text.config_name()
  text = {"topics/a": "words", "b.py": "pass"}
  monkeypatch.setattr(stdlib_text, "documents", lambda: text)
  changed = stdlib_text.config_name.__wrapped__()
  assert changed.split("_")[0] == here.split("_")[0]
  assert changed != here


def test_importing_reads_no_document():
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      "import figs_jax.data.stdlib_text as s; print(s.documents.cache_info())",
    ],
    capture_output=True,
    text=True,
  )
  assert "currsize=0" in done.stdout, done.stderr


def test_an_image_task_refuses_it(text_dir):
  with pytest.raises(data.DataError, match="stdlib_text.*features 'image'"):
    data.describe("stdlib_text", data_dir=text_dir)
