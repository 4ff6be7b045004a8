"""Several processes that train one model together: what they share out, add up and agree on.

Data parallel: each has the whole model and takes its share of a step's minibatches. Gradients
are summed, so a step is what one process would make of all its minibatches, but for the order
of additions. torchrun or accelerate starts them, and says in the environment which one this
is. What is told (requests, agreements) goes by gloo, gradients by the backend asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from finetune.trainer.errors import RequestFailed
from finetune.trainer.protocol import Backend, TrainRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """All processes of one training, as one of them sees them."""

    rank: int = 0
    count: int = 1
    group: Any = None
    """Of torch.distributed, for tensors."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks, and writes files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[tuple[int, T]]:
        """This process's part, each with its place among all."""
        return list(enumerate(items))[self.rank :: self.count]

    def add_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Each weight's gradient becomes the sum over all processes. Raises RequestFailed."""
        if self.count == 1:
            return
        with self._together():
            pending = [
                dist.all_reduce(_gradient(weight), group=self.group, async_op=True)
                for weight in weights
            ]
            for one in pending:
                assert one is not None
                one.wait()

    def add(self, number: float) -> float:
        """The sum over all processes, the same in each. Raises RequestFailed."""
        if self.count == 1:
            return number
        total = torch.tensor([number], dtype=torch.float64)
        with self._together():
            dist.all_reduce(total)
        return float(total.item())

    def tell(self, value: T | None) -> T:
        """What the first one has, in each. Raises RequestFailed."""
        told = [value]
        if self.count > 1:
            with self._together():
                dist.broadcast_object_list(told, src=0)
        [heard] = told
        assert heard is not None
        return heard

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RequestFailed(
                "process_died",
                f"another of the {self.count} processes of this training has died, and all are"
                f" ended; the trainer's log has its last words ({error})",
            ) from error


ALONE = Ranks()


def join_first(request: TrainRequest) -> Ranks:
    """The first process's way in: tell the others what is to be done. Raises RequestFailed."""
    wanted = request.settings.distributed
    if wanted is None or not wanted.enabled:
        return ALONE
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count != wanted.world_size:
        raise RequestFailed(
            "bad_request",
            f"the training wants {wanted.world_size} processes, and {count} were started;"
            " start the trainer with torchrun or accelerate launch",
        )
    if count == 1:
        return ALONE
    gpus = torch.cuda.device_count()
    if wanted.backend != "gloo" and 0 < gpus < count:
        raise RequestFailed(
            "bad_request",
            f"{count} processes want a GPU each, and there are {gpus}; lower"
            " distributed.world_size, or share them with distributed.backend gloo",
        )
    _meet()
    Ranks(0, count).tell(request)
    return Ranks(0, count, _group(wanted.backend))


def join_others() -> tuple[TrainRequest, Ranks]:
    """Any other's way in: wait until the first one tells what is to be done."""
    _meet()
    rank, count = dist.get_rank(), dist.get_world_size()
    request: TrainRequest = Ranks(rank, count).tell(None)
    assert request.settings.distributed is not None
    return request, Ranks(rank, count, _group(request.settings.distributed.backend))


def _meet() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo")


def _group(backend: Backend) -> Any:
    if backend == "auto":
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    return dist.new_group(backend=backend)


def _gradient(weight: nn.Parameter) -> torch.Tensor:
    """Zero where this process had no minibatch in a step."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
