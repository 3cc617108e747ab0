"""GPT-2 and Llama: published sizes, rows, masks of prompts, cached steps."""

import jax
import numpy as np
import pytest

from figs_jax import models, nn
from figs_jax.models import decode
from figs_jax.models.llama import rotary_rates
from figs_jax.models.pretrained import PretrainedError, llama
from figs_jax.models.shapes import shape_of

from .families import create

FAMILIES = ("gpt2", "llama")


# Counts of the published checkpoints (Hugging Face's `num_parameters`).
@pytest.mark.parametrize(
  ("family", "variant", "count"),
  [
    ("gpt2", "small", 124_439_808),
    ("gpt2", "medium", 354_823_168),
    ("gpt2", "large", 774_030_080),
    ("gpt2", "xl", 1_557_611_200),
    ("llama", "7b", 6_738_415_616),
    ("llama", "1b", 1_235_814_400),
    ("llama", "3b", 3_212_749_824),
    ("llama", "8b", 8_030_261_248),
  ],
)
def test_parameters_are_the_published_ones(family, variant, count):
  model = models.abstract(family, variant, scan=True)
  params = jax.tree.leaves(nn.split(model)[1])
  assert sum(leaf.size for leaf in params) == count
  shape = shape_of(family, variant)
  assert shape.parameters == count
  # The model has the rows of the shape, of every phase, with patterns.
  sparse, rules = nn.sparsify(model, "ff: 2:4"), shape.with_rules("ff: 2:4")
  for options in ({"seq": 9}, {"phase": "decode", "context": 77}):
    for make in (models.gemms_of, models.non_gemms_of):
      assert make(sparse, 2, **options) == make(rules, 2, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_changes_no_logits(family):
  model = random(family)
  ids = np.array([[5, 6, 7]])
  want = np.asarray(model(ids))
  for left in (0, 1, 2):
    place = slice(left, left + 3)
    padded, mask = np.full((1, 5), 9), np.zeros((1, 5), bool)
    padded[:, place], mask[:, place] = ids, True
    got = model(padded, mask)[:, place]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def random(family, **options):
  """A tiny model with decided logits."""
  graphdef, params, masks, rest = nn.split(create(family, **options))
  params = jax.tree.map(lambda x: x * 15 if x.ndim > 1 else x, params)
  return nn.merge(graphdef, params, masks, 0.0, rest)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing(family, scan):
  """A sparse model with dropout, token by token without a cache."""
  noise = {"attention_dropout": 0.3}
  model = random(family, scan=scan, length=16, **noise)
  model = nn.sparsify(model, "ff: 1:4, qk: 2:4")
  prompts = np.array([[5, 6, 7], [9, 3, 4]], np.int32)
  tokens = np.asarray(decode.greedy(model, prompts, 5, eos=30))
  model.eval()
  graphdef, params, masks, rest = nn.split(model)

  @jax.jit
  def following(ids):
    return nn.merge(graphdef, params, masks, 0.0, rest)(ids)

  row = np.zeros((2, 8), np.int32)  # causal: what follows changes nothing
  row[:, :3] = prompts
  for place in range(5):
    best = np.asarray(following(row)[:, 2 + place]).argmax(-1)
    np.testing.assert_array_equal(tokens[:, place], best)
    row[:, 3 + place] = best


def test_rates_are_those_of_llama_3():
  """Every wavelength by the three cases of Llama 3.1's own code."""
  plain = rotary_rates(64, 5e5)
  for rate, scaled in zip(plain, rotary_rates(64, 5e5, 8.0, 1.0, 4.0, 8192)):
    wavelength = 2 * np.pi / rate
    if wavelength < 8192 / 4:
      want = rate
    elif wavelength > 8192:
      want = rate / 8
    else:
      smooth = (8192 / wavelength - 1) / (4 - 1)
      want = (1 - smooth) * rate / 8 + smooth * rate
    assert scaled == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda m: m(np.zeros((1, 13), int)), "at most length=12 tokens.*got 13"),
    (
      lambda m: decode.greedy(m, np.zeros((1, 3), int), 11),
      "at most length=12 tokens.*got 13",
    ),
    (lambda m: m(np.array([[24]])), "GPT2: expected tokens with ids from 0"),
    (
      lambda m: decode.greedy(m, np.zeros((2, 0), int), 3),
      "a prompt of one token or more",
    ),
    (
      lambda m: decode.greedy(
        m, np.ones((2, 2), int), 3, mask=np.array([[True, True], [False] * 2])
      ),
      "a token in every row of the mask, got none in row 1",
    ),
    (
      lambda m: decode.greedy(
        m, np.ones((2, 2), int), 3, mask=np.ones((2, 3), bool)
      ),
      r"the inputs, \(2, 2\), got shape \(2, 3\)",
    ),
  ],
)
def test_errors_say_what_and_the_fix(call, message, unchecked):
  with pytest.raises(ValueError, match=message):
    call(create("gpt2"))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kv_heads": 3}, "4 heads do not|3 heads do not divide width 4"),
    ({"head_dim": 5}, "an even head_dim.*got 5"),
    ({"rope_low": 4.0}, "expected 0 < rope_low < rope_high"),
    ({"width": None}, "variant 'custom' needs width="),
  ],
)
def test_sizes_that_do_not_fit(options, message):
  with pytest.raises(ValueError, match=message):
    create("llama", **options)


_LLAMA_3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type default"),
    ({"rope_scaling": {"factor": 2.0}}, "expected rope_type default, or"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "llama3 with factor"),
    ({"rope_parameters": 3}, "rope_parameters: expected a JSON object, got 3"),
    (
      {"rope_parameters": _LLAMA_3, "rope_scaling": _LLAMA_3},
      "expected none beside rope_parameters",
    ),
    ({"rope_scaling": _LLAMA_3 | {"factor": "8"}}, "rope_scaling.factor: exp"),
    ({"rope_interleaved": True}, 'unknown key "rope_interleaved"=true'),
  ],
)
def test_other_rotary_positions_are_refused(fields, message):
  with pytest.raises(PretrainedError, match=message):
    llama.CONFIG.read(fields, {})


def test_both_spellings_of_rotary_positions_are_one():
  old = {"rope_theta": 5e5, "rope_scaling": _LLAMA_3}
  new = {"rope_parameters": {**_LLAMA_3, "rope_theta": 5e5}}
  assert llama.CONFIG.read(old, {}) == llama.CONFIG.read(new, {})
