"""The report is one self-contained file with the numbers of the run."""

import base64
import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ET
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from figs_jax import engine, nn
from figs_jax.analysis import html_report
from figs_jax.analysis._run_comparison import paired_differences
from figs_jax.analysis.history import History, histories
from figs_jax.core.masks import is_nm
from figs_jax.models.flops import train_flops

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.standard_promotion  # optax mixes dtypes
TAGS = (
  "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p",
  "table", "tr", "th", "td", "img", "pre", "details", "summary",
)  # fmt: skip
EVIL = "<script>alert('1')</script><img src=http://x.test/a onerror=b>&\"'$_"


class Page(HTMLParser):
  """Tags, their attributes, cells of the tables, and all text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.rows, self.words, self.open = [], [], [], []
    self.source = text
    self.feed(text)
    self.close()
    assert not self.open, "a tag is left open"

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ("meta", "img"):
      self.open.append(tag)
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)
    if self.open and self.open[-1] in ("td", "th"):
      self.rows[-1][-1] += data

  @property
  def text(self):
    return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory, sparse_workdir):
  workdir = tmp_path_factory.mktemp("run") / EVIL.replace("/", "|")
  shutil.copytree(sparse_workdir, workdir)
  return histories([workdir])[0]


@pytest.fixture(scope="module")
def page(run):
  # The text of a configuration is not trusted either.
  hostile = dict(run.config, note=EVIL)
  lone = History(run.path, run.label, hostile, run.rows)
  return Page(html_report.report_html([lone], ["ws:16x16", "figs"]))


@pytest.mark.slow
def test_nothing_comes_from_outside(page):
  """No tag that loads or runs, and every source inside the file."""
  assert {tag for tag, _ in page.tags} <= set(TAGS)
  for tag, attributes in page.tags:
    assert not any(name.startswith("on") for name in attributes)
    assert set(attributes) <= {
      "lang",
      "charset",
      "name",
      "content",
      "class",
    } | ({"src", "alt"} if tag == "img" else set())
  style = "".join(re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL))
  assert "url(" not in style and "@import" not in style


def test_plots_are_complete_and_inert(page, run):
  images = [attributes for tag, attributes in page.tags if tag == "img"]
  names = [image["alt"] for image in images]
  kinds = ("training", "mask changes", "gradient variance", "masks",
           "rooflines")  # fmt: skip
  assert names == [f"{kind} of {run.label}" for kind in kinds]
  for image in images:
    start, data = image["src"].split(",", 1)
    assert start == "data:image/svg+xml;base64"
    root = ET.fromstring(base64.b64decode(data))
    assert root.tag.endswith("svg")
    for node in root.iter():
      assert not node.tag.endswith("script")
      for name, value in node.attrib.items():
        if name.endswith("href"):
          assert value.startswith(("#", "data:")), value


def test_hostile_names_are_text(page, run):
  assert page.text.count("<script>alert('1')</script>") >= 1
  assert "onerror=b" in page.text
  assert f"Run {run.label}" in page.words


def test_numbers_are_those_of_the_run(page, run):
  cells = {row[0]: row[1:] for row in page.rows}
  each = np.array(run.accuracies)
  want = f"{100 * each.mean():.2f} ± {100 * each.std(ddof=1) / 2**0.5:.2f}"
  assert cells["test accuracy, %"] == [want]
  assert cells["evaluated at step"] == [str(run.rows[-1]["step"])]
  each = ", ".join(f"{100 * value:.2f}" for value in each)
  assert cells["each of 2 seeds, %"] == [each]
  assert cells["zeros in masked kernels, %"] == ["75.00"]
  for total in engine.report(
    run.batch_layers, ["ws:16x16", "figs"], baseline="dense"
  ).totals:
    row = cells[total.engine]
    assert row[1] == f"{total.speedup:.2f}×"
    assert row[2] == f"{total.cycles:,} {total.unit}"
  import jax

  assert cells["jax"] == [jax.__version__]


def test_the_first_table_describes_the_run(page, run):
  assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")] == [
    "h1", *6 * ["h2"],
  ]  # fmt: skip
  assert page.words.count(f"Run {run.label}") == 2  # title and heading
  assert page.rows[:6] == [
    ["field", "value"], ["model", "vit custom/4"], ["data set", "digits"],
    ["recipe", "sr_ste"], ["pattern", "ff: 1:4"], ["seeds", "2 (0 to 1)"],
  ]  # fmt: skip
  assert "changes are those of single measured steps" in page.text


def test_tiny_speed_ups_keep_their_digits_and_their_reason(run):
  spec = "tensorcore:h200:sparse_overhead=200000"
  page = Page(html_report.report_html([run], [spec]))
  (total,) = engine.report(run.batch_layers, [spec]).totals
  assert 0 < total.speedup < 0.005
  cells = {row[0]: row[1:] for row in page.rows}
  assert cells[f"modelled speed-up on {spec}"] == [f"{total.speedup:.2g}×"]
  assert cells[spec][1] == f"{total.speedup:.2g}×"
  assert ":ideal=true" in page.text and "0.00×" not in page.text


def test_exactness_per_layer(page, run):
  rows = {row[0]: row[1:] for row in page.rows if row[0].endswith("kernel")}
  assert rows.pop("kernel") == ["shape", "pattern", "exactly N:M"]
  assert rows == {
    "blocks/0/mlp/fc1/kernel": ["32 × 64", "1:4", "yes"],
    "blocks/0/mlp/fc2/kernel": ["64 × 32", "1:4", "yes"],
  }


def test_a_kernel_that_is_not_exact_is_seen(run):
  leaves = nn.masked_leaves(run.model)
  good = nn.split(run.model)[1]
  fc1 = np.array(good["blocks"][0]["mlp"]["fc1"]["kernel"])
  fc1[:4, 0] = 1.0
  assert not is_nm(fc1, "1:4")
  bad = {"blocks": {0: {"mlp": {"fc1": {"kernel": fc1}}}}}
  bad["blocks"][0]["mlp"]["fc2"] = good["blocks"][0]["mlp"]["fc2"]
  rows = html_report.exactness([good, bad], leaves)
  assert [row[-1] for row in rows] == ["NO", "yes"]


def test_the_command_names_the_run(page, run):
  words = shlex.split(html_report.command(run).replace("\\\n", " "))
  assert words[:2] == ["python", "launch/train.py"]
  assert words[3] == f"launch/again.py:{run.path / 'config.json'}"
  assert words[4:] == ["--workdir", f"{run.path}-again"]
  own = run.config | {"recipe_file": "my own.py"}
  command = html_report.command(History(run.path, "own", own, run.rows))
  assert "\n  --recipe_file 'my own.py' \\\n" in command


def changed(run, label, shift, **fields):
  """A copy of a run with other fields, and `shift` added to its results."""
  rows = [
    {
      name: value + shift[int(name[-1])]
      if re.fullmatch(r"eval/(loss|accuracy)/seed\d", name)
      else value
      for name, value in row.items()
    }
    for row in run.rows
  ]
  return History(run.path, label, run.config | fields, rows)


@pytest.mark.slow
def test_several_runs_are_compared(run):
  optimizer = run.config["optimizer"] | {"learning_rate": 0.5}
  other = changed(
    run, "other", (0.01, 0.03), optimizer=optimizer, total_steps=7,
    data=run.config["data"] | {"source": EVIL},
  )  # fmt: skip
  page = Page(html_report.report_html([run, other], ["ws:16x16", "figs"]))
  assert re.findall("<h2>(.*?)</h2>", page.source) == ["Comparison", "Runs"]
  folds = re.findall("<details><summary>(.*?)</summary>", page.source)
  assert [unescape(fold) for fold in folds if "kernels" not in fold] == [
    "All fields that differ",
    run.label, "Configuration", "other", "Configuration",
  ]  # fmt: skip
  assert f"Runs {run.label}, other" in page.words
  assert "All runs: model vit custom/4, data set digits." in page.text

  heads = [n for n, row in enumerate(page.rows) if row[0] in ("run", "recipe")]
  tables = [page.rows[head : head + 3] for head in heads[:2]]
  # A column each in both tables, but for fields that change no result.
  varying = ["optimizer.learning_rate", "total_steps"]
  for table, start in zip(tables, (4, 2)):
    assert table[0][start - 1] != "data.source"
    assert [row[start : start + 2] for row in table] == [
      varying, ["0.02", "6"], ["0.5", "7"],
    ]  # fmt: skip
  assert tables[0][0][:4] == ["run", "recipe", "pattern", "seeds"]
  assert tables[0][2][:4] == ["other", "sr_ste", "ff: 1:4", "2 (0 to 1)"]
  assert tables[1][0][-3:-1] == ["speed-up on ws:16x16", "speed-up on figs"]
  fields = page.rows.index(["field", run.label, "other"])
  assert page.rows[fields + 1] == ["data.source", "null", json.dumps(EVIL)]


@pytest.mark.slow
def test_training_flops_are_those_of_the_steps_so_far(page, run):
  experiment, _, step = run.restored
  flops = train_flops(
    run.model, experiment.recipe, batch=run.config["batch_size"], steps=step
  )
  cells = [row for row in page.rows if row[0] == "training FLOPs of a seed"]
  assert cells == [[cells[0][0], f"{flops.total / 1e6:.3g} M"]]
  assert ["the same, share of dense", f"{flops.share:.3f}"] in page.rows


def test_differences_are_paired_with_the_dense_run_and_corrected(run):
  """Student's interval, 12.706 standard errors of two seeds, and Holm's p."""
  dense = changed(
    run, "base", (0.0, 0.0), recipe=run.config["recipe"] | {"name": "dense"}
  )
  shifts = {"a": (0.010, 0.012), "b": (0.10, 0.40)}
  others = [
    changed(run, label, shift, total_steps=7 + number)
    for number, (label, shift) in enumerate(shifts.items())
  ]
  base, differences, order = paired_differences([others[0], dense, others[1]])
  assert [each.label for each in base] == ["base"] and order == "own"
  assert [each.runs for each in differences] == [[others[0]], [others[1]]]
  raw = {}
  for each in differences:
    label = each.runs[0].label
    shift = np.array(shifts[label])
    interval = each.pairs["loss"].interval
    error = shift.std(ddof=1) / 2**0.5
    np.testing.assert_allclose(interval.mean, shift.mean(), rtol=1e-5)
    np.testing.assert_allclose(
      interval.high - interval.mean, 12.7062 * error, rtol=1e-4
    )
    np.testing.assert_allclose(
      each.pairs["accuracy"].mean, 100 * shift.mean(), rtol=1e-5
    )
    # t of one degree of freedom is Cauchy's.
    raw[label] = 1 - 2 / np.pi * np.arctan(shift.mean() / error)
  assert raw["a"] < raw["b"]
  texts = {each.runs[0].label: each.p["loss"] for each in differences}
  assert texts == {
    "a": f"{2 * raw['a']:.2f}".lstrip("0"),
    "b": f"{max(2 * raw['a'], raw['b']):.2f}".lstrip("0"),
  }


def test_runs_without_common_seeds_have_no_interval(run):
  other = changed(run, "other", (0.0, 0.0), total_steps=7, seed=1)
  _, (difference,), _ = paired_differences([run, other])
  assert difference.pairs["loss"].seeds == (1,)
  assert difference.pairs["loss"].interval is None and not difference.p


def test_a_missing_curve_is_explained(run):
  rows = [
    {k: v for k, v in row.items() if not k.startswith("layers/")}
    for row in run.rows
  ]
  config = run.config | {"diagnose_every": 0}
  page = Page(
    html_report.report_html(
      [History(run.path, "bare", config, rows)], ["ws:16x16"]
    )
  )
  assert "No plot of mask changes" in page.text
  assert "--config.diagnose_every=10" in page.text
