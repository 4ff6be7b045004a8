"""An output with nothing in it teaches a model to say nothing."""

from learning.events import OutputEvent, answer_text


class NotEmpty:
    """Refuses an output, or a prompt, that is blank."""

    name = "not_empty"

    def check(self, event: OutputEvent) -> str | None:
        """A complaint when prompt or output has no visible character."""
        if not answer_text(event).strip():
            return "the output is blank"
        if event.prompt is not None and not event.prompt.strip():
            return "the prompt is blank"
        return None
