"""Example requests: where they come from, and whether an answer is the expected one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic_core import from_json, to_json, to_jsonable_python

from .codecs import pack, plain
from .config import Codec
from .errors import InvalidPayload, RegistrationError
from .stages import MISSING
from .validation import Schema

# A model gives slightly other numbers on other hardware: single precision has 7 digits, and
# sums of many products lose some of them.
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Example:
    """A request and, if it is known, its answer.

    Attributes:
        request: What a client would send, as a Python value or as an instance of the schema.
        response: What the service should answer; compared by ``/health``.
    """

    request: Any
    response: Any = MISSING


@dataclass(frozen=True)
class Probe:
    """An example that was checked against the schemas, ready to be sent through the pipeline.

    Attributes:
        payload, codec: The request as a client would send it.
        document: The request as plain data, for the API document; ``None`` if JSON cannot say it.
        expected: The answer as plain data, or ``MISSING``.
    """

    payload: bytes
    codec: Codec
    document: Any
    expected: Any

    def differs(self, answer: bytes) -> bool:
        """Tell whether an answer is another than the expected one, floats within a tolerance."""
        if self.expected is MISSING:
            return False
        return not _is_close(self.expected, _decode(answer, self.codec))


def is_same_answer(one: bytes, other: bytes, codec: Codec) -> bool:
    """Tell whether two answers say the same, floats within a tolerance."""
    return _is_close(_decode(one, codec), _decode(other, codec))


def find_examples(
    given: Any, request: Schema, response: Schema, codecs: Sequence[Codec]
) -> list[Probe]:
    """Return the examples of ``Service(examples=...)``, else those of the request schema.

    Raises:
        RegistrationError: An example does not fit its schema.
    """
    if given is None:
        return _of_schema(request, response, codecs)
    examples = [_as_example(one) for one in (given if isinstance(given, list) else [given])]
    return [_probe(one, request, response, codecs) for one in examples]


def schema_batch_size(request: Schema) -> Any:
    """Return ``batch_size`` of ``json_schema_extra``, as ventu had it, or ``None``."""
    return _json_schema(request).get("batch_size")


def _as_example(given: Any) -> Example:
    if isinstance(given, Example):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return Example(*given)
    return Example(given)


def _of_schema(request: Schema, response: Schema, codecs: Sequence[Codec]) -> list[Probe]:
    schema = _json_schema(request)
    requests = _listed(schema)
    if not requests:
        made = _made_of_fields(schema, schema.get("$defs", {}))
        requests = [] if made is MISSING else [made]
    # Only ventu's own key: ``examples`` are for readers, and nobody promises them as answers.
    # Of several requests nobody knows which one it answers.
    answer = _json_schema(response).get("example", MISSING) if len(requests) == 1 else MISSING
    return [_probe(Example(one, answer), request, response, codecs) for one in requests]


def _json_schema(schema: Schema) -> dict[str, Any]:
    """Return the JSON schema with the outermost reference followed; empty if there is none."""
    try:
        document = schema.adapter.json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError):
        return {}
    return _follow(document, document.get("$defs", {})) | {"$defs": document.get("$defs", {})}


def _follow(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return {**definitions.get(name, {}), **schema}


def _listed(schema: Mapping[str, Any]) -> list[Any]:
    examples = schema.get("examples")
    if isinstance(examples, list):
        return examples
    return [schema["example"]] if "example" in schema else []


def _made_of_fields(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], within: frozenset[str] = frozenset()
) -> Any:
    """Return an object made of the examples of its fields, or ``MISSING``.

    Args:
        schema: The JSON schema of the object.
        definitions: What its references mean.
        within: The references that led here: a model inside itself is left out.
    """
    reference = schema.get("$ref", "")
    if reference in within:
        return MISSING
    schema, within = _follow(schema, definitions), within | ({reference} if reference else set())
    if examples := _listed(schema):
        return examples[0]
    if "const" in schema:
        return schema["const"]
    made = {
        name: _made_of_fields(part, definitions, within)
        for name, part in schema.get("properties", {}).items()
    }
    if any(made[name] is MISSING for name in schema.get("required", ())):
        return MISSING
    return {name: part for name, part in made.items() if part is not MISSING} or MISSING


def _probe(example: Example, request: Schema, response: Schema, codecs: Sequence[Codec]) -> Probe:
    payload, codec = _payload(example.request, request, codecs)
    try:
        document = to_jsonable_python(_dumped(example.request), fallback=plain)
    except Exception:  # only the document suffers, which does without
        document = None
    return Probe(payload, codec, document, _expected(example, response, codec))


def _payload(value: Any, schema: Schema, codecs: Sequence[Codec]) -> tuple[bytes, Codec]:
    """Return the first of the codecs in which a client could send this value."""
    failures = []
    for codec in codecs:
        try:
            dumped = _dumped(value)
            payload = to_json(dumped, fallback=plain) if codec == "json" else pack(dumped)
            schema.parse(payload, codec)
        except Exception as exc:  # pydantic, msgpack and the user's own validators
            failures.append(exc)
        else:
            return payload, codec
    raise RegistrationError(
        f"the example {_short(value)} does not fit the request schema: {_why(failures[0])}."
        " Correct it, or say Service(examples=[...]), a list of requests."
    ) from failures[0]


def _why(failure: Exception) -> str:
    if not isinstance(failure, InvalidPayload):
        return f"{type(failure).__name__}: {failure}".rstrip(".")
    places = [(".".join(map(str, error["loc"])), error["msg"]) for error in failure.errors]
    return "; ".join(f"{place}: {text}" if place else text for place, text in places)


def _dumped(value: Any) -> Any:
    """Return an instance of a model as a client would write it."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True, round_trip=True)
    return value


def _expected(example: Example, response: Schema, codec: Codec) -> Any:
    if example.response is MISSING:
        return MISSING
    try:
        answer = response.parse_value(example.response)
        return _decode(response.encode(answer, codec), codec)
    except Exception as exc:  # pydantic, msgpack and the user's own validators
        raise RegistrationError(
            f"the expected answer {_short(example.response)} does not fit the response schema:"
            f" {_why(exc)}"
        ) from exc


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _decode(answer: bytes, codec: Codec) -> Any:
    # Our own bytes, so integer keys do no harm.
    return from_json(answer) if codec == "json" else msgpack.unpackb(answer, strict_map_key=False)


def _is_close(expected: Any, got: Any) -> bool:
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    if isinstance(expected, (int, float)) and isinstance(got, (int, float)):
        return math.isclose(
            expected, got, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE
        ) or (expected != expected and got != got)
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(
            _is_close(part, got[key]) for key, part in expected.items()
        )
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(_is_close, expected, got))
    return bool(expected == got)
