"""The table of transforms: one row each, with what it computes in numpy.

A reference gets one leaf: the weights, the gradients and the masks (None at a
dense leaf) of every step, and returns the updates of every step.
"""

from typing import NamedTuple

import numpy as np
import optax
import pytest

from figs_jax.optim import (
  decay_pruned,
  gradient_flow,
  mask_moments,
  mask_updates,
  scale_by_step_adam,
)


class Row(NamedTuple):
  make: object
  reference: object
  collectives: bool = False  # of scalars: the criterion's mean


def decayed(w, g, m):
  return [
    g if m is None else g + 0.1 / (1 + t) * ~m * w
    for t, (w, g, m) in enumerate(zip(w, g, m))
  ]


def decoupled(w, g, m):
  return [g if m is None else g + 0.1 * ~m * w for w, g, m in zip(w, g, m)]


def flowing(w, g, m):
  return [
    g if m is None else g * (m + ~m / (1 + t))
    for t, (g, m) in enumerate(zip(g, m))
  ]


def stopped(w, g, m):
  return [g if m is None else np.where(m, g, 0) for g, m in zip(g, m)]


def cleared(w, g, m):
  return [g if m is None else np.where(m, g, -w) for w, g, m in zip(w, g, m)]


def momentum(mode):
  def reference(weights, grads, masks):
    trace, out = 0 * grads[0], []
    previous = np.ones(grads[0].shape, bool)
    for g, m in zip(grads, masks):
      if mode == "reset" and m is not None:
        trace, previous = trace * (m == previous), m
      trace = g + 0.9 * trace
      out.append(trace)
      if mode == "zero" and m is not None:
        trace = trace * m
    return out

  return reference


def step(weights, grads, masks, t_max=4, b1=0.9, b2=0.999, eps=1e-8):
  mu, nu, star, out = 0 * grads[0], 0 * grads[0], None, []
  for t, (g, m) in enumerate(zip(grads, masks), start=1):
    mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
    hat = nu / (1 - b2**t)
    masked = star is not None and m is not None
    root = np.sqrt(star if masked else hat) + eps
    out.append(mu / (1 - b1**t) / root)
    if t == t_max + 1:
      star = hat
  return out


def trace(mode):
  return lambda: mask_moments(optax.trace(0.9), mode)


TABLE = {
  "decay_pruned": Row(
    lambda: decay_pruned(0.1, schedule=lambda t: 1 / (1 + t)), decayed
  ),
  "decay_pruned_decoupled": Row(
    lambda: decay_pruned(0.1, "decoupled"), decoupled
  ),
  "gradient_flow": Row(lambda: gradient_flow(lambda t: 1 / (1 + t)), flowing),
  "mask_updates": Row(mask_updates, stopped),
  "mask_updates_clear": Row(lambda: mask_updates(clear=True), cleared),
  "mask_moments_zero": Row(trace("zero"), momentum("zero")),
  "mask_moments_keep": Row(trace("keep"), momentum("keep")),
  "mask_moments_reset": Row(trace("reset"), momentum("reset")),
  "scale_by_step_adam": Row(
    lambda: scale_by_step_adam(t_min=2, t_max=4, threshold=0.0), step, True
  ),
}


@pytest.fixture(params=TABLE)
def row(request):
  return TABLE[request.param]


@pytest.fixture
def make(row):
  return row.make
