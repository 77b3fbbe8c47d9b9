"""The wire protocol: a byte stream ⇄ frames ⇄ events, for both of its ends. No I/O.

A frame is a 4-byte big-endian length and that many bytes. The worker connects, sends an empty
frame (*ready*), and from then on gets a msgpack map ``{job id: payload}`` and answers with such a
map; the answer also asks for the next batch. Everything under the key ``ventu_lite`` is our own
addition, invisible to the other programs that speak this protocol.

A shell passes every ``sock.recv()`` to ``receive_data`` (``b""`` means end of stream), acts on the
events that come back, and writes what the ``send_…`` methods return, each in one call, because
kemingy/batching reads a message with a single read. What the peer does wrong is a
``ProtocolError``; what the caller does wrong is a ``RuntimeError`` (not now) or a ``ValueError``
(not that).
"""

import abc
import enum
import hashlib
import hmac
import math
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import msgpack

from .errors import ProtocolError, VentuError

ID_SIZE = 36  # characters of a job id; ``error_ids`` can be split only because all are equal
JOB_OVERHEAD = 43  # bytes that a job adds to a message besides its payload: 38 id, up to 5 length
MESSAGE_OVERHEAD = 5  # the longest header of a map
CHALLENGE_SIZE = 32  # bytes; as long as the digest, so guessing one is no easier than the other

# One batch is one call of a model. No model takes so many items, and an attacker who may make
# dictionaries of any size turns one message into many times its size in memory.
MAX_JOBS = 65_536

_HEADER = struct.Struct(">i")
_DEFAULT_REJECTION = 422  # the only one that kemingy/batching knows
_Value = TypeVar("_Value")
_UNPACK_ERRORS = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


class MessageTooLarge(VentuError):
    """A message to send is larger than the peer would read; nothing has changed, send another."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker has connected and must prove that it knows the secret: ``send_challenge``."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker asks for its first batch."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """The batching service asks for a proof that this worker knows the secret: ``send_proof``."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs for the worker.

    Attributes:
        payloads: Job id → the body as the client sent it.
    """

    payloads: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Results:
    """The worker's answer to the batch, and its request for the next one.

    Attributes:
        payloads: Job id → the response; for a rejected job, the error body.
        rejected: Job id → HTTP status from 400 to 599; each id is in ``payloads`` too.
        infer: Seconds that the batch took in the worker, if it says so.
        bye: The worker wants no further batch.
        missing: Jobs of the batch that the worker left out. Told by the batching side; sending
            ignores it.
    """

    payloads: dict[str, bytes]
    rejected: dict[str, int] = field(default_factory=dict)
    infer: float | None = None
    bye: bool = False
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bye:
    """The worker wants no further batch. This answers nothing: a batch that is out stays out."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream has ended between two messages."""


Event = Hello | Ready | Challenge | Batch | Results | Bye | Closed


def encode_frame(body: bytes) -> bytes:
    """Return ``body`` with its header, ready to be written in one call."""
    return _HEADER.pack(len(body)) + body


def reject_largest(results: Results, max_message: int) -> Results:
    """Return results that fit into a message, with 500 instead of the largest ones.

    The others must not suffer for one response that nobody could read.
    """
    per_job = JOB_OVERHEAD + ID_SIZE + 41  # its own entry, its share of error_ids and of status
    payloads, rejected = dict(results.payloads), dict(results.rejected)
    size = 1024 + sum(map(len, payloads.values())) + per_job * len(payloads)
    for id in sorted(payloads, key=lambda id: len(payloads[id]), reverse=True):
        if size <= max_message:
            break
        size -= len(payloads[id])
        payloads[id], rejected[id] = b"", 500
    return replace(results, payloads=payloads, rejected=rejected)


class FrameDecoder:
    """Turn a byte stream, however it was cut up, back into the bodies of its frames.

    Args:
        max_size: The largest body to accept, in bytes. It is judged by the header, so that a peer
            cannot make us hold more than this.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._buffer = bytearray()

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies that ``data`` completes, oldest first.

        Raises:
            ProtocolError: A header announces a negative or too large body. The stream cannot be
                understood any further; bodies that came before it in ``data`` are lost too.
        """
        self._buffer += data
        bodies = []
        start = 0
        with memoryview(self._buffer) as view:  # copies each body once, however many there are
            while (end := self._end_of_frame(start)) <= len(view):
                bodies.append(bytes(view[start + _HEADER.size : end]))
                start = end
        del self._buffer[:start]
        return bodies

    def feed_eof(self) -> None:
        """Check that the stream did not end inside a frame.

        Raises:
            ProtocolError: It did.
        """
        if self._buffer:
            raise ProtocolError(f"stream ends inside a frame, after {len(self._buffer)} bytes")

    def _end_of_frame(self, start: int) -> int:
        if len(self._buffer) < start + _HEADER.size:
            return start + _HEADER.size
        (size,) = _HEADER.unpack_from(self._buffer, start)
        if size < 0:
            raise ProtocolError(f"frame of {size} bytes, expected at least 0")
        if size > self._max_size:
            raise ProtocolError(f"frame of {size} bytes, expected at most {self._max_size}")
        return start + _HEADER.size + int(size)


class State(enum.Enum):
    """What one end knows of the conversation."""

    OPENING = "opening"  # nothing was said
    UNPROVEN = "unproven"  # the worker has knocked and is owed a challenge
    CHALLENGED = "challenged"  # the proof is owed
    ASKING = "asking"  # the worker has said ready, and knows nothing of the other end yet
    IDLE = "idle"  # the worker is owed a batch
    BUSY = "busy"  # the batch is out
    LEAVING = "leaving"  # the worker, idle, has said bye; a batch may have crossed with it
    BUSY_LEAVING = "busy, leaving"  # the batch that crossed with a bye is out
    LEFT = "left"  # after bye, nothing owed: only the end of the stream can follow
    CLOSED = "closed"
    FAILED = "failed"  # after a ProtocolError


class _Signal(enum.Enum):
    """What moves the conversation on; the values are the words of the error messages."""

    HELLO = "hello"
    READY = "ready"
    CHALLENGE = "a challenge"
    PROOF = "a proof"
    BATCH = "a batch"
    RESULTS = "results"
    LAST_RESULTS = "last results"
    BYE = "bye"


_Transitions = Mapping[State, Mapping[_Signal, State]]

_WORKER: _Transitions = {
    State.OPENING: {_Signal.READY: State.ASKING},
    State.ASKING: {
        _Signal.CHALLENGE: State.CHALLENGED,
        _Signal.BATCH: State.BUSY,
        _Signal.BYE: State.LEAVING,
    },
    State.CHALLENGED: {_Signal.PROOF: State.IDLE},
    State.IDLE: {_Signal.BATCH: State.BUSY, _Signal.BYE: State.LEAVING},
    State.BUSY: {_Signal.RESULTS: State.IDLE, _Signal.LAST_RESULTS: State.LEFT},
    # The bye may cross with the challenge as well as with a batch.
    State.LEAVING: {_Signal.CHALLENGE: State.LEFT, _Signal.BATCH: State.BUSY_LEAVING},
    State.BUSY_LEAVING: {_Signal.RESULTS: State.LEFT, _Signal.LAST_RESULTS: State.LEFT},
}

_BATCHING: _Transitions = {
    State.OPENING: {_Signal.READY: State.IDLE, _Signal.HELLO: State.UNPROVEN},
    State.UNPROVEN: {_Signal.CHALLENGE: State.CHALLENGED},
    State.CHALLENGED: {_Signal.PROOF: State.IDLE},
    State.IDLE: {_Signal.BATCH: State.BUSY, _Signal.BYE: State.LEFT},
    State.BUSY: {
        _Signal.RESULTS: State.IDLE,
        _Signal.LAST_RESULTS: State.LEFT,
        _Signal.BYE: State.BUSY_LEAVING,
    },
    State.BUSY_LEAVING: {_Signal.RESULTS: State.LEFT, _Signal.LAST_RESULTS: State.LEFT},
}


class _Connection(abc.ABC):
    """What both ends share: frames in, events out, one state table."""

    _role: ClassVar[str]
    _transitions: ClassVar[_Transitions]

    def __init__(self, *, max_message: int, secret: str | None) -> None:
        self.max_message = max_message
        self._secret = None if secret is None else secret.encode()
        self._decoder = FrameDecoder(max_message)
        self._state = State.OPENING
        self._ids: dict[bytes, str] = {}  # of the batch that is out

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.value}, {len(self._ids)} jobs out>"

    @property
    def state(self) -> State:
        """Where the conversation stands."""
        return self._state

    @property
    def is_partial(self) -> bool:
        """Whether the peer has begun a message and not ended it."""
        return self._decoder.is_partial

    def receive_data(self, data: bytes) -> list[Event]:
        """Return what ``data`` completes, oldest first; ``b""`` is the end of the stream.

        Raises:
            ProtocolError: The peer broke the protocol: close the connection. Events of the same
                call are lost, since nothing such a peer says can be trusted.
        """
        try:
            if self._state is State.FAILED:
                raise ProtocolError(f"{self._role} has given this connection up already")
            if not data:
                return [self._close()]
            return [self._read(body) for body in self._decoder.feed(data)]
        except ProtocolError:
            self._state = State.FAILED
            raise

    def _close(self) -> Closed:
        self._decoder.feed_eof()
        self._state = State.CLOSED
        return Closed()

    @abc.abstractmethod
    def _read(self, body: bytes) -> Event:
        """Turn one message into an event, moving the state."""

    def _received(self, signal: _Signal) -> None:
        state = self._transitions.get(self._state, {}).get(signal)
        if state is None:
            raise ProtocolError(f"{self._role} got {signal.value} in state {self._state.value!r}")
        self._state = state

    def _next_state(self, signal: _Signal) -> State:
        """Return the state after sending; it is entered only when the values were good too."""
        state = self._transitions.get(self._state, {}).get(signal)
        if state is None:
            raise RuntimeError(
                f"{self._role} cannot send {signal.value} in state {self._state.value!r}"
            )
        return state

    def _pack(self, entries: Mapping[str, bytes | str]) -> bytes:
        body: bytes = msgpack.packb(entries)
        if len(body) > self.max_message:
            raise MessageTooLarge(
                f"message of {len(body)} bytes, expected at most {self.max_message}"
            )
        return encode_frame(body)


class WorkerConnection(_Connection):
    """The worker's end of one connection; gives ``Batch``, ``Challenge`` and ``Closed``.

    Args:
        max_message: The largest message to read and to send, in bytes.
        secret: What the batching service may ask a proof of. One that never asks is served too.
    """

    _role = "worker"
    _transitions = _WORKER

    def __init__(self, *, max_message: int, secret: str | None = None) -> None:
        super().__init__(max_message=max_message, secret=secret)

    def send_ready(self) -> bytes:
        """Ask for the first batch; to be sent once, before anything else."""
        self._state = self._next_state(_Signal.READY)
        return encode_frame(b"")

    def send_proof(self, challenge: Challenge) -> bytes:
        """Answer a challenge; this counts as a second "ready"."""
        state = self._next_state(_Signal.PROOF)
        assert self._secret is not None, "a challenge without a secret is refused on arrival"
        data = self._pack({"ventu_lite": _pack({"proof": _proof(self._secret, challenge.nonce)})})
        self._state = state
        return data

    def send_results(self, results: Results) -> bytes:
        """Answer the batch that is out; with ``bye`` set, leave after it.

        Raises:
            ValueError: No job, a job that is not in the batch, a rejected one without a body, or a
                status or duration that the peer would refuse.
            MessageTooLarge: The peer would refuse the message; send smaller results.
        """
        signal = _Signal.LAST_RESULTS if results.bye else _Signal.RESULTS
        state = self._next_state(signal)
        self._check(results)
        entries: dict[str, bytes | str] = {**results.payloads}
        if results.rejected:
            entries["error_ids"] = "".join(results.rejected)
        if additions := _additions(results):
            entries["ventu_lite"] = _pack(additions)
        data = self._pack(entries)
        self._state, self._ids = state, {}
        return data

    def send_bye(self) -> bytes:
        """Ask for no further batch. One that crossed with this still wants its answer."""
        self._state = self._next_state(_Signal.BYE)
        return self._pack({"ventu_lite": _pack({"bye": True})})

    def _read(self, body: bytes) -> Event:
        entries = _unpack_entries(body, MAX_JOBS)
        if b"ventu_lite" in entries:
            return self._read_challenge(entries)
        self._received(_Signal.BATCH)
        if not entries:
            raise ProtocolError("batch of 0 jobs, expected at least 1")
        self._ids = _decode_ids(entries)
        return Batch(dict(zip(self._ids.values(), entries.values(), strict=True)))

    def _read_challenge(self, entries: dict[bytes, bytes]) -> Challenge:
        self._received(_Signal.CHALLENGE)
        if self._secret is None:
            raise ProtocolError("batching service asks for a secret, set VENTU_WORKER_SECRET")
        nonce = _only_addition(entries, b"challenge")
        if len(nonce) != CHALLENGE_SIZE:
            raise ProtocolError(f"challenge of {len(nonce)} bytes, expected {CHALLENGE_SIZE}")
        return Challenge(nonce)

    def _check(self, results: Results) -> None:
        if not results.payloads:  # with bye set it would read as a bye that crossed
            raise ValueError("results of 0 jobs, expected at least 1")
        if strange := results.payloads.keys() - set(self._ids.values()):
            raise ValueError(f"results of {len(strange)} jobs that are not in the batch")
        if strange := results.rejected.keys() - results.payloads.keys():
            raise ValueError(f"{len(strange)} rejected jobs without an error body")
        for status in results.rejected.values():
            if not _is_status(status):
                raise ValueError(f"status {status!r}, expected an integer from 400 to 599")
        if results.infer is not None and not _is_duration(results.infer):
            raise ValueError(f"infer {results.infer!r}, expected seconds")


class BatchingConnection(_Connection):
    """The batching service's end; gives ``Hello``, ``Ready``, ``Results``, ``Bye``, ``Closed``.

    Args:
        max_message: The largest message to read and to send, in bytes.
        secret: What the worker has to know.
        challenge: 32 random bytes, fresh for this connection; needed with a secret.
    """

    _role = "batching service"
    _transitions = _BATCHING

    def __init__(
        self, *, max_message: int, secret: str | None = None, challenge: bytes | None = None
    ) -> None:
        super().__init__(max_message=max_message, secret=secret)
        if secret is not None and (challenge is None or len(challenge) != CHALLENGE_SIZE):
            raise ValueError(f"a secret needs a challenge of {CHALLENGE_SIZE} random bytes")
        self._challenge = challenge or b""

    def send_challenge(self) -> bytes:
        """Ask the worker that has said hello for its proof."""
        state = self._next_state(_Signal.CHALLENGE)
        data = self._pack({"ventu_lite": _pack({"challenge": self._challenge})})
        self._state = state
        return data

    def send_batch(self, batch: Batch) -> bytes:
        """Hand jobs to the worker, which must be waiting for them.

        Raises:
            ValueError: No job, too many, or an id that is not 36 ASCII characters.
            MessageTooLarge: The worker would refuse the message. ``JOB_OVERHEAD`` and
                ``MESSAGE_OVERHEAD`` tell beforehand how large it will be.
        """
        state = self._next_state(_Signal.BATCH)
        if not 1 <= len(batch.payloads) <= MAX_JOBS:
            raise ValueError(f"batch of {len(batch.payloads)} jobs, expected 1 to {MAX_JOBS}")
        ids = dict(zip(map(str.encode, batch.payloads), batch.payloads, strict=True))
        if set(map(len, ids)) != {ID_SIZE} or not all(map(str.isascii, batch.payloads)):
            raise ValueError(f"job ids must be {ID_SIZE} ASCII characters")
        data = self._pack(batch.payloads)
        self._state, self._ids = state, ids
        return data

    def _read(self, body: bytes) -> Event:
        if self._state is State.CHALLENGED:
            return self._read_proof(body)
        if body:
            return self._read_results(body)
        if self._secret is not None and self._state is State.OPENING:
            self._received(_Signal.HELLO)
            return Hello()
        self._received(_Signal.READY)
        return Ready()

    def _read_proof(self, body: bytes) -> Ready:
        assert self._secret is not None, "nobody is challenged without a secret"
        proof = _only_addition(_unpack_entries(body, 1), b"proof")
        if not hmac.compare_digest(proof, _proof(self._secret, self._challenge)):
            raise ProtocolError("worker does not know the secret")
        self._received(_Signal.PROOF)
        return Ready()

    def _read_results(self, body: bytes) -> Results | Bye:
        entries = _unpack_entries(body, len(self._ids) + 2)
        error_ids = _split_ids(entries.pop(b"error_ids", b""))
        additions = _unpack_additions(entries.pop(b"ventu_lite", b"\x80"), len(self._ids))
        bye = _read_bye(additions)
        if bye and not entries and not error_ids:
            self._received(_Signal.BYE)
            return Bye()
        self._received(_Signal.LAST_RESULTS if bye else _Signal.RESULTS)
        payloads = self._name(entries)
        rejected = self._name(_read_rejected(error_ids, additions, entries.keys()))
        missing = self._missing(payloads)
        self._ids = {}
        return Results(payloads, rejected, _read_infer(additions), bye, missing)

    def _name(self, entries: Mapping[bytes, _Value]) -> dict[str, _Value]:
        ids = self._ids
        try:
            return {ids[key]: value for key, value in entries.items()}
        except KeyError as exc:
            raise ProtocolError("results of a job that is not in the batch") from exc

    def _missing(self, payloads: dict[str, bytes]) -> tuple[str, ...]:
        if len(payloads) == len(self._ids):
            return ()
        return tuple(id for id in self._ids.values() if id not in payloads)


def _pack(value: Mapping[str, Any]) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def _proof(secret: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, nonce, hashlib.sha256)


def _unpack_entries(body: bytes, max_entries: int) -> dict[bytes, bytes]:
    """Return a message's map, whose keys and values must all be byte strings (str or bin)."""
    count = _count_entries(body)
    if count > max_entries:
        raise ProtocolError(f"map of {count} entries, expected at most {max_entries}")
    try:
        entries: dict[bytes, bytes] = msgpack.unpackb(
            body,
            raw=True,
            object_hook=_once(),
            max_map_len=count,
            max_array_len=0,
            max_ext_len=0,
        )
    except _UNPACK_ERRORS as exc:
        raise ProtocolError(_not_a_map(body)) from exc
    if not set(map(type, entries.values())) <= {bytes}:
        raise ProtocolError(_not_a_map(body))
    if len(entries) < count:
        raise ProtocolError(f"map of {count} entries, {count - len(entries)} of them repeated")
    return entries


def _count_entries(body: bytes) -> int:
    kind = body[0] if body else None
    if kind == 0xDE:
        return int.from_bytes(body[1:3], "big")
    if kind == 0xDF:
        return int.from_bytes(body[1:5], "big")
    if kind is None or kind & 0xF0 != 0x80:
        raise ProtocolError(_not_a_map(body))
    return kind & 0x0F


def _not_a_map(body: bytes) -> str:
    return f"message of {len(body)} bytes is not a msgpack map of byte strings"


def _once() -> Callable[[dict[Any, Any]], dict[Any, Any]]:
    """Return a hook that refuses the second map, as maps in maps could take much memory."""
    seen: list[None] = []

    def hook(entries: dict[Any, Any]) -> dict[Any, Any]:
        if seen:
            raise ValueError("a map in a map")
        seen.append(None)
        return entries

    return hook


def _decode_ids(keys: Iterable[bytes]) -> dict[bytes, str]:
    ids = list(keys)
    for size in set(map(len, ids)) - {ID_SIZE}:
        raise ProtocolError(f"job id of {size} bytes, expected {ID_SIZE}")
    try:
        return {id: id.decode("ascii") for id in ids}
    except UnicodeDecodeError as exc:
        raise ProtocolError("job id that is not ASCII") from exc


def _split_ids(joined: bytes) -> list[bytes]:
    if len(joined) % ID_SIZE:
        raise ProtocolError(f"error_ids of {len(joined)} bytes, expected a multiple of {ID_SIZE}")
    return [joined[start : start + ID_SIZE] for start in range(0, len(joined), ID_SIZE)]


def _additions(results: Results) -> dict[str, object]:
    """Return the map under ``ventu_lite``, with only the keys that say something."""
    additions: dict[str, object] = {}
    if status := {k: v for k, v in results.rejected.items() if v != _DEFAULT_REJECTION}:
        additions["status"] = status
    if results.infer is not None:
        additions["infer"] = results.infer
    if results.bye:
        additions["bye"] = True
    return additions


def _unpack_additions(data: bytes, jobs: int) -> dict[bytes, Any]:
    """Return the map under ``ventu_lite``; keys unknown today are left for tomorrow."""
    limit = 1024 + 64 * jobs  # a status takes 41 bytes; small enough to hold anything that is legal
    if len(data) > limit:
        raise ProtocolError(f"ventu_lite entry of {len(data)} bytes, expected at most {limit}")
    try:
        additions = msgpack.unpackb(
            data, raw=True, object_pairs_hook=_without_repeats, max_array_len=limit, max_ext_len=0
        )
    except _UNPACK_ERRORS as exc:
        raise ProtocolError("ventu_lite entry is not msgpack") from exc
    if not isinstance(additions, dict):
        raise ProtocolError("ventu_lite entry is not a map")
    return additions


def _without_repeats(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ProtocolError("ventu_lite entry with a repeated key")
    return entries


def _only_addition(entries: dict[bytes, bytes], key: bytes) -> bytes:
    """Return the value of ``{"ventu_lite": {key: value}}``, the shape of challenge and proof."""
    data = entries.get(b"ventu_lite")
    value = _unpack_additions(data, 0).get(key) if data is not None and len(entries) == 1 else None
    if not isinstance(value, bytes):
        raise ProtocolError(f"expected a {key.decode()} and nothing else")
    return value


def _read_bye(additions: Mapping[bytes, Any]) -> bool:
    bye = additions.get(b"bye", False)
    if not isinstance(bye, bool):
        raise ProtocolError(f"bye of type {type(bye).__name__}, expected true or false")
    return bye


def _read_infer(additions: Mapping[bytes, Any]) -> float | None:
    infer = additions.get(b"infer")
    if infer is not None and not _is_duration(infer):
        raise ProtocolError("infer is not a number of seconds")
    return None if infer is None else float(infer)


def _read_rejected(
    error_ids: list[bytes], additions: Mapping[bytes, Any], answered: Collection[bytes]
) -> dict[bytes, int]:
    """Return key → status of the rejected jobs, in the order of ``error_ids``."""
    rejected = dict.fromkeys(error_ids, _DEFAULT_REJECTION)
    if len(rejected) < len(error_ids):
        raise ProtocolError(f"error_ids of {len(error_ids)} jobs, only {len(rejected)} different")
    if not rejected.keys() <= set(answered):
        raise ProtocolError("error_ids of a job that has no error body")
    status = additions.get(b"status", {})
    if not isinstance(status, dict) or not all(map(_is_status, status.values())):
        raise ProtocolError("status is not a map of integers from 400 to 599")
    if not status.keys() <= rejected.keys():
        raise ProtocolError("status of a job that is not in error_ids")
    return rejected | status


def _is_status(value: object) -> bool:
    return isinstance(value, int) and 400 <= value <= 599


def _is_duration(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < math.inf
