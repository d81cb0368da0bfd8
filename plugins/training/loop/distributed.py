"""Data-parallel training: the group of processes that `accelerate launch` and `torchrun` start, and what they exchange.

Every process holds the whole model, takes its shard of each step's rows and sums its gradients with those of the
others; only the main process writes. An error in one process ends all of them, so that none waits forever. A run on its
own is a group of one, for which nothing here does any work.

Models cut into shards (FSDP, DeepSpeed) are refused: the loss runs the decoder's layers directly, past the hooks that
gather a shard's weights.
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

from tunery.registry.errors import InvalidInput, TrainingFailed, TuneryError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ProcessGroup", "connect_process_group", "is_main_process"]

T = TypeVar("T")

TIMEOUT = timedelta(days=1)
"""How long a process waits for another that is alive: the main one evaluates, runs the gates and publishes alone."""
SHUTDOWN_SECONDS = 0.5
"""What the threads of a group get to release their tensors; they need a few milliseconds."""
BUCKET_SIZE = 2**23
"""Gradient elements per all-reduce."""
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}


def is_main_process() -> bool:
    """Whether this process has rank 0, as one that runs alone does; known without connecting to the others."""
    return os.environ.get("RANK", "0") == "0"


def connect_process_group(device: str) -> ProcessGroup:
    """The group that this process was launched in, connected; `device` is where it trains, such as `cpu` or `cuda`."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ProcessGroup()
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise InvalidInput(
                f"{name} cuts the model into shards, which is not supported; launch with --multi_gpu (each process holds the "
                "base; --method qlora makes it small)",
                code="sharding_unsupported",
            )
    from accelerate import PartialState

    # accelerate keeps this state for the life of the process.
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    atexit.unregister(_shut_down)
    atexit.register(_shut_down)
    return ProcessGroup(state.process_index, state.num_processes, device=str(state.device))


class ProcessGroup:
    """`size` processes, of which this one has the given `rank`.

    `device` is assigned by the launcher, None when it assigns none.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, device: str | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def is_main_process(self) -> bool:
        """Whether this process has rank 0: the only one that writes files, events and the registry."""
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """Processes on this machine, which share its memory."""
        return 1 if self.size == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    def shard(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's rows: each row is in exactly one shard, and neighbours (which are of
        similar length) in different ones."""
        return rows if self.size == 1 else rows[self.rank :: self.size]

    def all_gather(self, work: Callable[[], T]) -> list[T]:
        """Run `work` in every process and return all results, by rank. `work` must not wait for other processes.

        An error in one process is raised in all of them: there as it is, elsewhere as
        KeyboardInterrupt or TrainingFailed.
        """
        if self.size == 1:
            return [work()]
        from accelerate.utils import gather_object

        try:
            result: tuple[T | None, _Failure | None] = work(), None
        except BaseException as error:
            with suppress(RuntimeError):
                gather_object([(None, _Failure(self.rank, error))])
            raise
        with _peer_loss_explained():
            results: list[tuple[Any, _Failure | None]] = gather_object([result])
        for _, failure in results:
            if failure is not None:
                failure.reraise()
        return [value for value, _ in results]

    def on_all(self, work: Callable[[], T]) -> T:
        """Run `work` in every process and return this one's own result; an error in one is raised in all."""
        results: list[T] = []
        self.all_gather(lambda: results.append(work()))
        return results[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process alone and broadcast its result to all."""
        results: list[Any] = self.all_gather(lambda: work() if self.is_main_process else None)
        return results[0]  # type: ignore[no-any-return]

    def weighted_mean(self, work: Callable[[], tuple[int, Mapping[str, float]]]) -> dict[str, float]:
        """Means by name over all processes; `work` returns how many terms a process has, and its
        own means over them."""
        parts = [(terms, figures) for terms, figures in self.all_gather(work) if terms]
        if len(parts) == 1:
            return dict(parts[0][1])
        total = sum(terms for terms, _ in parts)
        return {name: sum(terms * figures[name] for terms, figures in parts) / total for name in parts[0][1]}

    def broadcast_parameters(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrite every process's parameters with those of the main process."""
        if self.size == 1:
            return
        from accelerate.utils import broadcast

        with _peer_loss_explained():
            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))

    def seed_step(self, seed: int, step: int) -> None:
        """Seed torch before a step, differently in each process and the same again in a resumed run."""
        if self.size == 1:
            return
        import torch

        digest = hashlib.sha256(f"{seed}/{step}/{self.rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; a missing one counts as zero."""
        if self.size == 1:
            return
        with _peer_loss_explained():
            for bucket in _buckets(parameters):
                self._all_reduce(bucket)

    def _all_reduce(self, bucket: Sequence[nn.Parameter]) -> None:
        import torch
        from accelerate.utils import reduce

        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
        for parameter, piece in zip(bucket, total.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = piece.view_as(parameter)


class _Failure:
    """An error in one process, as it is sent to the others."""

    def __init__(self, rank: int, error: BaseException) -> None:
        self.rank, self.interrupted = rank, isinstance(error, KeyboardInterrupt)
        self.message, self.code = f"{type(error).__name__}: {error}", _code(error)

    def reraise(self) -> None:
        """Raise it in this process."""
        if self.interrupted:
            raise KeyboardInterrupt
        raise TrainingFailed(f"process {self.rank} of this run failed, so all ended: {self.message}", code=self.code)


def _code(error: BaseException) -> str:
    from tunery.plugins.runtime.memory import is_out_of_memory

    if isinstance(error, TuneryError):
        return error.code
    return "out_of_memory" if is_out_of_memory(error) else "internal_error"


@contextmanager
def _peer_loss_explained() -> Iterator[None]:
    """Turn a lost connection into an error that says that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingFailed(
            "another process of this run is gone, so this one ended too; its last output may say why, and --resume goes on: "
            f"{error}",
            code="process_lost",
        ) from error


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """The parameters in groups of one dtype and about BUCKET_SIZE elements."""
    bucket: list[nn.Parameter] = []
    dtype: torch.dtype | None = None
    size = 0
    for parameter in parameters:
        if bucket and (size >= BUCKET_SIZE or parameter.dtype != dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        dtype, size = parameter.dtype, size + parameter.numel()
    if bucket:
        yield bucket


def _shut_down() -> None:
    """Destroy the group before Python exits.

    Its threads still release the last exchange's tensors, for which they take the interpreter's lock: a thread that
    asks for the lock once Python is exiting is killed, and the process with it.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(SHUTDOWN_SECONDS)
