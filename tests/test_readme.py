"""The README is true: its code runs, its commands exist, its links lead somewhere."""

import re
import shlex
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic.fields import FieldInfo

from ventu_lite import Config
from ventu_lite.cli import group

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_first_example_is_a_service() -> None:
    app = run(blocks("python")[0])["app"]
    answer = app.test_client().post("/inference", json={"text": "my cat is very cute"})
    assert (answer.status_code, answer.json) == (200, {"length": 19})


def test_two_services_live_in_one_app() -> None:
    client = run(blocks("python")[1])["app"].test_client()
    assert client.post("/one/inference", json="four").json == 4
    assert client.post("/two/inference", json="four").json == "FOUR"


def test_every_python_block_is_tried() -> None:
    assert len(blocks("python")) == 2


def test_the_sample_answers_as_it_says() -> None:
    sample = run_path(str(ROOT / "samples" / "sentiment.py"))
    (line,) = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("curl")]
    body = shlex.split(line)[-1]
    answer = sample["app"].test_client().post("/inference", data=body, content_type="*/*")
    assert answer.text == blocks("json")[0].strip()


def test_every_command_exists() -> None:
    commands = set(re.findall(r"python -m ventu_lite(?: --app \S+)? (\w+)", README))
    assert commands == {"serve", "batching", "worker", "check"}
    for command in commands:
        assert CliRunner().invoke(group, [command, "--help"]).exit_code == 0


def test_every_file_it_names_is_there() -> None:
    for path in set(re.findall(r"\b(?:samples|tests)/[\w/]+\.py\b", README)):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", Config.model_fields)
def test_every_setting_is_in_the_table(name: str) -> None:
    field: FieldInfo = Config.model_fields[name]
    assert field is not None
    assert re.search(rf"^\| .*`{name}`.* \|", README, re.MULTILINE), f"{name} is not explained"
