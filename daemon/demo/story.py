"""What the demo tells, chapter by chapter, while it happens.

Every number comes from the running daemon's answers. What turns out otherwise than the
story has it is said, kept in `faults`, and ends the demo with a failure; nothing is tried
again in silence.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException

from daemon.demo.broker import Broker, Place
from daemon.demo.home import BATCH_SIZE, HELD_OUT, LINES, Home
from daemon.demo.ledger import Totals, reckon
from daemon.demo.screen import Screen
from daemon.demo.stream import CARELESS_PRODUCER, Sample, Stream
from daemon.demo.tasks import Example
from daemon.demo.watch import Watch
from daemon.printing import Column, change, number, words
from finetune.trainer_process import TrainerHost
from learning.errors import LearningError
from learning.gate import Outcome
from learning.lifecycle import Role, RunState
from learning.ports import ModelReference

Json = Mapping[str, Any]

ROUNDS: Final = 2
FIRST_TRICKLE: Final = 30
"""Good outputs of each line among the noise; too few for a batch."""
POISONED_LINE: Final = "coding"
ASKED: Final = 12
"""Held-out prompts that two versions answer."""
SHOWN: Final = 5
LONGEST_ANSWER: Final = 64
"""Tokens, which are bytes here."""


class RunLostError(LearningError):
    """A run ended without a verdict, so the story cannot go on."""

    def __init__(self, run: Json) -> None:
        super().__init__(f"the run of {run['line']} is {run['state']}: {run['message']}")


class Story:
    """Tells the loop of one daemon, once."""

    def __init__(
        self,
        *,
        home: Home,
        screen: Screen,
        watch: Watch,
        broker: Broker,
        stream: Stream,
        trainer: TrainerHost,
    ) -> None:
        self.faults: list[str] = []
        self._home = home
        self._screen = screen
        self._watch = watch
        self._broker = broker
        self._stream = stream
        self._trainer = trainer
        self._held_out: dict[str, Sequence[Example]] = {}
        self._n_sent = 0
        self._trials: list[Json] = []

    async def tell(self) -> None:
        """Every chapter in its order; the first that cannot be told is the last."""
        try:
            await self._watch.until_ready()
            await self._import_held_out()
            await self._noise()
            for n in range(1, ROUNDS + 1):
                await self._learn(n)
            await self._poison()
            await self._lineage()
        except (LearningError, KafkaException) as error:
            self._fault(f"the story stopped: {error}")

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        self._screen.say(f"Not as it should be: {text}", style="bold red")

    # --- chapters ---------------------------------------------------------------------

    async def _import_held_out(self) -> None:
        """The examples that will judge every candidate."""
        for line in LINES:
            examples = self._stream.labelled(line, HELD_OUT)
            self._held_out[line] = examples
            file = self._home.held_out_file(line)
            await asyncio.to_thread(_write_rows, file, examples)
            done = await self._watch.import_held_out(file, line)
            prompt, output = examples[0]
            self._screen.point(
                f"{line}: {done['added']} examples labelled by people judge every candidate,"
                f" and never train.\n  {prompt!r} -> {output!r}"
            )
            if done["added"] != HELD_OUT:
                self._fault(f"{line}: {done['added']} held-out examples, not {HELD_OUT}")

    async def _noise(self) -> None:
        """A first trickle of traffic, in which most kinds of trouble occur."""
        self._screen.chapter("What a real topic looks like")
        samples = [
            sample
            for line in LINES
            for sample in (
                *self._stream.approved(line, FIRST_TRICKLE),
                *self._stream.noise(line),
            )
        ]
        places = await self._send(samples)
        self._screen.say(
            f"{len(samples)} records were produced to Kafka, good outputs and trouble mixed."
            " What became of them, and why, as the daemon tells it:"
        )
        totals = await self._watch.until_stored(self._n_sent)
        outputs = await self._watch.all_of("/v1/events")
        letters = await self._watch.all_of("/v1/dead-letters")
        entries = reckon(
            samples,
            places,
            {one["event_id"]: one for one in outputs},
            {Place(one["topic"], one["partition"], one["offset"]): one for one in letters},
        )
        self._screen.table(
            [Column("sent"), number("n"), Column("became"), words("why")],
            [(one.sort, one.n, one.became, one.why) for one in entries],
        )
        self._sum_up(totals)

    def _sum_up(self, totals: Totals) -> None:
        states = " + ".join(f"{n} {state}" for state, n in sorted(totals.outputs.items()))
        self._screen.say(
            f"{self._n_sent} sent = {states} + {sum(totals.feedback.values())} feedback"
            f" + {totals.dead_letters} dead letters + {totals.duplicates} duplicates"
        )
        if totals.n != self._n_sent:
            self._fault(f"{self._n_sent} records were sent, {totals.n} are accounted for")

    async def _learn(self, n: int) -> None:
        """One batch for each line, and what came of it."""
        self._screen.chapter(
            "A batch fills: both lines learn" if n == 1 else "More traffic: they learn again"
        )
        known = await self._known_runs()
        for line in LINES:
            await self._fill_batch(line)
        self._screen.say(
            f"{BATCH_SIZE} queued events make a batch. Each line trains on its own, continuing from"
            f" its champion; the gate then compares the two on the {HELD_OUT} held-out examples."
            if n == 1
            else f"{BATCH_SIZE} more of each. Half of what trains now is replay of what came"
            " before, so that nothing is forgotten."
        )
        runs = await self._watch.until_decided(LINES, known)
        trials = [await self._trial(run) for run in runs]
        self._show_trials(trials)
        for trial in trials:
            if kept_out := trial["members"].get(Role.HELD_OUT, 0):
                self._screen.say(
                    f"{kept_out} of the {trial['line']} events ask what a held-out example asks:"
                    " they were kept out of training, or it would judge what it has seen."
                )
            if trial["outcome"] != Outcome.PROMOTE:
                self._fault(f"{trial['line']}: {trial['outcome']}: {trial['reason']}")
        self._trials += trials

    async def _fill_batch(self, line: str) -> None:
        waiting = (await self._watch.ask("/v1/stats"))["queue"]["by_type"].get(line, 0)
        await self._send(self._stream.approved(line, BATCH_SIZE - waiting))

    async def _poison(self) -> None:
        """Wrong answers, approved; refused, forced, and taken back."""
        line = POISONED_LINE
        self._screen.chapter("A poisoned batch")
        self._screen.say(
            f"{CARELESS_PRODUCER} approves {BATCH_SIZE} outputs of {line} that are wrong: each is"
            " the answer to another prompt. Policy cannot know; they look like any other."
        )
        poison = self._stream.poisoned(line, BATCH_SIZE)
        self._screen.point(_shown(poison[0]))
        known = await self._known_runs()
        await self._send(poison)
        runs = await self._watch.until_decided([line], known)
        trial = await self._trial(runs[0])
        self._show_trials([trial])
        if trial["outcome"] != Outcome.REJECT:
            self._fault(f"the gate did not refuse the poisoned candidate: {trial['outcome']}")
            return
        self._screen.say(f"The gate refuses it: {trial['reason']}.")
        self._trials.append(trial)
        await self._force_and_roll_back(line, trial)
        await self._who_knows(poison)

    async def _force_and_roll_back(self, line: str, trial: Json) -> None:
        self._screen.chapter("Overruled by hand, and taken back")
        reason = "demo: somebody in a hurry"
        promoted = await self._watch.tell(
            f"/v1/models/{line}/promote",
            {"version": trial["version"], "force": True, "reason": reason},
        )
        good, bad = promoted["replaced"], promoted["version"]
        self._screen.say(
            f'$ learnd promote {line} {trial["version"]} --force --reason "{reason}"\n'
            f"{line}: {bad} promoted by force; it replaces {good}."
        )
        await self._compare_answers(line, good, bad)
        back = await self._watch.tell(f"/v1/models/{line}/rollback", {"reason": "wrong answers"})
        self._screen.say(
            f"$ learnd rollback {line}\n"
            f"{line}: {back['version']} is the champion again; {back['left']} was left."
            " Nothing was deleted: an alias moved, and every move is written down."
        )
        if back["version"] != good:
            self._fault(f"rolled back to {back['version']} instead of {good}")
        moves = await self._watch.ask(f"/v1/models/{line}/champion/history")
        self._screen.table(
            [Column("champion"), Column("replaced"), Column("cause"), Column("by"), words("why")],
            [
                (one["after"], one["before"], one["cause"], one["actor"], one["reason"])
                for one in reversed(moves)
            ],
        )

    async def _compare_answers(self, line: str, good: str, bad: str) -> None:
        """The first held-out prompts, answered by two versions; shown where they differ."""
        asked = self._held_out[line][:ASKED]
        answers = {version: await self._answers(line, version, asked) for version in (good, bad)}
        right = {
            version: sum(a == wanted for a, (_, wanted) in zip(found, asked, strict=True))
            for version, found in answers.items()
        }
        rows = [
            (prompt, _marked(by_good, wanted), _marked(by_bad, wanted))
            for (prompt, wanted), by_good, by_bad in zip(
                asked, answers[good], answers[bad], strict=True
            )
            if by_good != by_bad
        ]
        self._screen.say(
            f"Of the first {ASKED} held-out prompts {good} answers {right[good]} right, {bad}"
            f" {right[bad]}. Where they differ:"
        )
        self._screen.table([words("held-out prompt"), words(good), words(bad)], rows[:SHOWN])

    async def _answers(self, line: str, version: str, asked: Sequence[Example]) -> Sequence[str]:
        found = await self._watch.ask(f"/v1/models/{line}/versions/{version}")
        model = _model(found["loading"])
        answers = [
            await self._trainer.generate(
                model, [{"role": "user", "content": prompt}], max_new_tokens=LONGEST_ANSWER
            )
            for prompt, _ in asked
        ]
        return [answer.text for answer in answers]

    async def _who_knows(self, poison: Sequence[Sample]) -> None:
        """Where the first poisoned event that trained has come to."""
        for sample in poison:
            event = f"{CARELESS_PRODUCER}/{sample.event_id}"
            found = await self._watch.ask(f"/v1/lineage/{event}")
            if any(one["role"] == Role.TRAIN for one in found["uses"]):
                break
        known_by = [f"{one['version']} ({one['state']})" for one in found["known_by"]]
        self._screen.say(
            f"Versions that know the poisoned event {event}: {', '.join(known_by) or 'none'}."
            " No later batch replays what a rolled back version learned."
        )
        if any(one["is_champion"] for one in found["known_by"]):
            self._fault("the champion knows a poisoned event")

    async def _lineage(self) -> None:
        """Forward from an event, backward from a version."""
        self._screen.chapter("Lineage, both ways")
        line = LINES[0]
        champion = await self._watch.ask(f"/v1/models/{line}/champion")
        version = champion["summary"]["version"]
        behind = await self._watch.ask(f"/v1/lineage/{line}@{version}")
        self._screen.say(
            f"{line}@{version} was made of {behind['n_events']} events, through its parents:"
        )
        self._screen.table(
            [Column("version"), Column("batch"), Column("run"), words("members")],
            [
                (
                    f"{one['version']}{' *' if one['is_champion'] else ''}",
                    one["batch_id"],
                    one["run_id"],
                    one["counts"],
                )
                for one in behind["chain"]
            ],
        )
        if not behind["events"]["items"]:
            self._fault(f"{line}@{version} has no events behind it")
            return
        first = behind["events"]["items"][0]
        event = f"{first['producer']}/{first['event_id']}"
        found = await self._watch.ask(f"/v1/lineage/{event}")
        self._screen.say(f"And forward: {event} is in")
        self._screen.table(
            [Column("batch"), Column("as"), Column("run"), Column("outcome"), Column("version")],
            [
                (one["batch_id"], one["role"], one["run_id"], one["outcome"], one["version"])
                for one in found["uses"]
            ],
        )

    # --- what the chapters are made of ------------------------------------------------

    async def _send(self, samples: Sequence[Sample]) -> Sequence[Place]:
        places = await self._broker.send(samples)
        self._n_sent += len(samples)
        return places

    async def _known_runs(self) -> frozenset[str]:
        return frozenset(run["id"] for run in (await self._watch.ask("/v1/runs"))["items"])

    async def _trial(self, run: Json) -> Json:
        """The gate's comparison that a run ended with. Raises RunLostError."""
        if run["state"] != RunState.DECIDED:
            raise RunLostError(run)
        found = await self._watch.ask(f"/v1/models/{run['line']}/versions/{run['version']}")
        detail = await self._watch.ask(f"/v1/runs/{run['id']}")
        return {
            "line": run["line"],
            "version": run["version"],
            "members": detail["members"],
            **found["summary"]["trial"],
        }

    def _show_trials(self, trials: Sequence[Json]) -> None:
        self._screen.table(
            [
                Column("line"),
                Column("champion"),
                Column("candidate"),
                Column("trained on"),
                Column("held-out loss"),
                Column("exact match"),
                number("p"),
                Column("gate"),
            ],
            [_trial_row(trial) for trial in trials],
        )

    def gains(self) -> list[Sequence[Any]]:
        """By line: first version, last version, loss and exact match over all promotions."""
        rows: list[Sequence[Any]] = []
        for line in LINES:
            passed = [
                trial
                for trial in self._trials
                if trial["line"] == line and trial["outcome"] == Outcome.PROMOTE
            ]
            if passed:
                before, after = (
                    passed[0]["report"]["overall"],
                    passed[-1]["report"]["overall"],
                )
                rows.append(
                    (
                        line,
                        f"{passed[0]['against']} -> {passed[-1]['version']}",
                        change(before["champion_loss"], after["candidate_loss"]),
                        _shares(before["champion_match"], after["candidate_match"]),
                    )
                )
        return rows


def _trial_row(trial: Json) -> Sequence[Any]:
    report = trial["report"]
    overall = report["overall"] or {}
    p = report["p_better"]
    return (
        trial["line"],
        trial["against"],
        trial["version"],
        " + ".join(
            f"{n} {name}"
            for role, name in ((Role.TRAIN, "new"), (Role.RETRY, "retry"), (Role.REPLAY, "replay"))
            if (n := trial["members"].get(role, 0))
        ),
        change(overall.get("champion_loss"), overall.get("candidate_loss")),
        _shares(overall.get("champion_match"), overall.get("candidate_match")),
        None if p is None else f"{p:.1g}",
        trial["outcome"],
    )


def _shares(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{before:.0%} -> {after:.0%}"


def _marked(answer: str, wanted: str) -> str:
    return f"{answer}  {'(right)' if answer == wanted else '(wrong)'}"


def _shown(sample: Sample) -> str:
    body = json.loads(sample.value)
    return f"{body['prompt']!r} -> {body['output']!r}"


def _model(loading: Json) -> ModelReference:
    adapter = loading["adapter"]
    return ModelReference(loading["base_model"], Path(adapter) if adapter is not None else None)


def _write_rows(file: Path, examples: Sequence[Example]) -> None:
    rows = (json.dumps({"prompt": prompt, "output": output}) for prompt, output in examples)
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
