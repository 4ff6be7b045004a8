"""Code in an answer: the parts between fences, with the language that each is said to be."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FENCE = re.compile(r"^ {0,3}(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")


@dataclass(frozen=True)
class Fence:
    """A fenced part of a text."""

    language: str
    """As the fence says, in lower case; empty when it does not say."""
    code: str
    line: int
    """Of the text, from 1, on which the code begins."""


def fences_of(text: str) -> Sequence[Fence]:
    """The fenced parts of a text in Markdown; one that nobody closed ends with the text."""
    found: list[Fence] = []
    marks, language, begun, code = "", "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        match = _FENCE.match(line)
        if not marks:
            if match is not None:
                marks, begun, code = match["marks"], number + 1, []
                language = match["info"].strip().partition(" ")[0].strip("{}.").lower()
        elif match is not None and not match["info"].strip() and match["marks"].startswith(marks):
            found.append(Fence(language, "\n".join(code), begun))
            marks = ""
        else:
            code.append(line)
    if marks:
        found.append(Fence(language, "\n".join(code), begun))
    return found


def without_fences(text: str) -> str:
    """A text in Markdown less the fenced parts."""
    kept: list[str] = []
    marks = ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        if not marks and match is not None:
            marks = match["marks"]
        elif not marks:
            kept.append(line)
        elif match is not None and not match["info"].strip() and match["marks"].startswith(marks):
            marks = ""
    return "\n".join(kept)
