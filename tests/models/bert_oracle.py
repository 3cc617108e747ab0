"""BERT of another library: tiny random models, and what they compute.

As a script it writes fixtures/bert_hf.npz, where torch and transformers (5 or
later) are installed:

  python tests/models/bert_oracle.py

The file holds, for every case, weights and gradients under the library's own
names, inputs [batch, length] padded with 0, token types, a cotangent of the
output and the output that torch computed. Embeddings are the mean of the tokens
that the attention mask shows, scaled to length 1, as `sentence_transformers`
computes them.
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "bert_hf.npz"
VOCAB, WIDTH, HEADS, HIDDEN, DEPTH, LONGEST, CLASSES = 24, 16, 4, 24, 2, 12, 3
LENGTHS = (9, 6, 1)
# Case -> (class of the library, our output, activation).
CASES = {
  "tokens": ("BertForMaskedLM", "tokens", "gelu"),
  "classes": ("BertForSequenceClassification", "classes", "gelu"),
  "embedding": ("BertModel", "embedding", "gelu"),
  "tanh": ("BertForMaskedLM", "tokens", "gelu_new"),
}


def options(case: str) -> dict:
  """Of our model."""
  _, output, act = CASES[case]
  return {
    "output": output,
    "vocab": VOCAB,
    "width": WIDTH,
    "heads": HEADS,
    "mlp_dim": HIDDEN,
    "depth": DEPTH,
    "length": LONGEST,
    "token_types": 3,
    "num_classes": CLASSES,
    "gelu": "exact" if act == "gelu" else "tanh",
  }


def arguments(case: str) -> dict:
  """Of their configuration."""
  return {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": LONGEST,
    "type_vocab_size": 3,
    "num_labels": CLASSES,
    "hidden_act": CASES[case][2],
  }


def random_model(seed: int, case: str):
  """Every parameter random, biases and norms included."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  import transformers

  torch.manual_seed(seed)
  config = transformers.BertConfig(**arguments(case))
  model = getattr(transformers, CASES[case][0])(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      is_scale = name.endswith("LayerNorm.weight")
      parameter.normal_(float(is_scale), 0.3)
  return model


def output_of(model, inputs, types):
  """The logits, or the sentence embeddings of a model without a head."""
  import torch

  mask = (inputs != 0).long()
  out = model(
    input_ids=inputs,
    attention_mask=mask,
    token_type_ids=types,
    return_dict=True,
  )
  if "logits" in out:
    return out.logits
  shown = mask[..., None].float()
  mean = (out.last_hidden_state * shown).sum(1) / shown.sum(1).clamp(min=1e-9)
  return torch.nn.functional.normalize(mean, dim=1)


def weights(model) -> dict[str, np.ndarray]:
  """The parameters, those of a tied head once."""
  return {k: v.detach().numpy() for k, v in model.named_parameters()}


def computed(model, seed: int) -> dict[str, np.ndarray]:
  """Inputs, types, cotangent, output, and gradients under "gradient/"."""
  import torch

  torch.manual_seed(seed)
  shape = len(LENGTHS), LENGTHS[0]
  inputs, types = (torch.randint(*r, shape) for r in ((1, VOCAB), (0, 3)))
  for row, length in zip(inputs, LENGTHS):
    row[length:] = 0
  output = output_of(model, inputs, types)
  cotangent = torch.randn(output.shape)
  if output.ndim == 3:
    # The library gives the embedding of padding no gradient (padding_idx).
    cotangent *= (inputs != 0)[..., None]
  model.zero_grad()
  (output * cotangent).sum().backward()
  return {
    "inputs": inputs.numpy().astype(np.int32),
    "types": types.numpy().astype(np.int32),
    "cotangent": cotangent.numpy(),
    "output": output.detach().numpy(),
  } | {
    f"gradient/{name}": parameter.grad.numpy()
    for name, parameter in model.named_parameters()
    if parameter.grad is not None
  }


def main() -> None:
  stored = {}
  for seed, case in enumerate(CASES):
    model = random_model(seed, case)
    stored |= {f"{case}/weight/{k}": v for k, v in weights(model).items()}
    result = computed(model, seed)
    stored |= {f"{case}/{name}": value for name, value in result.items()}
  TARGET.parent.mkdir(exist_ok=True)
  np.savez_compressed(TARGET, **stored)
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
