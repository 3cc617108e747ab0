"""docs/engine_validation.md says what the code gives, and no more than that."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {"prediction", "calibration", "bracket", "reconstruction"}
NONE = "not reproduced"


@pytest.fixture(scope="module")
def script():
  """docs/validate_engine.py."""
  path = DOCS / "validate_engine.py"
  spec = importlib.util.spec_from_file_location("validate_engine", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def claims(script):
  return script.all_claims()


def test_the_page_is_what_the_code_gives(script, claims):
  assert script.PAGE.read_text() == script.page(claims), (
    "out of date: python docs/validate_engine.py"
  )


def test_every_claim_has_one_of_five_kinds(claims):
  every = [claim for rows in claims.values() for claim in rows]
  assert {claim.kind for claim in every} == KINDS | {NONE}
  assert all(claims.values())
  # Claims that the model does not reproduce have no value.
  assert all((c.model == "") == (c.kind == NONE) for c in every)


def test_a_bracket_holds_its_figure_and_what_does_not_missed(script, claims):
  ranges = [
    claim
    for rows in claims.values()
    for claim in rows
    if re.fullmatch(r"[\d.]+ to [\d.]+", claim.model)
  ]
  assert {"bracket", "prediction"} == {claim.kind for claim in ranges}
  for claim in ranges:
    low, high = map(float, claim.model.split(" to "))
    inside = low <= float(claim.published) <= high
    assert claim.error == ("inside" if inside else "missed"), claim
    assert inside or claim.kind == "prediction", claim
  assert script.between("x", 1.0, 2.0, 3.0)[3:] == ("missed", "prediction")


def test_what_is_exact_is_exact(claims):
  """Every column of whole numbers is met in all of its rows."""
  exact = [
    claim
    for rows in claims.values()
    for claim in rows
    if claim.published.endswith(" rows")
  ]
  assert len(exact) >= 20
  for claim in exact:
    total = claim.published.removesuffix(" rows")
    assert claim.model == f"{total} of {total} equal", claim


def test_a_reconstruction_is_never_called_a_prediction(claims):
  rows = [
    claim
    for name, rows in claims.items()
    for claim in rows
    if name in ("FIGS", "VEGETA, clocked") or claim.what.startswith("figs")
  ]
  assert len(rows) > 18
  assert {claim.kind for claim in rows} <= {"reconstruction", "calibration"}


def test_a_step_of_vit_l_is_bounded_whatever_its_tokens(script):
  # Two of three equal products take half the time, or none does.
  for tokens in (2048, 10**6):
    silicon = script.trained(tokens, "tensorcore:a100:ideal=true")
    assert silicon == pytest.approx(3 / (2 / 2 + 1), rel=1e-4)
  assert script.trained(64, "tensorcore:a100:fallback=true") == 1


@pytest.mark.parametrize(
  "dataflow, M, N, K, C, pattern, reported",
  [
    ("ws", 60, 23, 51, 20, "7:16", 6582.857142857142),
    ("ws", 51, 8, 19, 8, "5:16", 1305.6000000000001),
    ("os", 52, 22, 133, 24, "3:4", 5200),
    ("is", 48, 38, 102, 24, "7:16", 2304),
  ],
)
def test_activations_as_scalesim_counts_them(
  script, dataflow, M, N, K, C, pattern, reported
):
  n, m = map(int, pattern.split(":"))
  counted = script.scalesim_ifmap_reads(dataflow, M, N, K, C, n, m)
  assert counted == pytest.approx(reported, rel=1e-14)


def test_a_changed_row_would_be_seen(script, tmp_path, monkeypatch):
  text = (script.DATA / "vegeta_rtl.csv").read_text()
  (tmp_path / "vegeta_rtl.csv").write_text(text.replace(",41,43,", ",40,43,"))
  monkeypatch.setattr(script, "DATA", tmp_path)
  wrong = {claim.what: claim.error for claim in script.vegeta_rtl()}
  assert wrong == {
    "WL_cycles": "0 rows", "mode_cycles": "3 rows", "start_to_end": "0 rows"
  }  # fmt: skip
