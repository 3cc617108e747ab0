"""config.json of another library: defaults, files, and what each key changes.

As a script it writes fixtures/configs_hf.json, where transformers is installed:

  python tests/models/config_oracle.py

The file holds, by the library's version, `defaults`: every key by model type;
`saved`: the file of each tiny model in `CASES`. Other versions are kept. Where
torch is installed too, `changes` has what the library does with each changed
key: "same" logits, "other" ones, or "refused".
"""

import json
import pathlib
import tempfile

import numpy as np

from tests.models import (
  bert_oracle,
  causal_oracle,
  swin_v2_oracle,
  t5_oracle,
  vit_oracle,
)

TARGET = pathlib.Path(__file__).parent / "fixtures" / "configs_hf.json"
# Model type -> (configuration, model with a head).
KINDS = {
  "vit": ("ViTConfig", "ViTForImageClassification"),
  "swinv2": ("Swinv2Config", "Swinv2ForImageClassification"),
  "t5": ("T5Config", "T5ForConditionalGeneration"),
  "mt5": ("MT5Config", "MT5ForConditionalGeneration"),
  "bert": ("BertConfig", "BertForMaskedLM"),
  "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
  "llama": ("LlamaConfig", "LlamaForCausalLM"),
}
_TEXT = {
  "vocab_size": t5_oracle.VOCAB,
  "d_model": t5_oracle.WIDTH,
  "num_heads": t5_oracle.HEADS,
  "d_kv": t5_oracle.HEAD_DIM,
  "d_ff": t5_oracle.HIDDEN,
  "num_layers": t5_oracle.DEPTHS[0],
  "num_decoder_layers": t5_oracle.DEPTHS[1],
  "relative_attention_num_buckets": t5_oracle.BUCKETS,
  "relative_attention_max_distance": t5_oracle.DISTANCE,
  "decoder_start_token_id": 0,
}
_GATED = _TEXT | {"feed_forward_proj": "gated-gelu"}
# Name -> (model type, arguments of the configuration, case of the oracle). The
# weights are those that the oracles' fixtures hold.
CASES = {
  "vit": ("vit", vit_oracle.arguments(), None),
  "swinv2": ("swinv2", swin_v2_oracle.arguments("shift"), "shift"),
  "swinv2 clipped": ("swinv2", swin_v2_oracle.arguments("clipped"), "clipped"),
  "t5": ("t5", _TEXT, "v1_0"),
  "t5 gated": ("t5", _GATED | {"tie_word_embeddings": False}, "v1_1"),
  "t5 unscaled": ("t5", _TEXT | {"tie_word_embeddings": False}, "v1_0"),
  "mt5": ("mt5", _GATED | {"tie_word_embeddings": False}, "v1_1"),
  **{
    f"bert {case}": ("bert", bert_oracle.arguments(case), case)
    for case in bert_oracle.CASES
  },
  **{
    name: (family, causal_oracle.arguments(name), name)
    for name, (family, *_) in causal_oracle.CASES.items()
  },
}
# Values to change a key to, beside those that `changed` derives.
WORDS = {
  "hidden_act": ["relu", "gelu_new", "gelu_pytorch_tanh", "silu"],
  "feed_forward_proj": ["relu", "gated-gelu", "gated-silu", "gelu"],
  "dense_act_fn": ["relu", "gelu_new", "gelu", "silu"],
  "pooler_act": ["relu"],
  "position_embedding_type": ["relative_key", "relative_key_query"],
  "model_type": ["deit", "swin", "umt5"],
  "activation_function": ["gelu", "gelu_pytorch_tanh", "relu"],
}


def changed(name: str, value) -> list:
  """Other values of a key: legal ones mostly, and of the same type."""
  if name in WORDS:
    return [word for word in WORDS[name] if word != value]
  if isinstance(value, bool):
    return [not value]
  if isinstance(value, int):
    return [value + 1, 2 * value or 3]
  if isinstance(value, float):
    return [value + 0.01, value + 0.5]
  if isinstance(value, list) and value and isinstance(value[0], int):
    return [[v + 1 for v in value], [2 * v or 3 for v in value], value[::-1]]
  if name in ("id2label", "label2id"):
    return [dict(list(value.items())[:-1])]
  return []


def classes(case: str) -> tuple[str, str]:
  """The library's classes of a case's configuration and model."""
  kind, _, which = CASES[case]
  config, model = KINDS[kind]
  return config, bert_oracle.CASES[which][0] if kind == "bert" else model


def loaded(case: str):
  """The library's model of a case with the weights of a fixture."""
  import torch
  import transformers

  _, arguments, _ = CASES[case]
  config, model = (getattr(transformers, name) for name in classes(case))
  model = model(config(**arguments)).eval()
  state = {name: torch.from_numpy(v) for name, v in weights(case).items()}
  if "lm_head.weight" in state:
    head = torch.empty(state["lm_head.weight"].shape)
    model.lm_head.weight = torch.nn.Parameter(head)
  with tempfile.TemporaryDirectory() as folder:
    write(folder, json.loads(model.config.to_json_string()), weights(case))
    return type(model).from_pretrained(folder).eval()


def weights(case: str) -> dict[str, np.ndarray]:
  """The stored weights of a case, under the names of the library's files."""
  kind, _, which = CASES[case]
  if kind == "vit":
    target, prefix = vit_oracle.TARGET, "weight/"
  elif kind == "swinv2":
    target, prefix = swin_v2_oracle.TARGET, "weight/"
  elif kind == "bert":
    target, prefix = bert_oracle.TARGET, f"{which}/weight/"
  elif kind in ("gpt2", "llama"):
    target, prefix = causal_oracle.TARGET, f"{case}/weight/"
  else:
    target, prefix = t5_oracle.TARGET, f"{which}/weight/"
  with np.load(target) as data:
    return {
      name.removeprefix(prefix): data[name]
      for name in data
      if name.startswith(prefix)
    }


def inputs(case: str) -> dict[str, np.ndarray]:
  """Images, or ids of inputs and targets, from the same fixtures."""
  kind, _, which = CASES[case]
  if kind == "vit":
    with np.load(vit_oracle.TARGET) as data:
      return {"images": data["images"], "logits": data["logits"]}
  if kind == "bert":
    with np.load(bert_oracle.TARGET) as data:
      names = {"inputs": "inputs", "types": "types", "output": "logits"}
      return {ours: data[f"{which}/{n}"] for n, ours in names.items()}
  targets = dict.fromkeys(("gpt2", "llama"), causal_oracle.TARGET)
  targets["swinv2"] = swin_v2_oracle.TARGET
  target = targets.get(kind, t5_oracle.TARGET)
  names = ("images", "inputs", "targets", "tokens", "logits")
  with np.load(target) as data:
    return {n: data[f"{which}/{n}"] for n in names if f"{which}/{n}" in data}


def logits(model, case: str) -> np.ndarray:
  """What the library's model computes."""
  import torch

  given = inputs(case)
  with torch.no_grad():
    if "images" in given:
      pixels = given["images"].transpose(0, 3, 1, 2)
      return model(torch.from_numpy(pixels.copy()), return_dict=True)[
        "logits"
      ].numpy()
    if "types" in given:
      ids, types = (
        torch.from_numpy(given[name]).long() for name in ("inputs", "types")
      )
      return bert_oracle.output_of(model, ids, types).numpy()
    if "tokens" in given:
      return model(torch.from_numpy(given["tokens"]).long()).logits.numpy()
    ids, targets = (
      torch.from_numpy(given[name]).long() for name in ("inputs", "targets")
    )
    return model(
      input_ids=ids,
      attention_mask=(ids != 0).long(),
      decoder_input_ids=torch.nn.functional.pad(targets[:, :-1], (1, 0)),
      return_dict=True,
    ).logits.numpy()


def write(folder, config: dict, tensors: dict[str, np.ndarray]) -> None:
  from safetensors.numpy import save_file

  path = pathlib.Path(folder)
  (path / "config.json").write_text(json.dumps(config))
  save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def changes(case: str, saved: dict) -> dict[str, list]:
  """Key -> [changed value, what the library does] of one case."""
  import transformers

  kind = getattr(transformers, classes(case)[1])
  tensors, want = weights(case), logits(loaded(case), case)
  result = {}
  for name, value in saved.items():
    for new in changed(name, value):
      with tempfile.TemporaryDirectory() as folder:
        write(folder, saved | {name: new}, tensors)
        try:
          got = logits(kind.from_pretrained(folder).eval(), case)
        except Exception:
          verdict = "refused"
        else:
          near = got.shape == want.shape and np.abs(got - want).max() < 1e-4
          verdict = "same" if near else "other"
      result.setdefault(name, []).append([new, verdict])
  return result


def main() -> None:
  import transformers

  transformers.utils.logging.set_verbosity(50)
  stored = json.loads(TARGET.read_text()) if TARGET.is_file() else {}
  made = {
    kind: getattr(transformers, config)().to_dict()
    for kind, (config, _) in KINDS.items()
  }
  version = {"defaults": made, "saved": {}}
  for case, (_, arguments, _) in CASES.items():
    config, model = classes(case)
    config = getattr(transformers, config)(**arguments, architectures=[model])
    version["saved"][case] = json.loads(config.to_json_string())
  if transformers.utils.is_torch_available():
    version["changes"] = {
      case: changes(case, saved | _whole(case, version))
      for case, saved in version["saved"].items()
    }
  stored[transformers.__version__] = version
  text = json.dumps(stored, sort_keys=True, separators=(",", ":"))
  TARGET.write_text(f"{text}\n")
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


def _whole(case: str, version: dict) -> dict:
  """A saved file with every default key that it leaves out."""
  defaults = version["defaults"][CASES[case][0]]
  return {**defaults, **version["saved"][case]}


if __name__ == "__main__":
  main()
