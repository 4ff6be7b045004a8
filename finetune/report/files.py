"""Write a report into a folder: report.md, report.html, report.json, and the pictures."""

import json
from pathlib import Path
from typing import Final

from finetune.report.content import TrainingReport
from finetune.report.markdown import as_markdown
from finetune.report.outline import pictures_of
from finetune.report.page import as_page

MARKDOWN: Final = "report.md"
PAGE: Final = "report.html"
DATA: Final = "report.json"


def write_report(folder: Path, report: TrainingReport) -> Path:
    """Write every form of it, in place of an earlier one; returns the page. Blocks.

    A picture NAME is in NAME.svg. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        MARKDOWN: as_markdown(report),
        PAGE: as_page(report),
        DATA: json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n",
        **{f"{picture.name}.svg": picture.svg for picture in pictures_of(report)},
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / PAGE
