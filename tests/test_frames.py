"""Frames survive whatever the network does to them, and no peer can make us hold much."""

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import pieces

from ventu_lite.errors import ProtocolError
from ventu_lite.frames import FrameDecoder, encode_frame


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


FRAMES = [b"", b"a", b"", b"bc" * 300, b"d"]
STREAM = b"".join(map(encode_frame, FRAMES))


@pytest.mark.parametrize("piece_size", [1, 2, 5, len(STREAM)])
def test_frames_survive_any_chunking(piece_size: int) -> None:
    """The decoder must not care where the network cut the stream."""
    decoder = FrameDecoder(1000)
    assert [b for piece in pieces(STREAM, piece_size) for b in decoder.feed(piece)] == FRAMES
    decoder.feed_eof()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=40)), st.randoms(use_true_random=False))
def test_frames_survive_random_cuts(bodies: list[bytes], rng: random.Random) -> None:
    decoder = FrameDecoder(40)
    stream = b"".join(map(encode_frame, bodies))
    decoded = []
    while stream:
        size = rng.randint(1, len(stream))
        decoded += decoder.feed(stream[:size])
        stream = stream[size:]
    assert decoded == bodies
    assert not decoder.is_partial


def test_a_frame_of_the_largest_size_passes() -> None:
    assert FrameDecoder(8).feed(encode_frame(b"12345678")) == [b"12345678"]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        pytest.param("00000009", "frame of 9 bytes, expected at most 8", id="too large"),
        pytest.param("7fffffff", "frame of 2147483647 bytes, expected at most 8", id="largest"),
        pytest.param("ffffffff", "frame of -1 bytes, expected at least 0", id="negative"),
    ],
)
def test_a_bad_size_is_refused_by_its_header(header: str, text: str) -> None:
    """No byte of the body has come yet, so none is ever held."""
    with pytest.raises(ProtocolError, match=exactly(text)):
        FrameDecoder(8).feed(bytes.fromhex(header))


@pytest.mark.parametrize(
    ("first", "spoken"),
    [
        (b"HTTP/1.1 400 Bad Request", "HTTP"),
        (b"GET / HTTP/1.1", "HTTP"),
        (b"POST /inference HTTP/1.1", "HTTP"),
        (b"PRI * HTTP/2.0", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01", "TLS"),
        (b"\x15\x03\x03\x00\x02\x02", "TLS"),
    ],
)
def test_who_has_come_to_the_wrong_port_is_recognised(first: bytes, spoken: str) -> None:
    text = f"the peer speaks {spoken}, is this the right port?"
    with pytest.raises(ProtocolError, match=exactly(text)):
        FrameDecoder(1 << 28).feed(first)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_the_stream_must_not_end_inside_a_frame(size: int) -> None:
    decoder = FrameDecoder(8)
    decoder.feed(encode_frame(b"abc")[:size])
    assert decoder.is_partial
    with pytest.raises(
        ProtocolError, match=exactly(f"stream ends inside a frame, after {size} bytes")
    ):
        decoder.feed_eof()
