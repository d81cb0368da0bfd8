"""Run a tutorial as its page says, and write what its commands print into the page.

python examples/tutorials/run.py docs/tutorials/customer-service.md FOLDER [--update]

Commands are the lines after `$` in ```console blocks; one that ends in `&` keeps running, and the next waits for its
line `ready:`. `export NAME=VALUE` holds for all that follows. ```python blocks run too. What they print goes into the ```text block that follows. Port 8000 stands for
any that is free.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPORT = re.compile(r"export (?P<name>\w+)=(?P<value>.*)")
BLOCK = re.compile(r"^```(console|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Tutorial:
    """One run of a page's blocks in a folder; `change` rewrites commands, for a test with a smaller base."""

    def __init__(
        self, folder: Path, *, environment: Mapping[str, str] | None = None, change: Callable[[str], str] = str
    ) -> None:
        self.folder, self.change = folder, change
        folder.mkdir(parents=True, exist_ok=True)
        bin_folder = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "TUNERY_HOME": str(folder / "home"),
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "120",
            **(environment or {}),
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.background: list[subprocess.Popen[str]] = []

    def run(self, page: str) -> str:
        """The page with every output as it was now."""
        printed = ""
        try:
            pieces, end = [], 0
            for match in BLOCK.finditer(page):
                kind, body = match.groups()
                if kind == "console":
                    body = "".join(f"$ {command}\n{self._command(command)}" for command in commands(body))
                elif kind == "python":
                    printed = self._python(body)
                else:
                    body, printed = printed or body, ""
                pieces += [page[end : match.start()], f"```{kind}\n{body}```"]
                end = match.end()
            return "".join([*pieces, page[end:]])
        finally:
            for process in self.background:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)
                if process.stderr is not None:
                    process.stderr.close()

    def _command(self, command: str) -> str:
        line = self.change(command.replace("\\\n", " ")).replace("8000", self.port)
        if line.endswith("&"):
            return self._start(line.removesuffix("&").strip())
        if exported := EXPORT.fullmatch(line):
            return self._export(exported["name"], exported["value"])
        done = self.shell(line)
        if done.returncode:
            raise SystemExit(f"$ {line}\n{done.stdout}ended with {done.returncode}")
        return self._shown(done.stdout)

    def _export(self, name: str, value: str) -> str:
        """Set a variable for all that follows; what is shown is what its value's command says beside it."""
        done = subprocess.run(
            f'set -e; value={value}; printf %s "$value"',
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"$ export {name}={value}\n{done.stderr}ended with {done.returncode}")
        self.environment[name] = done.stdout
        return self._shown(done.stderr)

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command line in the folder; its stdout has what it wrote on stderr, too."""
        return subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _start(self, line: str) -> str:
        process = subprocess.Popen(
            line.split(), cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        self.background.append(process)
        assert process.stderr is not None
        shown = ""
        for message in process.stderr:
            shown += message
            if message.startswith("ready: "):
                return self._shown(shown)
        raise SystemExit(f"$ {line}\n{shown}ended before it was ready")

    def _python(self, body: str) -> str:
        code = self.change(body).replace("8000", self.port)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return self._shown(done.stdout)

    def _shown(self, text: str) -> str:
        text = text.replace(self.port, "8000").replace(f"{self.folder}/", "").replace(str(ROOT), ".")
        return text if text.endswith("\n") or not text else f"{text}\n"


def commands(block: str) -> Iterator[str]:
    """The commands of a console block, continued lines together."""
    command = None
    for line in block.splitlines():
        if command is not None:
            command += f"\n{line}"
        elif line.startswith("$ "):
            command = line.removeprefix("$ ")
        if command is not None and not command.endswith("\\"):
            yield command
            command = None


def main() -> None:
    """Run a page, and write it if asked to."""
    page, folder = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    after = Tutorial(folder, change=lambda text: text.replace("examples/", f"{ROOT}/examples/")).run(page.read_text())
    if "--update" in sys.argv:
        page.write_text(after)
    else:
        sys.stdout.write(after)


if __name__ == "__main__":
    main()
