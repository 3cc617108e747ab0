"""Writes fixtures/vit_hf.npz: a tiny random ViT of another library.

Run once, by hand, where torch and transformers (5 or later) are installed:

  python tests/models/make_vit_fixture.py

The file holds the weights under this package's paths and layouts, images
[batch, height, width, channels] and the logits that torch computed.
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "vit_hf.npz"
WIDTH, DEPTH, HEADS, MLP, PATCH, IMAGE, CLASSES = 32, 2, 4, 48, 4, (8, 12), 5


def tiny_model():
  """Every parameter random, biases and norms included."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  from transformers import ViTConfig, ViTForImageClassification

  torch.manual_seed(0)
  config = ViTConfig(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=MLP,
    image_size=IMAGE,
    patch_size=PATCH,
    num_channels=3,
    num_labels=CLASSES,
    layer_norm_eps=1e-6,
    hidden_act="gelu",
  )
  model = ViTForImageClassification(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(1.0 if "layernorm" in name else 0.0, 0.2)
  return model


def linear(state, source: str, target: str) -> dict[str, np.ndarray]:
  return {
    f"{target}/kernel": state[f"{source}.weight"].T,
    f"{target}/bias": state[f"{source}.bias"],
  }


def norm(state, source: str, target: str) -> dict[str, np.ndarray]:
  return {
    f"{target}/scale": state[f"{source}.weight"],
    f"{target}/bias": state[f"{source}.bias"],
  }


def renamed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  patch = "vit.embeddings.patch_embeddings.projection"
  out = {
    "cls_token": state["vit.embeddings.cls_token"],
    "pos_embed": state["vit.embeddings.position_embeddings"],
    "patch_embed/kernel": state[f"{patch}.weight"].transpose(2, 3, 1, 0),
    "patch_embed/bias": state[f"{patch}.bias"],
    **norm(state, "vit.layernorm", "norm"),
    **linear(state, "classifier", "head"),
  }
  for i in range(DEPTH):
    theirs, ours = f"vit.layers.{i}", f"blocks/{i}"
    out |= norm(state, f"{theirs}.layernorm_before", f"{ours}/norm1")
    out |= norm(state, f"{theirs}.layernorm_after", f"{ours}/norm2")
    for part in "qkvo":
      source = f"{theirs}.attention.{part}_proj"
      out |= linear(state, source, f"{ours}/attn/{part}")
    for part in ("fc1", "fc2"):
      out |= linear(state, f"{theirs}.mlp.{part}", f"{ours}/mlp/{part}")
  return out


def main() -> None:
  import torch

  model = tiny_model()
  images = torch.randn(3, 3, *IMAGE)
  with torch.no_grad():
    logits = model(images).logits.numpy()
  state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
  TARGET.parent.mkdir(exist_ok=True)
  np.savez_compressed(
    TARGET,
    images=images.numpy().transpose(0, 2, 3, 1),
    logits=logits,
    **{f"params/{k}": v for k, v in renamed(state).items()},
  )
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
