"""Which facts are remembered to be shown."""

from daemon.recent_facts import KEPT, RecentFacts
from learning.facts import EventsExpired, EventsStored, WebhookReceived, WebhookRefused
from learning.lifecycle import EventState
from tests.builders import NOON


def test_the_newest_facts_are_kept() -> None:
    facts = RecentFacts(lambda: NOON)
    for count in range(1, KEPT + 10):
        facts(EventsExpired(count))

    kept = facts.newest()

    assert len(kept) == KEPT
    assert kept[0].text == f"{KEPT + 9} held events expired without a verdict"
    assert kept[0].at == NOON


def test_arrivals_are_shown_only_where_some_could_not_be_read() -> None:
    facts = RecentFacts(lambda: NOON)

    facts(EventsStored("kafka", outputs={("audio", EventState.QUEUED): 5}))
    assert facts.newest() == []
    facts(EventsStored("kafka", dead_letters={"not_json": 2}))
    assert [fact.text for fact in facts.newest()] == ["kafka: 2 dead letters: not_json"]


def test_webhooks_that_strangers_or_repeats_make_are_not_shown() -> None:
    facts = RecentFacts(lambda: NOON)

    facts(WebhookRefused("bad_signature"))
    facts(WebhookReceived("fine_tuning.job.failed", True, "wh-1", "job-1", is_new=False))
    assert facts.newest() == []
    facts(WebhookReceived("fine_tuning.job.failed", True, "wh-1", "job-1", is_new=True))
    assert [fact.kind for fact in facts.newest()] == ["WebhookReceived"]
