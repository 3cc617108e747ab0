"""DINOv2, DeiT and MAE of another library: tiny models, and what they compute.

As a script it writes fixtures/vit_forms_hf.npz, where torch and transformers (5
or later) are installed:

  python -m tests.models.vit_forms_oracle

For each case, under its name, the file holds weights and gradients with the
names of the library's files, and logits and their cotangent. Images [batch,
height, width, channels] are shared. `defaults` has every key of a
configuration. `positions/...` are tables of positions
that torch interpolated.
"""

import json
import pathlib
import tempfile

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "vit_forms_hf.npz"
WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES = 8, 2, 2, 4, (12, 12), 3
_SIZES = {
  "hidden_size": WIDTH,
  "num_hidden_layers": DEPTH,
  "num_attention_heads": HEADS,
  "image_size": IMAGE[0],
  "patch_size": PATCH,
  "num_channels": 3,
  "num_labels": CLASSES,
}
_DINO = _SIZES | {"mlp_ratio": 3, "layerscale_value": 0.5}
_GIANT = _DINO | {"use_swiglu_ffn": True, "qkv_bias": False}
_PLAIN = _SIZES | {"intermediate_size": 12}
# Name -> (configuration, model, arguments of the configuration).
CASES = {
  "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", _DINO),
  "dinov2 giant": ("Dinov2Config", "Dinov2ForImageClassification", _GIANT),
  "dinov2 registers": (
    "Dinov2WithRegistersConfig",
    "Dinov2WithRegistersForImageClassification",
    _DINO | {"num_register_tokens": 3},
  ),
  "deit": ("DeiTConfig", "DeiTForImageClassification", _PLAIN),
  "deit teacher": (
    "DeiTConfig",
    "DeiTForImageClassificationWithTeacher",
    _PLAIN,
  ),
  "mae": ("ViTMAEConfig", "ViTMAEModel", _PLAIN | {"mask_ratio": 0.0}),
}
# Name -> (grid of the table, grid asked for, whether torch smooths it).
RESIZED = {
  "up": ((3, 3), (5, 7), False),
  "down": ((7, 7), (4, 3), False),
  "smooth": ((7, 7), (4, 3), True),
}


def random_model(case: str, seed: int):
  """Every parameter random, biases and norms included."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  import transformers

  config, kind, arguments = CASES[case]
  config = getattr(transformers, config)(**arguments, architectures=[kind])
  torch.manual_seed(seed)
  model = getattr(transformers, kind)(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      is_scale = name.endswith("weight") and "norm" in name or "lambda" in name
      parameter.normal_(1.0 if is_scale else 0.0, 0.2)
  return model


def published(model) -> tuple[dict[str, np.ndarray], dict]:
  """The weights and the configuration as the library saves them."""
  from safetensors.numpy import load_file

  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config = pathlib.Path(folder, "config.json").read_text()
    return load_file(f"{folder}/model.safetensors"), json.loads(config)


def outputs(model, case: str, images):
  """Logits; of an encoder without a head, its normalized class token."""
  import torch

  if case != "mae":
    return model(images).logits
  count = IMAGE[0] // PATCH * (IMAGE[1] // PATCH)
  noise = torch.arange(count)[None].expand(len(images), -1)  # keeps the order
  return model(images, noise=noise).last_hidden_state[:, 0]


def computed(model, case: str, images: np.ndarray) -> dict[str, np.ndarray]:
  """Logits, their cotangent, and gradients under the weights' names."""
  import torch

  logits = outputs(model, case, torch.from_numpy(images.transpose(0, 3, 1, 2)))
  torch.manual_seed(9)
  cotangent = torch.randn(logits.shape)
  model.zero_grad()
  (logits * cotangent).sum().backward()
  result = {
    "logits": logits.detach().numpy(),
    "cotangent": cotangent.numpy(),
  }
  with torch.no_grad():
    for parameter in model.parameters():
      grad = parameter.grad
      parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
  gradients, _ = published(model)
  return result | {f"gradient/{k}": v for k, v in gradients.items()}


def pictures() -> np.ndarray:
  draw = np.random.default_rng(0)
  return draw.normal(size=(2, *IMAGE, 3)).astype(np.float32)


def stored_case(case: str, seed: int, images: np.ndarray) -> dict:
  model = random_model(case, seed)
  weights, config = published(model)
  result = {f"weight/{k}": v for k, v in weights.items()}
  return (
    result
    | computed(model, case, images)
    | {"config": np.array(json.dumps(config))}
  )


def defaults() -> dict[str, dict]:
  """Every key of the library's configurations, by the type of the model."""
  import transformers

  made = {
    getattr(transformers, config)().to_dict()["model_type"]: getattr(
      transformers, config
    )().to_dict()
    for config, *_ in CASES.values()
  }
  return {kind: dict(sorted(fields.items())) for kind, fields in made.items()}


def resized(table: np.ndarray, grid: tuple[int, int], smooth: bool):
  """What torch makes of [height, width, channels] by its bicubic mode."""
  import torch

  given = torch.from_numpy(table.transpose(2, 0, 1).copy())[None]
  result = torch.nn.functional.interpolate(
    given, size=grid, mode="bicubic", align_corners=False, antialias=smooth
  )
  return result[0].numpy().transpose(1, 2, 0)


def main() -> None:
  images = pictures()
  whole = {"images": images}
  for case in CASES:
    made = stored_case(case, 0, images)
    whole |= {f"{case}/{name}": value for name, value in made.items()}
  whole["defaults"] = np.array(json.dumps(defaults()))
  for name, (old, new, smooth) in RESIZED.items():
    table = np.random.default_rng(1).normal(size=(*old, 2)).astype(np.float32)
    whole[f"positions/{name}"] = table
    whole[f"positions/{name}/resized"] = resized(table, new, smooth)
  np.savez_compressed(TARGET, **whole)
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
