"""The Dockerfile and the JobSet, as far as they can be checked without either.

No image is built here. The Job inside the JobSet is validated against
Kubernetes' own schemas, which the package kubernetes-validate carries; the few
fields around it against a table written by hand from JobSet's reference
(https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/).
"""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from figs_jax.train.config import default_config

REPO = Path(__file__).parents[2]
DOCKERFILE = REPO / "launch" / "Dockerfile"
JOBSET = yaml.safe_load((REPO / "launch" / "gke_jobset.yaml").read_text())
JOBS = JOBSET["spec"]["replicatedJobs"]

# Field -> type, or the fields inside; a list is a list of such.
SCHEMA = {
  "apiVersion": str,
  "kind": str,
  "metadata": {"name": str, "annotations": dict},
  "spec": {
    "network": {"enableDNSHostnames": bool},
    "failurePolicy": {
      "maxRestarts": int,
      "rules": [{"name": str, "action": str, "onJobFailureReasons": list}],
    },
    "replicatedJobs": [{"name": str, "replicas": int, "template": dict}],
  },
}


def problems(value, schema, where="jobset"):
  if isinstance(schema, type):
    return [] if type(value) is schema else [f"{where}: {value!r}"]
  if isinstance(schema, list):
    if not isinstance(value, list):
      return [f"{where}: no list"]
    each = enumerate(value)
    return [p for i, x in each for p in problems(x, schema[0], f"{where}[{i}]")]
  unknown = [f"{where}.{name}: unknown" for name in value.keys() - schema]
  return unknown + [
    problem
    for name in value.keys() & schema.keys()
    for problem in problems(value[name], schema[name], f"{where}.{name}")
  ]


def test_jobset():
  assert problems(JOBSET, SCHEMA) == []
  assert JOBSET["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert JOBSET["kind"] == "JobSet"
  wrong = JOBSET | {"spec": JOBSET["spec"] | {"maxRestarts": 3}}
  assert problems(wrong, SCHEMA) == ["jobset.spec.maxRestarts: unknown"]
  for rule in JOBSET["spec"]["failurePolicy"]["rules"]:
    assert re.fullmatch(r"[A-Za-z]([\w,:]*\w)?", rule["name"])
    assert rule["action"] == "FailJobSet"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["name"])
def test_job_has_kubernetes_schema(job):
  def validate(template):
    resource = {"apiVersion": "batch/v1", "kind": "Job"}
    resource |= {"metadata": {"name": "job"}} | template
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(resource, version, strict=True)

  validate(job["template"])
  spec = job["template"]["spec"]
  # Indexed and as many as there are hosts, or they do not start together.
  assert spec["parallelism"] == spec["completions"]
  with pytest.raises(kubernetes_validate.ValidationError):
    validate({"spec": spec | {"paralelism": 4}})


def test_arguments_are_flags_of_the_program():
  (container,) = JOBS[0]["template"]["spec"]["template"]["spec"]["containers"]
  text = (REPO / "launch" / "train.py").read_text()
  own = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
  known = default_config().to_dict()
  for word in container["args"]:
    name = word.removeprefix("--").partition("=")[0]
    first, *path = name.split(".")
    assert first in own, word
    value = known
    for part in path:
      value = value[part]
  values = dict(word.partition("=")[::2] for word in container["args"])
  assert (REPO / values["--config"].partition(":")[0]).is_file()
  mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
  assert values["--workdir"].startswith(tuple(mounts))


def instructions():
  text = DOCKERFILE.read_text().replace("\\\n", " ")
  lines = [line for line in text.splitlines() if line and line[0] != "#"]
  return [line.split(None, 1) for line in lines]


def test_dockerfile_copies_what_is_there():
  rest = [rest.split() for word, rest in instructions() if word == "COPY"]
  sources = [name for names in rest for name in names[:-1]]
  assert sources
  ignore = Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines()
  for name in sources:
    assert (REPO / name).exists(), name
    assert f"!{name}" in ignore, f"{name} is not sent to the builder"
  # All that the installation reads: see setup.cfg and pyproject.toml.
  assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= {*sources}


def test_dockerfile_variables_and_extras():
  words = [word for word, _ in instructions()]
  assert words[:2] == ["ARG", "FROM"]
  known, text = set(), DOCKERFILE.read_text()
  for word, rest in instructions():
    assert set(re.findall(r"\$\{(\w+)\}", rest)) <= known, rest
    if word == "ARG":
      known.add(rest.partition("=")[0])
    if word == "FROM":
      known = set()  # what stands before it is not known after it
  extras = re.findall(r"EXTRA=(\w+)", text)
  config = (REPO / "setup.cfg").read_text()
  assert {"plots", "cuda", "tpu"} <= {*extras}
  for extra in extras:
    assert re.search(rf"^{extra} =$", config, re.MULTILINE), extra
  entry = dict(instructions())["ENTRYPOINT"]
  assert (REPO / re.findall(r'"([^"]+)"', entry)[1]).is_file()
