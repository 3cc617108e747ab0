"""Keys of a config.json of `transformers`, and the options that they stand for.

A model of the library has one `Table`, which is read in both directions; a
family of ours has one or more of them. Every key of a file must be in it: as an
option of ours (`Key`), with the only value that the family supports (`Fixed`),
as a consequence of other keys (`Follows`), or as one that does not change the
logits (`harmless`). Any other key may change them, so it is refused by name.
Each family has a module with its tables.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from figs_jax.models import stack
from figs_jax.models.decode import EOS
from figs_jax.models.pretrained.files import PretrainedError, Tensor

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Form:
  """How a value is written in a file.

  Attributes:
    expected: The legal values, in words.
    read: Our value of theirs; None if theirs is illegal.
    write: Their value of ours.
  """

  expected: str
  read: Callable[[Any], Any]
  write: Callable[[Any], Any] = lambda value: value


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 < value < 2**31


def _sides(value: Any) -> tuple[int, int] | None:
  sides = value if isinstance(value, list) else [value, value]
  return (
    tuple(sides) if len(sides) == 2 and all(map(_is_count, sides)) else None
  )


def _side(value: Any) -> int | None:
  sides = _sides(value)
  return sides[0] if sides and sides[0] == sides[1] else None


def _number(value: Any) -> float | None:
  legal = type(value) in (int, float) and math.isfinite(value) and value >= 0
  return float(value) if legal else None


def _integers(value: Any) -> tuple[int, ...] | None:
  legal = isinstance(value, list) and all(type(x) is int for x in value)
  return tuple(value) if legal else None


COUNT = Form("an integer from 1", lambda x: x if _is_count(x) else None)
NUMBER = Form("a number from 0", _number)
FLAG = Form("true or false", lambda x: x if type(x) is bool else None)
SIDE = Form("one side of a square", _side)
SIDES = Form(
  "a side, or [height, width]",
  _sides,
  lambda ours: ours[0] if ours[0] == ours[1] else list(ours),
)
INTEGERS = Form("a list of integers", _integers, list)
LABELS = Form(
  "a name for each class",
  lambda x: len(x) if isinstance(x, dict) and x else None,
  lambda count: {str(i): f"LABEL_{i}" for i in range(count)},
)


def words(ours: Mapping[str, Any]) -> Form:
  """The form of a word: ours by theirs. The first of several is written.

  >>> form = words({"gelu": "exact", "gelu_python": "exact"})
  >>> form.read("gelu_python"), form.write("exact"), form.read("relu")
  ('exact', 'gelu', None)
  """
  theirs = {value: name for name, value in reversed(tuple(ours.items()))}
  return Form(
    f"one of {', '.join(ours)}",
    lambda x: ours.get(x) if isinstance(x, str) else None,
    theirs.__getitem__,
  )


class Key(NamedTuple):
  """A key that an option of ours stands for.

  Attributes:
    name: Name in the file.
    option: Keyword argument of our model, and its attribute.
    default: Value of the library if the key is absent, or a function of the
      other fields. It raises `PretrainedError` if they contradict themselves.
    form: How the value is written.
    of: Their value for a model. Defaults to that of its attribute.
    trains: Whether it matters in training only.
  """

  name: str
  option: str
  default: Any
  form: Form
  of: Callable[[Any], Any] | None = None
  trains: bool = False


def _labels(fields: Fields) -> dict[str, str]:
  count = fields.get("num_labels", 2)
  if not _is_count(count):
    raise PretrainedError(
      f"num_labels: expected {COUNT.expected}, got {text(count)}"
    )
  return LABELS.write(count)


CLASSES = Key("id2label", "num_classes", _labels, LABELS)


class Fixed(NamedTuple):
  """A key for which our models have one value.

  Attributes:
    name: Name in the file.
    ours: The value that is written.
    accepted: Further values with the same meaning; the library's default is
      `ours` or among them.
  """

  name: str
  ours: Any
  accepted: tuple[Any, ...] = ()


class Follows(NamedTuple):
  """A key whose value follows from others, and must agree with them.

  Attributes:
    name: Name in the file.
    rule: The value, from all fields with their defaults.
  """

  name: str
  rule: Callable[[Fields], Any]


CLASS_COUNT = Follows("num_labels", lambda fields: len(fields["id2label"]))


class Given(NamedTuple):
  """An option of ours as a file gives it.

  Attributes:
    key: Name of the key in the file; "" if no key says it.
    theirs: Value in the file.
    value: Value of the option.
  """

  key: str
  theirs: Any
  value: Any


@dataclasses.dataclass(frozen=True)
class Table:
  """The keys of one model of the library.

  Attributes:
    architecture: The library's class of a model with a head, or a function of
      our model.
    types: Defaults by `model_type` that differ from those of the keys. The
      first is written.
    keys: Keys that options of ours stand for.
    fixed: Keys with one value.
    follows: Keys that follow from others.
    harmless: Further keys that do not change the logits.
    implied: Options that every file of the family has.
    free: Options that may differ from those of a file; whether the weights fit
      is what decides.
    flat: The fields with every value under a key of its own, from those of a
      file.
    nested: The opposite, for writing.
    more: Options that need several keys or the tensors, in place of those of
      the keys; called with (fields, options so far, tensors).
    dialects: Names of the dialects that files are written in. None are those of
      a family with one table.
    constants: Further tensors that the library expects, of our model.
  """

  architecture: str | Callable[[Any], str]
  types: Mapping[str, Fields]
  keys: tuple[Key, ...]
  fixed: tuple[Fixed, ...] = ()
  follows: tuple[Follows, ...] = ()
  harmless: tuple[str, ...] = ()
  implied: Fields = dataclasses.field(default_factory=dict)
  free: tuple[str, ...] = ()
  flat: Callable[[Fields], Fields] = lambda fields: fields
  nested: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
  more: Callable[
    [Fields, Mapping[str, Given], Mapping[str, Tensor]], dict[str, Given]
  ] = lambda *_: {}
  dialects: tuple[str, ...] = ()
  constants: Callable[[Any], dict[str, np.ndarray]] = lambda _: {}

  def read(
    self, fields: Fields, tensors: Mapping[str, Tensor]
  ) -> dict[str, Given]:
    """Our options by name, from the fields of a file and its tensors.

    Raises:
      PretrainedError: If a key is unknown, illegal, unsupported, or contradicts
        another.
    """
    fields = self.flat(fields)
    known = {key.name for key in (*self.keys, *self.fixed, *self.follows)}
    for name, value in fields.items():
      if name in known or name in self.harmless or name in HARMLESS:
        continue
      if not (name == "model_type" or value is None or value in _NOTHING):
        raise PretrainedError(
          f"unknown key {text(name)}={text(value)}, which may change what the"
          " model computes; remove it from the file if it does not"
        )
    kind = fields.get("model_type", next(iter(self.types)))
    own = self.types[kind]
    options = {}
    for key in self.keys:
      theirs = fields.get(key.name)
      if key.name not in fields or (theirs is None and callable(key.default)):
        theirs = own.get(key.name, key.default)
        theirs = theirs(fields) if callable(theirs) else theirs
      value = key.form.read(theirs)
      if value is None:
        raise PretrainedError(
          f"{key.name}: expected {key.form.expected}, got {text(theirs)}"
        )
      options[key.option] = Given(key.name, theirs, value)
    for each in self.fixed:
      legal = (each.ours, *each.accepted)
      theirs = fields.get(each.name, own.get(each.name, each.ours))
      if not any(_same(theirs, value) for value in legal):
        raise PretrainedError(
          f"{each.name}: expected {text(each.ours)}, the only value that this"
          f" family supports, got {text(theirs)}"
        )
    whole = {given.key: given.theirs for given in options.values()}
    for each in self.follows:
      want = each.rule(whole)
      if each.name in fields and not _same(fields[each.name], want):
        raise PretrainedError(
          f"{each.name}: expected {text(want)}, which follows from the other"
          f" keys, got {text(fields[each.name])}"
        )
    implied = {name: Given("", v, v) for name, v in self.implied.items()}
    return options | self.more(fields, options, tensors) | implied

  def write(self, model: Any) -> dict[str, Any]:
    """The fields of a file for a model."""
    own = self.architecture
    fields: dict[str, Any] = {
      "architectures": [own if isinstance(own, str) else own(model)],
      "model_type": next(iter(self.types)),
    }
    for key in self.keys:
      ours = getattr(model, key.option) if key.of is None else key.of(model)
      fields[key.name] = ours if key.of else key.form.write(ours)
    fields |= {each.name: each.ours for each in self.fixed}
    return self.nested(fields)


def _same(a: Any, b: Any) -> bool:
  """Equality in which true is not 1, and 1e-06 has the digits of a float32."""
  if type(a) in (int, float) and type(b) in (int, float):
    return math.isclose(a, b, rel_tol=1e-6)
  return type(a) is type(b) and a == b


def text(value: Any) -> str:
  """A value of a file in a message, in ASCII and not too long.

  >>> text("relu"), text(None)
  ('"relu"', 'null')
  """
  full = json.dumps(value)
  return full if len(full) < 80 else f"{full[:77]}..."


# Values of unknown keys that stand for the absence of what the key names.
_NOTHING: tuple[Any, ...] = ({}, [], "")
# Keys of every family that do not change the logits: names, dtypes, what is
# returned, training, generation.
HARMLESS = {
  "_attn_implementation", "_attn_implementation_autoset", "_commit_hash",
  "_name_or_path", "add_cross_attention", "architectures",
  "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
  "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size",
  "custom_pipelines", "decoder_start_token_id", "diversity_penalty",
  "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
  "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
  "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing",
  "id2label", "initializer_factor", "initializer_range", "is_decoder",
  "is_encoder_decoder", "label2id", "length_penalty", "max_length",
  "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
  "num_return_sequences", "output_attentions", "output_hidden_states",
  "output_past", "output_scores", "pad_token_id", "prefix", "problem_type",
  "remove_invalid_values", "repetition_penalty", "return_dict",
  "return_dict_in_generate", "sep_token_id", "suppress_tokens",
  "task_specific_params", "temperature", "tf_legacy_loss",
  "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k",
  "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p",
  "use_bfloat16", "use_cache",
}  # fmt: skip


# The end of a text by size of vocabulary: GPT-2's, Llama 2's and Llama 3's.
_ENDS = {50257: 50256, 32000: 2, 128256: 128001}


def with_end(fields: dict[str, Any]) -> dict[str, Any]:
  """The fields of a causal model with the id that ends its texts.

  Vocabularies of other sizes are ours, which end with 1. Without the key the
  library takes an id of the published vocabulary.

  >>> with_end({"vocab_size": 384})["eos_token_id"]
  1
  """
  return fields | {"eos_token_id": _ENDS.get(fields["vocab_size"], EOS)}


def dropout(model: Any) -> float:
  """The dropout rate of a model, after its embeddings and branches."""
  return float(model.dropout.rate)


def attention_dropout(model: Any) -> float:
  """The dropout of attention of a model with `blocks`, equal in all of them."""
  ((_, block, _), *_) = stack.named("blocks", model.blocks)
  return float(block.attn.dropout.rate)
