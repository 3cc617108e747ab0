"""2:4 weights as PyTorch packs them.

As a script it writes fixtures/semi_structured.npz, where torch is installed:

  python tests/export/semi_structured_oracle.py

The file holds, for every case, a weight [out, in] of 16-bit floats, and what
PyTorch's CUTLASS layout makes of it; all as their bits.
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "semi_structured.npz"
# name -> dtype, shape
CASES = {
  "half": ("float16", (64, 128)),
  "brain": ("bfloat16", (32, 192)),
}


def weight(seed: int, shape: tuple[int, int]) -> np.ndarray:
  """float32, at most two of every four, some groups with fewer."""
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(*shape[:-1], shape[-1] // 4, 4))
  places = rng.random(values.shape).argsort(-1)
  most = rng.integers(0, 3, values.shape[:-1])[..., None]
  kept = np.where(places < most, values, 0)
  return kept.reshape(shape).astype(np.float32)


def packed(values: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
  """The bits of the weight, cast, and of both parts that torch makes."""
  # Imported late: the doctest collector imports every file under tests.
  import torch
  from torch.sparse import _semi_structured_conversions as conversions

  dense = torch.from_numpy(values).to(getattr(torch, dtype))
  parts = conversions.sparse_semi_structured_from_dense_cutlass(dense)
  names = ("weight", "packed", "meta")
  return {
    name: part.view(torch.int16).numpy()
    for name, part in zip(names, (dense, *parts))
  }


def main() -> None:
  stored = {}
  for seed, (case, (dtype, shape)) in enumerate(CASES.items()):
    parts = packed(weight(seed, shape), dtype)
    stored |= {f"{case}/{name}": value for name, value in parts.items()}
  TARGET.parent.mkdir(exist_ok=True)
  np.savez_compressed(TARGET, **stored)
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main()
