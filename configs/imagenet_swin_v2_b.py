"""Swin-V2-B on ImageNet-1K with the hyper-parameters of arXiv 2402.04744.

Command:   python launch/train.py --config configs/imagenet_swin_v2_b.py:figs \\
             --workdir runs/imagenet_swin_v2_b --config.mesh.data=-1
Data:      imagenet2012 prepared by tensorflow-datasets in
           --config.data.data_dir (its licence restricts downloading).
Hardware:  not run by us. The global batch of 1024 needs 16 accelerators of
           32 GB; with fewer, raise --config.grad_accum_steps or set
           --config.model.remat=True.
Hours:     not measured.
Expected:  published single runs of SwinV2-Base in that paper, on the
           feed-forward, top-1 %: dense 83.45; 1:8 SR-STE 81.44, MdGf-exp 81.47,
           FiGS (SdGf-geometric) 81.38; 1:16 80.15, 80.54, 80.27; 1:32 78.97,
           79.55, 79.28.
Sources:   350 epochs, the learning rate and 20 warm-up epochs are from that
           paper. Window, image size, batch size, weight decay, clipping,
           stochastic depth, mixup and label smoothing are from
           microsoft/Swin-Transformer (config.py and
           configs/swinv2/swinv2_base_patch4_window8_256.yaml), which also uses
           cutmix, random erasing, rand-m9-mstd0.5-inc1 instead of rand-m9-n2,
           and no weight decay on the position bias.
"""

from figs_jax.train.config import default_config

_TRAIN_IMAGES = 1_281_167
_EPOCHS = 350
_WARMUP_EPOCHS = 20


def get_config(arg: str = "figs"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "figs", "swin_v2")
  config.variant = "B/w8-256"
  config.model.drop_path = 0.5
  config.model.dtype = "bfloat16"
  config.pattern = "ff: 1:8"
  config.batch_size = 1024
  config.total_steps = _EPOCHS * _TRAIN_IMAGES // config.batch_size
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = _WARMUP_EPOCHS / _EPOCHS
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip = 5.0
  config.mixup = 0.8
  config.label_smoothing = 0.1
  config.data.name = "imagenet2012"
  config.data.eval_split = "validation"
  config.data.image_size = 256
  config.data.augment = "rand-m9-n2"
  config.data.eval_batch_size = 512
  config.log_every = 100
  config.diagnose_every = 1000
  config.checkpoint_every = 5000
  return config
