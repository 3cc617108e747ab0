"""What recipes are made of, in plain numpy: the pieces of a row.

Nothing here calls the package. Kernels are [in, out] in float64, groups lie on
axis 0. Formulas are those of the papers, by loops and sorts.
"""

import functools
import itertools
import math

import numpy as np

TOTAL = 20
RATE, B1, B2, EPS, CLIP = 0.05, 0.9, 0.9, 1e-3, 0.3


# Pattern schedules: (n, m, length of the group axis) -> patterns.


def never(n, m, length):
  return []


def direct(n, m, length):
  return [(n, m)]


def halves(n, m, length):
  """(M-1):M, M/2:M, M/4:M, ..., N:M."""
  counts, half = [m - 1], m // 2
  while half > n:
    counts.append(half)
    half //= 2
  return [(count, m) for count in counts if count > n] + [(n, m)]


def aqt(n, m, length):
  """n(d) = M - 1 if d = 1 else ceil(M / 2^d)."""
  counts = [m - 1 if d == 1 else math.ceil(m / 2**d) for d in range(1, 20)]
  return [(c, m) for c in counts if c > n] + [(n, m)]


def countdown(n, m, length):
  return [(count, m) for count in range(m - 1, n, -1)] + [(n, m)]


def then_dense(n, m, length):
  return [(n, m), (m, m)]


def geometric(k):
  """kN:kM, ..., 2N:2M, N:M; k is halved until kM divides the length."""

  def patterns(n, m, length):
    f, stages = k, []
    while length % (f * m):
      f //= 2
    while f:
      stages.append((f * n, f * m))
      f //= 2
    return stages

  return patterns


# Stage schedules: (S, step, start, end) -> the stage in the decay phase.


def equal(stages, step, start, end):
  return 1 + (step - start) * stages // (end - start)


def every(freq):
  def stage(stages, step, start, end):
    return min(1 + (step - start) // freq, stages)

  return stage


def last_at_end(stages, step, start, end):
  return stages if step >= end else 1


def cubic(stages, step, start, end):
  """floor(S * (1 - (1 - t)^3)), in integers."""
  steps, left = end - start, end - step
  return stages * (steps**3 - left**3) // steps**3


# Leaks: (step, start, end of the decay phase) -> D in between.


def hard(step, start, end):
  return 0.0


def linear(beta=None, zero_at=0.7):
  def leak(step, start, end):
    slope = beta or 1 / (round(zero_at * TOTAL) - start)
    return max(1 - slope * (step - start), 0.0)

  return leak


def exponential(beta=None, zero_at=0.7):
  """exp(-beta j), cut to 0 below 1e-3."""

  def leak(step, start, end):
    rate = beta or math.log(1000) / (round(zero_at * TOTAL) - start)
    d = math.exp(-rate * (step - start))
    return d if d > 1e-3 * (1 - 1e-9) else 0.0

  return leak


def stairs(omega, freq=None):
  """max(1 - d omega, 0); freq None shares the phase among the stairs."""

  def leak(step, start, end):
    j = step - start
    d = j // freq if freq else j * math.ceil(1 / omega) // (end - start)
    return max(1 - d * omega, 0.0)

  return leak


def cosine(step, start, end):
  return (1 + math.cos(math.pi * (step - start) / (end - start))) / 2


# Choices: (view, n, m) -> mask. A view has weight, grad, mask (of the step
# before; the latter two may be None), step, and draws.


def top(scores, n, m):
  """n True per group: the largest, NaN last, the lowest index first."""
  scores = np.asarray(scores, np.float64)
  kept = np.zeros(scores.shape, bool)
  for first in range(0, len(scores), m):
    group = scores[first : first + m]
    rank = np.argsort(
      np.where(np.isnan(group), np.inf, -group), 0, kind="stable"
    )
    np.put_along_axis(kept[first : first + m], rank[:n], True, 0)
  return kept


def largest(view, n, m):
  return top(np.abs(view.weight), n, m)


def nested(view, n, m):
  """At most n: what the mask before did not keep cannot return."""
  if view.mask is None:
    return largest(view, n, m)
  size = np.where(np.isnan(view.weight), -1, np.abs(view.weight))
  return top(np.where(view.mask, size, -2), n, m) & view.mask


def salient(view, n, m):
  if view.grad is None:
    return largest(view, n, m)
  product = view.weight.astype(np.float32) * view.grad.astype(np.float32)
  return top(np.abs(product), n, m)


def drawn(view, n, m):
  return top(view.draws.once(), n, m)


@functools.cache
def _blocks(n, m):
  """Every m x m mask with n per row and column."""
  rows = [
    [i in kept for i in range(m)]
    for kept in itertools.combinations(range(m), n)
  ]
  blocks = np.array(list(itertools.product(rows, repeat=m)))
  return blocks[np.all(blocks.sum(1) == n, 1)]


def both_ways(view, n, m):
  """The block of those that keeps most, found by trying all."""
  masks = _blocks(n, m)
  size = np.nan_to_num(np.abs(view.weight))
  out = np.zeros(size.shape, bool)
  for i in range(0, size.shape[0], m):
    for j in range(0, size.shape[1], m):
      place = (slice(i, i + m), slice(j, j + m))
      out[place] = masks[np.argmax((masks * size[place]).sum((1, 2)))]
  return out


def regrown(by, start, until=0.75):
  """RigL (by gradient) and SET (at random): drop the smallest, grow others."""

  def choose(view, n, m):
    if view.mask is None or np.any(_counts(view.mask, m) != n):
      return largest(view, n, m)
    t, end = view.step, round(until * TOTAL)
    share = start / 2 * (1 + math.cos(math.pi * t / end)) if t < end else 0.0
    rounding, growth = view.draws.regrow(t, m)
    growth = np.abs(view.grad) if by == "gradient" else growth
    out = np.zeros(view.mask.shape, bool)
    for g, first in enumerate(range(0, len(out), m)):
      for c in range(out.shape[1]):
        place = (slice(first, first + m), c)
        lost = share * n
        lost = math.floor(lost) + (rounding[g, c] < lost - math.floor(lost))
        old, w = view.mask[place], view.weight[place]
        size = np.where(old, np.abs(w), -1)
        order = sorted(range(m), key=lambda i: (np.isnan(size[i]), -size[i], i))
        stay = [i for i in order[: n - lost] if old[i]]
        grow = [i for i in range(m) if i not in stay]
        grow.sort(key=lambda i, p=growth[place]: (-p[i], i))
        for i in stay + grow[: n - len(stay)]:
          out[first + i, c] = True
    return out

  return choose


def _counts(mask, m):
  return mask.reshape(-1, m, mask.shape[1]).sum(1)


# Adam, and what recipes change about it.


class Adam:
  """Clipping by the global norm, then Adam; hooks for what recipes need."""

  switched = False

  def __init__(self):
    self.t, self.m, self.v = 0, {}, {}

  def __call__(self, grads, weights, masks):
    norm = math.sqrt(sum(np.sum(g**2) for g in grads.values()))
    new, self.t = {}, self.t + 1
    for name, g in grads.items():
      w, mask = weights[name], masks.get(name)
      g = g * min(1, CLIP / norm)
      if mask is not None:
        g = self.gradient(g, w, mask)
      self.m[name] = B1 * self.m.get(name, 0) + (1 - B1) * g
      v, root = self.second(name, g, mask)
      self.v[name] = v
      step = RATE * self.m[name] / (1 - B1**self.t) / root
      new[name] = w - step
      if mask is not None:
        new[name] = self.after(name, new[name], w, mask)
    self.end()
    return new

  def gradient(self, g, w, mask):
    return g

  def second(self, name, g, mask):
    v = B2 * self.v.get(name, 0) + (1 - B2) * g**2
    return v, np.sqrt(v / (1 - B2**self.t)) + EPS

  def after(self, name, new, w, mask):
    return new

  def end(self):
    pass


def pulled(decay, mode="into_grad", until=0):
  """SR-STE: lambda * not m * w in the gradient, or off the weights."""

  class Pulled(Adam):
    def term(self, w, mask):
      rise = min((self.t - 1) / until, 1) if until else 1
      return decay * rise * np.where(mask, 0, w)

    def gradient(self, g, w, mask):
      return g + self.term(w, mask) if mode == "into_grad" else g

    def after(self, name, new, w, mask):
      return new - RATE * self.term(w, mask) if mode == "decoupled" else new

  return Pulled


class Cleared(Adam):
  """Pruned weights are 0 after every update."""

  def after(self, name, new, w, mask):
    return np.where(mask, new, 0)


class Anew(Cleared):
  """And so are their moments."""

  def after(self, name, new, w, mask):
    self.m[name] = np.where(mask, self.m[name], 0)
    self.v[name] = np.where(mask, self.v[name], 0)
    return super().after(name, new, w, mask)


def frozen(
  t_min, t_max, limit, relative=False, geo=False, correct=True, in_root=False
):
  """STEP: v of masked leaves stays where AutoSwitch found it settled."""

  class Frozen(Adam):
    def __init__(self):
      super().__init__()
      self.window, self.moved, self.sizes, self.star = [], [], [], {}

    def second(self, name, g, mask):
      v, root = super().second(name, g, mask)
      if mask is None:
        return v, root
      if self.switched:
        star = self.star[name]
        return self.v[name], (
          np.sqrt(star + EPS) if in_root else np.sqrt(star) + EPS
        )
      self.moved.append(np.abs(v - self.v.get(name, 0)).ravel())
      self.sizes.append(v.ravel())
      self.star[name] = v / (1 - B2**self.t) if correct else v
      return v, root

    def end(self):
      if self.switched:
        return
      moved = np.concatenate(self.moved)
      z = np.exp(np.mean(np.log(moved + 1e-38))) if geo else moved.mean()
      length = min(round(1 / (1 - B2)), t_min)
      self.window = [*self.window, z][-length:]
      value = np.mean(self.window)
      if relative:
        value = value / np.concatenate(self.sizes).mean()
      settled = len(self.window) == length and value < limit
      self.switched = (settled and self.t > t_min) or self.t > t_max
      self.moved, self.sizes = [], []

  return Frozen
