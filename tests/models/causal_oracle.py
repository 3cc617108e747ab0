"""GPT-2 and Llama of another library: what tiny random models compute.

As a script it writes fixtures/causal_hf.npz, where torch and transformers (5 or
later) are installed:

  python tests/models/causal_oracle.py

The file holds, for every case, weights under the library's own names, tokens
[batch, length], a cotangent of the logits, the logits that torch computed, the
gradients of their product with it, in the order of the weights (the length of
each, and their directions end to end in half precision), prompts that are
padded on the left with their mask, and what `generate` gives after them.
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "causal_hf.npz"
VOCAB, TOKENS, PROMPTS, LENGTH = 24, (3, 20), (7, 3, 1), 12
_SIZES = {"vocab": VOCAB, "width": 12, "depth": 2}
# Case -> (family, options of our model, keys of theirs, seed). The seeds are of
# stored models that end some of their sequences.
CASES = {
  "gpt2": (
    "gpt2",
    {**_SIZES, "heads": 2, "length": 32},
    {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 32},
    11,
  ),
  "llama2": (
    "llama",
    {**_SIZES, "heads": 3, "mlp_dim": 20, "norm_epsilon": 1e-6, "tied": True},
    {"num_attention_heads": 3, "tie_word_embeddings": True},
    11,
  ),
  "llama3": (
    "llama",
    {
      **_SIZES,
      "heads": 4,
      "kv_heads": 2,
      "head_dim": 6,
      "mlp_dim": 20,
      "rope_theta": 100.0,
      "rope_factor": 8.0,
      "rope_length": 16,
    },
    {
      "num_attention_heads": 4,
      "num_key_value_heads": 2,
      "head_dim": 6,
      "rms_norm_eps": 1e-5,
      "rope_theta": 100.0,
      "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
      },
    },
    14,
  ),
}
# name -> beams, length penalty, early stopping; beams of 1 are greedy.
DECODING = {
  "greedy": (1, 1.0, False),
  "beams": (3, 1.0, False),
  "short": (4, -0.5, False),
  "early": (3, 0.6, True),
  "never": (2, 2.0, "never"),
}


def arguments(case: str) -> dict:
  """Arguments of the library's configuration, without ids."""
  family, _, keys, _ = CASES[case]
  if family == "gpt2":
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return {"vocab_size": VOCAB, **rates, **keys}
  sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
  return {"vocab_size": VOCAB, **sizes, **keys}


def random_model(seed: int, case: str):
  """Every parameter random, and large enough to give decided logits."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
  )

  ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
  if CASES[case][0] == "gpt2":
    model = GPT2LMHeadModel(GPT2Config(**ends, **arguments(case)))
  else:
    model = LlamaForCausalLM(LlamaConfig(**ends, **arguments(case)))
  torch.manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      mean = float(name.endswith("weight") and parameter.ndim == 1)
      parameter.normal_(mean, 0.5 if parameter.ndim == 2 else 0.2)
  return model.eval()


def computed(model, seed: int) -> dict[str, np.ndarray]:
  """Tokens, cotangent, logits, lengths and directions of the gradients."""
  import torch

  torch.manual_seed(seed + 1)
  tokens = torch.randint(2, VOCAB, TOKENS)
  cotangent = torch.randn(*TOKENS, VOCAB)
  logits = model(input_ids=tokens).logits
  model.zero_grad()
  (logits * cotangent).sum().backward()
  grads = [p.grad.numpy().ravel() for p in model.parameters()]
  lengths = np.array([np.linalg.norm(grad) for grad in grads])
  directions = [grad / length for grad, length in zip(grads, lengths)]
  return {
    "tokens": tokens.numpy().astype(np.int32),
    "cotangent": cotangent.numpy(),
    "logits": logits.detach().numpy(),
    "lengths": lengths,
    "directions": np.concatenate(directions).astype(np.float16),
  }


def decoded(model, seed: int) -> dict[str, np.ndarray]:
  """Prompts, their mask, and new ids for each, with 0 after the end."""
  import torch

  torch.manual_seed(seed + 2)
  longest = max(PROMPTS)
  mask = torch.arange(longest) >= longest - torch.tensor(PROMPTS)[:, None]
  # Padding is an id like others: only the mask says what it is.
  prompts = torch.randint(2, VOCAB, mask.shape)
  result = {
    "prompts": prompts.numpy().astype(np.int32),
    "mask": mask.numpy(),
  }
  for name, (beams, penalty, early) in DECODING.items():
    of_beams = {"length_penalty": penalty, "early_stopping": early}
    out = model.generate(
      prompts,
      attention_mask=mask.long(),
      num_beams=beams,
      do_sample=False,
      max_new_tokens=LENGTH,
      return_dict_in_generate=True,
      output_scores=True,
      **(of_beams if beams > 1 else {}),
    )
    tokens = np.zeros((len(prompts), LENGTH), np.int32)
    for row, given in zip(tokens, out.sequences.numpy()[:, longest:]):
      ends = np.flatnonzero(given == 1)
      length = ends[0] + 1 if len(ends) else len(given)
      row[:length] = given[:length]
    result[name] = tokens
    if beams > 1:
      result[f"{name}_scores"] = out.sequences_scores.numpy()
  return result


def weights(model) -> dict[str, np.ndarray]:
  """The parameters by their own names; a tied head is not among them."""
  return {
    name: value.detach().numpy() for name, value in model.named_parameters()
  }


def main() -> None:
  stored = {}
  for case, (*_, seed) in CASES.items():
    model = random_model(seed, case)
    stored |= {f"{case}/weight/{k}": v for k, v in weights(model).items()}
    result = computed(model, seed) | decoded(model, seed)
    ended = sum((result[name] == 1).sum() for name in DECODING)
    print(f"{case}: {ended} of {len(DECODING) * len(PROMPTS)} ended")
    stored |= {f"{case}/{name}": value for name, value in result.items()}
  TARGET.parent.mkdir(exist_ok=True)
  np.savez_compressed(TARGET, **stored)
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
