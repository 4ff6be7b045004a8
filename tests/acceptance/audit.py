"""Hold what a daemon left behind against its promises: with plain sqlite3 and plain files.

None of the product's queries is used, only its rule for what a complete artifact is. Each
check yields what is wrong, in words; nothing yielded means that the promise held. The
daemon should not run meanwhile, or be idle.
"""

import contextlib
import itertools
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import pytest

from finetune.artifacts import ArtifactError, verify

PRIMARY = {"train", "held_out"}
MOST_SHOWN = 40
Row = sqlite3.Row


class Books:
    """The rows of one database, as they are now."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._file = data_dir / "learnd.db"
        self._held: sqlite3.Connection | None = None
        self._exist = False

    def rows(self, query: str, *values: Any) -> list[Row]:
        """The answer to a query; each time from a connection of its own, unless held open."""
        if self._held is not None:
            return self._held.execute(query, values).fetchall()
        with contextlib.closing(self._connect()) as connection:
            return connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def held_open(self) -> Iterator[Self]:
        """Ask everything inside the block on one connection: what a kill left is recovered once."""
        with contextlib.closing(self._connect()) as self._held:
            try:
                yield self
            finally:
                self._held = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=15)
        connection.row_factory = sqlite3.Row
        return connection

    def number(self, query: str, *values: Any) -> int:
        """The single number that a query answers."""
        return int(self.rows(query, *values)[0][0])

    def exist(self) -> bool:
        """Whether the daemon has made its tables."""
        if not self._exist and self._file.exists():
            named = "select count(*) from sqlite_master where name = 'tallies'"
            self._exist = bool(self.number(named))
        return self._exist


def faults_of(data_dir: Path) -> list[str]:
    """Everything that is wrong."""
    with Books(data_dir).held_open() as books:
        return [f"{check.__name__}: {fault}" for check in _CHECKS for fault in check(books)]


def require_none(*faults: Iterable[str], when: str) -> None:
    """Fail with what is wrong, unless nothing is."""
    found = list(itertools.chain.from_iterable(faults))
    if found:
        shown = "\n  ".join(found[:MOST_SHOWN])
        pytest.fail(f"{len(found)} faults {when}:\n  {shown}", pytrace=False)


def one_primary_role(books: Books) -> Iterator[str]:
    """P2: an event is sealed if and only if it has one primary role, in one batch."""
    roles: defaultdict[int, list[str]] = defaultdict(list)
    for row in books.rows("select event_id, role from batch_members"):
        roles[row["event_id"]].append(row["role"])
    for row in books.rows("select id, state, producer, event_id from events"):
        name = f"event {row['producer']}/{row['event_id']}"
        primary = [role for role in roles[row["id"]] if role in PRIMARY]
        wanted = 1 if row["state"] == "sealed" else 0
        if len(primary) != wanted:
            yield f"{name} is {row['state']} and has the primary roles {primary}"
        if set(roles[row["id"]]) - PRIMARY - {"preference"} and primary != ["train"]:
            yield f"{name} trains again as {roles[row['id']]}, but never trained"


def nothing_held_out_trains(books: Books) -> Iterator[str]:
    """No dataset file trains on a prompt that is held out, and each holds its batch's rows."""
    held_out = {
        _key(row["payload"])
        for row in books.rows(
            "select coalesce(s.text, e.payload) payload from events e"
            " join batch_members m on m.event_id = e.id"
            " left join screenings s on s.event_id = e.id where m.role = 'held_out'"
        )
    }
    held_out |= {
        _normal(json.loads(row["messages"])[:-1])
        for row in books.rows("select messages from evaluation_examples")
    }
    for row in books.rows("select id, batch_id, attempt from runs"):
        file = books.data_dir / "datasets" / row["id"] / "train.jsonl"
        if not file.exists():
            if books.rows(
                "select 1 from run_attempts where run_id = ? and job_id is not null", row["id"]
            ):
                yield f"run {row['id']} had a job, but has no {file.name}"
            continue
        written = _prompts_in(file.read_text())
        for prompt in written.keys() & held_out:
            yield f"run {row['id']} trains on a held-out prompt: {prompt}"
        members = Counter(
            _key(member["payload"])
            for member in books.rows(
                "select coalesce(s.text, e.payload) payload from events e"
                " left join screenings s on s.event_id = e.id"
                " join batch_members m on m.event_id = e.id"
                " where m.batch_id = ? and m.role != 'held_out'",
                row["batch_id"],
            )
        )
        for what, difference in (("lacks", members - written), ("adds", written - members)):
            if difference:
                yield f"run {row['id']}: its {file.name} {what} {dict(difference)}"


def rejected_outputs_are_only_learned_from_as_such(books: Books) -> Iterator[str]:
    """Who is learned from as rejected was rejected, is in one batch at a time, and in its file
    stands under that name."""
    under_way: Counter[str] = Counter()
    for row in books.rows(
        "select e.*, coalesce(s.text, e.payload) learned, r.id run_id,"
        " exists (select 1 from transitions t where t.kind = 'batch'"
        " and t.ref = m.batch_id and t.to_state = 'returned') given_back from batch_members m"
        " join events e on e.id = m.event_id join runs r on r.batch_id = m.batch_id"
        " left join screenings s on s.event_id = e.id where m.role = 'preference'"
    ):
        name = f"event {row['producer']}/{row['event_id']}"
        late = "select 1 from feedback where state = 'late' and approved = 0 and output_id = ?"
        if row["state"] not in ("rejected", "withdrawn") and not books.rows(late, row["id"]):
            yield f"{name} is {row['state']}, and learned from as rejected"
        if not row["given_back"]:
            under_way[name] += 1
        file = books.data_dir / "datasets" / row["run_id"] / "train.jsonl"
        if file.exists() and _answer(row["learned"]) not in _rejected_in(file.read_text()):
            yield f"{name} is not among the rejected answers of run {row['run_id']}"
    yield from (f"{name} is learned from in {n} batches" for name, n in under_way.items() if n > 1)


def nothing_unscreened_is_in_a_batch(books: Books) -> Iterator[str]:
    """Whatever is killed: what is sealed, or learned from, was screened and not stopped."""
    for row in books.rows(
        "select m.batch_id, m.event_id, s.outcome from batch_members m"
        " left join screenings s on s.event_id = m.event_id"
        " where s.outcome is null or s.outcome = 'stopped'"
    ):
        found = row["outcome"] or "not screened"
        yield f"event {row['event_id']} is in batch {row['batch_id']}, and {found}"


def one_job_an_attempt(books: Books) -> Iterator[str]:
    """P3: the jobs that were adopted, each by one attempt of one run."""
    adopted = Counter(
        row["job_id"]
        for row in books.rows("select job_id from run_attempts where job_id is not null")
    )
    for job, n in adopted.items():
        if n > 1:
            yield f"job {job} was adopted {n} times"
    for row in books.rows("select * from runs"):
        attempts = [
            one["attempt"]
            for one in books.rows(
                "select attempt from run_attempts where run_id = ? order by attempt", row["id"]
            )
        ]
        if attempts != list(range(1, row["attempt"] + 1)):
            yield f"run {row['id']} is at attempt {row['attempt']}, and has {attempts}"


def versions_are_complete(books: Books) -> Iterator[str]:
    """Each run has at most one version; each version, and each artifact, has all its files."""
    for folder in (books.data_dir / "artifacts").glob("[!.]*"):
        try:
            verify(folder)
        except ArtifactError as error:
            yield str(error)
    made = Counter(
        row["run_id"] for row in books.rows("select run_id from versions where run_id is not null")
    )
    for run, n in made.items():
        if n > 1:
            yield f"run {run} made {n} versions"
    for row in books.rows("select * from runs where state = 'decided'"):
        if made[row["id"]] != 1:
            yield f"run {row['id']} is decided and made {made[row['id']]} versions"
    for row in books.rows("select * from versions where run_id is not null"):
        name = f"{row['line']} {row['release'] or row['candidate']}"
        try:
            manifest = verify(books.data_dir / "artifacts" / row["artifact"])
        except ArtifactError as error:
            yield f"{name}: {error}"
        else:
            if manifest.sha256 != row["manifest_sha256"] or manifest.run_id != row["run_id"]:
                yield f"{name} has the files of another version: {manifest.run_id}"


def one_champion_a_line(books: Books) -> Iterator[str]:
    """P4: an alias names one released version, and its history has no gap."""
    for line in books.rows("select name from model_lines"):
        name = line["name"]
        aliases = books.rows("select * from aliases where line = ?", name)
        released = books.rows(
            "select id, release from versions where line = ? and state = 'released'", name
        )
        if len(aliases) != 1 or [row["id"] for row in released] != [aliases[0]["version_id"]]:
            yield (
                f"{name} has {len(aliases)} champions, and released are"
                f" {[row['release'] for row in released]}"
            )
            continue
        current = None
        moves = books.rows("select * from alias_history where line = ? order by id", name)
        for move in moves:
            if move["from_id"] != current:
                yield f"{name}: a move from {move['from_id']} when {current} was the champion"
            current = move["to_id"]
        if current != aliases[0]["version_id"] or len(moves) != aliases[0]["revision"]:
            yield f"{name}: its history ends at {current} after {len(moves)} moves"
    for row in books.rows(
        "select * from versions where release is not null and run_id is not null"
    ):
        promotions = books.number(
            "select count(*) from alias_history where to_id = ? and cause in ('promote', 'force')",
            row["id"],
        )
        if promotions != 1:
            yield f"{row['line']} {row['release']} was promoted {promotions} times"


def histories_have_no_gap(books: Books) -> Iterator[str]:
    """Each step of an event, batch, run or version begins where the one before ended."""
    last: dict[tuple[str, str], str] = {}
    for row in books.rows("select * from transitions order by id"):
        thing = (row["kind"], row["ref"])
        if thing in last and row["from_state"] != last[thing]:
            yield f"{thing}: from {row['from_state']} after it became {last[thing]}"
        last[thing] = row["to_state"]
    for kind, table in (("run", "runs"), ("version", "versions")):
        for row in books.rows(f"select id, state from {table}"):  # noqa: S608 - two fixed names
            known = last.get((kind, str(row["id"])))
            if known is not None and known != row["state"]:
                yield f"{kind} {row['id']} is {row['state']}, and its history ends at {known}"
    for row in books.rows("select id, state from events where state != 'sealed'"):
        known = last.get(("event", str(row["id"])), row["state"])
        if known != row["state"]:
            yield f"event {row['id']} is {row['state']}, and its history ends at {known}"


def batches_are_numbered(books: Books) -> Iterator[str]:
    """The batches of a line count from 1 without a gap; each but an untrainable one has a run."""
    sequences: defaultdict[str, list[int]] = defaultdict(list)
    for row in books.rows("select line, sequence from batches order by sequence"):
        sequences[row["line"]].append(row["sequence"])
    for line, numbers in sequences.items():
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{line} has the batches {numbers}"
    for row in books.rows(
        "select b.id from batches b left join runs r on r.batch_id = b.id where r.id is null"
    ):
        roles = Counter(
            member["role"]
            for member in books.rows("select role from batch_members where batch_id = ?", row["id"])
        )
        if set(roles) - {"held_out"}:
            yield f"batch {row['id']} has no run, and {dict(roles)}"


def tallies_are_real(books: Books) -> Iterator[str]:
    """The running counts are what counting gives."""
    counted: dict[tuple[str, str, str], tuple[int, float, int]] = {}
    for kind, query in _COUNTED.items():
        for row in books.rows(query):
            counted[kind, row["first"], row["second"]] = (row["n"], row["total"], row["m"])
    kept = {
        (row["kind"], row["task_type"], row["state"]): (
            row["n"],
            row["confidence_sum"],
            row["confidence_n"],
        )
        for row in books.rows("select * from tallies")
    }
    for key in sorted(counted.keys() | kept.keys()):
        n, total, m = counted.get(key, (0, 0.0, 0))
        n_kept, total_kept, m_kept = kept.get(key, (0, 0.0, 0))
        if (n, m) != (n_kept, m_kept) or abs(total - total_kept) > 1e-6:
            yield f"{key}: {n_kept} ({total_kept} of {m_kept}) kept, {n} ({total} of {m}) counted"


_COUNTED: Mapping[str, str] = {
    "output": "select task_type first, state second, count(*) n,"
    " coalesce(sum(confidence), 0) total, count(confidence) m from events group by 1, 2",
    # Of feedback no confidence is kept.
    "feedback": "select task_type first, state second, count(*) n, 0.0 total, 0 m"
    " from feedback group by 1, 2",
    "dead_letter": "select kind first, reason second, count(*) n, 0.0 total, 0 m"
    " from dead_letters group by 1, 2",
}

_CHECKS: tuple[Callable[[Books], Iterable[str]], ...] = (
    one_primary_role,
    nothing_held_out_trains,
    rejected_outputs_are_only_learned_from_as_such,
    nothing_unscreened_is_in_a_batch,
    one_job_an_attempt,
    versions_are_complete,
    one_champion_a_line,
    histories_have_no_gap,
    batches_are_numbered,
    tallies_are_real,
)


@lru_cache(maxsize=1_000)
def _prompts_in(dataset: str) -> Counter[str]:
    """The prompts of a dataset file."""
    rows = [json.loads(line) for line in dataset.splitlines()]
    return Counter(
        _normal(row["prompt"] if "prompt" in row else row["messages"][:-1]) for row in rows
    )


@lru_cache(maxsize=1_000)
def _rejected_in(dataset: str) -> frozenset[str]:
    """The answers that a dataset file names as bad."""
    rows = [json.loads(line) for line in dataset.splitlines()]
    return frozenset(
        row["rejected"] if "rejected" in row else row["messages"][-1]["content"]
        for row in rows
        if "rejected" in row or row.get("label") is False
    )


def _answer(payload: str) -> str:
    """The answer of a stored output, which is a text in these tests."""
    answer: str = json.loads(payload)["output"]
    return answer


@lru_cache(maxsize=100_000)
def _key(payload: str) -> str:
    """The prompt of a stored output, as far as case and white space do not matter."""
    event = json.loads(payload)
    messages = event["messages"][:-1] if "messages" in event else [{"content": event["prompt"]}]
    return _normal(messages)


def _normal(messages: Iterable[Mapping[str, str]]) -> str:
    return " ".join("\n".join(message["content"] for message in messages).casefold().split())
