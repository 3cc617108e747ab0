"""A Transformer on WMT'14 English to German, trained as in arXiv 2402.04744.

Command:   python launch/train.py --config configs/wmt_transformer.py:figs \\
             --workdir runs/wmt_transformer --config.mesh.data=-1
Data:      wmt14_translate/de-en prepared by tensorflow-datasets in
           --config.data.data_dir; the vocabulary is trained on its beginning.
Hardware:  not run by us; 8 accelerators of 16 GB, or fewer with
           --config.grad_accum_steps.
Hours:     not measured.
Expected:  unknown; we have read no published score for these settings.

Adam's .9/.98, 200,000 steps and the learning rate .0625 / sqrt(step) are from
that paper, which names no weight decay that we have read. Weight decay .25,
batch (there per host), warm-up and eps are those of Google AQT's WMT
configuration, in which the paper's numbers recur. AQT decays all parameters,
this file all but vectors; pruned weights decay too. Vocabulary and model are
ours, the T5 family (relative positions, RMS norms first) with the sizes of the
big Transformer (arXiv 1706.03762, table 3). Evaluation is BLEU (sacrebleu) of a
search with 4 beams, as for that model.
"""

from figs_jax.train.config import default_config

_WARMUP = 1000


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs", "t5")
  config.variant = "custom"
  config.model.width = 1024
  config.model.depth = 6
  config.model.heads = 16
  config.model.head_dim = 64
  config.model.mlp_dim = 4096
  config.model.dropout = 0.1
  config.model.dtype = "bfloat16"
  config.pattern = "ff: 1:8"
  config.batch_size = 256
  config.total_steps = 200_000
  config.optimizer.learning_rate = 0.0625 * _WARMUP**-0.5
  config.optimizer.schedule = "rsqrt"
  config.optimizer.warmup_steps = _WARMUP / config.total_steps
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.98
  config.optimizer.eps = 1e-9
  config.optimizer.weight_decay = 0.25
  config.label_smoothing = 0.1
  config.data.name = "wmt14_translate/de-en"
  config.data.vocabulary = "sentencepiece:32000"
  config.data.input_length = 256
  config.data.target_length = 256
  config.data.beams = 4
  config.data.eval_split = "validation"
  config.data.eval_batch_size = 256
  config.log_every = 100
  config.diagnose_every = 1000
  config.checkpoint_every = 5000
  return config
