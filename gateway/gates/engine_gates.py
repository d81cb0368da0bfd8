"""The gates that run the engine: it serves what was trained, it stops by itself, and it is better than the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from tunery.gateway.gates.candidate_engine import CandidateEngine, candidate_engine
from tunery.plugins.runtime.memory import available_memory
from tunery.plugins.training.examples.batches import Example
from tunery.plugins.training.gates import GateCase, GateRequest, Precision, Verdict, failed, passed, skipped
from tunery.plugins.training.gates.reference import read_reference
from tunery.plugins.training.report.findings import bootstrap

__all__ = ["is_better_than_base", "serves_what_was_trained", "stops_by_itself"]

Floats = NDArray[np.float64]

SHARE = {"float32": 1e-3, "bfloat16": 0.05}
"""The share of what training moved that serving may miss: what rounding a pair and its products costs."""
NOISE = {"float32": 1e-3, "bfloat16": 0.15}
"""Nats a token (root mean square) by which two ways to compute the same model may differ: twice what they do on a base
of 135 million weights, where tokens that nobody expected make the most of it."""
ROUNDINGS = 2.0
"""How many times the engine's own rounding on the rows the trainer's may be: they round at different places."""
PROMPTS = 8
SHORTEST_LIMIT, TIMES = 64, 2
"""An answer may be this many times as long as the longest reference, and always so many tokens."""
STOPPING = 0.5
"""The share of answers that must end by themselves: one in a loop is a small model's weakness, most
of them are a fault."""
FEWEST = 8
"""Rows below which an interval says little."""


# -- serving_mismatch --------------------------------------------------------------------------------------------------


def serves_what_was_trained(case: GateCase) -> Verdict:
    """On the quantization it was trained on, the engine gives the trainer's log-probabilities of a
    few rows' trained tokens.

    They may differ by rounding, and by a small share of what training moved them away from the base's. Where bfloat16
    leaves more than usual, as on few rows that nobody expected, the trainer is compared with the engine in float32, and
    may differ from that as far as the engine's own rounding explains. What the serving quantization then adds is
    recorded, not judged.
    """
    request = case.request
    reference = read_reference(Path(request.reference)) if request.reference else None
    if reference is None or not reference.rows:
        return skipped("the trainer's own log-probabilities were not recorded")
    engine = candidate_engine(case, request.training)
    recorded = zip(reference.rows, reference.log_probs, strict=True)
    fitting = [(row, log_probs) for row, log_probs in recorded if len(row.ids) < engine.context_length]
    if not fitting:
        return skipped(f"the recorded rows fill the context of {engine.context_length} tokens")
    rows, theirs = [row for row, _ in fitting], _flat([log_probs for _, log_probs in fitting])
    ours, before = (_flat(engine.log_probs(rows, tuned=tuned)) for tuned in (True, False))
    moved, missed = _distance(theirs, before), _distance(theirs, ours)
    allowed = SHARE[request.training.dtype] * moved + NOISE[request.training.dtype]
    shift = _distance(ours, _flat(candidate_engine(case, request.serving).log_probs(rows, tuned=True)))
    figures = {"moved": moved, "missed": missed, "allowed": allowed, "serving_shift": shift}
    summary = (
        f"on {_title(request.training)} the engine is {missed:.2g} nats a token from the trainer, {allowed:.2g} are allowed "
        f"where training moved {moved:.2g}; {_title(request.serving)} shifts it by {shift:.2g}"
    )
    if missed <= allowed:
        return passed(summary, **figures)
    if request.training.dtype == "bfloat16" and _has_room(request):
        exact = _flat(candidate_engine(case, Precision(request.training.quant, "float32")).log_probs(rows, tuned=True))
        rounding, trainers = _distance(ours, exact), _distance(theirs, exact)
        figures |= {"rounding": rounding, "missed_exactly": trainers}
        summary += (
            f"; from the engine in float32 the trainer is {trainers:.2g}, and bfloat16 the engine itself {rounding:.2g}"
        )
        if trainers <= SHARE["bfloat16"] * moved + ROUNDINGS * rounding:
            return passed(f"{summary}, so this is rounding", **figures)
    return failed(f"{summary}: what is served is not what was trained; report this with the trainer's name", **figures)


def _has_room(request: GateRequest) -> bool:
    """Whether the base fits into memory once more, in float32: twice what its files have in bfloat16, and something to
    compute in."""
    size = sum(path.stat().st_size for path in Path(request.base_folder).glob("*.safetensors"))
    return available_memory(torch.device(request.device)) > 3 * size


def _distance(one: Floats, other: Floats) -> float:
    """Root mean square difference."""
    return float(np.sqrt(np.mean((one - other) ** 2)))


def _title(precision: Precision) -> str:
    return f"{precision.quant} in {precision.dtype}"


# -- never_stops -------------------------------------------------------------------------------------------------------


def stops_by_itself(case: GateCase) -> Verdict:
    """At least half of the greedy answers to held-out prompts end with an end-of-turn token, within
    twice the longest reference."""
    request = case.request
    engine = candidate_engine(case, request.serving)
    rows = _prompted(request.held_out or request.trained, request.parameters.get("max_length"), engine)[:PROMPTS]
    if not rows:
        return skipped(
            f"every row fills the context of {engine.context_length} tokens, so there is no room for an answer"
        )
    spans = [row.last_answer for row in rows]
    prompts = [row.ids[: max(start, 1)] for row, (start, _) in zip(rows, spans, strict=True)]
    limit = max(SHORTEST_LIMIT, TIMES * max(end - start for start, end in spans))
    answers = engine.answers(prompts, tuned=True, limit=limit)
    stopped = sum(answer.stopped for answer in answers)
    kind = "held-out prompts" if request.held_out else "training prompts (none are held out)"
    summary = f"{stopped} of {len(rows)} answers to {kind} end by themselves within {limit} tokens"
    figures = {"prompts": float(len(rows)), "stopped": float(stopped), "limit": float(limit)}
    if stopped >= STOPPING * len(rows):
        return passed(summary, **figures)
    bare = sum(answer.stopped for answer in engine.answers(prompts, tuned=False, limit=limit))
    return failed(
        f"{summary}; of the base's, {bare} do. Look at what ends an answer with tunery data preview, and train longer if it is trained",
        **figures,
        base_stopped=float(bare),
    )


def _prompted(rows: Sequence[Example], max_length: int | None, engine: CandidateEngine) -> list[Example]:
    """Rows with room behind them in the context; those that lost their end to `max_length` only
    where there are no others."""
    room = [row for row in rows if len(row.ids) < engine.context_length and any(row.trained[1:])]
    return [row for row in room if max_length is None or len(row.ids) < max_length] or room


# -- no_improvement ----------------------------------------------------------------------------------------------------


def is_better_than_base(case: GateCase) -> Verdict:
    """The held-out loss, both on the serving quantization, is lower than the base's: the whole 95 %
    interval of the difference.

    The interval is a paired bootstrap over rows of the file (Koehn 2004), the difference weighted by trained tokens.
    """
    request = case.request
    if not request.supervised:
        return skipped("the trainer minimises something else than the loss of held-out answers")
    if not request.held_out:
        return skipped("nothing was held out")
    engine = candidate_engine(case, request.serving)
    rows = [_shortened(row, engine.context_length - 1) for row in request.held_out]
    rows = [row for row in rows if row.targets]
    base, tuned = (engine.log_probs(rows, tuned=which) for which in (False, True))
    lost, tokens = _by_line(rows, base, tuned)
    difference = float(lost.sum() / tokens.sum())
    figures = {
        "difference": difference,
        "rows": float(len(lost)),
        "base_loss": -_mean(base),
        "tuned_loss": -_mean(tuned),
    }
    summary = f"held-out loss on {_title(request.serving)} {-_mean(base):.4f} → {-_mean(tuned):.4f}"
    if len(lost) < FEWEST:
        summary += f"; {len(lost)} rows are too few for an interval"
        upper = difference
    else:
        lower, upper = bootstrap(lost, tokens)
        figures |= {"lower": lower, "upper": upper}
        summary += f", {difference:+.4f} with a 95 % interval of {lower:+.4f} to {upper:+.4f} over {len(lost)} rows"
    if upper < 0:
        return passed(summary, **figures)
    return failed(
        f"{summary}: it is not clearly better than the base; train longer, or on more and better rows", **figures
    )


def _by_line(
    rows: Sequence[Example], base: Sequence[Sequence[float]], tuned: Sequence[Sequence[float]]
) -> tuple[Floats, Floats]:
    """Of each row of the file the nats that the tuned model loses more than the base, and its trained tokens; examples
    of one row are not independent of each other."""
    numbers: dict[tuple[str, int], int] = {}
    where = [numbers.setdefault((row.file, row.line), len(numbers)) for row in rows]
    lost, tokens = np.zeros(len(numbers)), np.zeros(len(numbers))
    np.add.at(lost, where, [sum(b) - sum(t) for b, t in zip(base, tuned, strict=True)])
    np.add.at(tokens, where, [len(t) for t in tuned])
    return lost, tokens


def _shortened(row: Example, most: int) -> Example:
    return msgspec.structs.replace(row, ids=row.ids[:most], trained=row.trained[:most])


def _mean(log_probs: Sequence[Sequence[float]]) -> float:
    return float(np.mean(_flat(log_probs)))


def _flat(log_probs: Sequence[Sequence[float]]) -> Floats:
    return np.array([value for row in log_probs for value in row], dtype=np.float64)
