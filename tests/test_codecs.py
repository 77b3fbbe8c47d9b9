"""Payloads, and values that JSON or msgpack do not know by themselves."""

import datetime
import decimal
import enum
import json
import tracemalloc
import uuid
from collections.abc import Iterable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ventu_lite.codecs import deep_plain, pack, plain, sniff, unpack, unpack_own
from ventu_lite.config import Codec
from ventu_lite.errors import MalformedPayload, PayloadTooLarge

JSON_MARKS = (",", ":")


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


# ------------------------------------------------------------------- telling them apart


@pytest.mark.parametrize(
    ("payload", "codec"),
    [
        pytest.param(b'{"a": 1}', "json", id="object"),
        pytest.param(b"[1]", "json", id="array"),
        pytest.param(b' \n"x"', "json", id="space first"),
        pytest.param(b"-1.5", "json", id="number"),
        pytest.param(b"true", "json", id="word"),
        pytest.param(b"", "json", id="empty, whose users read JSON errors"),
        pytest.param(b"my cat", "json", id="text without quotes, the same"),
        pytest.param(b"\x7fx", "json", id="a number with a tail"),
        pytest.param(b"\x80x", "msgpack", id="a map with a tail"),
        pytest.param(b"m", "msgpack", id="a number of one byte"),
        pytest.param(b"\x81\xa1a\x01", "msgpack", id="map"),
        pytest.param(b"\x91\x01", "msgpack", id="msgpack array"),
        pytest.param(b"\xdf\0\0\0\0", "msgpack", id="large map"),
        pytest.param(b"\xff\xfe", "msgpack", id="nonsense"),
    ],
)
def test_the_first_byte_tells_the_codec(payload: bytes, codec: Codec) -> None:
    assert sniff(payload) == codec


@given(st.dictionaries(st.text(), st.integers(-(2**63), 2**63)) | st.lists(st.floats(), min_size=1))
def test_every_map_and_array_of_msgpack_is_told_from_json(value: Any) -> None:
    assert sniff(msgpack.packb(value)) == "msgpack"


# -------------------------------------------------------------------- reading msgpack


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"", "incomplete", id="empty"),
        pytest.param(b"\xa5abc", "incomplete", id="truncated string"),
        pytest.param(b"\x93\x01", "it is cut off", id="truncated array"),
        pytest.param(b"\x01\x00", "more bytes come after its end", id="a tail"),
        pytest.param(b"\xc1", "a byte that means nothing", id="the byte that means nothing"),
        pytest.param(b"\x91" * 1100 + b"\x01", "nested too deeply", id="too deep"),
        pytest.param(b"\xa1\xff", "utf-8", id="bad UTF-8"),
        pytest.param(b"\x81\x01\x01", "int is not allowed for map key", id="integer key"),
        pytest.param(b"\x81\x91\x01\x01", "list is not allowed for map key", id="list as key"),
        pytest.param(
            b"\xdd\xff\xff\xff\xff", "declares a length that does not fit", id="a length of 4e9"
        ),
        pytest.param(
            msgpack.packb(msgpack.Timestamp(2**50)), "", id="a date in the year 35 million"
        ),
        pytest.param(b"\xc7\x03\xff\x00\x00\x00", "", id="a Timestamp of three bytes"),
        pytest.param(b'{"text": "x"}', "more bytes", id="JSON"),
    ],
)
def test_bad_msgpack_is_malformed(payload: bytes, reason: str) -> None:
    with pytest.raises(MalformedPayload, match=f"^the body is not valid msgpack: .*{reason}"):
        unpack(payload)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_malformed(payload: bytes) -> None:
    try:
        unpack(payload)
    except MalformedPayload as exc:
        assert len(str(exc)) < 250


def test_a_timestamp_becomes_an_aware_datetime() -> None:
    moment = datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc)
    assert unpack(msgpack.packb(moment, datetime=True)) == moment


def structure(value: Any) -> int:
    """Return how many bytes JSON needs for lists and maps, whatever they hold."""
    if isinstance(value, list):
        return len(json.dumps([0] * len(value), separators=JSON_MARKS)) - len(value) + inside(value)
    if isinstance(value, dict):
        names = dict.fromkeys(map(str, range(len(value))))
        marks = json.dumps(names, separators=JSON_MARKS).replace("null", "")
        return len(marks) - sum(map(len, names)) + inside(value.values())
    return 0


def inside(values: Iterable[Any]) -> int:
    return sum(map(structure, values))


VALUES = st.recursive(
    st.none() | st.text(max_size=2),
    lambda values: st.lists(values) | st.dictionaries(st.text(max_size=5), values),
)


@given(VALUES)
def test_counted_is_what_json_needs_for_lists_and_maps(value: Any) -> None:
    payload = msgpack.packb(value)
    largest = max(structure(value), len(payload))
    assert unpack(payload, max_json=largest) == value
    if structure(value) > len(payload):
        with pytest.raises(PayloadTooLarge, match=f"than fit into {largest - 1} bytes of JSON"):
            unpack(payload, max_json=largest - 1)


@pytest.mark.parametrize(
    "element",
    [
        pytest.param(b"\x90", id="lists"),
        pytest.param(b"\x80", id="maps"),
        pytest.param(b"\x91\x90", id="lists in lists"),
        pytest.param(b"\x81\xa0\xc0", id="maps of one"),
        pytest.param(b"\x91" * 500 + b"\x90", id="deep lists"),
    ],
)
def test_a_body_of_many_containers_takes_no_more_than_one_of_json_may(element: bytes) -> None:
    """The largest JSON body takes 40 times its size; this one would take 70 times."""
    limit = 1 << 17
    count = limit // len(element) - 5
    payload = b"\xdd" + count.to_bytes(4, "big") + element * count
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match=f"more lists and maps than fit into {limit}"):
            unpack(payload, max_json=limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 56 * limit  # on Python 3.10, where a map of one takes a quarter more


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([0] * (1 << 17), id="a list of small numbers"),
        pytest.param([""] * (1 << 17), id="a list of empty strings"),
        pytest.param([0.5] * (1 << 14), id="a list of floats"),
        pytest.param([[0.5, 0.5, 0.5]] * (1 << 13), id="rows of floats"),
        pytest.param([{"a": 1, "b": 2}] * (1 << 13), id="records"),
        pytest.param([[]] * (1 << 17), id="empty lists"),
    ],
)
def test_what_fits_into_a_body_of_json_is_read(value: Any) -> None:
    largest = len(json.dumps(value, separators=JSON_MARKS))
    assert unpack(msgpack.packb(value), max_json=largest) == value


def test_a_small_limit_does_not_refuse_a_body_that_was_let_through() -> None:
    """The front has a limit of its own, which may be larger than that of its worker."""
    value = [[0.5, 0.5]] * 1000
    assert unpack(msgpack.packb(value), max_json=1) == value


def test_a_payload_of_our_own_has_no_limit() -> None:
    assert unpack(b"\xdc\xff\xff" + b"\x90" * 0xFFFF) == [[]] * 0xFFFF


def test_a_payload_of_our_own_may_have_numbers_as_keys() -> None:
    assert unpack_own(msgpack.packb({1: {0.5: "a"}})) == {1: {0.5: "a"}}
    with pytest.raises(MalformedPayload, match=r"^the body is not valid msgpack: .*list"):
        unpack_own(b"\x81\x91\x01\x01")


# ------------------------------------------------------------- writing what they lack


@pytest.mark.parametrize(
    ("value", "simple"),
    [
        pytest.param(b"\xff", b"\xff", id="bytes"),
        pytest.param(datetime.datetime(2026, 1, 2, 3), "2026-01-02T03:00:00", id="datetime"),
        pytest.param(datetime.date(2026, 1, 2), "2026-01-02", id="date"),
        pytest.param(datetime.timedelta(seconds=3), "PT3S", id="timedelta"),
        pytest.param(decimal.Decimal("1.50"), "1.50", id="Decimal"),
        pytest.param(uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001", id="UUID"),
        pytest.param(Color.RED, "red", id="Enum"),
        pytest.param(Level.HIGH, 3, id="IntEnum"),
        pytest.param({1}, [1], id="set"),
        pytest.param(1 + 2j, "1+2j", id="complex"),
        pytest.param({Color.RED: 1}, {"red": 1}, id="Enum as key"),
        pytest.param({uuid.UUID(int=1): 1}, {str(uuid.UUID(int=1)): 1}, id="UUID as key"),
        pytest.param(float("inf"), float("inf"), id="infinity"),
        pytest.param(np.float32(0.5), 0.5, id="float32"),
        pytest.param(np.float64(0.5), 0.5, id="float64"),
        pytest.param(np.int64(3), 3, id="int64"),
        pytest.param(np.bool_(True), True, id="bool_"),
        pytest.param(np.str_("a"), "a", id="str_"),
        pytest.param(np.array(3), 3, id="0-d array"),
        pytest.param(np.ones((2, 2)), [[1.0, 1.0], [1.0, 1.0]], id="2-d array"),
        pytest.param({"a": [np.arange(2)]}, {"a": [[0, 1]]}, id="nested array"),
        pytest.param(np.datetime64("2026-01-02"), "2026-01-02", id="datetime64"),
        pytest.param(
            np.array(["2026-01-02"], "datetime64[D]"), ["2026-01-02"], id="array of dates"
        ),
    ],
)
def test_msgpack_says_it_in_simple_words(value: Any, simple: Any) -> None:
    assert msgpack.unpackb(pack(value)) == simple


@pytest.mark.parametrize(
    ("value", "error"),
    [
        pytest.param(2**64, OverflowError, id="65 bits"),
        pytest.param("\ud800", ValueError, id="half a surrogate pair"),
        pytest.param(object(), TypeError, id="a type nobody knows"),
        pytest.param({"a": object()}, TypeError, id="inside a map"),
        pytest.param({object()}, TypeError, id="inside a set"),
    ],
)
def test_msgpack_refuses_what_it_cannot_say(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        pack(value)


class Holder:
    """Looks like a torch tensor from here."""

    def tolist(self) -> list[float]:
        return [0.5]


@pytest.mark.parametrize(
    ("value", "simple"),
    [
        pytest.param(Holder(), [0.5], id="top"),
        pytest.param({Holder(), 1}, None, id="in a set"),
        pytest.param(np.float32(0.5), 0.5, id="scalar"),
    ],
)
def test_plain_knows_what_has_a_tolist(value: Any, simple: Any) -> None:
    written = plain(value)
    assert written == simple if simple is not None else [0.5] in written


def test_deep_plain_looks_into_containers_and_leaves_the_rest_alone() -> None:
    rest = object()
    value = {np.str_("k"): (np.float32(0.5), [np.arange(2), rest]), "t": Holder()}
    assert deep_plain(value) == {"k": [0.5, [[0, 1], rest]], "t": [0.5]}


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_torch_tensors_are_lists(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(shape, requires_grad=True)
    assert msgpack.unpackb(pack({"a": tensor})) == {"a": np.ones(shape).tolist()}
