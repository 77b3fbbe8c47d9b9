"""What the JSON schema of a type says about examples, in pydantic's keys and in those of ventu."""

from collections.abc import Mapping
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from .annotations import MISSING
from .validation import Schema


def requests_in(schema: Schema) -> list[Any]:
    """Return the examples of a type, or those that are made of the examples of its fields."""
    described = _json_schema(schema)
    return _made_of_fields(described, described.get("$defs", {}))


def answer_in(schema: Schema) -> Any:
    """Return the example of a response type that can be expected as an answer, or ``MISSING``.

    That is only ventu's own key: ``examples`` are for readers, and nobody promises them as answers.
    """
    return _json_schema(schema).get("example", MISSING)


def batch_size_in(schema: Schema) -> Any:
    """Return ``batch_size`` of ``json_schema_extra``, as ventu had it, or ``None``."""
    return _json_schema(schema).get("batch_size")


def unread_extra_in(*schemas: Schema) -> str:
    """Say which models call ``json_schema_extra`` as pydantic 1 did; "" if none does."""
    bare = (getattr(one.annotation, "__origin__", one.annotation) for one in schemas)  # Annotated
    old = [one.__name__ for one in bare if "schema_extra" in getattr(one, "model_config", ())]
    if not old:
        return ""
    return (
        f"pydantic 2 does not read schema_extra of {' and '.join(dict.fromkeys(old))}:"
        " rename it to json_schema_extra"
    )


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
) -> list[Any]:
    """Return the examples of an object, made of those of its fields where it has none of its own.

    The first has the first of each field, and so on, as far as all have more than one.

    Args:
        schema: The JSON schema of the object.
        definitions: What its references mean.
        within: The references that led here: a model inside itself is left out.
    """
    reference = schema.get("$ref", "")
    if reference in within:
        return []
    schema, within = _follow(schema, definitions), within | ({reference} if reference else set())
    if examples := _listed(schema):
        return examples
    if "const" in schema:
        return [schema["const"]]
    fields = {
        name: _made_of_fields(part, definitions, within)
        for name, part in schema.get("properties", {}).items()
    }
    if not all(fields[name] for name in schema.get("required", ())):
        return []
    given = {name: parts for name, parts in fields.items() if parts}
    several = [len(parts) for parts in given.values() if len(parts) > 1]
    return [
        {name: parts[n if len(parts) > 1 else 0] for name, parts in given.items()}
        for n in range(min(several, default=min(1, len(given))))
    ]
