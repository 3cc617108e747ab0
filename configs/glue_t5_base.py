"""T5-Base on GLUE as text, with the hyper-parameters of arXiv 2402.04744.

Command:   python launch/train.py --config configs/glue_t5_base.py:figs \\
             --workdir runs/glue_t5_base --config.mesh.data=-1 \\
             --config.data.vocabulary=spiece.model \\
             --config.init_from=model.safetensors
Data:      glue/cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte prepared by
           tensorflow-datasets in --config.data.data_dir; T5's own sentencepiece
           model and published weights of t5-v1_1-base as files. Without
           --config.init_from it starts from random weights.
Hardware:  not run by us; 8 accelerators of 16 GB, or fewer with
           --config.grad_accum_steps.
Hours:     not measured.
Expected:  published single runs of T5X-Base, GLUE score: dense 86.2; at 1:32 on
           the feed-forward SR-STE 79.4, Stepwise 80.9, FiGS (SdGf-geometric)
           79.3; at 1:8 on it and on q and k 75.8, 80.7, 76.8. Our
           `glue_score` is the mean of GLUE's scores of the eight tasks, with
           the matched split of mnli.

AdamW replaces T5's Adafactor, since recipes act on Adam's moments. All recipes
train densely for the first 10,000 steps.
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs", "t5")
  config.variant = "v1_1-base"
  config.model.dropout = 0.1
  config.model.dtype = "bfloat16"
  config.pattern = "ff: 1:32"
  config.recipe.dense = 0.1
  config.batch_size = 128
  config.total_steps = 100_000
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "constant"
  config.optimizer.warmup_steps = 0.01
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip = 1.0
  config.data.name = "glue"
  config.data.vocabulary = "spiece.model"
  config.data.input_length = 512
  config.data.target_length = 16
  config.data.eval_split = "validation"
  config.data.eval_batch_size = 256
  config.log_every = 100
  config.diagnose_every = 1000
  config.checkpoint_every = 5000
  return config
