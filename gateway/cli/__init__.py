"""The command line: `tunery`. Commands are imported when they are called, so that help is quick and
imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

import click
from click.shell_completion import CompletionItem

from tunery.gateway.cli.terminal.streams import check_arguments, take_any_text
from tunery.plugins.runtime.quick_exit import exit_quickly
from tunery.registry.errors import TuneryError, near

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "adapters": ("tunery.gateway.cli.adapters:adapters", "List, inspect, move, publish and pull versions of adapters."),
    "audit": ("tunery.gateway.cli.tenancy.audit:audit", "List who changed what: keys, aliases, jobs, shared adapters."),
    "backup": ("tunery.gateway.cli.ops.backup:backup", "Back up the registry while it is used."),
    "bases": ("tunery.gateway.cli.bases:bases", "List and add base models."),
    "bench": ("tunery.gateway.cli.bench:bench", "Measure serving and training on this machine."),
    "completion": (
        "tunery.gateway.cli.ops.completion:completion",
        "Print the script that completes commands in a shell.",
    ),
    "config": ("tunery.gateway.cli.ops.config:config", "Show and check the configuration."),
    "data": ("tunery.gateway.cli.data:data", "Check, preview and split files of examples."),
    "doctor": ("tunery.gateway.cli.ops.doctor:doctor", "Check this installation and say what to do."),
    "eval": ("tunery.gateway.cli.eval:evaluations", "Measure models on held-out rows, and one against another."),
    "files": ("tunery.gateway.cli.files:files", "Find the versions that were made with a file of examples."),
    "jobs": ("tunery.gateway.cli.jobs:jobs", "Submit, list, follow, pause and cancel training jobs."),
    "keys": ("tunery.gateway.cli.keys:keys", "Create, list, rotate and revoke API keys."),
    "limits": ("tunery.gateway.cli.tenancy.limits:limits", "Show, set and clear what tenants and keys may use."),
    "plugins": ("tunery.gateway.cli.plugins:plugins", "List plugins, their hooks, and the trainers' parameters."),
    "registry": ("tunery.gateway.cli.registry:registry", "Rebuild a lost registry from its manifests."),
    "reproduce": ("tunery.gateway.cli.reproduce:reproduce", "Train a version again from its manifest and compare."),
    "restore": ("tunery.gateway.cli.ops.backup:restore", "Restore a backup into an empty home."),
    "serve": ("tunery.gateway.cli.serve:serve", "Serve every adapter from one quantized base."),
    "top": ("tunery.gateway.cli.ops.top:top", "Watch a server's requests, adapters, tenants and jobs."),
    "train": ("tunery.gateway.cli.train:train", "Train a version of an adapter from a file of examples."),
    "usage": ("tunery.gateway.cli.tenancy.usage:usage", "Show what tenants used."),
    "webhooks": ("tunery.gateway.cli.webhooks:webhooks", "List the endpoints of webhooks, and send them a test."),
    "worker": ("tunery.gateway.cli.worker:worker", "Run queued training jobs apart from the server."),
}
"""Each command's place and short help."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Built-in commands, then plugins'."""
        return [*COMMANDS, *sorted(set(super().list_commands(ctx)) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None when there is none."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands with their short helps, of which none is imported; else options."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was asked for, a plugin's too, or an error that names near ones."""
        if args and args[0] not in self.list_commands(ctx):
            _add_plugin_commands(self)
            if args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
                ctx.fail(f"no such command {args[0]!r}: {near(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from the short helps alone."""
        _add_plugin_commands(self)
        others = {name: self.commands[name].get_short_help_str() for name in sorted(self.commands)}
        rows = [(name, text) for name, (_, text) in COMMANDS.items()] + list(others.items())
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("tunery"), prog_name="tunery")
@click.option("--debug", is_flag=True, envvar="TUNERY_DEBUG", help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Train, version and serve hundreds of tenants' fine-tunes together on one quantized base model.

    State lives under TUNERY_HOME (default ~/.tunery).
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors become one line and an exit code here and nowhere else."""
    if not sys.stderr.isatty():
        # Libraries draw progress bars even into a log file; this keeps them from it.
        os.environ.setdefault("TQDM_DISABLE", "1")
    take_any_text()
    exit_quickly()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "_TUNERY_COMPLETE" in os.environ:
        from tunery.gateway.cli.terminal.completion import install

        install()
    try:
        if not {"-h", "--help", "--version"} & set(given):
            check_arguments(given)
        cli.main(args=given, prog_name="tunery")
    except TuneryError as error:
        if _debugging(given):
            raise
        from tunery.gateway.cli.terminal.errors import exit_code

        sys.stderr.write(f"error: {getattr(error, 'full_text', error.args[0])}\n")
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _debugging(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("TUNERY_DEBUG", "") not in ("", "0")


def _add_plugin_commands(group: click.Group) -> None:
    from tunery.gateway.cli.terminal.context import plugins

    plugins().add_commands(group)
