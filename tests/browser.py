"""A real Chromium without a network, and a real server, for tests that look at pages."""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.serving import make_server

TIMEOUT = 30  # seconds; only ever used up by a failure

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_CHROMEDRIVER = shutil.which("chromedriver")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1280,1600",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


@contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Give a headless Chromium that reaches 127.0.0.1 and nothing else.

    Without a Chromium and its driver the test is skipped, but fails where ``CI`` is set.
    """
    if not (_CHROMIUM and _CHROMEDRIVER):
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("needs chromium and chromedriver, apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = webdriver.Chrome(_options(profile), webdriver.ChromeService(_CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def _options(profile: str) -> webdriver.ChromeOptions:
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM or ""
    for flag in [*_FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return options


@contextmanager
def serve(app: Flask) -> Iterator[str]:
    """Serve an app from a thread, and give its address without a trailing slash."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait_for_text(driver: webdriver.Chrome, *texts: str) -> None:
    """Wait until the page shows every one of the texts."""

    def all_shown(driver: webdriver.Chrome) -> bool:
        shown = driver.execute_script("return document.body.innerText")
        return all(text in shown for text in texts)

    WebDriverWait(driver, TIMEOUT).until(all_shown, f"not all shown: {texts}")


def console_errors(driver: webdriver.Chrome) -> list[str]:
    """Return what the console has said in red since the last call."""
    entries = _log(driver, "browser")
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


def requested_urls(driver: webdriver.Chrome) -> list[str]:
    """Return every http address that the browser has asked for since the last call."""
    entries = _log(driver, "performance")
    messages = [json.loads(entry["message"])["message"] for entry in entries]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [params["request"]["url"] for params in sent]
    return [url for url in urls if url.startswith("http")]


def _log(driver: webdriver.Chrome, name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]]
    entries = driver.get_log(name)  # type: ignore[no-untyped-call]  # selenium left it untyped
    return entries
