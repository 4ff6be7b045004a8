"""What an operator never wants to hear from a model: phrases and patterns of his own."""

import re
from collections.abc import Sequence

from learning.events import OutputEvent, answer_text
from learning.screening import REGEX, TaskRules


class BannedPatterns:
    """Refuses answers that have one of some patterns in them.

    A pattern is a phrase, in any case of letters, or after `re:` a regular expression. One
    that takes for ever is ended by the time limit.
    """

    name = "banned_patterns"

    def __init__(self, patterns: Sequence[str]) -> None:
        self._phrases = [
            (pattern, pattern.casefold()) for pattern in patterns if not pattern.startswith(REGEX)
        ]
        self._expressions = [
            (pattern, re.compile(pattern.removeprefix(REGEX)))
            for pattern in patterns
            if pattern.startswith(REGEX)
        ]

    def check(self, event: OutputEvent) -> str | None:
        """The first pattern that the answer has, as it is configured."""
        text = answer_text(event)
        folded = text.casefold()
        for pattern, phrase in self._phrases:
            if phrase in folded:
                return f"the answer has {pattern!r} in it"[:200]
        for pattern, expression in self._expressions:
            if expression.search(text) is not None:
                return f"the answer has what matches {pattern!r}"[:200]
        return None


def banned_patterns_of(rules: TaskRules) -> BannedPatterns | None:
    """The validator for a task type."""
    return BannedPatterns(rules.banned_patterns) if rules.banned_patterns else None
