"""Streams of files: order, bounded memory, exact positions, damage."""

import collections
import gzip
import itertools
import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from figs_jax import data
from figs_jax.data import opened, record_files, text_batches
from figs_jax.data.streaming import Stream, number_of_lanes
from tests.data import tfrecords
from tests.data.batches import assert_equal, take

FILES = 4


def lines(path, texts):
  path.parent.mkdir(parents=True, exist_ok=True)
  raw = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
  path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def documents(root, kind, files=FILES, each=9):
  """Files of documents, number i of which is the letter chr(i) repeated."""
  number = itertools.count(48)
  for i in range(files):
    texts = [chr(next(number)) * 3 for _ in range(each + i)]
    if kind == "tfrecord":
      records = [tfrecords.example(content=text) for text in texts]
      tfrecords.write(root / f"c4-train.tfrecord-{i:05}-of-{files:05}", records)
      (root / "features.json").write_text('{"text": "content"}')
    else:
      lines(root / f"c4-train.{i:05}-of-{files:05}.{kind}", texts)
  kind = "json" if kind == "tfrecord" else kind
  if (root / "features.json").exists():
    records = [tfrecords.example(content="abc")] * 3
    tfrecords.write(root / "c4-validation.tfrecord", records)
  else:
    lines(root / f"c4-validation.00000-of-00001.{kind}", ["abc"] * 3)
  name = "tfrecord" if (root / "features.json").exists() else "text"
  return f"{name}:{root}"


def texts_of(name, root, **options):
  return data.find_texts(
    name,
    input_length=8,
    data_dir=str(root),
    options=opened.Options(stream=True),
    **options,
  )


def same(window):
  return window


def only(example, rng):
  return example


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "json.gz", "tfrecord"])
def test_positions_hold_for_any_number_of_processes(tmp_path, kind, pack):
  texts = texts_of(documents(tmp_path / "c4", kind), tmp_path)

  def make(size=8, seed=3, **options):
    return text_batches.train_batches(
      texts, "train", size, seed=seed, shuffle_buffer=20, pack=pack, **options
    )

  first, whole, states = make(), [], []
  for _ in range(12):
    states.append(json.loads(json.dumps(first.get_state())))
    whole.append(next(first))
  first.close()
  if not pack:
    assert [state["next_example"] for state in states] == list(range(0, 96, 8))
  for count in (1, 2, 4, 8):
    shards = [
      make(8 // count, shard_index=i, num_shards=count) for i in range(count)
    ]
    for at in (9, 2):
      for shard in shards:
        shard.set_state(states[at])
      parts = [take(shard, 3) for shard in shards]
      joined = [
        {k: np.concatenate([part[k] for part in each]) for k in each[0]}
        for each in zip(*parts)
      ]
      assert_equal(joined, whole[at : at + 3])
    for shard in shards:
      shard.close()
  assert (whole[0]["inputs"] != take(make(seed=4), 1)[0]["inputs"]).any()
  if not pack:
    several = make(seed=[3, 4])
    batch = next(several)
    several.close()
    np.testing.assert_array_equal(batch["inputs"][0], whole[0]["inputs"])


def test_epochs_hold_every_record_once(tmp_path):
  """Each lane has all records of its files before any of the next epoch."""
  root = tmp_path / "c4"
  records = record_files.RecordFiles(
    Path(documents(root, "jsonl", files=4, each=9).partition(":")[2]),
    str(tmp_path),
    opened.Options(stream=True),
    lines=True,
  )
  stream = Stream(
    records, "train", same, only,
    batch_size=8, seed=0, buffer=1, rows=range(8),
  )  # fmt: skip
  assert stream.lanes == 4
  by_lane = collections.defaultdict(list)
  for number in range(12):
    for row, example in enumerate(stream[number]):
      by_lane[row // 2].append(example["text"])
  for i in range(4):
    count = 9 + i
    first, second = by_lane[i][:count], by_lane[i][count : 2 * count]
    assert len(set(first)) == count and first == second[:count]
  # With a buffer, the records of a window are those of the file's order.
  wide = Stream(
    records, "train", same, only,
    batch_size=8, seed=0, buffer=4 * 6, rows=range(8),
  )  # fmt: skip
  shuffled = [x["text"] for number in range(3) for x in wide[number][:2]]
  assert sorted(shuffled) == sorted(by_lane[0][:6]) != shuffled
  again = pickle.loads(pickle.dumps(wide))
  assert again[2] == wide[2] == wide[2]


def test_a_process_reads_its_own_files_only(tmp_path):
  texts = texts_of(documents(tmp_path / "c4", "jsonl"), tmp_path)
  records, opened_files = texts.builders[0], set()
  reader = records.reader
  records.reader = lambda path: opened_files.add(path.name) or reader(path)
  shard = text_batches.train_batches(
    texts, "train", 4, seed=0, shard_index=1, num_shards=2, shuffle_buffer=8
  )
  take(shard, 12)
  shard.close()
  assert opened_files == {f"c4-train.{i:05}-of-00004.jsonl" for i in (2, 3)}
  assert number_of_lanes(7, 256) == 1


class Synthetic:
  """Ten million records without a file."""

  count = 10_000_000
  made = 0

  def __init__(self):
    self.files = {"train": [Path("a"), Path("b")]}

  def reader(self, path):
    return SyntheticReader(self, path)

  def example(self, where, raw):
    return {"where": where, "text": raw}


class SyntheticReader:
  def __init__(self, source, path):
    self.source, self.path = source, path
    self.left = source.count // 2
    self.numbers = iter(range(self.left))

  def __iter__(self):
    for number in self.numbers:
      self.left -= 1
      self.source.made += 1
      yield f"{self.path}{number}".encode() + bytes(100)

  def skip(self, count):
    there = min(count, self.left)
    self.left -= there
    collections.deque(itertools.islice(self.numbers, there), maxlen=0)
    return there

  def close(self):
    pass


def test_memory_is_bounded_by_the_buffer_over_ten_million_records():
  source = Synthetic()
  stream = Stream(
    source, "train", same,
    lambda example, rng: {"n": example["where"]},
    batch_size=1000, seed=0, buffer=2000, rows=range(0, 1000),
  )  # fmt: skip
  stream[0]
  tracemalloc.start()
  try:
    # Through all records of both lanes, and into the second epoch.
    for number in (1, 2, 100, 4999, 9_999, 10_000, 10_001):
      batch = stream[number]
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert len(batch) == 1000
  assert stream._lanes[0]._counts == {Path("a"): 5_000_000}
  assert peak < 2000 * 600, "a few hundred bytes for each record of the buffer"
  assert source.made < 20 * 2000


def test_evaluation_is_the_whole_split(tmp_path):
  for kind in ("jsonl", "json.gz"):
    texts = texts_of(documents(tmp_path / kind, kind), tmp_path)
    batches = list(text_batches.eval_batches(texts, "validation", 2))
    assert sum(int(batch["valid"].sum()) for batch in batches) >= 1


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    (lambda p: p.write_text("{"), "record 0: .*invalid JSON"),
    (lambda p: p.write_text("[1]\n"), "expected a JSON object, got list"),
    (lambda p: p.write_text('{"a": 1}\n'), "expected a column text, got a"),
    (lambda p: p.write_text('{"text": 1}\n'), "text: expected text, got 1"),
    (
      lambda p: p.unlink(),
      "expected 4 files of c4-train.jsonl in train, got 3",
    ),
    (lambda p: [q.unlink() for q in p.parent.iterdir()], "got none"),
  ],
)
def test_bad_files_are_one_clear_line(tmp_path, harm, message):
  name = documents(tmp_path / "c4", "jsonl")
  harm(tmp_path / "c4/c4-train.00000-of-00004.jsonl")
  with pytest.raises((data.DataError, ValueError), match=message) as error:
    texts = texts_of(name, tmp_path)
    batches = text_batches.train_batches(texts, "train", 8, seed=0)
    try:
      next(batches)
    finally:
      batches.close()
  assert "\n" not in str(error.value)


def test_damage_inside_and_empty_files_are_one_clear_line(tmp_path):
  root = tmp_path / "c4"
  name = documents(root, "json.gz")
  path = root / "c4-train.00002-of-00004.json.gz"
  path.write_bytes(path.read_bytes()[:-20])
  texts = texts_of(name, tmp_path)
  batches = text_batches.train_batches(texts, "train", 8, seed=0)
  with pytest.raises(ValueError, match="00002-of-00004.json.gz.*gzip"):
    take(batches, 30)
  batches.close()
  for path in root.glob("c4-train*"):
    lines(path, [])
  lines(root / "c4-train.00000-of-00004.json.gz", ["a"])
  texts = texts_of(name, tmp_path)
  batches = text_batches.train_batches(texts, "train", 8, seed=0)
  with pytest.raises(ValueError, match="expected records in it .* got none"):
    take(batches, 2)
  batches.close()


def test_other_sets_are_not_streamed(tmp_path):
  with pytest.raises(data.DataError, match="expected text:DIR or tfrecord:DIR"):
    texts_of("stdlib_text", tmp_path)
