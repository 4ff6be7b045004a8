"""The libraries' objects stay out of the collector's sight, and nothing else does."""

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")

from finetune.trainer.libraries import import_libraries


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


class Model:
    """Part of a cycle, as models are."""

    def __init__(self) -> None:
        self.me = self


def test_what_was_imported_is_not_looked_at_again_and_what_comes_after_is_collected() -> None:
    import_libraries()
    assert len(gc.get_objects()) < gc.get_freeze_count() / 100
    model = weakref.ref(Model())
    gc.collect()
    assert model() is None
    assert gc.isenabled()


def test_a_library_that_is_missing_leaves_the_collector_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "finetune.trainer.train", None)
    with pytest.raises(ImportError):
        import_libraries()
    assert gc.isenabled()
