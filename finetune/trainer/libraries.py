"""The training libraries, imported out of the garbage collector's sight.

They make a million objects that live as long as the process. A collection that looks at all of
them takes a quarter of a second, and stands in the way of the answer that is being written
meanwhile; one that does not takes some milliseconds, and imports without one are quicker too.
Nothing of a model is loaded here: what is must stay collectable.
"""

from __future__ import annotations

import gc


def import_libraries() -> None:
    """Import what any request but a ping may need, before a model is loaded. Raises ImportError."""
    gc.disable()
    try:
        import finetune.trainer.evaluate
        import finetune.trainer.train  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
