"""One line for a command line that cannot be read: what is wrong, and a fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from absl import flags

from figs_jax.core.field_names import near
from figs_jax.core.legal import Legal, Word, suggestion

# Flags by what other programs call them, without capitals, "_" and "-".
_MEANT = {
  "workdir": (
    "run runs rundir runname logdir outputdir outdir output savedir modeldir"
    " checkpointdir exp expname experiment project dir"
  ),
  "out": "output outputdir outdir outfile o save savepath dest outputfile",
  "config": "cfg configfile conf c",
  "step": "checkpoint ckpt iteration epoch",
  "steps": "epochs numepochs totalsteps maxsteps iterations maxepochs",
  "seeds": "seed numseeds repeats trials",
  "pattern": "sparsity nm sparse rules",
  "patterns": "pattern sparsity nm sparse rules",
  "recipes": "recipe method methods pruner",
  "engines": "engine hardware accelerator chip gpu device",
  "chip": "gpu device accelerator hardware engine engines",
  "devices": "gpus numgpus ngpus worldsize numdevices nproc",
  "dtype": "precision fp16 bf16 half torchdtype",
  "data_dir": "data dataset dataroot datapath",
  "batch": "batchsize bs b",
  "seq": "seqlen sequencelength seqlength maxlength",
  "weights": "checkpoint ckpt pretrained safetensors init",
  "layers": "csv topology table gemms",
  "model": "arch variant network net modelname",
  "overwrite": "force existok f replace",
  "format": "outputformat type json",
  "source": "data datadir dataset root",
  "plot": "kind plots figure",
}
_BY_WORD: dict[str, list[str]] = {}
for _flag, _words in _MEANT.items():
  for _word in _words.split():
    _BY_WORD.setdefault(_word, []).append(_flag)
_ILLEGAL = re.compile(r"flag --([\w.]+)=(.*?): ", re.DOTALL)


def unread(error: Exception, known: Mapping[str, Legal]) -> str:
  """What is wrong with the flags of a program.

  Args:
    error: What absl raised.
    known: Legal values of the fields of `--config` by dotted name; empty for a
      program without one.

  >>> unread(flags.UnrecognizedFlagError("lr"),
  ...   {"optimizer.learning_rate": Word(())})
  '--lr: unknown flag; did you mean --config.optimizer.learning_rate?'
  """
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    return f"--{name}: unknown flag{_flag_hint(name, known)}"
  text = str(error)
  illegal = _ILLEGAL.match(text)
  if illegal is None or "Traceback" in text:
    return f"{_last_line(text)}; see --help"
  name, value = illegal.groups()
  field = name.removeprefix("config.")
  if field != name and field not in known:
    group = [x for x in known if x.startswith(f"{field}.")]
    return _not_a_group(field, value, group)
  legal = known[field] if field != name else _legal(flags.FLAGS[name].parser)
  return f"--{name}: expected {legal}, got {value!r}{suggestion(legal, value)}"


def unknown_field(field: str, known: Mapping[str, Legal]) -> str:
  """The message for a `--config.FIELD` that does not exist.

  >>> unknown_field("wd", {"optimizer.weight_decay": Word(())})
  '--config.wd: unknown field; did you mean --config.optimizer.weight_decay?'
  """
  return f"--config.{field}: unknown field{near(field, known, '--config.')}"


def _flag_hint(name: str, known: Mapping[str, Legal]) -> str:
  """The flags, or else the fields, that an unknown flag may mean."""
  modules = flags.FLAGS.flags_by_module_dict().items()
  own = [f.name for name, each in modules if name[:4] != "absl" for f in each]
  word = re.sub(r"[-_]", "", name.lower())
  close = [flag for flag in _BY_WORD.get(word, ()) if flag in own]
  close = close or difflib.get_close_matches(name, own, 5, 0.6)
  if close:
    return f"; did you mean {', '.join(f'--{flag}' for flag in close)}?"
  return near(name, known, "--config.") if known else "; see --help"


def _legal(parser: Any) -> Any:
  """The legal values of a flag, as a message names them."""
  if isinstance(parser, flags.EnumParser):
    return Word(tuple(parser.enum_values))
  if isinstance(parser, flags.BooleanParser):
    return "True or False"
  return parser.syntactic_help


def _not_a_group(field: str, value: str, fields: list[str]) -> str:
  """The message for a value of several fields, such as --config.optimizer=x."""
  if field == "recipe":
    return (
      f"--config.recipe={value}: expected the recipe after the file, as in"
      f" --config=FILE:{value}"
    )
  name, also = f"{field}.name", ""
  example = f"{name}={value}" if name in fields else f"{fields[0]}=VALUE"
  if field == "model":
    also = "; --config.family and --config.variant choose the model"
  return (
    f"--config.{field}: expected one of its fields, as in --config.{example},"
    f" got {value!r}{also}"
  )


def _last_line(text: str) -> str:
  """The message of a flag's error, without the traceback it may contain."""
  if "Traceback" not in text:
    return text
  flag = text.partition(": Error")[0]
  reason = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1].strip())
  return f"{flag}: {reason}"
