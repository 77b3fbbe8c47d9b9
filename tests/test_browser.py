"""The pages in a real browser that has no network: what people see, and what they can do."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser import (
    TIMEOUT,
    console_errors,
    open_browser,
    requested_urls,
    serve,
    wait_for_text,
)
from flask import Blueprint, Flask, Response, jsonify, request
from pydantic import BaseModel, Field, TypeAdapter
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

from ventu_lite.openapi import document
from ventu_lite.pages import Endpoint, add_pages, home

EXAMPLE = {"cat_text": "my cat is very cute"}


class Request(BaseModel):
    cat_text: str = Field(min_length=2)


class Answer(BaseModel):
    positive_score: float = Field(ge=0, le=1)


def describe(server: str) -> dict[str, Any]:
    return document(
        name="Sentiment",
        version="1.0",
        description="Is it *nice*?",
        request=TypeAdapter(Request),
        response=TypeAdapter(Answer),
        examples=[EXAMPLE],
        media_types=["application/json", "application/msgpack"],
        server=server,
    )


def make_blueprint() -> Blueprint:
    blueprint = Blueprint("sentiment", __name__)
    add_pages(blueprint, title="Sentiment", document=describe)

    @blueprint.post("/inference")
    def infer() -> Response:
        text = Request.model_validate(request.json).cat_text
        return jsonify(positive_score=0.875 if "cute" in text else 0.125)

    @blueprint.get("/")
    def index() -> Response:
        endpoints = [
            Endpoint("POST", "/inference", "Run the model on one request"),
            Endpoint("GET", "/health", "Run the example and compare the answer"),
            Endpoint("GET", "/readyz", "Can an inference be answered now?"),
            Endpoint("GET", "/metrics", "Measurements for Prometheus"),
            Endpoint("GET", "/apidoc/swagger", "The API document, to try out"),
            Endpoint("GET", "/apidoc/redoc", "The API document, to read"),
        ]
        return home(endpoints, title="Sentiment", version="1.0", examples=[EXAMPLE])

    return blueprint


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    app = Flask(__name__)
    app.register_blueprint(make_blueprint(), url_prefix="/v1")
    with serve(app) as root:
        yield f"{root}/v1"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    with open_browser() as driver:
        yield driver


@pytest.fixture
def browser(chromium: Chrome) -> Chrome:
    """Chromium with empty logs, on an empty page."""
    chromium.get("about:blank")
    console_errors(chromium)
    requested_urls(chromium)
    return chromium


def test_redoc_shows_request_and_response(browser: Chrome, address: str) -> None:
    browser.get(f"{address}/apidoc/redoc")
    wait_for_text(browser, "Sentiment", "cat_text", "positive_score", "API docs by Redocly")

    assert all(url.startswith(f"{address}/apidoc/") for url in requested_urls(browser))
    assert console_errors(browser) == []


def test_swagger_shows_request_and_response(browser: Chrome, address: str) -> None:
    browser.get(f"{address}/apidoc")  # leads there
    wait_for_text(browser, "Sentiment", "/inference", "Answer", "Request")
    for button in browser.find_elements(By.CSS_SELECTOR, "button[class*='expand-deep-button']"):
        button.click()
    wait_for_text(browser, "cat_text", "positive_score")

    assert all(url.startswith(f"{address}/apidoc") for url in requested_urls(browser))
    assert console_errors(browser) == []


def test_try_it_out_runs_an_inference(browser: Chrome, address: str) -> None:
    browser.get(f"{address}/apidoc/swagger#/inference/infer")
    execute = (By.CSS_SELECTOR, "#operations-inference-infer button.execute")
    wait = WebDriverWait(browser, TIMEOUT)
    button = wait.until(expected_conditions.element_to_be_clickable(execute))
    browser.execute_script("arguments[0].click()", button)
    wait_for_text(browser, '"positive_score": 0.875')

    assert f"{address}/inference" in requested_urls(browser)
    assert console_errors(browser) == []


@pytest.mark.parametrize(
    ("page", "parameter"),
    [("swagger", "url"), ("swagger", "configUrl"), ("redoc", "url"), ("redoc", "spec-url")],
)
def test_a_link_cannot_bring_in_a_foreign_document(
    browser: Chrome, address: str, page: str, parameter: str
) -> None:
    with serve(Flask("evil")) as evil:
        browser.get(f"{address}/apidoc/{page}?{parameter}={evil}/evil.json")
        wait_for_text(browser, "Sentiment", "Run the model on one request")

        assert not [url for url in requested_urls(browser) if url.startswith(evil)]


def test_redoc_finds_what_is_searched(browser: Chrome, address: str) -> None:
    """Its search runs in a worker made from a blob, which the policy has to allow."""
    browser.get(f"{address}/apidoc/redoc")
    wait_for_text(browser, "positive_score")
    browser.find_element(By.CSS_SELECTOR, "input[type=text]").send_keys("prometheus")
    found = (By.CSS_SELECTOR, "[data-role='search:results'] li")
    result = WebDriverWait(browser, TIMEOUT).until(
        expected_conditions.visibility_of_element_located(found)
    )

    assert "Prometheus" in result.text
    assert console_errors(browser) == []


def test_home_page_links_to_the_document(browser: Chrome, address: str) -> None:
    browser.get(f"{address}/")
    wait_for_text(browser, "Sentiment", "/v1/inference", "my cat is very cute")
    browser.find_element(By.LINK_TEXT, "/v1/apidoc/redoc").click()
    wait_for_text(browser, "positive_score")

    assert console_errors(browser) == []


def test_home_page_has_its_style(browser: Chrome, address: str) -> None:
    """The policy allows this one style by its hash, which must be that of what is sent."""
    browser.get(f"{address}/")

    assert browser.find_element(By.TAG_NAME, "main").value_of_css_property("max-width") == "736px"
    assert console_errors(browser) == []
