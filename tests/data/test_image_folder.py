"""Folders of images: every mode of pixels, cached, and refused by file."""

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from figs_jax.data import DataError, image_folder, load, sources
from figs_jax.data.opened import Options

from . import datasets_oracle

RNG = np.random.default_rng(0)


def pixels(channels=3, size=(4, 5)):
  shape = size if channels == 1 else (*size, channels)
  return RNG.integers(0, 256, shape, np.uint8)


def make(root, counts, suffix=".png", **options):
  """Folders of images; returns their pixels by class, in order."""
  held = {}
  for name, count in counts.items():
    (root / name).mkdir(parents=True)
    held[name] = [pixels(**options) for _ in range(count)]
    for i, image in enumerate(held[name]):
      Image.fromarray(image).save(root / name / f"{i}{suffix}")
  return held


def read(root, split, data_dir, **options):
  builder = sources.find(
    f"folder:{root}", data_dir=str(data_dir), options=Options(**options)
  )
  source = sources.source_of(builder, split)
  examples = [source[i] for i in range(len(source))]
  return [x["image"] for x in examples], [int(x["label"]) for x in examples]


def find(root, **options):
  data_dir = str(root / ".data")
  name = f"folder:{root}"
  return sources.find(name, data_dir=data_dir, options=Options(**options))


def test_every_fifth_of_a_class_is_held_out(tmp_path):
  held = make(tmp_path / "a", {"dog": 6, "cat": 11})
  (tmp_path / "a/cat/.DS_Store").write_bytes(b"x")
  (tmp_path / "a/dog/Thumbs.db").write_bytes(b"x")
  (tmp_path / "a/README.txt").write_text("about")
  # 10.png comes before 2.png.
  cats = [held["cat"][i] for i in (0, 1, 10, *range(2, 10))]
  for split, chosen, labels in (
    ("train", [*cats[:4], *cats[5:9], cats[10]], [0] * 9 + [1] * 5),
    ("test", [cats[4], cats[9]], [0, 0, 1]),
  ):
    dogs = [
      x for i, x in enumerate(held["dog"]) if (i == 4) == (split == "test")
    ]
    images, got = read(tmp_path / "a", split, tmp_path)
    np.testing.assert_array_equal(images, chosen + dogs)
    assert got == labels
  info = sources.describe(f"folder:{tmp_path}/a/", data_dir=str(tmp_path))
  assert (info.num_classes, info.image_shape) == (2, (4, 5, 3))


@pytest.mark.parametrize("second", ["test", "val"])
def test_folders_named_as_splits_are_the_splits(tmp_path, second):
  train = make(tmp_path / "a/train", {"1": 2, "0": 3})
  test = make(tmp_path / f"a/{second}", {"1": 1})
  images, labels = read(tmp_path / "a", "train", tmp_path)
  np.testing.assert_array_equal(images, train["0"] + train["1"])
  assert labels == [0, 0, 0, 1, 1]
  split = {"val": "validation"}.get(second, second)
  images, labels = read(tmp_path / "a", split, tmp_path)
  np.testing.assert_array_equal(images, test["1"])
  assert labels == [1]


def test_a_class_may_be_called_train(tmp_path):
  make(tmp_path, {"train": 5, "plane": 1})
  assert find(tmp_path).info.features["label"].names == ["plane", "train"]


def saved(image, root, name="a/0.png", **options):
  (root / name).parent.mkdir(parents=True, exist_ok=True)
  image.save(root / name, **options)


def check_pixels(root, tmp_path, wanted):
  """The first image of class a, beside gray ones or, with RGB, colored ones."""
  channels = wanted.shape[-1]
  make(root, {"b": 5}, channels=channels, size=wanted.shape[:2])
  images, _ = read(root, "train", tmp_path)
  np.testing.assert_array_equal(images[0], wanted)


def test_sixteen_bits_keep_the_higher_eight(tmp_path):
  deep = RNG.integers(0, 65536, (4, 5), np.uint16)
  saved(Image.fromarray(deep), tmp_path / "x")
  check_pixels(tmp_path / "x", tmp_path, (deep // 256)[..., None])


def test_bits_and_gray_with_alpha_stay_gray(tmp_path):
  bits = pixels(1) > 127
  saved(Image.fromarray(bits), tmp_path / "x")
  check_pixels(tmp_path / "x", tmp_path, 255 * bits[..., None])
  half = np.stack([pixels(1), np.full((4, 5), 255, np.uint8)], -1)
  half[0, :, 1] = 0
  saved(Image.fromarray(half, "LA"), tmp_path / "y")
  wanted = half[..., :1].copy()
  wanted[0] = 255
  check_pixels(tmp_path / "y", tmp_path, wanted)


def test_colors_are_three_channels_over_white(tmp_path):
  color = pixels(4)
  color[..., 3] = 255
  color[1, 1, 3] = 0
  wanted = color[..., :3].copy()
  wanted[1, 1] = 255
  saved(Image.fromarray(color), tmp_path / "x")
  check_pixels(tmp_path / "x", tmp_path, wanted)


def test_palettes_are_three_channels(tmp_path):
  palette = Image.fromarray(pixels(1) % 4, "P")
  palette.putpalette([0, 0, 0, 9, 8, 7, 200, 100, 0, 255, 255, 255])
  wanted = np.asarray(palette.convert("RGB"))
  saved(palette, tmp_path / "x")
  check_pixels(tmp_path / "x", tmp_path, wanted)
  transparent = wanted.copy()
  transparent[np.asarray(palette) == 1] = 255
  saved(palette, tmp_path / "y", transparency=1)
  check_pixels(tmp_path / "y", tmp_path, transparent)


def test_gray_images_beside_colored_ones_get_three_channels(tmp_path):
  gray = pixels(1)
  saved(Image.fromarray(gray), tmp_path / "x")
  check_pixels(tmp_path / "x", tmp_path, np.stack([gray] * 3, -1))


def test_photos_are_stored_as_they_are_and_turned_upright(tmp_path):
  image = Image.fromarray(pixels(3, (8, 16)))
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees
  saved(image, tmp_path / "x", "a/0.jpg")
  saved(image.transpose(Image.Transpose.ROTATE_90), tmp_path / "x", "b/0.jpg",
        exif=exif)  # fmt: skip
  for i in range(5):
    saved(image, tmp_path / "x", f"c/{i}.jpg")
  opened = image_folder.open_folder(tmp_path / "x", Options())
  first, second = [x["image"] for x in opened.examples()["train"]][:2]
  assert first == (tmp_path / "x/a/0.jpg").read_bytes()
  assert second[:4] == b"\x89PNG"
  images, _ = read(tmp_path / "x", "train", tmp_path)
  assert {x.shape for x in images} == {(8, 16, 3)}
  lossy = np.abs(images[0].astype(int) - images[1]).mean()
  assert lossy < 40  # unrelated noise differs by 85


def test_mixed_sizes_need_leave(tmp_path):
  saved(Image.fromarray(pixels(1, (6, 7))), tmp_path / "x")
  make(tmp_path / "x", {"b": 6}, channels=1)
  line = r"b/0.png: expected 7 x 6 pixels, as in .*a/0.png, got 5 x 4; .*=True"
  with pytest.raises(DataError, match=line):
    find(tmp_path / "x")
  images, _ = read(tmp_path / "x", "train", tmp_path, mixed_sizes=True)
  assert [x.shape for x in images] == [(6, 7, 1)] + [(4, 5, 1)] * 5
  with pytest.raises(DataError, match=line):  # although it is prepared now
    find(tmp_path / "x")
  info = sources.describe_builder(find(tmp_path / "x", mixed_sizes=True))
  assert info.image_shape == (None, None, 1)


def test_a_changed_folder_is_prepared_again_with_a_line(tmp_path, caplog):
  caplog.set_level(logging.INFO, "figs_jax")
  held = make(tmp_path / "x", {"a": 5, "b": 2})
  changed = 255 - held["b"][1]
  for lines in (0, 0):
    assert len(read(tmp_path / "x", "train", tmp_path)[0]) == 6
    assert len(caplog.messages) == lines
  saved(Image.fromarray(changed), tmp_path / "x", "b/1.png")
  images, _ = read(tmp_path / "x", "train", tmp_path)
  np.testing.assert_array_equal(images[-1], changed)
  assert len(caplog.messages) == 1
  os.rename(tmp_path / "x/b/1.png", tmp_path / "x/b/-1.png")  # another order
  images, _ = read(tmp_path / "x", "train", tmp_path)
  np.testing.assert_array_equal(images[-2], changed)
  assert len(caplog.messages) == 2


def test_links_to_files_and_classes_are_followed(tmp_path):
  held = make(tmp_path / "x", {"a": 5, "b": 2})
  (tmp_path / "y/a").mkdir(parents=True)
  for i in range(5):
    (tmp_path / f"y/a/{i}.png").symlink_to(tmp_path / f"x/a/{i}.png")
  (tmp_path / "y/b").symlink_to(tmp_path / "x/b")
  images, _ = read(tmp_path / "y", "train", tmp_path)
  np.testing.assert_array_equal(images, held["a"][:4] + held["b"])


def empty_class(root):
  (root / "c").mkdir()


def only_litter(root):
  empty_class(root)
  (root / "c/.DS_Store").touch()


def text_file(root):
  (root / "b/notes.txt").write_text("cats")


def truncated(root):
  (root / "b/1.png").write_bytes((root / "b/1.png").read_bytes()[:-30])


def floats(root):
  saved(Image.fromarray(np.zeros((4, 5), np.float32)), root, "b/9.tiff")


def beside(root):
  os.rename(root / "b/1.png", root / "1.png")


def pipe(root):
  os.mkfifo(root / "b/9.png")


def loop(root):
  (root / "b/up").symlink_to(root)


def broken_link(root):
  (root / "b/9.png").symlink_to(root / "nowhere")


def one_class(root):
  os.rename(root / "b", root.parent / "elsewhere")


def too_few(root):
  os.unlink(root / "a/4.png")


def new_class(root):
  make(root / "train", {"a": 1, "b": 1})
  make(root / "test", {"z": 1})


def split_without_classes(root):
  for name in "ab":
    os.rename(root / name, root.parent / name)
  make(root / "train", {"a": 1, "b": 1})
  (root / "test").mkdir()
  (root / "val").mkdir()
  saved(Image.fromarray(pixels()), root, "test/0.png")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (empty_class, "x/c: expected images of class c, got an empty folder"),
    (only_litter, "x/c: expected images of class c, got an empty folder"),
    (text_file, "b/notes.txt: expected an image, .*cannot identify image file"),
    (truncated, "b/1.png: expected an image, .* Pillow cannot read"),
    (floats, "b/9.tiff: expected an image of 8 or 16 bits .* mode F"),
    (beside, "x/1.png: expected images in class folders, got one beside them"),
    (pipe, "b/9.png: expected an image, got no regular file"),
    (loop, "b/up: expected a folder of images, got a link"),
    (broken_link, "No such file.*b/9.png"),
    (one_class, "x: expected two or more class folders, got a;"),
    (too_few, "x: expected a class with at least 5 examples.* got 4"),
    (new_class, "expected no folders beside those of the splits .* got a;"),
    (split_without_classes, "test/0.png: expected images in class folders"),
  ],
)
def test_wrong_folders_are_one_line(tmp_path, spoil, message):
  make(tmp_path / "x", {"a": 5, "b": 2})
  spoil(tmp_path / "x")
  with pytest.raises(DataError, match=message) as raised:
    sources.find(f"folder:{tmp_path}/x", data_dir=str(tmp_path / "data"))
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "data").exists()


def test_unknown_classes_of_a_test_part_and_two_validations(tmp_path):
  make(tmp_path / "train", {"a": 1, "b": 1})
  make(tmp_path / "test", {"z": 1})
  with pytest.raises(DataError, match=r"test/z: expected a class of .*a, b"):
    find(tmp_path)
  (tmp_path / "val").mkdir()
  (tmp_path / "valid").mkdir()
  with pytest.raises(DataError, match="one folder of validation, val and val"):
    find(tmp_path)


def test_places_that_are_no_folder_are_one_line(tmp_path):
  (tmp_path / "x.png").touch()
  for name in ("nowhere", "x.png"):
    with pytest.raises(DataError, match="expected a folder of class folders"):
      load(f"folder:{tmp_path / name}", "train", data_dir=str(tmp_path))


def check_saved(root, tmp_path):
  held, labels = datasets_oracle.images(), datasets_oracle.LABELS
  for split, rows in (("train", slice(8)), ("test", slice(8, 10))):
    images, classes = read(root, split, tmp_path)
    np.testing.assert_array_equal(images, held[rows])
    assert classes == labels[rows]
  builder = sources.find(f"folder:{root}", data_dir=str(tmp_path))
  assert builder.info.features["label"].names == datasets_oracle.CLASSES


def test_what_datasets_saved_is_read(tmp_path):
  check_saved(datasets_oracle.FIXTURES / "saved_images", tmp_path)


def test_what_this_version_of_datasets_saves_is_read(tmp_path):
  pytest.importorskip("datasets", reason="needs the library datasets")
  datasets_oracle.write(tmp_path)
  check_saved(tmp_path / "saved_images", tmp_path / "data")


@pytest.mark.parametrize(
  ("file", "old", "new", "message"),
  [
    ("dataset_info.json", '"img"', '"photo"', "a column image or img and one"),
    (
      "dataset_info.json",
      "ClassLabel",
      "Value",
      "a ClassLabel in column",
    ),
    (
      "dataset_info.json",
      ',\n        "dog"',
      "",
      "row 1: label: .* got 1",
    ),
    ("dataset_info.json", "{", "", "dataset_info.json: expected what save_to"),
    ("state.json", '"data-', '"../', "names of files beside it, got '../"),
    ("state.json", "00001-of", "00002-of", "No such file.*00002-of-00002"),
    ("data-00001-of-00002.arrow", None, b"x" * 99, "arrow: expected a stream"),
  ],
)
def test_wrong_directories_of_datasets_are_one_line(
  tmp_path, file, old, new, message
):
  root = tmp_path / "saved_images"
  shutil.copytree(datasets_oracle.FIXTURES / "saved_images", root)
  if old is None:
    (root / file).write_bytes(new)
  else:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
  with pytest.raises(DataError, match=message) as raised:
    sources.find(f"folder:{root}", data_dir=str(tmp_path / "data"))
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "data").exists()
