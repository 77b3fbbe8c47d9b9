"""The wire protocol, without a socket."""

import hashlib
import hmac
import random
import re
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import Capture, pieces

from ventu_lite.errors import ProtocolError
from ventu_lite.frames import encode_frame
from ventu_lite.protocol import (
    Batch,
    BatchingConnection,
    Bye,
    Challenge,
    Closed,
    Event,
    Hello,
    MessageTooLarge,
    Ready,
    Results,
    State,
    WorkerConnection,
)

LIMIT = 1 << 20
NONCE = bytes(range(32))
A, B, C = (letter * 36 for letter in "abc")
BATCH = Batch({A: b"1", B: b"2"})
RESULTS = Results({A: b"x", B: b"y"})


class ConnectionPair:
    """Both ends; what one sends, the other receives in pieces of any size."""

    def __init__(self, secret: str | None = None, piece_size: int | None = None) -> None:
        self.worker = WorkerConnection(max_message=LIMIT, secret=secret)
        self.batching = BatchingConnection(max_message=LIMIT, secret=secret, challenge=NONCE)
        self.piece_size = piece_size

    def to_worker(self, data: bytes) -> list[Event]:
        return receive(self.worker, data, self.piece_size)

    def to_batching(self, data: bytes) -> list[Event]:
        return receive(self.batching, data, self.piece_size)


Connection = WorkerConnection | BatchingConnection

# A busy machine is no fault of the code.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def receive(connection: Connection, data: bytes, piece_size: int | None = None) -> list[Event]:
    return [e for piece in pieces(data, piece_size) for e in connection.receive_data(piece)]


def idle_pair() -> ConnectionPair:
    pair = ConnectionPair()
    assert pair.to_batching(pair.worker.send_ready()) == [Ready()]
    return pair


def busy_pair() -> ConnectionPair:
    pair = idle_pair()
    assert pair.to_worker(pair.batching.send_batch(BATCH)) == [BATCH]
    return pair


def message(entries: Any) -> bytes:
    return encode_frame(msgpack.packb(entries))


def addition(**entries: Any) -> dict[str, bytes]:
    return {"ventu_lite": msgpack.packb(entries)}


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


# Conversations that were really held


@pytest.mark.parametrize("piece_size", [None, 1, 7])
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_the_worker_understands_kemingy_batching(name: str, piece_size: int | None) -> None:
    capture = Capture.load(name)
    worker = WorkerConnection(max_message=LIMIT)
    assert worker.send_ready() == encode_frame(capture.ready)
    for body in capture.batches:
        (batch,) = receive(worker, encode_frame(body), piece_size)
        assert batch == Batch(msgpack.unpackb(body))
        worker.send_results(Results(batch.payloads))


@pytest.mark.parametrize("piece_size", [None, 1, 7])
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_the_batching_side_understands_ventus_worker(name: str, piece_size: int | None) -> None:
    capture = Capture.load(name)
    batching = BatchingConnection(max_message=LIMIT)
    assert receive(batching, encode_frame(capture.ready)) == [Ready()]
    statuses = []
    for batch, body in zip(capture.batches, capture.results, strict=True):
        batching.send_batch(Batch(msgpack.unpackb(batch)))
        (results,) = receive(batching, encode_frame(body), piece_size)
        assert isinstance(results, Results)
        assert not results.bye and results.infer is None
        statuses += [results.rejected.get(id, 200) for id in results.payloads]
        assert all(type(payload) is bytes for payload in results.payloads.values())
    assert sorted(statuses) == [200, 200, 200, 422, 422]


@pytest.mark.parametrize("name", ["json", "msgpack"])
@unhurried
@given(rng=st.randoms(use_true_random=False))
def test_captures_survive_random_cuts(name: str, rng: random.Random) -> None:
    capture = Capture.load(name)
    batching = BatchingConnection(max_message=LIMIT)
    batching.receive_data(encode_frame(capture.ready))
    batching.send_batch(Batch(msgpack.unpackb(capture.batches[-1])))
    stream = encode_frame(capture.results[-1])
    cuts = sorted(rng.choices(range(1, len(stream)), k=4))
    ends = [0, *cuts, len(stream)]
    parts = [stream[a:b] for a, b in zip(ends, ends[1:], strict=False) if a < b]
    events = [event for part in parts for event in batching.receive_data(part)]
    assert [type(event) for event in events] == [Results]


# Round trips

ids = st.uuids().map(str)
statuses = st.integers(400, 599)


@unhurried
@given(st.dictionaries(ids, st.binary(max_size=300), min_size=1), st.integers(1, 50))
def test_batches_round_trip(payloads: dict[str, bytes], piece_size: int) -> None:
    pair = idle_pair()
    pair.piece_size = piece_size
    assert pair.to_worker(pair.batching.send_batch(Batch(payloads))) == [Batch(payloads)]


@unhurried
@given(
    st.dictionaries(ids, st.tuples(st.binary(), st.none() | statuses), min_size=1),
    st.none() | st.floats(0, 1e6),
    st.booleans(),
)
def test_results_round_trip(
    jobs: dict[str, tuple[bytes, int | None]], infer: float | None, bye: bool
) -> None:
    pair = idle_pair()
    pair.to_worker(pair.batching.send_batch(Batch(dict.fromkeys(jobs, b""))))
    results = Results(
        {id: body for id, (body, _) in jobs.items()},
        {id: status for id, (_, status) in jobs.items() if status is not None},
        infer,
        bye,
    )
    assert pair.to_batching(pair.worker.send_results(results)) == [results]


@pytest.mark.parametrize("role", ["worker", "batching"])
@pytest.mark.parametrize("secret", [None, "s"])
@unhurried
@given(data=st.binary(max_size=200), framed=st.booleans())
def test_garbage_is_an_event_or_a_protocol_error(
    role: str, secret: str | None, data: bytes, framed: bool
) -> None:
    """Whatever a peer sends, no other exception may reach the shell."""
    for pair in (idle_pair(), busy_pair(), ConnectionPair(secret)):
        try:
            getattr(pair, role).receive_data(encode_frame(data) if framed else data)
        except ProtocolError:
            assert getattr(pair, role).state is State.FAILED


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=8,
)
keys = st.sampled_from([A, B, C, "error_ids", "ventu_lite"])


@unhurried
@given(st.dictionaries(keys, values), st.dictionaries(st.sampled_from(["status", "bye"]), values))
def test_any_map_is_an_event_or_a_protocol_error(entries: Any, additions: Any) -> None:
    for data in (message(entries), message(entries | addition(**additions))):
        for connection in (busy_pair().batching, idle_pair().worker):
            try:
                connection.receive_data(data)
            except ProtocolError:
                assert connection.state is State.FAILED


# The order of messages


def test_results_are_the_request_for_the_next_batch() -> None:
    pair = busy_pair()
    assert pair.to_batching(pair.worker.send_results(RESULTS)) == [RESULTS]
    assert pair.to_worker(pair.batching.send_batch(BATCH)) == [BATCH]


def test_a_bye_that_crossed_does_not_answer_the_batch() -> None:
    pair = idle_pair()
    bye, batch = pair.worker.send_bye(), pair.batching.send_batch(BATCH)
    assert pair.to_batching(bye) == [Bye()]
    assert pair.to_worker(batch) == [BATCH]
    last = Results(RESULTS.payloads, bye=True)
    assert pair.to_batching(pair.worker.send_results(last)) == [last]
    assert pair.worker.state is pair.batching.state is State.LEFT
    assert pair.batching.receive_data(b"") == [Closed()]


@pytest.mark.parametrize("bye", [True, False])
def test_no_batch_after_bye(bye: bool) -> None:
    pair = busy_pair()
    pair.to_batching(pair.worker.send_results(RESULTS))
    pair.to_batching(pair.worker.send_bye())
    with pytest.raises(
        RuntimeError, match=exactly("batching service cannot send a batch in state 'left'")
    ):
        pair.batching.send_batch(BATCH)


def test_no_batch_after_last_results() -> None:
    pair = busy_pair()
    pair.to_batching(pair.worker.send_results(Results(RESULTS.payloads, bye=True)))
    assert repr(pair.batching) == "<BatchingConnection left, 0 jobs out>"
    with pytest.raises(RuntimeError, match="cannot send a batch in state 'left'"):
        pair.batching.send_batch(BATCH)


@pytest.mark.parametrize(
    ("pair", "data", "text"),
    [
        pytest.param(
            busy_pair(), bytes(4), "batching service got ready in state 'busy'", id="ready, busy"
        ),
        pytest.param(
            idle_pair(), bytes(4), "batching service got ready in state 'idle'", id="ready twice"
        ),
        pytest.param(
            ConnectionPair(),
            message({A: b""}),
            "batching service got results in state 'opening'",
            id="results first",
        ),
        pytest.param(
            idle_pair(),
            message({}),
            "batching service got results in state 'idle'",
            id="results without a batch",
        ),
        pytest.param(
            ConnectionPair(),
            message(addition(bye=True)),
            "batching service got bye in state 'opening'",
            id="bye before ready",
        ),
    ],
)
def test_the_batching_side_refuses(pair: ConnectionPair, data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=exactly(text)):
        pair.batching.receive_data(data)
    with pytest.raises(ProtocolError, match="batching service has given this connection up"):
        pair.batching.receive_data(b"")


def test_a_second_batch_is_refused_while_one_is_out() -> None:
    pair = busy_pair()
    with pytest.raises(ProtocolError, match=exactly("worker got a batch in state 'busy'")):
        pair.to_worker(message({C: b""}))


@pytest.mark.parametrize(
    ("send", "text"),
    [
        (lambda: idle_pair().worker.send_ready(), "worker cannot send ready in state 'asking'"),
        (lambda: busy_pair().worker.send_bye(), "worker cannot send bye in state 'busy'"),
        (
            lambda: idle_pair().worker.send_results(RESULTS),
            "worker cannot send results in state 'asking'",
        ),
        (
            lambda: busy_pair().batching.send_batch(BATCH),
            "batching service cannot send a batch in state 'busy'",
        ),
        (
            lambda: idle_pair().batching.send_challenge(),
            "batching service cannot send a challenge in state 'idle'",
        ),
    ],
)
def test_a_message_out_of_turn_is_the_callers_mistake(send: Any, text: str) -> None:
    with pytest.raises(RuntimeError, match=exactly(text)):
        send()


# What this end has to say about a message


def test_jobs_may_be_left_out() -> None:
    pair = busy_pair()
    data = pair.worker.send_results(Results({B: b""}))
    assert pair.to_batching(data) == [Results({B: b""})]
    assert busy_pair().to_batching(message({})) == [Results({})]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        pytest.param({C: b""}, "results of a job that is not in the batch", id="unknown"),
        pytest.param({"x": b""}, "results of a job that is not in the batch", id="odd key"),
        pytest.param(
            {A: b"", B: b"", C: b""}, "results of a job that is not in the batch", id="one more"
        ),
        pytest.param(
            {id: b"" for id in (A, B, C, "d", "e")},
            "map of 5 entries, expected at most 4",
            id="many",
        ),
    ],
)
def test_the_batching_side_wants_no_results_but_those_of_the_batch(entries: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=exactly(text)):
        busy_pair().batching.receive_data(message(entries))


@pytest.mark.parametrize(
    ("results", "text"),
    [
        (Results({A: b"", C: b""}), "results of 1 jobs that are not in the batch"),
        (Results({A: b""}, infer=-1.0), "infer -1.0, expected seconds"),
    ],
)
def test_bad_results_are_the_callers_mistake(results: Results, text: str) -> None:
    """The state stays, so that better ones can be sent instead."""
    pair = busy_pair()
    with pytest.raises(ValueError, match=exactly(text)):
        pair.worker.send_results(results)
    assert pair.to_batching(pair.worker.send_results(RESULTS)) == [RESULTS]


def test_a_bad_batch_is_the_callers_mistake() -> None:
    pair = idle_pair()
    with pytest.raises(ValueError, match=exactly("batch of 0 jobs, expected 1 to 65536")):
        pair.batching.send_batch(Batch({}))
    assert pair.to_worker(pair.batching.send_batch(BATCH)) == [BATCH]


def test_a_message_that_the_peer_would_refuse_is_not_sent() -> None:
    """The state stays, so that something smaller can be sent instead."""
    pair = busy_pair()
    text = "message of 1048661 bytes, expected at most 1048576"
    with pytest.raises(MessageTooLarge, match=exactly(text)):
        pair.worker.send_results(Results({A: bytes(LIMIT), B: b"y"}))
    assert pair.to_batching(pair.worker.send_results(RESULTS)) == [RESULTS]


@pytest.mark.parametrize("end", ["worker", "batching"])
def test_what_is_done_to_an_event_changes_no_connection(end: str) -> None:
    """Whoever takes a batch apart, job by job, does not change what is out."""
    pair = idle_pair()
    sent = Batch(dict(BATCH.payloads))
    (received,) = pair.to_worker(pair.batching.send_batch(sent))
    assert isinstance(received, Batch)
    (sent if end == "batching" else received).payloads.clear()
    assert pair.to_batching(pair.worker.send_results(RESULTS)) == [RESULTS]


# The secret


@pytest.mark.parametrize("piece_size", [None, 1])
def test_a_worker_with_the_secret_is_served(piece_size: int | None) -> None:
    pair = ConnectionPair("s3cret", piece_size)
    assert pair.to_batching(pair.worker.send_ready()) == [Hello()]
    assert pair.to_worker(pair.batching.send_challenge()) == [Challenge(NONCE)]
    proof = pair.worker.send_proof(Challenge(NONCE))
    mac = hmac.digest(b"s3cret", NONCE, hashlib.sha256)
    assert proof == message(addition(proof=mac))
    assert pair.to_batching(proof) == [Ready()]
    assert pair.to_worker(pair.batching.send_batch(BATCH)) == [BATCH]


def challenged_pair() -> ConnectionPair:
    pair = ConnectionPair("s3cret")
    pair.to_batching(pair.worker.send_ready())
    pair.to_worker(pair.batching.send_challenge())
    return pair


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (
            addition(proof=bytes(32)),
            "worker does not know the secret, check its VENTU_WORKER_SECRET",
        ),
        (addition(bye=True), "expected a proof and nothing else"),
        ({A: b"", B: b""}, "map of 2 entries, expected at most 1"),
    ],
)
def test_a_bad_proof_is_refused(entries: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=exactly(text)):
        challenged_pair().batching.receive_data(message(entries))


def test_a_second_ready_is_no_proof() -> None:
    with pytest.raises(ProtocolError, match="message of 0 bytes is not a msgpack map"):
        challenged_pair().batching.receive_data(bytes(4))


def test_nobody_is_served_before_the_proof() -> None:
    with pytest.raises(RuntimeError, match="cannot send a batch in state 'challenged'"):
        challenged_pair().batching.send_batch(BATCH)


@pytest.mark.parametrize(
    ("secret", "nonce", "text"),
    [
        ("s3cret", b"short", "challenge of 5 bytes, expected 32"),
        (None, NONCE, "batching service asks for a secret, set VENTU_WORKER_SECRET"),
    ],
)
def test_a_bad_challenge_is_refused(secret: str | None, nonce: bytes, text: str) -> None:
    pair = ConnectionPair(secret)
    pair.worker.send_ready()
    with pytest.raises(ProtocolError, match=exactly(text)):
        pair.to_worker(message(addition(challenge=nonce)))


def test_a_challenge_comes_only_first() -> None:
    pair = ConnectionPair("s3cret")
    pair.worker.send_ready()
    pair.to_worker(message({A: b""}))
    with pytest.raises(ProtocolError, match=exactly("worker got a challenge in state 'busy'")):
        pair.to_worker(message(addition(challenge=NONCE)))


def test_a_challenge_may_cross_with_a_bye() -> None:
    pair = ConnectionPair("s3cret")
    pair.worker.send_ready()
    pair.worker.send_bye()
    assert pair.to_worker(message(addition(challenge=NONCE))) == [Challenge(NONCE)]
    assert pair.worker.state is State.LEFT


def test_a_worker_with_a_secret_serves_a_service_without() -> None:
    worker = WorkerConnection(max_message=LIMIT, secret="s3cret")
    worker.send_ready()
    assert worker.receive_data(message({A: b""})) == [Batch({A: b""})]


@pytest.mark.parametrize("challenge", [None, b"short"])
def test_a_secret_needs_a_challenge(challenge: bytes | None) -> None:
    text = "a secret needs a challenge of 32 random bytes"
    with pytest.raises(ValueError, match=exactly(text)):
        BatchingConnection(max_message=LIMIT, secret="s", challenge=challenge)


# The size of messages


def test_who_has_no_batch_may_send_little() -> None:
    """Whoever connects must not fill the memory before it is known who he is."""
    for pair in (ConnectionPair(), idle_pair()):
        assert pair.to_batching((1024).to_bytes(4, "big")) == []
    for pair in (ConnectionPair(), idle_pair()):
        with pytest.raises(ProtocolError, match="frame of 1025 bytes, expected at most 1024"):
            pair.to_batching((1025).to_bytes(4, "big"))


def test_a_message_may_be_as_large_as_the_limit() -> None:
    """So that what one end may send the other may receive."""
    size = len(busy_pair().worker.send_results(Results({A: bytes(1 << 16), B: b"y"}))) - 4
    largest = Results({A: bytes(LIMIT - size + (1 << 16)), B: b"y"})
    pair = busy_pair()
    data = pair.worker.send_results(largest)
    assert len(data) == 4 + LIMIT
    assert pair.to_batching(data) == [largest]


def test_nobody_may_send_more_than_the_limit() -> None:
    assert busy_pair().to_batching(LIMIT.to_bytes(4, "big")) == []
    assert idle_pair().to_worker(LIMIT.to_bytes(4, "big")) == []
    with pytest.raises(ProtocolError, match=f"frame of {LIMIT + 1} bytes"):
        busy_pair().to_batching((LIMIT + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match=f"frame of {LIMIT + 1} bytes"):
        idle_pair().to_worker((LIMIT + 1).to_bytes(4, "big"))


# The end of the stream


@pytest.mark.parametrize("pair", [ConnectionPair(), idle_pair(), busy_pair()])
def test_the_stream_may_end_between_messages(pair: ConnectionPair) -> None:
    for connection in (pair.worker, pair.batching):
        assert connection.receive_data(b"") == [Closed()]
        assert connection.state is State.CLOSED


def test_the_stream_must_not_end_inside_a_message() -> None:
    pair = idle_pair()
    pair.worker.receive_data(b"\0\0")
    assert pair.worker.is_partial
    with pytest.raises(ProtocolError, match="stream ends inside a frame, after 2 bytes"):
        pair.worker.receive_data(b"")
