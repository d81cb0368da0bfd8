"""Makes training rows on the spot from the docstrings of Python's standard library, which every
machine with Python has.

    make_docs.py --rows 400 --out docs.jsonl                    write a docstring's first paragraph for a signature
    make_docs.py --task signature --rows 400 --out sig.jsonl    write the signature for a first paragraph
    make_docs.py --together 4 --rows 400 --out docs.jsonl       four of them a row: about 160 tokens

Source files are parsed, never imported. Refuses what is not public, not a sentence, or long.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASKS = ("docstring", "signature")
SKIPPED = {"ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}
SHORTEST_SENTENCE, LONGEST_SENTENCE, LONGEST_SIGNATURE = 25, 200, 90
Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_rows(limit: int, *, seed: int = 0, task: str = "docstring") -> list[dict[str, Any]]:
    """`limit` chat rows in an order that `seed` decides; fewer when the library has fewer.

    No signature and no sentence comes twice, so a row that is held out is not in the training rows as well.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; choose one of {', '.join(TASKS)}")
    pairs = sorted(set(_pairs()))
    random.Random(seed).shuffle(pairs)
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    for signature, sentence in pairs:
        if len(rows) >= limit:
            break
        keys = {signature, sentence.lower()}
        if not keys & seen:
            seen |= keys
            rows.append(_row(signature, sentence, task=task))
    return rows


def together(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Rows that ask for and answer `count` of the given ones each, line by line; what is left over is left out."""
    turns = [[message["content"] for message in row["messages"]] for row in rows]
    joined = []
    for start in range(0, len(turns) - count + 1, count):
        asks, answers = ("\n".join(texts) for texts in zip(*turns[start : start + count], strict=True))
        joined.append({"messages": [{"role": "user", "content": asks}, {"role": "assistant", "content": answers}]})
    return joined


def _row(signature: str, sentence: str, *, task: str) -> dict[str, Any]:
    question, answer = f"Document `{signature}`.", sentence
    if task == "signature":
        question, answer = f"Which function: {sentence}", signature
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _pairs() -> Iterator[tuple[str, str]]:
    """Signature and first paragraph of every documented public function, method and class of the library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        names = path.relative_to(root).with_suffix("").parts
        names = names[:-1] if names[-1] == "__init__" else names
        if SKIPPED & set(names) or any(name.startswith("_") for name in names):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        yield from _documented(tree, ".".join(names))


def _documented(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | Function) or child.name.startswith("_") or _is_property(child):
            continue
        name = f"{prefix}.{child.name}"
        sentence = _first_paragraph(ast.get_docstring(child))
        arguments = _arguments(child, bound=isinstance(node, ast.ClassDef))
        if sentence and arguments is not None and len(name + arguments) <= LONGEST_SIGNATURE:
            yield name + arguments, sentence
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, name)


def _is_property(node: ast.ClassDef | Function) -> bool:
    """Whether it is read like an attribute, so that its signature would be a lie."""
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property", "setter", "deleter"})


def _arguments(node: ast.ClassDef | Function, *, bound: bool) -> str | None:
    """What a caller writes between the parentheses, or None when the source does not say."""
    if isinstance(node, ast.ClassDef):
        makers = [item for item in node.body if isinstance(item, Function) and item.name == "__init__"]
        return _arguments(makers[0], bound=True) if makers else None
    text = ast.unparse(node.args)
    first, _, rest = text.partition(", ")
    if first not in ("self", "cls"):
        return f"({text})"
    # Outside a class such a function is turned into something else by its decorator.
    return f"({rest})" if bound else None


def _first_paragraph(docstring: str | None) -> str | None:
    """The first paragraph in one line, when it reads like a sentence."""
    if not docstring:
        return None
    text = " ".join(docstring.split("\n\n")[0].split())
    if not text.isascii() or not text[0].isupper() or not SHORTEST_SENTENCE <= len(text) <= LONGEST_SENTENCE:
        return None
    # A colon announces a list that is not there any more, a prompt is an example and no sentence.
    if text.endswith(":") or ">>>" in text:
        return None
    return text if text[-1] in ".!?" else text + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=TASKS, default="docstring")
    parser.add_argument("--together", type=int, default=1)
    options = parser.parse_args()
    rows = together(
        docstring_rows(options.rows * options.together, seed=options.seed, task=options.task), options.together
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
