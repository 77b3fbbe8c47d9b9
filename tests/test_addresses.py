"""Where a worker connects to."""

import os

import pytest

from ventu_lite.addresses import MAX_PATH, TCPAddress, UnixAddress
from ventu_lite.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        pytest.param("127.0.0.1:8765", "127.0.0.1", 8765, "tcp:127.0.0.1:8765", id="IPv4"),
        pytest.param("models.example:1", "models.example", 1, "tcp:models.example:1", id="name"),
        pytest.param("[::1]:8765", "::1", 8765, "tcp:[::1]:8765", id="IPv6"),
        pytest.param("[fe80::1%eth0]:80", "fe80::1%eth0", 80, "tcp:[fe80::1%eth0]:80", id="scope"),
        pytest.param(":8765", "127.0.0.1", 8765, "tcp:127.0.0.1:8765", id="no host"),
        pytest.param("modèle.example:1", "modèle.example", 1, "tcp:modèle.example:1", id="IDN"),
        pytest.param("h:0", "h", 0, "tcp:h:0", id="the system chooses"),
        pytest.param("h:65535", "h", 65535, "tcp:h:65535", id="largest"),
    ],
)
def test_a_tcp_address_is_read(text: str, host: str, port: int, shown: str) -> None:
    address = TCPAddress.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, shown)
    assert address.protocol == "tcp"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "8765",
        "localhost:",
        "localhost:http",
        "localhost:-1",
        "localhost: 80",
        " localhost:80",
        "localhost:80\n",
        "localhost:٨٠",
        "localhost:123456",
        "localhost:" + "9" * 5000,
        "::1:8765",
        "[::1:8765",
        "::1]:8765",
        "[]:8765",
        "http://localhost:8765",
        "/run/batching.socket",
    ],
)
def test_what_is_no_tcp_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no HOST:PORT, such as 127\.0\.0\.1:8765"):
        TCPAddress.parse(text)


def test_a_port_that_cannot_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="port 65536 does not exist, expected 0 to 65535"):
        TCPAddress.parse("localhost:65536")


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "." * 3])
def test_a_name_that_no_resolver_takes_is_refused(host: str) -> None:
    """Else the worker would load its model, then end with a ``UnicodeError``."""
    with pytest.raises(ConfigError, match="is no name of a host"):
        TCPAddress.parse(f"{host}:80")


def test_a_unix_address_is_shown_as_one() -> None:
    address = UnixAddress("batching.socket")
    assert (str(address), address.protocol) == (f"unix:{os.getcwd()}/batching.socket", "unix")
    assert str(UnixAddress("/x/s")) == "unix:/x/s"


def test_the_longest_path_is_that_of_the_system() -> None:
    UnixAddress("x" * MAX_PATH)
    with pytest.raises(ConfigError, match=r"has 108 bytes, a Unix socket allows 107: choose a"):
        UnixAddress("x" * 108)


def test_the_length_of_a_path_is_that_of_its_bytes() -> None:
    with pytest.raises(ConfigError, match="has 120 bytes"):
        UnixAddress("é" * 60)


def test_a_path_that_is_no_text_is_a_path_all_the_same() -> None:
    """The command line turns bytes that are no UTF-8 into surrogates."""
    assert UnixAddress("\udcff.socket").path == "\udcff.socket"


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="the socket path is empty, expected one such as"):
        UnixAddress("")
