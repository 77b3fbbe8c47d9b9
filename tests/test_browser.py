"""The pages in a real browser that has no network: what people see, and what they can do."""

from collections.abc import Iterator

import pytest
from browser import (
    TIMEOUT,
    console_errors,
    open_browser,
    requested_urls,
    serve,
    wait_for_text,
)
from flask import Flask
from pydantic import BaseModel, Field
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

from ventu_lite import Service

EXAMPLE = {"cat_text": "my cat is very cute"}


class Request(BaseModel):
    cat_text: str = Field(min_length=2)


class Answer(BaseModel):
    positive_score: float = Field(ge=0, le=1)


def make_service() -> Service:
    service = Service("Sentiment", version="1.0", examples=EXAMPLE)

    @service.infer
    def rate(request: Request) -> Answer:
        return Answer(positive_score=0.875 if "cute" in request.cat_text else 0.125)

    return service


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The service, not at the root of its app."""
    app = Flask(__name__)
    app.register_blueprint(make_service().blueprint, url_prefix="/v1")
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


def test_try_it_out_shows_what_was_wrong(browser: Chrome, address: str) -> None:
    browser.get(f"{address}/apidoc/swagger#/inference/infer")
    body = (By.CSS_SELECTOR, "#operations-inference-infer textarea.body-param__text")
    wait = WebDriverWait(browser, TIMEOUT)
    wait.until(expected_conditions.element_to_be_clickable(body)).clear()
    browser.find_element(*body).send_keys('{"cat_text": "?"}')
    execute = (By.CSS_SELECTOR, "#operations-inference-infer button.execute")
    button = wait.until(expected_conditions.element_to_be_clickable(execute))
    browser.execute_script("arguments[0].click()", button)
    wait_for_text(browser, "1 field does not fit the request schema", "string_too_short")
    shown = (By.CSS_SELECTOR, ".live-responses-table tbody .response-col_status")
    status = browser.find_element(*shown)

    assert status.text.startswith("422")


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
