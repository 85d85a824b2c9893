"""Workflows, containers and manifests: valid by their schemas, and what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from lipstream.cli.command import UsageError
from lipstream.cli.main import build_parser
from lipstream.server.prometheus import PrometheusMetrics
from lipstream.server.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCHEMAS = [("vendor.github-workflows", path) for path in WORKFLOWS]
SCHEMAS += [("vendor.compose-spec", DEPLOY / "compose.yaml")]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize(("schema", "path"), SCHEMAS, ids=lambda x: getattr(x, "name", None))
def test_schemas(schema: str, path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_a_workflow_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs_on:"))
    with pytest.raises(AssertionError, match="runs_on"):
        test_schemas("vendor.github-workflows", wrong)


@pytest.mark.parametrize("document", documents(DEPLOY / "kubernetes" / "lipstream.yaml"), ids=lambda x: x["kind"])
def test_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.30", strict=True)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_hadolint(name: str) -> None:
    """Versions are not pinned: the images are rebuilt for security fixes."""
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint
    options = ["--ignore", "DL3008", "--ignore", "DL3013"]
    found = subprocess.run([hadolint, *options, str(DEPLOY / name)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def arguments() -> list[list[str]]:
    """Of `lipstream serve`, as each file starts it."""
    (entry,) = (line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("ENTRYPOINT"))
    (gpu,) = (line for line in (DEPLOY / "Dockerfile.gpu").read_text().splitlines() if line.startswith("ENTRYPOINT"))
    image = json.loads(entry.removeprefix("ENTRYPOINT "))
    compose = documents(DEPLOY / "compose.yaml")[0]["services"]["lipstream"]["command"]
    deployment = documents(DEPLOY / "kubernetes" / "lipstream.yaml")[0]
    pod = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    commands = [image, json.loads(gpu.removeprefix("ENTRYPOINT ")), image + compose, image + pod]
    return [command[1:] for command in commands]


@pytest.mark.parametrize("command", arguments(), ids=["cpu", "gpu", "compose", "kubernetes"])
def test_the_server_takes_the_options(command: list[str]) -> None:
    args = build_parser().parse_args([*command, "--token", "secret"])
    assert args.behind_proxy
    Settings(host=args.host, behind_proxy=True, token="secret")
    with pytest.raises(UsageError):
        build_parser().parse_args([*command, "--no-such-option"])


def test_graces_are_longer_than_draining() -> None:
    drain = Settings().drain
    pod = documents(DEPLOY / "kubernetes" / "lipstream.yaml")[0]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= drain + 10
    grace = documents(DEPLOY / "compose.yaml")[0]["services"]["lipstream"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= drain + 10


def test_probed_addresses_exist() -> None:
    served = (ROOT / "sdk" / "lipstream" / "server" / "app.py").read_text()
    text = "".join(
        (DEPLOY / name).read_text() for name in ("Dockerfile", "Dockerfile.gpu", "kubernetes/lipstream.yaml")
    )
    addresses = set(re.findall(r"/v1/[a-z/]+", text))
    assert addresses == {"/v1/health/live", "/v1/health/ready", "/v1/metrics"}
    assert all(f'"{address}"' in served for address in addresses)


def test_metrics_of_the_dashboard_and_the_autoscaler_exist() -> None:
    exposed = PrometheusMetrics("0", "tiny").text().decode()
    known = set(re.findall(r"^# TYPE (\w+)", exposed, re.MULTILINE))
    known |= {f"{name}_bucket" for name in known}
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "lipstream.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    manifest = (DEPLOY / "kubernetes" / "lipstream.yaml").read_text()
    rule = re.findall(r"lipstream_sessions_(?:active|most)\b", manifest)
    assert len(rule) == 2
    for expression in [*expressions, *rule]:
        names = set(re.findall(r"lipstream_\w+", expression))
        assert names
        assert names <= known, names - known


def test_files_that_are_mounted_exist() -> None:
    services = documents(DEPLOY / "compose.yaml")[0]["services"].values()
    mounted = [volume.split(":")[0] for service in services for volume in service.get("volumes", [])]
    assert [path for path in mounted if not (DEPLOY / path).exists()] == ["./tls"]  # the operator's
