"""Where a conversation of the wire protocol can stand, and what moves it on: one table per end."""

import enum
from collections.abc import Mapping

from .errors import ProtocolError


class State(enum.Enum):
    """What one end knows of the conversation."""

    __hash__ = object.__hash__  # Enum's own is written in Python

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


class Signal(enum.Enum):
    """What moves the conversation on; the values are the words of the error messages."""

    __hash__ = object.__hash__

    HELLO = "hello"
    READY = "ready"
    CHALLENGE = "a challenge"
    PROOF = "a proof"
    BATCH = "a batch"
    RESULTS = "results"
    LAST_RESULTS = "last results"
    BYE = "bye"


class Role:
    """One end of the conversation: what it may send and receive, and where that leads.

    Args:
        name: For the error messages.
        transitions: A pair that is not in here is somebody's mistake.
    """

    def __init__(self, name: str, transitions: Mapping[State, Mapping[Signal, State]]) -> None:
        self.name = name
        self._transitions = {
            (state, signal): after
            for state, signals in transitions.items()
            for signal, after in signals.items()
        }

    def after_receiving(self, signal: Signal, state: State) -> State:
        """Return the next state.

        Raises:
            ProtocolError: The peer may not send this now.
        """
        if after := self._transitions.get((state, signal)):
            return after
        raise ProtocolError(f"{self.name} got {signal.value} in state {state.value!r}")

    def after_sending(self, signal: Signal, state: State) -> State:
        """Return the next state.

        Raises:
            RuntimeError: The caller may not send this now.
        """
        if after := self._transitions.get((state, signal)):
            return after
        raise RuntimeError(f"{self.name} cannot send {signal.value} in state {state.value!r}")


WORKER = Role(
    "worker",
    {
        State.OPENING: {Signal.READY: State.ASKING},
        State.ASKING: {
            Signal.CHALLENGE: State.CHALLENGED,
            Signal.BATCH: State.BUSY,
            Signal.BYE: State.LEAVING,
        },
        State.CHALLENGED: {Signal.PROOF: State.IDLE},
        State.IDLE: {Signal.BATCH: State.BUSY, Signal.BYE: State.LEAVING},
        State.BUSY: {Signal.RESULTS: State.IDLE, Signal.LAST_RESULTS: State.LEFT},
        # The bye may cross with the challenge as well as with a batch.
        State.LEAVING: {Signal.CHALLENGE: State.LEFT, Signal.BATCH: State.BUSY_LEAVING},
        State.BUSY_LEAVING: {Signal.RESULTS: State.LEFT, Signal.LAST_RESULTS: State.LEFT},
    },
)
BATCHING = Role(
    "batching service",
    {
        State.OPENING: {Signal.READY: State.IDLE, Signal.HELLO: State.UNPROVEN},
        State.UNPROVEN: {Signal.CHALLENGE: State.CHALLENGED},
        State.CHALLENGED: {Signal.PROOF: State.IDLE},
        State.IDLE: {Signal.BATCH: State.BUSY, Signal.BYE: State.LEFT},
        State.BUSY: {
            Signal.RESULTS: State.IDLE,
            Signal.LAST_RESULTS: State.LEFT,
            Signal.BYE: State.BUSY_LEAVING,
        },
        State.BUSY_LEAVING: {Signal.RESULTS: State.LEFT, Signal.LAST_RESULTS: State.LEFT},
    },
)
