"""Secrets that stand in files of their own: those of Docker, Kubernetes and systemd.

``VENTU_API_KEY_FILE=/run/secrets/api_key`` says that the file holds what ``VENTU_API_KEY`` would.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from .errors import ConfigError

SUFFIX: Final = "_FILE"
# More is a certificate, a disk image, or another mistake.
MAX_SIZE: Final = 4096
# A header carries neither the white space around a key nor more than one line; what cannot be seen
# came along when somebody copied it.
NOT_ONE_LINE: Final = "holds more than one line, or a character that cannot be seen"


def read_secrets(
    said: Iterable[Mapping[str, str | None]], variables: Mapping[str, str]
) -> dict[str, str]:
    """Return the secrets that are in files, by setting.

    Args:
        said: Variables and their values, in any case of letters; the last source that knows wins.
        variables: The settings that are secrets, and the variable of each.

    Raises:
        ConfigError: A secret is said in both ways, or its file cannot be used.
    """
    known = {name.upper(): (name, value) for one in said for name, value in one.items() if value}
    found = {}
    for setting, variable in variables.items():
        if variable + SUFFIX not in known:
            continue
        name, path = known[variable + SUFFIX]
        if variable in known:
            raise ConfigError(f"{known[variable][0]} and {name} are both set: remove one of them")
        found[setting] = _read(name, Path(path or ""))
    return found


def _read(name: str, path: Path) -> str:
    """Return what a file holds, without the mark of an editor before it and white space around."""
    said = f"{name}={str(path)!r}"
    try:
        if path.exists() and not path.is_file():  # a pipe would be empty for the next process
            raise ConfigError(f"{said} is no regular file: name a file that holds the secret")
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
        if len(content) > MAX_SIZE:
            raise ConfigError(f"{said} holds more than {MAX_SIZE} bytes: is it the right file?")
        secret = content.decode("utf-8-sig").strip()
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{said} does not exist: mount the secret there, or name another file"
        ) from exc
    except UnicodeDecodeError:  # which would show a part of it
        raise ConfigError(f"{said} is no text in UTF-8: is it the right file?") from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(
            f"{said} cannot be read: {reason}; let user {os.geteuid()} read it"
        ) from exc
    if not secret:
        raise ConfigError(f"{said} is empty: write the secret into it, or remove the variable")
    if not secret.isprintable():
        raise ConfigError(f"{said} {NOT_ONE_LINE}: is it the right file?")
    return secret
