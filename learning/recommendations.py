"""What a person might do next: each recommendation names its number and the command to run.

Pure: what the statistics show in, words out. One rule is one function in RULES; it says
nothing below its minimum of evidence. Nothing here changes anything: learning/adaptation.py
does, within its bounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from learning.policy import Policy
from learning.statistics import Activity, Direction, Issue, Trend, together

STRICT = 0.8
"""The bar that is recommended where people reject much."""
CONFIDENT = 0.95
ENOUGH_CONFIDENCES = 100
HEALTHY = 0.8
"""The success rate from which on auto-approval is recommended."""
FLUSH_AFTER_SECONDS = 1_800.0
MANY_HELD = 50
FEWEST_RUNS = 3
HEALTHY_RUNS = 0.8


@dataclass(frozen=True)
class WaitingQueue:
    """Events of one model line that wait for a batch."""

    line: str
    task_type: str
    """One that it learns from."""
    n: int
    oldest_seconds: float
    is_idle: bool
    """Whether the line works on no run."""
    has_base_model: bool


@dataclass(frozen=True)
class Undecided:
    """A line whose last candidate proved nothing, for want of examples."""

    line: str
    task_type: str
    held_out: int
    wanted: int


@dataclass(frozen=True)
class Situation:
    """What is known when somebody asks for advice."""

    window: str
    """In words, such as: the last 24 h."""
    policy: Policy = field(default_factory=Policy)
    recent: Mapping[str, Activity] = field(default_factory=dict)
    """By task type."""
    issues: Sequence[Issue] = ()
    trends: Sequence[Trend] = ()
    held: Mapping[str, int] = field(default_factory=dict)
    """Outputs without a verdict, by task type."""
    queues: Sequence[WaitingQueue] = ()
    undecided: Sequence[Undecided] = ()
    runs_succeeded: int = 0
    runs_failed: int = 0


@dataclass(frozen=True)
class Recommendation:
    """One piece of advice."""

    rule: str
    advice: str
    because: str
    """With the number behind it."""
    command: str

    def __str__(self) -> str:
        return f"{self.advice}: {self.because}; {self.command}"


Rule = Callable[[Situation], Iterator[Recommendation]]


def recommend(situation: Situation) -> Sequence[Recommendation]:
    """All advice that the numbers support, the weightiest rule first."""
    return [found for rule in RULES for found in rule(situation)]


def raise_thresholds(seen: Situation) -> Iterator[Recommendation]:
    """People reject much, and the bars can be higher."""
    for issue in seen.issues:
        if issue.name != "many_rejections":
            continue
        for name, bar in (
            ("feedback_threshold", seen.policy.feedback_threshold),
            ("min_confidence", seen.policy.min_confidence),
        ):
            if bar < STRICT:
                yield Recommendation(
                    "raise_thresholds",
                    "Consider increasing validation thresholds",
                    f"{issue.reason} in {seen.window}, and policy.{name} is {bar}",
                    f"learnd settings set policy.{name}={STRICT}",
                )
                break


def stop_auto_approval(seen: Situation) -> Iterator[Recommendation]:
    """What outputs say of themselves is wrong, and it is believed."""
    if seen.policy.enable_auto_approval:
        for issue in seen.issues:
            if issue.name == "confident_rejected":
                yield Recommendation(
                    "stop_auto_approval",
                    "Consider switching auto-approval off",
                    f"{issue.reason} in {seen.window}",
                    "learnd settings set policy.enable_auto_approval=false",
                )


def review_prompts(seen: Situation) -> Iterator[Recommendation]:
    """People like it less, or do not agree about it."""
    causes = [
        (issue.task_type, issue.reason)
        for issue in seen.issues
        if issue.name in ("high_low_ratings", "polarised_ratings", "falling_engagement")
    ] + [
        (trend.task_type, f"ratings of {trend.task_type} fell: {trend.reason}")
        for trend in seen.trends
        if trend.about == "rating" and trend.direction is Direction.WORSENING and trend.task_type
    ]
    reasons: dict[str, list[str]] = {}
    for task_type, reason in causes:
        reasons.setdefault(task_type, []).append(reason)
    for task_type, told in reasons.items():
        yield Recommendation(
            "review_prompts",
            "Review prompt templates and context",
            f"{'; '.join(told)}, in {seen.window}",
            f"learnd events list --task-type {task_type} --state rejected",
        )


def lower_thresholds(seen: Situation) -> Iterator[Recommendation]:
    """People approve what outputs themselves were not sure of."""
    for issue in seen.issues:
        if issue.name == "low_confidence_approved" and seen.policy.min_confidence > 0.5:
            yield Recommendation(
                "lower_thresholds",
                "Consider lowering the bar for approved outputs",
                f"{issue.reason} in {seen.window}, and policy.min_confidence is"
                f" {seen.policy.min_confidence}",
                "learnd settings set policy.min_confidence=0.5",
            )


def start_auto_approval(seen: Situation) -> Iterator[Recommendation]:
    """Outputs are sure of themselves, people agree, and still everything waits for people."""
    everything = together(seen.recent.values())
    average, success = everything.average_confidence, everything.success_rate()
    n_held, n = sum(seen.held.values()), everything.outputs.confidence_n
    if (
        not seen.policy.enable_auto_approval
        and n_held
        and n >= ENOUGH_CONFIDENCES
        and average is not None
        and average > CONFIDENT
        and success is not None
        and success >= HEALTHY
    ):
        yield Recommendation(
            "start_auto_approval",
            "Consider switching auto-approval on",
            f"the average confidence of {n} outputs was {average:.2f} in {seen.window}, people"
            f" approved {everything.approved} of {everything.judged}, and {n_held} are held",
            "learnd settings set policy.enable_auto_approval=true",
        )


def flush(seen: Situation) -> Iterator[Recommendation]:
    """Events wait for long, though their line could train."""
    for queue in seen.queues:
        if queue.n and queue.oldest_seconds >= FLUSH_AFTER_SECONDS:
            waits = f"{queue.n} events of {queue.line} wait, the oldest since"
            waits += f" {queue.oldest_seconds / 60:.0f} min"
            if not queue.has_base_model:
                yield Recommendation(
                    "name_base_model",
                    "Name a base model",
                    f"{waits}, and the line has none to train",
                    f"learnd settings set lines.{queue.line}.base_model=MODEL",
                )
            elif queue.is_idle:
                yield Recommendation(
                    "flush",
                    "Consider flushing the fine-tune queue",
                    waits,
                    f"learnd flush --task-type {queue.task_type}",
                )


def judge_held(seen: Situation) -> Iterator[Recommendation]:
    """Much waits for a verdict."""
    for task_type, n in sorted(seen.held.items()):
        if n >= MANY_HELD:
            yield Recommendation(
                "judge_held",
                "Judge what is held",
                f"{n} outputs of {task_type} wait for a verdict, and expire without one",
                f"learnd events list --state held --task-type {task_type}",
            )


def label_examples(seen: Situation) -> Iterator[Recommendation]:
    """The gate cannot tell candidates from champions."""
    for one in seen.undecided:
        yield Recommendation(
            "label_examples",
            "Label more held-out examples",
            f"the gate abstained on {one.line}, which has {one.held_out} of {one.wanted} wanted",
            f"learnd import FILE --held-out --task-type {one.task_type}",
        )


def look_at_runs(seen: Situation) -> Iterator[Recommendation]:
    """Trainings fail."""
    ended = seen.runs_succeeded + seen.runs_failed
    if ended >= FEWEST_RUNS and seen.runs_succeeded <= HEALTHY_RUNS * ended:
        yield Recommendation(
            "look_at_runs",
            "Look at the runs that failed",
            f"{seen.runs_failed} of {ended} fine-tune runs failed",
            "learnd runs list --state failed",
        )


RULES: Sequence[Rule] = (
    raise_thresholds,
    stop_auto_approval,
    review_prompts,
    flush,
    judge_held,
    label_examples,
    look_at_runs,
    lower_thresholds,
    start_auto_approval,
)
