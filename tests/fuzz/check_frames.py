"""What must hold for the bytes of any worker, and of any batching service. No socket, no clock.

The last ``CONTROL`` bytes of an input say which end reads it, whether there is a secret, and where
the bytes are cut. The rest is what the peer sends.
"""

from collections.abc import Iterable
from typing import Any

import msgpack
from bounded import memory_at_most

from ventu_lite.errors import ProtocolError
from ventu_lite.events import Batch, Bye, Challenge, Closed, Event, Hello, Ready, Results
from ventu_lite.protocol import BatchingConnection, WorkerConnection
from ventu_lite.states import State

CONTROL = 8
AS_WORKER, WITH_SECRET, EVERY_BYTE, SMALL = (1 << n for n in range(4))

JOBS = Batch({letter * 36: b"{}" for letter in "abcd"})
SECRET, CHALLENGE = "secret", bytes(range(32))

_LIMIT, _SMALL_LIMIT = 65_536, 256

End = BatchingConnection | WorkerConnection
Said = list[Event | str]  # the last may be the text of a ProtocolError


def check(data: bytes) -> None:
    """Raise if an end does anything wrong with a peer that sends ``data``."""
    control = data[-CONTROL:].rjust(CONTROL, b"\0")
    stream, flags = data[:-CONTROL], control[0]
    messages = _messages(stream)
    pieces = [_cut(message, control[1:], flags) for message in messages]
    with memory_at_most(1_000_000 + 200 * len(stream)):  # msgpack begins with 256 KiB
        said = _converse(flags, [[message] for message in messages])
    assert _converse(flags, pieces) == said, "the cuts have changed the conversation"
    joined, cut = _listen(flags, [stream]), _listen(flags, _cut(stream, control[1:], flags))
    if joined and isinstance(joined[-1], str):  # events of the same call are lost
        assert isinstance(cut[-1], str), f"{joined[-1]}, but not when it comes in pieces"
    else:
        assert cut == joined, "the cuts have changed the events"
    for message, event in zip(messages, said, strict=False):
        _check_meaning(message[4:], event)
        _check_round_trip(event)
    if flags & SMALL and not isinstance(said[-1], str):
        assert all(len(message) <= 4 + _SMALL_LIMIT for message in messages)


def _messages(stream: bytes) -> list[bytes]:
    """Take the stream apart by the lengths alone; what is no whole message comes last."""
    messages, start = [], 0
    while start < len(stream):
        size = int.from_bytes(stream[start : start + 4], "big")
        messages.append(stream[start : start + 4 + size])
        start += 4 + size
    return messages


def _cut(data: bytes, control: bytes, flags: int) -> list[bytes]:
    if flags & EVERY_BYTE:
        return [data[n : n + 1] for n in range(len(data))]
    places = (int.from_bytes(control[n : n + 2], "big") for n in (0, 2, 4))
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip(cuts, cuts[1:], strict=False) if start < end]


def _end(flags: int) -> End:
    """Return one end after its first words."""
    secret = SECRET if flags & WITH_SECRET else None
    limit = _SMALL_LIMIT if flags & SMALL else _LIMIT
    if flags & AS_WORKER:
        worker = WorkerConnection(max_message=limit, secret=secret)
        worker.send_ready()
        return worker
    return BatchingConnection(max_message=limit, secret=secret, challenge=CHALLENGE)


def _listen(flags: int, pieces: Iterable[bytes]) -> Said:
    """Return what one end makes of the pieces if it says nothing itself."""
    end, said = _end(flags), Said()
    for piece in [*filter(None, pieces), b""]:
        try:
            said += end.receive_data(piece)
        except ProtocolError as exc:
            _check_failed(end)
            return [*said, str(exc)]
    return said


def _converse(flags: int, messages: Iterable[Iterable[bytes]]) -> Said:
    """Return what one end makes of the messages if it answers each event."""
    end, said = _end(flags), Said()
    for pieces in [*messages, [b""]]:
        for piece in pieces:
            try:
                events = end.receive_data(piece)
            except ProtocolError as exc:
                _check_failed(end)
                return [*said, str(exc)]
            said += events
            for event in events:
                _answer(end, event)
    assert isinstance(said[-1], Closed) and end.state is State.CLOSED
    return said


def _check_failed(end: End) -> None:
    """A peer that has broken the protocol is never listened to again."""
    for data in (b"\0\0\0\0", b""):
        try:
            end.receive_data(data)
        except ProtocolError:
            continue
        raise AssertionError("it was listened to again")
    assert end.state is State.FAILED


def _answer(end: End, event: Event) -> None:
    """Say what a good peer says to this."""
    if isinstance(end, WorkerConnection):
        if isinstance(event, Challenge) and end.state is State.CHALLENGED:
            end.send_proof(event)
        elif isinstance(event, Batch):
            ids = list(event.payloads)
            end.send_results(Results({id: b"{}" for id in ids}, {ids[0]: 404}, infer=0.5))
    elif isinstance(event, Hello):
        end.send_challenge()
    elif end.state is State.IDLE:
        end.send_batch(JOBS)


def _check_meaning(body: bytes, event: Event | str) -> None:
    """Read a message a second time, with msgpack alone."""
    if isinstance(event, str | Closed):
        return
    if isinstance(event, Hello | Ready) and not body:
        return
    raw = msgpack.unpackb(body, raw=True, object_pairs_hook=_without_repeats)
    packed = raw.pop(b"ventu_lite", b"\x80")
    additions = msgpack.unpackb(packed, unicode_errors="surrogateescape")
    error_ids = raw.pop(b"error_ids", b"")
    if isinstance(event, Batch | Results):
        assert raw == {id.encode(): payload for id, payload in event.payloads.items()}
    if isinstance(event, Results):
        assert "".join(event.rejected).encode() == error_ids
        status = dict.fromkeys(event.rejected, 422) | additions.get("status", {})
        assert event.rejected == status and status.keys() <= event.payloads.keys()
        assert all(400 <= value <= 599 for value in status.values())
        assert event.payloads.keys() <= JOBS.payloads.keys()
        assert event.infer == additions.get("infer") and event.bye == additions.get("bye", False)
    if isinstance(event, Bye):
        assert additions["bye"] is True and not raw and not error_ids


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    assert len(dict(pairs)) == len(pairs), "a key twice"
    return dict(pairs)


def _check_round_trip(event: Event | str) -> None:
    """What was understood can be said, and is understood again as the same."""
    batching = BatchingConnection(max_message=2 * _LIMIT)
    worker = WorkerConnection(max_message=2 * _LIMIT)
    assert batching.receive_data(worker.send_ready()) == [Ready()]
    if isinstance(event, Batch):
        assert worker.receive_data(batching.send_batch(event)) == [event]
    elif isinstance(event, Results) and event.payloads:  # empty ones are only ever read
        assert worker.receive_data(batching.send_batch(JOBS)) == [JOBS]
        assert batching.receive_data(worker.send_results(event)) == [event]
    elif isinstance(event, Bye):
        assert batching.receive_data(worker.send_bye()) == [event]
