"""RandAugment on PIL images (Cubuk et al. 2020, arXiv:1909.13719).

`rand-m15-n2` applies two uniformly drawn operations per image at magnitude 15,
on a scale whose original maximum is 10. Operations and strengths are those of
the TPU code that trained the JAX vision models: every operation always applies,
the magnitude is not clipped at 10, and cutout is one of the operations.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# Fill beyond borders and under cutouts: middle grey, as in the TPU code.
_GREY = 128
_Rng = np.random.Generator
_Op = Callable[[Image.Image, float, _Rng], Image.Image]


def _fill(image: Image.Image) -> Any:
  return _GREY if image.mode == "L" else (_GREY,) * len(image.getbands())


def _sign(rng: _Rng) -> float:
  return -1.0 if rng.random() < 0.5 else 1.0


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    resample=Image.Resampling.NEAREST,
    fillcolor=_fill(image),
  )


def _enhance(kind: Any) -> _Op:
  # A factor of 1 (level 5 of 10) leaves the image unchanged.
  return lambda image, level, rng: kind(image).enhance(0.1 + 1.8 * level)


def _rotate(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  return image.rotate(30 * level * _sign(rng), fillcolor=_fill(image))


def _shear_x(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  return _affine(image, (1.0, 0.3 * level * _sign(rng), 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  return _affine(image, (1.0, 0.0, 0.0, 0.3 * level * _sign(rng), 1.0, 0.0))


# The TPU code shifts by 100 pixels and cuts 40 each way at a side of 224; here
# they are shares of the side, so that other image sizes behave alike.
def _translate_x(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  shift = 100 / 224 * image.width * level * _sign(rng)
  return _affine(image, (1.0, 0.0, shift, 0.0, 1.0, 0.0))


def _translate_y(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  shift = 100 / 224 * image.height * level * _sign(rng)
  return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, shift))


def _cutout(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  width, height = image.size
  half = round(40 / 224 * min(width, height) * level)
  x, y = int(rng.integers(width)), int(rng.integers(height))
  box = (
    max(x - half, 0),
    max(y - half, 0),
    min(x + half, width),
    min(y + half, height),
  )
  out = image.copy()
  out.paste(_fill(image), box)
  return out


def _posterize(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  # Higher levels keep more bits, as in the original code.
  return ImageOps.posterize(image, min(max(int(4 * level), 1), 8))


def _solarize(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  # From level 10 on the threshold exceeds white and the image is unchanged.
  return ImageOps.solarize(image, min(int(256 * level), 256))


def _solarize_add(image: Image.Image, level: float, rng: _Rng) -> Image.Image:
  addition = int(110 * level)
  return image.point(
    [min(v + addition, 255) if v < 128 else v for v in range(256)]
    * len(image.getbands())
  )


OPERATIONS: dict[str, _Op] = {
  "auto_contrast": lambda image, level, rng: ImageOps.autocontrast(image),
  "equalize": lambda image, level, rng: ImageOps.equalize(image),
  "invert": lambda image, level, rng: ImageOps.invert(image),
  "rotate": _rotate,
  "posterize": _posterize,
  "solarize": _solarize,
  "solarize_add": _solarize_add,
  "color": _enhance(ImageEnhance.Color),
  "contrast": _enhance(ImageEnhance.Contrast),
  "brightness": _enhance(ImageEnhance.Brightness),
  "sharpness": _enhance(ImageEnhance.Sharpness),
  "shear_x": _shear_x,
  "shear_y": _shear_y,
  "translate_x": _translate_x,
  "translate_y": _translate_y,
  "cutout": _cutout,
}
_NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Applies `layers` random operations to a grey or RGB image.

  Attributes:
    magnitude: Strength of the operations; 10 is the paper's maximum, larger
      values are allowed.
    layers: Number of operations per image.

  >>> RandAugment.parse("rand-m15-n2")
  RandAugment(magnitude=15.0, layers=2)
  """

  magnitude: float = 15.0
  layers: int = 2

  @classmethod
  def parse(cls, text: str) -> RandAugment:
    """Reads "rand-m<magnitude>-n<layers>".

    Raises:
      ValueError: If the text has another form.
    """
    match = re.fullmatch(r"rand-m(\d+(?:\.\d+)?)-n(\d+)", text)
    if match is None:
      raise ValueError(
        f"Invalid augmentation {text!r}: expected"
        " 'rand-m<magnitude>-n<layers>', as in 'rand-m15-n2'"
      )
    return cls(float(match[1]), int(match[2]))

  def __call__(self, image: Image.Image, rng: _Rng) -> Image.Image:
    """Returns a new image of the same size and mode."""
    for choice in rng.integers(len(_NAMES), size=self.layers):
      image = OPERATIONS[_NAMES[choice]](image, self.magnitude / 10, rng)
    return image
