"""A validator that is done with a list or map at its first bad element, for large bodies.

pydantic goes on to the end and notes every error, each in some 900 bytes, and an element of two
bytes may have an error for every field of a model: a megabyte of ``[[],[],…`` becomes more than a
gigabyte. The option that stops it, ``fail_fast``, is one of each container, so it is set on all of
them; older versions of pydantic pass over that of a dict.
"""

from typing import Any, Final

from pydantic_core import SchemaValidator

_CONTAINERS: Final = {"list", "tuple", "set", "frozenset", "dict"}

# What holds schemas in a schema of pydantic-core; the value of any other key is data, as a default
# is, and never walked.
_HOLDERS: Final = {
    *("schema", "items_schema", "keys_schema", "values_schema"),
    *("extras_schema", "extras_keys_schema", "arguments_schema"),
    *("lax_schema", "strict_schema", "json_schema", "python_schema"),
    *("fields", "choices", "steps", "definitions"),
}


def impatient_validator(core_schema: Any) -> SchemaValidator:
    """Return a validator that takes the same values as the one of ``core_schema``.

    Args:
        core_schema: As ``TypeAdapter.core_schema`` has it; it is not changed.
    """
    schema = _impatient(core_schema)
    try:
        # Else it would take the validators that models have already, which are patient.
        return SchemaValidator(schema, _use_prebuilt=False)
    except TypeError:  # pydantic before 2.13 takes them anyway: only lists outside of models stop
        return SchemaValidator(schema)


def _impatient(part: Any) -> Any:
    """Return a schema, or a list or map of schemas, with the option set on all containers."""
    if isinstance(part, (list, tuple)):
        return type(part)(map(_impatient, part))
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if not isinstance(kind, str):  # a map of names; one of them may be "type"
        return {name: _impatient(schema) for name, schema in part.items()}
    schema = {key: _impatient(value) if key in _HOLDERS else value for key, value in part.items()}
    return schema | {"fail_fast": True} if kind in _CONTAINERS else schema
