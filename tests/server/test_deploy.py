"""The files beside the package fit the schemas of those who read them, and say what is true of the service."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from handmesh_server.settings import PREFIX, Settings
from packaging.requirements import Requirement
from server_harness import running

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "server" / "deploy"

# Settings that others read.
OTHER_SETTINGS = {"cache_dir"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def of_kind(kind: str, name: str = "handmesh") -> dict[str, Any]:
    (found,) = [one for one in documents("kubernetes.yaml") if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def settings_of(environment: list[dict[str, str]]) -> Settings:
    """The settings that a container's variables make; a misspelt one is an error."""
    given = {one["name"]: one["value"] for one in environment}
    known = {PREFIX + name.upper() for name in {*Settings.model_fields, *OTHER_SETTINGS}}
    assert set(given) <= known
    return Settings.from_environment(given | {"HANDMESH_TOKEN": "t" * 24, "HANDMESH_TOKEN_FILE": ""})


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs: pip install kubernetes-validate")
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    "document", documents("kubernetes.yaml"), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}"
)
def test_manifests_fit_kubernetes_schemas(document):
    validate(document)
    assert document["metadata"]["name"].startswith("handmesh")


def test_a_manifest_that_is_wrong_is_found():
    document = of_kind("Deployment")
    document["spec"]["template"]["spec"]["terminationGraceSeconds"] = 10
    with pytest.raises(Exception, match="terminationGraceSeconds"):
        validate(document)


def test_kubernetes_gives_the_service_the_time_that_it_takes():
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = settings_of(container["env"])
    assert settings.drain_seconds + settings.grace_seconds < pod["terminationGracePeriodSeconds"]
    probe = container["readinessProbe"]
    assert settings.drain_seconds > probe["periodSeconds"]
    assert settings.jobs_redis is not None
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
    assert settings.job_memory_bytes + settings.memory_bytes <= memory
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[str(settings.jobs_dir)] == "jobs"
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    claim = of_kind("PersistentVolumeClaim", "handmesh-jobs")["spec"]
    assert claim["accessModes"] == ["ReadWriteMany"]
    assert int(claim["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30 > settings.jobs_bytes


def test_selectors_and_names_lead_to_each_other():
    pods = [
        one["spec"]["template"]["metadata"]["labels"] for one in documents("kubernetes.yaml") if "Deploy" in one["kind"]
    ]
    for kind, where in (
        ("Service", lambda spec: spec["selector"]),
        ("PodDisruptionBudget", lambda spec: spec["selector"]["matchLabels"]),
        ("NetworkPolicy", lambda spec: spec["podSelector"]["matchLabels"]),
        ("Deployment", lambda spec: spec["selector"]["matchLabels"]),
    ):
        wanted = where(of_kind(kind)["spec"])
        assert sum(wanted.items() <= labels.items() for labels in pods) == 1, kind
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert (
        of_kind("NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"] == port["containerPort"] == Settings().port
    )
    (queue,) = [
        one
        for one in of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
        if "REDIS" in one["name"]
    ]
    assert of_kind("Service", "handmesh-queue")["metadata"]["name"] in queue["value"]
    scaled = of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert scaled == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "handmesh"}
    assert "replicas" not in of_kind("Deployment")["spec"]  # it would be set back with each apply


# What an InferenceService adds to a pod (kserve, pkg/apis/serving/v1beta1/component.go), and what of a pod Knative
# takes with its features as they are by default (knative/serving, pkg/apis/serving/fieldmask.go).
KSERVE_FIELDS = {
    "minReplicas",
    "maxReplicas",
    "scaleTarget",
    "scaleMetric",
    "containerConcurrency",
    "timeout",
    "canaryTrafficPercent",
    "logger",
    "batcher",
    "labels",
    "annotations",
}
KNATIVE_POD = {"serviceAccountName", "containers", "volumes", "imagePullSecrets", "enableServiceLinks"}
KNATIVE_CONTAINER = {
    "name",
    "args",
    "command",
    "env",
    "workingDir",
    "envFrom",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
}
KNATIVE_VOLUMES = {"secret", "configMap", "projected"}


def test_kserve_takes_every_field():
    """`terminationGracePeriodSeconds` among them was refused by Knative, which has `timeout` for it."""
    (service,) = documents("kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]
    assert set(predictor) <= KSERVE_FIELDS | KNATIVE_POD
    assert predictor["scaleMetric"] in ("concurrency", "rps")  # Knative's; cpu and memory are for other modes
    (container,) = predictor["containers"]
    assert set(container) <= KNATIVE_CONTAINER
    assert all(set(volume) - {"name"} <= KNATIVE_VOLUMES for volume in predictor["volumes"])
    pod = {name: value for name, value in predictor.items() if name in KNATIVE_POD}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "handmesh"}, "spec": pod})
    settings = settings_of(container["env"])
    assert settings.port == container["ports"][0]["containerPort"]
    assert settings.drain_seconds + settings.grace_seconds < predictor["timeout"]
    assert settings.upload_seconds > predictor["timeout"] or not settings.max_jobs
    assert settings.max_jobs == 0  # no folder in common


def test_compose_fits_the_specification():
    pytest.importorskip("check_jsonschema", reason="needs: pip install check-jsonschema")
    from check_jsonschema.builtin_schemas import get_builtin_schema
    from jsonschema.validators import validator_for

    (compose,) = documents("compose.yaml")
    schema = get_builtin_schema("vendor.compose-spec")
    check = validator_for(schema)(schema)
    assert [error.message for error in check.iter_errors(compose)] == []
    assert [error.message for error in check.iter_errors({**compose, "servces": {}})]
    service = compose["services"]["handmesh"]
    settings = settings_of([{"name": name, "value": value} for name, value in service["environment"].items()])
    assert settings.drain_seconds + settings.grace_seconds < int(service["stop_grace_period"].removesuffix("s"))
    context = (DEPLOY / service["build"]["context"]).resolve()
    assert (context / service["build"]["dockerfile"]).is_file()
    token = (DEPLOY / compose["secrets"]["token"]["file"]).resolve().relative_to(ROOT)
    assert f"/{token}" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()  # `git add .` took it along


def instructions() -> list[str]:
    """The Dockerfile's, each on one line."""
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return [line for line in text.replace("\\\n", "").splitlines() if line]


def pins(name: str) -> dict[str, str]:
    """The versions of a file of requirements, each of which has a SHA-256."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    found = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    assert len(found) == len(entries)
    return found


def test_the_image_has_what_the_package_needs_pinned_and_no_torch():
    pinned = pins("requirements.txt")
    (old, new) = re.findall(r"sed -i 's/([^/]+)/([^/]+)/' pyproject.toml", "\n".join(instructions()))[0]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    project = tomllib.loads(text.replace(old, new))["project"]
    extras = [project["optional-dependencies"][name] for name in ("redis", "otel", "ffmpeg")]
    wanted = itertools.chain(project["dependencies"], *extras)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
    assert not {"torch", "onnx", "triton"} & set(pinned)


def test_the_image_has_no_libraries_for_windows():
    """opencv-python wants libGL, and with it came Mesa and LLVM: 350 MB of 1.36 GB."""
    assert {name for name in pins("requirements.txt") if "opencv" in name} == {"opencv-python-headless"}
    assert not [line for line in instructions() if "apt-get" in line]


def test_the_image_is_built_from_what_there_is_and_from_nothing_else():
    lines = instructions()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert "server/handmesh_server" in copied
    assert [path for path in copied if not (ROOT / path).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert sent == set(copied)
    assert ignored[1] == "*"  # all else, secrets and data among it, stays outside
    images = [line.split()[1] for line in lines if line.startswith("FROM ")]
    (python,) = re.findall(r"ARG PYTHON=(\S+)", "\n".join(lines))
    assert set(images) == {"${PYTHON}"}
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", python)


def test_all_that_is_installed_is_pinned_and_what_builds_the_package_stays_behind():
    """hatchling brought seven packages without a hash, of whatever version was newest, which were in the image, too."""
    (kept,) = [line.split()[2] for line in instructions() if line.startswith("COPY --from=build")]
    installs = re.findall(r"(\S*)pip install ([^;&\n]+)", "\n".join(instructions()))
    hashed = {words.split()[-1]: pip for pip, words in installs if words.startswith("--require-hashes -r ")}
    assert hashed["requirements.txt"].startswith(kept)
    assert not hashed["build_requirements.txt"].startswith(kept)
    others = [words.split()[0] for _, words in installs if not words.startswith("--require-hashes ")]
    assert others == ['"torch>=2.6,<2.14"', "--no-deps"]
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    pinned = pins("build_requirements.txt")
    for requirement in map(Requirement, system["requires"]):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_service_has_one_user_wherever_it_runs():
    """By number: Kubernetes starts no image with a user by name where `runAsNonRoot` is set, and its group was another
    one than the manifests'.
    """
    (user,) = [line.split()[1] for line in instructions() if line.startswith("USER ")]
    pod = of_kind("Deployment")["spec"]["template"]["spec"]["securityContext"]
    (kserve,) = documents("kserve.yaml")[0]["spec"]["predictor"]["containers"]
    assert {int(user)} == {pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"], kserve["securityContext"]["runAsUser"]}


def test_the_health_check_sees_what_readyz_says(monkeypatch):
    """With urllib it took a quarter of a second of the processor; on busy machines it ran past its time."""
    (line,) = [line for line in instructions() if line.startswith("HEALTHCHECK ")]
    program, *arguments = json.loads(line[line.index("[") :])
    assert program == "python"

    def healthy(port: int) -> bool:
        environment = os.environ | {"HANDMESH_PORT": str(port)}
        command = [sys.executable, "-X", "importtime", *arguments]
        done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
        assert done.returncode in (0, 1)  # Docker's words; others are reserved
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
        assert "socket" in imported
        assert not {"site", "ssl", "http.client", "urllib.request"} & imported
        return done.returncode == 0

    with running() as server:
        port = server.address[1]
        assert healthy(port)
        monkeypatch.setattr("handmesh_server.service._RECENT_SECONDS", 0.3)
        with server.engine.held():
            server.service._last_answer = -math.inf
            assert not healthy(port)
    assert not healthy(port)


def test_every_image_has_a_version():
    images = [
        container["image"]
        for document in documents("kubernetes.yaml")
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
    ]
    images += [container["image"] for container in documents("kserve.yaml")[0]["spec"]["predictor"]["containers"]]
    assert all(re.search(r":\d+\.\d+\.\d+", image) for image in images), images


def test_the_dashboard_asks_for_what_the_service_counts():
    """Every metric of the dashboard's queries is one of /metrics, with labels that it has."""
    from handmesh_server.metrics import Metrics

    metrics = Metrics()
    metrics.requests.labels("GET", "/", "200").inc()
    metrics.latency.labels("/").observe(1)
    metrics.rejected.labels("x").inc()
    metrics.jobs.labels("queued").set(0)
    metrics.jobs_ended.labels("done").inc()
    metrics.model.info({"name": "", "engine": "", "hand": "", "version": ""})
    text = metrics.text().decode()
    known = {
        name: set(re.findall(r'(\w+)="', labels)) for name, labels in re.findall(r"^(\w+)(\{[^}]*\})? ", text, re.M)
    }
    dashboard = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) >= 10
    for query in queries:
        names = re.findall(r"\b(handmesh_\w+|process_\w+)", query)
        assert names, query
        assert set(names) <= set(known), query
        labels = set(re.findall(r"(\w+)\s*=~?\s*\"", query)) | {
            one.strip() for part in re.findall(r"by \(([^)]*)\)", query) for one in part.split(",")
        }
        assert labels <= {"job", "instance", "le", *(label for name in names for label in known[name])}, query
        assert query.count("(") == query.count(")"), query
    asked = {name for query in queries for name in re.findall(r"\bhandmesh_\w+", query)}
    ours = {
        re.sub(r"_(bucket|sum|count|created|total|info)$", "", name) for name in known if name.startswith("handmesh_")
    }
    assert {re.sub(r"_(bucket|sum|count|total|info)$", "", name) for name in asked} == ours, "a metric that nobody sees"
