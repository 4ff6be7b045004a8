"""Personal data: e-mail addresses, phone numbers, card numbers, IBANs and IP addresses.

By form and check digits, not by guessing names. What cannot be anybody's is passed over:
the domains of RFC 2606, private and documentation networks, well-known name servers.
"""

import heapq
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

import phonenumbers
from stdnum import iban, luhn

from consumers.screening.texts import replaced, texts_of
from learning.events import OutputEvent
from learning.screening import PiiMode, Scrubbed, TaskRules


class Kind(StrEnum):
    """What was found, as it is said in words."""

    EMAIL = "e-mail address"
    IBAN = "IBAN"
    CARD = "card number"
    PHONE = "phone number"
    IP = "IP address"

    @property
    def placeholder(self) -> str:
        """What stands in its place."""
        return f"[{self.name}]"


_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w%+-][\w.%+-]{0,63}@((?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24})\b", re.IGNORECASE
)
_NOBODYS_DOMAIN = re.compile(
    r"(?:^|\.)(?:example\.(?:com|org|net)|example|test|invalid|localhost|local|internal)$",
    re.IGNORECASE,
)
_NOBODYS_NAME = frozenset({"git", "noreply", "no-reply"})
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")
_SHORTEST_IBAN = 15
_CARD = re.compile(r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![.-]?\d)")
_ISSUER = re.compile(r"4|5[1-5]|2[2-7]|3[0479]|35|6(?:011|2|4|5)|50|5[6-9]|6[0-9]")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:])[23][0-9a-f]{3}:(?:[0-9a-f]{0,4}:){1,6}[0-9a-f]{0,4}(?![\w:])", re.I)
_A_VERSION = re.compile(r"version\W*$", re.IGNORECASE)
_NAME_SERVERS = frozenset({"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"})

Span = tuple[int, int, Kind]


class Pii:
    """Stops outputs with personal data, or puts placeholders in its place."""

    name = "pii"

    def __init__(self, mode: PiiMode, phone_region: str | None) -> None:
        self._mode = mode
        self._phone_region = phone_region

    def check(self, event: OutputEvent) -> str | Scrubbed | None:
        """What kinds there are and how many, or the event without; never what was found."""
        found = Counter(kind for _, text in texts_of(event) for *_, kind in self.spans_of(text))
        if not found:
            return None
        what = ", ".join(f"{n} {kind}{_plural(kind, n)}" for kind, n in sorted(found.items()))
        if self._mode is PiiMode.HOLD:
            return what
        return Scrubbed(replaced(event, self.scrubbed), what)

    def scrubbed(self, text: str) -> str:
        """A text with placeholders."""
        return _with(text, self.spans_of(text), lambda start, end, kind: kind.placeholder)

    def spans_of(self, text: str) -> list[Span]:
        """Where a text has personal data: apart from each other, in order."""
        found: list[Span] = []
        # What is surer comes first, and is not taken for something else.
        for look in (_emails, _ibans, _cards, _addresses, self._phones):
            spans = list(look(text))
            text = _with(text, spans, lambda start, end, _: "x" * (end - start))
            found += spans
        return sorted(found)

    def _phones(self, text: str) -> Iterator[Span]:
        if self._phone_region is not None or "+" in text:
            for match in phonenumbers.PhoneNumberMatcher(text, self._phone_region):
                yield match.start, match.end, Kind.PHONE


def pii_of(rules: TaskRules) -> Pii | None:
    """The validator for a task type."""
    return None if rules.pii is PiiMode.OFF else Pii(rules.pii, rules.phone_region)


def _with(text: str, spans: Iterable[Span], instead: Callable[[int, int, Kind], str]) -> str:
    """A text with something else in place of some spans, which are in order."""
    parts, done = [], 0
    for start, end, kind in spans:
        parts += [text[done:start], instead(start, end, kind)]
        done = end
    return "".join([*parts, text[done:]])


def _plural(kind: Kind, n: int) -> str:
    if n == 1:
        return ""
    return "es" if kind.endswith("s") else "s"


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text) if "@" in text else ():
        name = match[0].partition("@")[0].lower()
        if name not in _NOBODYS_NAME and _NOBODYS_DOMAIN.search(match[1]) is None:
            yield match.start(), match.end(), Kind.EMAIL


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        # Capital letters that follow may be swallowed: the longest part that is one counts.
        for end in range(match.end(), match.start() + _SHORTEST_IBAN - 1, -1):
            if text[end - 1] != " " and iban.is_valid(text[match.start() : end]):
                yield match.start(), end, Kind.IBAN
                break


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if _ISSUER.match(digits) and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield match.start(), match.end(), Kind.CARD


def _addresses(text: str) -> Iterator[Span]:
    for match in heapq.merge(
        _IPV4.finditer(text), _IPV6.finditer(text), key=lambda match: match.start()
    ):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        before = text[max(0, match.start() - 12) : match.start()]
        if (
            address.is_global
            and match[0] not in _NAME_SERVERS
            and _A_VERSION.search(before) is None
        ):
            yield match.start(), match.end(), Kind.IP
