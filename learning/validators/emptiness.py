"""An output with nothing in it teaches a model to say nothing."""

from learning.events import OutputEvent, answer_text


class NotEmpty:
    """Refuses an output, or a prompt, that is blank."""

    name = "not_empty"

    def check(self, event: OutputEvent) -> str | None:
        """A complaint when prompt or output has no visible character."""
        if _is_blank(answer_text(event)):
            return "the output is blank"
        if event.messages is None:
            return "the prompt is blank" if _is_blank(event.prompt or "") else None
        if all(_is_blank(turn.content) for turn in event.messages if turn.role == "user"):
            return "the prompt is blank"
        return None


def _is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, zero-width and control characters."""
    for character in text:  # noqa: SIM110  # ends with the first, before a generator had begun
        if character.isprintable() and not character.isspace():
            return False
    return True
