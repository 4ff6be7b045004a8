"""The judge: an event, its validators and the policy of the moment, made one verdict.

Thin on purpose: the truth table is in policy.py, the checks are in validators/. The same
judge is asked on arrival and again when feedback comes, so the two cannot disagree.
"""

from collections.abc import Callable, Sequence

from learning.events import OutputEvent
from learning.policy import Evidence, Policy, Verdict, judge
from learning.validators import Validator, complaints


class Judge:
    """Judges outputs under whatever policy is in force when it is asked."""

    def __init__(self, policy: Callable[[], Policy], validators: Sequence[Validator]) -> None:
        self._policy = policy
        self._validators = tuple(validators)

    def __call__(self, event: OutputEvent, people: tuple[bool, ...] = ()) -> Verdict:
        """The verdict on an output; `people` are the approvals in its feedback, in any order."""
        evidence = Evidence(
            event.approved, event.confidence, people, event.task_type, event.producer
        )
        return judge(evidence, self.complaints(event), self._policy())

    def complaints(self, event: OutputEvent) -> Sequence[str]:
        """What the validators have against an output, whatever people say of it."""
        return complaints(event, self._validators)
