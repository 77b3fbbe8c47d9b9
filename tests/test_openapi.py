"""The API document is valid OpenAPI 3.1 for any schema, and says what the service does."""

import dataclasses
import datetime
import decimal
import enum
import math
import operator
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, computed_field
from typing_extensions import TypedDict

from ventu_lite.openapi import document

JSON = "application/json"
MSGPACK = "application/msgpack"
T = TypeVar("T")


def describe(request: Any = int, response: Any = float, **options: Any) -> dict[str, Any]:
    return document(
        name="Sentiment",
        version="1.0",
        request=TypeAdapter(request),
        response=TypeAdapter(response),
        **{"media_types": [JSON, MSGPACK], **options},
    )


def assert_valid(openapi: dict[str, Any]) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(openapi).iter_errors()] == []


class Kind(enum.Enum):
    CAT = "cat"
    DOG = "dog"


class Model(BaseModel):
    """A model with a bit of everything that JSON Schema has its own words for."""

    text: str = Field(min_length=2, examples=["cute"])
    maybe: int | None = None
    ratio: float = Field(0.5, gt=0, lt=1)
    word: Literal["a"] = "a"
    pair: tuple[int, str] = (1, "a")
    by_name: dict[Annotated[str, Field(pattern="^a")], float] = {}
    raw: bytes = b"\xff"
    when: datetime.datetime | None = None
    limit: float = math.inf
    callback: Callable[[], None] | None = None


class Tree(BaseModel):
    children: list["Tree"] = []


class Box(BaseModel, Generic[T]):
    content: T


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Opaque:
    """A class that has no JSON schema."""


class WithOpaque(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    thing: Opaque | None = None


class Aliased(BaseModel):
    text: str = Field(validation_alias=AliasChoices("text", "t"), serialization_alias="said")

    @computed_field
    def length(self) -> int:
        return len(self.text)


@dataclasses.dataclass
class Data:
    text: str
    more: list[int] = dataclasses.field(default_factory=list)


class Typed(TypedDict):
    text: str


class Named(NamedTuple):
    x: int
    y: int = 0


Animal = Annotated[Cat | Dog, Field(discriminator="kind")]
TYPES = [
    *(Any, None, int, bool, str, bytes, list[float], dict[str, Any], tuple[int, ...], set[str]),
    *(Model, Tree, Box[int], Box[list[Tree]], Animal, list[Cat | Dog | None], Kind, Data, Typed),
    *(Named, WithOpaque, Aliased, decimal.Decimal, uuid.UUID, datetime.timedelta),
]


@pytest.mark.parametrize("schema", TYPES, ids=str)
def test_document_is_valid_for_any_type(schema: Any) -> None:
    assert_valid(describe(schema, schema))


def nested(types: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        types.map(lambda t: list[t]),  # type: ignore[valid-type]  # built while it runs
        types.map(lambda t: dict[str, t]),  # type: ignore[valid-type]  # built while it runs
        types.map(lambda t: Box[t]),  # type: ignore[valid-type]  # built while it runs
        st.tuples(types, types).map(lambda pair: tuple[pair]),  # type: ignore[valid-type]  # too
        st.tuples(types, types).map(lambda pair: operator.or_(*pair)),
    )


ANY_TYPE = st.recursive(
    st.sampled_from([int, str, bytes, Kind, Model, Tree, Data, Typed]), nested, max_leaves=4
)


@settings(max_examples=30, deadline=None)
@given(request=ANY_TYPE, response=ANY_TYPE, api_key=st.booleans())
def test_document_is_valid_for_any_pair_of_types(
    request: Any, response: Any, api_key: bool
) -> None:
    assert_valid(describe(request, response, api_key=api_key))


def inference(openapi: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = openapi["paths"]["/inference"]["post"]
    return operation


def request_schema(openapi: dict[str, Any]) -> Any:
    return resolve(openapi, inference(openapi)["requestBody"]["content"][JSON]["schema"])


def response_schema(openapi: dict[str, Any], status: str = "200", media_type: str = JSON) -> Any:
    response = resolve(openapi, inference(openapi)["responses"][status])
    return resolve(openapi, response["content"][media_type]["schema"])


def resolve(openapi: dict[str, Any], node: Any) -> Any:
    if set(node) != {"$ref"}:
        return node
    for part in node["$ref"].removeprefix("#/").split("/"):
        openapi = openapi[part]
    return openapi


def test_service_is_named() -> None:
    openapi = describe(description="Is it *nice*?", server="/v1")

    assert openapi["openapi"] == "3.1.0"
    assert openapi["info"] == {
        "title": "Sentiment",
        "version": "1.0",
        "description": "Is it *nice*?",
    }
    assert openapi["servers"] == [{"url": "/v1"}]


def test_every_operation_has_an_id_a_tag_and_a_summary() -> None:
    operations = {
        path: operation
        for path, methods in describe()["paths"].items()
        for operation in methods.values()
    }

    assert list(operations) == ["/inference", "/health", "/livez", "/readyz", "/metrics"]
    ids = [operation["operationId"] for operation in operations.values()]
    assert ids == ["infer", "health", "livez", "readyz", "metrics"]
    assert all(operation["tags"] and operation["summary"] for operation in operations.values())


def test_inference_lists_every_status_of_the_service() -> None:
    assert list(inference(describe())["responses"]) == [
        *("200", "400", "406", "408", "413", "415", "422", "429", "500", "503", "504", "default")
    ]


def test_request_is_described_as_validated_and_response_as_serialised() -> None:
    openapi = describe(Aliased, Aliased)

    assert set(request_schema(openapi)["properties"]) == {"text"}
    assert set(response_schema(openapi)["properties"]) == {"said", "length"}


def test_property_order_is_kept() -> None:
    assert list(request_schema(describe(Model))["properties"])[:3] == ["text", "maybe", "ratio"]


@pytest.mark.parametrize("media_types", [[JSON], [MSGPACK], [JSON, MSGPACK], [MSGPACK, JSON]])
def test_media_types_are_those_of_the_service(media_types: list[str]) -> None:
    openapi = describe(media_types=media_types, examples=[1])

    assert_valid(openapi)
    assert list(inference(openapi)["requestBody"]["content"]) == media_types
    assert list(inference(openapi)["responses"]["200"]["content"]) == media_types


def test_errors_are_problem_details_in_both_codecs() -> None:
    openapi = describe()

    for media_type in ("application/problem+json", MSGPACK):
        properties = response_schema(openapi, "500", media_type)["properties"]
        assert set(properties) == {"type", "title", "status", "detail", "instance"}
        invalid = response_schema(openapi, "422", media_type)["properties"]
        assert set(invalid) == {*properties, "errors", "error_count"}
        assert set(invalid["errors"]["items"]["properties"]) == {"type", "loc", "msg"}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200", {"X-Request-ID", "Server-Timing"}),
        ("422", {"X-Request-ID"}),
        ("429", {"X-Request-ID", "Retry-After"}),
        ("503", {"X-Request-ID", "Retry-After"}),
    ],
)
def test_headers_of_an_answer(status: str, headers: set[str]) -> None:
    openapi = describe()

    assert set(resolve(openapi, inference(openapi)["responses"][status])["headers"]) == headers


def test_headers_of_a_request() -> None:
    openapi = describe()
    parameters = [resolve(openapi, ref) for ref in inference(openapi)["parameters"]]

    names = [parameter["name"] for parameter in parameters]
    assert names == ["X-Request-ID", "X-Request-Timeout"]


def test_api_key_is_asked_for_by_the_inference_alone() -> None:
    openapi = describe(api_key=True)

    assert_valid(openapi)
    assert inference(openapi)["security"] == [{"apiKey": []}]
    assert "401" in inference(openapi)["responses"]
    assert openapi["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    assert not any("security" in path.get("get", {}) for path in openapi["paths"].values())


def test_without_an_api_key_nothing_is_said_of_one() -> None:
    openapi = describe()

    assert "security" not in inference(openapi)
    assert "securitySchemes" not in openapi["components"]
    assert "Unauthorized" not in openapi["components"]["responses"]


def test_examples_are_shown_where_they_can_be_sent() -> None:
    content = inference(describe(examples=[{"n": 1}, {"n": 2}]))["requestBody"]["content"]

    assert content[JSON]["examples"] == {
        "example 1": {"value": {"n": 1}},
        "example 2": {"value": {"n": 2}},
    }
    assert "examples" not in content[MSGPACK]


def test_it_says_where_the_other_type_is_refused() -> None:
    """One document speaks for Flask, which can change the type, and for ``serve``, which cannot."""
    said = inference(describe())["description"]
    assert said.startswith("The answer comes in the type of the request.")
    assert "`serve` and `batching` answer 406" in said


def test_extras_of_ventu_become_json_schema() -> None:
    class Old(BaseModel):
        model_config = ConfigDict(
            json_schema_extra={"example": {"batch_size": 1, "example": 2}, "batch_size": 8}
        )
        batch_size: int
        example: int = Field(json_schema_extra={"example": 3, "examples": [4]})

    schema = request_schema(describe(Old))

    assert schema["examples"] == [{"batch_size": 1, "example": 2}]
    assert not {"example", "batch_size"} & set(schema)
    assert set(schema["properties"]) == {"batch_size", "example"}  # names, not keywords
    assert schema["properties"]["example"]["examples"] == [3, 4]


def test_users_own_names_win() -> None:
    class Problem(BaseModel):
        mine: int

    class Health(BaseModel):
        problem: Problem

    class ServiceProblem(BaseModel):
        health: Health

    openapi = describe(ServiceProblem, Health)
    schemas = openapi["components"]["schemas"]

    assert_valid(openapi)
    assert set(schemas["Problem"]["properties"]) == {"mine"}
    assert set(schemas["Health"]["properties"]) == {"problem"}
    assert "title" in response_schema(openapi, "500", MSGPACK)["properties"]
    health = openapi["paths"]["/health"]["get"]["responses"]["200"]["content"][JSON]["schema"]
    assert set(resolve(openapi, health)["properties"]) == {"service", "inference", "detail"}


def test_document_holds_json_values_only() -> None:
    extra: dict[str, Any] = {"examples": [{"raw": b"\xff", "kind": Kind, "nan": math.nan}]}

    class Odd(BaseModel):
        model_config = ConfigDict(json_schema_extra=extra)

    example = request_schema(describe(Odd))["examples"][0]

    assert example == {"raw": "_w==", "kind": "<enum 'Kind'>", "nan": None}


def test_document_is_free_to_be_changed() -> None:
    describe()["components"]["schemas"]["Problem"].clear()

    assert describe()["components"]["schemas"]["Problem"]
