"""Measure the engine on a workload that other systems can run too: B requests over K random adapters, fixed lengths,
greedy, stops ignored."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from tunery.gateway.bench.driver import Driver
from tunery.gateway.bench.settings import Workload
from tunery.gateway.engine.adapters.adapter import AdapterShape
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig
from tunery.registry.peft.layout import CONFIG, WEIGHTS, pair_keys

__all__ = ["Figures", "ServeResult", "bench_serve", "figures", "middle", "prompts", "random_adapter"]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens per second over the whole batch, and milliseconds.

    `tok_s` counts generated tokens over the whole time, prompts included; `decode_tok_s` only after the last request's
    first token. `ttft_ms` is the median time to first token when all requests arrive at once.
    """

    decode_tok_s: float
    prefill_tok_s: float
    ttft_ms: float
    tok_s: float


class ServeResult(Figures, frozen=True, kw_only=True):
    """The figures of one workload, and on what they were measured."""

    base: str
    quant: str
    dtype: str
    base_bytes: int
    adapter_bytes: int
    workload: Workload


def bench_serve(config: EngineConfig, workload: Workload) -> ServeResult:
    """Run the workload once to warm up and once to measure, with every adapter resident from the start."""
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as scratch, Driver(config) as driver:
        sources = [
            random_adapter(driver.core.model.shape, Path(scratch) / str(number), rank=workload.rank, seed=number)
            for number in range(workload.adapters)
        ]
        driver.load(sources)
        measured = figures(driver, sources, workload)
        return ServeResult(
            **msgspec.structs.asdict(measured),
            base=config.base_name,
            quant=config.quant,
            dtype=config.dtype,
            base_bytes=driver.core.model.base_bytes,
            adapter_bytes=driver.core.residency.bytes,
            workload=workload,
        )


def figures(driver: Driver, sources: list[AdapterSource], workload: Workload, *, runs: int = 1) -> Figures:
    """The median of `runs` measurements, after one that warms up."""
    _once(driver, sources, msgspec.structs.replace(workload, new=2))
    return middle([_once(driver, sources, workload) for _ in range(runs)])


def middle(measured: list[Figures]) -> Figures:
    """The median of each figure."""
    return Figures(
        **{name: statistics.median(getattr(one, name) for one in measured) for name in Figures.__struct_fields__}
    )


def _once(driver: Driver, sources: list[AdapterSource], workload: Workload) -> Figures:
    started = driver.now()
    for index, prompt in enumerate(prompts(driver, workload)):
        source = sources[index % len(sources)] if sources else None
        driver.submit(str(index), prompt, workload.new, source)
    times = list(driver.finish().values())
    firsts = [one.first for one in times]
    ended = max(one.last for one in times)
    decoded, seconds = workload.batch * (workload.new - 1), ended - max(firsts)
    return Figures(
        decode_tok_s=round(decoded / seconds, 1) if decoded else 0.0,
        prefill_tok_s=round(workload.batch * workload.prompt / (max(firsts) - started), 1),
        ttft_ms=round(1000 * (statistics.median(firsts) - started), 1),
        tok_s=round(workload.batch * workload.new / (ended - started), 1),
    )


def prompts(driver: Driver, workload: Workload) -> list[tuple[int, ...]]:
    """The prompts of a workload: random tokens, the same for the same seed."""
    noise = random.Random(workload.seed)  # noqa: S311 - a workload, not a secret
    most = min(40000, driver.core.model.vocab_size - 1)
    low = min(100, most)
    return [tuple(noise.randint(low, most) for _ in range(workload.prompt)) for _ in range(workload.batch)]


def random_adapter(shape: AdapterShape, folder: Path, *, rank: int, seed: int) -> AdapterSource:
    """Write a random LoRA over every linear layer except the head, in PEFT layout, as bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shapes in shape.parameters.items():
        weight = shapes.get("weight", ())
        if len(weight) != 2 or name in (shape.embedding, shape.head):
            continue
        a = torch.randn(rank, weight[1], generator=generator) * 0.01
        b = torch.randn(weight[0], rank, generator=generator) * 0.01
        key_a, key_b = pair_keys(name)
        tensors |= {key_a: a.to(torch.bfloat16), key_b: b.to(torch.bfloat16)}
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    files = {name: str(folder / name) for name in (CONFIG, WEIGHTS)}
    return AdapterSource(f"bench-{seed}", f"bench/adapter-{seed}", 1, files)
