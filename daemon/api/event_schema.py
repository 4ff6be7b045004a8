"""How the bodies of events are described in the API's OpenAPI document, with examples.

The schema is made of the models that read them; nothing is checked here.
"""

from collections.abc import Mapping
from typing import Any

from learning.events import FeedbackEvent, OutputEvent
from learning.ports import EventKind

ONE_EVENT = "application/json"
STREAM = "application/x-ndjson"

_EXAMPLES: Mapping[EventKind, Mapping[str, Any]] = {
    EventKind.OUTPUT: {
        "event_id": "o-1",
        "producer": "web",
        "task_id": "t-1",
        "task_type": "coding",
        "prompt": "add three to x",
        "output": "x + 3",
        "approved": True,
        "confidence": 0.93,
    },
    EventKind.FEEDBACK: {
        "event_id": "f-1",
        "producer": "web",
        "task_id": "t-1",
        "task_type": "coding",
        "approved": False,
        "feedback": {"user_rating": 1},
    },
}


def events_body(kind: EventKind) -> dict[str, Any]:
    """The OpenAPI request body of one event, or of a stream of them."""
    model = OutputEvent if kind is EventKind.OUTPUT else FeedbackEvent
    schema = model.model_json_schema(by_alias=False)
    definitions = schema.pop("$defs", {})
    example = _EXAMPLES[kind]
    return {
        "required": True,
        "description": "Names are read in snake_case and in camelCase. A body may be compressed"
        " (Content-Encoding: gzip).",
        "content": {
            ONE_EVENT: {"schema": _in_place(schema, definitions) | {"examples": [example]}},
            STREAM: {
                "schema": {
                    "type": "string",
                    "description": "One such object a line; each line may be 1 MB long.",
                }
            },
        },
    }


def _in_place(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema that stands alone: what it refers to is put where it is referred to."""
    match schema:
        case {"$ref": str(reference)}:
            return _in_place(definitions[reference.rpartition("/")[2]], definitions)
        case dict():
            return {name: _in_place(part, definitions) for name, part in schema.items()}
        case list():
            return [_in_place(part, definitions) for part in schema]
        case _:
            return schema
