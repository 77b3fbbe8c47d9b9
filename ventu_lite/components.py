"""What every API document says alike: errors, headers, parameters and the schemas of our bodies.

Constants only, as OpenAPI 3.1 writes them; never to be changed in place.
"""

from collections.abc import Mapping
from typing import Any

# Status -> (component name, description): the errors that a service gives by itself.
ERRORS = {
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
STAGE_ERROR = ("StageError", "What the model itself answered instead of a result.")
RETRY_LATER = {429, 503}


def _object(properties: Mapping[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


PARAMETERS = {
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
HEADERS = {
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
SCHEMAS = {
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
            "error_count": {"type": "integer", "description": "How many were found."},
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
        description="What was found out by really running the examples.",
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
