"""Train versions from Python: the work behind `tunery.train` and `tunery train`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunery.gateway.python.checking import paths_of
from tunery.gateway.python.home import current_actor, find_home
from tunery.plugins.events import EventSink, JobEvent
from tunery.plugins.runtime.device import resolve_device
from tunery.plugins.training.loop.distributed import connect_process_group, is_main_process
from tunery.registry.configuration.settings import read_settings
from tunery.registry.errors import InvalidInput, JobCancelled
from tunery.registry.names import check_adapter

if TYPE_CHECKING:
    from tunery.plugins.manager import Plugins
    from tunery.registry import Version
    from tunery.registry.registry import Registry

__all__ = ["resume", "run_job", "train"]

LARGE = 10_000_000
"""Bytes of rows that take seconds to check."""

T = TypeVar("T")

_log = logging.getLogger("tunery")


def _ignore(event: JobEvent) -> None:
    """Take no notice of an event."""


def train(
    data: str | Path | Sequence[str | Path],
    *,
    name: str,
    method: str = "lora",
    base: str = "smollm2-135m",
    validation: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    parent: str | None = None,
    alias: str | None = None,
    allow: Sequence[str] = (),
    force: bool = False,
    device: str = "auto",
    threads: int | None = None,
    home: str | Path | None = None,
    on_event: EventSink = _ignore,
    on_message: Callable[[str], None] = _log.info,
) -> Version:
    """Train a version of the adapter `name` (`tenant/name`) from files of examples, and publish it to the registry.

    - `method` is the trainer: lora, qlora, full, dpo, or a plugin's; `parameters` are that trainer's, by name, and
      those left out are chosen from the data and the base. `tunery plugins --trainer METHOD` lists them.
    - `base` is a name, folder, GGUF file or Hub id. `parent` is a version to continue from.
    - `validation` is a file of held-out rows; without one a share of `data` is held out.
    - `alias` is pointed at the new version.
    - `allow` are rules of `check_data` whose errors are let pass; `force` publishes what fails a gate, on record.
    - `threads` compute, 0 for all usable cores; by default the setting `training.threads`. Import tunery before torch
      for all of it to take effect.
    - `on_event` is called in this process with each event of the job (`tunery.plugins.events` has them), `on_message`
      with a line for a person when something takes long.

    Interrupting it (Ctrl-C, a notebook's stop button) raises JobCancelled; what the last checkpoint
    holds can be resumed.

    Raises UnknownName for an unknown trainer, base, parameter or rule, InvalidData for rows with errors, TrainingFailed
    for a run or a gate that failed, JobPaused when the job was paused from elsewhere, and StorageFailed for a full
    disk.
    """
    from tunery.plugins.data.read import data_size
    from tunery.plugins.discovery import load_plugins
    from tunery.plugins.parameters import read_parameters

    values = dict(parameters or {})
    read = read_parameters(load_plugins().trainer(method).parameters, values)
    check_adapter(name)
    files = paths_of(data)
    held_out = None if validation is None else Path(validation)
    everything = (*files, *([held_out] if held_out else []))
    for path in everything:
        if not path.exists():
            raise InvalidInput(f"{path} is not a file that can be read", code="invalid_data")
    if (size := sum(map(data_size, everything))) > LARGE:
        on_message(f"checking {size / 1e6:.0f} MB of rows")

    def start(registry: Registry, plugins: Plugins) -> Version:
        from tunery.plugins.bases.resolve import resolve_base
        from tunery.plugins.training.inputs.request import TrainRequest
        from tunery.plugins.training.job import launcher

        where = resolve_device(device)
        base_model = connect_process_group(where).on_main(
            lambda: resolve_base(base, registry=registry, plugins=plugins, say=on_message)
        )
        request = TrainRequest(
            adapter=name,
            trainer=method,
            base=base_model.digest,
            data=tuple(str(path.absolute()) for path in files),
            validation=str(held_out.absolute()) if held_out else None,
            parent=parent,
            alias=alias,
            device=where,
            parameters=values,
            allow=tuple(allow),
            force=force,
            actor=current_actor(),
        )
        return launcher.train(request, read, registry=registry, plugins=plugins, on_event=on_event)

    return run_job(start, threads=threads, home=home)


def resume(
    job: str,
    *,
    force: bool = False,
    threads: int | None = None,
    home: str | Path | None = None,
    on_event: EventSink = _ignore,
) -> Version:
    """Continue an interrupted or paused job from its last checkpoint, with the settings it was started with.

    `force` publishes what fails a gate, on record. Raises NotFound for an unknown job, InvalidInput for one that has
    succeeded or whose data changed meanwhile (code `resume_mismatch`), and what `train` raises.
    """

    def start(registry: Registry, plugins: Plugins) -> Version:
        from tunery.plugins.training.job import launcher

        forced_by = current_actor() if force else None
        return launcher.resume(job, registry=registry, plugins=plugins, on_event=on_event, forced_by=forced_by)

    return run_job(start, threads=threads, home=home)


def run_job(work: Callable[[Registry, Plugins], T], *, threads: int | None = None, home: str | Path | None = None) -> T:
    """Run a job in this process, with allocator and threads set before torch is imported; raise
    JobCancelled on Ctrl-C."""
    from tunery.plugins.discovery import load_plugins
    from tunery.plugins.runtime.compute import prepare_compute
    from tunery.registry.registry import Registry

    place = find_home(home)
    prepare_compute(read_settings(place.root, overrides={"training": {"threads": threads}}).training.threads)
    try:
        with Registry.open(place) as registry:
            return work(registry, load_plugins())
    except KeyboardInterrupt as stop:
        early = "interrupted before there was a job; nothing was changed"
        raise JobCancelled(
            str(stop) or (early if is_main_process() else "another process of this run was interrupted")
        ) from stop
