"""The settings of a service and the environment variables that set them.

One order everywhere: a flag of the command line, the environment (``VENTU_PORT``), the file
``.env`` of the working directory, ``Service(...)``, the default below.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .errors import ConfigError, RegistrationError
from .secret_files import NOT_ONE_LINE, SUFFIX, read_secrets

PREFIX = "VENTU_"

Codec = Literal["json", "msgpack"]
CodecSetting = Literal["auto", "json", "msgpack"]
WaitPolicy = Literal["adaptive", "fixed"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["text", "json"]

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[ByteSize, Field(ge=1)]

_FILE = ".env"
_SECRETS = {"api_key": "VENTU_API_KEY", "worker_secret": "VENTU_WORKER_SECRET"}
# What `serve` tells its workers.
_INTERNAL: Final = {"VENTU_PARENT_PROCESS", "VENTU_FAILURES"}
# What Kubernetes sets for each Service whose name begins with ventu, such as ventu-batching.
_OF_KUBERNETES: Final = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LINK: Final = re.compile("(tcp|udp|sctp)://")


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _usable(secret: SecretStr) -> SecretStr:
    """Return a secret without the white space around it."""
    text = secret.get_secret_value().strip()
    if not text:
        raise PydanticCustomError("secret", "the secret is empty")
    if not text.isprintable():
        raise PydanticCustomError("secret", f"the secret {NOT_ONE_LINE}")
    return SecretStr(text)


Secret = Annotated[SecretStr, AfterValidator(_usable)]


class Config(BaseSettings):
    """The settings of one service; every field is also an environment variable.

    A service reads them once, before its first request: a change after that changes nothing.

    Durations are seconds; sizes are bytes and may be written ``"10MiB"``. What is given to the
    constructor is what the *code* says, so the environment overrides it; what an operator says
    on a command line goes through ``override``.

    Raises:
        ConfigError: A value cannot be used; the message names its variable.
        RegistrationError: There is no such setting.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=_FILE,
        env_ignore_empty=True,
        extra="ignore",  # other programs have their lines in .env, too
        validate_assignment=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    name: str = Field("Deep Learning Service", min_length=1, max_length=200)
    version: str = Field("latest", min_length=1, max_length=200)
    # Loopback: a model that nobody meant to publish is not published.
    host: str = Field("localhost", min_length=1)
    port: int = Field(8000, ge=0, le=65535)
    socket: str = Field("batching.socket", min_length=1)
    codec: CodecSetting = "auto"
    # 32: where the throughput of most models on one accelerator is near its plateau.
    max_batch_size: int = Field(32, ge=1, le=65536)
    # 10 ms, as kemingy/batching, mosec and most others: the longest wait nobody complains about.
    max_wait: float = Field(0.010, ge=0, allow_inf_nan=False)
    max_wait_policy: WaitPolicy = "adaptive"
    capacity: int = Field(1024, ge=1)
    timeout: Seconds = 5.0
    batch_timeout: Seconds | None = None
    max_body: Size = ByteSize(10 * 1024**2)
    # The length of a frame is a signed 32-bit number in kemingy/batching.
    max_message: Annotated[ByteSize, Field(ge=1024, lt=2**31)] = ByteSize(256 * 1024**2)
    max_held: Size = ByteSize(1024**3)
    max_connections: int = Field(10_000, ge=1)
    api_key: Secret | None = None
    worker_secret: Secret | None = None
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = "info"
    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = "text"

    def __init__(self, **settings: Any) -> None:
        refuse_unknown(settings)
        try:
            _refuse_empty_secrets()
            super().__init__(**settings)
        except ValidationError as exc:
            raise ConfigError(_explain(exc, _in_code_or_environment(settings))) from None
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{_FILE} cannot be read: {exc}") from exc

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment before what the code says; the first source that knows wins."""
        in_files = read_secrets(_said_outside(), _SECRETS)
        return (
            InitSettingsSource(settings_cls, in_files),
            env_settings,
            dotenv_settings,
            init_settings,
        )

    def override(self, **flags: Any) -> "Config":
        """Return a copy in which the flags that are not ``None`` win over everything.

        Raises:
            ConfigError: A value cannot be used.
            RegistrationError: There is no such setting.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        refuse_unknown(given)
        config = self.model_copy()
        for name, value in given.items():
            try:
                setattr(config, name, value)
            except ValidationError as exc:
                raise ConfigError(_explain(exc, _flag)) from None
        return config

    def declared(self) -> dict[str, Any]:
        """Return the fields that were set on purpose, to build another ``Config`` upon."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def unknown_variables() -> dict[str, str]:
    """Return the variables with our prefix that nothing reads: name → the nearest that is read.

    "" is the nearest where none is near. Those that Kubernetes sets are no mistake of anybody.
    """
    known = [PREFIX + name.upper() for name in Config.model_fields] + _files_of_secrets()
    found = {}
    for said in _said_outside():
        for name, value in said.items():
            variable = name.upper()
            if not variable.startswith(PREFIX) or variable in (*known, *_INTERNAL):
                continue
            if _OF_KUBERNETES.fullmatch(variable) or _LINK.match(value or ""):
                continue
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.75)
            found[name] = near[0] if near else ""
    return found


def is_set_outside(field: str) -> bool:
    """Tell whether the environment or its file sets a field, and so for all services alike."""
    variable = PREFIX + field.upper()
    pairs = (pair for said in _said_outside() for pair in said.items())
    return any(name.upper() == variable and value for name, value in pairs)


def refuse_unknown(settings: Mapping[str, Any], *, others: Iterable[str] = ()) -> None:
    """Check that there are such settings.

    Args:
        settings: By name.
        others: What else could have been meant.

    Raises:
        RegistrationError: There is none of a name; the message suggests another one.
    """
    for name in settings:
        if name not in Config.model_fields:
            near = difflib.get_close_matches(name, [*others, *Config.model_fields], n=1)
            known = f"Known: {', '.join(Config.model_fields)}."
            hint = f" Did you mean {near[0]!r}?" if near else " " + known
            raise RegistrationError(f"there is no setting {name!r}.{hint}")


def _said_outside() -> tuple[Mapping[str, str | None], ...]:
    return {**dotenv_values(_FILE)}, os.environ


def _files_of_secrets() -> list[str]:
    return [variable + SUFFIX for variable in _SECRETS.values()]


def _refuse_empty_secrets() -> None:
    """An empty variable counts as unset; but a door that was to be locked must not stand open."""
    variables = {*_SECRETS.values(), *_files_of_secrets()}
    for said in _said_outside():
        for name, value in said.items():
            if value is not None and not value.strip() and name.upper() in variables:
                raise ConfigError(f"{name} is empty: give it a value, or remove it")


def _explain(exc: ValidationError, said_as: Callable[[str, object], str]) -> str:
    """Return one clause for each bad setting: where it was set, its value, what it should be."""
    clauses = []
    for error in exc.errors(include_url=False):
        name, given = str(error["loc"][0]), error["input"]
        said = said_as(name, given)
        value = "" if name in _SECRETS else f"={given!r}"
        clauses.append(f"{said}{value}: {error['msg']}{_hint(said, error['type'], given)}")
    return "; ".join(clauses)


def _flag(name: str, given: object) -> str:
    return "--" + name.replace("_", "-")


def _in_code_or_environment(settings: Mapping[str, Any]) -> Callable[[str, object], str]:
    """Return a function that tells what the user wrote to set a field."""

    def said_as(name: str, given: object) -> str:
        variable = PREFIX + name.upper()
        for known in os.environ:
            if known.upper() == variable and os.environ[known]:
                return known
        is_in_code = str(settings.get(name)).lower() == str(given).lower()
        return name if is_in_code else f"{variable} (in {_FILE})"

    return said_as


def _hint(said: str, kind: str, given: object) -> str:
    if kind.startswith("byte_size"):
        return ", expected a size such as 10MiB"
    if said.upper() == "VENTU_PORT" and str(given).startswith("tcp://"):
        return (
            " (Kubernetes sets this variable for a Service called ventu:"
            " say enableServiceLinks: false in the pod)"
        )
    return ""
