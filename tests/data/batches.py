"""What tests of data share: some batches of a stream, and their equality."""

import itertools

import numpy as np


def take(batches, count):
  return list(itertools.islice(batches, count))


def assert_equal(got, wanted):
  for a, b in zip(got, wanted, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])
