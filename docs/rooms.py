"""Generate docs/architecture.md's diagram and tables from the imports and definitions that exist.

A definition named here that was renamed or moved is an error, so the page cannot drift from the code.
"""

from __future__ import annotations

import ast
import functools
import html
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "build" / "typing"))
"""Where tunery is one folder, which an editable install does not make it; grimp reads it from there."""
FLOORS = ("gateway", "plugins", "registry")

QUESTIONS = {
    "Where is a LoRA delta added in a CPU step (its C is in csrc/lora.h)?": "tunery.gateway.engine.models.native.ops.linear:LinearGroup",
    "What decides who is preempted?": "tunery.gateway.engine.scheduling.preemption:victim_for_growth",
    "What decides which tenant is served next?": "tunery.gateway.engine.scheduling.fairness:VirtualTokenCounter",
    "Where is a version's digest computed?": "tunery.registry.versions.digest:version_digest",
    "Where is a file's digest computed?": "tunery.registry.storage.digest:file_digest",
    "Where does a gate's verdict become a refusal?": "tunery.plugins.training.gates.verdict:check_gates",
    "Where does a new metric go?": "tunery.gateway.metrics.table:TABLE",
    "Where does a CLI option get its default?": "tunery.registry.configuration.settings:ServeSettings",
    "Where does a training parameter get its default?": "tunery.plugins.parameters:TrainingParameters",
    "Which queued job runs next, and who may run it?": "tunery.registry.jobs.queue:claim",
    "Where does an event for webhooks come from?": "tunery.registry.webhooks.events:append",
    "Where is a learning rate chosen?": "tunery.plugins.training.defaults:_learning_rate",
    "Where does an error become an HTTP response?": "tunery.gateway.api.http.errors:EXCEPTION_HANDLERS",
    "Where is a request's `model` resolved to a version?": "tunery.gateway.resolver:Resolver",
    "Where does a Responses request become a chat request?": "tunery.gateway.api.items.chat_request:chat_request",
    "Where is an `adapter_config.json` read?": "tunery.registry.peft.config:read_config",
    "Where is a route added?": "tunery.gateway.app:HANDLERS",
    "Where is a tenant's limit checked?": "tunery.gateway.tenancy.limits.limiter:Limiter",
    "Where is what a request used recorded?": "tunery.gateway.api.response.metering:metered",
    "Where is an answer of an evaluation graded?": "tunery.plugins.evals.graders:CompiledGrader",
    "What can a plugin extend?": "tunery.plugins.hookspecs:TrainerInfo",
}
"""What a newcomer asks, and the definition that answers it."""

TRAINING = {
    "the file is opened and its rows are read": "tunery.plugins.data.read.records",
    "each row's format is recognised": "tunery.plugins.data.read.formats",
    "the rows are checked": "tunery.plugins.data.checks.runner",
    "rows are rendered into token ids, with a mask of those that are trained": "tunery.plugins.data.render.renderer",
    "the trainer loads the base and adds what it trains": "tunery.plugins.trainers.lora",
    "the loop turns batches into weights": "tunery.plugins.training.loop.loop",
    "the job stages all of it: preflight, checkpoints, evaluation, report": "tunery.plugins.training.job.stages",
    "gates look at the files in a fresh process, and may refuse them": "tunery.plugins.training.gates.gatekeeper",
    "the version is published in one transaction": "tunery.registry.versions.publish",
    "an alias moves to it": "tunery.registry.versions.aliases",
}
SERVING = {
    "a request arrives and is validated": "tunery.gateway.api.chat",
    "admission bounds what each tenant uses and has in flight": "tunery.gateway.api.http.admission",
    "its `model` is resolved to a version's digest": "tunery.gateway.resolver",
    "messages are rendered into token ids, as in training": "tunery.plugins.data.render.renderer",
    "the gateway sends it to the engine's process": "tunery.gateway.engine.ipc.client",
    "its adapter becomes resident": "tunery.gateway.engine.adapters.residency",
    "the scheduler puts it into a step": "tunery.gateway.engine.scheduling.scheduler",
    "the model computes the step": "tunery.gateway.engine.models.native.decoder",
    "the sampler chooses a token, within the structured output": "tunery.gateway.engine.sampling.sampler",
    "tokens become text": "tunery.gateway.api.response.detokenizer",
    "usage is counted": "tunery.gateway.metrics.recorder",
}


def questions_table() -> str:
    """Every question with the file and the definition that answers it."""
    rows = ["| question | file | definition |", "|---|---|---|"]
    rows += [f"| {question} | `{_file(place)}` | `{_name(place)}` |" for question, place in QUESTIONS.items()]
    return "\n".join(rows)


def path_table(steps: Mapping[str, str], letter: str) -> str:
    """The steps of a path with their numbers in the diagram and their files."""
    rows = ["| step | what happens | file |", "|---|---|---|"]
    rows += [
        f"| {letter}{number} | {what} | `{_file(place)}` |" for number, (what, place) in enumerate(steps.items(), 1)
    ]
    return "\n".join(rows)


def rooms_table() -> str:
    """Every folder: its first sentence, how many files it has, and the rooms that it imports."""
    rows = ["| room | what it is for | files | imports |", "|---|---|---|---|"]
    for folder in sorted({path.parent for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}):
        name = folder.relative_to(ROOT).as_posix()
        if "/migrations" in name:
            continue
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        module = _module_of(folder)
        imports = sorted({_room(target) for target in _imports_of(module)} - {name})
        links = ", ".join(f"`{room}`" for room in imports)
        rows.append(f"| `{name}/` | {_first_sentence(folder / '__init__.py')} | {len(files)} | {links} |")
    return "\n".join(rows)


def _first_sentence(path: Path) -> str:
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    return text.split(". ")[0].rstrip(".").replace("|", r"\|")


def _module_of(folder: Path) -> str:
    return ".".join(("tunery", *folder.relative_to(ROOT).parts))


def _room(module: str) -> str:
    """The folder that a module lies in, from the checkout's root."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return (path if path.is_dir() else path.parent).relative_to(ROOT).as_posix()


def _imports_of(package: str) -> set[str]:
    """Modules that the files of a folder import, those of its subfolders left out."""
    graph = _graph()
    inside = {package} | {child for child in graph.find_children(package) if not _is_package(child)}
    return {target for module in inside for target in graph.find_modules_directly_imported_by(module)} - inside


def _is_package(module: str) -> bool:
    return ROOT.joinpath(*module.split(".")[1:]).is_dir()


@functools.cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("tunery", cache_dir=None)


def _file(place: str) -> str:
    """The file of a module, or of the module that a definition is in; what is not there any more is an error."""
    module, _, qualified = place.partition(":")
    path = ROOT.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists() or (qualified and not _defines(path, qualified.split("."))):
        raise SystemExit(f"docs/rooms.py names {place}, which does not exist: name what took its place")
    return path.relative_to(ROOT).as_posix()


def _defines(path: Path, names: list[str]) -> bool:
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    for name in names:
        definition = next((node for node in body if name in _names(node)), None)
        if definition is None:
            return False
        body = getattr(definition, "body", [])
    return True


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else set()


def _name(place: str) -> str:
    return place.partition(":")[2]


# -- the diagram -------------------------------------------------------------------------------------------------------

WIDTH, MARGIN, GAP, HEIGHT, ROW = 1200, 24, 20, 72, 118
FILL = {"gateway": "#e8f0fe", "plugins": "#e6f4ea", "registry": "#fef7e0"}
COLOURS = {"T": "#b3261e", "S": "#174ea6"}


@dataclass(frozen=True, slots=True)
class Box:
    """A room of the diagram: its modules, and where it is drawn."""

    name: str
    floor: str
    modules: frozenset[str]
    x: float = 0
    y: float = 0
    width: float = 0


def diagram() -> str:
    """An SVG of the rooms at the second level, their imports without those that follow from others,
    and the steps of both paths."""
    boxes = _place(_boxes())
    arrows = _reduced(_arrows(boxes.values()))
    bottom = max(box.y for box in boxes.values()) + HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom:.0f}" font-family="sans-serif" font-size="13">',
        "<title>The rooms of Tunery, what they import, and the two paths through them</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#80868b"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{bottom:.0f}" fill="#ffffff"/>',
        *_bands(boxes.values()),
        *(_curve(boxes[a], boxes[b]) for a, b in arrows),
        *(line for box in boxes.values() for line in _drawn(box)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _boxes() -> list[Box]:
    """Folders at the second level; loose modules beside them are two rooms, one above that uses the
    folders and one below."""
    graph, boxes = _graph(), []
    for floor in FLOORS:
        package = f"tunery.{floor}"
        children = sorted(graph.find_children(package))
        folders = [child for child in children if _is_package(child)]
        loose = {package, *(child for child in children if child not in folders)}
        inner = {module for folder in folders for module in (folder, *graph.find_descendants(folder))}
        above = {module for module in loose if graph.find_upstream_modules(module) & inner}
        boxes += [
            Box(f"{floor}/{folder.rpartition('.')[2]}", floor, frozenset({folder, *graph.find_descendants(folder)}))
            for folder in folders
        ]
        boxes += [Box(f"{floor}: above", floor, frozenset(above))] if above else []
        boxes += [Box(f"{floor}: below", floor, frozenset(loose - above))] if loose - above - {package} else []
    return boxes


def _arrows(boxes: Iterable[Box]) -> set[tuple[str, str]]:
    graph = _graph()
    owner = {module: box.name for box in boxes for module in box.modules}
    return {
        (name, owner[target])
        for module, name in owner.items()
        for target in graph.find_modules_directly_imported_by(module)
        if target in owner and owner[target] != name
    }


def _reduced(arrows: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows without those that follow from two others."""
    after: dict[str, set[str]] = {}
    for a, b in arrows:
        after.setdefault(a, set()).add(b)

    def reaches(a: str, b: str, seen: frozenset[str]) -> bool:
        return b in after.get(a, ()) or any(reaches(c, b, seen | {c}) for c in after.get(a, set()) - seen)

    return sorted(
        (a, b)
        for a, b in arrows
        if not any(reaches(c, b, frozenset({a, b, c})) for c in after[a] - {b} if not reaches(c, a, frozenset({c})))
    )


def _place(boxes: list[Box]) -> dict[str, Box]:
    """Every room in the band of its floor, in the row below whatever imports it there."""
    arrows, placed, top = _arrows(boxes), {}, float(MARGIN)
    for floor in FLOORS:
        names = {box.name for box in boxes if box.floor == floor}
        inside = {(a, b) for a, b in arrows if a in names and b in names}
        rank = dict.fromkeys(names, 0)
        for _ in names:
            for a, b in sorted(inside):
                if (b, a) not in inside and rank[a] < len(names):
                    rank[b] = max(rank[b], rank[a] + 1)
        rows = sorted(set(rank.values()))
        top += 34
        for row in rows:
            line = sorted(name for name in names if rank[name] == row)
            width = min(350.0, (WIDTH - 2 * MARGIN - 2 * GAP - (len(line) - 1) * GAP) / len(line))
            left = (WIDTH - len(line) * width - (len(line) - 1) * GAP) / 2
            for index, name in enumerate(line):
                box = next(box for box in boxes if box.name == name)
                placed[name] = Box(name, floor, box.modules, left + index * (width + GAP), top, width)
            top += ROW
        top -= ROW - HEIGHT - 46
    return placed


def _bands(boxes: Iterable[Box]) -> list[str]:
    lines = []
    for floor in FLOORS:
        own = [box for box in boxes if box.floor == floor]
        top, bottom = min(box.y for box in own) - 30, max(box.y for box in own) + HEIGHT + 12
        lines.append(
            f'<rect x="{MARGIN / 2}" y="{top:.0f}" width="{WIDTH - MARGIN}" height="{bottom - top:.0f}" rx="8" fill="{FILL[floor]}"/>'
            f'<text x="{MARGIN}" y="{top + 20:.0f}" font-weight="bold" font-size="15">{floor}/</text>'
        )
    return lines


def _curve(a: Box, b: Box) -> str:
    """An arrow from the lower edge of one room to the upper edge of another."""
    ax, bx = a.x + a.width / 2, b.x + b.width / 2
    if a.y == b.y:
        side = (a.x + a.width, b.x) if a.x < b.x else (a.x, b.x + b.width)
        path = f"M{side[0]:.0f} {a.y + HEIGHT / 2:.0f} L{side[1]:.0f} {b.y + HEIGHT / 2:.0f}"
    else:
        start, end = (a.y + HEIGHT, b.y) if a.y < b.y else (a.y, b.y + HEIGHT)
        bend = (end - start) / 2
        path = f"M{ax:.0f} {start:.0f} C{ax:.0f} {start + bend:.0f} {bx:.0f} {end - bend:.0f} {bx:.0f} {end:.0f}"
    return f'<path d="{path}" fill="none" stroke="#80868b" stroke-width="1.2" marker-end="url(#tip)"/>'


def _drawn(box: Box) -> list[str]:
    """A room: its name, what is in it, and the numbers of the steps that pass through it."""
    floor, _, kind = box.name.partition(": ")
    package = f"tunery.{box.name.replace('/', '.')}"
    inside = (
        box.modules
        if kind
        else {module for module in box.modules if module.rpartition(".")[0] == package and _is_package(module)}
    )
    title = (
        ", ".join(sorted(_last(module) for module in inside if module != f"tunery.{floor}"))
        if kind
        else f"{_last(box.name.replace('/', '.'))}/"
    )
    below = "" if kind else "  ".join(f"{_last(module)}/" for module in sorted(inside))
    lines = [
        f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{HEIGHT}" rx="6" fill="#ffffff" stroke="#5f6368"/>'
    ]
    for number, line in enumerate(_wrapped(title, box.width / 7.4)):
        weight = "normal" if kind else "bold"
        lines.append(_text(box, 18 + 15 * number, line, f'font-weight="{weight}"'))
    lines += [
        _text(box, 34 + 14 * n, line, 'font-size="11" fill="#5f6368"')
        for n, line in enumerate(_wrapped(below, box.width / 6))
    ]
    steps = [
        (f"{letter}{number}", COLOURS[letter])
        for letter, path in (("T", TRAINING), ("S", SERVING))
        for number, place in enumerate(path.values(), 1)
        if place in box.modules
    ]
    for number, (label, colour) in enumerate(steps):
        x, y = box.x + 18 + 30 * number, box.y + HEIGHT - 2
        lines.append(
            f'<rect x="{x - 13:.0f}" y="{y - 9:.0f}" width="26" height="18" rx="9" fill="{colour}"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" font-size="11" fill="#ffffff">{label}</text>'
        )
    return lines


def _text(box: Box, down: float, text: str, style: str) -> str:
    return f'<text x="{box.x + 10:.0f}" y="{box.y + down:.0f}" {style}>{html.escape(text)}</text>'


def _wrapped(text: str, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]
