"""Who is told of variables that are no settings, and how often."""

import pytest

from ventu_lite import Service, config
from ventu_lite.config import unknown_variables
from ventu_lite.failures import FAILURES_VARIABLE
from ventu_lite.parent import PARENT_VARIABLE
from ventu_lite.variables import warn_of_unknown_variables


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two that are no settings."""
    for name in unknown_variables():
        monkeypatch.delenv(name)
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    monkeypatch.setenv("VENTU_MAXWAIT", "0")
    monkeypatch.setenv("VENTU_COLOUR", "blue")
    monkeypatch.setenv("VENTU_WORKERS", "2")


SAID = {
    "VENTU_MAXWAIT is ignored: there is no such setting; did you mean VENTU_MAX_WAIT?",
    "VENTU_COLOUR is ignored: there is no such setting",
    "VENTU_WORKERS is ignored: there is no such setting; say --workers on the command line",
}


def test_each_is_told_with_the_nearest_that_there_is(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_unknown_variables()
    assert set(caplog.messages) == SAID


def test_workers_leave_it_to_the_process_that_has_started_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, "1")
    warn_of_unknown_variables()
    assert not caplog.messages


def test_a_process_of_a_wsgi_server_tells_it_when_it_is_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service("of a server", request=int, response=int)
    service.infer(lambda item: item)
    assert service.app.test_client().post("/inference", json=1).get_json() == 1
    assert set(caplog.messages) == SAID


def test_what_serve_tells_its_workers_is_known() -> None:
    assert config._INTERNAL == {PARENT_VARIABLE, FAILURES_VARIABLE}
