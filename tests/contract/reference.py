"""A run of every row in plain numpy: what the table is checked against.

What a recipe draws at random comes from outside (`draws`); all the rest is done
again.
"""

from typing import Any, NamedTuple

import numpy as np

from .draws import points as drawn_points
from .pieces import TOTAL, largest, never


class View(NamedTuple):
  """What a choice looks at; see above."""

  weight: Any
  grad: Any
  mask: Any
  step: int
  draws: Any


class Clock:
  """When a row's masks change, from its options."""

  def __init__(self, row):
    options = row.options
    self.row, self.start = row, round(options["dense"] * TOTAL)
    self.end = TOTAL - round(options["finetune"] * TOTAL)
    if row.patterns is never:
      self.start = self.end = TOTAL

  def stages(self, length, n, m):
    return [(m, m), *self.row.patterns(n, m, length)]

  def stage(self, stages, step, switched):
    """0 in the dense phase, then 1..S, S the number of patterns."""
    if self.row.switches:
      return stages if switched else 0
    if step >= self.end or step < self.start:
      return stages if step >= self.end else 0
    return self.row.stages(stages, step, self.start, self.end)

  def leak(self, stage, step):
    if stage == 0:
      return 1.0
    if step >= self.end:
      return 0.0
    return self.row.leak(step, self.start, self.end)

  def mask(self, view, n, m, switched=False, was=False):
    """The mask for the pass of `view.step`, from the one before."""
    stages = self.stages(len(view.weight), n, m)
    last, step = len(stages) - 1, view.step
    now = self.stage(last, step, switched)
    before = self.stage(last, step - 1, was)
    if view.mask is not None and now == before and not self.due(view):
      return view.mask
    return self.chosen(view, stages, now)

  def due(self, view):
    if self.row.by_chance:
      return view.draws.due(view.step)
    often = self.row.options["refresh_every"]
    return bool(often) and view.step % often == 0

  def chosen(self, view, stages, now):
    if now == 0:
      return np.ones(view.weight.shape, bool)
    return self.row.choose(view, *stages[now])

  def final(self, view, n, m, switched=False):
    """The mask of the finished model after `view.step` updates."""
    stages = self.stages(len(view.weight), n, m)
    last = len(stages) - 1
    if self.stage(last, view.step, switched) == last:
      return view.mask
    return self.chosen(view._replace(mask=None, grad=None), stages, last)


def soft(w, mask, m):
  """S(w) = sign(w) * max(|w| - t, 0), t the largest pruned |w|."""
  size = np.abs(w).reshape(-1, m, w.shape[1])
  pruned = np.where(mask.reshape(size.shape), 0, size)
  t = pruned.max(1, keepdims=True)
  return np.sign(w) * np.maximum(size - t, 0).reshape(w.shape) * mask


def run(row, weights, batches, draws):
  """What every step of a run is: masks, leak, weights, loss, flag.

  The model is x -> tanh(x W1 + b1) W2 + b2 under a mean squared error.

  Returns:
    A list of dicts, one per step, and one more for the end (without loss).
  """
  clock, adam, history = Clock(row), row.adam(), []
  w = {k: np.float64(v) for k, v in weights.items()}
  views = {k: View(w[k], None, None, 0, draws[k]) for k in row.targets}
  masks = {k: clock.mask(views[k], *nm) for k, nm in row.targets.items()}
  beta = {}
  for k, (n, m) in row.targets.items():
    s = soft(w[k], largest(views[k], n, m), m)
    beta[k] = np.sum(w[k] * s) / np.sum(s * s)
  for step in range(TOTAL + 1):
    longest = max(
      len(clock.stages(TOTAL**9 * m * 1024, n, m)) - 1
      for n, m in row.targets.values()
    )
    stage = clock.stage(longest, step, adam.switched)
    leak = clock.leak(stage, step)
    now = {"masks": masks, "leak": leak, "weights": w}
    history.append({**now, "switched": adam.switched})
    if step == TOTAL:
      return history
    history[-1]["loss"], grads = _mean(
      _pass(row, w, each, leak, beta, batches[step])
      for each in _masks_of_passes(row, w, masks, stage, step, draws)
    )
    was = adam.switched
    w = adam(grads, w, masks)
    masks = {
      k: clock.mask(
        View(w[k], grads[k], masks[k], step + 1, draws[k]),
        *nm,
        adam.switched,
        was,
      )
      for k, nm in row.targets.items()
    }


def _masks_of_passes(row, w, masks, stage, step, draws):
  """The masks of every pass of a step: one, or one for each of its points."""
  if not row.points or stage == 0:
    return [masks]
  views = {k: View(w[k], None, None, step, draws[k]) for k in masks}
  return [
    {k: largest(views[k], n, row.targets[k][1]) for k in masks}
    for n in drawn_points(row.points, row.sampled)[step]
  ]


def _pass(row, w, masks, leak, beta, batch):
  """Loss and gradients of one pass."""
  seen = dict(w)
  for k, mask in masks.items():
    seen[k] = np.where(mask, w[k], leak * w[k])
    if row.soft and leak == 0:
      seen[k] = beta[k] * soft(w[k], mask, row.targets[k][1])
  loss, grads = _backward(seen, *batch)
  for k, mask in masks.items():
    factor = {"ste": 1.0, "damped": leak, "masked": 0.0}[row.grad]
    grads[k] = np.where(mask, grads[k], factor * grads[k])
    grads[k] = grads[k] + row.backward * np.where(mask, 0, w[k])
  return loss, grads


def _mean(passes):
  losses, grads = zip(*passes)
  return np.mean(losses), {
    k: np.mean([g[k] for g in grads], 0) for k in grads[0]
  }


def _backward(w, x, y):
  """Loss and gradients, by hand."""
  x, y = np.float64(x), np.float64(y)
  h = np.tanh(x @ w["fc1"] + w["b1"])
  error = h @ w["fc2"] + w["b2"] - y
  down = 2 * error / error.size
  back = (down @ w["fc2"].T) * (1 - h**2)
  grads = {"fc1": x.T @ back, "b1": back.sum(0)}
  grads |= {"fc2": h.T @ down, "b2": down.sum(0)}
  return np.mean(error**2), grads
