"""Requests of ``service.ask`` in a process that runs no stage: workers elsewhere answer them."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from .codecs import unpack, unpack_own
from .composition import Composition
from .config import Codec, CodecSetting
from .errors import InvalidPayload, InvalidResponse, PayloadError, PayloadTooLarge, VentuError
from .misfits import misfit
from .outcomes import InferenceFailed, Rejected
from .sending import CannotTravel, carry
from .validation import Schema

#: Has payloads inferred within so many seconds; returns for each the status and what was said.
AskWorkers = Callable[[Sequence[bytes], float], list[tuple[int, bytes | str]]]

_CANNOT_READ: Final = (
    "the response schema cannot read what it writes: give each field one alias for both ways,"
    ' exclude none that is required, and have no computed_field beside extra="forbid"'
)
# What a problem document says already in other ways, and what it may have in addition.
_COMMON: Final = frozenset({"type", "title", "status", "detail", "instance"})


class Forwarder:
    """Has Python values answered by workers; any thread may call it.

    Args:
        ask: Asks the workers.
        composition: The service.
    """

    def __init__(self, ask: AskWorkers, composition: Composition) -> None:
        self._ask = ask
        self._request = composition.request
        self._response = composition.response
        self._setting = composition.config.codec

    def __call__(self, values: Sequence[Any], seconds: float) -> list[Any]:
        """Have values answered.

        Args:
            values: What clients would send.
            seconds: How long that may take.

        Returns:
            For each value the response, the ``InferenceFailed`` that a worker told of, or the
            ``Rejected`` of what went wrong in this process: nobody else logs or counts that.
        """
        answers = [self._written(value) for value in values]
        sent = {n: one for n, one in enumerate(answers) if not isinstance(one, Rejected)}
        said = self._ask([payload for payload, _ in sent.values()], seconds) if sent else []
        for (n, (_, codec)), (status, body) in zip(sent.items(), said, strict=True):
            answers[n] = response_of(status, body, codec, self._response)
        return answers

    def _written(self, value: Any) -> Any:
        """Return the payload of a value and its codec, or the ``Rejected`` in their place."""
        try:
            return payload_of(value, self._request, self._setting)
        except Exception as exc:
            return Rejected.of(exc)


def payload_of(value: Any, schema: Schema, setting: CodecSetting) -> tuple[bytes, Codec]:
    """Return the bytes of which a worker makes the same item, and their codec.

    Raises:
        PayloadError: The value does not fit the schema, or no worker would take as many bytes.
        CannotTravel: No codec carries it.
        Exception: Whatever a validator of the user raises, apart from ``ValueError``.
    """
    item = schema.parse_value(value)
    codecs: list[Codec] = ["msgpack", "json"] if setting == "auto" else [setting]  # richest first
    try:
        return carry(value, schema, codecs, item)
    except CannotTravel as exc:
        too_large = [why for _, why in exc.failures if isinstance(why, PayloadTooLarge)]
        if not too_large:
            raise
    raise too_large[0]


def response_of(status: int, said: bytes | str, codec: Codec, schema: Schema) -> Any:
    """Return the response in the answer of a worker.

    Args:
        status: The HTTP status.
        said: The body of the answer, or the reason why there is none.
        codec: Of the body.
        schema: That of responses.

    Returns:
        The response, the ``InferenceFailed`` that was told, or a ``Rejected`` where nothing is told
        that can be read here.
    """
    if isinstance(said, str):
        return InferenceFailed(status, said)
    try:
        return _response(said, codec, schema) if status == 200 else _told(status, said, codec)
    except Exception as exc:
        return Rejected.unexpected(exc, 500 if status == 200 else status)


def _response(body: bytes, codec: Codec, schema: Schema) -> Any:
    try:
        return _read(body, codec, schema)
    except (InvalidPayload, ValidationError) as exc:
        cause = exc.__cause__ if isinstance(exc, InvalidPayload) else exc
        assert isinstance(cause, ValidationError)
        found = f"{misfit(body, cause, schema.adapter)}; {_CANNOT_READ}"
    except PayloadError as exc:
        found = f"what cannot be read: {exc}"
    raise InvalidResponse(f"a worker answered with {found}")  # their causes would show the value


def _read(body: bytes, codec: Codec, schema: Schema) -> Any:
    """Return what a worker wrote, whose msgpack has any keys and cannot say what strict mode asks.

    Raises:
        PayloadError, ValidationError: It cannot be read.
    """
    if codec == "json":
        return schema.parse(body, codec)
    return schema.adapter.validator.validate_python(unpack_own(body), strict=False)


def _told(status: int, body: bytes, codec: Codec) -> InferenceFailed:
    try:
        document = dict(unpack(body) if codec == "msgpack" else from_json(body))
        detail = str(document["detail"])
    except Exception:  # a worker of another kind says it in its own words
        size = len(body)
        reason = f"a worker answered {status} and {size} bytes that are no problem document"
        raise VentuError(reason) from None
    extra = {name: value for name, value in document.items() if name not in _COMMON}
    failure = InferenceFailed(status, detail, extra)
    failure.job = str(document.get("instance", "")).rpartition("#")[2]
    failure.is_fault = status == 500
    return failure
