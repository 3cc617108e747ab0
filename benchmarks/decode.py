"""Decoding with T5-small beside transformers on PyTorch, one thread each.

Both sides have the same random weights, in float32, with an end token that is
never the most likely one, so that every row has all of its tokens. Rounds
alternate between both sides, and the ratio is the median of the paired ratios
of processor time, ours over theirs, with quartiles. The tokens must be equal
before anything is timed.

The floor of a token is the time to read the weights that it multiplies once, at
the bandwidth that a product of a matrix and a vector reaches on this core.

  pip install torch transformers
  python benchmarks/decode.py --batches 1,8 --beams 1,4 --rounds 5
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

INPUTS = 128


def peer() -> Any:
  """The model of transformers with random weights."""
  import torch  # pyrefly: ignore[missing-import]
  import transformers as hf  # pyrefly: ignore[missing-import]

  torch.manual_seed(0)
  config = hf.T5Config(
    vocab_size=32128, decoder_start_token_id=0, dropout_rate=0.0
  )
  model = hf.T5ForConditionalGeneration(config).eval()
  with torch.no_grad():
    model.get_input_embeddings().weight[1] = 0  # the end token's logit is 0
  return model


def bandwidth() -> float:
  """Bytes per second of processor time of a matrix times a vector."""
  matrix = np.ones((8192, 8192), np.float32)  # 268 MB, beyond any cache
  vector = np.ones(8192, np.float32)
  times = []
  for _ in range(9):
    start = time.process_time()
    matrix @ vector
    times.append(time.process_time() - start)
  return matrix.nbytes / float(np.median(times))


def read_per_token(model: Any) -> int:
  """Bytes of the kernels that one step of the decoder multiplies."""
  from figs_jax.models.pretrained.matching import parameters_of

  return sum(
    leaf.size * np.dtype(leaf.dtype).itemsize
    for path, leaf in parameters_of(model).items()
    if re.fullmatch(
      r"decoder/.*/(?:attn/.|cross/[qo]|mlp/w.)/kernel|shared/embedding", path
    )
  )


def calls(
  theirs: Any, ours: Any, batch: int, beams: int, tokens: int
) -> dict[str, Callable[[], np.ndarray]]:
  """What to time on each side; both return ids [batch, tokens]."""
  import torch  # pyrefly: ignore[missing-import]

  from figs_jax.models import decode

  rng = np.random.default_rng(0)
  prompt = rng.integers(2, 32_000, (batch, INPUTS), dtype=np.int32)
  given = torch.tensor(prompt, dtype=torch.long)

  def mine() -> np.ndarray:
    if beams == 1:
      return np.asarray(decode.greedy(ours, prompt, tokens))
    return np.asarray(decode.beam_search(ours, prompt, beams, tokens)[0])

  def other() -> np.ndarray:
    out = theirs.generate(
      given, attention_mask=torch.ones_like(given), max_new_tokens=tokens,
      num_beams=beams, do_sample=False,
    )  # fmt: skip
    return out.numpy()[:, 1:]

  return {"ours": mine, "theirs": other}


def compare(label: str, sides: dict, rounds: int, floor: float) -> None:
  """Prints one row.

  Raises:
    SystemExit: If the tokens differ.
  """
  first = {side: call() for side, call in sides.items()}  # compiles
  if not np.array_equal(first["ours"], first["theirs"]):
    raise SystemExit(f"{label}: expected equal tokens on both sides")
  times = np.zeros((rounds, 2))
  for i in range(rounds):
    for j, side in list(enumerate(sides))[:: 1 if i % 2 else -1]:
      start = time.process_time()
      sides[side]()
      times[i, j] = time.process_time() - start
  low, mid, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
  ours, theirs = np.median(times, 0)
  print(
    f"{label:26} {ours:8.3f} {theirs:8.3f} {mid:6.2f} ({low:.2f} to {high:.2f})"
    f" {floor:8.3f}",
    flush=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description="Decoding beside transformers.")
  parser.add_argument("--batches", default="1,8")
  parser.add_argument("--beams", default="1,4")
  parser.add_argument("--tokens", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      parser.error(f"{package} is missing; install it: pip install {package}")
  # One core, so that no library uses more than one thread's time.
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  import torch  # pyrefly: ignore[missing-import]

  from figs_jax import models
  from figs_jax.models import pretrained

  torch.set_num_threads(1)
  torch.set_flush_denormal(True)
  theirs = peer()
  with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    ours = pretrained.load(models.create("t5", "small"), folder)
  rate, size = bandwidth(), read_per_token(ours)
  versions = " ".join(
    f"{package} {importlib.metadata.version(package)}"
    for package in ("jax", "torch", "transformers")
  )
  print(f"{versions}, {args.tokens} tokens, {args.rounds} rounds")
  print(
    f"{size / 1e6:.0f} MB of kernels a token at {rate / 1e9:.1f} GB/s:"
    f" {size / rate * 1e3:.1f} ms"
  )
  print(
    f"{'':26} {'cpu, s':>8} {'theirs':>8} {'ratio (quartiles)':>21} floor, s"
  )
  print("load before", *(f"{load:.2f}" for load in os.getloadavg()))
  for batch in map(int, args.batches.split(",")):
    for beams in map(int, args.beams.split(",")):
      sides = calls(theirs, ours, batch, beams, args.tokens)
      label = f"batch {batch}, {beams} beam{'s' * (beams > 1)}"
      compare(label, sides, args.rounds, args.tokens * size / rate)
  print("load after", *(f"{load:.2f}" for load in os.getloadavg()))


if __name__ == "__main__":
  main()
