"""One placement of a decoder on a cluster, in plain Python, stage by stage.

The formulas of `figs_jax.engine.studies.cluster` as scalar loops; products of
matrices alone come from the engine.
"""

import functools
import math

from figs_jax.engine import parse
from figs_jax.engine._cost import cost


@functools.lru_cache(10**5)
def product_ns(engine, M, N, K, pattern=None):
  row = {"name": "x", "M": M, "N": N, "K": K, "pattern": pattern}
  return int(cost([row], engine).cycles[0])


def gather(size, d, stride, cluster):
  """A pass over d devices, node by node."""
  local = math.gcd(d, max(cluster.per_node // stride, 1))
  nodes, time = d // local, 0.0
  for _ in range(nodes - 1):
    time += size / local / nodes / cluster.inter + cluster.inter_latency
  for _ in range(local - 1):
    time += size / local / cluster.intra + cluster.intra_latency
  return time


def block_of(decoder, engine, b, t, r, sequence, cluster, pattern=None, v=2):
  """(forward ns, backward ns, bytes stored, all its bytes) of a block."""
  s, h, a, f = decoder.seq, decoder.width, decoder.heads, decoder.ffn
  share = t if sequence else 1
  sbh = s * b * h
  products = [
    (b * s, h // t, h, None, 3),
    (b * s, h, h // t, None, 1),
    (b * s, f // t, h, pattern, 1),
    (b * s, h, f // t, pattern, 1),
  ]
  heads = [(s, s, h // a), (s, h // a, s)]
  core = sum(b * a // t * product_ns(engine, *x) for x in heads)
  forward = core + sum(
    n * product_ns(engine, *x, pat) for *x, pat, n in products
  )
  back = 0
  for M, N, K, _, n in products:
    back += n * product_ns(engine, M, K, N) + n * product_ns(engine, K, N, M)
  for M, N, K in heads:
    both = product_ns(engine, M, K, N) + product_ns(engine, K, N, M)
    back += b * a // t * both
  hbm = parse(engine).memory_bandwidth
  soft = (2 * v + 2 * v + 1) * a * s * s * b / t / hbm
  moved = (
    soft
    + (
      2 * (2 * v * sbh) / share  # two norms
      + 2 * (3 * v + 1) * sbh / share  # two dropouts and residuals
      + 2 * v * s * b * f / t  # GeLU
    )
    / hbm
  )
  summed = 0.0
  for _ in range(2):  # o and fc2
    summed += 2 * gather(v * sbh, t, 1, cluster)
  whole = sbh * (10 / share + (6 + 2) / t) + 2 * v * s * b * f / t
  scores = 5 * a * s * s * b / t
  first = forward + moved + summed
  again = (0, core + soft, first)[r]
  stored = (whole + scores, whole, v * sbh / share)[r]
  return first, back + 1.5 * moved + summed + again, stored, whole + scores


def placement(
  decoder, engine, cluster, row, batch, sizes, overlap, pattern=None
):
  """(ns, memory of the fullest device before the tier, bytes in the tier)."""
  d, t, p = row["data"], row["tensor"], row["pipeline"]
  b, u, v, zero = (
    row[x] for x in ("microbatch", "microbatches", "interleave", "zero")
  )
  assert d * b * u == batch
  args = decoder, engine, b, t, row["recompute"], row["sequence"], cluster
  fwd, bwd, stored, whole = block_of(*args, pattern)
  s, h, vocab = decoder.seq, decoder.width, -(-decoder.vocab // t)
  hbm = parse(engine).memory_bandwidth
  logits = 2 * 4 * s * b * vocab / hbm
  head_f = product_ns(engine, b * s, vocab, h) + logits
  head_b = product_ns(engine, b * s, h, vocab) + 1.5 * logits
  head_b += product_ns(engine, h, vocab, b * s)
  if row["recompute"] == 2:
    head_b += head_f
  forward, backward, memory = [], [], []
  fullest, most, kept, biggest = {}, -1.0, 0.0, 0.0
  layers = decoder.layers
  dense = h * h * 4 // t
  ff = 2 * h * decoder.ffn // t
  for i in range(p):
    blocks = layers // p + (i < layers % p)
    last = i == p - 1
    forward.append(blocks * fwd + last * head_f)
    backward.append(blocks * bwd + last * head_b)
    weights = blocks * (dense + ff)
    weights += last * h * vocab + (i == 0) * decoder.embedding / t
    flight = min(u, p - i)
    if v > 1:
      flight = min(u * v, 2 * (p - 1 - i) + (v - 1) * p + 1) / v
    parts = {
      "weights": weights * sizes.value / (d if zero == 3 else 1),
      "masks": sizes.mask
      * blocks
      * ff
      * bool(pattern)
      / (d if zero == 3 else 1),
      "gradients": weights * sizes.gradient / (d if zero >= 2 else 1),
      "optimizer": weights * sizes.states / (d if zero >= 1 else 1),
      "activations": flight * blocks * stored
      + last * s * b * (2 * 2 * h + 4 * vocab)
      + (whole if row["recompute"] == 2 else 0),
    }
    if zero == 3:  # room to gather the largest block, the last with the head
      parts["weights"] += sizes.value * (dense + ff + h * vocab)
    memory.append(sum(parts.values()))
    if memory[-1] > most:
      fullest, most, kept = parts, memory[-1], blocks * stored
    biggest = max(biggest, weights)
  far = d * t * p > cluster.per_node
  gbps = cluster.inter if far else cluster.intra
  wait = cluster.inter_latency if far else cluster.intra_latency
  send = (2 * s * b * h / t / gbps + wait) if p > 1 else 0.0
  pipeline = 0.0
  for stages in (forward, backward):
    slow = max(stages)
    pipeline += slow + (sum(stages) - slow) / v + (p - 1) * send
    pipeline += (u - 1) * max(slow, v * send)
  g = gather(sizes.gradient * biggest, d, t, cluster)
  w = gather(sizes.value * biggest, d, t, cluster)
  exchange = {0: 2 * g, 1: g + w, 2: u * g + w, 3: u * g + 2 * u * w}[zero]
  slow_b, slow_f = max(backward), max(forward)
  window = {0: slow_b, 1: slow_b, 2: u * slow_b, 3: u * (slow_b + slow_f)}[zero]
  exposed = max(exchange - window, 0.0) if overlap else exchange
  excess, room = max(most - cluster.memory, 0.0), float(cluster.tier_memory)
  tiered = {}
  for name in ("optimizer", "activations", "gradients", "weights"):
    tiered[name] = min(excess, fullest[name], room)
    excess, room = excess - tiered[name], room - tiered[name]
  traffic = tiered["activations"] / fullest["activations"] * kept
  traffic = 2 * u * (traffic + tiered["gradients"] + tiered["weights"])
  busy = u * max(f + b_ for f, b_ in zip(forward, backward))
  tier = traffic / cluster.tier_bandwidth
  tier = max(tier - busy, 0.0) if overlap else tier
  tier += 2 * tiered["optimizer"] / cluster.tier_bandwidth
  owned = fullest["optimizer"] / sizes.states
  step = 2 * (fullest["optimizer"] - tiered["optimizer"])
  step = (step + owned * (sizes.gradient + sizes.value)) / hbm
  return pipeline + exposed + tier + step, most, sum(tiered.values())
