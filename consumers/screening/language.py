"""An answer in another language than a task type speaks teaches a model to mix them.

By py3langid, whose model of some megabytes comes with it. Code is left out, and a text that
is short or that it is not sure about passes.
"""

from collections.abc import Sequence

from consumers.screening.fences import without_fences
from learning.events import OutputEvent, answer_text
from learning.screening import TaskRules

FEWEST_LETTERS = 60
SURE = 0.95
"""A probability, as the model says; below it an answer has the benefit of the doubt."""
LONGEST = 5_000
"""Characters that are looked at."""


class Language:
    """Refuses answers that are surely in none of the expected languages."""

    name = "language"

    def __init__(self, expected: Sequence[str]) -> None:
        """Raises ValueError for a language that the model does not know."""
        # Imported here: with NumPy, for which others have no use.
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._expected = expected
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = {str(label) for label in self._identifier.labels}
        if unknown := sorted(set(expected) - known):
            raise ValueError(f"languages: {', '.join(unknown)} cannot be told from others")

    def check(self, event: OutputEvent) -> str | None:
        """The language of the answer, when it is another one."""
        if event.messages is None and not isinstance(event.output, str):
            return None  # JSON speaks no language
        prose = without_fences(answer_text(event))[:LONGEST]
        if sum(map(str.isalpha, prose)) < FEWEST_LETTERS:
            return None
        language, probability = self._identifier.classify(prose)
        if language in self._expected or probability < SURE:
            return None
        return f"the answer seems to be in {language}, expected: {', '.join(self._expected)}"


def language_of(rules: TaskRules) -> Language | None:
    """The validator for a task type."""
    return Language(rules.languages) if rules.languages else None
