"""Owns measuring the engine on the peers' workload: B requests over K random adapters, fixed lengths, greedy, stops ignored."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from tunery.gateway.engine.adapter import CONFIG, WEIGHTS, AdapterShape
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.core import EngineCore
from tunery.gateway.engine.messages import AdapterSource, Event, Failed, Generate, Load, Sampling, Tokens
from tunery.registry.errors import Unavailable

__all__ = ["ServeResult", "Workload", "bench_serve", "random_adapter"]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the engine; `prompt` and `new` are tokens per request, `adapters` 0 is the bare base."""

    adapters: int
    rank: int
    batch: int
    prompt: int
    new: int
    seed: int = 0


class ServeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one run, in tokens per second over the whole batch and milliseconds.

    `tok_s` counts generated tokens over the whole time, prompts included; `decode_tok_s` only after the last request's
    first token. `ttft_ms` is the median time to first token when all requests arrive at once.
    """

    decode_tok_s: float
    prefill_tok_s: float
    ttft_ms: float
    tok_s: float
    base: str
    quant: str
    dtype: str
    base_bytes: int
    adapter_bytes: int
    workload: Workload


def bench_serve(config: EngineConfig, workload: Workload) -> ServeResult:
    """Run the workload once to warm up and once to measure, with every adapter resident from the start."""
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as scratch:
        events: list[Event] = []
        core = EngineCore(config, events.append)
        sources = [
            random_adapter(core.model.shape, Path(scratch) / str(number), rank=workload.rank, seed=number)
            for number in range(workload.adapters)
        ]
        for source in sources:
            core.handle(Load(source.digest, source))
        _drain(core, events)
        _run(core, events, sources, msgspec.structs.replace(workload, new=2))
        started, firsts, ended = _run(core, events, sources, workload)
        last_first = max(firsts)
        decoded = workload.batch * (workload.new - 1)
        result = ServeResult(
            decode_tok_s=round(decoded / (ended - last_first), 1) if workload.new > 1 else 0.0,
            prefill_tok_s=round(workload.batch * workload.prompt / (last_first - started), 1),
            ttft_ms=round(1000 * (statistics.median(firsts) - started), 1),
            tok_s=round(workload.batch * workload.new / (ended - started), 1),
            base=config.base_name,
            quant=config.quant,
            dtype=config.dtype,
            base_bytes=core.model.base_bytes,
            adapter_bytes=core.residency.bytes,
            workload=workload,
        )
        core.close()
    return result


def random_adapter(shape: AdapterShape, folder: Path, *, rank: int, seed: int) -> AdapterSource:
    """Write a random LoRA over every linear layer except the head, in PEFT layout, as bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shapes in shape.parameters.items():
        weight = shapes.get("weight", ())
        if len(weight) != 2 or name in (shape.embedding, shape.head):
            continue
        a = torch.randn(rank, weight[1], generator=generator) * 0.01
        b = torch.randn(weight[0], rank, generator=generator) * 0.01
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    files = {name: str(folder / name) for name in (CONFIG, WEIGHTS)}
    return AdapterSource(f"bench-{seed}", f"bench/adapter-{seed}", 1, files)


def _run(
    core: EngineCore, events: list[Event], sources: list[AdapterSource], workload: Workload
) -> tuple[float, list[float], float]:
    """Submit the whole batch at once; start, first-token and end times in seconds."""
    noise = random.Random(workload.seed)  # noqa: S311 - a workload, not a secret
    sampling = Sampling(max_tokens=workload.new, temperature=0.0, ignore_eos=True)
    most = min(40000, core.model.vocab_size - 1)
    started = time.perf_counter()
    for index in range(workload.batch):
        prompt = tuple(noise.randint(min(100, most), most) for _ in range(workload.prompt))
        source = sources[index % len(sources)] if sources else None
        core.handle(Generate(id=str(index), prompt=prompt, sampling=sampling, adapter=source))
    firsts: dict[str, float] = {}
    while not core.idle:
        core.step()
        now = time.perf_counter()
        for event in _taken(events):
            for token in event.tokens if isinstance(event, Tokens) else ():
                firsts.setdefault(token.id, now)
    return started, list(firsts.values()), time.perf_counter()


def _drain(core: EngineCore, events: list[Event]) -> None:
    while not core.idle:
        core.step()
        time.sleep(0.001)
        _taken(events)


def _taken(events: list[Event]) -> list[Event]:
    """Take the events out; a failure ends the benchmark."""
    taken, events[:] = list(events), []
    for event in taken:
        if isinstance(event, Failed):
            raise Unavailable(f"the benchmark's own request failed: {event.message}")
    return taken
