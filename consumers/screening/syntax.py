"""Code that does not parse teaches a model to write code that does not parse.

Python by its own parser, JavaScript and TypeScript by tree-sitter, JSON by json. What is
code, and in which language, is said by the configuration, by the event's context, or by the
fences of the answer; an answer in prose without any of these is no code.
"""

import ast
import json
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from consumers.screening.fences import fences_of
from learning.events import OutputEvent, answer_text
from learning.screening import AUTO, OFF, TaskRules

_NAMES: Mapping[str, str] = {
    "python": "python",
    "python3": "python",
    "py": "python",
    "javascript": "javascript",
    "js": "javascript",
    "jsx": "javascript",
    "mjs": "javascript",
    "typescript": "typescript",
    "ts": "typescript",
    "tsx": "typescript",
    "json": "json",
}


class Syntax:
    """Refuses code with a syntax error."""

    name = "syntax"

    def __init__(self, language: str) -> None:
        """`language` is `auto`, or the one of every answer."""
        self._language = None if language == AUTO else language

    def check(self, event: OutputEvent) -> str | None:
        """The first error of the answer, with its language and line."""
        for language, code, line in self._code(event):
            fault = PARSERS[language](code)
            if fault is not None:
                message, offset = fault
                return f"{language}, line {line + offset - 1} of the answer: {message}"[:200]
        return None

    def _code(self, event: OutputEvent) -> Iterator[tuple[str, str, int]]:
        """(language, code, the line on which it begins) of each part that is to be parsed."""
        text = answer_text(event)
        declared = self._language or _declared(event)
        fences = fences_of(text)
        for fence in fences:
            language = _NAMES.get(fence.language)
            if language is None and not fence.language:
                language = declared
            if language is not None and (self._language is None or language == self._language):
                yield language, fence.code, fence.line
        if not fences and declared is not None:
            yield declared, text, 1


def syntax_of(rules: TaskRules) -> Syntax | None:
    """The validator for a task type."""
    return None if rules.syntax == OFF else Syntax(rules.syntax)


def _declared(event: OutputEvent) -> str | None:
    language = event.context.get("language")
    return _NAMES.get(language.lower()) if isinstance(language, str) else None


Fault = tuple[str, int]
"""A message, and the line of the code from 1."""


def _python(code: str) -> Fault | None:
    source = textwrap.dedent(code)
    if source.lstrip().startswith(">>>"):
        import doctest  # with a debugger, which the daemon has no use for

        source = doctest.script_from_examples(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(
                source,
                "answer",
                "exec",
                ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                dont_inherit=True,
            )
    except SyntaxError as error:
        return error.msg, error.lineno or 1
    except (RecursionError, MemoryError):
        return "nested too deeply", 1
    except ValueError as error:  # null bytes
        return str(error), 1
    return None


def _json(code: str) -> Fault | None:
    try:
        json.loads(code, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        return error.msg, error.lineno
    except RecursionError:
        return "nested too deeply", 1
    except ValueError as error:
        return str(error), 1
    return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _javascript(code: str) -> Fault | None:
    return _tree_fault(_parser("javascript"), code)


def _typescript(code: str) -> Fault | None:
    fault = _tree_fault(_parser("typescript"), code)
    # A cast in angle brackets is no TSX, and a tag is no TypeScript.
    return fault if fault is not None and _tree_fault(_parser("tsx"), code) is not None else None


@cache
def _parser(grammar: str) -> Any:
    import tree_sitter_javascript
    import tree_sitter_typescript
    from tree_sitter import Language, Parser

    grammars: Mapping[str, Callable[[], Any]] = {
        "javascript": tree_sitter_javascript.language,
        "typescript": tree_sitter_typescript.language_typescript,
        "tsx": tree_sitter_typescript.language_tsx,
    }
    return Parser(Language(grammars[grammar]()))


def _tree_fault(parser: Any, code: str) -> Fault | None:
    root = parser.parse(code.encode()).root_node
    if not root.has_error:
        return None
    # Down to the deepest node with the error, without recursion: it may be nested deeply.
    node = root
    while (inner := next((child for child in node.children if child.has_error), None)) is not None:
        node = inner
    message = f"{node.type} is missing" if node.is_missing else "unexpected code"
    return message, node.start_point[0] + 1


PARSERS: Mapping[str, Callable[[str], Fault | None]] = {
    "python": _python,
    "javascript": _javascript,
    "typescript": _typescript,
    "json": _json,
}
