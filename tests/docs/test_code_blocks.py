"""Every code block of the documentation is run, parsed or checked, or says why it is not.

A block that cannot be run has `<!-- not run: reason -->` on the line before it. Console blocks of the tutorials are run
by tests/examples/test_tutorials.py, and options of commands are checked by test_docs.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.api.conftest import Served, served, settings, tokenizer_folder

__all__ = ["served", "settings", "tokenizer_folder"]

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
COMMANDS = re.compile(
    r"(\$ )?(tunery|make|export|python3?|pip|pipx|pytest|pre-commit|accelerate|torchrun|\.venv/bin/\S+) "
)
OUTPUT = re.compile(r"(error: |== |\$ |[a-z]+/[a-z]+@\d+ )")
LAYOUT = re.compile(r"[a-z]+/ {2,}\S")


@dataclass(frozen=True)
class Block:
    """A code block: its language (none if it is indented), its text, the line it begins on, and why it is not run."""

    page: str
    line: int
    language: str
    text: str
    excuse: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """The code blocks of a page, fenced and indented."""
    page, lines, result = path.relative_to(ROOT).as_posix(), path.read_text().splitlines(), []
    index = 0
    while index < len(lines):
        start = index
        if lines[index].startswith("```"):
            language = lines[index].removeprefix("```").strip()
            index += 1
            while not lines[index].startswith("```"):
                index += 1
            text = "\n".join(lines[start + 1 : index])
        elif lines[index].startswith("    ") and (
            index == 0 or not lines[index - 1].strip() or "-->" in lines[index - 1]
        ):
            while index + 1 < len(lines) and (lines[index + 1].startswith("    ") or not lines[index + 1].strip()):
                index += 1
            language, text = "", "\n".join(line[4:] for line in lines[start : index + 1])
        else:
            index += 1
            continue
        before = "\n".join(lines[max(0, start - 2) : start])
        excuse = re.search(r"<!-- (?:not run: (.+)|.* output) -->", before)
        result.append(Block(page, start + 1, language, text.strip(), excuse[0] if excuse else ""))
        index += 1
    return result


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.excuse]


def test_there_are_blocks_of_every_kind() -> None:
    assert len(BLOCKS) > 35
    assert {block.language for block in BLOCKS} == {"", "python", "toml", "console", "text"}


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.excuse], ids=str)
def test_every_block_is_code_that_is_checked(block: Block) -> None:
    """Python is run below; everything else is data that parses, commands, or output that follows them."""
    match block.language:
        case "toml":
            assert tomllib.loads(block.text)
        case "console":
            assert block.page.startswith("docs/tutorials/"), "only tutorials are run; indent commands elsewhere"
            assert block.text.startswith("$ ")
        case "" if block.text.startswith("{"):
            assert all(json.loads(line) for line in block.text.splitlines())
        case "":
            first = block.text.splitlines()[0]
            assert COMMANDS.match(first) or OUTPUT.match(first) or LAYOUT.match(first) or first.startswith("`"), first
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE)) <= set(targets)
        case _:
            assert block.language in ("python", "text")


@pytest.mark.parametrize("block", [block for block in PYTHON if "OpenAI(" not in block.text], ids=str)
def test_python_runs(block: Block) -> None:
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    if "class Shouting" in block.text:

        class Record:
            answer = "YES"

        (fault,) = names["Shouting"].check_record(None, Record())
        assert fault.message == "shouts"


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in PYTHON if "OpenAI(" in block.text], ids=str)
async def test_clients_of_a_server_run(
    block: Block, served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    for adapter in ("acme/support", "larkspur/support", "acme/code"):
        served.publish(adapter, alias="production")
    text = block.text.replace("http://127.0.0.1:8000", served.url).replace("smollm2-135m", served.base.name)
    names: dict[str, Any] = {}
    await asyncio.to_thread(exec, compile(text, str(block), "exec"), names)
    answer = names["answer"]
    said = answer.output_text if answer.object == "response" else answer.choices[0].message.content
    assert said == "Hello, world"
