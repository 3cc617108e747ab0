"""The mistakes of benchmarks/mistakes.py: wrong commands, and wrong calls.

Each stands beside a text that its line must contain: the flag, argument, value
or command that mends it. {new} is a path that does not exist, {csv} a table of
other columns, {folder} an empty directory, {junk} a damaged file, {weights} the
weights of a small ViT, {raises} a Python file that fails, {run} a sparse run.
"""

from __future__ import annotations

_TRAIN = "--config=configs/digits_vit.py --workdir={new}"
_T5 = "--config=configs/stdlib_t5.py --workdir={new}"
# Program -> pairs of a wrong command and what its line must name.
PROGRAMS: dict[str, tuple[tuple[str, str], ...]] = {
  "train": (
    # Names of fields, as other code has them.
    (f"{_TRAIN} --config.lr=1e-3", "optimizer.learning_rate"),
    (f"{_TRAIN} --config.optimizer.lr=1e-3", "optimizer.learning_rate"),
    (f"{_TRAIN} --config.wd=0.1", "optimizer.weight_decay"),
    (f"{_TRAIN} --config.batch=64", "batch_size"),
    (f"{_TRAIN} --config.bs=64", "batch_size"),
    (f"{_TRAIN} --config.per_device_train_batch_size=8", "batch_size"),
    (f"{_TRAIN} --config.epochs=3", "total_steps"),
    (f"{_TRAIN} --config.num_train_epochs=3", "// batch_size"),
    (f"{_TRAIN} --config.steps=100", "total_steps"),
    (f"{_TRAIN} --config.max_steps=100", "total_steps"),
    (f"{_TRAIN} --config.sparsity=0.5", "pattern"),
    (f"{_TRAIN} --config.n=2", "pattern"),
    (f"{_TRAIN} --config.dropout_rate=0.1", "model.dropout"),
    (f"{_TRAIN} --config.model=vit_base", "--config.model."),
    (f"{_TRAIN} --config.arch=vit_b_16", "variant"),
    (f"{_TRAIN} --config.gpus=2", "mesh.data"),
    (f"{_TRAIN} --config.device=cuda", "JAX_PLATFORMS"),
    (f"{_TRAIN} --config.warmup=10", "optimizer.warmup_steps"),
    (f"{_TRAIN} --config.momentum=0.9", "optimizer.momentum"),
    (f"{_TRAIN} --config.max_grad_norm=1", "optimizer.clip"),
    (f"{_TRAIN} --config.gradient_accumulation_steps=2", "grad_accum_steps"),
    (f"{_TRAIN} --config.fp16=True", "model.dtype"),
    (f"{_TRAIN} --config.dtype=float16", "model.dtype"),
    (f"{_TRAIN} --config.amp=True", "model.dtype"),
    (f"{_TRAIN} --config.dataset=cifar10", "data.name"),
    (f"{_TRAIN} --config.output_dir=runs/a", "--workdir"),
    (f"{_TRAIN} --config.checkpoint=a.safetensors", "init_from"),
    (f"{_TRAIN} --config.num_workers=4", "data.workers"),
    (f"{_TRAIN} --config.eval_interval=100", "checkpoint_every"),
    (f"{_TRAIN} --config.img_size=32", "data.image_size"),
    (f"{_TRAIN} --config.optimizer=lion", "--config.optimizer.name=lion"),
    (f"{_TRAIN} --optimizer=lion", "--config.optimizer.name"),
    (f"{_TRAIN} --lr=1e-3", "--config.optimizer.learning_rate"),
    (f"{_TRAIN} --epochs=3", "--config.total_steps"),
    (f"{_TRAIN} --output_dir=runs/a", "--workdir"),
    (f"{_TRAIN} --config.recipe=figs", "--config=FILE:"),
    (f"{_TRAIN} --config.recipe.name=ste", "--config=FILE:"),
    (f"{_TRAIN} --config.recipe.kk=3", "recipe.k"),
    (f"{_TRAIN} --config.data=cifar10", "--config.data.name"),
    (f"{_TRAIN} --config.seed=1,2,3", "an integer"),
    # Values.
    (f"{_TRAIN} --config.batch_size=abc", "an integer"),
    (f"{_TRAIN} --config.batch_size=0", "an integer in [1"),
    (f"{_TRAIN} --config.batch_size=1e3", "an integer"),
    (f"{_TRAIN} --config.total_steps=0.5", "an integer"),
    (f"{_TRAIN} --config.optimizer.learning_rate=nan", "a number in"),
    (f"{_TRAIN} --config.optimizer.learning_rate=-1", "a number in"),
    (f"{_TRAIN} --config.optimizer.schedule=step", "'cosine'"),
    (f"{_TRAIN} --config.model.dtype=fp16", "'float16'"),
    (f"{_TRAIN} --config.model.dtype=float15", "'float16'"),
    (f"{_TRAIN} --config.model.dtype=int8", "'bfloat16'"),
    (f"{_TRAIN} --config.optimizer.warmup_steps=600", "a share below 1"),
    (f"{_TRAIN} --config.model.dropout=1.5", "a number in [0, 1)"),
    (f"{_TRAIN} --config.model.heads=3", "heads"),
    (f"{_TRAIN} --config.variant=custom/3", "multiple of"),
    (f"{_TRAIN} --config.variant=Q/4", "B"),
    (f"{_TRAIN} --config.family=resnet", "'swin_v2', 't5', 'vit'"),
    (f"{_TRAIN} --config.grad_accum_steps=7", "grad_accum_steps"),
    (f"{_TRAIN} --config.batch_size=2000", "at most"),
    (f"{_TRAIN} --config.mesh.data=512", "mesh.data"),
    (f"{_TRAIN} --config.mesh.seed=2", "--config.seeds to a multiple of 2"),
    (f"{_TRAIN} --config.progress=maybe", "True or False"),
    # Patterns.
    (f"{_TRAIN} --config.pattern=ff:1:7", "divides"),
    (f"{_TRAIN} --config.pattern=4:2", "1 <= n <= m"),
    (f"{_TRAIN} --config.pattern=50%", "n:m"),
    (f"{_TRAIN} --config.pattern=unstructured", "ff: 1:8"),
    (f"{_TRAIN} --config.pattern=fff:1:4", "'ff'"),
    (f"{_TRAIN} --config.pattern='*: 1:4, ff: 1:8'", "Move it forward"),
    # Configurations and recipes.
    ("", "--config=configs/digits_vit.py"),
    ("--config=configs/digits_vit.py", "--workdir"),
    ("--config=configs/nope.py --workdir={new}", "configs/digits_vit.py"),
    ("--config={csv} --workdir={new}", "configs/digits_vit.py"),
    ("--config={folder} --workdir={new}", "configs/digits_vit.py"),
    ("--config=configs/digits_vit.py:fig --workdir={new}", "'figs'"),
    ("--config=configs/digits_vit.py:srste --workdir={new}", "'sr_ste'"),
    ("--config=configs/digits_vit.py:adamw --workdir={new}", "sr_ste"),
    (f"{_TRAIN} train", "--"),
    (f"{_TRAIN} --recipe_file={{new}}.py", "no such file"),
    (f"{_TRAIN} --recipe_file={{raises}}", "line 3"),
    (f"{_TRAIN} --format=yaml", "json"),
    # Data.
    (f"{_TRAIN} --config.data.name=imagenet", "imagenet2012"),
    (f"{_TRAIN} --config.data.name=nothing", "folder:DIR"),
    (f"{_TRAIN} --config.data.name=folder:{{new}}", "folder"),
    (
      f"{_TRAIN} --config.data.name=folder:{{folder}}",
      "one for each class",
    ),
    (f"{_TRAIN} --config.data.name={{folder}}", "folder:"),
    (f"{_TRAIN} --config.data.name=npz:{{csv}}", "npz"),
    (f"{_TRAIN} --config.data.train_split=training", "train"),
    (f"{_TRAIN} --config.data.eval_split=validation", "test"),
    (f"{_TRAIN} --config.data.augment=autoaugment", "rand-m15-n2"),
    (f"{_TRAIN} --config.data.mean=0.5,0.5", "numbers for both"),
    (f"{_T5} --config.data.name=digits", "text"),
    (f"{_T5} --config.data.name=text:{{new}}.txt", "text:"),
    (f"{_T5} --config.data.name=text:{{csv}}", "text_column"),
    (f"{_T5} --config.data.vocabulary=gpt2", "sentencepiece:"),
    (f"{_T5} --config.model.dtype=float16", "bfloat16"),
    # Places.
    ("--config=configs/digits_vit.py --workdir={csv}", "--workdir"),
    ("--config=configs/digits_vit.py --workdir={csv}/run", "--workdir"),
    ("--config=configs/digits_vit.py --workdir=/proc/run", "--workdir"),
    ("--config=configs/digits_vit.py --workdir={run}", "new --workdir"),
    # Weights.
    (f"{_TRAIN} --config.init_from={{new}}2", ".safetensors"),
    (f"{_TRAIN} --config.init_from={{csv}}", ".safetensors"),
    (f"{_TRAIN} --config.init_from={{junk}}", "safetensors"),
    (f"{_TRAIN} --config.init_from={{run}}", "dense run"),
  ),
  "evaluate": (
    ("", "--workdir"),
    ("--workdir={new}", "--workdir"),
    ("--workdir={folder}", "--workdir"),
    ("--workdir={csv}", "--workdir"),
    ("--workdir={run} --step=7", "2"),
    ("--workdir={run} --step=last", "an integer"),
    ("--workdir={run} --dtype=fp16", "'float16'"),
    ("--workdir={run} --dtype=float15", "'float16'"),
    ("--workdir={run} --engines=h100", "tensorcore:h100"),
    ("--workdir={run} --engines=figz", "figs"),
    ("--workdir={run} --ema", "ema_decay"),
    ("--workdir={run} --checkpoint=2", "--step"),
    ("--workdir={run} --format=csv", "json"),
    ("{run}", "--workdir"),
  ),
  "export": (
    ("", "--workdir"),
    ("--workdir={run}", "--out"),
    ("--workdir={run} --out={new}", "--format"),
    ("--workdir={run} --out={new} --format=onnx", "stablehlo"),
    ("--workdir={run} --out={new} --format=gguf", "dense"),
    ("--workdir={run} --out={csv} --format=packed", "--overwrite"),
    ("--workdir={new} --out={new}2 --format=dense", "--workdir"),
    ("--workdir={run} --out={new} --format=dense --dtype=fp16", "float16"),
    ("--workdir={run} --out={new} --format=dense --batch=8", "leave it out"),
    ("--workdir={run} --out={new} --format=torch-2:4", ".safetensors"),
    ("--workdir={run} --out={new} --format=stablehlo-module", "--batch"),
    (
      "--workdir={run} --out={new} --format=stablehlo --platforms=gpu",
      "cuda",
    ),
    ("--workdir={run} --out={new} --format=dense --seed=3", "seed"),
    ("--verify={csv}", ".safetensors"),
    ("--verify={new}", ".safetensors"),
    ("--verify={folder}", ".safetensors"),
    ("--verify={run}", ".safetensors"),
    ("--verify={junk}", "safetensors"),
    ("--verify={csv} --out={new}", "leave it out"),
    ("--verify=", "name a file"),
  ),
  "engine": (
    ("", "--model"),
    ("--model=vit:B/16 --engines=h100", "tensorcore:h100"),
    ("--model=vit:B/16 --engines=tensorcore:h1000", "h100"),
    ("--model=vit:B/16 --engines=figz:32x16", "figs"),
    ("--model=vit:B/16 --engines=ws:32", "32x"),
    ("--model=vit:B/16 --engines=ws:32x32:spase=false", "sparse"),
    ("--model=vit:B/16 --engines=figs:alpha", "figs:32x16"),
    ("--model=resnet50 --engines=ws", "vit"),
    ("--model=vit:Q/16", "B"),
    ("--model=vit:B/16:heads=7", "heads"),
    ("--model=vit:B/16 --pattern=4:2", "1 <= n <= m"),
    ("--model=vit:B/16 --pattern=mlp:1:8", "ff"),
    ("--model=vit:B/16 --pattern=ff:1:7", "divides"),
    ("--model=vit:B/16 --batch=0", "integer"),
    ("--model=vit:B/16 --dtype=float15", "float32"),
    ("--model=vit:B/16 --sweep=row=8,16", "rows"),
    ("--model=vit:B/16 --sweep=rows", "rows=8,16"),
    ("--model=vit:B/16 --pareto=time_ns,area_mm2", "--sweep"),
    ("--model=vit:B/16 --sweep=rows=8,16 --smallest=cycle", "cycles"),
    ("--model=vit:B/16 --format=png", "--out"),
    ("--model=vit:B/16 --baseline=none", "known: "),
    ("--model=vit:B/16 --weights={csv}", ".safetensors"),
    ("--layers={new}.csv", "name,M,N,K"),
    ("--layers={junk}", "name,M,N,K"),
    ("--layers={csv} --model=vit:B/16", "one of --layers"),
    ("--workdir={new}", "--workdir"),
    ("--workdir={csv}", "--workdir"),
    ("--model=vit:B/16 --energy=int9", "int8"),
    ("--model=vit:B/16 --engine_file={raises}", "line 3"),
  ),
  "cluster": (
    ("", "--model"),
    ("--model=vit:L/16 --batch=64 --devices=8", "--chip"),
    ("--model=vit:L/16 --batch=64 --devices=8 --chip=h1000", "h100"),
    ("--model=gpt:width=64 --batch=64 --devices=8 --chip=h100", "layers="),
    ("--model=vit:L/16 --batch=64 --devices=many --chip=h100", "integers"),
    ("--model=vit:L/16 --batch=64 --devices=0 --chip=h100", "integers"),
    (
      "--model=vit:L/16 --batch=64 --devices=8 --chip=h100 --where=tensr<=8",
      "tensor",
    ),
    (
      "--model=vit:L/16 --batch=64 --devices=8 --chip=h100 --dtype=float15",
      "bf16",
    ),
    (
      "--model=gpt:width=25600,layers=128,heads=160 --batch=8 --devices=1"
      " --chip=h100",
      "--devices",
    ),
  ),
  "plot": (
    ("--out={new}", "--workdir"),
    ("--workdir={run}", "--out"),
    ("--workdir={new} --out={new}2", "--workdir"),
    ("--workdir={folder} --out={new}", "--workdir"),
    ("--workdir={run} --out={new}.jpg --plot=flips", ".png"),
    ("--workdir={run} --out={new}.png", "--plot"),
    ("--workdir={run} --out={new}.png --plot=loss", "training"),
    ("--workdir={run} --out={new} --engines=h100", "tensorcore:h100"),
    ("--workdir={run} --out={new}.png --plot=masks --layer=mlp", "blocks"),
    ("{run} --out={new}", "--workdir"),
  ),
  "study": (
    ("", "configs/study_digits.py"),
    ("--config=configs/digits_vit.py", "launch/train.py"),
    ("--config=configs/study_digits.py --grid=b", "all"),
    ("--config=configs/study_digits.py --shard=5/4", "i/n"),
    (
      "--config=configs/study_digits.py --config.epochs=3",
      "common.total_steps",
    ),
    ("--collect {new} --out={new}2", "--collect"),
    ("--collect {run}", "--out"),
  ),
  "quickstart": (
    ("--recipes=figz", "figs"),
    ("--patterns=4:2", "1 <= n <= m"),
    ("--patterns=", "1:16"),
    ("--engines=h100", "tensorcore:h100"),
    ("--seeds=0", "a positive integer"),
    ("--workdir={csv}", "--workdir"),
    ("--recipes=dense", "figs"),
    ("--epochs=3", "--steps"),
  ),
}

SETUP = """
import jax, jax.numpy as jnp, numpy as np, optax
import figs_jax as figs
from flax import nnx
from figs_jax import data, engine, export, models, recipes
from figs_jax.models import pretrained
from figs_jax.train import TrainState, default_config, train_step
from figs_jax.train.loop import train
from figs_jax.train.losses import Mean, cross_entropy, teacher_forcing

class Net(nnx.Module):
  def __init__(self, rngs):
    self.up = nnx.Linear(16, 32, rngs=rngs)
    self.down = nnx.Linear(32, 4, rngs=rngs)
  def __call__(self, x):
    x = x.reshape(len(x), -1)
    if x.dtype == jnp.uint8:
      x = x.astype(jnp.float32)
    return self.down(nnx.relu(self.up(x)))

net = Net(nnx.Rngs(0))
images, labels = np.zeros((8, 4, 4), np.float32), np.arange(8) % 4
recipe = recipes.create("ste", "1:4", total_steps=10)

def vit():
  sizes = {"width": 8, "depth": 1, "heads": 1, "mlp_dim": 8, "image_size": 8}
  return models.create("vit", "custom/4", num_classes=4, **sizes)

def step(loss=cross_entropy, **batch):
  model = figs.sparsify(net, recipe)
  tx = recipe.transform(optax.sgd(0.1))
  state = TrainState.create(model, recipe, tx, loss=loss)
  return train_step(state, batch)
"""
# Wrong calls, and what the line must name.
CALLS: tuple[tuple[str, str], ...] = (
  ("figs.NM(4, 2)", "1 <= n <= m"),
  ("figs.NM.parse('50%')", "n:m"),
  ("figs.Rules.parse('ff=1:8')", "key: n:m"),
  ("figs.Rules.parse('ff: 0.5')", "key: n:m"),
  ("figs.Rules.parse(0.5)", "ff: 1:8"),
  ("figs.nm_mask(jnp.ones((6, 4)), '1:4')", "multiple of"),
  ("figs.sparsify(net, 'ff: 1:4')", "Nearest kernels: up/kernel"),
  ("figs.sparsify(net, 'mlp: 1:4')", "regex"),
  ("figs.sparsify(net, 'mlp/.*: 1:4')", "up/kernel"),
  ("figs.sparsify(net, '1:5')", "divides"),
  ("figs.sparsify(net, 0.5)", "ff: 1:8"),
  ("figs.sparsify(net, '1:4', 'straight')", "ste"),
  ("figs.sparsify(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), '1:4')", "Linear"),
  ("figs.sparsify(jax.nn.relu, '1:4')", "Linear"),
  ("recipes.create('srste', '1:4', 10)", "'sr_ste'"),
  ("recipes.create('figs', '1:4', 10, kk=3)", "'k'"),
  ("recipes.create('figs', '1:4', 10, k='8')", "an integer"),
  ("recipes.create('figs', '1:4', 10, dense=50)", "dense"),
  ("recipes.create('figs', '1:4', -1)", "total_steps"),
  ("recipes.create('figs', '1:4', '10')", "an integer"),
  (
    "TrainState.create(net, recipe, recipe.transform(optax.sgd(0.1)))",
    "sparsify",
  ),
  (
    "r = recipes.create('sr_ste', '1:4', 10)\n"
    "TrainState.create(figs.sparsify(net, r), r, optax.sgd(0.1))",
    "recipe.transform",
  ),
  (
    "step(lambda m, b, k: m(b['image']).mean(), image=images, label=labels)",
    "(loss, metrics)",
  ),
  (
    "step(lambda m, b, k: ({}, m(b['image']).mean()), image=images)",
    "(loss, metrics)",
  ),
  (
    "step(lambda m, b, k: (m(b['image']), {}), image=images)",
    "scalar",
  ),
  (
    "step(lambda m, b, k: (m(b['image']).sum(), 0.5), image=images)",
    "(loss, metrics)",
  ),
  ("step(lambda m, b: (m(b['image']).sum(), {}), image=images)", "key"),
  ("step(image=images, label=np.array(list('abcdabcd')))", "integer"),
  ("step(image=images, label=labels.astype(np.float32))", "integer"),
  ("step(image=images, label=labels + 4)", "0 to 3"),
  ("step(image=images, label=np.eye(4)[labels])", "argmax(-1)"),
  ("step(image=images, label=labels[:4])", "length"),
  ("step(x=images, y=labels)", "image"),
  ("step(images=images, labels=labels)", "image"),
  ("step(pixel_values=images, labels=labels)", "image"),
  ("step(image=images.astype(np.uint8), label=labels)", "/ 255"),
  (
    "step(lambda m, b, k: (m(b['image']).sum(), {}), image=images,"
    " label=list('abcdabcd'))",
    "numbers",
  ),
  ("step(lambda m, b, k: Mean(m(b['image']).sum(), 8), image=images)", "{}"),
  ("step(image=images, label=labels.tolist())", "numpy.array"),
  ("step(0.5, image=images, label=labels)", "(model, batch, key)"),
  (
    "vit()(jnp.zeros((2, 8, 8, 3), jnp.uint8))",
    "astype('float32')",
  ),
  ("step(image=images * np.nan, label=labels)", "NaN"),
  ("vit()(jnp.zeros((2, 3, 8, 8)))", "transpose(0, 2, 3, 1)"),
  ("vit()(jnp.zeros((2, 16, 16, 3)))", "image_size"),
  ("models.create('resnet', '50')", "vit"),
  ("models.create('vit', 'Q/4')", "B"),
  ("models.create('vit', 'Ti/4', img_size=8)", "image_size"),
  ("default_config('figz')", "'figs'"),
  ("default_config('figs', 'bert')", "vit"),
  (
    "c = default_config('figs')\nc.lr = 1e-3\ntrain(c, '{new}')",
    "learning_rate",
  ),
  ("train({'lr': 1e-3}, '{new}')", "default_config"),
  ("train(None, '{new}', model=nnx.Linear)", "default_config"),
  (
    "train(default_config('figs'), '{new}',"
    " data=[{'image': np.zeros((8, 8)), 'label': 0}] * 9)",
    "uint8",
  ),
  ("train(default_config('figs'), '{new}', data=[(images[0], 0)] * 9)", "dict"),
  ("engine.parse('h100')", "tensorcore:h100"),
  ("engine.parse('figs:32')", "32x"),
  ("engine.Figs(rows=0, cols=16)", "rows"),
  ("engine.Layers.of([('ff', 4, 8, 8, '2:4')])", "name"),
  ("engine.cost([{'name': 'ff', 'M': 4, 'N': 8}], engine.parse('ws'))", "K"),
  ("pretrained.load(vit(), '{csv}')", ".safetensors"),
  ("pretrained.load(vit(), '{new}')", ".safetensors"),
  ("pretrained.load(vit(), '{junk}')", "safetensors"),
  ("pretrained.load(net, '{weights}')", "ViT"),
  ("pretrained.save(net, '{new}.safetensors')", "ViT"),
  ("list(export.survey('{csv}'))", ".safetensors"),
  ("figs.pack(np.ones((4, 4), np.float32), '1:4')", "multiply the array"),
  ("figs.cite('figz')", "figs"),
  ("figs.layers_of('{folder}')", "workdir"),
)
