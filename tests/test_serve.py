"""What ``serve`` decides before anything runs; the rest is seen in real processes."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from ventu_lite import RegistrationError, Service
from ventu_lite import serve as module
from ventu_lite.addresses import UnixAddress
from ventu_lite.cli import _as_environment
from ventu_lite.mounting import services_of
from ventu_lite.serve import Plan, refuse_skipped_hooks


def make_plan(app_path: str | None = None, **options: Any) -> Plan:
    service = Service("--odd name", request=int, response=int)
    service.infer(**options)(lambda batch: batch)
    app = service.app
    return Plan(app, services_of(app)["--odd name"], app_path, os.getcwd(), workers=1)


@pytest.mark.parametrize("app_path", [None, "mine:app"])
def test_a_worker_is_this_program_again(app_path: str | None) -> None:
    program, *command = module._worker_command(make_plan(app_path), UnixAddress("/x/s"))
    app = ["--app", app_path] if app_path else []
    worker = ["worker", "--unix", "/x/s", "--service=--odd name"]
    assert program == sys.executable
    assert command[command.index("-m") :] == ["-m", "ventu_lite", *app, *worker]


def test_workers_get_the_flags_as_variables() -> None:
    assert _as_environment(timeout=2.0, host=None, max_body="1MiB") == {
        "VENTU_TIMEOUT": "2.0",
        "VENTU_MAX_BODY": "1MiB",
    }


@pytest.mark.parametrize(
    ("said", "flag", "size"),
    [
        pytest.param(128, None, 128, id="the decorator"),
        pytest.param(128, 32, 32, id="a smaller flag"),
        pytest.param(16, 64, 16, id="a larger flag"),
        pytest.param(100_000, None, 65_536, id="more than a message holds"),
    ],
)
def test_the_front_forms_batches_as_large_as_the_workers_take(
    said: int, flag: int | None, size: int
) -> None:
    plan = make_plan(batch=True, max_batch_size=said)
    config = plan.service.config.override(max_batch_size=flag)
    assert module._config_of_front(plan, config).max_batch_size == size


def test_front_and_workers_meet_where_nobody_else_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with module._meeting_place() as address:
        folder = Path(address.path).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        Path(address.path).touch()
    assert not folder.exists()


def test_a_long_temporary_directory_is_no_hindrance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with module._meeting_place() as address:
        assert address.path.startswith("/tmp/ventu-")
        assert not os.listdir(long)


def test_hooks_are_refused_with_a_way_out() -> None:
    service = Service("cats", request=int, response=int)
    service.infer(lambda item: item)
    app = Flask("own")
    app.register_blueprint(service.blueprint)
    refuse_skipped_hooks(app, services_of(app)["cats"])
    app.before_request(lambda: None)
    with pytest.raises(RegistrationError, match="skipped: before_request .*Say --bypass-hooks if"):
        refuse_skipped_hooks(app, services_of(app)["cats"])
