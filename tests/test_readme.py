"""The README is true: its code runs, its commands exist, its links lead somewhere."""

import re
import shlex
import sys
from pathlib import Path
from runpy import run_path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from flask import Flask
from pydantic import FiniteFloat
from pydantic.fields import FieldInfo
from werkzeug.exceptions import UnsupportedMediaType

from ventu_lite import Config, InferenceFailed, InvalidPayload, Service
from ventu_lite.cli import group

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FROM_VENTU = (ROOT / "samples" / "from_ventu.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def answer_to_curl(app: Flask) -> str:
    """Return what a client gets that sends what the ``curl`` command sends."""
    (line,) = (line for line in "".join(blocks("sh")).splitlines() if line.startswith("curl"))
    _, url, _, body = shlex.split(line)
    return app.test_client().post(url, data=body, content_type="*/*").text


def test_the_first_example_answers_as_it_says() -> None:
    app = run(blocks("python")[0])["app"]
    assert answer_to_curl(app) == blocks("json")[0].strip()


def test_the_sample_answers_as_it_says() -> None:
    sample = run_path(str(ROOT / "samples" / "sentiment.py"))
    answer = blocks("json")[1].strip()
    assert answer_to_curl(sample["app"]) == answer
    assert f"`{answer}`" in (ROOT / "samples" / "README.md").read_text()


def test_a_model_is_loaded_by_setup_and_not_by_the_import() -> None:
    names = run(blocks("python")[2])
    assert names["model"] is None
    request, response = "my cat is very cute", '{"score":0.5095,"positive":true}'
    answer = names["app"].test_client().post("/inference", json={"text": request})
    assert answer.text == response
    assert f'`{{"text": "{request}"}}` gets `{response}`' in README
    assert names["model"] is not None


def test_what_stages_hand_on_may_be_anything_and_arrays_are_answers() -> None:
    service = Service("arrays")

    @service.preprocess
    def array(request: list[FiniteFloat]) -> np.ndarray[Any, Any]:
        return np.array(request)

    @service.infer(batch=True)
    def double(batch: list[np.ndarray[Any, Any]]) -> list[list[float]]:
        return np.array(batch) * 2  # type: ignore[return-value]  # as users write it

    client = service.app.test_client()
    assert client.post("/inference", json=[1, 2]).text == "[2.0,4.0]"
    assert client.post("/inference", data="[1, NaN]").status_code == 422


def test_an_example_runs_alone_and_in_a_batch_at_the_start_and_alone_in_health() -> None:
    batches: list[int] = []

    def measure(batch: list[str]) -> list[int]:
        batches.append(len(batch))
        return list(map(len, batch))

    service = Service("length", examples=["four"], timeout=30)
    service.add_stage("infer", measure, batch=True)
    client = service.app.test_client()
    assert client.post("/inference", json="x").json == 1
    assert batches == [1, 32, 1]
    assert client.get("/health").status_code == client.get("/health").status_code == 200
    assert batches == [1, 32, 1, 1]


@pytest.mark.parametrize("name", ["test_the_model", "test_over_http"])
def test_the_tests_of_the_first_example_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = ModuleType("app")
    monkeypatch.setitem(sys.modules, "app", app)
    exec(compile(blocks("python")[0], "app.py", "exec"), app.__dict__)
    run(blocks("python")[1])[name]()


def test_what_predict_and_ask_raise() -> None:
    service = run(blocks("python")[0])["service"]
    with pytest.raises(InferenceFailed) as asked:
        service.ask({"text": "x"})
    failure = asked.value
    assert (failure.code, failure.retry_after) == (422, None)
    assert failure.description == "1 field does not fit the request schema"
    assert failure.extra["errors"][0]["loc"] == ["text"]
    with pytest.raises(InferenceFailed) as refused:
        service.ask_all([{"text": "my cat"}] * 1025)
    assert refused.value.code == 413
    answer, misfit = service.predict_batch([{"text": "my cat"}, {"text": "x"}])
    assert (answer.length, type(misfit)) == (6, InvalidPayload)


@pytest.mark.parametrize("raised", [UnsupportedMediaType(), RuntimeError("no")])
def test_predict_raises_what_a_stage_raised(raised: Exception) -> None:
    def fail(text: str) -> str:
        raise raised

    service = Service("fails")
    service.add_stage("infer", fail)
    with pytest.raises(type(raised)) as caught:
        service.predict("text")
    assert caught.value is raised


def test_a_route_of_its_own_asks_the_model() -> None:
    client = run(blocks("python")[0] + blocks("python")[3])["app"].test_client()
    assert client.get("/length/hello").text == "hello has 5 letters"
    assert client.get("/length/x").status_code == 422
    for page in ("/", "/apidoc/openapi.json"):
        assert "/inference" in client.get(page).text
        assert "/length" not in client.get(page).text


def test_the_answer_of_an_example_is_compared() -> None:
    code = blocks("python")[0].replace('service = Service("length")\n', blocks("python")[4])
    health = run(code)["service"].health_check().as_dict()
    assert health["inference"] == "OK"
    wrong = run(code.replace('{"length": 4}', '{"length": 5}'))["service"].health_check().as_dict()
    assert wrong["inference"] == "Error"


def test_every_python_block_is_tried() -> None:
    assert len(blocks("python")) == 5


def test_a_file_that_came_from_ventu_answers() -> None:
    (code,) = blocks("python", FROM_VENTU)
    service = run(code)["service"]
    assert service.predict({"num": 5}).square == 25
    assert service.health_check(batch=True).as_dict() == {"service": "OK", "inference": "OK"}


PAGES = sorted(
    path
    for path in [ROOT / "README.md", *ROOT.glob("samples/**/*.md"), *ROOT.glob("tests/**/*.md")]
    if ".hypothesis" not in path.parts
)


def test_the_readme_names_every_command() -> None:
    assert commands_in(ROOT / "README.md") == set(group.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists(page: Path) -> None:
    for command in commands_in(page):
        assert CliRunner().invoke(group, [command, "--help"]).exit_code == 0, command


def commands_in(page: Path) -> set[str]:
    return set(re.findall(r"python -m ventu_lite(?: --app \S+)? ([a-z]+)", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return where a link into a page may lead: its headings, as GitHub writes them."""
    code = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", code.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^()\s]+)\)", page.read_text())
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_it_names_is_there(page: Path) -> None:
    for path in set(re.findall(r"\b(?:samples|tests)/[\w/]+\.(?:py|md)\b", page.read_text())):
        if "NAME" not in path:
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", Config.model_fields)
def test_every_setting_is_in_the_table(name: str) -> None:
    field: FieldInfo = Config.model_fields[name]
    assert field is not None
    assert re.search(rf"^\| .*`{name}`.* \|", README, re.MULTILINE), f"{name} is not explained"
