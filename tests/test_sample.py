"""The sample is what people copy, so it has to be right, short and kind."""

import importlib.util
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
from processes import ROOT, SAMPLE

SENTENCES = {
    "my cat is very cute": True,
    "I love this, thank you so much!": True,
    "the service was terrible and the food was awful": False,
    "what a horrible, disgusting day :(": False,
}


@pytest.fixture(scope="module")
def sample() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("sentiment", SAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_importing_loads_no_model(sample: ModuleType) -> None:
    """``service.app`` is made at import; a server imports the file in its parent process, too."""
    assert sample.model is None
    assert sample.app.name == "sentiment"


@pytest.mark.parametrize(("text", "is_kind"), SENTENCES.items())
def test_kind_and_unkind_sentences_are_told_apart(
    sample: ModuleType, text: str, is_kind: bool
) -> None:
    answer = sample.service.predict({"text": text})
    assert (answer.positive > answer.negative) is is_kind
    assert answer.positive + answer.negative == pytest.approx(1)


def test_the_examples_show_a_kind_an_unkind_and_a_plain_sentence(sample: ModuleType) -> None:
    """They are what the pages offer to try, and what ``check`` compares."""
    answers = map(sample.service.predict, sample.EXAMPLES)
    kind, unkind, plain = (round(answer.positive - answer.negative, 1) for answer in answers)
    assert kind >= 0.4 and unkind <= -0.4 and plain == 0
    document = sample.app.test_client().get("/apidoc/openapi.json").json
    content = document["paths"]["/inference"]["post"]["requestBody"]["content"]
    shown = [each["value"] for each in content["application/json"]["examples"].values()]
    assert shown == sample.EXAMPLES


def test_a_batch_says_what_single_requests_say(sample: ModuleType) -> None:
    requests = [{"text": text} for text in SENTENCES]
    assert sample.service.predict_batch(requests) == list(map(sample.service.predict, requests))


def test_it_is_healthy(sample: ModuleType) -> None:
    assert sample.service.health_check(batch=True).as_dict() == {"service": "OK", "inference": "OK"}


def test_its_stages_stay_plain_functions(sample: ModuleType) -> None:
    assert sample.clean(sample.Request(text="  hello ")) == "hello"
    assert sample.label(0.5) == sample.Response(positive=0.75, negative=0.25)


def test_it_names_commands_for_files_that_exist() -> None:
    (path,) = re.findall(r"flask --app (\S+) run", SAMPLE.read_text())
    assert (ROOT / path).samefile(SAMPLE)
