"""`tunery serve`: every adapter of the registry on one quantized base."""

from __future__ import annotations

from typing import Any

import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, say
from tunery.gateway.cli.terminal.options import setting_options
from tunery.plugins.runtime.device import check_device
from tunery.registry.configuration.settings import ServeSettings, read_settings
from tunery.registry.home import Home

__all__ = ["serve"]


@click.command()
@setting_options(ServeSettings)
def serve(**given: Any) -> None:
    """Serve every adapter from one quantized base, with an OpenAI-compatible API.

    Each setting can also come from TUNERY_HOME/config.toml ([serve]) or from TUNERY_SERVE_<NAME>.
    """
    home = Home.from_env()
    settings = read_settings(home.root, overrides={"serve": given})
    check_device(settings.serve.device)
    from tunery.gateway.serve import run

    run(settings, home=home, plugins=plugins(), say=say)
