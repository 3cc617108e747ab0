"""From models on an engine to the tables by which queries are scheduled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figs_jax.engine.serving.buffer import best_subgraph
from figs_jax.engine.serving.comparison import Contender
from figs_jax.engine.serving.policies import Policy, ServiceTable
from figs_jax.engine.serving.subgraph import NestedModel, nested_model


def service_table(
  model: NestedModel,
  accuracy: Sequence[float],
  buffer: int = 0,
  objective: str = "bytes",
) -> ServiceTable:
  """The table by which queries are scheduled, for a buffer of so many bytes.

  Candidates of what is cached: the best sub-graph for queries at each point,
  the sparsest first, and then for as many queries at every point.

  Args:
    model: Nested model on an engine, one query.
    accuracy: Accuracy of each point, from 0 to 1.
    buffer: Bytes of the buffer.
    objective: What the cached sub-graph saves, "bytes" or "latency".

  Raises:
    ValueError: If the accuracies are not one per point, or as `best_subgraph`.

  >>> from figs_jax.engine.serving.subgraph import nested_model
  >>> rows = [{"name": "ff", "M": 1, "N": 64, "K": 64}]
  >>> model = nested_model(rows, "ws:8x8:dram_bw=1", "1:4,4:4")
  >>> service_table(model, [0.8, 0.9], 2304).latency.tolist()
  [[368, 368, 368], [7168, 7168, 7168]]
  """
  P = len(model.points)
  mixes = [*np.eye(P, dtype=int).tolist(), [1] * P]
  graphs = np.stack(
    [best_subgraph(model, buffer, mix, objective).cached for mix in mixes]
  )
  query = model.query(graphs)
  change = model.change(graphs[:, None], graphs)
  return ServiceTable(
    points=model.points,
    accuracy=np.asarray(accuracy, np.float64),
    latency=model.nanoseconds(query.cycles).T,
    dram_bytes=query.dram_bytes.T,
    energy_pj=query.energy_pj.T,
    change=model.nanoseconds(change.cycles),
    change_bytes=change.dram_bytes,
    change_pj=change.energy_pj,
    favourite=tuple(range(P)),
    common=P,
  )


def contenders(
  layers: Any,
  engine: Any,
  accuracies: Mapping[str, float],
  policies: Sequence[Policy],
  buffer: int = 0,
  objective: str = "bytes",
  fixed_accuracies: Mapping[str, float] | None = None,
  **options: Any,
) -> list[Contender]:
  """A nested model under each policy, and a model of its own for each point.

  Args:
    layers: Table of one query, or its rows.
    engine: A single design, or its spec.
    accuracies: Accuracy of the nested model at each point, the sparsest first.
    policies: Policies of the nested model.
    buffer: Bytes of the persistent buffer, for all contenders.
    objective: What the cached sub-graph saves, "bytes" or "latency".
    fixed_accuracies: Accuracies of the models of one point. Defaults to those
      of the nested model.
    **options: itemsize, energy and dtype, as for `nested_model`.

  Raises:
    ValueError: If a policy has a point that the model lacks, a fixed model has
      no accuracy, or as `nested_model` and `service_table`.

  >>> rows = [{"name": "ff", "M": 1, "N": 64, "K": 64}]
  >>> accuracies = {"1:4": 0.8, "4:4": 0.9}
  >>> made = contenders(rows, "ws:8x8", accuracies, [Policy("queue")])
  >>> [each.name for each in made]
  ['nested queue', 'fixed 1:4', 'fixed 4:4']
  """
  points = list(accuracies)
  model = nested_model(layers, engine, points, **options)
  table = service_table(model, list(accuracies.values()), buffer, objective)
  made = [Contender(f"nested {x}", table, x, True) for x in policies]
  for policy in policies:
    policy.place(table.points)
  known = accuracies if fixed_accuracies is None else fixed_accuracies
  for point in points:
    if point not in known:
      raise ValueError(
        f"fixed_accuracies: expected one of {point}, got {', '.join(known)}"
      )
    alone = nested_model(layers, engine, [point], **options)
    own = service_table(alone, [known[point]], buffer, objective)
    policy = Policy("fixed", str(own.points[0]))
    made.append(Contender(f"fixed {point}", own, policy, False))
  return made
