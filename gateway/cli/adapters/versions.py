"""`tunery adapters list`, `show`, `verify`, `rm` and `gc`: the versions there are, and what they take up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click
from msgspec import to_builtins

from tunery.gateway.cli.adapters.report import print_report, report_data, report_lines
from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table, size_text, when
from tunery.gateway.python.home import current_actor, open_registry
from tunery.registry.losses import LOSSES, loss_text, loss_unit

if TYPE_CHECKING:
    from tunery.registry.evals.records import Measurement
    from tunery.registry.sharing.share import Share

__all__ = ["COMMANDS"]


@click.command("list")
@click.argument("adapter", required=False)
@as_json
def list_versions(adapter: str | None, as_json: bool) -> None:
    """List every adapter, or every version of one ADAPTER."""
    with open_registry() as registry:
        versions = registry.latest() if adapter is None else registry.versions(adapter)
        if adapter is not None and not versions:
            registry.resolve(adapter)
        shared = {share.adapter: share for share in registry.sharing.all()}
    if as_json:
        print_json([{**to_builtins(v), "shared_with": _shared_with(shared.get(v.adapter))} for v in versions])
        return
    rows = [
        (
            v.name,
            ", ".join(v.aliases) or "-",
            v.method,
            v.base,
            v.digest[:12],
            loss_text(v),
            size_text(v.size),
            when(v.created_at),
            ", ".join(_shared_with(shared.get(v.adapter))) or "-",
        )
        for v in versions
    ]
    header = ("version", "aliases", "method", "base", "digest", "loss", "size", "made", "shared with")
    print_table(header, rows, empty="no adapters yet: tunery train, or tunery adapters import")


@click.command("show")
@click.argument("reference")
@click.option("--report", "whole", is_flag=True, help="Print the whole report, with samples.")
@as_json
def show(reference: str, whole: bool, as_json: bool) -> None:
    """Show one version: report, files, metrics, manifest."""
    with open_registry() as registry:
        version = registry.resolve(reference)
        files = registry.files(version)
        evals = registry.evals.measurements(version.digest)
        share = registry.sharing.get(version.adapter)
    if as_json:
        more = {"report": report_data(files), "evals": to_builtins(evals), "shared_with": _shared_with(share)}
        print_json({**to_builtins(version), **more})
        return
    if whole:
        print_report(version, files)
        return
    click.echo(f"{version.name}  {version.digest}")
    click.echo(f"made {when(version.created_at)} by {version.method} on {version.base} ({version.base_digest[:12]})")
    click.echo(f"aliases: {', '.join(version.aliases) or 'none'}")
    if share is not None:
        prefixes = ", with its prefix cache" if share.share_prefixes else ""
        click.echo(f"shared with: {', '.join(share.tenants)}{prefixes}")
    for warning in version.manifest.get("warnings", ()):
        click.echo(f"warning: {warning}")
    for line in report_lines(version, files):
        click.echo(line)
    unit = loss_unit(version)
    rows = [(k, f"{v:.6g}", unit if k in LOSSES else "") for k, v in sorted(version.metrics.items())]
    print_table(("metric", "value", "unit"), rows, empty="no metrics")
    _show_gates(version.manifest)
    _show_evals(evals)
    print_table(
        ("file", "size", "sha256"), [(f.path, size_text(f.size), f.sha256[:12]) for f in version.files], empty=""
    )
    click.echo("manifest:")
    print_json(version.manifest)


@click.command("verify")
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


@click.command("rm")
@click.argument("reference")
@click.option("--force", is_flag=True, help="Remove it even if an alias points at it.")
@as_json
def remove(reference: str, force: bool, as_json: bool) -> None:
    """Remove one version. Its number is not used again; `gc` frees its files."""
    if "@" not in reference:
        raise click.UsageError(f"name one version: {reference}@NUMBER")
    with open_registry(scarce=True) as registry:
        version = registry.remove(reference, actor=current_actor(), force=force)
    if as_json:
        print_json(version)
    else:
        click.echo(f"removed {version.name}")


@click.command("gc")
@click.option(
    "--older-than",
    type=float,
    default=3600.0,
    show_default=True,
    help="Leave what was touched within this many seconds.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@as_json
def collect(older_than: float, dry_run: bool, as_json: bool) -> None:
    """Remove files that no version needs, and packed copies of bases that are gone."""
    with open_registry(scarce=True) as registry:
        collected = registry.collect(older_than=older_than, dry_run=dry_run)
    if as_json:
        print_json(collected)
    else:
        verb = "would free" if dry_run else "freed"
        parts = f"{collected.blobs} files, {collected.staged} leftovers, {collected.packed} packed bases"
        click.echo(f"{verb} {size_text(collected.bytes)}: {parts}")


COMMANDS = (list_versions, show, verify, remove, collect)


def _shared_with(share: Share | None) -> list[str]:
    return list(share.tenants) if share else []


def _show_gates(manifest: dict[str, Any]) -> None:
    """A line for each gate, and who overruled them."""
    rows = [
        (g["name"], "passed" if g["passed"] else "skipped" if g["skipped"] else g["code"], g["message"])
        for g in manifest.get("gates", ())
    ]
    print_table(("gate", "result", "why"), rows, empty="no gates were run")
    if manifest.get("forced"):
        click.echo(f"published anyway by {manifest['forced_by']}")


def _show_evals(measured: list[Measurement]) -> None:
    """A line for each grader of each evaluation, oldest first."""
    rows = []
    for each in measured:
        differences = {row["name"]: row["difference"] for row in each.results.get("comparison", ())}
        for grader in each.results["model"]["graders"]:
            mean, moved = grader["mean"], differences.get(grader["name"])
            rows.append(
                (
                    when(each.at),
                    each.data_name,
                    grader["name"],
                    "-" if mean is None else f"{mean:.3f} ({grader['low']:.3f} to {grader['high']:.3f})",
                    f"{grader['passed']}/{grader['rows']}",
                    "-" if moved is None else f"{moved:+.3f} against {each.against}",
                    each.run,
                )
            )
    header = ("evaluated", "data", "grader", "mean (95 %)", "passed", "difference", "run")
    print_table(header, rows, empty="no evaluations")
