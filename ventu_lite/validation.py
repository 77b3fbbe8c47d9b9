"""Between payload bytes and values that fit a schema, in both directions.

Three rules: JSON goes through pydantic's own parser, straight from bytes; a value is validated
before it is written; an error never repeats a value that the client sent, only names of fields.
"""

import inspect
from functools import cached_property
from typing import Any, Final, NewType

from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import SchemaValidator

from .codecs import deep_plain, pack, plain, sniff, unpack
from .config import Codec
from .errors import (
    InvalidPayload,
    MalformedPayload,
    PayloadError,
    PayloadTooLarge,
    RegistrationError,
)
from .impatience import impatient_validator
from .problems import body_too_large
from .serializing import to_json, to_python
from .substitutes import advice_on

MAX_FIELD_ERRORS: Final = 20  # a list of 100,000 wrong numbers would become 18 MB of errors
# In bytes. Of a larger payload only the first error of a list is told: to find the others costs up
# to 60 µs and 35 KB for each byte, with empty maps in place of models of a hundred fields.
MAX_PATIENCE: Final = 1024
MAX_TEXT: Final = 200  # of a key or a message, which may hold what the client sent

_TOO_LARGE: Final = {"type": "overflow", "loc": [], "msg": "a number or duration is too large"}
_USUAL: Final = "Use a BaseModel, a dataclass, a TypedDict or a builtin such as list[float]."
# Nobody has validated an instance of a plain dataclass before it gets here.
_REVALIDATE: Final = ConfigDict(revalidate_instances="always")
# pydantic refuses a configuration for what it recognises as a dataclass.
_rename: Any = NewType  # type checkers know no new types that are made at run time


class Schema:
    """One type that pydantic can validate: a model, a dataclass, a TypedDict, ``list[float]``.

    Every method may be called from any thread.

    Args:
        annotation: The type.
        max_body: The largest payload in bytes, if strangers send them.

    Raises:
        RegistrationError: pydantic cannot validate it.
    """

    def __init__(self, annotation: Any, *, max_body: int | None = None) -> None:
        self.annotation = annotation
        self._max_body = max_body
        self.adapter: TypeAdapter[Any] = _adapter(annotation)
        self._validator = self.adapter.validator
        self._serializer = self.adapter.serializer
        self._is_class = inspect.isclass(annotation)

    def parse(self, payload: bytes, codec: Codec) -> Any:
        """Return the item in a payload.

        Raises:
            MalformedPayload: The payload is not in that codec.
            PayloadTooLarge: It is larger than a payload may be, or would be in JSON.
            InvalidPayload: The value does not fit.
            Exception: Whatever a validator of the user raises, apart from ``ValueError`` and
                ``OverflowError``.
        """
        if self._max_body is not None and len(payload) > self._max_body:
            raise PayloadTooLarge(body_too_large(self._max_body))
        is_small = len(payload) <= MAX_PATIENCE
        validator = self._validator if is_small else self._impatient
        try:
            if codec == "json":
                return validator.validate_json(payload)
            value = unpack(payload) if is_small else unpack(payload, max_json=self._max_body)
            return validator.validate_python(value)
        except MalformedPayload as exc:
            raise _clearest(exc, payload, codec) from exc.__cause__
        except ValidationError as exc:
            raise _clearest(_payload_error(exc), payload, codec) from exc
        except OverflowError as exc:  # pydantic lets that of a huge duration out
            raise InvalidPayload([_TOO_LARGE], 1) from exc

    @cached_property
    def _impatient(self) -> SchemaValidator:
        return impatient_validator(self.adapter.core_schema)

    def parse_value(self, value: Any) -> Any:
        """Return the item in a Python value, as ``parse`` does for bytes.

        Raises:
            InvalidPayload: The value does not fit.
        """
        try:
            return self.validate(value)
        except ValidationError as exc:
            raise _payload_error(exc) from exc

    def validate(self, value: Any) -> Any:
        """Return ``value`` as the schema wants it: numpy, torch and look-alike objects included.

        An instance of a pydantic model, or of a dataclass with ``__post_init__``, is believed, as
        pydantic does: running its validators twice could change it. Where it holds a wrong type
        all the same, ``encode`` refuses it. Other dataclasses are validated here.

        Raises:
            ValidationError: It does not fit.
        """
        # A class that is the schema passes quickly; the rest may be dressed as something else.
        if self._is_class and type(value) is self.annotation:
            return self._validator.validate_python(value)
        try:
            return self._validator.validate_python(value, from_attributes=True)
        except ValidationError:
            simple = deep_plain(value)
            if simple is value:
                raise
        return self._validator.validate_python(simple, from_attributes=True)

    def encode(self, value: Any, codec: Codec) -> bytes:
        """Return the bytes of a value that was validated, by alias, as the API document says.

        Raises:
            Exception: The value was changed since, or the codec cannot say it.
        """
        serializer = self._serializer
        try:
            if codec == "json":
                return to_json(serializer, value)
            return pack(to_python(serializer, value))
        except TypeError:
            pass  # the reason is worth 1.4 µs; what led to it is not to be shown above it
        if codec == "json":
            return serializer.to_json(value, by_alias=True, warnings="error", fallback=plain)
        return pack(serializer.to_python(value, by_alias=True, warnings="error"))


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            return _complete(TypeAdapter(annotation))
        adapter = _complete(TypeAdapter(_rename("Schema", annotation), config=_REVALIDATE))
        return _complete(TypeAdapter(annotation)) if _has_post_init(adapter) else adapter
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError) as exc:
        # What it says of a model's configuration helps nobody whose type is no model.
        reason = str(exc).splitlines()[0].partition(" Set `arbitrary_types_allowed")[0].rstrip(".")
        advice = advice_on(annotation) or _USUAL
        raise RegistrationError(
            f"pydantic cannot validate {annotation!r}: {reason}. {advice}"
        ) from exc


def _complete(adapter: TypeAdapter[Any]) -> TypeAdapter[Any]:
    """Resolve the forward references now, or else the first request would find out."""
    if not adapter.pydantic_complete:
        adapter.rebuild(raise_errors=True)
    return adapter


def _has_post_init(adapter: TypeAdapter[Any]) -> bool:
    """Tell whether validating an instance would run a ``__post_init__`` for a second time."""

    def found_in(part: Any) -> bool:
        if isinstance(part, dict):
            return bool(part.get("post_init")) or any(map(found_in, part.values()))
        return isinstance(part, (list, tuple)) and any(map(found_in, part))

    return found_in(adapter.core_schema)


def _payload_error(exc: ValidationError) -> MalformedPayload | InvalidPayload:
    count = exc.error_count()
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    if count == 1 and errors[0]["type"] == "json_invalid" and not errors[0]["loc"]:
        reason = errors[0]["msg"].removeprefix("Invalid JSON: ")
        is_bare = reason.startswith(("expected value", "expected ident", "key must be a string"))
        hint = "; text and names need double quotes" if is_bare else ""
        return MalformedPayload(f"the body is not valid JSON: {reason}{hint}")
    shown = [
        {"type": error["type"], "loc": list(map(_cut, error["loc"])), "msg": _cut(error["msg"])}
        for error in errors[:MAX_FIELD_ERRORS]
    ]
    return InvalidPayload(shown, count)


def _clearest(exc: PayloadError, payload: bytes, codec: Codec) -> PayloadError:
    """Return what says best why a payload was not taken: what a parser says is about its parts."""
    if not isinstance(exc, MalformedPayload):
        return exc
    if not payload.strip():
        return MalformedPayload.empty(codec)
    return exc if sniff(payload) == codec else MalformedPayload.mistaken(codec)


def _cut(part: Any) -> Any:
    """Return a key or a message short enough to be sent back, an index as it is."""
    return part[: MAX_TEXT - 1] + "…" if isinstance(part, str) and len(part) > MAX_TEXT else part
