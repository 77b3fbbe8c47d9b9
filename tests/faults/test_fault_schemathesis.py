"""The API document and the service, held against each other by schemathesis."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deployments import GUNICORN, SERVE, Deployment, deployed
from processes import SAMPLE, TIMEOUT, environment

HERE = Path(__file__).parent


def schemathesis(deployment: Deployment, *options: str) -> str:
    """Return the report of a run without a fault."""
    url = f"http://127.0.0.1:{deployment.server.port}/apidoc/openapi.json"
    config = ("--config-file", str(HERE / "schemathesis.toml"))
    fixed = ("--generation-deterministic", "--max-examples=25", "--checks=all", "--no-color")
    ended = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *config, "run", url, *fixed, *options],
        cwd=deployment.directory,
        env=environment({"PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "schemathesis_hooks"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * TIMEOUT,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def passed(report: str) -> int:
    """Return the number of cases that were tried, each of which has passed."""
    counts = re.search(r"(\d+) generated, (\d+) passed", report)
    assert counts and counts[1] == counts[2], report
    return int(counts[1])


@pytest.mark.parametrize("how", [SERVE, GUNICORN])
def test_the_api_document_tells_the_truth(how: str, directory: Path) -> None:
    """Statuses, types, schemas and headers of the answers; what must be accepted, what refused."""
    with deployed(how, SAMPLE.read_text(), directory) as deployment:
        assert passed(schemathesis(deployment)) > 100


def test_the_api_document_tells_the_truth_about_the_key(directory: Path) -> None:
    """Without the key, or with another, nothing that the document protects may be answered."""
    # Schemathesis leaves the header out to see it missed, and then adds the one that it is given.
    wrong = "--exclude-checks=missing_required_header"
    key = {"VENTU_API_KEY": "key"}
    with deployed(SERVE, SAMPLE.read_text(), directory, env=key) as deployment:
        given = "--header=Authorization: Bearer key"
        assert passed(schemathesis(deployment, given, wrong)) > 50
