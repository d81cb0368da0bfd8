"""Names of fine-tuned models in OpenAI's form, `ft:base:tenant:suffix:id`, and the adapters behind them."""

from __future__ import annotations

import hashlib
import re

__all__ = ["adapter_name", "is_checkpoint_name", "is_tuned_name", "tuned_name"]

_UNFIT = re.compile(r"[^a-z0-9._-]+")
_DOTS = re.compile(r"\.{2,}")
_CHECKPOINT = re.compile(r":ckpt-step-[0-9]+$")
PREFIX = "ft:"


def is_tuned_name(name: str) -> bool:
    """Whether a name is in this form."""
    return name.startswith(PREFIX)


def is_checkpoint_name(name: str) -> bool:
    """Whether a name is that of a checkpoint of a job, `ft:…:ckpt-step-N`."""
    return is_tuned_name(name) and _CHECKPOINT.search(name) is not None


def tuned_name(model: str, *, tenant: str, suffix: str | None, job_id: str) -> str:
    """The name of what a job makes; the id is the end of the job's own."""
    base = model.removeprefix(PREFIX).split(":", 1)[0]
    return f"{PREFIX}{base}:{tenant}:{suffix or ''}:{job_id[-12:]}"


def adapter_name(tenant: str, *, suffix: str | None, base: str) -> str:
    """The adapter that a job without one of its own makes a version of: named by the suffix, or else by the base.

    A suffix without a letter or digit that adapters may have, such as `日本`, gets a name that no other suffix has.
    """
    text = suffix or base
    word = _DOTS.sub(".", _UNFIT.sub("-", text.lower())).strip("._-")[:64].strip("._-")
    return f"{tenant}/{word or 'model-' + hashlib.sha256(text.encode()).hexdigest()[:8]}"
