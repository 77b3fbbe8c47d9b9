"""What the two ends of the wire protocol tell each other: values without bytes or behaviour."""

from dataclasses import dataclass, field


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
    """

    payloads: dict[str, bytes]
    rejected: dict[str, int] = field(default_factory=dict)
    infer: float | None = None
    bye: bool = False


@dataclass(frozen=True, slots=True)
class Bye:
    """The worker wants no further batch. This answers nothing: a batch that is out stays out."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream has ended between two messages."""


Event = Hello | Ready | Challenge | Batch | Results | Bye | Closed
