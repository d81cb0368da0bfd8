"""Measure the training loop on the rows of a file; nothing is published."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import torch

from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.events import StepCompleted
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import read_parameters
from tunery.plugins.runtime.memory import peak_memory
from tunery.plugins.training.examples.corpus import read_corpus
from tunery.plugins.training.folder import JobFolder
from tunery.plugins.training.loop.compute import ComputeContext
from tunery.plugins.training.loop.loop import Loop, LoopCallbacks
from tunery.plugins.training.objectives.loss import mean_loss
from tunery.plugins.training.trainer import (
    LoadContext,
    Trainer,
    compute_dtype,
    dtype_name,
    load_trained,
    measuring_dtype,
)
from tunery.registry import Base

__all__ = ["bench_train"]


def bench_train(
    base: Base, method: str, values: dict[str, Any], data: Path, held_out: Path | None, *, plugins: Plugins, device: str
) -> dict[str, Any]:
    """Useful tokens per second over all steps but the first, which warms up; the process's peak
    memory in GB until then; and the loss.

    `eval_loss` is the mean per trained token of the file `held_out`, in nats, after the last step.
    """
    info = plugins.trainer(method)
    parameters = read_parameters(info.parameters, values)
    corpus = read_corpus(
        [data],
        held_out,
        msgspec.structs.replace(parameters, eval_fraction=0.0),
        formats=plugins.formats(),
        renderer=Renderer(Path(base.path)),
    )
    where = torch.device(device)
    dtype = compute_dtype(parameters.precision, where)
    torch.manual_seed(parameters.seed)
    trainer: Trainer = load_entrypoint(info.entrypoint)()
    measured = measuring_dtype(trainer, None, dtype)
    context = LoadContext(base_folder=Path(base.path), parameters=parameters, device=where, dtype=measured, parent=None)
    model = load_trained(trainer, context)
    steps: list[StepCompleted] = []
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as scratch:
        Loop(
            model,
            corpus.train,
            parameters,
            compute=ComputeContext(device=where, dtype=dtype, measured_dtype=measured),
            folder=JobFolder(Path(scratch)),
            fingerprint="",
            callbacks=LoopCallbacks(
                on_event=lambda event: steps.append(event) if isinstance(event, StepCompleted) else None
            ),
        ).run()
    peak = peak_memory(where)
    first, last = steps[0], steps[-1]
    tokens, seconds = last.tokens, last.seconds
    if len(steps) > 1:
        tokens, seconds = tokens - first.tokens, seconds - first.seconds
    figures = {
        "system": f"tunery {method}",
        "useful_tok_s": round(tokens / seconds, 1),
        "peak_gb": round(peak / 1e9, 2),
        "steps": last.step,
        "first_loss": round(first.loss, 4),
        "last_loss": round(last.loss, 4),
        "rows": len(corpus.train),
        "mean_tokens": round(sum(len(example.ids) for example in corpus.train) / len(corpus.train), 1),
        "batch_size": parameters.batch_size,
        "precision": dtype_name(dtype),
    }
    if corpus.held_out:
        loss = mean_loss(model, corpus.held_out, batch_size=parameters.batch_size, device=where, dtype=measured)
        figures["eval_loss"] = round(loss, 4)
    return figures
