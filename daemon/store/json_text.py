"""Values as the JSON that both databases keep."""

import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """JSON in which a number that is not finite is null: JSON has none, PostgreSQL refuses it.

    A loss that became NaN is a measurement like any other, and must not stop a run.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
