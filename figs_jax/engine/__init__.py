"""What an N:M pattern buys on a matrix engine: closed forms over plain tables.

A layer is a GEMM, (M x K) times (K x N), whose K x N weight may be N:M sparse
along K; an engine is a description of hardware. One pure function turns both
into cycles, accesses and bytes. Every number is modelled, none is measured.
"""

from figs_jax.engine._cost import Cost, cost
from figs_jax.engine.area import Area, Parts
from figs_jax.engine.csr import Csr
from figs_jax.engine.energy import Energy
from figs_jax.engine.figs import Figs, checkpoint_stall_factor, stall_factor
from figs_jax.engine.layer_csv import read_layers
from figs_jax.engine.layers import (
  Forward,
  Layers,
  NonGemm,
  flops,
  packed_bytes,
)
from figs_jax.engine.nm_spmm import NmSpmm
from figs_jax.engine.non_gemm import non_gemm_cycles
from figs_jax.engine.reports._report import Report, report
from figs_jax.engine.reports.rows import Total
from figs_jax.engine.roofline import Roofline
from figs_jax.engine.simulator._simulate import Simulation, simulate
from figs_jax.engine.spec import Engine, Gemm
from figs_jax.engine.spec_text import parse, register
from figs_jax.engine.studies.attention import (
  AttentionCost,
  AttentionShape,
  Fusion,
  Memory,
  attention_cost,
)
from figs_jax.engine.studies.bandwidth import (
  dense_peers,
  iso_bandwidth_speedup,
  ledger,
  utilisation_bound,
)
from figs_jax.engine.studies.calibration import (
  CycleModel,
  LatencyModel,
  cross_validated,
  fit_cycles,
  fit_latency,
)
from figs_jax.engine.studies.cluster._estimate import (
  estimate,
  estimate_all,
  train_seconds,
)
from figs_jax.engine.studies.cluster.decoder import Decoder
from figs_jax.engine.studies.cluster.network import Cluster
from figs_jax.engine.studies.cluster.parallel import (
  Assumptions,
  BytesPerValue,
  Parallel,
)
from figs_jax.engine.studies.cluster.placements import Estimate, Placements
from figs_jax.engine.studies.row_cover import LayerCover, row_covers
from figs_jax.engine.studies.sparse24 import MeasuredPair, fit_sparse24
from figs_jax.engine.studies.whole_model import ModelCost, model_cost
from figs_jax.engine.sweeps._sweep import Sweep, sweep
from figs_jax.engine.systolic import Systolic
from figs_jax.engine.tensorcore import TensorCore
from figs_jax.engine.training import (
  RunCost,
  StepCost,
  TrainingPhase,
  run_cost,
  step_cost,
)
from figs_jax.engine.trainium import Trainium
from figs_jax.engine.vegeta import Vegeta, unstructured_speedup

# The registry of engines: adding one takes its own file and its name here.
for _kind in (
  *(Systolic, Vegeta, Figs),
  *(Roofline, TensorCore, Trainium, NmSpmm, Csr),
):
  register(_kind)

__all__ = [
  "Area",
  "Assumptions",
  "AttentionCost",
  "AttentionShape",
  "BytesPerValue",
  "Cluster",
  "Cost",
  "Csr",
  "CycleModel",
  "Decoder",
  "Energy",
  "Engine",
  "Estimate",
  "Figs",
  "Forward",
  "Fusion",
  "Gemm",
  "LatencyModel",
  "LayerCover",
  "Layers",
  "MeasuredPair",
  "Memory",
  "ModelCost",
  "NmSpmm",
  "NonGemm",
  "Parallel",
  "Parts",
  "Placements",
  "Report",
  "Roofline",
  "RunCost",
  "Simulation",
  "StepCost",
  "Sweep",
  "Systolic",
  "TensorCore",
  "Total",
  "TrainingPhase",
  "Trainium",
  "Vegeta",
  "attention_cost",
  "checkpoint_stall_factor",
  "cost",
  "cross_validated",
  "dense_peers",
  "estimate",
  "estimate_all",
  "fit_cycles",
  "fit_latency",
  "fit_sparse24",
  "flops",
  "iso_bandwidth_speedup",
  "ledger",
  "model_cost",
  "non_gemm_cycles",
  "packed_bytes",
  "parse",
  "read_layers",
  "register",
  "report",
  "row_covers",
  "run_cost",
  "simulate",
  "stall_factor",
  "step_cost",
  "sweep",
  "train_seconds",
  "unstructured_speedup",
  "utilisation_bound",
]
