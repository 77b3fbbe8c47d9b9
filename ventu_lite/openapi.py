"""What the world is told about a service: its OpenAPI 3.1 document.

Values in, a map out: nothing here reads a file, knows Flask or remembers anything. The document
describes every answer that a service gives by itself, under any server.
"""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from . import components
from .schemas import Schemas

__all__ = ["document"]

_JSON = "application/json"
_PROBLEM = "application/problem+json"


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
    schemas = Schemas(request, response, components.SCHEMAS)
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


def _as_json(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of JSON values only, whatever a ``json_schema_extra`` has brought in."""
    text = to_json(whole, inf_nan_mode="null", bytes_mode="base64", fallback=repr)
    copy: dict[str, Any] = json.loads(text)
    return copy


def _inference(
    schemas: Schemas, media_types: Sequence[str], examples: Sequence[Any], api_key: bool
) -> dict[str, Any]:
    errors = {str(status): _response_ref(name) for status, (name, _) in _errors(api_key).items()}
    operation = {
        "operationId": "infer",
        "tags": ["inference"],
        "summary": "Run the model on one request",
        "description": "The answer comes in the type of the request. Where Flask runs the model,"
        " `Accept` may choose another of its types; `serve` and `batching` answer 406 to that.",
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
            "default": _response_ref(components.STAGE_ERROR[0]),
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


def _operations(schemas: Schemas) -> dict[str, dict[str, Any]]:
    health = {_JSON: {"schema": schemas.own("Health")}}
    status = {_JSON: {"schema": schemas.own("Status")}}
    text = {"schema": {"type": "string"}}
    metrics = {name: text for name in ("text/plain", "application/openmetrics-text")}
    return {
        "/health": _operation(
            "health",
            "Run the examples and compare the answers",
            {
                "200": {
                    "description": "All were answered as expected, or there are none.",
                    "content": health,
                },
                "503": {"description": "One was not.", "content": health},
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


def _components(schemas: Schemas, media_types: Sequence[str], api_key: bool) -> dict[str, Any]:
    errors = _errors(api_key)
    responses = {
        name: _problem(schemas, status, text, media_types)
        for status, (name, text) in [*errors.items(), (0, components.STAGE_ERROR)]
    }
    parts = {
        "schemas": schemas.components,
        "parameters": components.PARAMETERS,
        "headers": components.HEADERS,
        "responses": responses,
    }
    bearer = {"apiKey": {"type": "http", "scheme": "bearer"}}
    return parts | ({"securitySchemes": bearer} if api_key else {})


def _errors(api_key: bool) -> dict[int, tuple[str, str]]:
    return {
        status: error for status, error in components.ERRORS.items() if api_key or status != 401
    }


def _problem(
    schemas: Schemas, status: int, description: str, media_types: Sequence[str]
) -> dict[str, Any]:
    schema = schemas.own("ValidationProblem" if status == 422 else "Problem")
    names = [_PROBLEM, *(name for name in media_types if name != _JSON)]
    headers = (
        ["X-Request-ID", "Retry-After"] if status in components.RETRY_LATER else ["X-Request-ID"]
    )
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
