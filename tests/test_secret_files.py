"""Secrets in files: what is read, what is refused, and that every command reads them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Client, batching, command, gunicorn, serve, short_directory, worker

from ventu_lite import Config, ConfigError
from ventu_lite.config import unknown_variables

SECRET = "hunter2-hunter2"
MODEL = """
from ventu_lite import Service

service = Service("locked", request=str, response=str, examples=["x"])


@service.infer
def infer(item):
    return item.upper()


app = service.app
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_of(setting: str) -> str | None:
    secret = getattr(Config(), setting)
    return secret and str(secret.get_secret_value())


@pytest.mark.parametrize("setting", ["api_key", "worker_secret"])
@pytest.mark.parametrize(
    ("content", "secret"),
    [
        pytest.param(SECRET, SECRET, id="as it is"),
        pytest.param(f"{SECRET}\n", SECRET, id="a line"),
        pytest.param(f"{SECRET}\r\n", SECRET, id="a line of Windows"),
        pytest.param(f"{SECRET}\n\n", SECRET, id="an empty line after it"),
        pytest.param(f" \t{SECRET}\u00a0\n", SECRET, id="white space around it"),
        pytest.param("in two words", "in two words", id="blanks inside"),
        pytest.param(f"\ufeff{SECRET}\r\n", SECRET, id="the mark of an editor before it"),
        pytest.param("é" * 2048, "é" * 2048, id="as long as it may be"),
    ],
)
def test_a_file_holds_a_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch, setting: str, content: str, secret: str
) -> None:
    folder.joinpath("secret").write_bytes(content.encode())
    monkeypatch.setenv(f"VENTU_{setting.upper()}_FILE", "secret")
    assert value_of(setting) == secret


@pytest.mark.parametrize("where", ["environment", "file"])
def test_the_variable_may_stand_where_others_do_and_wins_over_the_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder.joinpath("secret").write_text(SECRET)
    if where == "file":
        folder.joinpath(".env").write_text("ventu_api_key_file=secret\n")
    else:
        monkeypatch.setenv("ventu_api_key_file", "secret")
    config = Config(api_key="from the code")
    assert config.api_key and config.api_key.get_secret_value() == SECRET
    assert SECRET not in repr(config)


def test_the_environment_names_another_file_than_dotenv(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.joinpath("secret").write_text(SECRET)
    folder.joinpath(".env").write_text("VENTU_API_KEY_FILE=missing\n")
    monkeypatch.setenv("VENTU_API_KEY_FILE", "secret")
    assert value_of("api_key") == SECRET


@pytest.mark.parametrize("line", ["VENTU_API_KEY=x", "ventu_api_key=x"])
def test_both_forms_are_one_too_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    folder.joinpath("secret").write_text(SECRET)
    folder.joinpath(".env").write_text(line)
    monkeypatch.setenv("VENTU_API_KEY_FILE", "secret")
    both = "(?i)^VENTU_API_KEY and VENTU_API_KEY_FILE are both set: remove one of them$"
    with pytest.raises(ConfigError, match=both):
        Config()


def test_the_variables_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENTU_API_KEY_FILE", "secret")
    monkeypatch.setenv("VENTU_WORKER_SECRETFILE", "secret")
    assert unknown_variables() == {"VENTU_WORKER_SECRETFILE": "VENTU_WORKER_SECRET_FILE"}


@pytest.mark.parametrize("value", ["", " \t"], ids=["nothing", "blanks"])
def test_an_empty_name_is_no_open_door(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VENTU_WORKER_SECRET_FILE", value)
    with pytest.raises(ConfigError, match="^VENTU_WORKER_SECRET_FILE is empty: give it a value"):
        Config()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty: write the secret into it, or remove", id="empty"),
        pytest.param(b"\n", "is empty: write the secret into it, or remove", id="an empty line"),
        pytest.param(
            b" \t\r\n ", "is empty: write the secret into it, or remove", id="white space"
        ),
        pytest.param(b"\xef\xbb\xbf\n", "is empty: write the secret into it, or", id="only a mark"),
        pytest.param(b"one\ntwo", "holds more than one line, .*: is it the right", id="two lines"),
        pytest.param(b"a\0b\0c\0", "holds .* a character that cannot be seen", id="UTF-16"),
        pytest.param(b"a\tb", "holds .* a character that cannot be seen", id="a tabulator"),
        pytest.param("a\u200b".encode(), "holds .* that cannot be seen", id="a hidden character"),
        pytest.param(
            b"x" * 70_000, "holds more than 4096 bytes: is it the right", id="over 64 KiB"
        ),
        pytest.param(b"x" * 4097, "holds more than 4096 bytes: is it the right", id="large"),
        pytest.param(b"\xff" * 10, "is no text in UTF-8: is it the right file", id="no text"),
    ],
)
def test_a_file_that_holds_no_secret_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    folder.joinpath("secret").write_bytes(content)
    monkeypatch.setenv("VENTU_API_KEY_FILE", "secret")
    with pytest.raises(ConfigError, match=f"^VENTU_API_KEY_FILE='secret' {message}"):
        Config()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("missing", "does not exist: mount the secret there", id="missing"),
        pytest.param(".", "is no regular file: name a file", id="a directory"),
        pytest.param("pipe", "is no regular file: name a file", id="a pipe"),
        pytest.param("x" * 300, f"cannot be read: .*; let user {os.getuid()} read it", id="a name"),
        pytest.param("loop", "cannot be read: .*; let user", id="a link to itself"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    os.mkfifo(folder / "pipe")
    os.symlink("loop", folder / "loop")
    monkeypatch.setenv("VENTU_API_KEY_FILE", path)
    with pytest.raises(ConfigError, match=f"^VENTU_API_KEY_FILE='{path}' {message}"):
        Config()


NOBODY = 65534


def test_a_file_of_somebody_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode says who may read it; root, who may do all, becomes somebody else for that."""
    own = os.geteuid()
    user = own or NOBODY
    with short_directory() as directory:
        directory.chmod(0o755)
        monkeypatch.chdir(directory)
        (directory / "secret").write_text(SECRET)
        (directory / "secret").chmod(0o000)
        monkeypatch.setenv("VENTU_API_KEY_FILE", "secret")
        said = f"^VENTU_API_KEY_FILE='secret' cannot be read: Permission denied; let user {user} "
        try:
            os.seteuid(user)
            with pytest.raises(ConfigError, match=said):
                Config()
        finally:
            os.seteuid(own)


# ---------------------------------------------------------------------------- real processes


@pytest.fixture
def locked() -> Iterator[tuple[Path, dict[str, str]]]:
    """A model, and an environment that names a file for each secret."""
    with short_directory() as directory:
        model = directory / "app.py"
        model.write_text(MODEL)
        for name in ("key", "secret"):
            (directory / name).write_text(f"{name} of this test\n")
        yield (
            model,
            {
                "VENTU_API_KEY_FILE": str(directory / "key"),
                "VENTU_WORKER_SECRET_FILE": str(directory / "secret"),
            },
        )


def assert_locked(client: Client) -> None:
    key = {"Authorization": "Bearer key of this test"}
    assert client.infer(b'"x"').status == 401
    assert client.infer(b'"x"', **{"Authorization": "Bearer wrong"}).status == 401
    answer = client.infer(b'"x"', **key)
    assert (answer.status, json.loads(answer.body)) == (200, "X")


def test_serve_reads_them(locked: tuple[Path, dict[str, str]]) -> None:
    model, env = locked
    with serve(model, env=env) as server, server.client() as client:
        assert_locked(client)


def test_flask_reads_them(locked: tuple[Path, dict[str, str]]) -> None:
    model, env = locked
    with gunicorn("app:app", cwd=model.parent, env=env) as server, server.client() as client:
        assert_locked(client)


def test_batching_and_its_worker_read_them(locked: tuple[Path, dict[str, str]]) -> None:
    model, env = locked
    at = ["--unix", str(model.parent / "b")]
    with batching(*at, env=env) as server, worker(model, *at, env=env) as process:
        process.wait_for("connected to")
        with server.client() as client:
            assert_locked(client)


@pytest.mark.parametrize("name", ["worker", "batching", "serve", "check"])
def test_every_command_says_what_is_wrong(name: str, locked: tuple[Path, dict[str, str]]) -> None:
    model, env = locked
    missing = env | {"VENTU_WORKER_SECRET_FILE": "/nowhere"}
    done = command("--app", model, name, env=missing)
    assert done.returncode == 2
    assert "VENTU_WORKER_SECRET_FILE='/nowhere' does not exist: mount" in done.stderr
    assert "Traceback" not in done.stderr
