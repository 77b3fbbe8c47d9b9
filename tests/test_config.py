"""The settings: their order, their checks, and what the messages say."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from ventu_lite import Config, ConfigError, RegistrationError
from ventu_lite.config import is_set_outside, unknown_variables
from ventu_lite.failures import FAILURES_VARIABLE
from ventu_lite.parent import PARENT_VARIABLE

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty directory and return where its ``.env`` would be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".env"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "Deep Learning Service"),
        ("version", "latest"),
        ("host", "localhost"),
        ("port", 8000),
        ("socket", "batching.socket"),
        ("codec", "auto"),
        ("max_batch_size", 32),
        ("max_wait", 0.01),
        ("max_wait_policy", "adaptive"),
        ("capacity", 1024),
        ("timeout", 5.0),
        ("batch_timeout", None),
        ("max_body", 10 * 2**20),
        ("max_message", 256 * 2**20),
        ("max_held", 2**30),
        ("max_connections", 10_000),
        ("api_key", None),
        ("worker_secret", None),
        ("log_level", "info"),
        ("log_format", "text"),
    ],
)
def test_defaults(name: str, value: object) -> None:
    assert getattr(Config(), name) == value


def test_the_order_is_flag_environment_file_code_default(
    dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dotenv.write_text("VENTU_PORT=3\nVENTU_CAPACITY=3\nVENTU_TIMEOUT=3\n")
    monkeypatch.setenv("VENTU_PORT", "2")
    monkeypatch.setenv("VENTU_CAPACITY", "2")
    config = Config(port=4, capacity=4, timeout=4, max_wait=4).override(port=1)
    assert (config.port, config.capacity, config.timeout, config.max_wait) == (1, 2, 3, 4)
    assert config.max_batch_size == 32


@pytest.mark.parametrize("where", ["environment", "file"])
def test_an_empty_variable_counts_as_unset(
    where: str, dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "file":
        dotenv.write_text("VENTU_PORT=\n")
    else:
        monkeypatch.setenv("VENTU_PORT", "")
    assert Config(port=7).port == 7


@pytest.mark.parametrize("name", ["VENTU_API_KEY", "ventu_worker_secret"])
@pytest.mark.parametrize("where", ["environment", "file"])
@pytest.mark.parametrize("value", ["", "' '"], ids=["nothing", "a blank"])
def test_an_empty_secret_is_no_open_door(
    name: str, where: str, value: str, dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``VENTU_API_KEY=$KEY`` where KEY is misspelt."""
    if where == "file":
        dotenv.write_text(f"{name}={value}\n")
    else:
        monkeypatch.setenv(name, value.strip("'"))
    with pytest.raises(ConfigError, match=f"{name} is empty"):
        Config()


@pytest.mark.parametrize("value", [f"{SECRET}\n", f" {SECRET}\t", f"{SECRET}\u00a0"])
def test_white_space_around_a_secret_does_not_count(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client could send it, so that the key would let nobody in."""
    monkeypatch.setenv("VENTU_API_KEY", value)
    config = Config(worker_secret=value)
    assert (config.api_key, config.worker_secret) == (SecretStr(SECRET), SecretStr(SECRET))
    assert Config(**config.declared()) == config


@pytest.mark.parametrize("value", [f"{SECRET}\nb", f"a\t{SECRET}", f"\u200b{SECRET}", "\x7f"])
def test_a_secret_that_nobody_could_send_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "the secret holds more than one line, or a character that cannot be seen$"
    with pytest.raises(ConfigError, match=f"^worker_secret: {said}"):
        Config(worker_secret=value)
    monkeypatch.setenv("VENTU_API_KEY", value)
    with pytest.raises(ConfigError, match=f"^VENTU_API_KEY: {said}"):
        Config()


@pytest.mark.parametrize("value", ["", " \n"])
def test_an_empty_secret_in_the_code_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="^api_key: the secret is empty$"):
        Config(api_key=value)


def test_lines_of_other_programs_in_the_file_do_no_harm(dotenv: Path) -> None:
    dotenv.write_text("DATABASE_URL=x\nVENTU_PORT=9\nVENTU_UNKNOWN=1\n")
    assert Config().port == 9


def test_a_directory_called_env_does_no_harm(dotenv: Path) -> None:
    """Some people call their virtual environment that."""
    dotenv.mkdir()
    assert Config().port == 8000


def test_a_file_that_is_no_text_is_named(dotenv: Path) -> None:
    dotenv.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^\.env cannot be read: 'utf-8' codec"):
        Config()


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MiB", 10 * 2**20), ("10 MB", 10**7), ("1.5k", 1500), (4096, 4096), ("4096", 4096)],
)
def test_sizes_may_have_units(text: object, size: int) -> None:
    assert Config(max_body=text).max_body == size


@pytest.mark.parametrize("level", ["DEBUG", "Debug", "debug"])
def test_words_may_be_written_in_capitals(level: str) -> None:
    assert Config(log_level=level, log_format="JSON").log_level == "debug"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"port": 65536}, "port=65536: Input should be less than or", id="port"),
        pytest.param({"port": "x"}, "port='x': Input should be a valid integer", id="no number"),
        pytest.param({"timeout": 0}, "timeout=0: Input should be greater than 0", id="zero"),
        pytest.param({"timeout": "inf"}, "timeout='inf': Input should be a finite", id="infinite"),
        pytest.param({"max_wait": -1}, "max_wait=-1: Input should be greater than", id="negative"),
        pytest.param(
            {"max_body": "much"}, "max_body='much': .*, expected a size such as 10MiB", id="size"
        ),
        pytest.param(
            {"max_message": "2GiB"}, "max_message='2GiB': Input should be less than", id="frame"
        ),
        pytest.param(
            {"log_level": "LOUD"}, "log_level='loud': Input should be 'debug', 'info'", id="word"
        ),
        pytest.param(
            {"port": -1, "capacity": 0}, "^port=-1: [^;]+; capacity=0: [^;]+$", id="two at once"
        ),
    ],
)
def test_a_bad_value_in_the_code_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**settings)


@pytest.mark.parametrize("variable", ["VENTU_PORT", "ventu_port"])
def test_a_bad_variable_is_named_as_it_was_written(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(ConfigError, match=f"^{variable}='x': Input should be a valid integer"):
        Config(port=8000)


def test_a_bad_line_of_the_file_is_named_with_its_file(dotenv: Path) -> None:
    dotenv.write_text("VENTU_PORT=x\n")
    with pytest.raises(ConfigError, match=r"^VENTU_PORT \(in \.env\)='x': Input should be"):
        Config(port=8000)


def test_the_variable_that_kubernetes_sets_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENTU_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(ConfigError, match="enableServiceLinks: false"):
        Config()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_batchsize", "Did you mean 'max_batch_size'?"),
        ("xyzzy", "Known: name, version, host, "),
    ],
)
def test_an_unknown_setting_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(RegistrationError, match=f"no setting '{name}'. {re.escape(hint)}"):
        Config(**{name: 1})
    with pytest.raises(RegistrationError, match=re.escape(hint)):
        Config().override(**{name: 1})


def test_flags_that_were_not_given_change_nothing() -> None:
    config = Config(port=7)
    assert config.override(port=None, host=None) == config


def test_override_leaves_the_original_alone() -> None:
    config = Config(port=7)
    assert config.override(port=1).port == 1
    assert config.port == 7


def test_a_bad_flag_is_named() -> None:
    with pytest.raises(ConfigError, match="^--max-batch-size=0: Input should be greater"):
        Config().override(max_batch_size=0)


def test_declared_holds_what_was_set_on_purpose() -> None:
    assert Config(port=7).override(timeout=2).declared() == {"port": 7, "timeout": 2.0}


@pytest.mark.parametrize("name", ["api_key", "worker_secret"])
@pytest.mark.parametrize("value", [[SECRET], {SECRET: 1}], ids=["list", "dict"])
def test_no_message_shows_a_secret(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as in_code:
        Config(**{name: value})
    with pytest.raises(ConfigError) as in_flag:
        Config().override(**{name: value})
    with pytest.raises(ValidationError) as assigned:
        setattr(Config(), name, value)
    assert SECRET not in f"{in_code.value} {in_flag.value} {assigned.value}"


def test_no_repr_shows_a_secret() -> None:
    config = Config(api_key=SECRET, worker_secret=SECRET)
    assert SECRET not in f"{config!r} {config} {config.declared()}"
    assert config.api_key == SecretStr(SECRET)


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what a developer has in his shell."""
    for name in unknown_variables():
        monkeypatch.delenv(name)


def test_what_is_set_for_all_services_is_known(
    dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VENTU_NAME", raising=False)
    dotenv.write_text("VENTU_NAME=\nVENTU_VERSION=2\n")
    monkeypatch.setenv("ventu_port", "1")
    told = {name: is_set_outside(name) for name in ("name", "version", "port")}
    assert told == {"name": False, "version": True, "port": True}


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("VENTU_MAX_BATCHSIZE", "VENTU_MAX_BATCH_SIZE"),
        ("ventu_time_out", "VENTU_TIMEOUT"),
        ("VENTU_LOGLEVEL", "VENTU_LOG_LEVEL"),
        ("VENTU_COLOUR", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert unknown_variables() == {name: near}


@pytest.mark.usefixtures("bare_environment")
def test_a_line_of_the_file_that_is_no_setting_is_found(dotenv: Path) -> None:
    dotenv.write_text("VENTU_PROT=1\nVENTU_PORT=1\nPORT_OF_ANOTHER=1\nVENTU_HSOT\n")
    assert unknown_variables() == {"VENTU_PROT": "VENTU_PORT", "VENTU_HSOT": "VENTU_HOST"}


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VENTU_PORT", "8000"),
        ("ventu_timeout", "3"),
        (PARENT_VARIABLE, "1"),
        (FAILURES_VARIABLE, "/tmp/x"),
        ("VENTU_SERVICE_HOST", "10.0.0.1"),
        ("VENTU_SERVICE_PORT", "80"),
        ("VENTU_SERVICE_PORT_HTTP", "80"),
        ("VENTU_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("VENTU_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("VENTU_PORT_80_TCP_PORT", "80"),
        ("VENTU_PORT_80_TCP_PROTO", "tcp"),
        ("VENTU_BATCHING_PORT", "tcp://10.0.0.1:80"),
        ("VENTU_BATCHING_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_a_variable_that_is_known_or_that_kubernetes_sets_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert unknown_variables() == {}
