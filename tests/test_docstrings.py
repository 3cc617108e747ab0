"""Every public name says what it is, what it takes, raises, and how it is used.

`ARGS`: what a section "Args:" names are the function's parameters, all of them.
Types stand in the signature, and what is returned in the first sentence or
under "Returns:".
"""

import importlib
import inspect
import re

import pytest

import figs_jax

# Functions without an example. A docstring cannot bring along what they read (a
# training run), or they act on the whole process: its exit (`run`), logging and
# exception hook (`quiet`). This list only gets shorter.
NO_EXAMPLE = {
  "analysis.histories",
  "analysis.mask_evolution",
  "analysis.noise_rows",
  "analysis.pareto_points",
  "analysis.report_html",
  "cli.quiet",
  "cli.run",
  "train.evaluate",  # of a run
  "train.examples",
}


def public():
  """Name -> object of everything in the rooms' `__all__`, each once."""
  things, seen = {}, set()
  for room in figs_jax._ROOMS:
    module = importlib.import_module(f"figs_jax.{room}")
    for name in module.__all__:
      thing = getattr(module, name)
      if id(thing) not in seen and callable(thing):
        seen.add(id(thing))
        things[f"{room}.{name}"] = thing
  for name in figs_jax._EXPORTS:
    thing = getattr(figs_jax, name)
    if id(thing) not in seen:
      seen.add(id(thing))
      things[name] = thing
  return things


PUBLIC = public()
CLASSES = {k: v for k, v in PUBLIC.items() if inspect.isclass(v)}
FUNCTIONS = {k: v for k, v in PUBLIC.items() if k not in CLASSES}


def methods(cls):
  """Public methods and properties of ours, inherited from ours too."""
  for name in dir(cls):
    if name.startswith("_"):
      continue
    member = inspect.getattr_static(cls, name)
    if isinstance(member, property):
      member = member.fget
    elif isinstance(member, (classmethod, staticmethod)):
      member = member.__func__
    if inspect.isfunction(member) and member.__module__.startswith("figs_jax."):
      yield name, member


def sections(doc):
  """Section -> its lines, of a docstring in Google's form."""
  parts = re.split(r"^(Args|Options|Returns|Raises|Yields):\n", doc, flags=re.M)
  return dict(zip(parts[1::2], parts[2::2]))


def named(block):
  """The names before the colons, "a, b: meaning" being two."""
  heads = re.findall(
    r"^  (\*{0,2}\w+(?:,\s+\*{0,2}\w+)*):(?:\s|$)", block, re.MULTILINE
  )
  return [one.strip().lstrip("*") for head in heads for one in head.split(",")]


def parameters(fn):
  names = inspect.signature(fn).parameters
  return [name for name in names if name not in ("self", "cls")]


def complaints(name, fn, doc):
  """What the docstring of a function or method lacks."""
  parts = sections(doc)
  if "Args" in parts:
    wrong = set(named(parts["Args"])) ^ set(parameters(fn))
    if wrong:
      yield f"{name}: Args and parameters differ in {sorted(wrong)}"
  source = inspect.getsource(inspect.unwrap(fn))
  body = source.partition('"""')[2]
  raised = re.search(r"^\s+raise (?!NotImplementedError)", body, re.MULTILINE)
  if raised and "Raises" not in parts and not doc.startswith("Raises "):
    yield f"{name}: raises, and does not say when"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_say_what_they_take_and_show_it(name):
  fn = FUNCTIONS[name]
  doc = inspect.getdoc(fn)
  assert doc, name
  assert not list(complaints(name, fn, doc))
  assert "Args" in sections(doc) or not parameters(fn)
  assert (">>>" in doc) == (name not in NO_EXAMPLE)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_classes_and_their_methods_say_what_they_are(name):
  cls = CLASSES[name]
  assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), name
  faults = []
  for method, fn in methods(cls):
    doc = inspect.getdoc(fn) or inspect.getdoc(getattr(cls, method))
    if not doc:
      faults.append(f"{name}.{method}: no docstring")
    else:
      faults += complaints(f"{name}.{method}", fn, doc)
  assert not faults


def test_exceptions_are_functions_that_exist():
  assert set(FUNCTIONS) >= NO_EXAMPLE
