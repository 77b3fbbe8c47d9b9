"""What the world is told about a service: its OpenAPI 3.1 document.

Values in, a map out: nothing here reads a file, knows Flask or remembers anything. The document
describes every answer that a service gives by itself, under any server.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import to_json

__all__ = ["document"]

_JSON = "application/json"
_PROBLEM = "application/problem+json"
_REF = "#/components/schemas/{model}"

# Keywords of JSON Schema that hold schemas; the value of any other keyword is data, never walked.
_SCHEMA_MAPS = {"properties", "patternProperties", "dependentSchemas", "$defs"}
_SCHEMA_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_SCHEMAS = {"items", "additionalProperties", "propertyNames", "not", "contains", "if", "then"} | {
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
}

# Status -> (component name, description): the errors that a service gives by itself.
_ERRORS = {
    400: ("Malformed", "The request or its body is malformed."),
    401: ("Unauthorized", "The API key is missing or wrong."),
    406: ("NotAcceptable", "No media type that `Accept` allows can be given."),
    408: ("TooSlow", "The client did not send its request in time."),
    413: ("TooLarge", "The body is larger than this service accepts."),
    415: ("UnsupportedMediaType", "The body has a content type that this service does not read."),
    422: ("Invalid", "The body does not fit the request schema."),
    429: ("QueueFull", "Too many requests are waiting."),
    500: ("Failed", "The model failed; the log has the details under the request id."),
    503: ("NotReady", "The service is starting, stopping or unable to answer."),
    504: ("DeadlinePassed", "The deadline of the request has passed."),
}
_STAGE_ERROR = ("StageError", "What the model itself answered instead of a result.")
_RETRY_LATER = {429, 503}


def document(
    *,
    name: str,
    version: str,
    request: TypeAdapter[Any],
    response: TypeAdapter[Any],
    media_types: Sequence[str],
    description: str = "",
    examples: Sequence[Any] = (),
    server: str = "/",
    api_key: bool = False,
) -> dict[str, Any]:
    """Return the OpenAPI document of one service, made of JSON values only and free to be changed.

    Args:
        name: The title of the document.
        version: The version of the service, not of OpenAPI.
        request: What the inference takes; described as it is validated.
        response: What the inference gives; described as it is serialised.
        media_types: What the inference reads and writes, the preferred one first.
        description: Markdown.
        examples: Requests that work, as JSON values.
        server: The path, or URL, below which the routes are.
        api_key: Whether the inference asks for ``Authorization: Bearer``.
    """
    schemas = _Schemas(request, response)
    info = {"title": name, "version": version, "description": description}
    whole = {
        "openapi": "3.1.0",
        "info": {key: value for key, value in info.items() if value or key != "description"},
        "servers": [{"url": server}],
        "tags": [
            {"name": "inference", "description": "Ask the model."},
            {"name": "operations", "description": "For probes and monitoring."},
        ],
        "paths": {
            "/inference": {"post": _inference(schemas, media_types, examples, api_key)},
            **{path: {"get": get} for path, get in _operations(schemas).items()},
        },
        "components": _components(schemas, media_types, api_key),
    }
    return _as_json(whole)


class _JsonSchema(GenerateJsonSchema):
    """Describe what can be described: a type without a JSON schema stands as "anything"."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


class _Schemas:
    """The schemas of the document: those of the user, and ours under names that he left free.

    Attributes:
        request: The schema of a request, mostly a reference.
        response: The schema of a response, mostly a reference.
        components: Every named schema, the user's first.
    """

    def __init__(self, request: TypeAdapter[Any], response: TypeAdapter[Any]) -> None:
        by_mode, definitions = TypeAdapter.json_schemas(
            [("request", "validation", request), ("response", "serialization", response)],
            by_alias=True,
            ref_template=_REF,
            schema_generator=_JsonSchema,
        )
        users = {name: _tidy(schema) for name, schema in definitions.get("$defs", {}).items()}
        self.request = _tidy(by_mode["request", "validation"])
        self.response = _tidy(by_mode["response", "serialization"])
        self._names = {name: _free_name(name, users) for name in _OWN_SCHEMAS}
        own = {self._names[name]: schema for name, schema in _OWN_SCHEMAS.items()}
        self.components = {**users, **own}

    def own(self, name: str) -> dict[str, Any]:
        """Return a reference to one of our own schemas."""
        return {"$ref": _REF.format(model=self._names[name])}


def _free_name(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name = f"Service{name}"
    return name


def _tidy(schema: Any) -> Any:
    """Drop ``batch_size`` and defaults without a JSON, and turn ``example`` into ``examples``."""
    if not isinstance(schema, dict):
        return schema  # true, false
    tidy = {key: _tidy_value(key, value) for key, value in schema.items() if key != "batch_size"}
    if "example" in tidy:
        more = tidy.get("examples")
        tidy["examples"] = [tidy.pop("example"), *(more if isinstance(more, list) else [])]
    default = tidy.get("default")
    if isinstance(default, float) and not math.isfinite(default):
        del tidy["default"]
    return tidy


def _tidy_value(key: str, value: Any) -> Any:
    if key in _SCHEMA_MAPS:
        return {name: _tidy(schema) for name, schema in value.items()}
    if key in _SCHEMA_LISTS:
        return [_tidy(schema) for schema in value]
    return _tidy(value) if key in _SCHEMAS else value


def _as_json(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of JSON values only, whatever a ``json_schema_extra`` has brought in."""
    text = to_json(whole, inf_nan_mode="null", bytes_mode="base64", fallback=repr)
    copy: dict[str, Any] = json.loads(text)
    return copy


def _inference(
    schemas: _Schemas, media_types: Sequence[str], examples: Sequence[Any], api_key: bool
) -> dict[str, Any]:
    errors = {str(status): _response_ref(name) for status, (name, _) in _errors(api_key).items()}
    operation = {
        "operationId": "infer",
        "tags": ["inference"],
        "summary": "Run the model on one request",
        "description": "The answer comes in the type that `Accept` names,"
        " else in the type of the request.",
        "parameters": [_parameter_ref("RequestID"), _parameter_ref("RequestTimeout")],
        "requestBody": {
            "required": True,
            "content": _request_content(schemas.request, media_types, examples),
        },
        "responses": {
            "200": {
                "description": "The answer of the model.",
                "headers": _header_refs("X-Request-ID", "Server-Timing"),
                "content": {name: {"schema": schemas.response} for name in media_types},
            },
            **errors,
            "default": _response_ref(_STAGE_ERROR[0]),
        },
    }
    return operation | ({"security": [{"apiKey": []}]} if api_key else {})


def _request_content(
    schema: Any, media_types: Sequence[str], examples: Sequence[Any]
) -> dict[str, Any]:
    """Return the content of the request body; only text types can show an example."""
    content: dict[str, Any] = {name: {"schema": schema} for name in media_types}
    if examples and _JSON in content:
        named = {f"example {n}": {"value": value} for n, value in enumerate(examples, 1)}
        content[_JSON]["examples"] = named
    return content


def _operations(schemas: _Schemas) -> dict[str, dict[str, Any]]:
    health = {_JSON: {"schema": schemas.own("Health")}}
    status = {_JSON: {"schema": schemas.own("Status")}}
    text = {"schema": {"type": "string"}}
    metrics = {name: text for name in ("text/plain", "application/openmetrics-text")}
    return {
        "/health": _operation(
            "health",
            "Run the example and compare the answer",
            {
                "200": {
                    "description": "It was answered as expected, or there is none.",
                    "content": health,
                },
                "503": {"description": "It was not.", "content": health},
            },
        ),
        "/livez": _operation(
            "livez",
            "Is the process alive?",
            {"200": {"description": "It is.", "content": status}},
        ),
        "/readyz": _operation(
            "readyz",
            "Can an inference be answered now?",
            {
                "200": {"description": "It can.", "content": status},
                "503": {"description": "It cannot.", "content": status},
            },
        ),
        "/metrics": _operation(
            "metrics",
            "Measurements for Prometheus",
            {"200": {"description": "One line per series.", "content": metrics}},
        ),
    }


def _operation(name: str, summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name,
        "tags": ["operations"],
        "summary": summary,
        "responses": responses,
    }


def _components(schemas: _Schemas, media_types: Sequence[str], api_key: bool) -> dict[str, Any]:
    errors = _errors(api_key)
    responses = {
        name: _problem(schemas, status, text, media_types)
        for status, (name, text) in [*errors.items(), (0, _STAGE_ERROR)]
    }
    components = {
        "schemas": schemas.components,
        "parameters": _PARAMETERS,
        "headers": _HEADERS,
        "responses": responses,
    }
    bearer = {"apiKey": {"type": "http", "scheme": "bearer"}}
    return components | ({"securitySchemes": bearer} if api_key else {})


def _errors(api_key: bool) -> dict[int, tuple[str, str]]:
    return {status: error for status, error in _ERRORS.items() if api_key or status != 401}


def _problem(
    schemas: _Schemas, status: int, description: str, media_types: Sequence[str]
) -> dict[str, Any]:
    schema = schemas.own("ValidationProblem" if status == 422 else "Problem")
    names = [_PROBLEM, *(name for name in media_types if name != _JSON)]
    headers = ["X-Request-ID", "Retry-After"] if status in _RETRY_LATER else ["X-Request-ID"]
    return {
        "description": description,
        "headers": _header_refs(*headers),
        "content": {name: {"schema": schema} for name in names},
    }


def _response_ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{name}"}


def _parameter_ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{name}"}


def _header_refs(*names: str) -> dict[str, dict[str, str]]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _object(properties: Mapping[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


_PARAMETERS = {
    "RequestID": {
        "name": "X-Request-ID",
        "in": "header",
        "description": "An id to find this request by, in the answer and in the logs.",
        "schema": {"type": "string"},
    },
    "RequestTimeout": {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds after which the answer is of no use; shortens the deadline.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
}
_HEADERS = {
    "X-Request-ID": {
        "description": "The id of the request: the one it came with, or a new one.",
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Where the milliseconds went, and the size of the batch.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which a new try makes sense.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_PROBLEM_PROPERTIES: dict[str, Any] = {
    "type": {"type": "string", "format": "uri-reference", "default": "about:blank"},
    "title": {"type": "string", "description": "The status in words."},
    "status": {"type": "integer", "description": "The HTTP status."},
    "detail": {"type": "string", "description": "What was wrong this time."},
    "instance": {"type": "string", "format": "uri-reference"},
}
_FIELD_ERROR = _object(
    {
        "type": {"type": "string", "examples": ["missing"]},
        "loc": {
            "type": "array",
            "items": {"type": ["string", "integer"]},
            "description": "The way to the field.",
        },
        "msg": {"type": "string", "examples": ["Field required"]},
    },
    *("type", "loc", "msg"),
)
_OWN_SCHEMAS = {
    "Problem": _object(
        _PROBLEM_PROPERTIES, "title", "status", description="Problem details (RFC 9457)."
    ),
    "ValidationProblem": _object(
        {
            **_PROBLEM_PROPERTIES,
            "errors": {
                "type": "array",
                "items": _FIELD_ERROR,
                "maxItems": 20,
                "description": "The first field errors.",
            },
            "error_count": {"type": "integer", "description": "How many there were in all."},
        },
        *("title", "status", "errors", "error_count"),
        description="Problem details (RFC 9457) with the fields that do not fit.",
    ),
    "Health": _object(
        {
            "service": {"type": "string", "const": "OK"},
            "inference": {"type": "string", "enum": ["OK", "Error", "Unknown"]},
            "detail": {"type": "string", "description": "Why, unless it is `OK`."},
        },
        *("service", "inference"),
        description="What was found out by really running the example.",
    ),
    "Status": _object(
        {
            "status": {"type": "string", "examples": ["alive", "ready", "not ready"]},
            "detail": {"type": "string", "description": "What is being waited for."},
        },
        "status",
        description="What a probe wants to know.",
    ),
}
