"""The scale of pixels that a model sees: (pixel / 255 - mean) / std."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

# Means and standard deviations by name. "half" maps pixels to [-1, 1], as the
# original ViT; "imagenet" has the statistics of ImageNet's training images.
NAMED = {
  "half": ((0.5,), (0.5,)),
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True)
class PixelScale:
  """Mean and standard deviation of each channel, or of all.

  Attributes:
    mean: Means in [0, 1].
    std: Standard deviations in the same units.

  >>> PixelScale.parse("half", "half")(np.array([[0, 255]], np.uint8)).tolist()
  [[-1.0, 1.0]]
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]

  @classmethod
  def parse(cls, mean: str = "half", std: str = "half") -> PixelScale:
    """The scale of two texts: a name of `NAMED`, or numbers between commas.

    >>> PixelScale.parse("0.5,0.4,0.3", "0.2")
    PixelScale(mean=(0.5, 0.4, 0.3), std=(0.2,))
    """
    return cls(_numbers(mean, 0), _numbers(std, 1))

  def words(self) -> str:
    """The fields of a configuration that give this scale.

    >>> HALF.words()
    '--config.data.mean=half --config.data.std=half'
    """
    names = [
      name for name, pair in NAMED.items() if pair == (self.mean, self.std)
    ]
    mean, std = 2 * names or [
      ",".join(map(str, values)) for values in (self.mean, self.std)
    ]
    return f"--config.data.mean={mean} --config.data.std={std}"

  def gray(self) -> PixelScale:
    """The mean scale of the channels, for images with one.

    >>> PixelScale.parse("imagenet", "imagenet").gray()
    PixelScale(mean=(0.449,), std=(0.226,))
    """
    mean, std = (
      (round(sum(values) / len(values), 6),) for values in (self.mean, self.std)
    )
    return PixelScale(mean, std)

  def check(self, channels: int) -> None:
    """Raises ValueError if images with so many channels do not fit."""
    for name, values in (("mean", self.mean), ("std", self.std)):
      if len(values) not in (1, channels):
        either = "1 number" + f" or {channels}" * (channels > 1)
        raise ValueError(
          f"--config.data.{name}: expected {either} for images with {channels}"
          f" channel{'s' * (channels > 1)}, got {len(values)}"
        )

  def __call__(self, pixels: np.ndarray) -> np.ndarray:
    """Scales pixels, uint8 [..., channels], to float32."""
    scaled = pixels.astype(np.float32)
    rows = scaled.reshape(*scaled.shape[:-2], -1)  # NumPy is slow on short axes
    width = scaled.shape[-2]
    rows *= _row(1 / (255 * np.array(self.std)), width)
    rows -= _row(np.array(self.mean) / self.std, width)
    return scaled


def published(path: str | Path) -> PixelScale | None:
  """The scale that the file beside some published weights names, or None.

  Args:
    path: File of weights or its directory, in which preprocessor_config.json
      (`transformers`) or config.json (`timm`) may lie.
  """
  folder = Path(path)
  folder = folder if folder.is_dir() else folder.parent
  for name, keys in (
    ("preprocessor_config.json", ("image_mean", "image_std")),
    ("config.json", ("mean", "std")),
  ):
    try:
      fields = json.loads((folder / name).read_bytes())
      fields = fields.get("pretrained_cfg", fields)
      mean, std = ([float(x) for x in fields[key]] for key in keys)
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
      continue  # another file, or none: it is only a hint
    if len(set(mean)) == len(set(std)) == 1:
      mean, std = mean[:1], std[:1]
    return PixelScale(tuple(mean), tuple(std))
  return None


HALF = PixelScale(*NAMED["half"])


def _row(values: np.ndarray, width: int) -> np.ndarray:
  """The values of one row of an image, or one value for all."""
  values = values.astype(np.float32)
  return values if len(values) == 1 else np.tile(values, width)


def _numbers(text: str, index: int) -> tuple[float, ...]:
  if text in NAMED:
    return NAMED[text][index]
  return tuple(map(float, text.split(",")))
