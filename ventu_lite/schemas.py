"""The JSON schemas of an API document: those of the user's types, put right, beside our own."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

_REF = "#/components/schemas/{model}"

# Keywords of JSON Schema that hold schemas; the value of any other keyword is data, never walked.
_SCHEMA_MAPS = {"properties", "patternProperties", "dependentSchemas", "$defs"}
_SCHEMA_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_SCHEMAS = {
    *("items", "contains", "unevaluatedItems"),
    *("additionalProperties", "propertyNames", "unevaluatedProperties"),
    *("not", "if", "then", "else"),
}


class _JsonSchema(GenerateJsonSchema):
    """Describe what can be described: a type without a JSON schema stands as "anything"."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


class Schemas:
    """The schemas of a document: those of the user, and ours under names that he left free.

    Args:
        request: What the inference takes; described as it is validated.
        response: What the inference gives; described as it is serialised.
        own: Our schemas by name. None refers to another.

    Attributes:
        request: The schema of a request, mostly a reference.
        response: The schema of a response, mostly a reference.
        components: Every named schema, the user's first.
    """

    def __init__(
        self, request: TypeAdapter[Any], response: TypeAdapter[Any], own: Mapping[str, Any]
    ) -> None:
        by_mode, definitions = TypeAdapter.json_schemas(
            [("request", "validation", request), ("response", "serialization", response)],
            by_alias=True,
            ref_template=_REF,
            schema_generator=_JsonSchema,
        )
        users = {name: _tidy(schema) for name, schema in definitions.get("$defs", {}).items()}
        self.request = _tidy(by_mode["request", "validation"])
        self.response = _tidy(by_mode["response", "serialization"])
        self._names = {name: _free_name(name, users) for name in own}
        self.components = users | {self._names[name]: schema for name, schema in own.items()}

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
