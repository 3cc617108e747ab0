"""Several examples per row: first fit, the same losses, exact positions."""

import itertools
import json
import logging

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax import data, models
from figs_jax.data import masked_text, text_batches
from figs_jax.data.packing import COUNT, Group, Layout, Packed
from figs_jax.data.python_data import PythonData
from figs_jax.train import losses

BOTH = (Group(("inputs",), 12), Group(("targets",), 9))
ONE = (Group(("inputs", "targets"), 12),)
TYPED = (Group(("inputs", "types", "targets"), 12),)
SIZES = {"width": 16, "heads": 2, "depth": 2, "vocab": 32}
FAMILIES = {
  "t5": (BOTH, losses.teacher_forcing, {"head_dim": 8, "mlp_dim": 32}),
  "gpt2": (ONE, losses.next_token, {"length": 12}),
  "llama": (ONE, losses.next_token, {"kv_heads": 1, "mlp_dim": 32}),
  "bert": (TYPED, losses.masked_tokens, {"length": 12, "output": "tokens"}),
}


@settings(deadline=None, max_examples=60)
@given(
  sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9))),
  rows=st.integers(1, 4),
)
def test_rows_are_filled_first_fit(sizes, rows):
  examples = [
    {"inputs": np.full(a, i + 1), "targets": np.full(b, i + 1)}
    for i, (a, b) in enumerate(sizes)
  ]
  batch = Layout(BOTH, rows).batch(iter(examples))
  wanted, count = [[] for _ in range(rows)], 0
  for i, (a, b) in enumerate(sizes):
    if a:
      for row in wanted:
        if (
          sum(sizes[j][0] for j in row) + a <= 12
          and sum(sizes[j][1] for j in row) + b <= 9
        ):
          row.append(i)
          break
      else:
        break
    count += 1
  assert batch[COUNT] == count
  for at, row in enumerate(wanted):
    for axis, (name, length) in enumerate((("inputs", 12), ("targets", 9))):
      ids = [i + 1 for i in row for _ in range(sizes[i][axis])]
      segments = [
        k + 1 for k, i in enumerate(row) for _ in range(sizes[i][axis])
      ]
      rest = [0] * (length - len(ids))
      assert batch[name][at].tolist() == ids + rest
      assert batch[f"{name}_segments"][at].tolist() == segments + rest


def examples_of(groups, count, seed=0):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    example = {}
    for group in groups:
      size = rng.integers(2, 7)
      for name in group.names:
        example[name] = rng.integers(2, 32, size).astype(np.int32)
      if "types" in example:
        example["types"] = np.repeat([0, 1], [1, size - 1]).astype(np.int32)
        example["targets"][rng.random(size) < 0.5] = 0
    yield example


@pytest.mark.standard_promotion
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_rows_of_their_own(family, scan):
  groups, loss, options = FAMILIES[family]
  model = models.create(
    family, "custom", scan=scan, rngs=nnx.Rngs(1), **SIZES, **options
  )
  examples = list(examples_of(groups, 14))
  batch = Layout(groups, 4).batch(iter(examples))
  count = batch.pop(COUNT)
  assert 6 < count < 14
  alone = {
    name: np.zeros((count, group.length), np.int32)
    for group in groups
    for name in group.names
  }
  for i, example in enumerate(examples[:count]):
    for name, ids in example.items():
      alone[name][i, : len(ids)] = ids

  @nnx.jit
  def both(model, batch):
    def mean(model):
      value, _ = loss(model, batch, jax.random.key(0))
      return value.value, value

    return nnx.grad(mean, has_aux=True)(model)

  grads, packed = both(model, batch)
  wanted_grads, wanted = both(model, alone)
  assert packed.weight == wanted.weight
  np.testing.assert_allclose(packed.value, wanted.value, rtol=1e-5)
  for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads)):
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-6)
  blurred = {k: v for k, v in batch.items() if "segments" not in k}
  _, other = both(model, blurred)
  assert abs(float(other.value / wanted.value) - 1) > 1e-4


@pytest.fixture(scope="module")
def pairs():
  rng = np.random.default_rng(0)
  rows = [
    {"text": "x" * rng.integers(1, 30), "target": "y" * rng.integers(1, 9)}
    for _ in range(40)
  ]
  return PythonData((rows, rows[:5]))


@pytest.fixture
def texts(request, pairs, text_dir):
  """Whatever can be packed."""
  root = {"data_dir": text_dir}
  return {
    "pairs": lambda: data.find_texts(pairs, input_length=64, target_length=20),
    "causal pairs": lambda: data.find_causal_text(pairs, input_length=64),
    "denoising": lambda: data.find_texts(
      "stdlib_text", input_length=512, **root
    ),
    "causal": lambda: data.find_causal_text(
      "stdlib_text", input_length=512, **root
    ),
    "masked": lambda: masked_text.find_masked_texts(
      "stdlib_text", input_length=512, **root
    ),
  }[request.param]()


KINDS = ["pairs", "causal pairs", "denoising", "causal", "masked"]


@pytest.mark.parametrize("texts", KINDS, indirect=True)
def test_streams_go_on_exactly_for_any_number_of_processes(texts):
  def make(size=8, **options):
    return text_batches.train_batches(
      texts, "train", size, seed=3, pack=True, **options
    )

  first = make()
  whole, states = [], [first.get_state()]
  for _ in range(5):
    whole.append(next(first))
    states.append(json.loads(json.dumps(first.get_state())))
  counts = np.diff([state["next_example"] for state in states])
  segments = [int(batch["inputs_segments"].max(1).sum()) for batch in whole]
  assert (counts >= segments).all() and (counts >= 8).all()
  for count in (2, 4):
    shards = [
      make(8 // count, shard_index=i, num_shards=count) for i in range(count)
    ]
    for at in (0, 3):
      for shard in shards:
        shard.set_state(states[at])
      for want, state in zip(whole[at:], states[at + 1 :]):
        parts = [next(shard) for shard in shards]
        assert all(shard.get_state() == state for shard in shards)
        for name, value in want.items():
          joined = np.concatenate([part[name] for part in parts])
          np.testing.assert_array_equal(joined, value)
    for shard in shards:
      shard.close()
  # Another number of rows goes on there too, with the same examples.
  other = make(4)
  other.set_state(states[2])
  assert other.get_state() == states[2]
  begin = next(other)
  first = begin["inputs_segments"][0] == 1
  assert (begin["inputs"][0][first] == whole[2]["inputs"][0][first]).all()


def test_every_example_of_an_epoch_is_packed_once(pairs):
  texts = data.find_texts(pairs, input_length=64, target_length=20)
  batches = text_batches.train_batches(texts, "train", 4, seed=0, pack=True)
  read = []
  while batches.get_state()["next_example"] < 40:
    batch = next(batches)
    for row, segments in zip(batch["inputs"], batch["inputs_segments"]):
      read += [row[segments == i] for i in range(1, segments.max() + 1)]
  position = batches.get_state()["next_example"]
  assert len(read) == position
  got = sorted(len(ids) - 1 for ids in read)
  source = pairs.as_data_source("train")
  wanted = sorted(len(source[i]["text"]) for i in range(40))
  for size in set(wanted):
    assert got.count(size) >= wanted.count(size)


def test_padding_before_and_after_is_logged(pairs, caplog):
  caplog.set_level(logging.INFO, "figs_jax")
  layout = Layout((Group(("inputs",), 10),), 2)
  ones = ({"inputs": np.ones(n, np.int32)} for n in itertools.cycle([4, 5]))
  packed = Packed([[each] for each in itertools.islice(ones, 9)], 1, layout,
                  range(2))  # fmt: skip
  batch = next(packed)
  assert batch["inputs"].sum(1).tolist() == [9, 9]
  assert (
    "packing: 2.0 examples per row, padding 55.0 % -> 10.0 %" in caplog.text
  )


def test_what_cannot_be_packed_is_one_line(pairs):
  def make(texts, **options):
    options = {"seed": 0, **options}
    return text_batches.train_batches(texts, "train", 2, pack=True, **options)

  rows = [{"text": "so", "label": i % 2} for i in range(10)]
  labelled = masked_text.find_masked_texts(
    PythonData((rows, rows)), input_length=8
  )
  with pytest.raises(ValueError, match="data.pack: expected texts whose"):
    make(labelled)
  texts = data.find_texts(pairs, input_length=64, target_length=20)
  for wrong in ({"seed": [0, 1]}, {"start": 1}):
    with pytest.raises(ValueError, match="Expected one seed and start=0"):
      make(texts, **wrong)
  empty = Layout((Group(("inputs",), 4),), 1)
  nothing = ({"inputs": np.zeros(0, np.int32)} for _ in itertools.count())
  with pytest.raises(ValueError, match="got 100000 without any"):
    empty.batch(nothing)


@pytest.mark.parametrize("family", ["t5", "gpt2", "bert"])
def test_models_refuse_what_has_no_meaning(family):
  options = FAMILIES[family][2]
  if family == "t5":
    pytest.skip("takes any segments")
  if family == "bert":
    options = options | {"output": "classes"}
  model = models.create(family, "custom", rngs=nnx.Rngs(1), **SIZES, **options)
  ids = np.ones((1, 4), np.int32)
  with pytest.raises(ValueError, match="segment|packed"):
    model(ids, ids > 0 if family == "gpt2" else ids * 0, ids)
