"""Names become examples or one line that says what to do; never a download."""

import time
import unittest.mock

import pytest
import tensorflow_datasets as tfds

from figs_jax import data
from figs_jax.data import sources


def test_digits_needs_no_preparation(tmp_path, no_network):
  source = data.load("digits", "train", data_dir=str(tmp_path))
  assert len(source) == 1442
  assert source[0]["image"].shape == (8, 8, 1)
  assert source[0]["label"] == 0


def test_slices_and_sums_of_splits(digits_dir):
  def length(split):
    return len(data.load("digits", split, data_dir=digits_dir))

  assert length("train[:90%]") + length("train[90%:]") == 1442
  assert length("train+test") == 1797
  assert length("test[:7]") == 7


def test_descriptions_need_no_images(digits_dir, metadata_dir, no_network):
  assert data.describe("digits", data_dir=digits_dir) == data.Description(
    "digits", 10, (8, 8, 1), {"train": 1442, "test": 355}
  )
  described = data.describe("imagenet2012", data_dir=metadata_dir)
  assert (described.num_classes, described.image_shape) == (
    1000,
    (None, None, 3),
  )
  assert described.splits == {"train": 60, "validation": 20, "test": 20}


def test_an_unprepared_set_can_be_described(tmp_path, no_network):
  described = data.describe("cifar10", data_dir=str(tmp_path))
  assert described == data.Description("cifar10", 10, (32, 32, 3), {})


def test_mocked_sets_go_through_the_same_path(mocked, no_network):
  source = data.load("cifar10", "train", data_dir=mocked)
  assert source[3]["image"].shape == (32, 32, 3)
  assert 0 <= source[3]["label"] < 10


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012"])
def test_a_missing_set_is_one_error_at_once(tmp_path, no_network, name):
  start = time.monotonic()
  with pytest.raises(data.DataError) as caught:
    data.load(name, "train", data_dir=str(tmp_path))
  assert time.monotonic() - start < 20
  message = str(caught.value)
  for part in (name, str(tmp_path), "data_dir", "download=True"):
    assert part in message
  assert "\n" not in message
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("name", "split", "parts"),
  [
    ("cifar1O", "train", ["cifar1O", "did you mean 'cifar10'?"]),
    ("digit", "train", ["did you mean 'digits'?"]),
    ("not a name!", "train", ["not a name!"]),
    ("cifar10:99.0.0", "train", ["99.0.0"]),
    ("digits", "tests", ["unknown split 'tests'", "did you mean 'test'?"]),
    ("digits", "train+val", ["unknown split 'val'", "test, train"]),
    ("digits", "train[:", ["train[:", "train[:90%]"]),
    ("digits", "train[:0%]", ["train[:0%]"]),
  ],
)
def test_mistakes_are_named(digits_dir, no_network, name, split, parts):
  with pytest.raises(data.DataError) as caught:
    data.load(name, split, data_dir=digits_dir)
  for part in parts:
    assert part in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_set_without_images_is_refused(tmp_path):
  with pytest.raises(data.DataError, match="lm1b.*features 'image'.*got text"):
    data.describe("lm1b", data_dir=str(tmp_path))


def test_a_half_prepared_set_is_an_error(tmp_path, write_metadata):
  write_metadata(str(tmp_path), "cifar10")
  (info,) = tmp_path.glob("cifar10/*/dataset_info.json")
  info.unlink()
  for download in (False, True):
    with pytest.raises(data.DataError, match="incomplete; delete"):
      data.load("cifar10", "train", data_dir=str(tmp_path), download=download)


def test_missing_files_are_an_error(metadata_dir):
  with pytest.raises(data.DataError, match="damaged files"):
    data.load("cifar10", "train", data_dir=metadata_dir)


def test_a_format_without_random_access_is_named(tmp_path, write_metadata):
  write_metadata(str(tmp_path), "cifar10", "tfrecord")
  with pytest.raises(data.DataError, match="stored as tfrecord.*array_record"):
    data.load("cifar10", "train", data_dir=str(tmp_path))


def test_download_prepares_array_record_off_stdout(
  tmp_path, capfd, write_metadata
):
  def prepare(builder, *, file_format):
    print("chatter")
    write_metadata(str(tmp_path), builder.name, file_format)

  with unittest.mock.patch.object(
    tfds.core.DatasetBuilder, "download_and_prepare", prepare
  ):
    builder = sources.find("cifar10", data_dir=str(tmp_path), download=True)
    sources.find("cifar10", data_dir=str(tmp_path), download=True)
  assert builder.info.splits["train"].num_examples == 60
  assert builder.info.file_format.value == "array_record"
  captured = capfd.readouterr()
  assert captured.out == ""
  assert captured.err.count("chatter") == 1


def test_the_default_directory_follows_the_environment(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(data.DataError, match=str(tmp_path)):
    data.load("cifar10", "train")
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  with pytest.raises(data.DataError, match="home/tensorflow_datasets"):
    data.load("cifar10", "train")


def test_an_unwritable_directory_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(data.DataError, match="data_dir"):
    data.load("digits", "train", data_dir=str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["huggingface:mnist", "ns:cifar10"])
def test_a_namespace_is_not_looked_up(tmp_path, no_network, name):
  with pytest.raises(data.DataError, match="not on this machine.*--download"):
    sources.find(name, data_dir=str(tmp_path))


def test_a_feature_class_of_others_is_not_imported(tmp_path, write_metadata):
  write_metadata(str(tmp_path), "cifar10")
  (path,) = tmp_path.glob("cifar10/*/features.json")
  sound = path.read_text()
  sources.find("cifar10", data_dir=str(tmp_path))
  for old in ("class_label_feature.ClassLabel", "features_dict.FeaturesDict"):
    path.write_text(sound.replace(old, "absent.Kind"))
    with pytest.raises(data.DataError, match="features.json.*absent.Kind"):
      sources.find("cifar10", data_dir=str(tmp_path))
  path.write_text("[" * 10**5)
  with pytest.raises(data.DataError, match="features.json"):
    sources.find("cifar10", data_dir=str(tmp_path))
