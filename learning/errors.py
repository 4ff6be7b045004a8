"""The one exception root of the pure core, and the errors that several rooms share."""


class LearningError(Exception):
    """Root of every error that a decision of this package can raise."""


class IllegalMoveError(LearningError):
    """A thing was asked to change to a state that its lifecycle does not allow."""

    def __init__(self, kind: str, current: str, wanted: str) -> None:
        super().__init__(f"a {kind} that is {current} cannot become {wanted}")
        self.kind, self.current, self.wanted = kind, current, wanted


class UnpairedScoresError(LearningError):
    """Champion and candidate were scored on different examples."""

    def __init__(self, n_champion: int, n_candidate: int, n_examples: int) -> None:
        super().__init__(
            f"{n_champion} champion scores and {n_candidate} candidate scores"
            f" for {n_examples} examples"
        )
        self.n_champion, self.n_candidate, self.n_examples = n_champion, n_candidate, n_examples


class UnsoundScoresError(LearningError):
    """An evaluator answered with what cannot be the scores of the examples it was given."""

    def __init__(self, model: str, fault: str) -> None:
        super().__init__(f"the scores of the {model} are unsound: {fault}")
        self.model, self.fault = model, fault


class VersionTextError(LearningError):
    """A text that should name a model version is not a semantic version."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} is not a semantic version such as 1.2.3, v1.2.3 or 1.2.3-rc.1")
        self.text = text


class NotFoundError(LearningError):
    """What was asked for does not exist. Its message says how to list what does."""


class ConflictError(LearningError):
    """What was asked for exists, and its state does not allow it. Its message says why."""
