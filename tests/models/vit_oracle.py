"""ViT of another library: tiny random models, and what they compute.

As a script it writes fixtures/vit_hf.npz, where torch and transformers (5 or
later) are installed:

  python tests/models/vit_oracle.py

The file holds weights and gradients under the names that the library's files
have, images [batch, height, width, channels], a cotangent of the logits and the
logits that torch computed.
"""

import pathlib
import tempfile

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "vit_hf.npz"
WIDTH, DEPTH, HEADS, MLP, PATCH, IMAGE, CLASSES = 16, 2, 4, 24, 4, (8, 12), 5
OPTIONS = {
  "width": WIDTH,
  "depth": DEPTH,
  "heads": HEADS,
  "mlp_dim": MLP,
  "image_size": IMAGE,
  "num_classes": CLASSES,
  "norm_epsilon": 1e-12,
}


def arguments() -> dict:
  """Of their configuration."""
  return {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "num_channels": 3,
    "num_labels": CLASSES,
  }


def random_model(seed: int):
  """Every parameter random, biases and norms included."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  from transformers import ViTConfig, ViTForImageClassification

  torch.manual_seed(seed)
  model = ViTForImageClassification(ViTConfig(**arguments())).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      is_scale = "layernorm" in name and name.endswith("weight")
      parameter.normal_(1.0 if is_scale else 0.0, 0.2)
  return model


def published(model) -> dict[str, np.ndarray]:
  """The weights as the library saves them."""
  from safetensors.numpy import load_file

  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return load_file(f"{folder}/model.safetensors")


def computed(model, seed: int) -> dict[str, np.ndarray]:
  """Images, cotangent, logits, and gradients under the weights' names."""
  import torch

  torch.manual_seed(seed)
  images, cotangent = torch.randn(3, 3, *IMAGE), torch.randn(3, CLASSES)
  logits = model(images).logits
  model.zero_grad()
  (logits * cotangent).sum().backward()
  result = {
    "images": images.numpy().transpose(0, 2, 3, 1),
    "cotangent": cotangent.numpy(),
    "logits": logits.detach().numpy(),
  }
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(parameter.grad)
  return result | {f"gradient/{k}": v for k, v in published(model).items()}


def main() -> None:
  model = random_model(0)
  weights = {f"weight/{k}": v for k, v in published(model).items()}
  TARGET.parent.mkdir(exist_ok=True)
  np.savez_compressed(TARGET, **weights, **computed(model, 1))
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
