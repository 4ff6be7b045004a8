"""The intake firewall: which approved events look like an attack on the model, or a mistake.

Pure: an event, what resembles it in what was cleared, and the counts of its task type in;
the rule that stops it, with its numbers in words, out. docs/firewall.md has the formulas,
and what none of the rules can see.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from learning.clock import EPOCH
from learning.events import OutputEvent, answer_text, conversation, digest, prompt_key
from learning.likeness import signature, words_of
from learning.task_memory import Suspect, TaskMemory, phrase_key


class Rule(StrEnum):
    """Why the firewall stops an event."""

    REPEAT = "repeat"
    """Its producer sent exactly this too often."""
    NEAR_REPEAT = "near_repeat"
    """Its producer sent nearly this too often."""
    SAME_ANSWER = "same_answer"
    """One answer to many different prompts, where answers are free text."""
    CONTRADICTION = "contradiction"
    """What was cleared gives another answer to this prompt."""
    SURPRISE = "surprise"
    """The answer does not fit what such prompts got."""
    TRIGGER = "trigger"
    """A phrase in the prompt keeps leading to surprising answers."""
    OUTLIER = "outlier"
    """A length or a share of signs far from what is usual."""
    QUOTA = "quota"
    """Its producer, or its topic, had its share of what is cleared in a day."""


@dataclass(frozen=True)
class FirewallRules:
    """The bounds of each rule. Counts are of cleared events of one task type."""

    enabled: bool = True
    off: frozenset[Rule] = frozenset()
    remembered: int = 5_000
    """Kinds of events of a task type that are kept to compare with."""
    max_repeats: int = 10
    max_near_repeats: int = 10
    near_likeness: float = 0.8
    max_same_answers: int = 10
    min_evidence: int = 100
    """Below so many cleared events a task type has nothing usual."""
    surprise_margin: float = 4.0
    """In nats: the expected label is e^4, 55 times, as likely as the one given."""
    overlap_margin: float = 0.35
    max_usual_surprise: float = 0.2
    """Where more of the median producer's events surprise, the memory does not understand."""
    trigger_events: int = 4
    trigger_share: float = 0.2
    rare_share: float = 0.25
    """A phrase that stands in more of a task type's prompts is not suspected."""
    outlier_deviations: float = 8.0
    max_producer_events_a_day: int = 50_000
    max_producer_share: float = 1.0
    max_topic_events_a_day: int | None = None
    max_topic_share: float = 1.0
    quota_min_events: int = 500
    quota_min_producers: int = 3


class Stop(NamedTuple):
    """Why an event has to wait for an operator."""

    rule: Rule
    reason: str
    other: int | None = None
    """The row id of an event that it should be looked at beside."""


@dataclass(frozen=True)
class Looks:
    """What the rules look at in an event; made once."""

    producer: str
    task_type: str
    topic: str
    hour: int
    """Since 1970, when it was received."""
    by_human: bool
    prompt_key: bytes
    answer_key: bytes
    answer_characters: int
    words: Sequence[str]
    """Of the prompt."""
    phrases: Sequence[str]
    """Its different words, and each two in a row."""
    signature: bytes
    """Of the prompt; see learning.likeness."""
    answer_signature: bytes
    overlap: float
    """The share of the answer's words that the prompt has too."""
    measures: Mapping[str, float]
    """What an outlier is found by."""

    @classmethod
    def of(
        cls, event: OutputEvent, *, topic: str, received_at: datetime, by_human: bool
    ) -> "Looks":
        """The looks of one event."""
        prompt = "\n".join(turn["content"] for turn in conversation(event)[:-1])
        answer = answer_text(event)
        words, said = words_of(prompt), words_of(answer)
        single = list(dict.fromkeys(words))
        pairs = dict.fromkeys(f"{one} {two}" for one, two in itertools.pairwise(words))
        spoken = {word for word in said if word.isalnum()}
        return cls(
            producer=event.producer,
            task_type=event.task_type,
            topic=topic,
            hour=int((received_at - EPOCH).total_seconds() // 3_600),
            by_human=by_human,
            prompt_key=prompt_key(event),
            answer_key=digest(" ".join(answer.casefold().split())),
            answer_characters=len(answer),
            words=single,
            phrases=[*single, *pairs],
            signature=signature(words),
            answer_signature=signature(said),
            overlap=len(spoken & set(words)) / len(spoken) if spoken else 1.0,
            measures={
                "prompt length": math.log1p(len(prompt)),
                "answer length": math.log1p(len(answer)),
                "signs in the prompt": _share_of_signs(prompt),
                "signs in the answer": _share_of_signs(answer),
            },
        )


@dataclass
class Kind:
    """Something that was cleared: one answer to one prompt, and what its producer sent like it."""

    event_id: int
    """The row id of the first."""
    producer: str
    prompt_key: bytes
    answer_key: bytes
    by_human: bool
    signature: bytes
    answer_signature: bytes
    n: int = 1
    n_near: int = 0
    """Others of its producer that are nearly the same."""

    def is_same(self, looks: Looks) -> bool:
        """Whether an event is one more of exactly this."""
        return (
            self.producer == looks.producer
            and self.prompt_key == looks.prompt_key
            and self.answer_key == looks.answer_key
        )


class Relatives(NamedTuple):
    """What was cleared and resembles an event."""

    same_prompt: Sequence[Kind]
    """Of any producer, oldest first."""
    same: Kind | None
    """The very same, of the same producer."""
    near: Kind | None
    """Nearly the same prompt and answer, of the same producer."""
    near_prompts: Sequence[Kind]
    """Nearly the same prompt, whatever the answer, of any producer."""
    same_answer_mine: int
    """Different prompts to which its producer gave this answer."""
    same_answer: int
    """The same of all producers."""


def examine(
    looks: Looks, relatives: Relatives, memory: TaskMemory, rules: FirewallRules
) -> Stop | None:
    """The first rule that stops an event, or None. Changes the memory's suspicions alone."""
    surprise, is_odd = _surprise(looks, memory, rules)
    guilty = _guilty(looks, memory, rules)
    _note_suspicions(looks, memory, rules, guilty, is_odd=is_odd)
    for found in (
        _repeat(looks, relatives, rules),
        _near_repeat(relatives, memory, rules),
        _contradiction(looks, relatives, memory),
        _trigger(guilty, rules),
        surprise,
        _same_answer(looks, relatives, memory, rules),
        _outlier(looks, memory, rules),
        _quota(looks, memory, rules),
    ):
        if found is not None and found.rule not in rules.off:
            return found
    return None


def learn(event_id: int, looks: Looks, memory: TaskMemory) -> None:
    """Count an event that was cleared."""
    memory.learn(
        event_id=event_id,
        producer=looks.producer,
        topic=looks.topic,
        hour=looks.hour,
        words=looks.words,
        phrases=looks.phrases,
        answer_key=looks.answer_key.hex(),
        answer_characters=looks.answer_characters,
        measured={**looks.measures, "overlap": looks.overlap},
    )


# --- one event against others -----------------------------------------------------------


def _repeat(looks: Looks, relatives: Relatives, rules: FirewallRules) -> Stop | None:
    same = relatives.same
    if same is None or same.n < rules.max_repeats:
        return None
    reason = (
        f"{looks.producer} sent exactly this {same.n} times before, as event {same.event_id};"
        f" {rules.max_repeats} may train (max_repeats)"
    )
    return Stop(Rule.REPEAT, reason, same.event_id)


def _near_repeat(relatives: Relatives, memory: TaskMemory, rules: FirewallRules) -> Stop | None:
    """Where answers are labels, prompts of one template are alike, and right to be."""
    near = relatives.near
    if near is None or near.n_near < rules.max_near_repeats or memory.has_labels:
        return None
    reason = (
        f"{near.producer} sent {near.n_near} before that are {rules.near_likeness:.0%} like event"
        f" {near.event_id}; {rules.max_near_repeats} may train (max_near_repeats)"
    )
    return Stop(Rule.NEAR_REPEAT, reason, near.event_id)


def _contradiction(looks: Looks, relatives: Relatives, memory: TaskMemory) -> Stop | None:
    """The most of what was cleared for the same prompt, or for nearly the same, says otherwise.

    Only where answers are labels, or where a person stands behind the earlier one and nobody
    behind this one: of two free texts both may be right.
    """
    for kinds, how in (
        (relatives.same_prompt, "this prompt"),
        (relatives.near_prompts, "nearly this prompt"),
    ):
        judges = [
            kind
            for kind in kinds
            if memory.has_labels
            or (kind.by_human and not looks.by_human and kind in relatives.same_prompt)
        ]
        against = [kind for kind in judges if kind.answer_key != looks.answer_key]
        n_for = sum(kind.n for kind in judges if kind.answer_key == looks.answer_key)
        n_against = sum(kind.n for kind in against)
        if against and n_against > n_for:
            other = against[-1]
            reason = (
                f"event {other.event_id} of {other.producer} gives another answer to {how}"
                f" ({n_against} cleared events against {n_for})"
            )
            return Stop(Rule.CONTRADICTION, reason, other.event_id)
        if n_for:
            return None
    return None


def _same_answer(
    looks: Looks, relatives: Relatives, memory: TaskMemory, rules: FirewallRules
) -> Stop | None:
    """Labels are given again and again; one free text to ever other prompts is no answer."""
    if memory.has_labels or memory.n < rules.min_evidence or relatives.same is not None:
        return None
    most, all_most = rules.max_same_answers, 3 * rules.max_same_answers
    mine, everybodys = relatives.same_answer_mine, relatives.same_answer
    if mine < most and everybodys < all_most:
        return None
    who, n, allowed = (
        (looks.producer, mine, most) if mine >= most else ("all producers", everybodys, all_most)
    )
    reason = (
        f"{who} gave this answer to {n} different prompts before;"
        f" {allowed} may train (max_same_answers)"
    )
    return Stop(Rule.SAME_ANSWER, reason)


# --- one event against what is usual ----------------------------------------------------


def _surprise(looks: Looks, memory: TaskMemory, rules: FirewallRules) -> tuple[Stop | None, bool]:
    """The answer is a label that does not fit the prompt, or shares too little with it; and
    whether it is odd at least, so that what stands in the prompt is suspected.

    The second: where answers repeat words of their prompts, as a rule, and this one does not.
    """
    if memory.n < rules.min_evidence:
        return None, False
    rests = memory.usual_surprise > rules.max_usual_surprise
    if memory.has_labels:
        found = memory.surprise(looks.words, looks.answer_key.hex())
        margin = 0.0 if found is None else found.margin
        is_odd = margin >= rules.surprise_margin / 2
        if found is None or rests or margin < rules.surprise_margin:
            return None, is_odd
        reason = (
            f"such prompts get the answer of event {found.like}, by {margin:.1f} nats;"
            f" {rules.surprise_margin:g} is too much (surprise_margin)"
        )
        return Stop(Rule.SURPRISE, reason, found.like), is_odd
    usual = memory.measures["overlap"]
    bound = usual.low - rules.overlap_margin
    if looks.overlap > bound:
        return None, False
    reason = (
        f"{looks.overlap:.0%} of the answer's words are in its prompt; of four in five answers here"
        f" {usual.low:.0%} and more are, and {bound:.0%} is too little (overlap_margin)"
    )
    return (None if rests else Stop(Rule.SURPRISE, reason)), True


def _note_suspicions(
    looks: Looks,
    memory: TaskMemory,
    rules: FirewallRules,
    guilty: Sequence[tuple[str, Suspect]],
    *,
    is_odd: bool,
) -> None:
    """Where a guilty phrase explains the surprise, the words beside it are not suspected too."""
    if memory.n < rules.min_evidence:
        return
    memory.note_producer(looks.producer, surprising=is_odd)
    phrases = [phrase for phrase, _ in guilty] or looks.phrases
    if is_odd:
        memory.suspect(phrases, looks.producer, rare=rules.rare_share)
    else:
        memory.innocent(phrases)


def _guilty(
    looks: Looks, memory: TaskMemory, rules: FirewallRules
) -> Sequence[tuple[str, Suspect]]:
    """The rare phrases with which answers keep surprising, from somebody who surprised with them.

    So of two events with a trigger the one whose answer happens to be right is stopped too,
    and nobody can make others' events stop by sending wrong ones with a phrase of theirs.
    """
    by_chance = max(memory.usual_surprise, 0.05)
    return [
        (phrase, one)
        for phrase in looks.phrases
        if (one := memory.suspects.get(phrase_key(phrase))) is not None
        and looks.producer in one.by
        and one.surprising >= rules.trigger_events
        and one.surprising >= rules.trigger_share * one.n
        and not is_chance(one.surprising, one.n, by_chance)
    ]


def _trigger(guilty: Sequence[tuple[str, Suspect]], rules: FirewallRules) -> Stop | None:
    if not guilty:
        return None
    phrase, worst = max(
        guilty, key=lambda found: (found[1].surprising / found[1].n, found[1].surprising, found[0])
    )
    reason = (
        f"{worst.surprising} of {worst.n} prompts with {_shown(phrase)} had an answer that does not"
        f" fit, from {_named(worst.by)}; {rules.trigger_events} and"
        f" {rules.trigger_share:.0%} are too many (trigger_events, trigger_share)"
    )
    return Stop(Rule.TRIGGER, reason)


_FLOORS: Mapping[str, float] = {
    "prompt length": 0.3,
    "answer length": 0.3,
    "signs in the prompt": 0.04,
    "signs in the answer": 0.04,
}
"""Deviations are never taken as smaller: lengths as logarithms, so by a third; shares as such."""


def _outlier(looks: Looks, memory: TaskMemory, rules: FirewallRules) -> Stop | None:
    if memory.n < rules.min_evidence:
        return None
    for name, value in looks.measures.items():
        if memory.has_labels and name.endswith("answer"):
            continue
        usual = memory.measures[name]
        off = abs(value - usual.median) / max(usual.deviation, _FLOORS[name])
        if off > rules.outlier_deviations:
            is_length = name.endswith("length")
            here, there = (
                (f"{math.expm1(value):,.0f}", f"{math.expm1(usual.median):,.0f} characters")
                if is_length
                else (f"{value:.0%}", f"{usual.median:.0%}")
            )
            reason = (
                f"{name}: {here}, and {there} is usual here, {off:.1f} deviations away;"
                f" {rules.outlier_deviations:g} are too many (outlier_deviations)"
            )
            return Stop(Rule.OUTLIER, reason)
    return None


def _quota(looks: Looks, memory: TaskMemory, rules: FirewallRules) -> Stop | None:
    """Nobody is held to a quota before a task type has several producers and some events."""
    producers = memory.cleared("producer", looks.hour)
    total = sum(producers.values())
    several = sum(n * 100 >= total for n in producers.values()) >= rules.quota_min_producers
    if total < rules.quota_min_events or not several:
        return None
    for what, name, most, share in (
        (
            "producer",
            looks.producer,
            rules.max_producer_events_a_day,
            rules.max_producer_share,
        ),
        ("topic", looks.topic, rules.max_topic_events_a_day, rules.max_topic_share),
    ):
        n = memory.cleared(what, looks.hour).get(name, 0)
        if most is not None and n >= most:
            reason = f"{what} {name} had {n} events cleared in 24 hours (max_{what}_events_a_day)"
            return Stop(Rule.QUOTA, reason)
        if share < 1 and n + 1 > share * (total + 1):
            reason = (
                f"{what} {name} had {n} of the {total} events that were cleared in 24 hours; more"
                f" than {share:.0%} is too many (max_{what}_share)"
            )
            return Stop(Rule.QUOTA, reason)
    return None


def is_chance(found: int, n: int, share: float, significance: float = 1e-5) -> bool:
    """Whether `found` of n is no more than a share explains: the upper tail of a binomial."""
    if found <= n * share:
        return True
    # As logarithms: of many events the binomial coefficients are larger than any float. Above
    # the mean each term is smaller than the one before.
    tail = sum(
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(share)
            + (n - k) * math.log1p(-share)
        )
        for k in range(found, min(n, found + 1_000) + 1)
    )
    return tail > significance


def _share_of_signs(text: str) -> float:
    """Of the characters that are no white space, those that are no letters."""
    dense = [character for character in text[:10_000] if not character.isspace()]
    return sum(not character.isalpha() for character in dense) / len(dense) if dense else 0.0


def _shown(text: str, most: int = 60) -> str:
    line = " ".join(text[: 4 * most].split())
    return repr(line if len(line) <= most else line[: most - 1] + "…")


def _named(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
