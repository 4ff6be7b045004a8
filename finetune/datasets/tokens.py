"""Count tokens with a model's own tokenizer, without loading a model or PyTorch."""

from collections.abc import Callable
from pathlib import Path

from finetune.datasets.flaws import DatasetFileError

TOKENIZER_FILE = "tokenizer.json"


def token_counter(folder: Path) -> Callable[[str], int]:
    """How many tokens a text has by the tokenizer in a folder, special ones not counted.

    Raises DatasetFileError when there is none that can be read, or nothing to read it with.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DatasetFileError(
            "counting tokens needs the tokenizers library: pip install 'learnd[train]'"
        ) from error
    file = folder / TOKENIZER_FILE if folder.is_dir() else folder
    if not file.is_file():
        raise DatasetFileError(
            f"{folder} has no {TOKENIZER_FILE}: name the folder of a model or of its tokenizer"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library's own errors are bare exceptions
        raise DatasetFileError(f"{file} is no tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
