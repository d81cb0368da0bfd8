"""Writes the parts of the documentation that the code knows better: settings, hooks, parameters. A
test holds them to the code.

python docs/generate.py           rewrite them
python docs/generate.py --check   exit with 1 if any would change
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import rooms  # first, since it puts build/typing on the path, where tunery is one folder

# isort: split
import commands
from dashboards import dashboard_files

from tunery.gateway.bench.report import bars_table, read_bars, read_rows, rows_table
from tunery.gateway.bench.training import table
from tunery.gateway.metrics.table import exposed_metrics
from tunery.plugins import hookspecs
from tunery.plugins.bases.architectures import EXACT, REFUSED
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import EVENTS
from tunery.plugins.parameters import describe_parameters
from tunery.registry.configuration.settings import Settings
from tunery.registry.values import describe_fields

DOCS = Path(__file__).parent


def settings_table() -> str:
    """Every setting with its default as config.toml has it, and what it is for."""
    rows = ["| setting | default | type | |", "|---|---|---|---|"]
    for section in msgspec.structs.fields(Settings):
        for field in describe_fields(section.type):
            default = msgspec.json.encode(field.default).decode()
            rows.append(f"| `{section.name}.{field.name}` | `{default}` | {field.type} | {field.description} |")
    return "\n".join(rows)


def hooks_table() -> str:
    """Every hook with its arguments and the first sentence of its documentation."""
    rows = ["| hook | arguments | |", "|---|---|---|"]
    for name, function in vars(hookspecs).items():
        if getattr(function, "tunery_spec", None) is not None:
            arguments = ", ".join(f"`{argument}`" for argument in inspect.signature(function).parameters)
            rows.append(f"| `{name}` | {arguments} | {' '.join((function.__doc__ or '').split())} |")
    return "\n".join(rows)


def parameters_table() -> str:
    """Every parameter of the built-in trainers: its type, its default in each, and what it is for."""
    trainers = load_plugins(allow=()).trainers()
    described = {
        name: {each.name: each for each in describe_parameters(info.parameters)} for name, info in trainers.items()
    }
    every = {name: each for parameters in reversed(described.values()) for name, each in parameters.items()}
    order = dict.fromkeys(name for parameters in described.values() for name in parameters)
    rows = [f"| parameter | {' | '.join(described)} | type | |", "|---|" + "---|" * (len(described) + 2)]
    for name in order:
        cells = [f"`{own[name].default}`" if name in own else "" for own in described.values()]
        rows.append(f"| `{name}` | {' | '.join(cells)} | {every[name].type} | {every[name].description} |")
    return "\n".join(rows)


def events_table() -> str:
    """Every kind of job event: when it is sent, and its fields."""
    rows = ["| `kind` | struct | sent when | fields |", "|---|---|---|---|"]
    for event in EVENTS:
        fields = []
        for field in msgspec.structs.fields(event):
            kind, *notes = typing.get_args(field.type)
            optional = ", may be absent" if field.default is msgspec.UNSET else ""
            fields.append(f"`{field.name}` ({_type_name(kind)}{optional}): {notes[0].description}")
        when = " ".join((event.__doc__ or "").split())
        rows.append(f"| `{event.__struct_config__.tag}` | `{event.__name__}` | {when} | {'<br>'.join(fields)} |")
    return "\n".join(rows)


def _type_name(kind: Any) -> str:
    """A type as Python writes it, without the modules of its names."""
    names = [_type_name(each) for each in typing.get_args(kind) if each is not msgspec.UnsetType]
    if isinstance(kind, types.UnionType):
        return " or ".join("null" if name == "NoneType" else name for name in names)
    return f"{kind.__name__}[{', '.join(names)}]" if names else str(kind.__name__)


def metrics_table() -> str:
    """Every metric under each of its names."""
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{metric.name}` | {metric.kind} | {_codes_in_order(metric.labels)} | {metric.help} |"
        for metric in sorted(exposed_metrics())
    ]
    return "\n".join(rows)


def architectures_table() -> str:
    """Every architecture by `model_type`: served exactly, or why it is not."""
    reasons: dict[str, list[str]] = {}
    for kind, reason in sorted(REFUSED.items()):
        reasons.setdefault(reason, []).append(kind)
    rows = ["| | `model_type` |", "|---|---|", f"| served exactly | {_codes(EXACT)} |"]
    rows += [f"| refused: {reason} | {_codes(kinds)} |" for reason, kinds in sorted(reasons.items())]
    return "\n".join(rows)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _codes_in_order(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def serving_rows() -> str:
    """What `tunery bench serve --suite` measured, as it was kept."""
    machine = _figures()["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['features'])}), {machine['memory']}"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return commands.wrapped(f"{where}; {versions}.") + "\n\n" + rows_table(read_rows(_figures()))


def serving_bars() -> str:
    """The same against what was aimed at and against other systems."""
    return bars_table(read_bars(_figures()))


def training() -> str:
    """What `tunery bench train` measured beside the peer, as it was kept."""
    return table(_figures("train.json")["figures"], peer=True)


def neighbours() -> str:
    """What `tunery bench neighbours` measured, as it was kept."""
    kept = _figures("neighbours.json")
    return rows_table(read_rows(kept)) + "\n\n" + bars_table(read_bars(kept))


def _figures(name: str = "serve.json") -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((DOCS / "figures" / name).read_text())
    return figures


def clients_table() -> str:
    """Every client that the tests run, with the versions that are pinned for it."""
    names = {"openai-1": "`openai` for Python", "openai-node": "`openai` for Node.js"}
    versions: dict[str, list[str]] = {}
    for path in sorted((DOCS.parent / "tests" / "clients" / "requirements").glob("*.txt")):
        text = path.read_text()
        pinned = re.findall(r"^# npm: openai@(\S+)", text) or re.findall(r"==(\S+)", text.partition("\n\n")[0])
        packages = ", ".join(
            f"`{name}`" for name in re.findall(r"^([\w-]+)==", text.partition("\n\n")[0], re.MULTILINE)
        )
        name = "openai-1" if re.fullmatch(r"openai-\d", path.stem) else path.stem
        versions.setdefault(names.get(name, packages), []).append(", ".join(pinned))
    rows = ["| client | versions |", "|---|---|"]
    rows += [f"| {name} | {', '.join(each)} |" for name, each in versions.items()]
    return "\n".join(rows)


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "serving rows": ("performance.md", serving_rows),
    "serving bars": ("performance.md", serving_bars),
    "serving": ("../README.md", serving_bars),
    "training": ("performance.md", training),
    "neighbours": ("performance.md", neighbours),
    "training figures": ("../README.md", training),
    "clients": ("api.md", clients_table),
    "architectures": ("engine.md", architectures_table),
    "settings": ("operations.md", settings_table),
    "hooks": ("plugins.md", hooks_table),
    "parameters": ("plugins.md", parameters_table),
    "events": ("training.md", events_table),
    "commands": ("cli.md", commands.commands_reference),
    "exit codes": ("cli.md", commands.exit_codes_table),
    "metrics": ("metrics.md", metrics_table),
    "where": ("architecture.md", rooms.questions_table),
    "training path": ("architecture.md", lambda: rooms.path_table(rooms.TRAINING, "T")),
    "serving path": ("architecture.md", lambda: rooms.path_table(rooms.SERVING, "S")),
    "rooms": ("architecture.md", rooms.rooms_table),
}


FIGURES: dict[str, Callable[[], str]] = {"figures/architecture.svg": rooms.diagram} | dashboard_files()


def filled(text: str, part: str, content: str) -> str:
    """`text` with the marked part replaced."""
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the part {part!r} is not marked")
    return pattern.sub(lambda match: f"{begin}\n{content}\n{end}", text)


def outdated() -> list[str]:
    """Files that differ from what the code says, rewritten unless only checking."""
    changed = []
    for part, (name, content) in PARTS.items():
        path = DOCS / name
        before = path.read_text()
        after = filled(before, part, content())
        if after != before:
            changed.append(f"{name}: {part}")
            if "--check" not in sys.argv:
                path.write_text(after)
    for name, draw in FIGURES.items():
        path, after = DOCS / name, draw()
        if not path.exists() or path.read_text() != after:
            changed.append(name)
            if "--check" not in sys.argv:
                path.write_text(after)
    return changed


if __name__ == "__main__":
    changed = outdated()
    for line in changed:
        sys.stdout.write(f"{'outdated' if '--check' in sys.argv else 'rewrote'} {line}\n")
    sys.exit(1 if changed and "--check" in sys.argv else 0)
