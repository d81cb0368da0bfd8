"""`tunery data preview`: a row as the base sees it, with what is trained marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from tunery.gateway.cli.data.options import base_folder, format_option, formats, max_length_option
from tunery.gateway.cli.terminal.context import print_json, say
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.text import visible

if TYPE_CHECKING:
    from tunery.plugins.data.preview import Preview

__all__ = ["preview"]

_BEGIN, _END = "{+", "+}"
"""Mark what is trained where there is no colour, as wdiff and git diff --word-diff mark what was added."""


@click.command()
@click.argument("place", metavar="FILE:LINE")
@click.option("--base", default="smollm2-135m", show_default=True, help="The base to render with.")
@format_option
@max_length_option
@as_json
def preview(place: str, base: str, format_name: str | None, max_length: int, as_json: bool) -> None:
    """Show a row as the base sees it, what is trained in colour, or between {+ and +} where there is none."""
    from tunery.plugins.data.preview import preview_line, read_place
    from tunery.plugins.data.render.renderer import Renderer

    path, number = read_place(place)
    renderer = Renderer(base_folder(base))
    examples = preview_line(path, number, formats=formats(format_name), renderer=renderer, max_length=max_length)
    if as_json:
        print_json(examples)
        return
    for example in examples:
        _show_preview(example)


def _show_preview(example: Preview) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    in_colour = console.color_system is not None and not console.no_color
    text = Text()
    for segment in example.segments:
        shown = visible(segment.text)
        marked = shown if in_colour or not segment.trained else f"{_BEGIN}{shown}{_END}"
        text.append(marked, style="bold green" if segment.trained else "dim")
    console.print(text)
    cut = f", the last {example.cut} beyond max_length" if example.cut else ""
    how = "bold green" if in_colour else f"between {_BEGIN} and {_END}"
    say(f"{len(example.ids)} tokens, {sum(example.trained)} trained ({how}){cut}")
