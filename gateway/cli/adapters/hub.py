"""`tunery adapters publish`, `pull` and `import`: versions to and from the Hugging Face Hub and local folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, print_json, say
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import size_text
from tunery.gateway.python.home import current_actor, open_registry

if TYPE_CHECKING:
    from tunery.registry import Version
    from tunery.registry.hub.incoming import Destination
    from tunery.registry.registry import Registry

__all__ = ["COMMANDS"]

Command = TypeVar("Command", bound=Callable[..., Any])


@click.command("publish")
@click.argument("reference")
@click.option("--repo", required=True, metavar="ORG/NAME", help="The Hub repository; created if it does not exist.")
@click.option("--private", is_flag=True, help="Make it private.")
@click.option("--base-model", metavar="ORG/NAME", help="The base's name on the Hub, if it has another name here.")
@click.option("--samples", is_flag=True, help="Include the report's samples, which quote held-out rows.")
@as_json
def publish(reference: str, repo: str, private: bool, base_model: str | None, samples: bool, as_json: bool) -> None:
    """Publish a version to the Hugging Face Hub: one commit, one tag, with a model card. HF_ENDPOINT is honoured."""
    from tunery.registry.hub.push import publish_to_hub

    with open_registry() as registry:
        published = publish_to_hub(
            registry,
            registry.resolve(reference),
            repository=repo,
            private=private,
            base_model=base_model,
            samples=samples,
        )
    if as_json:
        print_json(published)
    else:
        click.echo(f"{published.url}  ({published.tag}, commit {published.commit[:12]})")


def import_options(command: Command) -> Command:
    """The options of every command that takes in an adapter as a version."""
    trust = "Accept one whose configuration names another base; its shapes must still fit."
    command = as_json(command)
    command = click.option("--trust-base", is_flag=True, help=trust)(command)
    command = click.option("--alias", help="Point this alias at it.")(command)
    return click.option("--base", default="smollm2-135m", show_default=True, help="The base it was trained on.")(
        command
    )


@click.command("pull")
@click.argument("source", metavar="ORG/NAME[/FOLDER][@REVISION]")
@click.argument("adapter")
@import_options
def pull(source: str, adapter: str, base: str, alias: str | None, trust_base: bool, as_json: bool) -> None:
    """Import a PEFT LoRA from the Hub as the next version of ADAPTER."""
    from tunery.registry.hub.pull import pull_from_hub

    with open_registry() as registry:
        destination = _destination(registry, adapter, base, alias, trust_base)
        version = pull_from_hub(registry, source, destination)
    _print_version(version, as_json)


@click.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("adapter")
@import_options
def import_(folder: Path, adapter: str, base: str, alias: str | None, trust_base: bool, as_json: bool) -> None:
    """Import a local PEFT folder as the next version of ADAPTER."""
    from tunery.registry.hub.incoming import import_folder

    with open_registry() as registry:
        destination = _destination(registry, adapter, base, alias, trust_base)
        version = import_folder(registry, folder, destination)
    _print_version(version, as_json)


COMMANDS = (publish, pull, import_)


def _destination(registry: Registry, adapter: str, base: str, alias: str | None, trust_base: bool) -> Destination:
    from tunery.plugins.bases.resolve import resolve_base
    from tunery.registry.hub.incoming import Destination

    return Destination(
        adapter=adapter,
        base=resolve_base(base, registry=registry, plugins=plugins(), say=say),
        actor=current_actor(),
        alias=alias,
        trust_base=trust_base,
    )


def _print_version(version: Version, as_json: bool) -> None:
    for warning in version.manifest.get("warnings", ()):
        say(f"warning: {warning}")
    if as_json:
        print_json(version)
    else:
        click.echo(f"{version.name}  {version.digest[:12]}  {size_text(version.size)}")
