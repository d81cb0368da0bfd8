"""`tunery serve`: every adapter of the registry on one quantized base."""

from __future__ import annotations

from typing import Any

import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, say
from tunery.plugins.runtime.device import check_device
from tunery.registry.home import Home
from tunery.registry.settings import read_settings

__all__ = ["serve"]


@click.command()
@click.option("--base", help="The base: a name, folder, GGUF file or Hub id.  [default: smollm2-135m]")
@click.option("--quant", help="How the base is quantized: nf4, int8 or none.  [default: nf4]")
@click.option("--dtype", help="What is computed in: bfloat16 or float32.  [default: bfloat16]")
@click.option("--device", help="cpu, cuda, cuda:1 …  [default: auto]")
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The port; 0 for any that is free.  [default: 8000]")
@click.option(
    "--allowed-hosts",
    help="Names this server answers to, separated by commas; * is a wildcard.  [default: any; loopback on loopback]",
)
@click.option("--allowed-origins", help="Origins of web pages that may use this server, separated by commas.")
@click.option("--adapter-budget-mb", type=int, help="Memory for adapters, in MiB.  [default: 1024]")
@click.option("--adapter-ram-mb", type=int, help="Main memory for evicted adapters, in MiB.  [default: 0]")
@click.option("--preload", help="Adapters to load at the start and keep, separated by commas.")
@click.option("--max-batch", type=int, help="Requests that run at once.  [default: 32]")
@click.option("--max-waiting", type=int, help="Requests that may wait.  [default: 256]")
@click.option(
    "--max-waiting-per-tenant",
    type=int,
    help="Requests one tenant may have in hand; 0 for half of all, while others ask too.  [default: 0]",
)
@click.option("--tenant-weights", help="Shares of the engine, such as acme=2,globex=1; 1 for all others.")
@click.option("--context-length", type=int, help="Tokens of prompt and output; 0 for the base's own.  [default: 0]")
@click.option("--kv-tokens", type=int, help="Tokens the cache holds; 0 follows --max-batch.  [default: 0]")
@click.option("--token-budget", type=int, help="Tokens of one step; 0 for the engine's choice.  [default: 0]")
@click.option(
    "--prefix-cache/--no-prefix-cache", default=None, help="Keep what prompts have in common.  [default: prefix-cache]"
)
@click.option("--threads", type=int, help="Threads of the engine; 0 for all usable cores.  [default: 0]")
@click.option("--drain-seconds", type=int, help="How long running requests may take after SIGTERM.  [default: 30]")
@click.option(
    "--read-seconds",
    type=int,
    help="How long a request's head and its body may take to come, and a connection may be idle.  [default: 30]",
)
@click.option(
    "--write-seconds", type=int, help="How long in all an answer may wait for a client to read it.  [default: 60]"
)
@click.option("--max-connections", type=int, help="Connections served at once.  [default: 1024]")
@click.option(
    "--hang-unready-seconds", type=int, help="Silence after which the engine counts as not ready.  [default: 10]"
)
@click.option(
    "--hang-restart-seconds", type=int, help="Silence after which the engine is started again.  [default: 60]"
)
@click.option(
    "--restart-hold-seconds",
    type=int,
    help="How long a request that has not begun waits for an engine that is being started.  [default: 15]",
)
@click.option("--access-log", is_flag=True, default=None, help="One line of JSON per request on stderr.")
def serve(**given: Any) -> None:
    """Serve every adapter from one quantized base, with an OpenAI-compatible API.

    Each setting can also come from TUNERY_HOME/config.toml ([serve]) or from TUNERY_SERVE_<NAME>.
    """
    home = Home.from_env()
    settings = read_settings(home.root, overrides={"serve": given}).serve
    check_device(settings.device)
    from tunery.gateway.serve import run

    run(settings, home=home, plugins=plugins(), say=say)
