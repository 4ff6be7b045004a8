"""How many tokens a training file can have at most, without the tokenizer of its model.

A bound and no estimate: a token stands for at least one byte of text, and the JSON around
the texts is longer than what a chat template puts around them. English text has about a
quarter of it.
"""

import json
from pathlib import Path


def most_tokens(train_file: Path) -> int:
    """Tokens of all rows of a chat JSONL file, seen once. Blocks.

    The prompt of a pair counts twice: it is trained with either answer.
    """
    with train_file.open("rb") as rows:
        return sum(len(row) + _repeated_bytes(row) for row in rows)


def _repeated_bytes(row: bytes) -> int:
    prompt = json.loads(row).get("prompt")
    return 0 if prompt is None else len(json.dumps(prompt, ensure_ascii=False).encode())
