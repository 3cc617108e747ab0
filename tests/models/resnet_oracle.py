"""ResNet of another library: tiny random models, and what they compute.

As a script it writes fixtures/resnet_hf.npz, where torch and transformers (5 or
later) are installed:

  python tests/models/resnet_oracle.py

For a model of basic blocks and one of bottlenecks, the file holds the weights
and running statistics under the names that the library's files have, images
[batch, height, width, channels] and a cotangent of the logits; the logits and
gradients that torch computed in evaluation and in training, where a norm reads
the statistics of its batch; and the running statistics after that step.
"""

import pathlib
import tempfile

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "resnet_hf.npz"
IMAGE, CLASSES = (33, 40), 5
KINDS = {
  "basic": {"block": "basic", "depths": (1, 3), "width": 4},
  "bottleneck": {"block": "bottleneck", "depths": (2, 1), "width": 4},
}


def options(kind: str) -> dict:
  """Of our model."""
  return KINDS[kind] | {"image_size": IMAGE, "num_classes": CLASSES}


def arguments(kind: str) -> dict:
  """Of their configuration."""
  first = 4 if kind == "basic" else 16
  return {
    "embedding_size": 4,
    "hidden_sizes": [first, 2 * first],
    "depths": list(KINDS[kind]["depths"]),
    "layer_type": kind,
    "num_labels": CLASSES,
  }


def random_model(kind: str, seed: int):
  """Every parameter random, norms and their running statistics included."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  from transformers import ResNetConfig, ResNetForImageClassification

  torch.manual_seed(seed)
  model = ResNetForImageClassification(ResNetConfig(**arguments(kind)))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      is_scale = "normalization" in name and name.endswith("weight")
      parameter.normal_(1.0 if is_scale else 0.0, 0.2)
    for name, buffer in model.named_buffers():
      if name.endswith("running_mean"):
        buffer.normal_(0.0, 0.2)
      elif name.endswith("running_var"):
        buffer.uniform_(0.5, 1.5)
  return model.eval()


def published(model) -> dict[str, np.ndarray]:
  """The tensors of a file that the library wrote, counters included."""
  from safetensors.numpy import load_file

  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return load_file(f"{folder}/model.safetensors")


def fixture() -> dict[str, np.ndarray]:
  import torch

  torch.set_grad_enabled(True)
  arrays = {}
  generator = torch.Generator().manual_seed(1)
  images = torch.randn(3, 3, *IMAGE, generator=generator)
  cotangent = torch.randn(3, CLASSES, generator=generator)
  arrays["images"] = images.permute(0, 2, 3, 1).numpy()
  arrays["cotangent"] = cotangent.numpy()
  for kind in KINDS:
    model = random_model(kind, 0)
    for name, value in published(model).items():
      arrays[f"{kind}/weights/{name}"] = value
    for mode in ("eval", "train"):
      model.train(mode == "train")
      model.zero_grad()
      logits = model(pixel_values=images).logits
      (logits * cotangent).sum().backward()
      arrays[f"{kind}/{mode}/logits"] = logits.detach().numpy()
      for name, parameter in model.named_parameters():
        arrays[f"{kind}/{mode}/grads/{name}"] = parameter.grad.numpy()
    for name, buffer in model.named_buffers():
      if "running" in name:
        arrays[f"{kind}/after/{name}"] = buffer.numpy()
  return arrays


if __name__ == "__main__":
  np.savez_compressed(TARGET, **fixture())
