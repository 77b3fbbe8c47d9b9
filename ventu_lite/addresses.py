"""Where a batching service and its workers meet: a Unix socket or a TCP address."""

from dataclasses import dataclass
from typing import Final, Literal

from .errors import ConfigError

# sun_path of Linux, less the final NUL; other systems have 4 bytes less.
MAX_PATH: Final = 107


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A path in the file system.

    Raises:
        ConfigError: The path is longer than a socket's name can be.
    """

    path: str

    protocol: Literal["unix"] = "unix"

    def __post_init__(self) -> None:
        size = len(self.path.encode())
        if size > MAX_PATH:
            raise ConfigError(
                f"the socket path has {size} bytes, a Unix socket allows {MAX_PATH}:"
                " choose a shorter one, such as /tmp/batching.socket"
            )

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A host, by name or number, and a port.

    Raises:
        ConfigError: There is no such port.
    """

    host: str
    port: int

    protocol: Literal["tcp"] = "tcp"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} does not exist, expected 0 to 65535")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "TCPAddress":
        """Return the address in ``HOST:PORT``, ``[::1]:PORT`` or ``:PORT``, which is loopback.

        Raises:
            ConfigError: It is none of these.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit():
            raise ConfigError(f"{text!r} is no HOST:PORT, such as 127.0.0.1:8765")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ConfigError(f"{text!r} has several colons; put the host in brackets, [::1]:8765")
        return cls(host.strip("[]") or "127.0.0.1", int(port))


Address = UnixAddress | TCPAddress
