"""An answer that should be JSON of a certain shape, and is not, teaches the wrong shape."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from consumers.screening.fences import fences_of
from learning.events import OutputEvent, answer_text
from learning.screening import TaskRules

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class JsonSchema:
    """Refuses answers that are not valid against a schema."""

    name = "json_schema"

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = _validator(schema)

    def check(self, event: OutputEvent) -> str | None:
        """Where the answer differs from the schema first; its own values are not quoted."""
        try:
            answer = _answer(event)
        except (ValueError, RecursionError):
            return "the answer is no JSON"
        error = next(iter(self._validator.iter_errors(answer)), None)
        if error is None:
            return None
        wanted = json.dumps(error.validator_value)
        place = error.json_path[:100]
        return f"{place} does not satisfy {error.validator}: {wanted}"[:300]


def json_schema_of(rules: TaskRules) -> JsonSchema | None:
    """The validator for a task type."""
    return None if rules.json_schema is None else JsonSchema(rules.json_schema)


def fault_of_schema(schema: dict[str, Any]) -> str | None:
    """What is wrong with a schema, in words."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        validator_for(schema).check_schema(schema)
        resolver = Registry().resolver_with_root(Resource.from_contents(schema, DRAFT202012))
        for reference in _references(schema):
            if not reference.startswith("#"):
                return f"{reference} is elsewhere: only references within the schema are followed"
            resolver.lookup(reference)
    except SchemaError as error:
        return f"{error.json_path}: {error.message}"[:300]
    except Unresolvable as error:
        return f"there is no {error.ref}"
    except RecursionError:
        return "it is nested too deeply"
    return None


def _validator(schema: Mapping[str, Any]) -> "Validator":
    # Imported here: where no schema is configured nobody has use for it.
    from jsonschema.validators import validator_for
    from referencing import Registry

    # With a registry of its own nothing is fetched from anywhere.
    return validator_for(schema)(schema, registry=Registry())


def _references(schema: Any) -> Iterator[str]:
    match schema:
        case dict():
            for name, value in schema.items():
                if name in _REFERENCES and isinstance(value, str):
                    yield value
                else:
                    yield from _references(value)
        case list():
            for item in schema:
                yield from _references(item)


def _answer(event: OutputEvent) -> Any:
    if event.messages is None and not isinstance(event.output, str):
        return event.output
    text = answer_text(event)
    fences = fences_of(text)
    return json.loads(fences[0].code if len(fences) == 1 else text)
