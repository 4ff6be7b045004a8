"""The story of an event in a few lines.

Takes the API's JSON and prints; asks nothing and decides nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from daemon.printing import say, some_of, when

Json = Mapping[str, Any]

NOW: Final = {
    "queued": "accepted, and waits for a batch",
    "sealed": "accepted, and sealed into a batch",
    "held": "held, until somebody says yes or no",
    "quarantined": "quarantined, until an operator releases or rejects it",
    "rejected": "refused",
    "withdrawn": "accepted, then withdrawn before a batch had it",
    "expired": "held, and nobody said yes or no in time",
    "forgotten": "forgotten: what it said is gone, and only its ids are kept",
}
"""What each state means for an event; another one is named as it is."""
ROLES: Final = {
    "train": "to train",
    "held_out": "to judge",
    "replay": "to repeat",
    "retry": "to be tried again",
    "cross_task": "to help a related task",
    "preference": "as a rejected answer",
}


def explanation(found: Json) -> None:
    """The answer of /v1/explanations."""
    for line in story(found):
        say(line)


def story(found: Json) -> Iterator[str]:
    """Line by line: what it is, its verdict, who said what, and what became of it."""
    lineage = found["lineage"]
    event = lineage["event"]
    yield (
        f"Event {event['id']}, {event['producer']}/{event['event_id']}: an output of"
        f" {event['task_type']}, received {when(event['received_at'])} UTC from {found['source']}"
        f" {found['topic']}"
    )
    yield f"It is {NOW.get(event['state'], event['state'])}. Why: {event['reason'] or 'not said'}"
    yield f"Its producer {_stated(found['stated'], event['confidence'])}; {_said(found['voices'])}"
    for step in found["steps"]:
        why = f": {step['reason']}" if step["reason"] else ""
        moved = (
            f"stayed {step['after']}"
            if step["before"] == step["after"]
            else f"{step['before']} -> {step['after']}"
        )
        yield f"{when(step['at'])}  {moved}, by {step['actor']}{why}"
    for use in lineage["uses"]:
        yield f"{when(use['sealed_at'])}  {_use(use)}"
    if lineage["frozen"]:
        yield "It stands in the frozen held-out set, and judges candidates."
    yield _known(lineage)


def _stated(approved: bool | None, confidence: float | None) -> str:
    said = {True: "said yes", False: "said no", None: "gave no verdict"}[approved]
    return said if confidence is None else f"{said}, with confidence {confidence:g}"


def _said(voices: Json) -> str:
    if not any(voices.values()):
        return "no feedback has met it"
    return (
        f"feedback: {voices['yes']} yes, {voices['no']} no,"
        f" {voices['without_verdict']} without a verdict"
    )


def _use(use: Json) -> str:
    taken = f"batch {use['batch_id']} of {use['line']} took it {ROLES[use['role']]}"
    if use["run_id"] is None:
        return f"{taken}; nothing was trained on it"
    came_of_it = f"run {use['run_id']} is {use['run_state']}"
    if use["outcome"] is not None:
        came_of_it += f" ({use['outcome']})"
    if use["version"] is not None:
        came_of_it += f", and made {use['line']}@{use['version']}, {use['version_state']} now"
    return f"{taken}; {came_of_it}"


def _known(lineage: Json) -> str:
    if not lineage["n_known_by"]:
        return "No version knows it."
    names = [
        f"{one['line']}@{one['version']} ({'champion' if one['is_champion'] else one['state']})"
        for one in lineage["known_by"]
    ]
    n = lineage["n_known_by"]
    return f"{n} version{'s know' if n > 1 else ' knows'} it: {some_of(names)}"
