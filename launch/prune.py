"""Prunes a dense model once, from calibration data, and measures it.

  python launch/prune.py --weights DIR --calibration fashion_mnist
    --pattern "ff: 2:4, qkv: 2:4, o: 2:4" --method sparsegpt --out PRUNED
  python launch/prune.py --weights MINILM --calibration text:mine.jsonl
    --input_length 32 --pattern "ff: 2:4" --out PRUNED
  python launch/prune.py --workdir RUN --calibration digits --pattern "ff: 1:4"
    --method alps --permute --out PRUNED

The model is that of a config.json of transformers with its weights (--weights)
or of a dense run of launch/train.py (--workdir). PRUNED gets model.safetensors,
config.json and pruning.json, and is read by figs_jax.models.from_pretrained and
by --config.init_from of launch/train.py; the recipe asp keeps the masks with
--config.recipe.dense=0.
docs/from_dense.md says which method to choose.
"""

import json
import time

from absl import flags

from figs_jax import cli

_WEIGHTS = flags.DEFINE_string(
  "weights", None, "Directory with config.json and the weights."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a dense run.")
_CALIBRATION = flags.DEFINE_string(
  "calibration",
  None,
  "Calibration data, as a name of --config.data.name in launch/train.py."
  " Defaults to the data of --workdir.",
)
_EXAMPLES = flags.DEFINE_integer(
  "examples", 128, "Number of calibration examples, of the training split."
)
_EVAL_EXAMPLES = flags.DEFINE_integer(
  "eval_examples",
  1000,
  "Number of examples of the evaluation split that loss and accuracy are"
  " measured on.",
  lower_bound=1,
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 32, "Examples that pass the model at once.", lower_bound=1
)
_METHOD = flags.DEFINE_enum(
  "method",
  "sparsegpt",
  ["magnitude", "wanda", "ria", "sparsegpt", "alps", "sparseswaps"],
  "Pruning method.",
)
_PATTERN = flags.DEFINE_string(
  "pattern", None, "Patterns of layers, as --config.pattern in launch/train.py."
)
_TRANSPOSABLE = flags.DEFINE_bool(
  "transposable", False, "Whether masks are N:M along the outputs as well."
)
_REFIT = flags.DEFINE_bool(
  "refit", False, "Whether kept weights are the best ones of their mask."
)
_PERMUTE = flags.DEFINE_bool(
  "permute", False, "Whether channels are permuted before."
)
_DAMPING = flags.DEFINE_float(
  "damping", None, "Share of the mean of H's diagonal that is added to it."
)
_EXPONENT = flags.DEFINE_float(
  "exponent", None, "Power of the norms of inputs in --method ria."
)
_OUT = flags.DEFINE_string("out", None, "Directory to make.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of the data sets.")
_VOCABULARY = flags.DEFINE_string(
  "vocabulary",
  None,
  "Vocabulary of texts, as --config.data.vocabulary. Defaults for BERT to"
  " vocab.txt in --weights.",
)
_INPUT_LENGTH = flags.DEFINE_integer(
  "input_length",
  None,
  "Tokens of a text. Defaults to the length of the model.",
)
_OBJECTIVE = flags.DEFINE_enum(
  "objective",
  None,
  ["auto", "masked", "labels"],
  "What of texts BERT predicts, as --config.data.objective.",
)
_MEAN = flags.DEFINE_string("mean", None, "Mean of pixels, as in training.")
_STD = flags.DEFINE_string("std", None, "Deviation of pixels, as in training.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice of examples.")
_MODEL_FILE = cli.define_model_file()
_FORMAT = flags.DEFINE_enum(
  "format", "text", ["text", "json"], "Format of the printed result."
)


def main() -> None:
  cli.quiet()
  for flag in (_PATTERN, _OUT):
    if not flag.value:
      cli.fail(f"--{flag.name} is missing; see --help")
  if bool(_WEIGHTS.value) == bool(_WORKDIR.value):
    cli.fail("expected --weights or --workdir, and not both; see --help")
  if _WEIGHTS.value and not _CALIBRATION.value:
    cli.fail("--calibration is missing: name the data, as fashion_mnist")
  cli.run_model_files(_MODEL_FILE)
  from figs_jax.cli import compilation_cache, pruning
  from figs_jax.data import DataError

  compilation_cache.enable()
  try:
    _prune(pruning)
  except (ValueError, DataError) as error:
    cli.fail(str(error).splitlines()[0])


def _prune(pruning) -> None:
  pruning.check_out(_OUT.value)
  data = {
    "name": _CALIBRATION.value,
    "data_dir": _DATA_DIR.value,
    "vocabulary": _VOCABULARY.value,
    "input_length": _INPUT_LENGTH.value,
    "objective": _OBJECTIVE.value,
    "mean": _MEAN.value,
    "std": _STD.value,
    "seed": _SEED.value,
  }
  source = pruning.source_of(
    _PATTERN.value,
    weights=_WEIGHTS.value,
    workdir=_WORKDIR.value,
    data={name: value for name, value in data.items() if value is not None},
  )
  options = {
    flag.name: flag.value
    for flag in (_DAMPING, _EXPONENT)
    if flag.value is not None
  }
  pruning.check(
    source, _METHOD.value, options, _REFIT.value, _TRANSPOSABLE.value
  )
  batches = pruning.calibration_batches(
    source, _EXAMPLES.value, _BATCH_SIZE.value
  )
  text = _FORMAT.value == "text"

  def measured(model):
    if not source.has_labels:
      return {}
    return pruning.measured(
      source, model, _EVAL_EXAMPLES.value, _BATCH_SIZE.value
    )

  def show(layer):
    if text:
      dead = f"  {layer.dead} dead inputs, damped" if layer.dead else ""
      cli.say(
        f"{layer.path:44} {layer.pattern!s:>5}  error {layer.error:.4f}"
        f"  {layer.rows} rows{dead}"
      )

  before, start = measured(source.model), time.monotonic()
  model, layers = pruning.prune_source(
    source,
    batches,
    _METHOD.value,
    permute=_PERMUTE.value,
    on_layer=show,
    transposable=_TRANSPOSABLE.value,
    refit=_REFIT.value,
    **options,
  )
  report = {
    "method": _METHOD.value,
    "pattern": _PATTERN.value,
    "options": options,
    "transposable": _TRANSPOSABLE.value,
    "refit": _REFIT.value,
    "permute": _PERMUTE.value,
    "calibration": source.name,
    "examples": _EXAMPLES.value,
    "seconds": time.monotonic() - start,
    "before": pruning.finite(before),
    "after": pruning.finite(measured(model)),
    "layers": [pruning.as_row(layer) for layer in layers],
  }
  lines = pruning.write(model, _OUT.value, report)
  if not text:
    cli.say(json.dumps(report))
    return
  for name in before:
    cli.say(
      f"{name:9} {report['before'][name]} before, {report['after'][name]} after"
    )
  if not before:
    cli.say("loss not measured: the model does not predict what the data have")
  cli.say(*lines)


if __name__ == "__main__":
  cli.run(main)
