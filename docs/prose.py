"""Check the words of the documentation, docstrings, comments and messages: spelling with codespell,
and a list of phrases to avoid.

python docs/prose.py [FILE ...]   all Markdown and Python files of the project, unless some are named
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 120
"""Columns of a line of prose; tables, code and links may be longer."""

AVOID = {
    r"\bby heart\b": "memorised",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"(?<!be )(?<!been )(?<!was )\btold\b(?! (apart|from))": "say what is printed, logged or given",
    r"\b(is|are|was) dear\b": "expensive",
    r"\bknows? nothing of\b": "does not depend on, does not know",
    r"\basks? for nothing\b": "takes no arguments, needs nothing",
    r"\bas it is said\b": "name what is meant",
    r"\bOwns \b": "say what the module does",
    r"\bTeller\b|\bAround\b(?! )": "use the field's word",
    r"\bin vain\b": "without success",
    r"\bgoes? without saying\b": "leave it out",
    r"\bit's worth noting\b|\bplease note\b|\bsimply put\b": "leave it out",
    r"\butili[sz]e": "use",
    r"\bin order to\b": "to",
}
"""Phrases that a reader stumbles over, and what to write instead."""

FOLDERS = ("docs", "registry", "plugins", "gateway", "examples", "changes", ".github")
SPELLING = "rouge,ines,mot,ist,te,ser,nd,ot,fo,ans,crate,falsy,ue,vie,socio-economic,sting"
"""Words that codespell takes for misspellings and are not: identifiers and test data."""


def main() -> int:
    """Print every finding as FILE:LINE: what; 1 if there are some."""
    files = [Path(name).resolve() for name in sys.argv[1:]] or list(project_files())
    findings = [finding for path in files for finding in check(path)] + misspelled(files)
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    return 1 if findings else 0


def project_files() -> Iterator[Path]:
    """Every Markdown and Python file whose words we answer for."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in FOLDERS:
        yield from (
            path
            for path in sorted((ROOT / folder).rglob("*"))
            if path.suffix in (".md", ".py") and path != Path(__file__)
        )


def check(path: Path) -> Iterator[str]:
    """Findings of one file."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    text = path.read_text()
    for number, line in prose_of_markdown(text) if path.suffix == ".md" else words_of_python(text):
        for pattern, better in AVOID.items():
            if match := re.search(pattern, line):
                yield f"{name}:{number}: {match[0]!r}: {better}"
        if path.suffix == ".md" and len(line) > LONGEST and not line.lstrip().startswith(("|", "<!--", "![", "[")):
            yield f"{name}:{number}: {len(line)} columns; wrap at {LONGEST}"


def prose_of_markdown(text: str) -> Iterator[tuple[int, str]]:
    """Lines of a page with their numbers, without code, and without the parts that docs/generate.py writes."""
    fenced, generated = False, ""
    for number, line in enumerate(text.splitlines(), 1):
        begun = re.fullmatch(r"<!-- ([a-z ]+) -->", line)
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif begun and f"<!-- end of {begun[1]} -->" in text:
            generated = f"<!-- end of {begun[1]} -->"
        elif line == generated:
            generated = ""
        elif not fenced and not generated and not line.startswith("    "):
            yield number, re.sub(r"`[^`]*`", lambda code: "`" + "…" * (len(code[0]) - 2) + "`", line)


def words_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Comments and strings of a module, docstrings and messages among them, line by line."""
    kinds = {tokenize.COMMENT, tokenize.STRING} | {getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(r"`[^`]*`", "`…`", line)


def misspelled(files: list[Path]) -> list[str]:
    """What codespell finds."""
    command = [
        str(Path(sys.executable).with_name("codespell")),
        "--ignore-words-list",
        SPELLING,
        "--uri-ignore-words-list",
        "*",
    ]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, cwd=ROOT)
    return [line.replace(f"{ROOT}/", "") for line in (done.stdout + done.stderr).splitlines()]


if __name__ == "__main__":
    sys.exit(main())
