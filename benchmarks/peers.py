"""Our models beside those of transformers on PyTorch, in one process.

Each pair has the same weights (written by transformers, read by
`models.pretrained.load`), the same batch and, in training, the same loss and
AdamW. Logits must agree within 1e-4 before anything is timed. Rounds alternate
between both sides; printed are the medians of processor time (all threads) and
of wall time, and the median of the paired ratios, ours over theirs, with their
quartiles. PyTorch runs eagerly, as transformers does by default, and
subnormal numbers are zero on both sides, as XLA has them. Its threads wait
busily for each other: on a machine with other work that counts as its processor
time, so compare on an idle one.

`--revision REV` also runs our side of a worktree of that revision, in a
process of its own, in the same rounds.

  pip install torch transformers
  python benchmarks/peers.py --models vit,swin_v2,t5 --rounds 15
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from worktree import checkout

RATE, DECAY = 1e-5, 1e-4
DECODED = 32
VARIANTS = {"vit": "S/16", "swin_v2": "T/w8-256", "t5": "small"}
AGREE = 1e-4
Calls = dict[str, Callable[[], Any]]


def batch_of(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Images [batch, height, width, 3] and labels, or inputs and targets."""
  rng = np.random.default_rng(0)
  if name == "t5":
    draw = functools.partial(rng.integers, 2, 32_000, dtype=np.int32)
    return draw((size, 128)), draw((size, 64))
  side = 256 if name == "swin_v2" else 224
  images = rng.normal(size=(size, side, side, 3)).astype(np.float32)
  return images, np.arange(size, dtype=np.int32)


def peer(name: str) -> Any:
  """The model of transformers, without dropout, with random weights."""
  import torch  # pyrefly: ignore[missing-import]
  import transformers as hf  # pyrefly: ignore[missing-import]

  torch.manual_seed(0)
  if name == "vit":
    config = hf.ViTConfig(
      hidden_size=384, num_attention_heads=6, intermediate_size=1536,
      num_labels=1000, layer_norm_eps=1e-6, hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return hf.ViTForImageClassification(config)
  if name == "swin_v2":
    config = hf.Swinv2Config(
      image_size=256, window_size=8, num_labels=1000, drop_path_rate=0.0
    )
    return hf.Swinv2ForImageClassification(config)
  # Its head starts with deviation 1, which the scale of a tied head undoes.
  config = hf.T5Config(
    vocab_size=32128, decoder_start_token_id=0, dropout_rate=0.0
  )
  return hf.T5ForConditionalGeneration(config)


def our_calls(name: str, folder: str, size: int) -> tuple[np.ndarray, Calls]:
  """Our logits for the weights of a folder, and the calls to time."""
  import jax
  import jax.numpy as jnp
  import optax
  from flax import nnx

  from figs_jax import models
  from figs_jax.models import decode, pretrained

  model = pretrained.load(models.create(name, VARIANTS[name]), folder)
  x, y = map(jnp.asarray, batch_of(name, size))
  given = (x, y) if name == "t5" else (x,)
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  tx = optax.adamw(RATE, weight_decay=DECAY)

  @jax.jit
  def forward(params, *given):
    return nnx.merge(graphdef, params, rest)(*given)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(carry, y, *given):
    params, state = carry

    def loss(params):
      logits = nnx.merge(graphdef, params, rest)(*given)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = jax.grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  carry = [jax.tree.map(jnp.copy, (params, tx.init(params)))]

  def train():
    carry[0] = jax.block_until_ready(step(carry[0], y, *given))

  calls: Calls = {
    "forward": lambda: jax.block_until_ready(forward(params, *given)),
    "step": train,
  }
  if name == "t5":
    calls["decode"] = lambda: np.asarray(decode.greedy(model, x, DECODED))
  return np.asarray(forward(params, *given)), calls


def their_calls(name: str, model: Any, size: int) -> tuple[np.ndarray, Calls]:
  """The same of the model of transformers."""
  import torch  # pyrefly: ignore[missing-import]

  x, y = batch_of(name, size)
  labels = torch.tensor(y, dtype=torch.long)
  if name == "t5":
    inputs = torch.tensor(x, dtype=torch.long)
    shifted = torch.nn.functional.pad(labels[:, :-1], (1, 0))
    given = {"input_ids": inputs, "decoder_input_ids": shifted}
  else:
    pixels = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    given = {"pixel_values": pixels}
  model.eval()
  with torch.no_grad():
    logits = model(**given).logits.numpy()
  optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)

  def forward():
    with torch.no_grad():
      model(**given)

  def step():
    optimizer.zero_grad()
    out = model(**given).logits
    rows = out.reshape(-1, out.shape[-1])
    torch.nn.functional.cross_entropy(rows, labels.reshape(-1)).backward()
    optimizer.step()

  def decode():
    model.generate(inputs, max_new_tokens=DECODED, num_beams=1, do_sample=False)

  calls: Calls = {"forward": forward, "step": step}
  if name == "t5":
    calls["decode"] = decode
  return logits, calls


def timed(call: Callable[[], Any]) -> tuple[float, float]:
  """Processor and wall seconds of one call."""
  cpu, wall = time.process_time(), time.perf_counter()
  call()
  return time.process_time() - cpu, time.perf_counter() - wall


def serve(name: str, folder: str, size: int) -> None:
  """Times our calls whose names arrive on standard input."""
  logits, calls = our_calls(name, folder, size)
  np.save(f"{folder}/other.npy", logits)
  print("ready", flush=True)
  for line in sys.stdin:
    print(json.dumps(timed(calls[line.strip()])), flush=True)


@contextlib.contextmanager
def other(root: Path, name: str, folder: str, size: int) -> Iterator[Calls]:
  """Our calls in a process that imports the package from another worktree."""
  options = ["--serve", folder, "--models", name, "--batch", str(size)]
  command = [sys.executable, __file__, *options]
  process = subprocess.Popen(
    command,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(root)},
  )
  assert process.stdin and process.stdout

  def answer() -> str:
    line = process.stdout.readline()
    if not line:
      raise SystemExit(f"{root}: the process of the other revision ended")
    return line

  def call(what: str) -> tuple[float, float]:
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return tuple(json.loads(answer()))

  answer()
  try:
    yield {
      what: functools.partial(call, what)
      for what in ("forward", "step", "decode")
    }
  finally:
    process.stdin.close()
    process.wait()


def compare(name: str, size: int, rounds: int, root: Path | None) -> None:
  """Prints the rows of one model."""
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    theirs = peer(name)
    theirs.save_pretrained(folder)
    logits, ours = our_calls(name, folder, size)
    expected, peers = their_calls(name, theirs, size)
    check(name, logits, expected)
    sides = {"ours": ours, "theirs": peers}
    timers = {
      side: {what: functools.partial(timed, call) for what, call in of.items()}
      for side, of in sides.items()
    }
    if root is not None:
      timers["before"] = stack.enter_context(other(root, name, folder, size))
      check(f"{name} before", np.load(f"{folder}/other.npy"), expected)
    for what in ours:
      row(f"{name} {VARIANTS[name]} {what}", timers, what, rounds)


def check(name: str, logits: np.ndarray, expected: np.ndarray) -> None:
  error = float(np.abs(logits - expected).max())
  if not error <= AGREE:
    raise SystemExit(
      f"{name}: expected logits within {AGREE} of the peer's, got {error:.1e}"
    )


def row(label: str, timers: dict, what: str, rounds: int) -> None:
  sides = list(timers)
  for _ in range(2):  # compiles
    for side in sides:
      timers[side][what]()
  times = np.zeros((rounds, len(sides), 2))
  for i in range(rounds):
    for j in range(len(sides))[:: 1 if i % 2 else -1]:
      times[i, j] = timers[sides[j]][what]()
  middle = np.median(times, 0)
  for j, side in enumerate(sides):
    if side == "theirs":
      continue
    ratio = times[:, j] / times[:, 1]
    low, mid, high = np.quantile(ratio[:, 0], [0.25, 0.5, 0.75])
    print(
      f"{label:24} {side:6} {middle[j, 0]:7.3f} {middle[1, 0]:7.3f} {mid:6.2f}"
      f" ({low:.2f} to {high:.2f}) {middle[j, 1]:7.3f} {middle[1, 1]:7.3f}"
      f" {np.median(ratio[:, 1]):6.2f}",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description="Ours beside transformers.")
  parser.add_argument("--models", default="vit,swin_v2,t5")
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--revision", help="Revision to run in the same rounds.")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  args = parser.parse_args()
  names = args.models.split(",")
  for name in names:
    if name not in VARIANTS:
      parser.error(f"Expected models of {', '.join(VARIANTS)}, got {name!r}")
  if args.batch < 1 or args.rounds < 1:
    parser.error("Expected --batch and --rounds of 1 or more")
  if args.serve:
    serve(names[0], args.serve, args.batch)
    return
  for package in ("torch", "transformers"):
    if importlib.util.find_spec(package) is None:
      parser.error(f"{package} is missing; install it: pip install {package}")

  import torch  # pyrefly: ignore[missing-import]

  torch.set_flush_denormal(True)
  versions = " ".join(
    f"{package} {importlib.metadata.version(package)}"
    for package in ("jax", "torch", "transformers")
  )
  print(f"{versions}, batch {args.batch}, {args.rounds} rounds")
  print("load before", *(f"{load:.2f}" for load in os.getloadavg()))
  print(
    f"{'':31} {'cpu, s':>7} {'theirs':>7} {'ratio (quartiles)':>21}"
    f" {'wall, s':>7} {'theirs':>7} {'ratio':>6}"
  )
  with contextlib.ExitStack() as stack:
    root = None
    if args.revision:
      root = stack.enter_context(checkout(args.revision))
    for name in names:
      compare(name, args.batch, args.rounds, root)
  print("load after", *(f"{load:.2f}" for load in os.getloadavg()))


if __name__ == "__main__":
  main()
