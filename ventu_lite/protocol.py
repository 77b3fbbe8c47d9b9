"""Both ends of the wire protocol: a byte stream ⇄ events. No I/O.

The worker connects, sends an empty frame (*ready*), and from then on gets a map
``{job id: payload}`` and answers with such a map; the answer also asks for the next batch. What
may come when is told by ``states``, what it looks like by ``messages`` and ``frames``.

A shell passes every ``sock.recv()`` to ``receive_data`` (``b""`` means end of stream), acts on the
events that come back, and writes what the ``send_…`` methods return, each in one call, because
kemingy/batching reads a message with a single read. What the peer does wrong is a
``ProtocolError``; what the caller does wrong is a ``RuntimeError`` (not now) or a ``ValueError``
(not that).
"""

import abc
import hashlib
import hmac
from collections.abc import KeysView
from typing import ClassVar

from . import messages
from .errors import ProtocolError
from .events import Batch, Bye, Challenge, Closed, Event, Hello, Ready, Results
from .frames import FrameDecoder, encode_frame
from .maps import unpack_entries
from .messages import CHALLENGE_SIZE, JOB_OVERHEAD, MAX_JOBS, MESSAGE_OVERHEAD, MessageTooLarge
from .states import BATCHING, WORKER, Role, Signal, State

__all__ = [
    "JOB_OVERHEAD",
    "MAX_JOBS",
    "MESSAGE_OVERHEAD",
    "Batch",
    "BatchingConnection",
    "Bye",
    "Challenge",
    "Closed",
    "Event",
    "Hello",
    "MessageTooLarge",
    "Ready",
    "Results",
    "State",
    "WorkerConnection",
]

_NOTHING: KeysView[str] = {}.keys()

# What a worker may send while it has no batch: ready, a proof, bye. Whoever connects may send that
# much, and no more, before it is known who he is.
SMALL_MESSAGE = 1024


class _Connection(abc.ABC):
    """What both ends share: frames in, events out, one state."""

    _role: ClassVar[Role]

    def __init__(self, *, max_message: int, secret: str | None) -> None:
        self.max_message = max_message
        self._secret = None if secret is None else secret.encode()
        self._decoder = FrameDecoder(max_message)
        self._state = State.OPENING
        self._jobs = _NOTHING  # the ids of the batch that is out

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.value}, {len(self._jobs)} jobs out>"

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
                raise ProtocolError(f"{self._role.name} has given this connection up already")
            if not data:
                return [self._close()]
            self._decoder.max_size = self._largest()
            return [self._read(body) for body in self._decoder.feed(data)]
        except ProtocolError:
            self._state = State.FAILED
            raise

    def _close(self) -> Closed:
        self._decoder.feed_eof()
        self._state = State.CLOSED
        return Closed()

    def _largest(self) -> int:
        """Return the size of the largest message that the peer may send now."""
        return self.max_message

    @abc.abstractmethod
    def _read(self, body: bytes) -> Event:
        """Turn one message into an event, moving the state."""

    def _received(self, signal: Signal) -> None:
        self._state = self._role.after_receiving(signal, self._state)

    def _after_sending(self, signal: Signal) -> State:
        """Return the state to enter once the message has turned out to be a good one."""
        return self._role.after_sending(signal, self._state)

    def _frame(self, body: bytes) -> bytes:
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

    _role = WORKER

    def __init__(self, *, max_message: int, secret: str | None = None) -> None:
        super().__init__(max_message=max_message, secret=secret)

    def send_ready(self) -> bytes:
        """Ask for the first batch; to be sent once, before anything else."""
        self._state = self._after_sending(Signal.READY)
        return encode_frame(b"")

    def send_proof(self, challenge: Challenge) -> bytes:
        """Answer a challenge; this counts as a second "ready"."""
        state = self._after_sending(Signal.PROOF)
        assert self._secret is not None, "a challenge without a secret is refused on arrival"
        proof = _proof(self._secret, challenge.nonce)
        data = self._frame(messages.pack_addition("proof", proof))
        self._state = state
        return data

    def send_results(self, results: Results) -> bytes:
        """Answer the batch that is out; with ``bye`` set, leave after it.

        Raises:
            ValueError: No job, a job that is not in the batch, a rejected one without a body, or a
                status or duration that the peer would refuse.
            MessageTooLarge: The peer would refuse the message; send smaller results.
        """
        state = self._after_sending(Signal.LAST_RESULTS if results.bye else Signal.RESULTS)
        if strange := results.payloads.keys() - self._jobs:
            raise ValueError(f"results of {len(strange)} jobs that are not in the batch")
        data = self._frame(messages.pack_results(results))
        self._state, self._jobs = state, _NOTHING
        return data

    def send_bye(self) -> bytes:
        """Ask for no further batch. One that crossed with this still wants its answer."""
        self._state = self._after_sending(Signal.BYE)
        return self._frame(messages.pack_addition("bye", True))

    def _read(self, body: bytes) -> Batch | Challenge:
        entries = unpack_entries(body, MAX_JOBS)
        if "ventu_lite" in entries:
            return self._read_challenge(entries)
        self._received(Signal.BATCH)
        batch = messages.read_batch(entries)
        self._jobs = batch.payloads.copy().keys()
        return batch

    def _read_challenge(self, entries: dict[str, bytes]) -> Challenge:
        self._received(Signal.CHALLENGE)
        if self._secret is None:
            raise ProtocolError("batching service asks for a secret, set VENTU_WORKER_SECRET")
        return messages.read_challenge(entries)


class BatchingConnection(_Connection):
    """The batching service's end; gives ``Hello``, ``Ready``, ``Results``, ``Bye``, ``Closed``.

    Args:
        max_message: The largest message to read and to send, in bytes.
        secret: What the worker has to know.
        challenge: 32 random bytes, fresh for this connection; needed with a secret.
    """

    _role = BATCHING

    def __init__(
        self, *, max_message: int, secret: str | None = None, challenge: bytes | None = None
    ) -> None:
        super().__init__(max_message=max_message, secret=secret)
        if secret is not None and (challenge is None or len(challenge) != CHALLENGE_SIZE):
            raise ValueError(f"a secret needs a challenge of {CHALLENGE_SIZE} random bytes")
        self._challenge = challenge or b""

    def send_challenge(self) -> bytes:
        """Ask the worker that has said hello for its proof."""
        state = self._after_sending(Signal.CHALLENGE)
        data = self._frame(messages.pack_addition("challenge", self._challenge))
        self._state = state
        return data

    def send_batch(self, batch: Batch) -> bytes:
        """Hand jobs to the worker, which must be waiting for them.

        Job ids have 36 ASCII characters. That is not checked, as this end has made them.

        Raises:
            ValueError: No job, or too many.
            MessageTooLarge: The worker would refuse the message. ``JOB_OVERHEAD`` and
                ``MESSAGE_OVERHEAD`` tell beforehand how large it will be.
        """
        state = self._after_sending(Signal.BATCH)
        data = self._frame(messages.pack_batch(batch))
        self._state, self._jobs = state, batch.payloads.copy().keys()
        return data

    def _largest(self) -> int:
        return self.max_message if self._jobs else min(SMALL_MESSAGE, self.max_message)

    def _read(self, body: bytes) -> Hello | Ready | Results | Bye:
        if self._state is State.CHALLENGED:
            return self._read_proof(body)
        if body:
            return self._read_results(body)
        if self._secret is not None and self._state is State.OPENING:
            self._received(Signal.HELLO)
            return Hello()
        self._received(Signal.READY)
        return Ready()

    def _read_proof(self, body: bytes) -> Ready:
        assert self._secret is not None, "nobody is challenged without a secret"
        proof = messages.read_proof(unpack_entries(body, 1))
        if not hmac.compare_digest(proof, _proof(self._secret, self._challenge)):
            raise ProtocolError("worker does not know the secret, check its VENTU_WORKER_SECRET")
        self._received(Signal.PROOF)
        return Ready()

    def _read_results(self, body: bytes) -> Results | Bye:
        results = messages.read_results(unpack_entries(body, len(self._jobs) + 2))
        if isinstance(results, Bye):
            self._received(Signal.BYE)
            return results
        self._received(Signal.LAST_RESULTS if results.bye else Signal.RESULTS)
        if not results.payloads.keys() <= self._jobs:
            raise ProtocolError("results of a job that is not in the batch")
        self._jobs = _NOTHING
        return results


def _proof(secret: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, nonce, hashlib.sha256)
