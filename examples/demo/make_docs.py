"""Makes training rows on the spot from the docstrings of Python's standard library, which every machine with Python has.

    make_docs.py --rows 400 --out docs.jsonl                    write a docstring's first sentence for a signature
    make_docs.py --task signature --rows 400 --out sig.jsonl    write the signature for a first sentence

Source files are parsed, never imported.
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

SKIPPED = {
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
    "__pycache__",
    "ensurepip",
    "pydoc_data",
}
LONGEST_SENTENCE, LONGEST_SIGNATURE = 200, 90


def docstring_rows(limit: int, *, seed: int = 0, task: str = "docstring") -> list[dict[str, Any]]:
    """`limit` chat rows in an order that `seed` decides; fewer when the library has fewer."""
    pairs = sorted(set(_pairs()))
    random.Random(seed).shuffle(pairs)
    seen: set[str] = set()
    rows = []
    for signature, sentence in pairs:
        if sentence in seen or len(rows) >= limit:
            continue
        seen.add(sentence)
        ask, answer = (f"Document `{signature}`.", sentence)
        if task == "signature":
            ask, answer = (f"Which function: {sentence}", signature)
        rows.append({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]})
    return rows


def _pairs() -> Iterator[tuple[str, str]]:
    """Signature and first sentence of every documented public function of the library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if SKIPPED & set(place.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
        yield from _functions(tree, module)


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _functions(child, f"{prefix}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            sentence = _first_sentence(ast.get_docstring(child))
            signature = f"{prefix}.{child.name}({ast.unparse(child.args)})"
            if sentence and len(signature) <= LONGEST_SIGNATURE:
                yield signature, sentence


def _first_sentence(docstring: str | None) -> str | None:
    """The first paragraph in one line, when it reads like a sentence."""
    if not docstring:
        return None
    text = " ".join(docstring.split("\n\n")[0].split())
    if not text.isascii() or not text[0].isupper() or not 25 <= len(text) <= LONGEST_SENTENCE:
        return None
    return text if text.endswith(".") else text + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=("docstring", "signature"), default="docstring")
    options = parser.parse_args()
    rows = docstring_rows(options.rows, seed=options.seed, task=options.task)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
