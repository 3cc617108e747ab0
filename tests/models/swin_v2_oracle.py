"""Swin-V2 of another library: tiny random models, and what they compute.

As a script it writes fixtures/swin_v2_hf.npz, where torch and transformers (5
or later) are installed:

  python tests/models/swin_v2_oracle.py

The file holds one set of weights under the library's own names. For every case
it holds images [batch, height, width, channels], a cotangent of the logits, the
logits that torch computed, and the gradients of their product with it, in the
order of the weights: the length of each, and their directions end to end in
half precision.
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "swin_v2_hf.npz"
CLASSES, WIDTH, DEPTHS, HEADS, PATCH = 5, 8, (2, 1), 2, 2
# Image, window, pretrained windows.
CASES = {
  # Maps of 8 and 4: shifted windows, then one that covers its map.
  "shift": ((16, 16), 4, (0, 0)),
  # 21 x 17 fits no patch, 11 x 9 no window; 6 x 5 is an odd map, merged.
  "padding": ((21, 17), 4, (0, 0)),
  # Windows are clipped to 5 and 2; they were trained as 3 and 2.
  "clipped": ((10, 12), 7, (3, 2)),
}


def options(case: str) -> dict:
  """Of this package's model."""
  image, window, pretrained = CASES[case]
  return {
    "width": WIDTH,
    "depths": DEPTHS,
    "heads": HEADS,
    "window": window,
    "pretrained_windows": pretrained,
    "image_size": image,
    "num_classes": CLASSES,
  }


def arguments(case: str) -> dict:
  """Of their configuration."""
  image, window, pretrained = CASES[case]
  return {
    "image_size": image,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depths": DEPTHS,
    "num_heads": tuple(HEADS << i for i in range(len(DEPTHS))),
    "window_size": window,
    "pretrained_window_sizes": pretrained,
    "num_labels": CLASSES,
    "drop_path_rate": 0.0,
  }


def random_model(seed: int, case: str):
  """Every parameter random; one temperature is beyond its bound."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  from transformers import Swinv2Config, Swinv2ForImageClassification

  model = Swinv2ForImageClassification(Swinv2Config(**arguments(case))).eval()
  torch.manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      is_scale = "norm" in name and name.endswith("weight")
      parameter.normal_(1.0 if is_scale else 0.0, 0.2)
      if name.endswith("logit_scale"):
        parameter.add_(np.log(10.0))
        parameter[0] = 5.0
  return model


def computed(model, seed: int, case: str) -> dict[str, np.ndarray]:
  """Images, cotangent, logits, lengths and directions of the gradients."""
  import torch

  torch.manual_seed(seed + 1)
  images = torch.randn(2, 3, *CASES[case][0])
  cotangent = torch.randn(2, CLASSES)
  logits = model(images).logits
  model.zero_grad()
  (logits * cotangent).sum().backward()
  grads = [p.grad.numpy().ravel() for p in model.parameters()]
  lengths = np.array([np.linalg.norm(grad) for grad in grads])
  directions = [grad / length for grad, length in zip(grads, lengths)]
  return {
    "images": images.numpy().transpose(0, 2, 3, 1),
    "cotangent": cotangent.numpy(),
    "logits": logits.detach().numpy(),
    "lengths": lengths,
    "directions": np.concatenate(directions).astype(np.float16),
  }


def weights(model) -> dict[str, np.ndarray]:
  return {k: v.detach().numpy() for k, v in model.named_parameters()}


def main() -> None:
  stored = {}
  for case in CASES:
    model = random_model(0, case)
    stored |= {f"weight/{k}": v for k, v in weights(model).items()}
    for name, value in computed(model, 0, case).items():
      stored[f"{case}/{name}"] = value
  TARGET.parent.mkdir(exist_ok=True)
  np.savez_compressed(TARGET, **stored)
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
