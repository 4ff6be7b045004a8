"""An output that is too long would be cut in training and teach half an answer."""

from learning.events import OutputEvent, answer_text


class Length:
    """Refuses an output of more than `max_characters` characters."""

    name = "length"

    def __init__(self, max_characters: int) -> None:
        self.max_characters = max_characters

    def check(self, event: OutputEvent) -> str | None:
        """A complaint with both lengths when the output is too long."""
        length = len(answer_text(event))
        if length > self.max_characters:
            return f"the output has {length} characters, at most {self.max_characters} may train"
        return None
