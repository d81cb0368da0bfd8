"""`tunery backup` and `tunery restore`."""

from __future__ import annotations

import time
from pathlib import Path

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json, say
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import size_text, when
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home

__all__ = ["backup", "restore"]


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--with-checkpoints", is_flag=True, help="Also what unfinished jobs go on from; else they begin again.")
@as_json
def backup(target: Path, with_checkpoints: bool, as_json: bool) -> None:
    """Back up TUNERY_HOME to TARGET while servers and jobs run: a folder, or a new file that ends in .tar, .tar.gz or
    .tgz.

    The same folder again gets what is new and forgets what is not needed any more. Holds the database, the files of all
    versions, data files, bases, config.toml and the histories of jobs; no caches. Keep it where secrets are kept.

    Files that are missing or damaged are named, and the rest is backed up; the exit code is 7 then.
    """
    from tunery.registry.backup.backup import back_up

    done = back_up(Home.from_env(), target, now=time.time(), checkpoints=with_checkpoints)
    if as_json:
        print_json(done)
    else:
        new = f"{done.files_written} files, {size_text(done.bytes_written)}, are new"
        click.echo(f"{done.target}: {done.files} files, {size_text(done.bytes)}; {new}")
    _warn(outside=done.outside)
    if done.incomplete:
        problems = "\n".join(done.incomplete)
        raise StorageFailed(
            f"the backup is made, without what is missing or damaged in the registry:\n{problems}\nsee tunery adapters "
            "verify, and keep an older backup that has it",
            code="backup_incomplete",
        )


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Only read the backup and compare it with its digests.")
@click.option("--force", is_flag=True, help="Move what is in TUNERY_HOME into a folder replaced-N of it first.")
@as_json
def restore(source: Path, check: bool, force: bool, as_json: bool) -> None:
    """Restore SOURCE, a backup, into an empty TUNERY_HOME.

    Every file is compared with its digest before the database is put in place. A backup of an older Tunery is brought
    up to date; one of a newer is refused.
    """
    from tunery.registry.backup.restore import check_backup
    from tunery.registry.backup.restore import restore as restore_backup

    home = Home.from_env()
    done = check_backup(source) if check else restore_backup(source, home, force=force)
    if as_json:
        print_json(done)
    else:
        what = f"{done.files} files, {size_text(done.bytes)}, of {when(done.created_at)}"
        click.echo(f"{source} is whole: {what}" if check else f"restored {what} to {home.root}")
    if done.moved_aside:
        say(f"what was there before is in {done.moved_aside} now; remove it when it is not wanted")
    for problem in done.incomplete:
        say(f"the backup was made without {problem}")
    _warn(outside=done.outside)


def _warn(*, outside: tuple[str, ...]) -> None:
    for name in outside:
        say(f"the base {name} is not in TUNERY_HOME and not in the backup: add it again after restoring")
