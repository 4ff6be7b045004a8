"""A key that a model has learned is a key that anybody can ask it for.

Found by the detectors of detect-secrets that know a key by its form; those that guess, by
entropy or by the name of a variable, have too many false alarms on prose and on code.
Nothing is verified at a service, and nothing that is found is ever repeated.
"""

import re
from collections.abc import Iterator, Sequence

from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from consumers.screening.texts import texts_of
from learning.events import OutputEvent
from learning.screening import TaskRules

DETECTORS: Sequence[type[RegexBasedDetector]] = (
    AWSKeyDetector,
    AzureStorageKeyDetector,
    BasicAuthDetector,
    DiscordBotTokenDetector,
    GitHubTokenDetector,
    GitLabTokenDetector,
    JwtTokenDetector,
    MailchimpDetector,
    OpenAIDetector,
    PypiTokenDetector,
    SendGridDetector,
    SlackDetector,
    SquareOAuthDetector,
    StripeDetector,
    TelegramBotTokenDetector,
    TwilioKeyDetector,
)
# What that library does not know yet, and keys only where there is more than their first line.
_OWN = (
    (
        "Private Key",
        re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----\s[\s\S]{64}"),
    ),
    ("NPM Token", re.compile(r"\bnpm_[A-Za-z0-9]{36}\b")),
    ("GitHub Token", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{60,}")),
    ("Google API Key", re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    ("Hugging Face Token", re.compile(r"\bhf_[A-Za-z0-9]{34,}\b")),
    ("Anthropic API Key", re.compile(r"\bsk-ant-[a-z0-9]+-[A-Za-z0-9_-]{60,}")),
)
_PLACEHOLDER = re.compile(r"example|placeholder|your|xxxx|\.\.\.|[<{$%]|\*\*", re.IGNORECASE)
_NO_PASSWORD = frozenset(
    {"password", "passwd", "pass", "pwd", "secret", "token", "user", "changeme", "pw"}
)
_NO_HOST = re.compile(
    r"@(?:(?:localhost|db|host)(?=[:/]|$)|127\.|0\.0\.0\.0|\[::1\]|[^/\s]*\bexample\.)"
)
_FEWEST_CHARACTERS = 7
"""Different ones: a key of fewer is made up."""


class Secrets:
    """Refuses outputs with keys and tokens in the prompt, the answer or any other message."""

    name = "secrets"

    def __init__(self) -> None:
        self._detectors = [detector() for detector in DETECTORS]

    def check(self, event: OutputEvent) -> str | None:
        """What kind of secret was found first, and where; never the secret."""
        for where, text in texts_of(event):
            for kind, line in self._found(text):
                return f"{kind} in line {line} of {where}"
        return None

    def _found(self, text: str) -> Iterator[tuple[str, int]]:
        for kind, pattern in _OWN:
            for match in pattern.finditer(text):
                if not _is_made_up(match[0]):
                    yield kind, text.count("\n", 0, match.start()) + 1
        for number, line in enumerate(text.splitlines(), start=1):
            for detector in self._detectors:
                if _finds(detector, line):
                    yield detector.secret_type, number


def secrets_of(rules: TaskRules) -> Secrets | None:
    """The validator for a task type."""
    return Secrets() if rules.secrets else None


def _finds(detector: RegexBasedDetector, line: str) -> bool:
    match detector:
        case JwtTokenDetector():  # which looks into what it finds
            return any(not _is_made_up(found) for found in detector.analyze_string(line))
        case BasicAuthDetector():
            return any(
                not _is_no_password(found[1], line)
                for pattern in detector.denylist
                for found in pattern.finditer(line)
            )
    return any(
        not _is_made_up(found[0])
        for pattern in detector.denylist
        for found in pattern.finditer(line)
    )


def _is_made_up(secret: str) -> bool:
    return _PLACEHOLDER.search(secret) is not None or len(set(secret)) < _FEWEST_CHARACTERS


def _is_no_password(password: str, line: str) -> bool:
    """Whether an address has a placeholder for a password, or is nobody's."""
    return (
        password.casefold() in _NO_PASSWORD
        or _PLACEHOLDER.search(password) is not None
        or _NO_HOST.search(line) is not None
    )
