"""`tunery doctor`: what works here, what does not, and what to do."""

from __future__ import annotations

import sys

import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.text import visible
from tunery.registry.home import Home

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--deep", is_flag=True, help="Read every byte of the registry and its bases, and use torch and the GPU.")
@click.option("--server", metavar="URL", envvar="TUNERY_SERVER", help="Ask this server, not the one of the settings.")
@as_json
def doctor(deep: bool, server: str | None, as_json: bool) -> None:
    """Check this installation, TUNERY_HOME and the server: a line for each check, with what to do.

    Changes nothing, and works on a home that is damaged. The exit code is 1 if any check fails.
    """
    from tunery.gateway.doctor.examination import examine

    findings = []
    for finding in examine(Home.from_env(), deep=deep, server=server):
        findings.append(finding)
        if not as_json:
            state = click.style(f"{finding.state:4}", fg=_COLOURS[finding.state])
            click.echo(f"{state}  {finding.check}: {visible(finding.found)}")
            if finding.advice:
                click.echo(f"      -> {visible(finding.advice)}")
    if as_json:
        print_json(findings)
    sys.exit(1 if any(finding.state == "fail" for finding in findings) else 0)
