"""Batches of text: resumable, shared fairly, whole in evaluation."""

import functools
import itertools
import json
import pickle
import re

import numpy as np
import pytest

from figs_jax import data
from figs_jax.data import (
  own_vocabulary,
  sources,
  text,
  text_batches,
  text_to_text,
)
from figs_jax.data.segments import segments_of
from figs_jax.data.vocabulary import EOS, byte_vocabulary
from tests.data.batches import assert_equal, take

# The matches that T5's wording leaves for each task.
WORDING = {
  "glue/cola": r"cola sentence: .*",
  "glue/sst2": r"sst2 sentence: .*",
  "glue/mrpc": r"mrpc sentence1: .* sentence2: .*",
  "glue/stsb": r"stsb sentence1: .* sentence2: .*",
  "glue/qqp": r"qqp question1: .* question2: .*",
  "glue/mnli": r"mnli hypothesis: .* premise: .*",
  "glue/qnli": r"qnli question: .* sentence: .*",
  "glue/rte": r"rte sentence1: .* sentence2: .*",
  "wmt14_translate/de-en": r"translate English to German: .*",
}


@pytest.fixture(scope="session")
def denoising(text_dir):
  return text.find_texts("stdlib_text", input_length=64, data_dir=text_dir)


@pytest.fixture
def tasks(mocked):
  return text.find_texts(
    "glue", input_length=96, target_length=16, data_dir=mocked
  )


@pytest.fixture
def streamed(mocked, monkeypatch):
  on_disk = functools.partial(segments_of, most_documents=1)
  monkeypatch.setattr(text, "segments_of", on_disk)
  return text.find_texts("c4", input_length=64, data_dir=mocked)


def texts_of(request, kind):
  return request.getfixturevalue(kind)


KINDS = ("denoising", "tasks", "streamed")


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_bit_exact(request, kind):
  texts = texts_of(request, kind)

  def make(**options):
    return text_batches.train_batches(texts, "train", 8, seed=3, **options)

  whole = take(make(), 60)  # several epochs of the small ones
  for stop in (0, 1, 29, 59):
    before = make()
    take(before, stop)
    saved = json.dumps(before.get_state())
    assert json.loads(saved) == {"next_example": 8 * stop}
    after = make(threads=2)
    take(after, 2)  # wherever it was
    after.set_state(json.loads(saved))
    assert_equal(take(after, min(3, 60 - stop)), whole[stop : stop + 3])
    before.close()
    after.close()
  assert_equal(take(make(start=5), 3), whole[5:8])
  assert not np.array_equal(whole[0]["inputs"], whole[1]["inputs"])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_equal_for_any_number_of_processes(request, kind):
  texts = texts_of(request, kind)

  def make(size, seed, **shard):
    return text_batches.train_batches(
      texts, "train", size, seed=seed, start=2, **shard
    )

  for seed in (1, [1, 2]):
    wanted = take(make(24, seed), 2)
    for count in (2, 3, 4, 8):
      shards = [
        make(24 // count, seed, shard_index=i, num_shards=count)
        for i in range(count)
      ]
      for batch in wanted:
        parts = [next(shard) for shard in shards]
        for key in batch:
          merged = np.concatenate(
            [part[key] for part in parts], axis=int(isinstance(seed, list))
          )
          np.testing.assert_array_equal(merged, batch[key])


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_have_the_streams_of_their_own(request, kind):
  texts = texts_of(request, kind)

  def make(seed):
    options = {"start": 1, "shard_index": 1, "num_shards": 2}
    return text_batches.train_batches(texts, "train", 4, seed=seed, **options)

  lone = [take(make(seed), 5) for seed in (3, 4)]
  wanted = [
    {name: np.stack([b[name] for b in pair]) for name in pair[0]}
    for pair in zip(*lone)
  ]
  several = make([3, 4])
  assert_equal(take(several, 2), wanted[:2])
  position = several.get_state()
  assert position == {"next_example": 3 * 8}
  take(several, 1)
  several.set_state(position)
  assert_equal(take(several, 3), wanted[2:])
  several.close()
  assert (wanted[0]["inputs"][0] != wanted[0]["inputs"][1]).any()


@pytest.mark.slow
def test_worker_processes_change_nothing(denoising):
  inline, workers = (
    text_batches.train_batches(
      denoising, "train", 8, seed=[3, 4], workers=count
    )
    for count in (0, 2)
  )
  assert_equal(take(workers, 5), take(inline, 5))
  workers.close()


def test_an_epoch_of_packed_segments_is_every_segment_once(text_dir):
  texts = text.find_texts(
    "stdlib_text", input_length=64, data_dir=text_dir, density=0.1
  )
  split = "train[:5]"
  segments = texts.examples(split, ordered=False)
  assert segments.cached
  wanted = sorted(tuple(s.tolist()) for s in segments)
  size = len(segments)
  batches = text_batches.train_batches(texts, split, size, seed=0)
  first, second = next(batches), next(batches)
  for batch in (first, second):
    originals = sorted(tuple(restored(texts, x)) for x in rows(batch))
    assert originals == wanted
  assert not np.array_equal(first["inputs"], second["inputs"])
  # Nothing between the segments is lost but a rest at the end.
  source = data.load("stdlib_text", split, data_dir=text_dir)
  joined = b"\x00".join(source[i]["text"] for i in range(5)) + b"\x00"
  ids = np.concatenate(list(segments))
  raw = bytes(0 if i == EOS else i - 3 for i in ids.tolist())
  assert joined.startswith(raw)
  assert len(joined) - len(raw) < segments.length


def rows(batch):
  return list(zip(batch["inputs"], batch["targets"]))


def restored(texts, row):
  """Puts the spans back; see test_span_corruption.py."""
  inputs, targets = (part[part != 0].tolist()[:-1] for part in row)
  first = texts.vocabulary.codec.size
  spans, current = {}, []
  for token in targets:
    if token >= first:
      current = spans.setdefault(token, [])
    else:
      current.append(token)
  out = []
  for token in inputs:
    out += spans.pop(token) if token >= first else [token]
  return out


@pytest.mark.parametrize("num_shards", [1, 3])
def test_evaluation_covers_every_byte_once(denoising, text_dir, num_shards):
  split = "test[:3]"
  shards = [
    text_batches.eval_batches(
      denoising, split, 16, shard_index=i, num_shards=num_shards
    )
    for i in range(num_shards)
  ]
  assert len({len(shard) for shard in shards}) == 1
  by_shard = []
  for shard in shards:
    batches = list(shard)
    assert len(batches) == len(shard)
    mine = []
    for batch in batches:
      assert batch["inputs"].shape == (16, denoising.input_length)
      assert batch["targets"].shape == (16, denoising.target_length)
      assert batch["valid"].dtype == bool
      assert not batch["inputs"][~batch["valid"]].any()
      assert not batch["targets"][~batch["valid"]].any()
      mine += list(itertools.compress(rows(batch), batch["valid"]))
    by_shard.append(mine)
    assert_equal(list(shard), batches)
  in_order = [
    restored(denoising, row)
    for group in itertools.zip_longest(*by_shard)
    for row in group
    if row is not None
  ]
  assert shards[0].num_examples == len(in_order)
  source = data.load("stdlib_text", split, data_dir=text_dir)
  encode = byte_vocabulary().encode
  wanted = np.concatenate([[*encode(x["text"].decode()), EOS] for x in source])
  got = np.concatenate(in_order)
  assert 0 <= len(wanted) - len(got) < 2  # one token cannot be corrupted
  np.testing.assert_array_equal(got, wanted[: len(got)])


def test_large_splits_stay_on_disk(text_dir):
  source = data.load("stdlib_text", "validation", data_dir=text_dir)
  encode = byte_vocabulary().encode
  for options in ({"most_documents": 3}, {"most_bytes": 1000}):
    segments = segments_of(source, 5000, encode, whole=False, **options)
    assert not segments.cached
    assert len(segments) == len(source)
    for i in range(len(source)):
      # The documents from the i-th on, round about, as one.
      follow = [source[(i + j) % len(source)]["text"] for j in range(9)]
      ids = np.concatenate([[*encode(x.decode()), EOS] for x in follow])
      alone = len(follow[0]) + 1
      np.testing.assert_array_equal(segments[i], ids[: max(5000, alone)])


def test_places_in_long_documents_are_drawn(streamed, monkeypatch):
  document = np.arange(1000, dtype=np.int32) % 256 + 3
  length = streamed.corruption.segment_length
  starts = set()
  for seed in range(40):
    row = streamed.pair(document, np.random.default_rng(seed))[:2]
    ids = restored(streamed, row)
    # Values repeat after 256, so that only the place within 256 is known.
    wanted = np.resize(document[(ids[0] - 3) :], length)
    assert ids[:100] == wanted[:100].tolist()
    starts.add(ids[0])
  assert len(starts) > 20


@pytest.mark.parametrize("name", sorted(WORDING))
def test_wording_of_every_task(mocked, name, no_network):
  texts = text.find_texts(
    name, input_length=4000, target_length=4000, data_dir=mocked
  )
  split = "validation_matched" if "mnli" in name else "validation"
  (batch,) = text_batches.eval_batches(texts, split, 20)
  source = data.load(name, split, data_dir=mocked)
  decode = texts.vocabulary.decode
  for i, (inputs, targets) in enumerate(rows(batch)):
    assert re.fullmatch(WORDING[name], decode(inputs), re.DOTALL)
    example = source[i]
    if "wmt" in name:
      assert decode(inputs).endswith(example["en"])
      assert decode(targets) == example["de"]
    elif name == "glue/stsb":
      assert abs(float(decode(targets)) - example["label"]) <= 0.1 + 1e-6
      assert re.fullmatch(r"\d\.[02468]", decode(targets))
    else:
      builder = sources.find(name, data_dir=mocked)
      label = builder.info.features["label"].int2str(example["label"])
      assert decode(targets) == label


def test_labels_are_worded_as_published():
  wanted = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qqp": ["not_duplicate", "duplicate"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
  }
  for task, labels in wanted.items():
    features = sources.find(f"glue/{task}").info.features
    assert features["label"].names == labels


def test_similarities_go_to_the_nearest_fifth(mocked):
  read = text_to_text.reader(sources.find("glue/stsb", data_dir=mocked))
  texts = {"sentence1": b"a", "sentence2": b"b", "idx": 0}
  for label, wanted in ((3.82, "3.8"), (0.0, "0.0"), (4.93, "5.0")):
    assert read(texts | {"label": np.float32(label)}) == (
      "stsb sentence1: a sentence2: b",
      wanted,
    )


def test_the_mixture_holds_every_task_in_proportion(tasks, mocked):
  assert tasks.names == text_to_text.GLUE
  examples = tasks.examples("validation", ordered=True)
  sizes = [
    len(
      data.load(
        f"glue/{name}",
        "validation_matched" if name == "mnli" else "validation",
        data_dir=mocked,
      )
    )
    for name in tasks.names
  ]
  batches = list(text_batches.eval_batches(tasks, "validation", 32))
  numbers = np.concatenate([b["task"][b["valid"]] for b in batches])
  np.testing.assert_array_equal(numbers, np.repeat(np.arange(8), sizes))
  assert len(examples) == sum(sizes)
  for i, name in enumerate(tasks.names):
    at = int(np.flatnonzero(numbers == i)[0])
    assert examples[at][0].startswith(f"{name} ")
  # Inputs are cut to fit, with their end.
  assert (batches[0]["inputs"][:, -1] <= 1).all()
  assert (batches[0]["inputs"] == 1).sum(-1).tolist() == [1] * 32


def test_hidden_labels_are_an_error(mocked):
  texts = text.find_texts(
    "glue/sst2", input_length=9, target_length=9, data_dir=mocked
  )
  hidden = [{"sentence": b"a", "label": -1, "idx": 0}]
  with pytest.raises(data.DataError, match="are hidden.*'validation'"):
    text.Tasks(texts.builders, [hidden])[0]


def test_pieces_are_trained_on_the_train_split_once(text_dir, monkeypatch):
  monkeypatch.setattr(own_vocabulary, "_TRAIN_BYTES", 20_000)
  options = {"input_length": 64, "data_dir": text_dir}
  texts = text.find_texts(
    "stdlib_text", vocabulary="sentencepiece:400", **options
  )
  assert texts.vocabulary.size == 500
  assert text.writes_nothing("stdlib_text", "sentencepiece:400", text_dir)
  assert not text.writes_nothing("stdlib_text", "sentencepiece:401", text_dir)
  monkeypatch.setattr(own_vocabulary, "train_pieces", None)
  again = text.find_texts(
    "stdlib_text", vocabulary="sentencepiece:400", **options
  )
  batch = next(text_batches.train_batches(again, "train", 4, seed=0))
  assert batch["inputs"].max() == texts.vocabulary.sentinel(0) == 499
  pickle.dumps(texts.vocabulary)


@pytest.mark.parametrize(
  ("name", "options", "error", "message"),
  [
    ("stdlib_txt", {}, data.DataError, "did you mean 'stdlib_text'"),
    ("cifar10", {}, data.DataError, "'cifar10': expected a 'text' feature"),
    ("glue/sst2", {}, ValueError, "needs a target_length"),
    ("glue/sst3", {"target_length": 4}, data.DataError, "sst3"),
    ("glue/sst2", {"target_length": 1}, ValueError, "of 2 or more"),
    ("stdlib_text", {"target_length": 9}, ValueError, "derives 14"),
    (
      "stdlib_text",
      {"mean_span": 0.1},
      ValueError,
      "mean span of 1 or more, got 0.1",
    ),
    (
      "stdlib_text",
      {"input_length": 2000, "mean_span": 1.0},
      ValueError,
      "sentinels, but the vocabulary has 125",
    ),
    ("stdlib_text", {"vocabulary": "byte"}, ValueError, "'byte': No such"),
    (
      "stdlib_text",
      {"vocabulary": "sentencepiece:many"},
      ValueError,
      "expected 'bytes', 'sentencepiece:SIZE'",
    ),
  ],
)
def test_mistakes_are_one_line(
  text_dir, no_network, name, options, error, message
):
  given = {"input_length": 64, "data_dir": text_dir, **options}
  with pytest.raises(error, match=message) as caught:
    text.find_texts(name, **given)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"shard_index": 2, "num_shards": 2}, "shard_index=2"),
    ({"start": -1}, "start=-1"),
    ({"seed": -1}, "seed=-1"),
  ],
)
def test_bad_positions_are_named(denoising, options, message):
  with pytest.raises(ValueError, match=message):
    text_batches.train_batches(denoising, "train", 8, **{"seed": 0, **options})


def test_a_missing_set_is_one_error(tmp_path, no_network):
  texts = text.find_texts(
    "wmt14_translate/de-en",
    input_length=9,
    target_length=9,
    data_dir=str(tmp_path),
  )
  with pytest.raises(data.DataError, match="is not prepared in") as error:
    text_batches.train_batches(texts, "train", 2, seed=0)
  assert "\n" not in str(error.value)
