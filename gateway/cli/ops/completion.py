"""`tunery completion`: the script that makes a shell complete commands, references, jobs, keys and bases."""

from __future__ import annotations

import rich_click as click

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes `tunery` in SHELL.

    Bash: add `source <(tunery completion bash)` to ~/.bashrc. Zsh: `source <(tunery completion zsh)` in ~/.zshrc, after
    compinit. Fish: `tunery completion fish > ~/.config/fish/completions/tunery.fish`.
    """
    from tunery.gateway.cli import cli
    from tunery.gateway.cli.terminal.completion import script

    click.echo(script(shell, cli))
