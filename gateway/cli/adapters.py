"""`tunery adapters`: list, inspect, move, publish and pull versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from msgspec import to_builtins

from tunery.gateway.cli.lineage import lineage
from tunery.gateway.cli.report import print_report, report_data, report_lines
from tunery.gateway.cli.terminal.context import actor, open_registry, plugins, print_json, say
from tunery.gateway.cli.terminal.tables import print_table, when
from tunery.registry.losses import LOSSES, loss_text, loss_unit
from tunery.registry.names import PRODUCTION

if TYPE_CHECKING:
    from tunery.registry import Base, Version
    from tunery.registry.registry import Registry

__all__ = ["adapters"]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def adapters() -> None:
    """List, inspect, move, publish and pull versions of adapters."""


@adapters.command("list")
@click.argument("adapter", required=False)
@as_json
def list_versions(adapter: str | None, as_json: bool) -> None:
    """Every adapter, or every version of one ADAPTER."""
    with open_registry() as registry:
        versions = registry.latest() if adapter is None else registry.versions(adapter)
        if adapter is not None and not versions:
            registry.resolve(adapter)
    if as_json:
        print_json(versions)
        return
    rows = [
        (
            v.name,
            ", ".join(v.aliases) or "-",
            v.method,
            v.base,
            v.digest[:12],
            loss_text(v),
            _size(v.size),
            when(v.created_at),
        )
        for v in versions
    ]
    header = ("version", "aliases", "method", "base", "digest", "loss", "size", "made")
    print_table(header, rows, empty="no adapters yet: tunery train, or tunery adapters import")


@adapters.command("show")
@click.argument("reference")
@click.option("--report", "whole", is_flag=True, help="Print the whole report, with samples.")
@as_json
def show(reference: str, whole: bool, as_json: bool) -> None:
    """Everything about one version: report, files, metrics, manifest."""
    with open_registry() as registry:
        version = registry.resolve(reference)
        files = registry.files(version)
    if as_json:
        print_json({**to_builtins(version), "report": report_data(files)})
        return
    if whole:
        print_report(version, files)
        return
    click.echo(f"{version.name}  {version.digest}")
    click.echo(f"made {when(version.created_at)} by {version.method} on {version.base} ({version.base_digest[:12]})")
    click.echo(f"aliases: {', '.join(version.aliases) or 'none'}")
    for warning in version.manifest.get("warnings", ()):
        click.echo(f"warning: {warning}")
    for line in report_lines(version, files):
        click.echo(line)
    unit = loss_unit(version)
    rows = [(k, f"{v:.6g}", unit if k in LOSSES else "") for k, v in sorted(version.metrics.items())]
    print_table(("metric", "value", "unit"), rows, empty="no metrics")
    _show_gates(version.manifest)
    print_table(("file", "size", "sha256"), [(f.path, _size(f.size), f.sha256[:12]) for f in version.files], empty="")
    click.echo("manifest:")
    print_json(version.manifest)


@adapters.command("alias")
@click.argument("adapter")
@click.argument("alias")
@click.argument("number", type=int, required=False)
@click.option("--expect", type=int, help="Only if it points to this version now; 0: only if there is none.")
@click.option("--drop", is_flag=True, help="Delete the alias.")
@click.option("--reason", default="", help="Why; kept in the history.")
@as_json
def alias(
    adapter: str, alias: str, number: int | None, expect: int | None, drop: bool, reason: str, as_json: bool
) -> None:
    """Point ALIAS of ADAPTER at version NUMBER. Running servers follow with their next request."""
    if (number is None) != drop:
        raise click.UsageError("say which version: tunery adapters alias acme/support production 3 (or --drop)")
    expectation: dict[str, Any] = {} if expect is None else {"expected": expect or None}
    with open_registry() as registry:
        if number is None:
            moved = registry.drop_alias(adapter, alias, actor=actor(), reason=reason, **expectation)
        else:
            moved = registry.move_alias(adapter, alias, number, actor=actor(), reason=reason, **expectation)
    if as_json:
        print_json(moved)
    else:
        click.echo(f"{moved.adapter}@{moved.alias}: {moved.before or 'none'} → {moved.after or 'none'}")


@adapters.command("history")
@click.argument("adapter")
@click.argument("alias", required=False)
@as_json
def history(adapter: str, alias: str | None, as_json: bool) -> None:
    """Every move of ADAPTER's aliases, oldest first."""
    with open_registry() as registry:
        moves = registry.history(adapter, alias)
    if as_json:
        print_json(moves)
        return
    rows = [(when(m.moved_at), m.alias, m.before or "-", m.after or "-", m.actor, m.reason or "-") for m in moves]
    print_table(("when", "alias", "from", "to", "who", "why"), rows, empty="no alias was ever moved")


@adapters.command("rollback")
@click.argument("adapter")
@click.argument("alias", default=PRODUCTION)
@click.option("--expect", type=int, help="Only if it points to this version now.")
@click.option("--reason", default="rollback", help="Why; kept in the history.")
@as_json
def rollback(adapter: str, alias: str, expect: int | None, reason: str, as_json: bool) -> None:
    """Point ALIAS (production) where it pointed before."""
    expectation: dict[str, Any] = {} if expect is None else {"expected": expect or None}
    with open_registry() as registry:
        moved = registry.rollback(adapter, alias, actor=actor(), reason=reason, **expectation)
    if as_json:
        print_json(moved)
    else:
        click.echo(f"{moved.adapter}@{moved.alias}: {moved.before or 'none'} → {moved.after}")


@adapters.command("verify")
@click.argument("reference", required=False)
@as_json
def verify(reference: str | None, as_json: bool) -> None:
    """Read the files of one version, or of all, and compare them with their digests."""
    with open_registry() as registry:
        problems = registry.verify(reference)
    if as_json:
        print_json(problems)
    else:
        print_table(
            ("version", "file", "problem"), [(p.version, p.path, p.problem) for p in problems], empty="all sound"
        )
    if problems:
        raise SystemExit(7)


@adapters.command("rm")
@click.argument("reference")
@click.option("--force", is_flag=True, help="Also when an alias points at it.")
@as_json
def remove(reference: str, force: bool, as_json: bool) -> None:
    """Forget one version. Its number is not used again; `gc` frees its files."""
    if "@" not in reference:
        raise click.UsageError(f"say which version: {reference}@NUMBER")
    with open_registry(scarce=True) as registry:
        version = registry.remove(reference, actor=actor(), force=force)
    if as_json:
        print_json(version)
    else:
        click.echo(f"removed {version.name}")


@adapters.command("gc")
@click.option("--older-than", type=float, default=3600.0, show_default=True, help="Seconds since it was last touched.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@as_json
def collect(older_than: float, dry_run: bool, as_json: bool) -> None:
    """Remove files that no version needs, and packed bases that are not known."""
    with open_registry(scarce=True) as registry:
        collected = registry.collect(older_than=older_than, dry_run=dry_run)
    if as_json:
        print_json(collected)
    else:
        verb = "would free" if dry_run else "freed"
        parts = f"{collected.blobs} files, {collected.staged} leftovers, {collected.packed} packed bases"
        click.echo(f"{verb} {_size(collected.bytes)}: {parts}")


@adapters.command("publish")
@click.argument("reference")
@click.option("--repo", required=True, metavar="ORG/NAME", help="The Hub repository; made if it is not there.")
@click.option("--private", is_flag=True, help="Make it private.")
@click.option("--base-model", metavar="ORG/NAME", help="The base's name on the Hub, where it has another name here.")
@click.option("--samples", is_flag=True, help="With the report's samples, which are texts of held-out rows.")
@as_json
def publish(reference: str, repo: str, private: bool, base_model: str | None, samples: bool, as_json: bool) -> None:
    """Put a version on the Hugging Face Hub: one commit, one tag, with a model card. HF_ENDPOINT is honoured."""
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


@adapters.command("pull")
@click.argument("source", metavar="ORG/NAME[/FOLDER][@REVISION]")
@click.argument("adapter")
@click.option("--base", default="smollm2-135m", show_default=True, help="The base it was trained on.")
@click.option("--alias", help="Point this alias at it.")
@click.option("--trust-base", is_flag=True, help="Also when it names another base; its shapes must fit all the same.")
@as_json
def pull(source: str, adapter: str, base: str, alias: str | None, trust_base: bool, as_json: bool) -> None:
    """Bring a PEFT LoRA from the Hub in as the next version of ADAPTER."""
    from tunery.registry.hub.pull import pull_from_hub

    with open_registry() as registry:
        known = _base(registry, base)
        version = pull_from_hub(
            registry, source, adapter, base=known, actor=actor(), alias=alias, trust_base=trust_base
        )
    _said(version, as_json)


@adapters.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("adapter")
@click.option("--base", default="smollm2-135m", show_default=True, help="The base it was trained on.")
@click.option("--alias", help="Point this alias at it.")
@click.option("--trust-base", is_flag=True, help="Also when it names another base; its shapes must fit all the same.")
@as_json
def import_(folder: Path, adapter: str, base: str, alias: str | None, trust_base: bool, as_json: bool) -> None:
    """Bring a local PEFT folder in as the next version of ADAPTER."""
    from tunery.registry.hub.incoming import import_folder

    with open_registry() as registry:
        known = _base(registry, base)
        version = import_folder(
            registry, folder, adapter, base=known, actor=actor(), alias=alias, trust_base=trust_base
        )
    _said(version, as_json)


adapters.add_command(lineage)


def _base(registry: Registry, reference: str) -> Base:
    from tunery.plugins.bases.resolve import resolve_base

    return resolve_base(reference, registry=registry, plugins=plugins(), say=say)


def _said(version: Version, as_json: bool) -> None:
    for warning in version.manifest.get("warnings", ()):
        say(f"warning: {warning}")
    if as_json:
        print_json(version)
    else:
        click.echo(f"{version.name}  {version.digest[:12]}  {_size(version.size)}")


def _show_gates(manifest: dict[str, Any]) -> None:
    """A line for each gate, and who overruled them."""
    rows = [
        (g["name"], "passed" if g["passed"] else "skipped" if g["skipped"] else g["code"], g["message"])
        for g in manifest.get("gates", ())
    ]
    print_table(("gate", "result", "why"), rows, empty="no gates were asked")
    if manifest.get("forced"):
        click.echo(f"published all the same by {manifest['forced_by']}")


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
