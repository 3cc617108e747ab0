"""The stream: a permutation per epoch, resumable to the bit, shared fairly."""

import itertools
import json
import pickle

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax import data
from figs_jax.data.stream import Examples, Order, Shard
from tests.data.batches import assert_equal, take


@pytest.fixture
def make(request, digits_dir):
  """Every way in which batches are made: vectorised, cached, streamed."""

  def make(kind, **options):
    name, fixed = {
      "vectorised": ("digits", {"augment": "standard"}),
      "cached": ("digits", {"augment": "rand-m15-n2"}),
      "cifar10": ("cifar10", {"augment": "standard"}),
      "streamed": (
        "imagenet2012",
        {"augment": "rand-m15-n2", "image_size": 24},
      ),
    }[kind]
    # The mock would serve noise for digits too.
    real = name == "digits"
    root = digits_dir if real else request.getfixturevalue("mocked")
    options = {"seed": 3, "data_dir": root, **fixed, **options}
    size = options.pop("batch_size", 8)
    return data.train_batches(name, "train", size, **options)

  return make


KINDS = ("vectorised", "cached", "cifar10", "streamed")


@settings(deadline=None, max_examples=60)
@given(
  count=st.integers(1, 40),
  rows=st.integers(1, 9),
  num_shards=st.integers(1, 8),
  start=st.integers(0, 3),
  seed=st.integers(0, 2**63 - 1),
)
def test_shards_are_blocks_of_each_batch(count, rows, num_shards, start, seed):
  order = grain.MapDataset.source(Order(count, 1, seed))
  shards = [
    iter(Shard(order, rows, i, num_shards, start)) for i in range(num_shards)
  ]
  size = rows * num_shards
  for batch in range(start, start + 3):
    got = [next(shard)[0] for shard in shards for _ in range(rows)]
    places = range(batch * size, (batch + 1) * size)
    assert got == [order[place][0] for place in places]
  epochs = np.array([order[i][0] for i in range(2 * count)]).reshape(2, -1)
  assert (np.sort(epochs) == np.arange(count)).all()


def test_epochs_and_seeds_differ():
  def epoch(seed, number):
    order = Order(50, 50, seed)
    return order[number].tolist()

  orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)]
  for a, b in itertools.combinations(orders, 2):
    assert a != b


@pytest.mark.parametrize("seed", [3, [3, 4]])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_draws_are_equal_for_any_number_of_processes(kind, seed, make):
  axis = int(isinstance(seed, list))
  wanted = take(make(kind, batch_size=24, seed=seed), 2)
  for count in (2, 3, 4, 8):
    shards = [
      take(
        make(kind, batch_size=24 // count, seed=seed, shard_index=i,
             num_shards=count),
        2,
      )
      for i in range(count)
    ]  # fmt: skip
    joined = [
      {
        name: np.concatenate([part[name] for part in parts], axis)
        for name in parts[0]
      }
      for parts in zip(*shards)
    ]
    assert_equal(joined, wanted)


def test_draws_of_an_image_do_not_depend_on_the_batch_size(digits_dir):
  """Neither in one batch nor in the next, and no two images share them."""
  options = {"seed": 0, "data_dir": digits_dir}
  sizes = (5, 20)
  small, large = (
    np.concatenate(
      [
        batch["image"]
        for batch in take(
          data.train_batches("digits", "train", size, **options), 40 // size
        )
      ]
    )
    for size in sizes
  )
  np.testing.assert_array_equal(small, large)
  places = [
    np.random.Generator(np.random.Philox(key=[0, 1], counter=i)).random(4)
    for i in range(3)
  ]
  whole = np.random.Generator(np.random.Philox(key=[0, 1], counter=0))
  np.testing.assert_array_equal(places, whole.random((3, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_have_the_streams_of_their_own(kind, make):
  """As single seeds read them, also in a shard and from a position on."""
  for shard in ({}, {"shard_index": 1, "num_shards": 2}):
    several = make(kind, seed=[3, 4], **shard)
    lone = [take(make(kind, seed=seed, **shard), 7) for seed in (3, 4)]
    wanted = [
      {name: np.stack([b[name] for b in pair]) for name in pair[0]}
      for pair in zip(*lone)
    ]
    assert_equal(take(several, 2), wanted[:2])
    position = several.get_state()
    assert position == {"next_example": 2 * 8 * shard.get("num_shards", 1)}
    take(several, 3)
    several.set_state(position)
    assert_equal(take(several, 5), wanted[2:])  # from the first epoch on
    several.close()
  assert (wanted[0]["image"][0] != wanted[0]["image"][1]).any()


def test_one_seed_in_a_list_has_its_axis_and_none_is_an_error(make):
  (batch,) = take(make("vectorised", seed=[3]), 1)
  assert batch["image"].shape == (1, 8, 8, 8, 1)
  for seed in ([], [3, -1]):
    with pytest.raises(ValueError, match="one seed"):
      make("vectorised", seed=seed)


def test_many_seeds_draw_each_permutation_once(monkeypatch):
  drawn = []
  generator = np.random.Generator
  monkeypatch.setattr(
    np.random, "Generator", lambda bits: drawn.append(0) or generator(bits)
  )
  orders = [Order(12, 4, seed) for seed in range(20)]
  for i in range(6):
    for order in orders:
      order[i]
  assert len(drawn) == 20 * 2  # epochs
  assert pickle.loads(pickle.dumps(orders[3])) == orders[3]


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_is_bit_exact(kind, make):
  whole = take(make(kind), 12)
  for stop in (0, 1, 5, 11):
    before = make(kind)
    take(before, stop)
    saved = json.dumps(before.get_state())
    assert json.loads(saved) == {"next_example": 8 * stop}
    after = make(kind)
    take(after, 2)  # wherever it was
    after.set_state(json.loads(saved))
    assert_equal(take(after, 12 - stop), whole[stop:])
    before.close()
    after.close()
  started = make(kind, start=5)
  assert started.get_state() == {"next_example": 8 * 5}
  assert_equal(take(started, 7), whole[5:])
  started.close()


def test_random_augmentation_differs_from_batch_to_batch(digits_dir):
  # One batch of the whole split: equal images, were it not for the crops.
  batches = data.train_batches(
    "digits", "train[:32]", 32, seed=0, data_dir=digits_dir
  )
  first, second = (
    np.sort(batch["image"].reshape(32, -1).sum(axis=1))
    for batch in take(batches, 2)
  )
  assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["cached", "streamed"])
def test_threads_change_nothing(kind, make):
  one = make(kind, threads=1)
  many = make(kind, threads=8)
  assert_equal(take(one, 6), take(many, 6))
  one.close()
  many.close()


@pytest.mark.slow
def test_worker_processes_change_nothing(make):
  inline = make("cached", seed=[3, 4])
  workers = make("cached", seed=[3, 4], workers=2)
  assert_equal(take(workers, 5), take(inline, 5))
  state = workers.get_state()
  workers.close()
  inline.set_state(state)
  assert inline.get_state() == {"next_example": 8 * 5}


@pytest.mark.parametrize("kind", ["vectorised", "cached"])
def test_a_position_counts_examples(kind, digits_dir, caplog):
  """It holds for another batch size and another number of shards."""
  augment = {"vectorised": "standard", "cached": "rand-m15-n2"}[kind]

  def make(size, **shard):
    options = {"seed": 3, "augment": augment, "data_dir": digits_dir}
    return data.train_batches("digits", "train", size, **options, **shard)

  def labels(batches, count):
    return np.concatenate([batch["label"] for batch in take(batches, count)])

  whole = labels(make(64), 15)
  before = make(32, num_shards=2)
  take(before, 10)
  assert before.get_state() == {"next_example": 640}
  for size in (32, 128, 64):
    after = make(size)
    after.set_state(before.get_state())
    assert after.get_state() == {"next_example": 640}
    read = labels(after, 256 // size)
    np.testing.assert_array_equal(read, whole[640 : 640 + len(read)])
  assert not caplog.text
  after = make(96)
  after.set_state(before.get_state())
  assert after.get_state() == {"next_example": 576}
  np.testing.assert_array_equal(labels(after, 1), whole[576 : 576 + 96])
  assert "batches of 96 do not divide the 640" in caplog.text
  assert "the last 64 of them are read again" in caplog.text


def test_grain_checkpoints_hold_the_position(tmp_path, make):
  batches = make("vectorised")
  take(batches, 4)
  with ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(data=grain.checkpoint.CheckpointHandler())
  ) as checkpointer:
    checkpointer.save(
      tmp_path / "saved",
      ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)),
    )
    restored = make("vectorised")
    checkpointer.restore(
      tmp_path / "saved",
      ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)),
    )
  assert_equal(take(restored, 3), take(batches, 3))


def test_batches_are_normalised_arrays_of_fixed_types(digits_dir):
  (batch,) = take(
    data.train_batches(
      "digits", "train", 1442, seed=0, augment="none", data_dir=digits_dir
    ),
    1,
  )
  assert batch.keys() == {"image", "label"}
  assert (batch["image"].dtype, batch["label"].dtype) == (np.float32, np.int32)
  assert batch["image"].shape == (1442, 8, 8, 1)
  source = data.load("digits", "train", data_dir=digits_dir)
  pixels = np.stack([source[i]["image"] for i in range(1442)])
  order = Order(1442, 1442, 0)[0]
  np.testing.assert_allclose(
    batch["image"], pixels[order].astype(np.float64) / 127.5 - 1, atol=1e-6
  )
  np.testing.assert_array_equal(
    batch["label"], [source[int(i)]["label"] for i in order]
  )


@pytest.mark.parametrize(
  ("name", "size", "shape"),
  [
    ("cifar10", None, (4, 32, 32, 3)),
    ("cifar10", 48, (4, 48, 48, 3)),
    ("imagenet2012", None, (4, 224, 224, 3)),
    ("imagenet2012", 32, (4, 32, 32, 3)),
  ],
)
def test_named_sets_come_in_the_size_asked_for(
  mocked, no_network, name, size, shape
):
  batches = data.train_batches(
    name, "train", 4, seed=0, image_size=size, data_dir=mocked
  )
  batch = next(batches)
  batches.close()
  assert batch["image"].shape == shape
  assert np.abs(batch["image"]).max() <= 1
  split = "validation" if name == "imagenet2012" else "test"
  evaluation = data.eval_batches(
    name, split, 4, image_size=size, data_dir=mocked
  )
  assert next(iter(evaluation))["image"].shape == shape


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_evaluation_is_one_padded_pass(digits_dir, num_shards):
  source = data.load("digits", "test", data_dir=digits_dir)
  wanted = [source[i]["label"] for i in range(len(source))]
  shards = [
    data.eval_batches(
      "digits",
      "test",
      50,
      shard_index=i,
      num_shards=num_shards,
      data_dir=digits_dir,
    )
    for i in range(num_shards)
  ]
  assert len({len(shard) for shard in shards}) == 1
  by_shard = []
  for shard in shards:
    batches = list(shard)
    assert shard.num_examples == 355
    assert len(batches) == len(shard)
    for batch in batches:
      assert batch["image"].shape == (50, 8, 8, 1)
      assert batch["valid"].dtype == bool
      assert not batch["image"][~batch["valid"]].any()
      assert not batch["label"][~batch["valid"]].any()
    by_shard.append(
      np.concatenate([b["label"][b["valid"]] for b in batches]).tolist()
    )
  assert sum(map(len, by_shard)) == 355
  interleaved = itertools.zip_longest(*by_shard)
  assert [x for row in interleaved for x in row if x is not None] == wanted


@pytest.mark.parametrize(
  ("name", "split", "size", "root"),
  [
    ("digits", "test", None, "digits_dir"),
    ("imagenet2012", "validation", 16, "mocked"),
  ],
)
def test_evaluation_can_be_repeated(request, name, split, size, root):
  root = request.getfixturevalue(root)
  evaluation = data.eval_batches(name, split, 8, image_size=size, data_dir=root)
  first = list(evaluation)
  assert sum(b["valid"].sum() for b in first) == evaluation.num_examples
  assert_equal(list(evaluation), first)


def test_hidden_labels_are_an_error():
  hidden = [{"image": np.zeros((2, 2, 1), np.uint8), "label": -1}] * 2
  for limit in (0, 1000):
    with pytest.raises(data.DataError, match="label -1.*are hidden"):
      Examples(hidden, (2, 2, 1), limit)[np.arange(2)]


@pytest.mark.parametrize("limit", [0, 2**20])
def test_labels_outside_of_the_classes_are_an_error(limit):
  image = np.zeros((2, 2, 1), np.uint8)
  source = [{"image": image, "label": label} for label in (2, 3)]
  examples = Examples(source, (2, 2, 1), limit, classes=3)
  assert examples[np.array([0])][1].tolist() == [2]
  with pytest.raises(data.DataError, match="example 1 has label 3; .* 0 to 2"):
    examples[np.arange(2)]


def test_examples_travel_to_worker_processes(digits_dir):
  examples = Examples(
    data.load("digits", "test", data_dir=digits_dir), (8, 8, 1)
  )
  again = pickle.loads(pickle.dumps(examples))
  for a, b in zip(examples[np.arange(5)], again[np.arange(5)]):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"augment": "rand"}, "rand-m15-n2"),
    ({"augment": "flip"}, "expected 'none', 'standard'"),
    ({"shard_index": 2, "num_shards": 2}, "shard_index=2"),
    ({"start": -1}, "start=-1"),
    ({"seed": -1}, "seed=-1"),
  ],
)
def test_bad_arguments_are_named(digits_dir, options, message):
  with pytest.raises(ValueError, match=message):
    data.train_batches(
      "digits", "train", 8, **{"seed": 0, "data_dir": digits_dir, **options}
    )


@pytest.mark.parametrize(
  "state", [{}, {"next_example": -1}, {"next_example": "3"}, {"next_batch": 3}]
)
def test_a_foreign_state_is_refused(make, state):
  with pytest.raises(ValueError, match="next_example"):
    make("vectorised").set_state(state)
