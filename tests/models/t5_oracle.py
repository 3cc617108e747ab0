"""T5 of another library: tiny random models, what they compute and generate.

As a script it writes fixtures/t5_hf.npz, where torch and transformers (5 or
later) are installed:

  python tests/models/t5_oracle.py

The file holds, for every case, weights under the library's own names, inputs
and targets [batch, length] padded with 0, a cotangent of the logits, the logits
that torch computed, the gradients of their product with it, in the order of the
weights (the length of each, and their directions end to end in half precision),
and what `generate` gives for every way of decoding. `buckets` are those of the
published sizes, for the offsets -OFFSET to OFFSET.
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "t5_hf.npz"
VOCAB, WIDTH, HEADS, HEAD_DIM, HIDDEN, DEPTHS = 24, 12, 2, 8, 20, (2, 2)
BUCKETS, DISTANCE = 8, 12
INPUTS, TARGETS = (3, 22), 17  # beyond the distance
OFFSET = 600
LENGTH = 12
# name -> gated and untied
CASES = {"v1_0": False, "v1_1": True}
# Of the stored models: they end some of their sequences.
SEEDS = {"v1_0": 28, "v1_1": 16}
# name -> beams, length penalty, early stopping; beams of 1 are greedy.
DECODING = {
  "greedy": (1, 1.0, False),
  "beams": (3, 1.0, False),
  "short": (4, -0.5, False),
  "early": (3, 0.6, True),
  "never": (2, 2.0, "never"),
}


def options(case: str) -> dict:
  """Of our model."""
  return {
    "vocab": VOCAB,
    "width": WIDTH,
    "heads": HEADS,
    "head_dim": HEAD_DIM,
    "mlp_dim": HIDDEN,
    "depth": DEPTHS[0],
    "decoder_depth": DEPTHS[1],
    "num_buckets": BUCKETS,
    "max_distance": DISTANCE,
    "gated": CASES[case],
    "tied": not CASES[case],
  }


def config(gated: bool, **options):
  """Of their model; untied if gated, as the published ones are."""
  # Imported late: the doctest collector imports every file under tests.
  from transformers import T5Config

  return T5Config(
    feed_forward_proj="gated-gelu" if gated else "relu",
    # Version 5 ties every head all the same; `untied` undoes that.
    tie_word_embeddings=not gated,
    dropout_rate=0.0,
    decoder_start_token_id=0,
    **options,
  )


def random_model(seed: int, case: str):
  """Every parameter random, and large enough to give decided logits."""
  import torch
  from transformers import T5ForConditionalGeneration

  theirs = config(
    CASES[case],
    vocab_size=VOCAB,
    d_model=WIDTH,
    num_heads=HEADS,
    d_kv=HEAD_DIM,
    d_ff=HIDDEN,
    num_layers=DEPTHS[0],
    num_decoder_layers=DEPTHS[1],
    relative_attention_num_buckets=BUCKETS,
    relative_attention_max_distance=DISTANCE,
  )
  model = T5ForConditionalGeneration(theirs).eval()
  if CASES[case]:
    head = torch.empty(VOCAB, WIDTH)
    model.lm_head.weight = torch.nn.Parameter(head)
  torch.manual_seed(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      mean, spread = float("layer_norm" in name), 0.8
      if name in ("shared.weight", "lm_head.weight"):
        spread = 0.6
      if name.endswith(("Attention.q.weight", "Attention.k.weight")):
        spread = 0.2  # larger ones amplify what float32 rounds
      parameter.normal_(mean, spread)
  return model


def computed(model, seed: int) -> dict[str, np.ndarray]:
  """Ids, cotangent, logits, lengths and directions of the gradients."""
  import torch

  torch.manual_seed(seed + 1)
  inputs = padded(torch.randint(2, VOCAB, INPUTS), (22, 15, 7))
  targets = padded(torch.randint(2, VOCAB, (INPUTS[0], TARGETS)), (17, 9, 12))
  cotangent = torch.randn(INPUTS[0], TARGETS, VOCAB)
  before = torch.nn.functional.pad(targets[:, :-1], (1, 0))
  logits = model(
    input_ids=inputs,
    attention_mask=(inputs != 0).long(),
    decoder_input_ids=before,
  ).logits
  model.zero_grad()
  (logits * cotangent).sum().backward()
  grads = [p.grad.numpy().ravel() for p in model.parameters()]
  lengths = np.array([np.linalg.norm(grad) for grad in grads])
  directions = [grad / length for grad, length in zip(grads, lengths)]
  return {
    "inputs": inputs.numpy().astype(np.int32),
    "targets": targets.numpy().astype(np.int32),
    "cotangent": cotangent.numpy(),
    "logits": logits.detach().numpy(),
    "lengths": lengths,
    "directions": np.concatenate(directions).astype(np.float16),
  }


def padded(ids, lengths):
  """Ids that end with 1 after so many, then 0."""
  for row, length in zip(ids, lengths):
    row[length - 1], row[length:] = 1, 0
  return ids


def decoded(model, inputs: np.ndarray) -> dict[str, np.ndarray]:
  """What `generate` gives, without the first id; 0 after the end."""
  import torch

  result = {}
  ids = torch.from_numpy(inputs).long()
  for name, (beams, penalty, early) in DECODING.items():
    of_beams = {"length_penalty": penalty, "early_stopping": early}
    out = model.generate(
      ids,
      attention_mask=(ids != 0).long(),
      num_beams=beams,
      do_sample=False,
      max_new_tokens=LENGTH,
      return_dict_in_generate=True,
      output_scores=True,
      **(of_beams if beams > 1 else {}),
    )
    tokens = np.zeros((len(ids), LENGTH), np.int32)
    for row, given in zip(tokens, out.sequences.numpy()[:, 1:]):
      ends = np.flatnonzero(given == 1)
      length = ends[0] + 1 if len(ends) else len(given)
      row[:length] = given[:length]
    result[name] = tokens
    if beams > 1:
      result[f"{name}_scores"] = out.sequences_scores.numpy()
  return result


def buckets() -> np.ndarray:
  """[2, offsets]: of the encoder, then of the decoder."""
  import torch
  from transformers.models.t5.modeling_t5 import T5Attention

  offsets = torch.arange(-OFFSET, OFFSET + 1)
  result = [
    T5Attention._relative_position_bucket(offsets, bidirectional=both)
    for both in (True, False)
  ]
  return np.stack([each.numpy() for each in result]).astype(np.int8)


def weights(model) -> dict[str, np.ndarray]:
  return {k: v.detach().numpy() for k, v in model.named_parameters()}


def ours(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  """Our path and layout of one of their tensors."""
  mlp = 1 if name.startswith("encoder") else 2
  for theirs, path in (
    ("block.0.layer.0.SelfAttention.relative_attention_bias", "position_bias"),
    ("layer.0.SelfAttention", "attn"),
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.1.EncDecAttention", "cross"),
    (f"layer.{mlp}.DenseReluDense", "mlp"),
    (f"layer.{mlp}.layer_norm", "mlp_norm"),
    ("layer.1.layer_norm", "cross_norm"),
    ("final_layer_norm", "norm"),
    ("block.", "blocks."),
    ("lm_head", "head"),
  ):
    name = name.replace(theirs, path)
  path = name.replace(".", "/").removesuffix("/weight")
  if path.endswith("norm"):
    return f"{path}/scale", value
  if path == "shared" or path.endswith("position_bias"):
    return f"{path}/embedding", value
  return f"{path}/kernel", value.T


def main() -> None:
  stored = {"buckets": buckets()}
  for case in CASES:
    model = random_model(SEEDS[case], case)
    stored |= {f"{case}/weight/{k}": v for k, v in weights(model).items()}
    result = computed(model, SEEDS[case])
    result |= decoded(model, result["inputs"])
    stored |= {f"{case}/{name}": value for name, value in result.items()}
  TARGET.parent.mkdir(exist_ok=True)
  np.savez_compressed(TARGET, **stored)
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
