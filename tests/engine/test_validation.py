"""docs/engine_validation.md says what the code gives, and no more than that."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {"prediction", "calibration", "bracket", "reconstruction"}


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


def test_every_claim_has_one_of_four_kinds(claims):
  assert {claim.kind for rows in claims.values() for claim in rows} <= KINDS
  assert all(claims.values())


def test_what_is_exact_is_exact(claims):
  """Every column of whole numbers is met in all of its rows."""
  found = [
    claim
    for rows in claims.values()
    for claim in rows
    if claim.published.endswith(" rows")
  ]
  assert len(found) >= 20
  for claim in found:
    total = claim.published.removesuffix(" rows")
    assert claim.model == f"{total} of {total} equal", claim


def test_a_reconstruction_is_never_called_a_prediction(claims):
  rows = [c for name, rows in claims.items() if "FIGS" in name for c in rows]
  assert rows
  assert {claim.kind for claim in rows} <= {"reconstruction", "calibration"}


def test_a_changed_row_would_be_seen(script, tmp_path, monkeypatch):
  text = (script.DATA / "vegeta_rtl.csv").read_text()
  (tmp_path / "vegeta_rtl.csv").write_text(text.replace(",41,43,", ",40,43,"))
  monkeypatch.setattr(script, "DATA", tmp_path)
  wrong = {claim.what: claim.error for claim in script.vegeta_rtl()}
  assert wrong == {
    "WL_cycles": "0 rows", "mode_cycles": "3 rows", "start_to_end": "0 rows"
  }  # fmt: skip
