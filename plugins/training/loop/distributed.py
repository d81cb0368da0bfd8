"""Owns that several processes train one model together, as `accelerate launch` and `torchrun` start them; alone, it does nothing.

Each process holds the whole model, takes its share of every step's rows and adds up gradients with the others; the first one alone
writes. What fails in one process fails in all, so that none waits for ever. Refuses models cut into shards (FSDP, DeepSpeed): the loss
runs the decoder's layers directly, and what gathers a shard's weights would not hear of it.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tunery.registry.errors import InvalidInput, TrainingFailed

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Processes", "find_processes", "is_first"]

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a process waits for another that lives: the first one evaluates, judges and publishes alone."""
SETTLING = 0.5
"""Seconds that threads of a group get to let go; they need a few thousandths."""
BUCKET = 2**23
"""Numbers that are added up at once."""
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}


def is_first() -> bool:
    """Whether this process writes and speaks, as one that runs alone does."""
    return os.environ.get("RANK", "0") == "0"


def find_processes(device: str) -> Processes:
    """The processes that this one was started with, connected; `device` is where it trains, such as `cpu` or `cuda`."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise InvalidInput(
                f"{name} cuts the model into shards, which is not supported; launch with --multi_gpu (each process holds the "
                "base; --method qlora makes it small)",
                code="sharding_unsupported",
            )
    from accelerate import PartialState

    # Kept by accelerate for as long as the process lives; made once.
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    atexit.unregister(_leave)
    atexit.register(_leave)
    return Processes(state.process_index, state.num_processes, device=str(state.device))


class Processes:
    """`count` processes of which this is number `rank`. `device` is this one's own, None where it has no say in that."""

    def __init__(self, rank: int = 0, count: int = 1, *, device: str | None = None) -> None:
        self.rank, self.count, self.device = rank, count, device

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    @property
    def neighbours(self) -> int:
        """How many share this machine's memory, this one included."""
        return 1 if self.count == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", self.count))

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This one's part of `rows`: every row is in exactly one process, and neighbours (of like length) in different ones."""
        return rows if self.count == 1 else rows[self.rank :: self.count]

    def each(self, work: Callable[[], T]) -> list[T]:
        """Do `work` in all processes, and have what it gave in each of them. `work` must not wait for the others.

        What it raises is raised here; in the others, as an interruption where it is one, else as TrainingFailed.
        """
        if self.count == 1:
            return [work()]
        from accelerate.utils import gather_object

        try:
            mine: tuple[T | None, _Failure | None] = work(), None
        except BaseException as error:
            with suppress(RuntimeError):
                gather_object([(None, _Failure(self.rank, error))])
            raise
        with _company():
            told: list[tuple[Any, _Failure | None]] = gather_object([mine])
        for _, failure in told:
            if failure is not None:
                failure.strike()
        return [value for value, _ in told]

    def own(self, work: Callable[[], T]) -> T:
        """Do `work` in all processes, each keeping what it gave; what fails in one fails in all."""
        kept: list[T] = []
        self.each(lambda: kept.append(work()))
        return kept[0]

    def agree(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process alone, and have in all of them what it gave."""
        found: list[Any] = self.each(lambda: work() if self.first else None)
        return found[0]  # type: ignore[no-any-return]

    def means(self, work: Callable[[], tuple[int, Mapping[str, float]]]) -> dict[str, float]:
        """Means by name over all processes, each of which gives how many terms it has and its own means over them."""
        told = [(terms, figures) for terms, figures in self.each(work) if terms]
        if len(told) == 1:
            return dict(told[0][1])
        whole = sum(terms for terms, _ in told)
        return {name: sum(terms * figures[name] for terms, figures in told) / whole for name in told[0][1]}

    def begin(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the first one's weights."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        with _company():
            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))

    def seed(self, seed: int, step: int) -> None:
        """Before a step: random numbers of its own for each process, which a resumed run draws again."""
        if self.count == 1:
            return
        import torch

        name = hashlib.sha256(f"{seed}/{step}/{self.rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(name[:8], "big") >> 1)

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; one that has none counts as zero."""
        if self.count == 1:
            return
        with _company():
            for bucket in _buckets(parameters):
                self._add_up(bucket)

    def _add_up(self, bucket: Sequence[nn.Parameter]) -> None:
        import torch
        from accelerate.utils import reduce

        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        whole = reduce(torch.cat([piece.flatten() for piece in pieces]), reduction="sum")
        for parameter, piece in zip(bucket, whole.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = piece.view_as(parameter)


class _Failure:
    """What went wrong in a process, as the others are told."""

    def __init__(self, rank: int, error: BaseException) -> None:
        self.rank, self.interrupted = rank, isinstance(error, KeyboardInterrupt)
        self.message, self.code = f"{type(error).__name__}: {error}", getattr(error, "code", None)

    def strike(self) -> None:
        """Raise it here."""
        if self.interrupted:
            raise KeyboardInterrupt
        code = self.code if isinstance(self.code, str) else None
        raise TrainingFailed(f"process {self.rank} of this run failed, so all ended: {self.message}", code=code)


@contextmanager
def _company() -> Iterator[None]:
    """Say plainly that another process is gone, which shows as a lost connection."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingFailed(
            f"another process of this run is gone, so this one ended too; its last words may say why, and --resume goes on: {error}",
            code="process_lost",
        ) from error


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """The parameters in groups of one type of numbers and about BUCKET of them."""
    bucket: list[nn.Parameter] = []
    kind: torch.dtype | None = None
    size = 0
    for parameter in parameters:
        if bucket and (size >= BUCKET or parameter.dtype != kind):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        kind, size = parameter.dtype, size + parameter.numel()
    if bucket:
        yield bucket


def _leave() -> None:
    """End the group before Python ends. Its threads still let go of the last exchange's tensors, which takes the interpreter's lock: a
    thread that asks for it once Python is ending is killed, and the process with it."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(SETTLING)
