"""Rules: the first match wins, and every mistake raises at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from figs_jax.core import NM, MaskedKernel, Rules
from figs_jax.core.rules import check_groups, nearest, word_table

WORDS = word_table(
  q=".*/attn/q/kernel",
  k=".*/attn/k/kernel",
  v=".*/attn/v/kernel",
  ff=".*/mlp/fc[12]/kernel",
  head="head/kernel",
)
KERNELS = {
  f"blocks/{i}/{name}/kernel": (shape, axis)
  for i in range(2)
  for name, shape, axis in [
    ("attn/q", (16, 4, 4), 0),
    ("attn/k", (16, 4, 4), 0),
    ("attn/out", (4, 4, 16), (0, 1)),
    ("mlp/fc1", (16, 64), -2),
    ("mlp/fc2", (64, 16), -2),
  ]
} | {"head/kernel": ((16, 10), -2)}


def resolve(text):
  return Rules.parse(text).resolve(KERNELS, WORDS)


def patterns(text):
  return {path: str(leaf.pattern) for path, leaf in resolve(text).items()}


def test_the_first_match_wins():
  assert patterns("blocks/0/.*fc1/kernel: dense, ff: 1:8, qk: 1:4") == {
    "blocks/0/mlp/fc2/kernel": "1:8",
    "blocks/1/mlp/fc1/kernel": "1:8",
    "blocks/1/mlp/fc2/kernel": "1:8",
    "blocks/0/attn/q/kernel": "1:4",
    "blocks/1/attn/q/kernel": "1:4",
    "blocks/0/attn/k/kernel": "1:4",
    "blocks/1/attn/k/kernel": "1:4",
  }


def test_a_leaf_states_shape_pattern_and_axis():
  leaf = resolve(".*/attn/out/kernel: 2:4")["blocks/1/attn/out/kernel"]
  assert leaf == MaskedKernel((4, 4, 16), NM(2, 4), (0, 1))


def test_what_no_rule_names_and_n_of_m_stay_dense():
  assert resolve("head: dense") == {} == resolve("ff: 4:4")


@pytest.mark.parametrize(
  "text",
  ["ff:1:8,qk:1:4", " ff : 1 : 8 , qk : 1:4 ", "ff: 1:8, qk: 1:4,"]
  + ["ff: 1:8,\n  qk: 1:4"],
)
def test_spaces_and_a_last_comma_are_free(text):
  assert Rules.parse(text) == Rules((("ff", NM(1, 8)), ("qk", NM(1, 4))))


def test_keys_may_hold_the_signs_of_the_grammar():
  rules = Rules.parse(r"(?:a|b)/\d{1,2}/.*: 2:4, ff: dense")
  assert rules.rules == ((r"(?:a|b)/\d{1,2}/.*", NM(2, 4)), ("ff", None))


keys = st.sampled_from(
  ["ff", "q", ".*", "*", r"a/\d+/b", "x{1,2}", "(?:p|q)/k"]
)
values = st.none() | st.integers(1, 64).map(lambda n: NM(n, 64))


@given(st.lists(st.tuples(keys, values), min_size=1, max_size=5))
def test_printing_and_reading_are_inverse(pairs):
  rules = Rules(tuple(pairs))
  assert Rules.parse(str(rules)) == rules == Rules.parse(rules)
  assert hash(Rules.parse(str(rules))) == hash(rules)


def test_map_leaves_dense_alone():
  rules = Rules.parse("ff: 1:8, head: dense")
  wider = rules.map(lambda nm: NM(2 * nm.n, 2 * nm.m))
  assert str(wider) == "ff: 2:16, head: dense"


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "Invalid N:M pattern ''"),
    ("8", "Invalid N:M pattern '8': expected 'n:m', for example '2:4'"),
    ("9:8", "Invalid N:M pattern '9:8': expected 1 <= n <= m"),
    (",", "at least one rule"),
    (" , ", "Invalid rules ' , '.* got ','"),
    ("ff", "Invalid rules 'ff': expected 'key: n:m' or .* got 'ff'"),
    ("ff: 1:", "got 'ff: 1:'"),
    ("ff: none", "'key: dense'"),
    ("ff 1:8, qk: 1:4", "got 'ff 1:8"),
    ("ff: 1:8 qk: 1:4", "got 'ff: 1:8 qk"),
    ("qk: 1:4, ff: 1:8 head: dense", "got 'ff: 1:8 head"),
    ("ff: 1:8,, qk: 1:4", "got ', qk"),
    ("ff: 9:8", "Rule 'ff': Invalid N:M pattern '9:8': expected 1 <= n <= m"),
    ("ff: 0:4", "1 <= n <= m"),
    ("a/(b: 1:4", r"Rule 'a/\(b': invalid regular expression"),
  ],
)
def test_text_that_cannot_be_read(text, message):
  with pytest.raises(ValueError, match=message):
    Rules.parse(text)


def test_a_pattern_that_is_none(unchecked):
  with pytest.raises(ValueError, match="Rule 'ff': expected NM.* got '1:8'"):
    Rules((("ff", "1:8"),))


@pytest.mark.parametrize("given", [None, 8, ("ff", "1:8")])
def test_rules_of_another_type(given, unchecked):
  with pytest.raises(ValueError, match="Expected rules as text"):
    Rules.parse(given)


@given(st.integers(1, 64))
def test_one_pattern_means_every_kernel(n):
  pattern = NM(n, 64)
  rules = Rules.parse(pattern)
  assert rules.single == pattern and str(rules) == str(pattern)
  assert rules == Rules.parse(str(pattern)) == Rules.parse(f" *: {pattern},")
  assert rules.map(lambda nm: NM(nm.n, 128)).single == NM(n, 128)
  for text in (f".*: {pattern}", f"*: {pattern}, ff: 1:8", "*: dense"):
    assert Rules.parse(text).single is None


def test_the_key_of_every_kernel():
  assert patterns("1:2") == dict.fromkeys(KERNELS, "1:2")
  assert patterns("ff: dense, *: 1:2") == patterns("ff: dense, .*: 1:2")
  with pytest.raises(ValueError, match="Rule 'ff' is dead"):
    resolve("*: 1:2, ff: 1:8")


@pytest.mark.parametrize(
  "text, message",
  [
    (
      "fff: 1:8",
      "Rule 'fff': unknown word.*did you mean 'ff'.*[Kk]nown: ff, h",
    ),
    ("qkv: 1:8, zebra: 2:4", "Rule 'zebra': unknown word.*'.*/zebra/.*'"),
    ("mlp/fc1/kernel: 1:8", "matches no kernel .*blocks/./mlp/fc1/kernel"),
    ("v: 1:8", "Rule 'v' matches no kernel"),
    (".*: 1:2, ff: 1:8", "Rule 'ff' is dead: earlier rules win"),
    ("ff: 1:8, ff: 1:4", "Rule 'ff' is dead"),
    (
      "ff: 1:8, head: dense, .*out/kernel: 1:3",
      "blocks/0/attn/out/kernel: axis .0, 1. has length 16, .*m=3; choose",
    ),
    ("ff: 1:128", "blocks/0/mlp/fc1/kernel: axis -2 has length 16.*: dense'"),
  ],
)
def test_rules_that_do_not_fit_the_model(text, message):
  with pytest.raises(ValueError, match=message):
    resolve(text)


def test_no_kernels_at_all():
  with pytest.raises(ValueError, match="Nearest kernels: none"):
    Rules.parse("ff: 1:8").resolve({}, WORDS)


def test_word_tables_add_unions_only_where_their_parts_are():
  assert "qk" in WORDS and "qkv" in WORDS
  assert set(word_table(q="a", v="b")) == {"q", "v"}
  assert word_table(q="a", k="b", qk="c")["qk"] == "c"


def test_the_nearest_word():
  assert nearest("heda", ["head", "ff"]).startswith("did you mean 'head'?")
  assert nearest("x", []) == "known: none"
  layers = [f"layer_{i:02}" for i in range(50)]
  line = nearest("leyer_07", layers)
  assert line.startswith("did you mean 'layer_07'? Known: layer_")
  assert line.count(",") == 9 and line.endswith(" and 40 others")


@given(st.integers(1, 64), st.integers(1, 16))
def test_check_groups_is_divisibility(length, m):
  if length % m:
    with pytest.raises(ValueError, match=f"a: axis -1 has length {length}"):
      check_groups("a", (3, length), NM(1, m), -1)
  else:
    check_groups("a", (3, length), NM(1, m), -1)
