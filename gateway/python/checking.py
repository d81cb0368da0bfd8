"""Check files of examples from Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunery.gateway.python.home import open_registry

if TYPE_CHECKING:
    from tunery.plugins.data.checks.report import DataReport

__all__ = ["check_data", "paths_of"]

_log = logging.getLogger("tunery")


def check_data(
    data: str | Path | Sequence[str | Path],
    *,
    base: str | None = None,
    validation: str | Path | None = None,
    max_length: int = 1024,
    format: str | None = None,  # noqa: A002 - the word of the command line
    processes: int | None = None,
    home: str | Path | None = None,
    on_message: Callable[[str], None] = _log.info,
) -> DataReport:
    """Check files of examples with every rule, as `tunery data check` does, and report what is wrong with which row.

    Rows are rendered with `base` (a name, folder, GGUF file or Hub id), for the rules about tokens; without one those
    find nothing. `validation` is a file of held-out rows, which must not be among the others. `max_length` is in
    tokens. `format` is a format's name, recognised row by row by default. `processes` is how many to check with, by
    default one a core.

    What is wrong with the data is in the report and raises nothing. Raises NotFound or InvalidData for files that are
    no files of rows, and UnknownName for an unknown base or format.
    """
    from tunery.plugins.bases.resolve import resolve_base
    from tunery.plugins.data.checks import runner
    from tunery.plugins.discovery import load_plugins

    plugins = load_plugins()
    folder = None
    if base is not None:
        with open_registry(home) as registry:
            folder = Path(resolve_base(base, registry=registry, plugins=plugins, say=on_message).path)
    return runner.check_data(
        paths_of(data),
        runner.CheckOptions(max_length=max_length, base_folder=folder, format=format, processes=processes),
        plugins=plugins,
        validation=Path(validation) if validation is not None else None,
    )


def paths_of(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path, or several, as a list."""
    return [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
