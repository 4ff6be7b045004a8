"""The costly validators: what each lets pass, what it stops, and what it never says."""

import re
from pathlib import Path
from typing import Any

import pytest

from consumers.screening.banned_patterns import BannedPatterns
from consumers.screening.fences import fences_of, without_fences
from consumers.screening.json_schema import JsonSchema, fault_of_schema
from consumers.screening.language import Language
from consumers.screening.pii import Pii
from consumers.screening.screener import screeners_of
from consumers.screening.secrets import Secrets
from consumers.screening.syntax import Syntax
from learning.events import OutputEvent
from learning.screening import PiiMode, Scrubbed, TaskRules
from tests.builders import output

ROOT = Path(__file__).parents[2]


def said(answer: Any, **fields: Any) -> OutputEvent:
    return output(output=answer, **fields)


def fenced(language: str, code: str) -> str:
    return f"Here it is:\n\n```{language}\n{code}\n```\nDone."


# --- fences -----------------------------------------------------------------------------


def test_fences_are_found_with_their_language_and_line() -> None:
    text = "a\n```Python title=x\nx = 1\n```\nb\n~~~\ny\n~~~\n````md\n```\n````"
    found = [(one.language, one.code, one.line) for one in fences_of(text)]
    assert found == [("python", "x = 1", 3), ("", "y", 7), ("md", "```", 10)]
    assert without_fences(text) == "a\nb"


def test_a_fence_that_nobody_closed_ends_with_the_text() -> None:
    assert [one.code for one in fences_of("```js\nlet a")] == ["let a"]


# --- syntax -----------------------------------------------------------------------------

GOOD = {
    "python": "async def f(x: int) -> int:\n    return await g(x)",
    "javascript": "const f = async (x) => <b>{await g(x?.y ?? 1)}</b>;",
    "typescript": "export function f<T extends object>(x: T): keyof T { return <any>x; }",
    "tsx": "const f = (x: number) => <b>{x}</b>;",
    "json": '{"a": [1, 2.5, null]}',
}
BAD = {
    "python": "def f(x:\n    return x",
    "javascript": "function f( { return 1;",
    "typescript": "interface A { x: number",
    "tsx": "const f = (x: number) => <b>{x}</i",
    "json": "{'a': 1}",
}


@pytest.mark.parametrize("language", GOOD)
def test_good_code_passes(language: str) -> None:
    assert Syntax("auto").check(said(fenced(language, GOOD[language]))) is None


@pytest.mark.parametrize("language", BAD)
def test_broken_code_is_stopped_with_its_language_and_line(language: str) -> None:
    complaint = Syntax("auto").check(said(fenced(language, BAD[language])))
    assert complaint is not None
    assert re.match(r"(python|javascript|typescript|json), line \d+ of the answer: ", complaint)


@pytest.mark.parametrize(
    "answer",
    [
        "Use a loop, and (of course) a list.",
        fenced("", "def f(x:"),
        fenced("bash", "if [ ; then"),
        fenced("python", "    x = 1\n    y = 2"),
        fenced("python", ">>> f(1)\n2\n>>> for x in y:\n...     pass"),
        fenced("python", "await f()"),
        fenced("python", "x = '\\d'"),
    ],
)
def test_what_is_no_code_or_is_code_in_part_passes(answer: str) -> None:
    assert Syntax("auto").check(said(answer)) is None


def test_an_event_that_names_its_language_is_code() -> None:
    broken = said("def f(x:", context={"language": "Python"})
    assert Syntax("auto").check(broken) is not None
    assert Syntax("auto").check(said("def f(x: pass", context={"language": ["python"]})) is None


def test_a_configured_language_is_that_of_every_answer() -> None:
    assert Syntax("python").check(said("def f(x:")) is not None
    assert Syntax("python").check(said(fenced("", "def f(x:"))) is not None
    assert Syntax("python").check(said(fenced("json", "{'a': 1}"))) is None
    assert Syntax("json").check(said({"a": 1})) is None


@pytest.mark.parametrize(
    "code", ["(" * 50_000, "-" * 500_000 + "1", "x = " + "[" * 100_000, "a\0b", "{" * 100_000]
)
@pytest.mark.parametrize("language", ["python", "json"])
def test_hostile_code_is_stopped_and_breaks_nothing(language: str, code: str) -> None:
    assert Syntax("auto").check(said(fenced(language, code))) is not None


def test_all_python_of_this_house_passes() -> None:
    for path in sorted((ROOT / "learning").rglob("*.py")):
        assert Syntax("python").check(said(path.read_text())) is None, path


# --- JSON Schema ------------------------------------------------------------------------

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"$ref": "#/$defs/name"}},
    "$defs": {"name": {"type": "string", "maxLength": 5}},
}


@pytest.mark.parametrize(
    "answer", [{"name": "Ann"}, '{"name": "Ann"}', fenced("json", '{"name": "A"}')]
)
def test_an_answer_of_the_right_shape_passes(answer: Any) -> None:
    assert JsonSchema(SCHEMA).check(said(answer)) is None


def test_an_answer_of_another_shape_is_stopped_without_being_quoted() -> None:
    validator = JsonSchema(SCHEMA)
    assert validator.check(said("not at all")) == "the answer is no JSON"
    assert validator.check(said({})) == '$ does not satisfy required: ["name"]'
    assert validator.check(said({"name": "xyzzy-secret"})) == (
        "$.name does not satisfy maxLength: 5"
    )


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "strin"}, "is not valid under any of the given schemas"),
        ({"$ref": "http://elsewhere.example/x"}, "only references within the schema"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "there is no"),
    ],
)
def test_a_schema_that_cannot_be_used_is_told_apart(schema: dict[str, Any], fault: str) -> None:
    assert fault_of_schema(SCHEMA) is None
    assert fault in (fault_of_schema(schema) or "")


# --- language ---------------------------------------------------------------------------

GERMAN = (
    "Die Aufnahme ist sauber, nur am Ende rauscht es ein wenig. Wir sollten die letzten drei"
    " Sekunden leiser machen und den Bass etwas zurücknehmen, damit die Stimme klar bleibt."
)
ENGLISH = (
    "The recording is clean, only towards the end there is a little noise. We should turn down"
    " the last three seconds and take the bass back a bit, so that the voice stays clear."
)


def test_an_answer_in_another_language_is_stopped() -> None:
    assert Language(["en"]).check(said(ENGLISH)) is None
    assert Language(["en", "de"]).check(said(GERMAN)) is None
    assert Language(["en"]).check(said(GERMAN)) == ("the answer seems to be in de, expected: en")


@pytest.mark.parametrize("answer", ["Ja.", fenced("python", GERMAN), {"text": GERMAN}])
def test_what_is_short_or_no_prose_is_in_any_language(answer: Any) -> None:
    assert Language(["en"]).check(said(answer)) is None


def test_a_language_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="xx cannot be told"):
        Language(["en", "xx"])


# --- banned patterns --------------------------------------------------------------------


def test_phrases_and_expressions_are_found_in_the_answer_only() -> None:
    validator = BannedPatterns(["Internal use only", r"re:\bAC-\d{4}\b"])
    assert validator.check(said("for INTERNAL use only!")) == (
        "the answer has 'Internal use only' in it"
    )
    assert (
        validator.check(said("see AC-1234")) == r"the answer has what matches 're:\\bAC-\\d{4}\\b'"
    )
    assert validator.check(said("fine", prompt="internal use only")) is None


# --- secrets ----------------------------------------------------------------------------


def joined(*parts: str) -> str:
    """A made-up key that no scanner of this repository takes for a real one."""
    return "".join(parts)


KEYS = {
    "AWS Access Key": joined("AKIA", "Q3EGRS7TUVWX2BCD"),
    "GitHub Token": joined("ghp_", "a8Kd93jfLq0ZmX71bVc5Rt2Yw6Ne4HuPo9Si"),
    "GitLab Token": joined("glpat-", "k3Jx8Qa_zR7tBv2LmN5p"),
    "Stripe Access Key": joined("sk_live_", "4eC39HqLyjWDarjtT1zdp7dc"),
    "Slack Token": joined("xoxb-", "263594206564-2343594206574-FGqddMF8t08v8N7Oq4i57vs1"),
    "OpenAI Token": joined("sk-proj-", "a8Kd93jfLq0ZmX71bVc5", "T3BlbkFJ", "Rt2Yw6Ne4HuPo9SiQ1xZ"),
    "Google API Key": joined("AIza", "SyD4k9XbQ2mR7tV1wLpN8cJ5hF3gA6eB0uK"),
    "Hugging Face Token": joined("hf_", "kQzRxWvUtSpOnMlKjIhGfEdCbAyBcDeFgH"),
    "Basic Auth Credentials": joined("postgres://ann:", "v3ry-s3cr3t", "@db-1.corp.io/learnd"),
    "JSON Web Token": joined(
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",
        ".eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0",
        ".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
    ),
    "Private Key": joined(
        "-----BEGIN RSA PRIVATE",
        " KEY-----\n",
        "MIIEowIBAAKCAQEA7bq0Zx9dR4vW2kLmT8pQyN5sJ3hFgC6u" * 3,
    ),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("place", ["answer", "prompt", "json", "messages"])
def test_a_secret_is_found_wherever_it_is_and_never_repeated(kind: str, place: str) -> None:
    text = f"first line\nuse {KEYS[kind]} for it"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    event = {
        "answer": said(text),
        "prompt": said("ok", prompt=text),
        "json": said({"deep": [text]}),
        "messages": output(prompt=None, output=None, messages=messages),
    }[place]
    complaint = Secrets().check(event)
    assert complaint is not None
    assert complaint.startswith(f"{kind} in line 2 of ")
    assert not any(part in complaint for part in re.findall(r"\S{8,}", KEYS[kind]))


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        "Set AWS_ACCESS_KEY_ID to AKIAIOSFODNN7EXAMPLE and never commit it.",
        "export TOKEN=ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "url = 'postgres://user:password@localhost:5432/app'",
        "url = f'https://{user}:{password}@{host}/'",
        "A key begins with -----BEGIN RSA PRIVATE KEY----- and ends with a line like it.",
        "password = getpass.getpass(); api_key = os.environ['API_KEY']",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b, id 550e8400-e29b-41d4-a716-446655440000",
        "sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_prose_code_and_placeholders_are_no_secrets(text: str) -> None:
    assert Secrets().check(said(text)) is None


def test_the_code_and_the_documents_of_this_house_have_no_secrets() -> None:
    """Hundreds of kilobytes of code and prose without one: no false alarm."""
    paths = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "learning").rglob("*.py")]
    paths += [*(ROOT / "daemon").rglob("*.py"), *(ROOT / "finetune").rglob("*.py")]
    secrets = Secrets()
    alarms = {str(path): secrets.check(said(path.read_text())) for path in paths}
    assert {path: alarm for path, alarm in alarms.items() if alarm} == {}


# --- personal data ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to ann.lee+x@corp.co.uk.", "write to [EMAIL]."),
        ("call +49 30 901820 today", "call [PHONE] today"),
        ("IBAN DE89 3704 0044 0532 0130 00 PLEASE", "IBAN [IBAN] PLEASE"),
        ("card 4111 1111 1111 1111, 12/30", "card [CARD], 12/30"),
        ("from 93.184.216.34 and 2606:2800:220:1:248:1893:25c8:1946.", "from [IP] and [IP]."),
        ("a@corp.de, b@corp.de", "[EMAIL], [EMAIL]"),
    ],
)
def test_personal_data_is_scrubbed(text: str, clean: str) -> None:
    found = Pii(PiiMode.SCRUB, None).check(said(text))
    assert isinstance(found, Scrubbed)
    assert found.event.output == clean


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        "user@example.com, x@mail.example.org, git@github.com:org/repo.git, me@localhost",
        "192.168.0.1, 10.1.2.3, 127.0.0.1, 203.0.113.9, 8.8.8.8, version 4.12.1.3, v1.2.3.4",
        "pi is 3.14159265358979323846264338327950288419716939937510",
        "id 1234567890123456, order 2026-03-01-0001, 4000 + 5000 = 9000",
        "std::vector<int> a; dead::beef; 12:30:45",
        "c = a @ b.T; @app.get('/x')",
    ],
)
def test_what_is_nobodys_stays(text: str) -> None:
    assert Pii(PiiMode.HOLD, None).check(said(text)) is None


def test_held_personal_data_is_counted_and_not_repeated() -> None:
    text = "a@corp.de, b@corp.de, +49 30 901820"
    assert Pii(PiiMode.HOLD, None).check(said(text)) == "2 e-mail addresses, 1 phone number"


def test_prompts_messages_and_json_are_scrubbed_too() -> None:
    pii = Pii(PiiMode.SCRUB, None)
    found = pii.check(said({"to": ["ann@corp.de", 5]}, prompt="for bob@corp.de"))
    assert isinstance(found, Scrubbed)
    assert (found.event.prompt, found.event.output) == ("for [EMAIL]", {"to": ["[EMAIL]", 5]})
    messages = [
        {"role": "user", "content": "I am ann@corp.de"},
        {"role": "assistant", "content": "Hello ann@corp.de"},
    ]
    found = pii.check(output(prompt=None, output=None, messages=messages))
    assert isinstance(found, Scrubbed)
    assert found.event.messages is not None
    assert [one.content for one in found.event.messages] == ["I am [EMAIL]", "Hello [EMAIL]"]
    assert OutputEvent.model_validate_json(found.event.model_dump_json(exclude_unset=True))


def test_a_phone_number_without_a_country_needs_a_region() -> None:
    text = said("call 030 901820 today")
    assert Pii(PiiMode.HOLD, None).check(text) is None
    assert Pii(PiiMode.HOLD, "DE").check(text) == "1 phone number"


def test_a_scrubbed_text_has_nothing_left_to_scrub() -> None:
    pii = Pii(PiiMode.SCRUB, "DE")
    text = "a@corp.de 4111111111111111 DE89370400440532013000 +49 30 901820 93.184.216.34"
    assert pii.spans_of(pii.scrubbed(text)) == []


# --- all together -----------------------------------------------------------------------


def test_by_default_secrets_and_personal_data_are_looked_for() -> None:
    assert [one.name for one in screeners_of(TaskRules())] == ["secrets", "pii"]
    rules = TaskRules(
        syntax="auto",
        json_schema=SCHEMA,
        languages=["en"],
        banned_patterns=["x"],
        skip=["secrets"],
    )
    assert [one.name for one in screeners_of(rules)] == [
        "banned_patterns",
        "json_schema",
        "syntax",
        "language",
        "pii",
    ]


@pytest.mark.parametrize("text", ["a" * 900_000, "1 " * 400_000, "://" * 200_000, "1." * 400_000])
def test_the_default_ones_are_done_with_a_huge_text_in_the_end(text: str) -> None:
    """No timing is asserted: what takes too long is ended by the process's limit, not by this."""
    for screener in screeners_of(TaskRules()):
        screener.check(said(text))
