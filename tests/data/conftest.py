"""Digits and text prepared once; other sets as tfds would find them.

The stand-ins are metadata on disk plus tfds's own mock of the reader, so our
code runs unchanged: it finds a prepared data set and reads it by name.
"""

import contextlib
import unittest.mock

import pytest
import tensorflow_datasets as tfds
import tensorflow_datasets.text
import tensorflow_datasets.translate

from figs_jax.data import digits, stdlib_text

_GLUE = {"train": 40, "validation": 20, "test": 20}
SPLITS = {
  "cifar10": {"train": 60, "test": 20},
  "imagenet2012": {"train": 60, "validation": 20, "test": 20},
  "c4/en": {"train": 20, "validation": 20},
  "wmt14_translate/de-en": {"train": 20, "validation": 20, "test": 20},
  "glue/mnli": {"train": 40, "validation_matched": 20},
  **{
    f"glue/{task}": _GLUE
    for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")
  },
}
MOCKED_LENGTH = 20


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  digits.prepare(str(root))
  return str(root)


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  stdlib_text.prepare(str(root))
  return str(root)


def _write_metadata(root, name, file_format="array_record"):
  """What `download_and_prepare` writes, without examples."""
  builder = tfds.builder(name, data_dir=root, file_format=file_format)
  builder.info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.splits.SplitInfo(
          name=split,
          shard_lengths=[count],
          num_bytes=0,
          filename_template=tfds.core.ShardedFileTemplate(
            dataset_name=builder.name,
            data_dir=builder.data_dir,
            split=split,
            filetype_suffix=file_format,
          ),
        )
        for split, count in SPLITS[name].items()
      ]
    )
  )
  builder.data_path.mkdir(parents=True)
  builder.info.write_to_directory(builder.data_dir)


@pytest.fixture
def write_metadata():
  return _write_metadata


@pytest.fixture(scope="session")
def metadata_dir(tmp_path_factory):
  root = str(tmp_path_factory.mktemp("metadata"))
  for name in SPLITS:
    _write_metadata(root, name)
  return root


@pytest.fixture
def mocked(metadata_dir):
  """The directory of prepared, mocked data sets of `SPLITS`."""
  with tfds.testing.mock_data(
    num_examples=MOCKED_LENGTH,
    policy=tfds.testing.MockPolicy.USE_FILES,
    data_dir=metadata_dir,
  ):
    yield metadata_dir


@pytest.fixture
def no_network():
  """Any attempt to connect fails the test."""
  with contextlib.ExitStack() as stack:
    for name in ("socket.socket.connect", "socket.getaddrinfo"):
      stack.enter_context(
        unittest.mock.patch(
          name, side_effect=AssertionError("the network was touched")
        )
      )
    yield
