"""The exceptions of ventu_lite, by whose fault they are.

VentuError
├── RegistrationError     the developer: the service cannot be composed like this
├── ConfigError           the operator: a setting has a bad value
├── ServiceNotFound       the operator: the app has no such service
├── PayloadError          the client, one job only; carries the HTTP ``status``
│   ├── MalformedPayload  400: the bytes are not what their media type says
│   ├── NotAcceptable     406: the client accepts nothing that can be written
│   ├── PayloadTooLarge   413: the body is too large, or would be as JSON
│   ├── UnsupportedMediaType  415: the content type is not read here
│   └── InvalidPayload    422: the value does not fit the request schema
├── Unavailable           load; carries the HTTP ``status`` and ``retry_after``
│   ├── NotReady          503: set-up or warm-up has not succeeded yet
│   ├── QueueFull         429: as many jobs wait as may
│   └── JobExpired        504: the deadline of the job has passed
├── CannotListen          the operator: an address is taken, or none of this machine's
├── ProtocolError         the peer: close this connection and carry on
├── BatchFailed           the service: a batch function failed, for which item nobody knows
│   └── BatchSizeError    it returned too many or too few results
├── InferenceFailed       what ``Service.ask`` raises, an ``HTTPException``; in ``outcomes``
└── InvalidResponse       the service: what the last stage returned is no response
"""

from typing import Any


class VentuError(Exception):
    """The base of every exception that ventu_lite raises on purpose."""


class RegistrationError(VentuError):
    """The functions or options given to a service contradict each other."""


class ConfigError(VentuError):
    """A setting has a bad value; the message names it and says what it should be."""


class ServiceNotFound(VentuError):
    """The Flask app holds no service, or several and none was chosen."""


class CannotListen(VentuError):
    """An address is taken by another program, or is none of this machine's."""


class PayloadError(VentuError):
    """The client sent something that cannot be answered."""

    status = 400


class MalformedPayload(PayloadError):
    """The bytes cannot be read as JSON or msgpack."""

    status = 400

    @classmethod
    def empty(cls, codec: str) -> "MalformedPayload":
        """Say that there is nothing to read as "json" or "msgpack"."""
        return cls(f"the body is empty, expected a request in {_name(codec)}")

    @classmethod
    def mistaken(cls, codec: str) -> "MalformedPayload":
        """Say that the first byte is none of "json" or "msgpack"."""
        return cls(
            f"the body was read as {_name(codec)}, but does not begin like it;"
            f" send application/{codec}"
        )


class NotAcceptable(PayloadError):
    """``Accept`` excludes every codec."""

    status = 406


class PayloadTooLarge(PayloadError):
    """The body is too large, or holds more than its size promises: as JSON it would be.

    So is a call of ``ask_all`` with more requests than may ever wait together.
    """

    status = 413


class UnsupportedMediaType(PayloadError):
    """``Content-Type`` names something that is not read here."""

    status = 415


class InvalidPayload(PayloadError):
    """The value does not fit the request schema.

    Attributes:
        errors: At most 20 field errors: maps of ``type``, ``loc`` (a list) and ``msg``.
        error_count: How many were found; in a large payload a list is left at its first error.
    """

    status = 422

    def __init__(self, errors: list[dict[str, Any]], error_count: int) -> None:
        super().__init__(errors, error_count)  # what pickle calls it with
        self.errors = errors
        self.error_count = error_count

    def __str__(self) -> str:
        fields = "1 field does" if self.error_count == 1 else f"{self.error_count} fields do"
        return f"{fields} not fit the request schema"


class Unavailable(VentuError):
    """The service cannot answer this job, though nothing is wrong with it.

    Attributes:
        retry_after: Seconds after which a new try makes sense, if that is known.
    """

    status = 503

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(Unavailable):
    """Set-up and warm-up have not succeeded yet."""

    status = 503


class QueueFull(Unavailable):
    """As many jobs wait as ``capacity`` allows."""

    status = 429


class JobExpired(Unavailable):
    """The deadline of the job has passed."""

    status = 504


class ProtocolError(VentuError):
    """The peer said something that the wire protocol does not allow."""


class BatchFailed(VentuError):
    """A batch function failed, and nobody knows for which of its items: they share this."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._untold = [True]

    def is_news(self) -> bool:
        """Tell whether this is asked for the first time; any thread may ask."""
        try:
            return self._untold.pop()
        except IndexError:
            return False


class BatchSizeError(BatchFailed):
    """A batch function returned another number of results than it got items."""


class InvalidResponse(VentuError):
    """What the last stage returned does not fit the response schema, or no codec can say it.

    The message names the stage; of fields that do not fit it shows no value.
    """


def _name(codec: str) -> str:
    return "JSON" if codec == "json" else codec
