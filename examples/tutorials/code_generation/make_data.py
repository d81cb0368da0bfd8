"""Make rows from the functions of a code base: the prompt is a signature with its docstring, the completion the body.

python make_data.py TRAIN HELD_OUT PACKAGE ...    such as: make_data.py train.jsonl held-out.jsonl tunery.registry

Files are parsed, never run. All functions of a file go to one side, and a held-out function that resembles a training
one is left out, so that the held-out rows are code that the model has not seen.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

TASK = "Complete the function with its body only.\n\n"
LONGEST_PROMPT, LONGEST_BODY = 280, 200
"""Characters. Longer functions are left out: a small base completes none of them."""
ALIKE = 0.5
"""Share of common three-word sequences from which a held-out function resembles a training one."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


def rows(packages: Sequence[str]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training rows and held-out rows of the packages' functions, about a tenth of the files held out."""
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for package in packages:
        for path in sorted(folder(package).rglob("*.py")):
            module = module_name(package, path)
            # The choice hangs on the file's name alone: a new file moves no other one to the other side.
            sides[zlib.crc32(module.encode()) % 10 == 0].extend(functions(path.read_text(encoding="utf-8"), module))
    train, held_out = sides
    known = [sequences(row) for row in train]
    return train, [row for row in held_out if not any(alike(sequences(row), other) for other in known)]


def folder(package: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not an installed package")
    return Path(spec.submodule_search_locations[0])


def module_name(package: str, path: Path) -> str:
    """What a file of a package is imported as."""
    parts = path.relative_to(folder(package)).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


def functions(source: str, module: str) -> Iterator[dict[str, str]]:
    """A row for each documented function of a file that is short enough, in the file's order."""
    lines = source.splitlines()
    for owner, node in documented(ast.parse(source)):
        docstring = node.body[0]
        head = textwrap.dedent("\n".join(lines[node.lineno - 1 : docstring.end_lineno]))
        body = textwrap.dedent("\n".join(lines[docstring.end_lineno : node.end_lineno])).strip()
        prompt = f"{TASK}# {module}{owner}\n{head}"
        short = len(prompt) <= LONGEST_PROMPT and len(body) <= LONGEST_BODY
        if short and (head + body).isascii() and parses(head, body):
            yield {"prompt": prompt, "completion": body}


def documented(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, Function]]:
    """Functions with a docstring and more than that, each with the class it belongs to, as `.Class` or nothing."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from documented(node, f"{owner}.{node.name}")
        elif isinstance(node, Function) and ast.get_docstring(node) and len(node.body) > 1:
            yield owner, node


def parses(head: str, body: str) -> bool:
    """Whether the two parts make a function again."""
    try:
        ast.parse(f"{head}\n{textwrap.indent(body, '    ')}")
    except SyntaxError:
        return False
    return True


def sequences(row: dict[str, str]) -> set[tuple[str, ...]]:
    """The three-word sequences of a row, without what every prompt says."""
    words = re.findall(r"\w+", f"{row['prompt'].removeprefix(TASK)} {row['completion']}".lower())
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def alike(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> bool:
    """Whether two rows have at least `ALIKE` of their sequences in common."""
    return len(one & other) >= ALIKE * len(one | other)


def main() -> None:
    """Write the two files."""
    for path, made in zip(map(Path, sys.argv[1:3]), rows(sys.argv[3:]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        print(f"{path}: {len(made)} functions")


if __name__ == "__main__":
    main()
