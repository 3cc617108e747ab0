"""config.json beside weights: the function of the library, or a refusal."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from figs_jax import models
from figs_jax.models import pretrained
from figs_jax.models.pretrained import PretrainedError, keys
from figs_jax.models.pretrained.config import TABLES

from . import config_oracle as oracle

cases = pytest.mark.parametrize("case", sorted(oracle.CASES))
NAMES = {kind.__name__: name for name, kind in models.FAMILIES.items()}


@functools.cache
def stored():
  """What the library says, by version, newest first."""
  versions = json.loads(oracle.TARGET.read_text())
  return dict(sorted(versions.items(), reverse=True))


def newest():
  return next(iter(stored().values()))


def saved(case):
  """A file with every key of the library."""
  return oracle._whole(case, newest())


def options_of(folder, config=None):
  """The options of a directory that change the logits."""
  if config is not None:
    (folder / "config.json").write_text(json.dumps(config))
  config = pretrained.config_of(folder)
  tables = TABLES[config.family]
  trains = {k.option for table in tables for k in table.keys if k.trains}
  return config, {
    name: given.value
    for name, given in config.options.items()
    if name not in trains
  }


def table_of(kind):
  """The table of a type of model."""
  every = (table for tables in TABLES.values() for table in tables)
  (table,) = (table for table in every if kind in table.types)
  return table


def abstract(config, **options):
  """The model that a file asks for, without arrays."""
  whole = config.completed(options)
  variant = "custom/1" if "patch" in whole else "custom"
  return models.abstract(NAMES[config.family], variant, **whole)


def expected(case):
  """The stored logits; those of a T5 depend linearly on the scale."""
  logits = oracle.inputs(case)["logits"]
  return logits * (math.sqrt(12) if case == "t5 unscaled" else 1)


def computed(folder, case):
  model = models.from_pretrained(folder)
  given = oracle.inputs(case)
  names = [name for name in given if name != "logits"]
  with jax.default_matmul_precision("highest"):
    return np.asarray(model(*(given[name] for name in names)))


@cases
def test_from_pretrained_computes_the_stored_logits(case, tmp_path):
  oracle.write(tmp_path, newest()["saved"][case], oracle.weights(case))
  got = computed(tmp_path, case)
  assert np.abs(got - expected(case)).max() < 1e-4 * np.abs(got).max() ** 0.5


@cases
def test_from_pretrained_computes_what_the_library_does_now(case, tmp_path):
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  model = oracle.loaded(case)
  model.save_pretrained(tmp_path)
  want = oracle.logits(model, case)
  assert np.abs(computed(tmp_path, case) - want).max() < 1e-4 * max(
    1, np.abs(want).max()
  )


@cases
def test_every_version_writes_the_same_function(case, tmp_path):
  files = [version["saved"][case] for version in stored().values()]
  oracle.write(tmp_path, files[0], oracle.weights(case))
  _, first = options_of(tmp_path)
  for file in files[1:]:
    assert options_of(tmp_path, file)[1] == first
  # With every key that the newest version leaves out.
  assert options_of(tmp_path, saved(case))[1] == first


@pytest.mark.parametrize("kind", sorted(oracle.KINDS))
def test_every_key_and_default_of_the_library_is_known(kind):
  table = table_of(kind)
  known = {key.name for key in (*table.keys, *table.fixed, *table.follows)}
  known |= keys.HARMLESS | set(table.harmless) | {"model_type"}

  def values(fields):
    options = table.read({"model_type": kind} | fields, {})
    return {name: given.value for name, given in options.items()}

  for version, content in stored().items():
    every = content["defaults"][kind]
    flat = table.flat(every)
    unknown = {name for name in flat.keys() - known if flat[name]}
    assert not unknown, version
    assert values(every) == values({}), version


@cases
def test_no_changed_key_loads_as_another_function(case, tmp_path):
  """Each key changed in turn, beside what the library then computes."""
  oracle.write(tmp_path, saved(case), oracle.weights(case))
  config, same = options_of(tmp_path)
  model = abstract(config)
  pretrained.read(model, tmp_path)
  changes, table = newest()["changes"][case], table_of(oracle.CASES[case][0])
  # An MT5 has no such key, GPT-2's is null, and Llama's are in one object.
  asked = {key.name for key in table.keys if "rope" not in key.name}
  assert changes.keys() >= asked - {"scale_decoder_outputs", "n_inner"}
  derived = {key.name for key in table.follows}
  for name, values in changes.items():
    # Without the keys that would contradict it.
    whole = {k: v for k, v in saved(case).items() if k not in derived}
    for value, verdict in values:
      whole |= saved(case) if name in derived else {}
      new = whole | {name: value}
      (tmp_path / "config.json").write_text(json.dumps(new))
      try:
        pretrained.read(model, tmp_path)
      except PretrainedError as error:
        assert name in str(error), error
        assert "\n" not in str(error)
        continue
      assert verdict != "other", (name, value)
      assert options_of(tmp_path)[1] == same, (name, value)


# What loaded without a word: options of our model, and the message.
SILENT = [
  ("vit", {"heads": 2}, r"heads=4 \(num_attention_heads=4\), got 2.*heads=4$"),
  ("vit", {"gelu": "tanh"}, "gelu='exact' .*got 'tanh'; set gelu='exact'$"),
  ("vit", {"norm_epsilon": 1e-6}, "norm_epsilon=1e-12 .*got 1e-06"),
  ("vit", {"pool": "gap"}, "pool='cls', got 'gap'; set pool='cls'"),
  ("swinv2", {"window": 8}, "window=4 .*got 8; set window=4"),
  ("swinv2", {"image_size": 24}, r"image_size=\(16, 16\) .*got \(24, 24\)"),
  ("swinv2", {"pretrained_windows": (3, 3)}, r"pretrained_windows=\(0, 0\)"),
  ("t5", {"max_distance": 20}, "max_distance=12 .*got 20; set max_distance=12"),
  ("t5", {"scaled": False}, "scaled=True .*got False; set scaled=True"),
  ("t5 gated", {"tied": True}, "tied=False .*got True"),
]


@pytest.mark.parametrize(("case", "options", "message"), SILENT)
def test_an_option_that_differs_is_refused(case, options, message, tmp_path):
  oracle.write(tmp_path, newest()["saved"][case], oracle.weights(case))
  config = pretrained.config_of(tmp_path)
  with pytest.raises(ValueError, match=message):
    pretrained.load(abstract(config, **options), tmp_path)
  with pytest.raises(ValueError, match=message):
    models.from_pretrained(tmp_path, **options)


def test_dropout_is_taken_and_may_differ(tmp_path):
  config = newest()["saved"]["t5"] | {"dropout_rate": 0.25}
  oracle.write(tmp_path, config, oracle.weights("t5"))
  read = pretrained.config_of(tmp_path)
  assert read.completed({})["dropout"] == 0.25
  pretrained.read(abstract(read, dropout=0.0), tmp_path)


def test_a_swin_for_larger_windows_has_those_of_the_file(tmp_path):
  oracle.write(tmp_path, newest()["saved"]["swinv2"], oracle.weights("swinv2"))
  larger = {"image_size": 32, "window": 8}
  model = models.from_pretrained(tmp_path, resize_positions=True, **larger)
  assert (model.window, model.pretrained_windows) == (8, (4, 4))
  with pytest.raises(ValueError, match=r"pretrained_windows=\(4, 4\), got"):
    models.from_pretrained(
      tmp_path, resize_positions=True, pretrained_windows=(0, 0), **larger
    )


def test_a_vit_for_gray_images_and_another_task(tmp_path):
  oracle.write(tmp_path, newest()["saved"]["vit"], oracle.weights("vit"))
  gray = oracle.inputs("vit")["images"][..., :1]
  model = models.from_pretrained(tmp_path, in_channels=1)
  three = models.from_pretrained(tmp_path)(np.repeat(gray, 3, axis=-1))
  np.testing.assert_allclose(model(gray), three, atol=1e-5)
  other = models.from_pretrained(tmp_path, head="fresh", num_classes=3)
  assert other.num_classes == 3
  with pytest.raises(ValueError, match="num_classes=5 .*set head='fresh'"):
    models.from_pretrained(tmp_path, num_classes=3)
  with pytest.raises(ValueError, match="in_channels=3 .*convert_channels=True"):
    pretrained.load(abstract(pretrained.config_of(tmp_path), in_channels=1),
                    tmp_path)  # fmt: skip


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "expected the config.json of transformers beside"),
    ("{", "config.json: not a JSON file"),
    ("[]", "config.json: expected a JSON object"),
    ("{}", "expected the config.json of transformers beside"),
    ('{"model_type": "swin"}', 'model_type: expected one of .*, got "swin"'),
    ('{"model_type": "deit"}', "have no dist_token, unlike this ViT"),
    ('{"model_type": []}', "model_type: expected one of"),
    (
      '{"model_type": "vit", "auto_map": {"a": 1}}',
      'unknown key "auto_map".*remove it',
    ),
    (
      '{"model_type": "vit", "hidden_size": "768"}',
      'hidden_size: expected an integer from 1, got "768"',
    ),
    (
      '{"model_type": "vit", "num_hidden_layers": 1000000000}',
      "num_hidden_layers: expected 1 to .* blocks",
    ),
    (
      '{"model_type": "vit", "num_labels": 3, "id2label": {"0": "a"}}',
      "num_labels: expected 1, which follows",
    ),
    (
      '{"model_type": "t5", "feed_forward_proj": "gated-silu"}',
      'feed_forward_proj: expected one of relu, .*got "gated-silu"',
    ),
  ],
)
def test_what_no_model_has_is_one_line(text, message, tmp_path):
  oracle.write(tmp_path, {}, oracle.weights("vit"))
  if text is None:
    (tmp_path / "config.json").unlink()
  else:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=message) as error:
    models.from_pretrained(tmp_path)
  assert "\n" not in str(error.value)


def test_a_file_without_a_type_is_compared_if_it_has_the_keys(tmp_path):
  oracle.write(tmp_path, newest()["saved"]["vit"], oracle.weights("vit"))
  model = abstract(pretrained.config_of(tmp_path))
  config = tmp_path / "config.json"
  config.write_text('{"family": "vit", "heads": 7}')
  pretrained.read(model, tmp_path)
  config.write_text('{"num_attention_heads": 8}')
  with pytest.raises(PretrainedError, match="depth=12 .*heads=8"):
    pretrained.read(model, tmp_path)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"tie_word_embeddings": True}, "expected false, since lm_head.weight"),
    ({"model_type": "mt5", "tie_word_embeddings": True}, "transformers 4"),
    (
      {"model_type": "mt5", "scale_decoder_outputs": True},
      "expected false in an MT5",
    ),
  ],
)
def test_a_head_on_which_versions_disagree_is_refused(
  fields, message, tmp_path
):
  config = newest()["saved"]["t5 gated"]
  for name in ("tie_word_embeddings", "scale_decoder_outputs"):
    config = {key: v for key, v in config.items() if key != name}
  config = config | {"transformers_version": "4.57.0"} | fields
  oracle.write(tmp_path, config, oracle.weights("t5 gated"))
  with pytest.raises(PretrainedError, match=message):
    pretrained.config_of(tmp_path)
