"""What a message may hold: bytes that old programs depend on, and bytes that nobody may send."""

import math
import re
import uuid
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ventu_lite.errors import ProtocolError
from ventu_lite.events import Batch, Bye, Challenge, Results
from ventu_lite.maps import unpack_entries
from ventu_lite.messages import (
    JOB_OVERHEAD,
    MAX_JOBS,
    MESSAGE_OVERHEAD,
    pack_addition,
    pack_batch,
    pack_results,
    read_batch,
    read_challenge,
    read_proof,
    read_results,
    reject_largest,
)

A, B, C = (letter * 36 for letter in "abc")
NONCE = bytes(range(32))


def addition(**entries: Any) -> dict[str, bytes]:
    return {"ventu_lite": msgpack.packb(entries)}


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def unpack(body: bytes) -> dict[str, bytes]:
    return unpack_entries(body, MAX_JOBS)


# Packing


def test_a_batch_on_the_wire() -> None:
    """Ids as str, payloads as bin: the shape that kemingy/batching sends."""
    assert pack_batch(Batch({A: b"hi"})) == b"\x81\xd9\x24" + b"a" * 36 + b"\xc4\x02hi"


def test_plain_results_carry_nothing_of_our_own() -> None:
    assert pack_results(Results({A: b"x", B: b"y"})) == msgpack.packb({A: b"x", B: b"y"})


def test_rejected_jobs_on_the_wire() -> None:
    """``error_ids`` is a str, as from ventu's worker; 422 is what it means by itself."""
    results = Results({A: b"x", B: b"y"}, {B: 422, A: 404}, infer=0.5, bye=True)
    additions = addition(status={A: 404}, infer=0.5, bye=True)
    assert pack_results(results) == msgpack.packb(
        {A: b"x", B: b"y", "error_ids": B + A} | additions
    )


def test_a_bye_on_the_wire() -> None:
    assert pack_addition("bye", True) == msgpack.packb(addition(bye=True))


def test_the_overheads_bound_the_size_of_a_message() -> None:
    for count, size in [(1, 0), (3, 255), (20, 70_000)]:
        payloads = {str(uuid.uuid4()): bytes(size) for _ in range(count)}
        body = pack_batch(Batch(payloads))
        assert len(body) <= MESSAGE_OVERHEAD + count * (JOB_OVERHEAD + size)


@pytest.mark.parametrize("count", [0, 65_537])
def test_a_batch_has_jobs_but_not_too_many(count: int) -> None:
    payloads = {str(n): b"" for n in range(count)}
    text = f"batch of {count} jobs, expected 1 to 65536"
    with pytest.raises(ValueError, match=exactly(text)):
        pack_batch(Batch(payloads))


@pytest.mark.parametrize(
    ("results", "text"),
    [
        (Results({}, bye=True), "results of 0 jobs, expected at least 1"),
        (Results({A: b""}, {B: 422}), "1 rejected jobs without an error body"),
        (Results({A: b""}, {A: 200}), "status 200, expected an integer from 400 to 599"),
        (Results({A: b""}, infer=-1.0), "infer -1.0, expected seconds"),
        (Results({A: b""}, infer=math.nan), "infer nan, expected seconds"),
    ],
)
def test_results_that_the_peer_would_refuse_are_not_packed(results: Results, text: str) -> None:
    with pytest.raises(ValueError, match=exactly(text)):
        pack_results(results)


# Reading

NOT_A_MAP = "message of {} bytes is not a msgpack map of byte strings"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(b"", NOT_A_MAP.format(0), id="empty"),
        pytest.param(b"{}", NOT_A_MAP.format(2), id="JSON"),
        pytest.param(b"\x91\x01", NOT_A_MAP.format(2), id="array"),
        pytest.param(b"\x80", "batch of 0 jobs, expected at least 1", id="no job"),
        pytest.param(b"\x81\xa1a", NOT_A_MAP.format(3), id="cut off"),
        pytest.param(b"\xde\x00", NOT_A_MAP.format(2), id="cut header"),
        pytest.param(b"\x80\x80", NOT_A_MAP.format(2), id="two maps"),
        pytest.param(b"\x81\xa1a\x01", NOT_A_MAP.format(4), id="integer"),
        pytest.param(b"\x81\x01\xa1a", NOT_A_MAP.format(4), id="integer key"),
        pytest.param(b"\x81\xa1a\x80", NOT_A_MAP.format(4), id="map in a map"),
        pytest.param(b"\x82\xa1a\x80\xa1b\x80", NOT_A_MAP.format(7), id="maps in a map"),
        pytest.param(b"\x81\xa1a" * 2000, NOT_A_MAP.format(6000), id="nested deep"),
        pytest.param(b"\x81\xa1a\x91\x01", NOT_A_MAP.format(5), id="array in a map"),
        pytest.param(b"\x81\xa1a\xd4\x01\x01", NOT_A_MAP.format(6), id="extension"),
        pytest.param(b"\x81\xa1a\xc1", NOT_A_MAP.format(4), id="never used byte"),
        pytest.param(
            b"\xdf\xff\xff\xff\xff",
            "map of 4294967295 entries, expected at most 65536",
            id="too many",
        ),
        pytest.param(
            b"\x82\xa1a\xa1x\xa1a\xa1y", "map of 2 entries, 1 of them repeated", id="repeated"
        ),
        pytest.param(
            b"\x81\xa1a\xa1x", "job id that is not 36 printable ASCII characters", id="short id"
        ),
        pytest.param(
            b"\x81\xd9\x24" + b"\xff" * 36 + b"\xa0",
            "job id that is not 36 printable ASCII characters",
            id="not ASCII",
        ),
    ],
)
def test_what_is_not_a_batch_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=exactly(text)):
        read_batch(unpack_entries(body, MAX_JOBS))


def test_large_maps_in_a_map_are_refused_at_the_first() -> None:
    """Each could take a hundred times its bytes in memory."""
    body = b"\xde\xff\xff" + (b"\xa1a\x81\xa1b\xa1c" * 0xFFFF)
    with pytest.raises(ProtocolError, match=exactly(NOT_A_MAP.format(len(body)))) as caught:
        unpack(body)
    assert str(caught.value.__cause__) == "a map in a map"


def test_keys_and_values_may_be_str_or_bin() -> None:
    """The worker of ventu sends JSON as str; both come out as the bytes that they are."""
    body = msgpack.packb({A.encode(): "é", B: b"\xff"})
    assert unpack(body) == {A: "é".encode(), B: b"\xff"}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.binary(), st.binary()))
def test_any_bytes_in_a_str_come_out_as_they_are(entries: dict[bytes, bytes]) -> None:
    """Old msgpack knew one kind of string, for text and bytes alike."""
    body = msgpack.packb(entries, use_bin_type=False)
    assert unpack(body) == {
        key.decode("utf-8", "surrogateescape"): value for key, value in entries.items()
    }


def test_one_key_as_str_and_as_bin_is_repeated() -> None:
    body = msgpack.packb({A: b"x", A.encode(): b"y"})
    with pytest.raises(ProtocolError, match="map of 2 entries, 1 of them repeated"):
        unpack(body)


@pytest.mark.parametrize("count", [15, 16, 65_535, 65_536])
def test_the_header_of_a_map_grows_with_it(count: int) -> None:
    batch = Batch({str(uuid.UUID(int=n)): b"" for n in range(count)})
    assert read_batch(unpack(pack_batch(batch))) == batch


BOTH = {A: b"x", B: b"y"}


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        pytest.param(
            BOTH | {C: b"", "d": b"", "e": b""}, "map of 5 entries, expected at most 4", id="many"
        ),
        pytest.param(
            BOTH | {"error_ids": A[1:]},
            "error_ids of 35 bytes, expected a multiple of 36",
            id="cut error_ids",
        ),
        pytest.param(
            BOTH | {"error_ids": A + A}, "error_ids of 2 jobs, only 1 different", id="twice"
        ),
        pytest.param(
            BOTH | {"error_ids": C}, "error_ids of a job that has no error body", id="unknown error"
        ),
        pytest.param(
            {A: b"", "error_ids": B}, "error_ids of a job that has no error body", id="no body"
        ),
        pytest.param(
            {"error_ids": A} | addition(bye=True),
            "error_ids of a job that has no error body",
            id="bye with errors only",
        ),
        pytest.param(
            BOTH | addition(status={A: 404}),
            "status of a job that is not in error_ids",
            id="status without error",
        ),
        *(
            pytest.param(
                BOTH | {"error_ids": A} | addition(status=status),
                "status is not a map of integers from 400 to 599",
                id=f"status {status}",
            )
            for status in ({A: 399}, {A: 600}, {A: "404"}, {A: 404.0}, {A: None}, 404, None)
        ),
        *(
            pytest.param(
                BOTH | addition(infer=infer),
                "infer is not a number of seconds",
                id=f"infer {infer!r}",
            )
            for infer in (-0.1, float("nan"), float("inf"), True, b"1")
        ),
        pytest.param(BOTH | addition(bye=1), "bye of type int, expected true or false", id="bye 1"),
        pytest.param(
            BOTH | {"ventu_lite": b"\x91\x01"}, "ventu_lite entry is not a map", id="array"
        ),
        pytest.param(
            BOTH | {"ventu_lite": b"\x81"}, "ventu_lite entry is not msgpack", id="cut addition"
        ),
        pytest.param(
            BOTH | {"ventu_lite": b"\x82\xa1a\x01\xa1a\x02"},
            "ventu_lite entry with a repeated key",
            id="repeated addition",
        ),
        pytest.param(
            BOTH | {"ventu_lite": bytes(2000)},
            "ventu_lite entry of 2000 bytes, expected at most 1152",
            id="huge addition",
        ),
    ],
)
def test_bad_results_are_refused(entries: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=exactly(text)):
        read_results(unpack_entries(msgpack.packb(entries), 4))


def test_results_come_out_as_they_went_in() -> None:
    results = Results(BOTH, {B: 500, A: 422}, infer=0.5, bye=True)
    assert read_results(unpack(pack_results(results))) == results


def test_a_bye_alone_answers_nothing() -> None:
    assert read_results(unpack(pack_addition("bye", True))) == Bye()


def test_additions_of_the_future_are_ignored() -> None:
    data = msgpack.packb(BOTH | addition(infer=1, new=[1, {"a": None}]))
    assert read_results(unpack(data)) == Results(BOTH, infer=1.0)


def test_challenge_and_proof_come_out_as_they_went_in() -> None:
    assert read_challenge(unpack(pack_addition("challenge", NONCE))) == Challenge(NONCE)
    assert read_proof(unpack(pack_addition("proof", b"mac"))) == b"mac"


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (addition(challenge=b"short"), "challenge of 5 bytes, expected 32"),
        (addition(challenge="x" * 32), "expected a challenge and nothing else"),
        (addition(other=b""), "expected a challenge and nothing else"),
        (BOTH | addition(challenge=NONCE), "expected a challenge and nothing else"),
    ],
)
def test_a_bad_challenge_is_refused(entries: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=exactly(text)):
        read_challenge(unpack(msgpack.packb(entries)))


@pytest.mark.parametrize("entries", [{}, {A: b""}, addition(proof=1), addition(bye=True)])
def test_a_bad_proof_is_refused(entries: Any) -> None:
    with pytest.raises(ProtocolError, match=exactly("expected a proof and nothing else")):
        read_proof(unpack(msgpack.packb(entries)))


# Results that do not fit

LARGE = Results({A: bytes(600), B: bytes(900), C: b"c"}, {C: 404}, infer=1.0)


def test_only_the_largest_results_are_rejected() -> None:
    fitting = reject_largest(LARGE, 2500, lambda job: f"no {job[0]}".encode())
    assert fitting == Results({A: bytes(600), B: b"no b", C: b"c"}, {C: 404, B: 500}, infer=1.0)
    assert len(pack_results(fitting)) <= 2500


def test_results_that_fit_are_left_alone() -> None:
    assert reject_largest(LARGE, 10_000, lambda job: b"") == LARGE


def test_error_bodies_that_do_not_fit_are_left_out_where_it_helps() -> None:
    """An answer without a body is better than none for the whole batch."""
    fitting = reject_largest(LARGE, 1800, lambda job: bytes(500))
    assert fitting.payloads == {A: b"", B: b"", C: b"c"}
    assert fitting.rejected == {A: 500, B: 500, C: 404}


def test_an_error_body_never_takes_the_place_of_something_smaller() -> None:
    fitting = reject_largest(LARGE, 2000, lambda job: bytes(300))
    assert fitting.payloads == {A: bytes(300), B: bytes(300), C: b"c"}
    assert fitting.rejected == {A: 500, B: 500, C: 404}
