"""Guides: where a request's output is in its grammar, and which tokens may follow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray

from tunery.registry.errors import InvalidInput

if TYPE_CHECKING:
    import torch

__all__ = ["Guide", "TokenMasks", "apply_masks", "describe_error"]

# llguidance's stack traces, and its drawings of where in the grammar the error is.
_DRAWING = re.compile(r"^ *(\^+|\d+ \|.*)$", re.MULTILINE)


class TokenMasks:
    """Computes which tokens of a base's vocabulary may come next.

    `folder` has the base's tokenizer.json, `vocab_size` is the width of the model's logits, `eos_ids` are the tokens
    that end an output. Raises InvalidInput (`invalid_constraint`) when the tokenizer is not one that llguidance can
    read.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_ids: Iterable[int]) -> None:
        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            self.tokenizer = LLTokenizer(text, eos_token=sorted(set(eos_ids)) or None)
        except (OSError, ValueError) as error:
            message = f"the tokenizer of the base in {folder} cannot be constrained: {error}"
            raise InvalidInput(message, code="invalid_constraint") from error
        self._words = -(-vocab_size // 32)
        bits = np.zeros(-(-self.tokenizer.vocab_size // 32) * 32, dtype=np.uint8)
        bits[self.tokenizer.eos_tokens] = 1
        self._eos: NDArray[np.int32] = np.packbits(bits, bitorder="little").view(np.int32)

    @cached_property
    def _executor(self) -> LLExecutor:
        """Made when the first mask is computed: it has threads, and the process that forks must have none."""
        return LLExecutor()

    def compute(self, matchers: Sequence[LLMatcher]) -> NDArray[np.int32]:
        """What may come next for each matcher, computed in parallel: int32 [matchers, ceil(vocab_size / 32)].

        Bit i % 32 of word i // 32 is token i.
        """
        masks = np.empty((len(matchers), self._eos.size), dtype=np.int32)
        fill_next_token_bitmask_par(self._executor, [(matcher, row) for row, matcher in enumerate(matchers)], masks)
        # Where an end-of-sequence token is also plain text to the tokenizer, a string could contain
        # it and would be cut there.
        text = masks & ~self._eos
        unfinished = np.array([not matcher.is_accepting() for matcher in matchers]) & text.any(axis=1)
        masks = np.where(unfinished[:, None], text, masks)[:, : self._words]
        return np.pad(masks, ((0, 0), (0, self._words - masks.shape[1])))


class Guide:
    """Where one request's output is in its grammar; made by `Grammars.start`.

    It outlives preemption: tokens that are recomputed are not accepted again.
    """

    def __init__(self, matcher: LLMatcher, masks: TokenMasks) -> None:
        self.matcher, self.masks = matcher, masks

    def mask(self) -> NDArray[np.int32]:
        """What may come next, int32 [ceil(vocab_size / 32)]: bit i % 32 of word i // 32 is token i."""
        return self.masks.compute([self.matcher])[0]  # type: ignore[no-any-return]

    def accept(self, token: int) -> None:
        """Move past `token`. One that `mask` does not allow makes the guide fail."""
        self.matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """Whether only an end-of-sequence token may follow: the text is complete or has ended, or the guide failed."""
        return self.matcher.is_stopped()

    @property
    def failure(self) -> str:
        """Why the output cannot be continued (a limit was reached, or a token was not allowed), for
        the caller; else empty."""
        return describe_error(self.matcher.get_error()) if self.matcher.is_error() else ""


def apply_masks(guides: Sequence[Guide | None], logits: torch.Tensor) -> None:
    """Set to -inf, in place, what the guides do not allow in `logits` [R, vocab_size], on any
    device; row i has guides[i].

    Rows without a guide are not changed. In every other row at least one token stays: once a guide is finished, exactly
    the tokens that end an output. All guides come from one Grammars, and no guide is given twice.
    """
    rows, guided = [i for i, guide in enumerate(guides) if guide], [guide for guide in guides if guide]
    if not guided:
        return
    import torch  # not needed by the process that compiles grammars on trial

    packed = guided[0].masks.compute([guide.matcher for guide in guided])
    words = torch.from_numpy(packed.view(np.uint8)).to(logits.device)
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=logits.device)
    banned = (words[:, :, None] & bits == 0).flatten(1)[:, : logits.shape[1]]
    where = torch.tensor(rows, device=logits.device)
    logits.index_copy_(0, where, logits.index_select(0, where).masked_fill_(banned, -torch.inf))


def describe_error(error: str) -> str:
    """llguidance's message on one line of at most 500 characters, without stack traces and drawings."""
    text = " ".join(_DRAWING.sub("", error.split("\n<")[0]).split())
    if text == "NoExtensionBias":
        return "no text satisfies it"
    return "it is too large or too complex" if text.startswith("panic") else text[:500]
