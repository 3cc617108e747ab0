"""A thread decodes ahead: each image once, in order, and it ends cleanly."""

import concurrent.futures
import pickle
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from figs_jax.data import eval_batches, train_batches
from figs_jax.data.stream import Examples

COUNT = 200


class Source(Sequence):
  """Images whose pixels are their number; counts how often each is decoded."""

  def __init__(self, bad=None, seconds=0.0):
    self.bad, self.seconds = bad, seconds
    self.order = []

  def __len__(self):
    return COUNT

  def __getitem__(self, i):
    time.sleep(self.seconds)
    if i == self.bad:
      raise ValueError("damaged")
    self.order.append(i)
    return {"image": np.full((2, 3, 1), i, np.uint8), "label": i % 7}


def chunks(size=10):
  return np.random.default_rng(0).permutation(COUNT).reshape(-1, size)


def threads():
  return [t for t in threading.enumerate() if t.name == "decode ahead"]


def end_of_threads():
  for thread in threads():
    thread.join(10)
  assert not threads()


def test_each_image_is_decoded_once_by_any_number_of_threads():
  source = Source(seconds=1e-4)
  examples = Examples(source, (2, 3, 1))
  stop = examples.decode_ahead(iter(chunks()))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    parts = list(pool.map(examples.__getitem__, [*chunks(), *chunks(20)]))
  for (images, labels), numbers in zip(parts, [*chunks(), *chunks(20)]):
    np.testing.assert_array_equal(images[:, 0, 0, 0], numbers)
    np.testing.assert_array_equal(labels, numbers % 7)
  assert sorted(source.order) == list(range(COUNT))
  stop()
  assert not threads()
  assert examples.decode_ahead(iter(chunks())) is None


def test_images_are_decoded_in_the_order_of_reading_without_padding():
  source = Source()
  examples = Examples(source, (2, 3, 1))
  padded = np.concatenate([chunks()[3], [-1, -1]])
  assert examples.decode_ahead(iter([padded, chunks()[1]]))
  end_of_threads()
  assert source.order == [*chunks()[3], *chunks()[1]]


def test_it_stops_at_once_though_the_stream_has_no_end():
  examples = Examples(Source(seconds=1e-3), (2, 3, 1))
  endless = (np.array([0, 1]) for _ in iter(int, 1))
  stop = examples.decode_ahead(endless)
  stop()
  assert not threads()


def test_an_error_is_raised_where_the_image_is_read():
  source = Source(bad=int(chunks()[5][3]))
  examples = Examples(source, (2, 3, 1))
  examples.decode_ahead(iter(chunks()))
  end_of_threads()
  for chunk in chunks()[:5]:
    examples[chunk]
  with pytest.raises(ValueError, match="damaged"):
    examples[chunks()[5]]
  source.bad = None
  images, _ = examples[chunks()[5]]
  np.testing.assert_array_equal(images[:, 0, 0, 0], chunks()[5])
  assert sorted(source.order) == sorted(set(source.order))


def test_what_does_not_fit_into_memory_is_not_decoded_ahead():
  assert Examples(Source(), (2, 3, 1), 10).decode_ahead(iter(chunks())) is None


def test_a_copy_for_another_process_decodes_by_itself():
  examples = Examples(Source(), (2, 3, 1))
  examples._claimed[:] = True  # as if a thread was busy
  images, _ = pickle.loads(pickle.dumps(examples))[chunks()[0]]
  np.testing.assert_array_equal(images[:, 0, 0, 0], chunks()[0])


def test_no_thread_is_left_by_batches(digits_dir):
  options = {"data_dir": digits_dir}
  batches = train_batches("digits", "train", 8, seed=[0, 1], **options)
  assert not threads()
  next(batches)
  batches.close()
  assert not threads()
  next(batches)
  del batches
  assert not threads()
  passes = iter(eval_batches("digits", "test", 8, **options))
  next(passes)
  passes.close()
  assert not threads()
