"""Where a batching service and its workers meet: a Unix socket or a TCP address."""

import ipaddress
import os
import re
import shlex
import sys
from dataclasses import dataclass
from typing import Final, Literal

from .errors import ConfigError

# The size of sun_path, less the final NUL.
MAX_PATH: Final = 107 if sys.platform.startswith("linux") else 103

_HOST_PORT: Final = re.compile(r"(?:\[([0-9A-Za-z:.%]+)\]|([^\s:/\[\]]*)):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A path in the file system.

    Raises:
        ConfigError: The path is empty, or longer than a socket's name can be.
    """

    path: str

    protocol: Literal["unix"] = "unix"

    def __post_init__(self) -> None:
        size = len(os.fsencode(self.path))
        if size == 0:
            raise ConfigError("the socket path is empty, expected one such as batching.socket")
        if size > MAX_PATH:
            raise ConfigError(
                f"the socket path has {size} bytes, a Unix socket allows {MAX_PATH}:"
                " choose a shorter one, such as /tmp/batching.socket"
            )

    @property
    def option(self) -> str:
        """What to write for it on a command line, from anywhere."""
        return f"--unix {shlex.quote(os.path.abspath(self.path))}"

    def __str__(self) -> str:
        """Return where that is, seen from anywhere."""
        return f"unix:{os.path.abspath(self.path)}"


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A host, by name or number, and a port.

    Raises:
        ConfigError: There cannot be such a host, or there is no such port.
    """

    host: str
    port: int

    protocol: Literal["tcp"] = "tcp"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} does not exist, expected 0 to 65535")

        try:
            self.host.encode("idna")
        except UnicodeError as exc:
            raise ConfigError(f"{self.host!r} is no name of a host: {exc}") from None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can get there."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"

    @property
    def is_everywhere(self) -> bool:
        """Whether it stands for all addresses of this machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:  # a name, or the short form of 0.0.0.0
            return self.host == "0"

    @property
    def authority(self) -> str:
        """``HOST:PORT``, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def option(self) -> str:
        """What to write on the command line of one who connects."""
        place = f"HOST:{self.port}" if self.is_everywhere else self.authority
        return f"--tcp {shlex.quote(place)}"

    def __str__(self) -> str:
        return f"tcp:{self.authority}"

    @classmethod
    def parse(cls, text: str) -> "TCPAddress":
        """Return the address in ``HOST:PORT``, ``[::1]:PORT`` or ``:PORT``, which is loopback.

        Raises:
            ConfigError: It is none of these.
        """
        match = _HOST_PORT.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is no HOST:PORT, such as 127.0.0.1:8765 or [::1]:8765")
        return cls(match[1] or match[2] or "127.0.0.1", int(match[3]))


Address = UnixAddress | TCPAddress
