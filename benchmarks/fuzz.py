"""Files with random changes: each is read, or refused in one line.

Every kind of file that the programs read is written soundly, then changed
(truncated, bits flipped, bytes removed, words of JSON put in) and read in this
process. A row counts the files that were read, those that were refused in one
line that names the file (or its field of a configuration), and the others: a
traceback, a message of several lines, or a reading of more than `--seconds`.
The program exits with 1 if there is one. Steps of checkpoints are changed by
survival.py.

  python benchmarks/fuzz.py --files 500 --kinds npz,config
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import runpy
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from figs_jax import export
from figs_jax.core import NM, MaskedKernel
from figs_jax.data import DataError, idx, npz_images
from figs_jax.engine.layer_csv import read_layers
from figs_jax.models.pretrained.files import opened_weights
from figs_jax.train import default_config, schema
from figs_jax.train.config import completed
from figs_jax.train.log_writer import read_log

ROOT = Path(__file__).parents[1]
KERNEL = np.eye(8, dtype=np.float32)
WORDS = (b"null", b"NaN", b"[" * 5000, b"-1", b"9" * 5000, b'{"a":', b"true")
# Folder -> a sound file in it, and the function that reads a file.
Kind = Callable[[Path], tuple[Path, Callable[[Path], Any]]]


class TooSlowError(Exception):
  """A file took longer than `--seconds`."""


def _weights(path: Path) -> None:
  with opened_weights(path) as tensors:
    for tensor in tensors.values():
      tensor.read()


def packed(folder: Path):
  path = folder / "a.safetensors"
  export.write_packed(
    path, {"w": KERNEL}, {"w": MaskedKernel((8, 8), NM(1, 8), 0)}
  )
  return path, export.read


def safetensors(folder: Path):
  path = folder / "b.safetensors"
  export.write(path, {"w": KERNEL})
  return path, _weights


def weights_npz(folder: Path):
  path = folder / "c.npz"
  np.savez(path, w=KERNEL, b=np.ones(3, np.float32))
  return path, _weights


def index(folder: Path):
  part, _ = safetensors(folder)
  path = folder / "d.json"
  path.write_text(json.dumps({"weight_map": {"w": part.name}}))
  return path, _weights


def images_npz(folder: Path):
  path = folder / "e.npz"
  np.savez(path, image=np.zeros((15, 2, 2), np.uint8), label=np.arange(15) % 3)
  return path, npz_images.read


def idx_images(folder: Path):
  path = folder / "train-images-idx3-ubyte"
  head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 2, 2)
  path.write_bytes(head + bytes(16))
  return path, idx.read


def layers_csv(folder: Path):
  path = folder / "layers.csv"
  path.write_text("name,M,N,K,pattern\na,4,8,16,1:4\nb,4,8,16,dense\n")
  return path, read_layers


def metrics(folder: Path):
  path = folder / "metrics.jsonl"
  path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": "NaN"}\n')
  return path, lambda path: read_log(path.parent)


def config(folder: Path):
  path = folder / "config.json"
  path.write_text(default_config("figs").to_json_best_effort())

  def read(path: Path) -> None:
    get_config = runpy.run_path(str(ROOT / "launch" / "again.py"))["get_config"]
    schema.check(completed(get_config(str(path)).to_dict()))

  return path, read


KINDS: dict[str, Kind] = {
  kind.__name__: kind
  for kind in (
    packed, safetensors, weights_npz, index, images_npz, idx_images, layers_csv,
    metrics, config,
  )
}  # fmt: skip


def changed(content: bytes, draw: random.Random) -> bytes:
  """The content with one to three random changes."""
  data = bytearray(content)
  for _ in range(draw.randint(1, 3)):
    at = draw.randrange(len(data) + 1)
    kind = draw.randrange(5)
    if kind == 0:
      del data[at:]
    elif kind == 1 and at < len(data):
      data[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
      del data[at : at + draw.randint(1, 9)]
    elif kind == 3:
      data[at : at + draw.randint(0, 9)] = draw.choice(WORDS)
    else:
      data[at:at] = data[: draw.randint(0, len(data))]
  return bytes(data)


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
  """Raises TooSlowError in the block after so many seconds."""

  def ring(*_: Any) -> None:
    raise TooSlowError

  signal.signal(signal.SIGALRM, ring)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)


def outcome(read: Callable[[Path], Any], path: Path, seconds: int) -> str:
  """`read`, `refused`, or what is wrong."""
  try:
    with limited(seconds):
      read(path)
  except (ValueError, DataError) as error:
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    line = str(error)
    named = str(path.parent) in line or line.startswith("--config.")
    if "\n" in line or not named:
      return f"{type(error).__name__} of {Path(where).name}: {line}"
    return "refused"
  except TooSlowError:
    return f"longer than {seconds} s"
  except Exception as error:  # a traceback is a row of the report
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} of {where.filename}:{where.lineno}"
  return "read"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--files", type=int, default=300, help="Of each kind.")
  parser.add_argument("--seconds", type=int, default=5)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", default=",".join(KINDS))
  args = parser.parse_args()
  logging.disable(logging.WARNING)
  wrong: list[str] = []
  print("| kind | files | read | refused | others |\n|---|---|---|---|---|")
  for name in args.kinds.split(","):
    draw = random.Random(f"{name} {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
      path, read = KINDS[name](Path(folder))
      content = path.read_bytes()
      read(path)
      results = []
      for _ in range(args.files):
        path.write_bytes(changed(content, draw))
        results.append(outcome(read, path, args.seconds))
    counts = [results.count(result) for result in ("read", "refused")]
    others = [r for r in results if r not in ("read", "refused")]
    wrong += [f"* {name}: {other[:200]!r}" for other in dict.fromkeys(others)]
    print(f"| {name} | {args.files} | {counts[0]} | {counts[1]} |", end=" ")
    print(len(others), "|", flush=True)
  print("\n" + "\n".join(wrong) if wrong else "\nno others")
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()
