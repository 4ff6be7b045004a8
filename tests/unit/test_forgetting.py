"""What a candidate forgot: counted in full, named within bounds."""

from collections.abc import Sequence
from typing import Any

from learning.forgetting import MOST_LOST, MOST_SLICES, compare_slices
from learning.gate import GateRules, HeldOut, Outcome, Score, decide

RIGHT, WRONG = Score(0.1, True), Score(0.5, False)


def example(number: int, task_type: str = "audio", **sorted_by: Any) -> HeldOut:
    return HeldOut(number, task_type, True, **sorted_by)


def scores(matches: Sequence[int]) -> list[Score]:
    return [RIGHT if match else WRONG for match in matches]


def test_an_example_is_lost_when_the_champion_had_it_right_and_the_candidate_has_it_wrong() -> None:
    examples = [example(n) for n in range(4)]

    found = compare_slices(examples, scores([1, 1, 0, 0]), scores([1, 0, 1, 0]))

    assert (found.n_examples, found.n_lost, found.n_gained, found.lost) == (4, 1, 1, (1,))


def test_slices_are_by_task_type_and_by_producer_and_category_where_there_is_one() -> None:
    examples = [
        example(1, "audio", producer="web"),
        example(2, "game", producer="web", category="chess"),
        example(3, "game", producer="app"),
    ]

    found = compare_slices(examples, scores([1, 1, 0]), scores([1, 0, 0]))

    assert [(one.kind, one.name, one.n_examples, one.n_lost) for one in found.slices] == [
        ("task_type", "game", 2, 1),
        ("task_type", "audio", 1, 0),
        ("producer", "web", 2, 1),
        ("producer", "app", 1, 0),
        ("category", "chess", 1, 1),
    ]
    game = found.slices[0]
    assert (game.champion_loss, game.candidate_loss) == (0.3, 0.5)
    assert (game.champion_match, game.candidate_match) == (0.5, 0.0)


def test_what_is_named_is_bounded_and_the_worst_is_named_first() -> None:
    n = 100
    examples = [example(number, producer=f"p{number:03}") for number in range(n)]
    lost = [number >= n - MOST_LOST - 5 for number in range(n)]

    found = compare_slices(examples, scores([True] * n), scores([not each for each in lost]))

    producers = [one for one in found.slices if one.kind == "producer"]
    assert (found.n_lost, len(found.lost)) == (MOST_LOST + 5, MOST_LOST)
    assert (len(producers), found.n_slices) == (MOST_SLICES, n + 1)
    assert all(one.n_lost for one in producers)


def test_the_gates_report_tells_what_was_forgotten_whatever_the_verdict() -> None:
    examples = [example(n) for n in range(40)]
    too_few = decide(examples[:3], [RIGHT] * 3, [WRONG] * 3, GateRules(), 1)
    worse = decide(examples, [RIGHT] * 40, [WRONG] * 40, GateRules(), 1)

    assert too_few.outcome is Outcome.ABSTAIN
    assert worse.outcome is Outcome.REJECT
    assert too_few.forgetting is not None
    assert worse.forgetting is not None
    assert (too_few.forgetting.n_lost, worse.forgetting.n_lost) == (3, 40)
