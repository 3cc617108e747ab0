"""What every comparison with another library shares: names, and gradients."""

import numpy as np

ATOL, COSINE = 1e-4, 0.99999


def under(prefix, stored):
  """The arrays whose names have this prefix, without it."""
  return {
    key.removeprefix(prefix): value
    for key, value in stored.items()
    if key.startswith(prefix)
  }


def check_gradient(path, got, want):
  """Compares the direction and length of a tensor's gradient."""
  got, want = (np.asarray(g, np.float64) for g in (got, want))
  lengths = np.linalg.norm(got), np.linalg.norm(want)
  assert (got * want).sum() > COSINE * lengths[0] * lengths[1], path
  assert abs(lengths[0] / lengths[1] - 1) < 1e-3, path
