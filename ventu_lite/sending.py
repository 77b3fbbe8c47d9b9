"""Python values as clients would send them: in which bytes one travels and is still the same."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import AliasChoices, BaseModel, RootModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError

from .annotations import MISSING
from .changes import first_change, is_equal
from .codecs import dumped, encode_request, sniff
from .config import Codec
from .errors import InvalidPayload, PayloadError, VentuError
from .misfits import errors_in, place_in
from .validation import Schema

# What is like this in Python is like this in msgpack, so there is nothing to open.
_SIMPLE: Final = frozenset({str, int, float, bool, bytes, type(None)})

# What these say is about types: codecs raise them, and no code of the user's gets to.
_TELLING: Final = (PayloadError, PydanticSerializationError, OverflowError, TypeError)


class CannotTravel(VentuError):
    """No codec carries a value as it is.

    Attributes:
        failures: Each attempt, with why it failed; the last of a codec is the plainest.
    """

    def __init__(self, failures: list[tuple[Codec, Exception]], schema: Schema) -> None:
        last = dict(failures)
        reasons = "; ".join(f"in {codec}, {_why(exc, schema)}" for codec, exc in last.items())
        super().__init__(f"no codec carries this request as it is: {reasons}")
        self.failures = failures


class _Changed(VentuError):
    """What is read is not what was sent."""


def carry(
    value: Any, schema: Schema, codecs: Sequence[Codec], item: Any = MISSING
) -> tuple[bytes, Codec]:
    """Return the bytes in which a client could send a value, in the first codec that carries it.

    Args:
        value: What a client would send, or an instance of the schema.
        schema: Reads the bytes.
        codecs: Those that may be used; who reads them goes by the first byte if there are several.
        item: What the schema makes of the value, and must make of the bytes; ``MISSING`` if it may
            make of them what it likes.

    Raises:
        CannotTravel: There is none.
    """
    failures: list[tuple[Codec, Exception]] = []
    for codec in codecs:
        for form in _forms(value, schema, item):
            try:
                sent = form()
                payload = encode_request(sent, codec)
                if len(codecs) > 1 and sniff(payload) != codec:
                    raise _Changed(f"its first byte looks like {sniff(payload)}")
                if item is MISSING:
                    schema.parse(payload, codec)
                elif sent is not value or codec != "msgpack" or not _is_exact(value):
                    _check(payload, codec, schema, item)
                return payload, codec
            except Exception as exc:  # pydantic, msgpack and the user's own validators
                failures.append((codec, exc))
    raise CannotTravel(failures, schema)


def _forms(value: Any, schema: Schema, item: Any) -> Iterator[Callable[[], Any]]:
    """Yield what makes of a value something that codecs may be able to say, the likeliest first."""
    yield lambda: dumped(value)
    if item is MISSING:
        return
    # A type may write itself in a way of its own that it reads: Base64Bytes, Json.
    dump = schema.adapter.dump_python
    yield lambda: opened(dump(item, by_alias=True, round_trip=True, warnings=False))
    # Or in one that it does not: a serializer of the user's, an excluded field.
    yield lambda: opened(item)


def _is_exact(value: Any) -> bool:
    """Tell whether msgpack has a word for each part of a value, so that nothing need be checked."""
    if type(value) is list:
        return _SIMPLE.issuperset(map(type, value)) or all(map(_is_exact, value))
    if type(value) is dict:
        return {str}.issuperset(map(type, value)) and _is_exact(list(value.values()))
    return type(value) in _SIMPLE


def _check(payload: bytes, codec: Codec, schema: Schema, item: Any) -> None:
    """Refuse bytes of which the schema makes another item."""
    read = schema.parse(payload, codec)
    if is_equal(item, read):
        return
    place = first_change(item, read, schema.parse(payload, codec))
    if place is not None:
        at = f" at {named}" if (named := place_in(place, schema.adapter)) else ""
        raise _Changed(f"another value arrives{at}")


def opened(value: Any) -> Any:
    """Return a value with the fields of models and dataclasses, however deep, as maps.

    Fields have the names by which they are read. A secret is told: a client would tell it, too.
    """
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, dict):
        return {key: opened(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        is_simple = _SIMPLE.issuperset(map(type, value))
        return value if is_simple else [opened(part) for part in value]
    if isinstance(value, RootModel):
        return opened(value.root)
    if isinstance(value, BaseModel):
        return _opened_model(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _opened_dataclass(value)
    return opened(value.get_secret_value()) if hasattr(value, "get_secret_value") else value


def _opened_model(model: BaseModel) -> dict[str, Any]:
    parts, kind = vars(model), type(model)
    given = {
        _name_read(name, field, kind.model_config): opened(parts[name])
        for name, field in kind.model_fields.items()
        # A stage may ask which fields were set.
        if name in model.model_fields_set or parts[name] is not field.default
    }
    return given | {name: opened(part) for name, part in (model.model_extra or {}).items()}


def _opened_dataclass(instance: Any) -> dict[str, Any]:
    infos = getattr(instance, "__pydantic_fields__", {})
    config = getattr(instance, "__pydantic_config__", {})
    return {
        _name_read(field.name, infos.get(field.name), config): opened(getattr(instance, field.name))
        for field in dataclasses.fields(instance)
        if field.init
    }


def _name_read(name: str, field: FieldInfo | None, config: Mapping[str, Any]) -> str:
    """Return by which name validation finds a field."""
    alias = field.validation_alias if field else None
    if isinstance(alias, AliasChoices):
        alias = next((one for one in alias.choices if isinstance(one, str)), None)
    is_read = isinstance(alias, str) and config.get("validate_by_alias") is not False
    return str(alias) if is_read else name


def _why(failure: Exception, schema: Schema) -> str:
    """Return why an attempt failed, without showing any part of the value."""
    if isinstance(failure, InvalidPayload) and isinstance(failure.__cause__, ValidationError):
        return f"it does not fit the request schema: {errors_in(failure.__cause__, schema.adapter)}"
    is_telling = isinstance(failure, (*_TELLING, _Changed))
    return str(failure) if is_telling else f"there is a {type(failure).__name__}"
