"""Complete commands and what they are given: references, jobs, keys and bases are read from the registry as it is, with
neither SQLAlchemy nor torch.

Nothing here fails aloud: a shell shows what a completion writes in the middle of the line that is being typed.
"""

from __future__ import annotations

import io
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from tunery.gateway.doctor.reading import open_unchanged
from tunery.registry.home import Home
from tunery.registry.names import PRODUCTION

__all__ = ["SHELLS", "VARIABLE", "install", "script"]

VARIABLE = "_TUNERY_COMPLETE"
_MOST = 200
_PLAIN = re.compile(r"[\w./@:+-]+", re.ASCII)
"""What needs no quotes in any shell; everything else is left out."""

Complete = Callable[[click.Context, str], Iterable[str]]


# -- what there is -----------------------------------------------------------------------------------------------------


def _select(query: str, *values: object) -> list[str]:
    """The first column of a query's rows."""
    with open_unchanged(Home.from_env().database) as connection:
        return [str(row[0]) for row in connection.execute(f"{query} LIMIT {_MOST}", values)]


def _adapters(context: click.Context, typed: str) -> list[str]:
    return _select("SELECT name FROM adapters WHERE substr(name, 1, ?) = ? ORDER BY name", len(typed), typed)


def _references(context: click.Context, typed: str) -> list[str]:
    """Adapters; behind an @ the aliases and numbers of one; names that begin with ft:."""
    adapter, at, _ = typed.partition("@")
    if at:
        aliases = _select("SELECT alias FROM aliases WHERE adapter = ? ORDER BY alias", adapter)
        numbers = _select("SELECT number FROM versions WHERE adapter = ? ORDER BY number DESC", adapter)
        return [f"{adapter}@{end}" for end in (*aliases, *numbers)]
    if typed.startswith("ft:"):
        return _select("SELECT name FROM model_names WHERE substr(name, 1, ?) = ? ORDER BY name", len(typed), typed)
    return _adapters(context, typed)


def _aliases(context: click.Context, typed: str) -> list[str]:
    adapter = context.params.get("adapter")
    return list(dict.fromkeys([PRODUCTION, *_select("SELECT alias FROM aliases WHERE adapter = ?", adapter)]))


def _numbers(context: click.Context, typed: str) -> list[str]:
    return _select("SELECT number FROM versions WHERE adapter = ? ORDER BY number DESC", context.params.get("adapter"))


def _jobs(context: click.Context, typed: str) -> list[str]:
    return _select("SELECT id FROM jobs WHERE substr(id, 1, ?) = ? ORDER BY created_at DESC", len(typed), typed)


def _runs(context: click.Context, typed: str) -> list[str]:
    return _select("SELECT id FROM eval_runs WHERE substr(id, 1, ?) = ? ORDER BY created_at DESC", len(typed), typed)


def _keys(context: click.Context, typed: str) -> list[str]:
    return _select("SELECT id FROM api_keys WHERE revoked_at IS NULL ORDER BY created_at DESC")


def _nothing(context: click.Context, typed: str) -> list[str]:
    """Secrets are not completed."""
    return []


def _bases(context: click.Context, typed: str) -> list[str]:
    names = ["smollm2-135m"]
    with suppress(sqlite3.Error):
        names += _select("SELECT name FROM bases ORDER BY name")
    return sorted(set(names))


_PARAMETERS: Mapping[str, Complete] = {
    "reference": _references,
    "adapter": _adapters,
    "parent": _references,
    "model": _references,
    "against": _references,
    "alias": _aliases,
    "number": _numbers,
    "job_id": _jobs,
    "run_id": _runs,
    "key": _keys,
    "base": _bases,
}
"""What the parameters of commands are, by their names."""


# -- the shells --------------------------------------------------------------------------------------------------------


class _Quiet(ShellComplete):
    """Completes from the registry; nothing where that fails."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What may stand at the end of the line."""
        try:
            context = click.shell_completion._resolve_context(self.cli, self.ctx_args, self.prog_name, args)
            with context:
                wanted, typed = click.shell_completion._resolve_incomplete(context, args, incomplete)
                complete = _completer(context, wanted)
                if complete is None:
                    return wanted.shell_complete(context, typed)
                found = complete(context, typed)
                return [CompletionItem(each) for each in found if each.startswith(typed) and _PLAIN.fullmatch(each)]
        except Exception:
            return []


def _completer(context: click.Context, wanted: click.Command | click.Parameter) -> Complete | None:
    if (
        not isinstance(wanted, click.Parameter)
        or wanted.name is None
        or isinstance(wanted.type, click.Path | click.Choice)
    ):
        return None
    if (context.info_name, wanted.name) == ("add", "reference"):
        return _bases
    if wanted.name == "key" and isinstance(wanted, click.Option):
        return _nothing
    return _PARAMETERS.get(wanted.name)


_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion type value
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
        fi
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(_Quiet, BashComplete):
    """Bash breaks words at @, : and =, and replaces only what follows the last of them."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is being typed, and that one."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        self._typed = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], self._typed

    def format_completion(self, item: CompletionItem) -> str:
        """One value, without what Bash keeps of the word."""
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        kept = max((self._typed.rfind(character) for character in breaks), default=-1) + 1
        cut = item.value[kept:] if item.value.startswith(self._typed) else item.value
        return f"{item.type},{cut}"


class _Zsh(_Quiet, ZshComplete):
    """Zsh, with click's own script."""


class _Fish(_Quiet, FishComplete):
    """Fish, with click's own script."""


SHELLS: Mapping[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def install() -> None:
    """Answer a shell that asks for completions, and write nothing else."""
    sys.stderr = io.StringIO()
    for name, kind in SHELLS.items():
        add_completion_class(kind, name)


def script(shell: str, cli: click.Command) -> str:
    """The script that makes a shell complete `tunery`."""
    made = SHELLS[shell](cli, {}, "tunery", VARIABLE)
    return made.source_template % made.source_vars()
