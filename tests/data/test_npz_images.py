"""Arrays of one's own keep every bit, are cached, and refused by row."""

import io
import logging

import numpy as np
import pytest

from figs_jax.data import DataError, load, sources

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), np.uint8)
LABELS = np.arange(30) % 3


def read(path, split, data_dir):
  source = load(f"npz:{path}", split, data_dir=str(data_dir))
  examples = [source[i] for i in range(len(source))]
  return (
    np.stack([x["image"] for x in examples]),
    np.array([x["label"] for x in examples]),
  )


def test_every_fifth_of_a_class_is_held_out(tmp_path):
  np.savez(tmp_path / "a.npz", image=IMAGES, label=LABELS)
  held_out = np.arange(30) // 3 % 5 == 4
  for split, rows in (("train", ~held_out), ("test", held_out)):
    images, labels = read(tmp_path / "a.npz", split, tmp_path)
    np.testing.assert_array_equal(images, IMAGES[rows])
    np.testing.assert_array_equal(labels, LABELS[rows])


def test_a_test_part_and_gray_images_are_kept(tmp_path):
  np.savez_compressed(
    tmp_path / "a.npz",
    image=IMAGES[..., 0],
    label=LABELS.astype(np.uint8),
    test_image=IMAGES[:7, ..., 1],
    test_label=LABELS[:7],
  )
  images, labels = read(tmp_path / "a.npz", "test", tmp_path)
  np.testing.assert_array_equal(images, IMAGES[:7, ..., 1:2])
  np.testing.assert_array_equal(labels, LABELS[:7])
  assert len(read(tmp_path / "a.npz", "train", tmp_path)[0]) == 30


def test_a_changed_file_is_prepared_again_with_a_line(tmp_path, caplog):
  caplog.set_level(logging.INFO, "figs_jax")
  path = tmp_path / "a.npz"
  for images, lines in ((IMAGES, 0), (IMAGES, 0), (255 - IMAGES, 1)):
    np.savez(path, image=images, label=LABELS)
    np.testing.assert_array_equal(
      read(path, "train", tmp_path)[0][0], images[0]
    )
    assert len(caplog.messages) == lines


def arrays(**changes):
  values = {"image": IMAGES, "label": LABELS} | changes
  file = io.BytesIO()
  np.savez(file, **{k: v for k, v in values.items() if v is not None})
  return file.getvalue()


def single():
  file = io.BytesIO()
  np.save(file, IMAGES)
  return file.getvalue()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (arrays(label=None), "got image; add label"),
    (arrays(test_label=LABELS), "add test_image"),
    (arrays(image=IMAGES / 255), "image: expected uint8 .* got float64"),
    (arrays(image=IMAGES[..., :2]), r"got uint8 \[30, 4, 5, 2\]"),
    (arrays(label=LABELS / 2), "label: expected integers .* got float64"),
    (arrays(label=LABELS[1:]), r"of shape \[30\].* got int64 \[29\]"),
    (arrays(label=LABELS - 1), "label: row 0: expected a label .* got -1"),
    (arrays(label=LABELS + 10**9), "row 0: expected a label .* got 10{9}"),
    (arrays(label=2 * LABELS), "got none of class 1"),
    (
      arrays(test_image=IMAGES, test_label=LABELS + 2),
      "test_label: row 1: expected a label from 0 to 2, as in label, got 3",
    ),
    (
      arrays(test_image=IMAGES[:, 1:], test_label=LABELS),
      r"test_image: expected images of shape \[4, 5, 3\]",
    ),
    (
      arrays(image=IMAGES[:9], label=LABELS[:9]),
      "expected a class with at least 5 examples",
    ),
    (
      arrays(label=np.array([{}] * 30, object)),
      "label: expected an npz file of plain arrays",
    ),
    (arrays()[:-100], "expected an npz file of plain arrays"),
    (b"text", "expected an npz file of plain arrays"),
    (b"", "expected an npz file of plain arrays"),
    (single(), "holds a single array"),
  ],
)
def test_wrong_files_are_one_line(tmp_path, content, message):
  (tmp_path / "a.npz").write_bytes(content)
  with pytest.raises(DataError, match=message) as raised:
    sources.find(f"npz:{tmp_path / 'a.npz'}", data_dir=str(tmp_path / "data"))
  assert "\n" not in str(raised.value)
  assert "a.npz" in str(raised.value)
  assert not (tmp_path / "data").exists()


def test_a_missing_file_is_one_line(tmp_path):
  with pytest.raises(DataError, match="No such file"):
    sources.find(f"npz:{tmp_path / 'a.npz'}", data_dir=str(tmp_path))


def test_an_archive_whose_directory_lies_before_it_is_one_line(tmp_path):
  path = tmp_path / "a.npz"
  np.savez(path, image=IMAGES, label=LABELS)
  data = bytearray(path.read_bytes())
  data[-6:-2] = (2**31).to_bytes(4, "little")  # offset of the directory
  path.write_bytes(data)
  with pytest.raises(DataError, match="expected an npz file") as caught:
    load(f"npz:{path}", "train", data_dir=str(tmp_path))
  assert "\n" not in str(caught.value)
