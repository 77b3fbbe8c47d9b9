"""Example requests: where they come from, and whether an answer is the expected one."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_jsonable_python

from .annotations import MISSING
from .codecs import dumped, plain, unpack_own
from .config import Codec
from .errors import InvalidPayload, RegistrationError
from .schema_examples import answer_in, requests_in
from .sending import CannotTravel, carry
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
        return self.difference(answer) is not None

    def difference(self, answer: bytes) -> "Difference | None":
        """Return where an answer is another than the expected one, ``None`` if it is not."""
        if self.expected is MISSING:
            return None
        return _difference(self.expected, _decode(answer, self.codec))


@dataclass(frozen=True)
class Difference:
    """The first place at which two answers differ, floats by more than a tolerance.

    Attributes:
        expected, got: What is there.
        place: Where, such as ``.scores[3]``; "" for the whole answer.
    """

    expected: Any
    got: Any
    place: str = ""

    def describe(self, expected: str) -> str:
        """Say both, shortened; ``expected`` is what the first is called."""
        at = f" at {self.place}" if self.place else ""
        return f"{_short(self.got)}{at}, {expected} {_short(self.expected)}"


def difference_of(expected: bytes, got: bytes, codec: Codec) -> Difference | None:
    """Return where two answers differ, ``None`` if they say the same."""
    return _difference(_decode(expected, codec), _decode(got, codec))


def find_examples(
    given: Any, request: Schema, response: Schema, codecs: Sequence[Codec]
) -> list[Probe]:
    """Return the examples of ``Service(examples=...)``, else those of the request schema.

    Raises:
        RegistrationError: They are a tuple, or an example does not fit its schema.
    """
    if given is None:
        return _of_schema(request, response, codecs)
    if isinstance(given, tuple):
        raise RegistrationError(
            f"examples is the tuple {_short(given)}. Give a list: examples=[a, b] are two requests,"
            " examples=[(a, b)] is one request and its expected answer."
        )
    examples = [_as_example(one) for one in (given if isinstance(given, list) else [given])]
    return [_probe(one, request, response, codecs) for one in examples]


def _as_example(given: Any) -> Example:
    if isinstance(given, Example):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return Example(*given)
    return Example(given)


def _of_schema(request: Schema, response: Schema, codecs: Sequence[Codec]) -> list[Probe]:
    requests = requests_in(request)
    # Of several requests nobody knows which one it answers.
    answer = answer_in(response) if len(requests) == 1 else MISSING
    return [_probe(Example(one, answer), request, response, codecs) for one in requests]


def _probe(example: Example, request: Schema, response: Schema, codecs: Sequence[Codec]) -> Probe:
    payload, codec = _payload(example.request, request, codecs)
    try:
        document = to_jsonable_python(dumped(example.request), fallback=plain)
    except Exception:  # only the document suffers, which does without
        document = None
    return Probe(payload, codec, document, _expected(example, response, codec))


def _payload(value: Any, schema: Schema, codecs: Sequence[Codec]) -> tuple[bytes, Codec]:
    """Return the first of the codecs in which a client could send this value."""
    try:
        return carry(value, schema, codecs)
    except CannotTravel as exc:
        _, failure = exc.failures[0]
    raise RegistrationError(
        f"the example {_short(value)} does not fit the request schema: {_why(failure)}."
        " Correct it, or say Service(examples=[...]), a list of requests."
    ) from failure


def _why(failure: Exception) -> str:
    if not isinstance(failure, InvalidPayload):
        return f"{type(failure).__name__}: {failure}".rstrip(".")
    places = [(".".join(map(str, error["loc"])), error["msg"]) for error in failure.errors]
    return "; ".join(f"{place}: {text}" if place else text for place, text in places)


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
    return from_json(answer) if codec == "json" else unpack_own(answer)


def _difference(expected: Any, got: Any, place: str = "") -> Difference | None:
    parts: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
        parts = ((part, got[key], f"{place}.{key}") for key, part in expected.items())
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        pairs = enumerate(zip(expected, got, strict=True))
        parts = ((*pair, f"{place}[{number}]") for number, pair in pairs)
    elif not _is_close(expected, got):
        return Difference(expected, got, place)
    return next((found for part in parts if (found := _difference(*part))), None)


def _is_close(expected: Any, got: Any) -> bool:
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    if isinstance(expected, (int, float)) and isinstance(got, (int, float)):
        return math.isclose(
            expected, got, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE
        ) or (expected != expected and got != got)
    return bool(expected == got)
