"""The files of ``samples/deploy`` say what ventu_lite understands, and agree with each other.

Programs that read such files for a living look at them where they are installed. What only
ventu_lite can know (its commands, settings, routes, how long it takes to end) is always checked.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from runpy import run_path
from typing import Any

import click
import pytest
import yaml
from processes import ROOT, SAMPLE, TIMEOUT, Client, Process, environment
from pydantic import ByteSize, TypeAdapter

from ventu_lite.batching.server import _DRAIN_GRACE
from ventu_lite.cli import group
from ventu_lite.config import Config
from ventu_lite.options import WRONG_USAGE
from ventu_lite.supervisor import PATIENCE

DEPLOY = ROOT / "samples" / "deploy"
PROBE = DEPLOY / "probe.py"
README = (DEPLOY / "README.md").read_text()
COMPOSE = sorted(DEPLOY.glob("compose*.yaml"))
UNITS = sorted(DEPLOY.glob("systemd/*"))
ADAPTER = DEPLOY / "kubernetes" / "prometheus-adapter.yaml"
MANIFESTS = sorted(path for path in DEPLOY.glob("kubernetes/*.yaml") if path != ADAPTER)
TEXTS = {
    path: path.read_text()
    for path in sorted(DEPLOY.rglob("*"))
    if path.is_file() and path.suffix != ".pyc"
}

# What stands in the files for this Python and this checkout.
INTERPRETER, IN_IMAGE, IN_UNIT = (
    "/opt/ventu-lite/venv/bin/python",
    "/app/sentiment.py",
    "/opt/ventu-lite/sentiment.py",
)
HTTP, WORKERS, METRICS = 8000, 8765, 9100


@dataclass
class Program:
    """One command of ventu_lite, as a file starts it.

    Attributes:
        where: File and name, for messages.
        words: The command line after ``python -m ventu_lite``.
        variables: Its environment, as far as the file says.
        grace: Seconds from SIGTERM to SIGKILL; ``None`` where the file does not say.
        pause: How many of them pass before SIGTERM.
        memory: The limit in bytes.
    """

    where: str
    words: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    grace: float | None = None
    pause: float = 0.0
    memory: int | None = None

    @property
    def name(self) -> str:
        """The command."""
        return next(word for word in self.words if word in group.commands)

    def parse(self) -> dict[str, Any]:
        """Return the options of the command, as the command line itself reads them."""
        before = self.words[: self.words.index(self.name) + 1]
        after = self.words[len(before) :]
        with group.make_context("ventu_lite", before) as context:
            with group.commands[self.name].make_context(self.name, after, context) as inner:
                return dict(inner.params)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def size(text: str) -> int:
    """Return the bytes in the way Docker and Kubernetes write them; both mean powers of 2 here."""
    return TypeAdapter(ByteSize).validate_python(text.removesuffix("i") + "ib")


def directives(path: Path) -> dict[str, list[str]]:
    """Return the lines of a unit by name."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def instructions(name: str) -> list[str]:
    """Return what follows an instruction of the Dockerfile, each time it stands there."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return re.findall(rf"^{name} +(.*)$", text, re.MULTILINE)


def of_image() -> Program:
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert json.loads(entry) == ["python", "-m", "ventu_lite"]
    return Program("Dockerfile", json.loads(command))


def services(path: Path) -> dict[str, dict[str, Any]]:
    """Return those services of a compose file that are ours."""
    found: dict[str, dict[str, Any]] = load(path)["services"]
    return {name: service for name, service in found.items() if "build" in service}


def of_compose(path: Path) -> Iterator[Program]:
    for name, service in services(path).items():
        yield Program(
            f"{path.name} {name}",
            service["command"],
            service["environment"],
            seconds(service["stop_grace_period"]),
            memory=size(service["mem_limit"]),
        )


def of_unit(path: Path) -> Iterator[Program]:
    said = directives(path)
    for line in said.get("ExecStart", []):
        words = shlex.split(line)
        assert words[:3] == [INTERPRETER, "-m", "ventu_lite"]
        variables = dict(entry.split("=", 1) for entry in said.get("Environment", []))
        yield Program(path.name, words[3:], variables, seconds(said["TimeoutStopSec"][0]))


def objects(path: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Return the manifests of a kind, by name."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    return {
        document["metadata"]["name"]: document for document in documents if document["kind"] == kind
    }


def pods(path: Path) -> dict[str, dict[str, Any]]:
    """Return the templates of the pods of a file."""
    found = objects(path, "Deployment")
    return {name: deployment["spec"]["template"] for name, deployment in found.items()}


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def of_manifest(path: Path) -> Iterator[Program]:
    for name, pod in pods(path).items():
        container = container_of(pod)
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        yield Program(
            f"{path.name} {name}",
            container["args"],
            {entry["name"]: entry.get("value", "${}") for entry in container["env"]},
            pod["spec"]["terminationGracePeriodSeconds"],
            before.get("seconds", 0),
            size(container["resources"]["limits"]["memory"]),
        )


def of_readme() -> Iterator[Program]:
    for line in re.findall(r"^docker run .* sentiment:1\.0(.*)$", README, re.MULTILINE):
        yield Program("README.md", shlex.split(line) or of_image().words)
    for line in re.findall(r"`sentiment:1\.0 ([^`]+)`", README):
        yield Program("README.md", shlex.split(line))


PROGRAMS = [
    of_image(),
    *(program for path in COMPOSE for program in of_compose(path)),
    *(program for path in UNITS for program in of_unit(path)),
    *(program for path in MANIFESTS for program in of_manifest(path)),
    *of_readme(),
]
each_program = pytest.mark.parametrize(
    "program", PROGRAMS, ids=lambda program: f"{program.where}: {program.name}"
)
stopped = [program for program in PROGRAMS if program.grace is not None]
limited = [program for program in PROGRAMS if program.memory and program.name != "worker"]


def test_nothing_was_overlooked() -> None:
    """A file that is read by none of the functions above would pass everything."""
    assert [program.name for program in PROGRAMS[:-3]] == [
        *["serve"],
        *["batching", "worker", "serve"],
        *["batching", "worker", "serve"],
        *["batching", "worker", "serve"],
    ]
    assert sum(text.count("ExecStart=") for text in TEXTS.values()) == 3
    assert len(limited) == 4


@each_program
def test_the_command_line_takes_every_command(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "")  # Flask sets it, for good
    options = program.parse()
    if program.name in ("serve", "batching"):
        is_unit = program.where in {path.name for path in UNITS}
        assert options["host"] == ("127.0.0.1" if is_unit else "0.0.0.0")
        assert options["port"] in (None, HTTP)


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(click.UsageError, match="No such option"):
        Program("here", ["serve", "--hots", "0.0.0.0"]).parse()


@each_program
def test_every_variable_has_a_good_value(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in program.variables.items():
        monkeypatch.setenv(name, value)
    config = Config()
    for name in program.variables:
        if name.startswith("VENTU_"):
            assert name.removeprefix("VENTU_").lower() in config.model_fields_set


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_variable_that_is_named_is_a_setting(path: Path) -> None:
    for name in re.findall(r"\bVENTU_([A-Z_]+)", TEXTS[path]):
        assert name.lower() in Config.model_fields, f"{path.name}: VENTU_{name}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    """A secret that comes with an example is one that everybody has."""
    for said in re.findall(r"(?<!\{)VENTU_(?:WORKER_SECRET|API_KEY)[=:] *(\S+)", TEXTS[path]):
        assert said.startswith("$"), said


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_images_have_a_plain_name_and_a_tag(path: Path) -> None:
    images = re.findall(r"^ *(?:FROM|image:|- image:) +(\S+)", TEXTS[path], re.MULTILINE)
    for image in images:
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:v?\d[\w.-]*", image), image


@pytest.mark.parametrize("program", stopped, ids=lambda program: program.where)
def test_time_to_end_is_longer_than_the_drain(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was accepted is cut off by SIGKILL."""
    for name, value in program.variables.items():
        monkeypatch.setenv(name, value)
    drain = {
        "batching": Config().timeout + _DRAIN_GRACE,
        "serve": Config().timeout + _DRAIN_GRACE + PATIENCE,
        "worker": Config().batch_timeout or Config().timeout,
    }[program.name]
    assert program.grace is not None
    assert program.grace >= program.pause + drain + 5


@pytest.mark.parametrize("program", limited, ids=lambda program: program.where)
def test_bodies_fit_into_memory(program: Program) -> None:
    held = TypeAdapter(ByteSize).validate_python(program.variables["VENTU_MAX_HELD"])
    assert program.memory is not None
    assert 2 * held <= program.memory / 2


def routes() -> set[str]:
    app = run_path(str(SAMPLE))["app"]
    return {str(rule) for rule in app.url_map.iter_rules()}


class TestImage:
    def test_its_files_are_copied_and_not_ignored(self) -> None:
        allowed = {
            line[1:]
            for line in TEXTS[DEPLOY / "Dockerfile.dockerignore"].splitlines()
            if line.startswith("!")
        }
        copied = {
            word
            for line in instructions("COPY")
            if "--from" not in line
            for word in line.split()[:-1]
        }
        assert copied == allowed
        assert all((ROOT / name).exists() for name in copied)
        assert f"FLASK_APP={IN_IMAGE}" in " ".join(instructions("ENV"))

    def test_its_health_check_is_a_route_on_its_port(self) -> None:
        assert instructions("EXPOSE") == [str(HTTP)]
        (check,) = instructions("HEALTHCHECK")
        *_, port, path = json.loads(check[check.index("[") :])
        assert (port, path) == (str(HTTP), "/livez")
        assert path in routes()

    def test_it_is_not_root_and_hears_sigterm(self) -> None:
        (user,) = instructions("USER")
        assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
        assert instructions("STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
class TestCompose:
    def test_containers_are_confined_and_restarted(self, path: Path) -> None:
        for service in services(path).values():
            assert service["read_only"] is True
            assert service["tmpfs"] == ["/tmp"]
            assert service["cap_drop"] == ["ALL"]
            assert service["restart"] == "unless-stopped"
            assert (path.parent / service["build"]["context"]).samefile(ROOT)
            assert (ROOT / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")

    def test_only_http_is_published(self, path: Path) -> None:
        published = [port for one in services(path).values() for port in one.get("ports", [])]
        assert published == [f"{HTTP}:{HTTP}"]


def test_compose_parts_meet() -> None:
    parts = services(DEPLOY / "compose.batching.yaml")
    batching, worker = (Program("", parts[name]["command"]) for name in ("batching", "worker"))
    assert batching.parse()["tcp"] == f"0.0.0.0:{WORKERS}"
    assert worker.parse()["tcp"] == f"batching:{WORKERS}"
    assert worker.parse()["metrics_port"] == METRICS
    assert parts["worker"]["healthcheck"]["test"][-2:] == [str(METRICS), "/livez"]
    assert set(parts["worker"]["networks"]) < set(parts["batching"]["networks"])
    secrets = {part["environment"]["VENTU_WORKER_SECRET"] for part in parts.values()}
    assert len(secrets) == 1


def test_compose_stops_the_batching_service_first() -> None:
    """Containers are stopped in the reverse of the order that ``depends_on`` gives."""
    parts = services(DEPLOY / "compose.batching.yaml")
    assert parts["batching"]["depends_on"] == ["worker"]
    assert "depends_on" not in parts["worker"]


def test_prometheus_reads_the_ports_of_the_services() -> None:
    ports = {
        name: entry["port"]
        for job in load(DEPLOY / "prometheus.yml")["scrape_configs"]
        for entry in job["dns_sd_configs"]
        for name in entry["names"]
    }
    assert ports == {"serve": HTTP, "batching": HTTP, "worker": METRICS}
    assert set(ports) == {name for path in COMPOSE for name in services(path)}


class TestUnits:
    def test_the_parts_meet_at_one_socket(self) -> None:
        batching, worker = (
            directives(DEPLOY / "systemd" / name)
            for name in ("ventu-lite-batching.service", "ventu-lite-worker@.service")
        )
        paths = {
            program.parse()["unix"]
            for path in UNITS
            for program in of_unit(path)
            if program.name != "serve"
        }
        assert paths == {f"%t/{batching['RuntimeDirectory'][0]}/batching.socket"}
        assert worker["Before"] == ["ventu-lite-batching.service"]  # so it is stopped after it
        assert {batching["User"][0], batching["UMask"][0]} == {worker["User"][0], "0077"}

    def test_the_front_alone_is_told_to_stop(self) -> None:
        """It still needs its workers while it drains, and ends them itself."""
        assert directives(DEPLOY / "systemd" / "ventu-lite.service")["KillMode"] == ["mixed"]

    @pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
    def test_units_that_are_named_exist(self, path: Path) -> None:
        for name in re.findall(r"\bventu-lite[\w@-]*\.(?:service|target)", path.read_text()):
            assert (DEPLOY / "systemd" / re.sub(r"@\w+", "@", name)).is_file(), name

    @pytest.mark.parametrize(
        "path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name
    )
    def test_what_a_killed_process_leaves_goes_with_its_unit(self, path: Path) -> None:
        assert directives(path)["PrivateTmp"] == ["yes"]

    @pytest.mark.parametrize(
        "path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name
    )
    def test_wrong_usage_is_not_tried_again(self, path: Path) -> None:
        said = directives(path)
        assert said["Restart"] == ["on-failure"]
        assert said["RestartPreventExitStatus"] == [str(WRONG_USAGE)]


def pods_of_all() -> list[tuple[Path, str]]:
    return [(path, name) for path in MANIFESTS for name in pods(path)]


@pytest.mark.parametrize(("path", "name"), pods_of_all(), ids=lambda part: str(part)[-16:])
class TestPods:
    def test_no_service_sets_our_variables(self, path: Path, name: str) -> None:
        assert pods(path)[name]["spec"]["enableServiceLinks"] is False

    def test_pod_security_restricted(self, path: Path, name: str) -> None:
        pod = pods(path)[name]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        assert instructions("USER") == [user]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        inner = container_of(pods(path)[name])["securityContext"]
        assert inner["allowPrivilegeEscalation"] is False
        assert inner["readOnlyRootFilesystem"] is True
        assert inner["capabilities"] == {"drop": ["ALL"]}

    def test_probes_ask_routes_on_ports_that_are_there(self, path: Path, name: str) -> None:
        container = container_of(pods(path)[name])
        asked = {kind: container[kind]["httpGet"] for kind in container if kind.endswith("Probe")}
        ports = {port["name"] for port in container["ports"]}
        assert {ask["port"] for ask in asked.values()} <= ports
        paths = {kind: ask["path"] for kind, ask in asked.items()}
        if "http" in ports:
            assert paths == {
                "startupProbe": "/livez",
                "livenessProbe": "/livez",
                "readinessProbe": "/readyz",
            }
            assert set(paths.values()) <= routes()
        else:
            assert paths == {
                "startupProbe": "/livez",
                "livenessProbe": "/livez",
                "readinessProbe": "/readyz",
            }

    def test_ports_are_those_of_the_command(self, path: Path, name: str) -> None:
        container = container_of(pods(path)[name])
        options = Program("", container["args"]).parse()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        said = {"http": options.get("port"), "metrics": options.get("metrics_port")}
        if "workers" in ports:
            said["workers"] = int(options["tcp"].rpartition(":")[2])
        assert ports == {name: port for name, port in said.items() if port is not None}
        scraped = pods(path)[name]["metadata"]["annotations"]["prometheus.io/port"]
        assert int(scraped) == ports.get("http", ports.get("metrics"))

    def test_selectors_find_it(self, path: Path, name: str) -> None:
        labels = pods(path)[name]["metadata"]["labels"]
        assert objects(path, "Deployment")[name]["spec"]["selector"]["matchLabels"] == labels
        policies = objects(path, "NetworkPolicy").values()
        assert labels in [policy["spec"]["podSelector"]["matchLabels"] for policy in policies]

    def test_its_image_is_that_of_the_dockerfile(self, path: Path, name: str) -> None:
        assert container_of(pods(path)[name])["image"] == "sentiment:1.0"
        assert "-t sentiment:1.0 " in TEXTS[DEPLOY / "Dockerfile"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
class TestManifests:
    def test_services_and_budgets_select_pods(self, path: Path) -> None:
        for service in objects(path, "Service").values():
            (pod,) = (
                pod
                for pod in pods(path).values()
                if pod["metadata"]["labels"] == service["spec"]["selector"]
            )
            names = {port["name"] for port in container_of(pod)["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
        labels = [pod["metadata"]["labels"] for pod in pods(path).values()]
        for budget in objects(path, "PodDisruptionBudget").values():
            assert budget["spec"]["selector"]["matchLabels"] in labels

    def test_autoscalers_scale_what_is_there_by_what_is_measured(self, path: Path) -> None:
        deployments = {name for other in MANIFESTS for name in objects(other, "Deployment")}
        rules = load(ADAPTER)["rules"]
        kinds = {"Pods": "custom", "External": "external"}
        for scaler in objects(path, "HorizontalPodAutoscaler").values():
            assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
            (metric,) = scaler["spec"]["metrics"]
            (rule,) = rules[kinds[metric["type"]]]
            said = metric[metric["type"].lower()]
            assert said["metric"]["name"] == rule["name"]["as"]
            goal = said["target"].get("averageValue") or said["target"]["value"]
            assert int(goal.removesuffix("m")) / 1000 >= 2 * Config().max_wait


def test_kubernetes_parts_meet_before_they_are_ready() -> None:
    """A worker makes the batching service ready, so it must reach it before."""
    path = DEPLOY / "kubernetes" / "batching.yaml"
    host, _, port = (
        Program("", container_of(pods(path)["sentiment-worker"])["args"])
        .parse()["tcp"]
        .rpartition(":")
    )
    service = objects(path, "Service")[host]["spec"]
    assert service["publishNotReadyAddresses"] is True
    assert [entry["port"] for entry in service["ports"]] == [int(port)] == [WORKERS]
    batching = objects(path, "Deployment")["sentiment-batching"]["spec"]
    assert batching["replicas"] == 1
    assert batching["strategy"]["rollingUpdate"]["maxUnavailable"] == 1


def test_the_readme_names_every_file() -> None:
    for path in TEXTS:
        name = path.relative_to(DEPLOY).as_posix()
        assert f"({name})" in README or name in {"README.md", "Dockerfile"}, name


def tool(name: str) -> str:
    """Return the path of a program, beside this Python or on the machine, or skip the test."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def checked(*words: str | Path, variables: dict[str, str] | None = None) -> str:
    """Return what a program has to say about a file that it finds good."""
    done = subprocess.run(
        list(map(str, words)),
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class TestTools:
    def test_hadolint(self) -> None:
        assert checked(tool("hadolint"), DEPLOY / "Dockerfile") == ""

    @pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
    def test_docker_compose(self, path: Path) -> None:
        secret = {"VENTU_WORKER_SECRET": "x"}
        said = checked(tool("docker-compose"), "-f", path, "config", variables=secret)
        assert set(yaml.safe_load(said)["services"]) == set(load(path)["services"])

    @pytest.mark.parametrize("version", ["1.30", "1.35"])
    def test_kubernetes_validate(self, version: str) -> None:
        said = checked(tool("kubernetes-validate"), "--strict", "-k", version, *MANIFESTS)
        for path in MANIFESTS:
            count = len([part for part in yaml.safe_load_all(path.read_text()) if part])
            assert said.count(f"/{path.name} passed ") == count, said

    def test_systemd_analyze(self, tmp_path: Path) -> None:
        analyze = tool("systemd-analyze")
        for path in UNITS:
            text = path.read_text().replace(INTERPRETER, sys.executable)
            name = path.name.replace("@.", "@1.")
            (tmp_path / name).write_text(text)
        said = checked(analyze, "verify", "--man=no", *sorted(tmp_path.iterdir()))
        assert str(tmp_path) not in said  # an unknown line is only a warning

    def test_promtool_reads_the_configuration(self) -> None:
        assert "SUCCESS" in checked(tool("promtool"), "check", "config", DEPLOY / "prometheus.yml")

    @pytest.mark.parametrize("kind", ["custom", "external"])
    def test_promtool_computes_the_quantile(self, kind: str, tmp_path: Path) -> None:
        """9 of 10 jobs that wait up to 50 ms: 50 ms. No traffic: 0, not NaN."""
        promtool = tool("promtool")
        (rule,) = load(ADAPTER)["rules"][kind]
        query = rule["metricsQuery"]
        for mark, value in {
            "<<.Series>>": "ventu_queue_seconds_bucket",
            "<<.LabelMatchers>>": 'service="sentiment"',
            "<<.GroupBy>>": "pod",
        }.items():
            query = query.replace(mark, value)
        assert "<<" not in query
        (tmp_path / "rules.yml").write_text(
            yaml.safe_dump({"groups": [{"name": "g", "rules": [{"record": "p90", "expr": query}]}]})
        )
        series = 'ventu_queue_seconds_bucket{service="sentiment",pod="a",le="%s"}'
        labels = '{pod="a"}' if kind == "custom" else ""

        def case(steps: dict[str, int], expected: float) -> dict[str, Any]:
            values = [
                {"series": series % le, "values": f"0+{step}x20"} for le, step in steps.items()
            ]
            question = {
                "expr": "p90",
                "eval_time": "5m",
                "exp_samples": [{"labels": f"p90{labels}", "value": expected}],
            }
            return {"interval": "15s", "input_series": values, "promql_expr_test": [question]}

        busy = {"0.01": 0, "0.05": 9, "0.1": 10, "+Inf": 10}
        tests = [case(busy, 0.05), case(dict.fromkeys(busy, 0), 0)]
        (tmp_path / "tests.yml").write_text(
            yaml.safe_dump({"rule_files": ["rules.yml"], "tests": tests})
        )
        checked(promtool, "test", "rules", tmp_path / "tests.yml")


@pytest.fixture
def answering() -> Iterator[int]:
    """A server that is well at /livez and unwell elsewhere; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/livez" else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def probe(port: int, path: str) -> subprocess.CompletedProcess[str]:
    """Run the health check of the containers, with a proxy set that it must not ask."""
    return subprocess.run(
        [sys.executable, PROBE, str(port), path],
        env=environment({"http_proxy": "http://127.0.0.1:1"}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_the_probe_tells_well_from_unwell(answering: int) -> None:
    assert probe(answering, "/livez").returncode == 0
    unwell = probe(answering, "/readyz")
    assert (unwell.returncode, unwell.stderr) == (1, f"/readyz on port {answering}: status 503\n")


def test_the_probe_is_unhappy_where_nobody_listens() -> None:
    nobody = probe(1, "/livez")
    assert nobody.returncode == 1
    assert "refused" in nobody.stderr and "Traceback" not in nobody.stderr


def started(stack: ExitStack, program: Program, here: dict[str, str]) -> Process:
    """Start a command as its file has it, but for names and ports, which are those of ``here``."""
    words = [here.get(word, word) for word in program.words]
    variables = {name: here.get(name, value) for name, value in program.variables.items()}
    if "worker" in words and "--app" not in words:
        variables["FLASK_APP"] = str(SAMPLE)
    return stack.enter_context(Process("-m", "ventu_lite", *words, env=variables))


def answers(port: int) -> None:
    """Ask what clients, probes and Prometheus ask."""
    with Client(port) as client:
        assert client.infer(b'{"text": "my cat is very cute"}').status == 200
        page = client.get("/metrics").body.decode()
    for path in ("/livez", "/readyz"):
        assert probe(port, path).returncode == 0
    (series,) = set(re.findall(r"\bventu_\w+_bucket\b", TEXTS[ADAPTER]))
    assert re.search(rf'^{series}{{[^}}]*service="sentiment"', page, re.MULTILINE)


def by_name(programs: Iterator[Program]) -> dict[str, Program]:
    return {program.name: program for program in programs}


def test_the_commands_of_compose_work_over_tcp() -> None:
    """Two workers that know the secret join, one that does not never does; the front ends first."""
    programs = by_name(of_compose(DEPLOY / "compose.batching.yaml"))
    here = {
        "0.0.0.0": "127.0.0.1",
        f"0.0.0.0:{WORKERS}": "127.0.0.1:0",
        str(METRICS): "0",
        "VENTU_WORKER_SECRET": "of this test",
        "VENTU_LOG_FORMAT": "text",
    }
    with ExitStack() as stack:
        front = Program("", [*programs["batching"].words, "--port", "0"])
        front.variables = programs["batching"].variables
        batching = started(stack, front, here)
        ready = batching.wait_for(r"ready on http://127.0.0.1:(\d+) .* at tcp:(\S+) for workers")
        here[f"batching:{WORKERS}"] = ready[2]
        started(stack, programs["worker"], here | {"VENTU_WORKER_SECRET": "a guess"})
        batching.wait_for("worker does not know the secret")
        workers = [started(stack, programs["worker"], here) for _ in range(2)]
        batching.wait_for("is ready", count=2)
        answers(int(ready[1]))
        for worker in workers:
            metrics = int(worker.wait_for(r"metrics on http://127.0.0.1:(\d+)/metrics")[1])
            assert probe(metrics, "/metrics").returncode == 0
        assert [process.stop() for process in (batching, *workers)] == [0, 0, 0]


def test_the_units_of_the_parts_work_over_a_socket(directory: Path) -> None:
    programs = by_name(program for path in UNITS for program in of_unit(path))
    socket = directory / "batching.socket"
    here = {
        "%t/ventu-lite/batching.socket": str(socket),
        str(HTTP): "0",
        IN_UNIT: str(SAMPLE),
    }
    with ExitStack() as stack:
        worker = started(stack, programs["worker"], here)  # first, as Before= has it
        worker.wait_for("trying again")
        batching = started(stack, programs["batching"], here)
        ready = batching.wait_for(r"ready on http://127.0.0.1:(\d+) .* at unix:(\S+) for workers")
        assert ready[2] == str(socket)
        batching.wait_for("is ready")
        answers(int(ready[1]))
        assert [process.stop() for process in (batching, worker)] == [0, 0]


def test_the_unit_of_serve_works() -> None:
    program = by_name(program for path in UNITS for program in of_unit(path))["serve"]
    with ExitStack() as stack:
        serve = started(stack, program, {str(HTTP): "0", IN_UNIT: str(SAMPLE)})
        port = int(serve.wait_for(r"listening on http://127.0.0.1:(\d+)")[1])
        serve.wait_for("is ready", count=2)
        answers(port)
        assert serve.stop() == 0
