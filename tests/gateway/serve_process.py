"""`tunery serve` as a process, with a registry full of random adapters, for the tests that need the real thing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import openai

from tests.forked_process import ForkedProcess
from tunery.gateway.cli import main
from tunery.registry import Base, NewVersion
from tunery.registry.home import Home
from tunery.registry.registry import Registry

TINY = ("--quant", "none", "--dtype", "float32")


@dataclass
class ServeProcess:
    """A running `tunery serve`."""

    process: subprocess.Popen[bytes] | ForkedProcess
    log: Path
    home: Home
    url: str = ""

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)

    @property
    def engine(self) -> int:
        """The process id of the engine."""
        (engine,) = [pid for pid in _children(self.process.pid) if _is_engine(pid)]
        return engine


@contextmanager
def start_server(
    folder: Path, home: Home, base: str | Path, *arguments: str, prepare: Callable[[], None] | None = None
) -> Iterator[ServeProcess]:
    """Start `tunery serve --base BASE ARGUMENTS`, wait until it says that it is ready, and kill it in the end.

    With `prepare`, a function of a module, the process is forked, and calls that first.
    """
    log = folder / "stderr"
    command = ["serve", "--base", str(base), "--port", "0", *arguments]
    environment = {
        "TUNERY_SERVE_AUTH": "false",
        "TUNERY_SERVE_DRAIN_DELAY": "0",
        **os.environ,
        "TUNERY_HOME": str(home.root),
        "OMP_NUM_THREADS": "1",
    }
    process = _start(command, environment, log, prepare)
    running = ServeProcess(process, log, home)
    try:
        deadline = time.monotonic() + 600
        while not any(line.startswith("ready: ") for line in running.lines()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        running.url = next(line.split()[1] for line in running.lines() if line.startswith("ready: "))
        with running.client:
            yield running
    finally:
        process.kill()
        process.wait()


def _start(
    command: list[str], environment: dict[str, str], log: Path, prepare: Callable[[], None] | None
) -> subprocess.Popen[bytes] | ForkedProcess:
    log.write_bytes(b"")
    if prepare is not None:
        return ForkedProcess(main, command, environment=environment, outputs=(log, log), prepare=prepare)
    with log.open("wb") as stderr:
        return subprocess.Popen([sys.executable, "-m", "tunery.gateway.cli", *command], stderr=stderr, env=environment)


def publish(registry: Registry, base: Base, folders: Iterable[Path], *, name: Callable[[int], str]) -> None:
    """The folders as versions: the one at `index` of adapter `name(index)`."""
    for index, folder in enumerate(folders):
        registry.publish(
            NewVersion(
                adapter=name(index),
                folder=folder,
                base=base,
                method="lora",
                manifest={},
                metrics={},
                actor="test",
                alias=None,
            )
        )


def random_loras(folder: Path, base: Path, count: int, *, rank: int = 4, size: float = 1.0) -> Iterator[Path]:
    """Folders of that many LoRAs in the base's dtype, each of which changes what the base says; `size` is how much."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config, autocast_adapter_dtype=False)
    noise = torch.Generator().manual_seed(0)
    for number in range(count):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0.0, size / parameter.shape[1] ** 0.5, generator=noise)
        model.save_pretrained(str(folder / f"lora-{number}"))
        yield folder / f"lora-{number}"


def overflow(folder: Path) -> Path:
    """A PEFT folder whose pairs and alpha are made as large as float32 holds, so that what it
    computes is not finite."""
    from safetensors.torch import load_file, save_file

    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(path)
    for key in tensors:
        if "lora_" in key and "magnitude" not in key:
            tensors[key] *= 1e37
    save_file(tensors, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1e38}))
    return folder


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(child) for child in listed.stdout.split()]


def _is_engine(pid: int) -> bool:
    return "tunery.gateway.engine.process" in Path(f"/proc/{pid}/cmdline").read_text()
